#include "guest/bare/words.h"
#include "guest/bare/text.h"
#include "guest/bare/work.h"
#include <string.h>

struct words words;

enum kind { NUMBER, FLAG, SIZE_AS_PAGES, RATIO, CHOICE };

struct word {
	const char *name;
	enum kind kind;
	void *global;       /* where it goes if it isn't a stage's */
	size_t at;          /* else its place in struct stage */
	const char *choice; /* "a|b|c", in the order of the enum */
};

#define IN_STAGE(member) .at = offsetof(struct stage, member)

static const struct word table[] = {
	{"pages", NUMBER, IN_STAGE(pages)},
	{"mem", SIZE_AS_PAGES, IN_STAGE(pages)},
	{"base", NUMBER, IN_STAGE(base)},
	{"passes", NUMBER, IN_STAGE(passes)},
	{"write", FLAG, IN_STAGE(write)},
	{"seed", NUMBER, IN_STAGE(seed)},
	{"order", CHOICE, IN_STAGE(order), .choice = "seq|rand"},
	{"seconds", NUMBER, IN_STAGE(seconds)},
	{"smp", FLAG, IN_STAGE(smp)},
	{"verify-only", FLAG, IN_STAGE(verify_only)},
	{"words", NUMBER, IN_STAGE(words)},
	{"distinct", NUMBER, IN_STAGE(distinct)},
	{"set", NUMBER, IN_STAGE(set)},
	{"rounds", NUMBER, IN_STAGE(rounds)},
	{"writes", NUMBER, IN_STAGE(writes)},
	{"ratio", RATIO, IN_STAGE(ratio)},
	{"init", FLAG, IN_STAGE(init)},
	{"loops", NUMBER, IN_STAGE(loops)},
	{"bytes", NUMBER, IN_STAGE(bytes)},
	{"disk", NUMBER, IN_STAGE(disk)},
	{"pmem", NUMBER, IN_STAGE(pmem)},
	{"sectors", NUMBER, IN_STAGE(sectors)},
	{"from", NUMBER, IN_STAGE(from)},
	{"chunk", NUMBER, IN_STAGE(chunk)},
	{"depth", NUMBER, IN_STAGE(depth)},
	{"flush", FLAG, IN_STAGE(flush)},
	{"mode", CHOICE, IN_STAGE(mode),
	 .choice = "rw|write|verify|ro|discard|zeroes|flush|info|read|check"},
	{"target", CHOICE, IN_STAGE(target),
	 .choice = "blk|console|rng|pmem|balloon|mmio|ports|serial|all"},
	{"console", CHOICE, .global = &words.console, .choice = "com1|virtio"},
	{"end", CHOICE, .global = &words.end, .choice = "off|reboot|triple|spin|halt|wild|park"},
	{"tsc", NUMBER, .global = &words.tsc},
	{"mce", FLAG, .global = &words.mce},
};

static const struct stage defaults = {
	.pages = WORDS_UNSET,
	.base = WORDS_UNSET,
	.passes = WORDS_UNSET,
	.write = 1,
	.seed = 1,
	.order = ORDER_SEQ,
	.seconds = WORDS_UNSET,
	.words = 512,
	.distinct = WORDS_UNSET,
	.set = WORDS_UNSET,
	.rounds = 1,
	.writes = WORDS_UNSET,
	.ratio = 90,
	.init = 1,
	.loops = UINT64_C(100000000),
	.bytes = 64,
	.sectors = WORDS_UNSET,
	.chunk = 16,
	.depth = 1,
	.flush = 1,
	.mode = MODE_RW,
	.target = TARGET_ALL,
};

static bool read_choice(const char *s, size_t n, const char *choice, uint64_t *out)
{
	for (uint64_t i = 0;; i++) {
		const char *bar = strchr(choice, '|');
		size_t len = bar != NULL ? (size_t)(bar - choice) : strlen(choice);
		if (len == n && memcmp(s, choice, n) == 0) {
			*out = i;
			return true;
		}
		if (bar == NULL)
			return false;
		choice = bar + 1;
	}
}

