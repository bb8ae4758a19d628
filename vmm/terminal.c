#include "vmm/terminal.h"
#include <termios.h>
#include <unistd.h>

#define CTRL_A 1
#define CTRL_C 3

static struct termios saved;
static bool raw;

bool terminal_raw(void)
{
	if (!isatty(STDIN_FILENO) || tcgetattr(STDIN_FILENO, &saved) < 0)
		return false;
	struct termios t = saved;
	cfmakeraw(&t);
	t.c_oflag |= OPOST; /* our own lines on standard error keep their carriage returns */
	raw = tcsetattr(STDIN_FILENO, TCSANOW, &t) == 0;
	return raw;
}

void terminal_restore(void)
{
	if (raw)
		tcsetattr(STDIN_FILENO, TCSANOW, &saved);
	raw = false;
}

unsigned terminal_keys(char *bytes, size_t *n)
{
	static bool prefix;
	unsigned off = 0;
	size_t kept = 0;
	for (size_t i = 0; i < *n; i++) {
		char c = bytes[i];
		if (prefix) {
			prefix = false;
			if (c == 'x')
				off++;
			else
				bytes[kept++] = c == 'c' ? CTRL_C : c;
		} else if (c == CTRL_A) {
			prefix = true;
		} else if (c == CTRL_C) {
			off++;
		} else {
			bytes[kept++] = c;
		}
	}
	*n = kept;
	return off;
}
