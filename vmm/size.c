#include "vmm/size.h"
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static bool digits(const char *text, char **end, int base, uint64_t *out)
{
	if (!isxdigit((unsigned char)*text))
		return false; /* strtoull would take a sign or white space */
	errno = 0;
	*out = strtoull(text, end, base);
	return errno == 0 && *end != text;
}

bool size_parse(const char *text, uint64_t *bytes)
{
	char *end;
	uint64_t n;
	if (!digits(text, &end, 10, &n))
		return false;
	unsigned shift = 0;
	if (*end) {
		static const char units[] = "KMGT";
		const char *u = strchr(units, toupper((unsigned char)*end));
		if (u) {
			shift = 10 * (unsigned)(u - units + 1);
			end++;
			if (!strcmp(end, "iB") || !strcmp(end, "B"))
				end += strlen(end);
		} else if (!strcmp(end, "B")) {
			end++;
		}
	}
	if (*end || n > UINT64_MAX >> shift)
		return false;
	*bytes = n << shift;
	return true;
}

bool number_parse(const char *text, uint64_t min, uint64_t max, uint64_t *out)
{
	char *end;
	bool hex = text[0] == '0' && (text[1] == 'x' || text[1] == 'X');
	return digits(text, &end, hex ? 16 : 10, out) && !*end && *out >= min && *out <= max;
}