/* "90/10": the parts of a hundred; the first is kept. */
static bool read_ratio(const char *s, size_t n, uint64_t *out)
{
	const char *slash = memchr(s, '/', n);
	uint64_t rest;
	return slash != NULL && text_number(s, (size_t)(slash - s), out) &&
	       text_number(slash + 1, n - (size_t)(slash - s) - 1, &rest) && *out <= 100 &&
	       *out + rest == 100;
}

static bool read_value(const struct word *w, const char *s, size_t n, uint64_t *out)
{
	switch (w->kind) {
	case NUMBER:
		return text_number(s, n, out) && *out != WORDS_UNSET;
	case FLAG:
		return text_number(s, n, out) && *out <= 1;
	case SIZE_AS_PAGES:
		if (!text_number(s, n, out) || *out % 4096 != 0)
			return false;
		*out /= 4096;
		return true;
	case RATIO:
		return read_ratio(s, n, out);
	case CHOICE:
		return read_choice(s, n, w->choice, out);
	}
	return false;
}

static void complain(char *error, const char *what, const char *word, size_t n)
{
	size_t at = strlen(what);
	if (n > WORDS_ERROR_MAX - 3 - at)
		n = WORDS_ERROR_MAX - 3 - at;
	memcpy(error, what, at);
	error[at] = ' ';
	memcpy(error + at + 1, word, n);
	error[at + 1 + n] = '\0';
}

/* work=a,b: a stage for each, all with the words that follow. False if one is unknown or too many.
 */
static bool read_works(const char *s, size_t n, const struct stage *common)
{
	for (;;) {
		const char *comma = memchr(s, ',', n);
		size_t len = comma != NULL ? (size_t)(comma - s) : n;
		const struct work *found = NULL;
		for (const struct work *w = work_table; w->name != NULL; w++) {
			if (text_is(s, len, w->name))
				found = w;
		}
		if (found == NULL || words.stages == WORDS_STAGES)
			return false;
		words.stage[words.stages] = *common;
		words.stage[words.stages++].work = found;
		if (comma == NULL)
			return true;
		s += len + 1;
		n -= len + 1;
	}
}

bool words_read(const char *args, char error[WORDS_ERROR_MAX])
{
	struct stage common = defaults; /* what stands before the first work= is for all */
	unsigned first = 0;             /* of the stages that a word is for */
	bool ok = true;

	while (*args != '\0') {
		if (*args == ' ' || *args == '\n' || *args == '\t') {
			args++;
			continue;
		}
		size_t n = 0;
		while (args[n] != '\0' && args[n] != ' ' && args[n] != '\n' && args[n] != '\t')
			n++;
		const char *word = args, *equals = memchr(args, '=', n);
		size_t key = equals != NULL ? (size_t)(equals - word) : n;
		const char *value = word + key + 1;
		size_t value_len = equals != NULL ? n - key - 1 : 0;
		const struct word *w = NULL;
		uint64_t v;

		args += n;
		for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
			if (text_is(word, key, table[i].name))
				w = &table[i];
		}
		if (equals != NULL && text_is(word, key, "work")) {
			first = words.stages;
			if (!read_works(value, value_len, &common) && ok) {
				complain(error, "unknown or too much work:", word, n);
				ok = false;
			}
			continue;
		}
		if (w == NULL || equals == NULL) {
			if (ok)
				complain(error, "unknown word:", word, n);
			ok = false;
			continue;
		}
		if (!read_value(w, value, value_len, &v)) {
			if (ok)
				complain(error, "bad value:", word, n);
			ok = false;
			continue;
		}
		if (w->global != NULL) {
			*(uint64_t *)w->global = v;
		} else if (words.stages == 0) {
			*(uint64_t *)((char *)&common + w->at) = v;
		} else {
			for (unsigned i = first; i < words.stages; i++)
				*(uint64_t *)((char *)&words.stage[i] + w->at) = v;
		}
	}
	return ok;
}
