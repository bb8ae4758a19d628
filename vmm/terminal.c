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

static bool prefixed; /* the last key was Ctrl-A */

/* What the escapes make of a key: itself or another for the guest, or -1 for none; *x is set for
 * Ctrl-A x. */
static int key(char c, bool *x)
{
	if (prefixed) {
		prefixed = false;
		*x = c == 'x';
		return *x ? -1 : c == 'c' ? CTRL_C : (unsigned char)c;
	}
	prefixed = c == CTRL_A;
	return prefixed ? -1 : (unsigned char)c;
}

unsigned terminal_keys(char *bytes, size_t *n)
{
	unsigned off = 0;
	size_t kept = 0;
	for (size_t i = 0; i < *n; i++) {
		bool x = false, plain = !prefixed;
		int k = key(bytes[i], &x);
		if (x || (plain && k == CTRL_C))
			off++;
		else if (k >= 0)
			bytes[kept++] = (char)k;
	}
	*n = kept;
	return off;
}

bool terminal_detach(char *bytes, size_t *n)
{
	bool x = false;
	size_t kept = 0;
	for (size_t i = 0; i < *n && !x; i++) {
		int k = key(bytes[i], &x);
		if (k >= 0)
			bytes[kept++] = (char)k;
	}
	*n = kept;
	return x;
}
