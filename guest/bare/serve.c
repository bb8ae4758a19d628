/*
 * work=serve: does what the host's commands say, until "off". A command is its name, then words
 * key=value; a line may have several, parted by ";", done one after the other until one fails. It
 * answers with text and a status: 0, 1 (memory isn't as it should be), 2 (no such command, or bad
 * words).
 *
 *   fill seed=S base=GPA pages=N   all words of the pages, by (seed, page, word) as work=pattern has
 *                                  them; seed=0: zeros. words=W: the first W of each page only
 *   check seed=S base= pages=      "ok", or "bad GPA" of the first word that isn't; words= as above
 *   zero base= pages=              as fill seed=0
 *   runs GPA S*N...                as check, for runs of pages that follow each other from GPA on, N
 *                                  of seed S each; the rest of the line
 *   sum base= pages=               a hash of the contents
 *   write GPA VALUE                8 bytes
 *   read GPA
 *   inflate base= pages=           give the pages to the balloon; deflate takes them back
 *   report base= pages=            report the pages as free: they read as before or as zero then
 *   balloon                        "balloon target=N actual=N", pages
 *   notices                        "N notices, the last of GPA": of lost memory that wasn't touched (mce=1)
 *   identity                       which clone this is, 0: none
 *   echo TEXT                      the rest of the line
 *   cpu loops=N                    arithmetic
 *   off                            DONE and ACPI power-off
 *
 * With mce=1 (main.c) a command that meets lost memory says "machine check: memory at GPA is lost", with status 1.
 * Pages of persistent memory (work=pmem) are pages like others.
 * seed= is 1 and pages= is 1 if unset; base= must be given.
 */
#include "guest/bare/agent.h"
#include "guest/bare/balloon.h"
#include "guest/bare/board.h"
#include "guest/bare/console.h"
#include "guest/bare/cpu.h"
#include "guest/bare/end.h"
#include "guest/bare/region.h"
#include "guest/bare/team.h"
#include "guest/bare/text.h"
#include "guest/bare/trap.h"
#include "guest/bare/work.h"
#include "vmm/machine.h"
#include <string.h>

extern char bare_image_end[];

enum { OK, WRONG, BAD };

/* The words of a command after its name. */
struct args {
	uint64_t seed, base, pages, loops, words;
	uint64_t number[2]; /* those without a key */
	unsigned numbers;
	const char *rest; /* all of them, as text */
	size_t rest_n;
};

struct command {
	const char *name;
	unsigned (*run)(const struct args *a);
	unsigned numbers; /* without a key: how many it needs */
	bool text;        /* takes anything */
};

static bool read_key(struct args *a, const char *word, size_t key, const char *value, size_t n)
{
	uint64_t *to = text_is(word, key, "seed")    ? &a->seed
		       : text_is(word, key, "base")  ? &a->base
		       : text_is(word, key, "pages") ? &a->pages
		       : text_is(word, key, "loops") ? &a->loops
		       : text_is(word, key, "words") ? &a->words
						     : NULL;
	return to != NULL && text_number(value, n, to);
}

static bool read_args(struct args *a, const char *at, size_t left)
{
	while (left > 0) {
		const char *space = memchr(at, ' ', left);
		size_t n = space != NULL ? (size_t)(space - at) : left;
		const char *equals = memchr(at, '=', n);
		size_t key = equals != NULL ? (size_t)(equals - at) : n;
		if (equals != NULL) {
			if (!read_key(a, at, key, equals + 1, n - key - 1))
				return false;
		} else if (n > 0 &&
			   (a->numbers == 2 || !text_number(at, n, &a->number[a->numbers++]))) {
			return false;
		}
		at += n + (space != NULL);
		left -= n + (space != NULL);
	}
	return true;
}

/* Memory that a command may touch: RAM from the image's end on. */
static bool usable(uint64_t at, uint64_t bytes)
{
	if (at < (uint64_t)(uintptr_t)bare_image_end)
		return false;
	for (unsigned i = 0; i < board.banks; i++) {
		uint64_t from = board.bank[i].base, len = board.bank[i].bytes;
		if (at >= from && at - from < len && bytes <= len - (at - from))
			return true;
	}
	return pmem_has(at, bytes);
}

