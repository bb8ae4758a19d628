/* `invisor top`: a running host, live on the terminal. */
#include "vmm/ask.h"
#include "vmm/cli.h"
#include "vmm/clock.h"
#include "vmm/commands.h"
#include "vmm/error.h"
#include "vmm/run.h"
#include "vmm/size.h"
#include "vmm/top.h"
#include <locale.h>
#include <ncurses.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool sample(struct top *t, const char *host, char *error)
{
	json_t *ask_status = json_pack("{s:s}", "do", "status");
	json_t *ask_stats = json_pack("{s:s, s:b}", "do", "stats", "processes", 0);
	json_t *status = ask_host(host, ask_status, error), *stats = NULL;
	if (status)
		stats = ask_host(host, ask_stats, error);
	bool ok = stats && top_update(t, status, stats, clock_ns());
	if (stats && !ok)
		errorf(error, 0, "top: no memory");
	json_decref(ask_status);
	json_decref(ask_stats);
	json_decref(status);
	json_decref(stats);
	return ok;
}

static int once(struct top *t, const struct cli *c, unsigned delay_ms)
{
	char error[ERROR_MAX] = "", line[TOP_LINE];
	bool ok = sample(t, c->host, error);
	if (ok) {
		usleep(delay_ms * 1000);
		ok = sample(t, c->host, error);
	}
	if (!ok)
		return cli_fail(error);
	for (int i = 0; i < TOP_HEADERS - 1; i++)
		puts(t->header[i]);
	top_titles(t, line);
	puts(line);
	for (unsigned i = 0; i < t->vms; i++) {
		top_line(t, i, line);
		puts(line);
	}
	return EXIT_CLEAN;
}

/* ---- live ---------------------------------------------------------------------------------- */

static void draw(const struct top *t, unsigned *first)
{
	char line[TOP_LINE];
	int rows, width;
	getmaxyx(stdscr, rows, width);
	int room = rows - TOP_HEADERS - 1;
	unsigned last = room > 0 && t->vms > (unsigned)room ? t->vms - (unsigned)room : 0;
	if (*first > last)
		*first = last;
	erase();
	for (int i = 0; i < TOP_HEADERS - 1; i++)
		mvaddnstr(i, 0, t->header[i], width);
	top_titles(t, line);
	attron(A_REVERSE);
	mvaddnstr(TOP_HEADERS - 1, 0, line, width);
	for (int i = (int)strlen(line); i < width; i++)
		addch(' ');
	attroff(A_REVERSE);
	for (int i = 0; i < room && *first + (unsigned)i < t->vms; i++) {
		top_line(t, *first + (unsigned)i, line);
		mvaddnstr(TOP_HEADERS + i, 0, line, width);
	}
	mvaddnstr(rows - 1, 0,
		  "q quit   s or left/right: sort by the next column   r reverse   up/down scroll",
		  width - 1);
	refresh();
}

/* False to quit. */
static bool key(struct top *t, int k, unsigned *first)
{
	switch (k) {
	case 'q':
	case 'Q':
	case 3: /* Ctrl-C */
		return false;
	case 's':
	case KEY_RIGHT:
		t->column = (t->column + 1) % TOP_COLUMNS;
		break;
	case KEY_LEFT:
		t->column = (t->column + TOP_COLUMNS - 1) % TOP_COLUMNS;
		break;
	case 'r':
		t->reverse = !t->reverse;
		break;
	case KEY_UP:
		*first -= *first > 0;
		return true;
	case KEY_DOWN:
		++*first;
		return true;
	case KEY_PPAGE:
		*first -= *first > 20 ? 20 : *first;
		return true;
	case KEY_NPAGE:
		*first += 20;
		return true;
	}
	top_sort(t);
	return true;
}

static int live(struct top *t, const struct cli *c, unsigned delay_ms)
{
	char error[ERROR_MAX] = "";
	if (!sample(t, c->host, error))
		return cli_fail(error);
	setlocale(LC_CTYPE, "");
	SCREEN *screen = newterm(NULL, stdout, stdin);
	if (!screen)
		return cli_fail(
			"top: this terminal is unknown to ncurses; set TERM, or use --once");
	raw();
	noecho();
	keypad(stdscr, true);
	curs_set(0);
	unsigned first = 0;
	uint64_t next = clock_ns() + delay_ms * UINT64_C(1000000);
	bool go = true, ok = true;
	while (go && ok) {
		draw(t, &first);
		uint64_t now = clock_ns();
		timeout(now < next ? (int)((next - now) / 1000000 + 1) : 0);
		int k = getch();
		if (k != ERR)
			go = key(t, k, &first);
		/* A terminal that is gone gives ERR at once, for ever. */
		if (k == ERR && !isatty(STDIN_FILENO))
			go = false;
		if (go && clock_ns() >= next) {
			ok = sample(t, c->host, error);
			next = clock_ns() + delay_ms * UINT64_C(1000000);
		}
	}
	endwin();
	delscreen(screen);
	return ok ? EXIT_CLEAN : cli_fail(error);
}

int command_top(int argc, char **argv)
{
	enum { ONCE, DELAY };
	static const struct cli_spec spec = {
		.command = "top",
		.usage =
			"usage: invisor top [--once] [--delay MS] [--host SOCKET]\n"
			"The running host's frames and VMs, live. Keys: q quits, s or the left and "
			"right arrows\n"
			"choose the column to sort by, r reverses, up and down scroll.\n"
			"  --once       print one look at it as text\n"
			"  --delay MS   between looks, 100 to 60000 ms (1000)\n",
		.flag = {[ONCE] = "once", [DELAY] = "delay="},
		.operands = "takes no arguments"};
	struct cli c;
	struct top t = {.column = TOP_OWN};
	uint64_t delay = 1000;
	int status = cli_parse(&c, &spec, argc, argv);
	if (status >= 0)
		return status;
	if (c.value[DELAY] && !number_parse(c.value[DELAY], 100, 60000, &delay))
		return cli_fail("--delay: a number of milliseconds from 100 to 60000");
	if (!c.value[ONCE] && (!isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO)))
		return cli_fail("top: needs a terminal; use --once for text");
	status = c.value[ONCE] ? once(&t, &c, (unsigned)delay) : live(&t, &c, (unsigned)delay);
	top_free(&t);
	return status;
}
