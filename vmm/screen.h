/*
 * What the user sees of consoles: one guest's bytes as they are, several guests' line by line with
 * the name in front. Standard output may be slow (a pager): then nothing is taken from the guests,
 * and nobody waits.
 */
#ifndef VMM_SCREEN_H
#define VMM_SCREEN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SCREEN_LINE_MAX 2048 /* longer lines are cut into several */

enum screen_how {
	SCREEN_PLAIN,  /* one guest's bytes as they are */
	SCREEN_LINES,  /* lines with the guest's name */
	SCREEN_HIDDEN, /* nothing is printed */
};

/* One guest's line in the making, and what it said of itself. */
struct screen_line {
	char name[32];
	enum screen_how how;
	const char *ready_word;
	char text[SCREEN_LINE_MAX];
	size_t n;
	bool ready;     /* a line beginning with the ready word came by */
	char last[128]; /* the last whole line that wasn't empty, as far as it fits */
};

/* Feed console bytes; returns how many were taken. */
size_t screen_feed(struct screen_line *l, const char *bytes, size_t n);
/* Print a last line that had no end. */
void screen_finish(struct screen_line *l);

#endif