static bool pages_are_usable(const struct args *a)
{
	if (a->base != WORDS_UNSET && a->base % REGION_PAGE == 0 && a->pages > 0 &&
	    a->pages <= UINT64_MAX / REGION_PAGE && usable(a->base, a->pages * REGION_PAGE))
		return true;
	agent_say("no such pages; the first is at 0x%lx", (uint64_t)(uintptr_t)bare_image_end);
	return false;
}

static uint64_t word_at(const struct args *a, uint64_t at)
{
	return a->seed == 0 ? 0 : region_word(a->seed, at / 8);
}

/* Is the word at `at` beyond those that are meant? */
static bool is_beyond(const struct args *a, uint64_t at)
{
	return at % REGION_PAGE / 8 >= a->words;
}

static unsigned fill(const struct args *a)
{
	if (!pages_are_usable(a))
		return BAD;
	for (uint64_t at = a->base, end = at + a->pages * REGION_PAGE; at < end; at += 8)
		if (!is_beyond(a, at))
			*region_word_at(at) = word_at(a, at);
	agent_say("filled %lu pages", a->pages);
	return OK;
}

static unsigned verify(const struct args *a)
{
	if (!pages_are_usable(a))
		return BAD;
	for (uint64_t at = a->base, end = at + a->pages * REGION_PAGE; at < end; at += 8)
		if (!is_beyond(a, at) && *region_word_at(at) != word_at(a, at)) {
			agent_say("bad 0x%lx", at);
			return WRONG;
		}
	return OK;
}

static unsigned check(const struct args *a)
{
	unsigned status = verify(a);
	if (status == OK)
		agent_say("ok");
	return status;
}

/* "S*N", seed and pages. */
static bool read_run(struct args *a, const char *word, size_t n)
{
	const char *star = memchr(word, '*', n);
	return star != NULL && text_number(word, (size_t)(star - word), &a->seed) &&
	       text_number(star + 1, n - (size_t)(star - word) - 1, &a->pages);
}

static unsigned runs(const struct args *all)
{
	struct args a = {.base = WORDS_UNSET, .words = REGION_PAGE / 8};
	const char *at = all->rest;
	for (size_t left = all->rest_n, n; left > 0; at += n, left -= n) {
		const char *space = memchr(at, ' ', left);
		size_t word = space != NULL ? (size_t)(space - at) : left;
		n = word + (space != NULL);
		if (a.base == WORDS_UNSET ? !text_number(at, word, &a.base)
					  : !read_run(&a, at, word)) {
			agent_say("runs: bad words");
			return BAD;
		}
		unsigned status = a.pages > 0 ? verify(&a) : OK;
		if (status != OK)
			return status;
		a.base += a.pages * REGION_PAGE;
	}
	agent_say("ok");
	return OK;
}

static unsigned zero(const struct args *a)
{
	struct args zeros = *a;
	zeros.seed = 0;
	return fill(&zeros);
}

static unsigned sum(const struct args *a)
{
	uint64_t h = 0;
	if (!pages_are_usable(a))
		return BAD;
	for (uint64_t at = a->base, end = at + a->pages * REGION_PAGE; at < end; at += 8)
		h = ((h ^ *region_word_at(at)) * UINT64_C(0x9E3779B97F4A7C15)) ^ h >> 29;
	agent_say("sum 0x%016lx", h);
	return OK;
}

static bool word_is_usable(uint64_t at)
{
	if (at % 8 == 0 && usable(at, 8))
		return true;
	agent_say("no word of memory at 0x%lx", at);
	return false;
}

static unsigned write_word(const struct args *a)
{
	if (!word_is_usable(a->number[0]))
		return BAD;
	*region_word_at(a->number[0]) = a->number[1];
	return OK;
}

static unsigned read_word(const struct args *a)
{
	if (!word_is_usable(a->number[0]))
		return BAD;
	agent_say("0x%lx", *region_word_at(a->number[0]));
	return OK;
}

static unsigned with_balloon(const struct args *a, const char *(*work)(uint64_t, uint64_t))
{
	if (!pages_are_usable(a))
		return BAD;
	const char *wrong = work(a->base, a->pages);
	if (wrong != NULL)
		agent_say("%s", wrong);
	return wrong == NULL ? OK : WRONG;
}

