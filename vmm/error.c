#include "vmm/error.h"
#include <stdarg.h>
#include <stdio.h>

int errorf(char *error, int code, const char *format, ...)
{
	if (error) {
		va_list args;
		va_start(args, format);
		vsnprintf(error, ERROR_MAX, format, args);
		va_end(args);
	}
	return code;
}

void error_plain(char *words, size_t size)
{
	words[size - 1] = 0;
	for (; *words; words++)
		if ((unsigned char)*words < ' ' || *words == 0x7f)
			*words = '?';
}
