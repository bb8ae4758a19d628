/* The audit of a table that others work on: what several looks in a row all see. */
#include "ipt/table.h"
#include <time.h>

#define LOOKS 6
#define MOST  1024 /* violations that one look is remembered by */

struct look {
	const struct look *before; /* only what that one saw too counts; NULL: all does */
	ipt_say_fn *say;           /* NULL but for the last look */
	void *ctx;
	uint64_t seen[MOST]; /* hashes of the lines, each once */
	int n;
};

/* FNV-1a. */
static uint64_t hash_of(const char *line)
{
	uint64_t h = UINT64_C(0xcbf29ce484222325);

	for (; *line; line++)
		h = (h ^ (unsigned char)*line) * UINT64_C(0x100000001b3);
	return h;
}

static bool has_seen(const struct look *l, uint64_t h)
{
	for (int i = 0; i < l->n; i++) {
		if (l->seen[i] == h)
			return true;
	}
	return false;
}

static void look_at(void *ctx, const char *line)
{
	struct look *l = ctx;
	uint64_t h = hash_of(line);

	if (l->n == MOST || (l->before && !has_seen(l->before, h)) || has_seen(l, h))
		return;
	l->seen[l->n++] = h;
	if (l->say)
		l->say(l->ctx, line);
}

int ipt_audit_live(struct ipt *t, ipt_say_fn *say, void *ctx)
{
	struct look looks[2];

	for (unsigned i = 0;; i++) {
		struct look *now = &looks[i & 1];
		bool last = i == LOOKS - 1;

		now->before = i ? &looks[~i & 1] : NULL;
		now->say = last ? say : NULL;
		now->ctx = ctx;
		now->n = 0;
		ipt_audit(t, look_at, now);
		if (!now->n || last)
			return now->n;
		nanosleep(&(struct timespec){.tv_nsec = 5000000L << i}, NULL);
	}
}