static unsigned inflate(const struct args *a)
{
	return with_balloon(a, balloon_inflate);
}

static unsigned deflate(const struct args *a)
{
	return with_balloon(a, balloon_deflate);
}

static unsigned report(const struct args *a)
{
	return with_balloon(a, balloon_report);
}

static unsigned say_balloon(const struct args *a)
{
	struct balloon_sizes s;
	(void)a;
	const char *wrong = balloon_sizes(&s);
	if (wrong != NULL)
		agent_say("%s", wrong);
	else
		agent_say("balloon target=%u actual=%u", s.target, s.actual);
	return wrong == NULL ? OK : WRONG;
}

static unsigned identity(const struct args *a)
{
	(void)a;
	agent_say("%u", cpu_in32(MACHINE_IDENTITY_PORT));
	return OK;
}

static unsigned notices(const struct args *a)
{
	(void)a;
	trap_look();
	agent_say("%u notices, the last of 0x%lx", trap_notices, trap_address);
	return OK;
}

static unsigned echo(const struct args *a)
{
	agent_write(a->rest, a->rest_n);
	agent_write("\n", 1);
	return OK;
}

static unsigned cpu(const struct args *a)
{
	uint64_t x = 1, start = cpu_tsc();
	for (uint64_t i = 0; i < a->loops; i++) { /* Marsaglia's xorshift, as work=cpu */
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
	}
	agent_say("cpu loops=%lu us=%lu result=0x%lx", a->loops, team_us(cpu_tsc() - start), x);
	return OK;
}

static unsigned off(const struct args *a)
{
	(void)a;
	agent_done(OK);
	agent_drain();
	end_done(END_OFF);
}

static const struct command commands[] = {
	{"fill", fill, 0, false},         {"check", check, 0, false},
	{"zero", zero, 0, false},         {"sum", sum, 0, false},
	{"write", write_word, 2, false},  {"read", read_word, 1, false},
	{"identity", identity, 0, false}, {"echo", echo, 0, true},
	{"runs", runs, 0, true},          {"cpu", cpu, 0, false},
	{"inflate", inflate, 0, false},   {"deflate", deflate, 0, false},
	{"report", report, 0, false},     {"balloon", say_balloon, 0, false},
	{"notices", notices, 0, false},   {"off", off, 0, false},
};

/* One command, and what it took of the line. */
static unsigned obey_one(const char *text, size_t left, size_t *took)
{
	const char *end = memchr(text, ';', left);
	size_t n = end != NULL ? (size_t)(end - text) : left;
	const char *space = memchr(text, ' ', n);
	size_t name = space != NULL ? (size_t)(space - text) : n;
	struct args a = {.seed = 1,
			 .base = WORDS_UNSET,
			 .pages = 1,
			 .loops = 100000000,
			 .words = REGION_PAGE / 8};
	*took = n + (end != NULL);
	for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
		const struct command *c = &commands[i];
		if (!text_is(text, name, c->name))
			continue;
		if (c->text)
			*took = n = left;
		a.rest = text + name + (space != NULL);
		a.rest_n = n - name - (space != NULL);
		if (!c->text && (!read_args(&a, a.rest, a.rest_n) || a.numbers != c->numbers)) {
			agent_say("%s: bad words", c->name);
			return BAD;
		}
		if (__builtin_setjmp(trap_back)) {
			trap_catch(false);
			agent_say("machine check: memory at 0x%lx is lost", trap_address);
			return WRONG;
		}
		trap_catch(true);
		unsigned status = c->run(&a);
		trap_catch(false);
		return status;
	}
	agent_say("no such command");
	return BAD;
}

static unsigned obey(const char *text, size_t n)
{
	size_t took;
	unsigned status = obey_one(text, n, &took);
	while (status == OK && took < n) {
		text += took;
		n -= took;
		status = obey_one(text, n, &took);
	}
	return status;
}

void serve_run(const struct stage *s)
{
	(void)s;
	if (!agent_open())
		end_fail("serve: no second virtio console");
	team_rest();
	console_say("serve");
	for (;;) {
		size_t n;
		const char *text = agent_next(&n);
		agent_done(obey(text, n));
	}
}
