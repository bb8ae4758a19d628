#include "vmm/screen.h"
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Can standard output take a line now? */
static bool is_writable(void)
{
	/* A pipe says writable only while it has room for PIPE_BUF bytes, so a write of no more
	 * than that doesn't block (pipe(7)). Regular files are always writable. */
	struct pollfd p = {.fd = STDOUT_FILENO, .events = POLLOUT};
	return poll(&p, 1, 0) != 0;
}

static void put(const char *bytes, size_t n)
{
	while (n) {
		ssize_t w = write(STDOUT_FILENO, bytes, n);
		if (w < 0 && errno == EINTR)
			continue;
		if (w < 0)
			return; /* nobody listens: the guests go on */
		bytes += w;
		n -= (size_t)w;
	}
}

static void put_line(const struct screen_line *l)
{
	char line[SCREEN_LINE_MAX + sizeof l->name + 4];
	int n = snprintf(line, sizeof line, "%s| %.*s\n", l->name, (int)l->n, l->text);
	put(line, (size_t)n < sizeof line ? (size_t)n : sizeof line - 1);
}

/* Remember the line as far as it came; print it when it is whole. */
static void take(struct screen_line *l, char c)
{
	if (c == '\n' || l->n == sizeof l->text - 1) {
		size_t word = strlen(l->ready_word);
		if (l->n >= word && !memcmp(l->text, l->ready_word, word))
			l->ready = true;
		if (l->n)
			snprintf(l->last, sizeof l->last, "%.*s", (int)l->n, l->text);
		if (l->how == SCREEN_LINES)
			put_line(l);
		l->n = 0;
		if (c == '\n')
			return;
	}
	/* What would move the cursor in the middle of others' lines is left out of them. */
	if (l->how == SCREEN_PLAIN || c == '\t' || (c == '\033' && l->how == SCREEN_LINES) ||
	    (unsigned char)c >= ' ')
		l->text[l->n++] = c;
}

size_t screen_feed(struct screen_line *l, const char *bytes, size_t n)
{
	size_t i = 0;
	while (i < n) {
		if (l->how != SCREEN_HIDDEN && !is_writable())
			break;
		/* To the end of a line at most, so that one look at the pipe covers one write. */
		const char *end = memchr(bytes + i, '\n', n - i);
		size_t piece = end ? (size_t)(end - bytes) + 1 - i : n - i;
		if (l->how == SCREEN_PLAIN)
			put(bytes + i, piece);
		for (size_t j = 0; j < piece; j++)
			take(l, bytes[i + j]);
		i += piece;
	}
	return i;
}

void screen_finish(struct screen_line *l)
{
	if (l->how == SCREEN_LINES && l->n)
		put_line(l);
	l->n = 0;
}
