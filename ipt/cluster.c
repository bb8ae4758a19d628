/* A stripe's table of clusters. See cluster.h. */
#include "ipt/cluster.h"
#include "ipt/debug.h"
#include "ipt/stripe.h"
#include <assert.h>
#include <stdlib.h>

static uint32_t next_line(uint32_t at, uint32_t nlines)
{
	return at + 1 == nlines ? 0 : at + 1;
}

_Atomic uint32_t *cluster_find(struct ipt *t, uint32_t s, uint64_t h, uint64_t key)
{
	struct cluster_line *lines = cluster_lines(t, s);
	uint32_t nlines = load_relaxed32(&t->stripes[s].cluster_lines);
	uint32_t at = hash_scale(h, nlines);

	for (uint32_t i = 0; i < nlines; i++, at = next_line(at, nlines)) {
		unsigned m = cluster_match(&lines[at], key);

		if (m)
			return &lines[at].value[__builtin_ctz(m)];
		if (!load_relaxed32(&lines[at].over))
			break;
	}
	return NULL;
}

static _Atomic uint32_t *place(struct cluster_line *lines, uint32_t nlines, uint64_t h,
			       uint64_t key, uint32_t value)
{
	uint32_t at = hash_scale(h, nlines);

	for (uint32_t i = 0; i < nlines; i++, at = next_line(at, nlines)) {
		struct cluster_line *l = &lines[at];
		unsigned m = cluster_match(l, 0);

		if (m) {
			unsigned slot = (unsigned)__builtin_ctz(m);
			uint64_t version = load_relaxed64(&l->key[slot]) & CLUSTER_VERSION_MASK;

			store_release32(&l->value[slot], value);
			ipt_step();
			store_release64(&l->key[slot], key << CLUSTER_VERSION_BITS | version);
			return &l->value[slot];
		}
		store_release32(&l->over, load_relaxed32(&l->over) + 1);
		ipt_step();
	}
	abort(); /* reserve and insert disagree */
}

_Atomic uint32_t *cluster_insert(struct ipt *t, uint32_t s, uint64_t h, uint64_t key,
				 uint32_t value)
{
	struct stripe *st = &t->stripes[s];

	/* The count first: a reader skips a table that counts none. */
	store_release32(&st->clusters, load_relaxed32(&st->clusters) + 1);
	ipt_step();
	return place(cluster_lines(t, s), load_relaxed32(&st->cluster_lines), h, key, value);
}

void cluster_remove(struct ipt *t, uint32_t s, uint64_t h, uint64_t key)
{
	struct stripe *st = &t->stripes[s];
	struct cluster_line *lines = cluster_lines(t, s);
	uint32_t nlines = load_relaxed32(&st->cluster_lines), home = hash_scale(h, nlines);
	_Atomic uint32_t *value = cluster_find(t, s, h, key);

	if (!value)
		return;
	struct cluster_line *l = (struct cluster_line *)((uintptr_t)value & -(uintptr_t)TABLE_LINE);
	size_t slot = (size_t)(value - l->value);
	uint64_t version = load_relaxed64(&l->key[slot]) + 1;

	store_release64(&l->key[slot], version & CLUSTER_VERSION_MASK);
	ipt_step();
	for (uint32_t at = home; &lines[at] != l; at = next_line(at, nlines)) {
		store_release32(&lines[at].over, load_relaxed32(&lines[at].over) - 1);
		ipt_step();
	}
	store_release32(&st->clusters, load_relaxed32(&st->clusters) - 1);
}

/* Empties the slots but keeps their versions going, for the readers who are in them. */
static void lines_clear(struct cluster_line *lines, uint32_t nlines)
{
	for (uint32_t i = 0; i < nlines; i++) {
		for (unsigned slot = 0; slot < CLUSTER_SLOTS; slot++) {
			uint64_t key = load_relaxed64(&lines[i].key[slot]);

			if (key >> CLUSTER_VERSION_BITS)
				store_release64(&lines[i].key[slot],
						(key + 1) & CLUSTER_VERSION_MASK);
		}
		store_release32(&lines[i].over, 0);
	}
}

void cluster_clear(struct ipt *t, uint32_t s)
{
	struct stripe *st = &t->stripes[s];

	lines_clear(cluster_lines(t, s), load_relaxed32(&st->cluster_lines));
	store_release32(&st->clusters, 0);
}

struct element {
	uint64_t key;
	uint32_t value;
};

static uint32_t gather(struct cluster_line *lines, uint32_t nlines, struct element *out)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < nlines; i++) {
		for (unsigned slot = 0; slot < CLUSTER_SLOTS; slot++) {
			uint64_t key = cluster_key_at(&lines[i], slot);

			if (key)
				out[n++] = (struct element){key,
							    load_relaxed32(&lines[i].value[slot])};
		}
	}
	return n;
}

/* Spread the elements over `to` lines. Readers miss meanwhile and see by seq that they must wait. */
static bool grow(struct ipt *t, uint32_t s, uint32_t to)
{
	struct stripe *st = &t->stripes[s];
	struct cluster_line *lines = cluster_lines(t, s);
	uint32_t nlines = load_relaxed32(&st->cluster_lines), n = load_relaxed32(&st->clusters);
	struct element *all = malloc((n + 1) * sizeof(*all));

	if (!all)
		return false;
	n = gather(lines, nlines, all);
	stripe_open(st);
	/* The size first: whatever a dead process leaves lies within it. */
	store_release32(&st->cluster_lines, to);
	ipt_step();
	lines_clear(lines, nlines);
	ipt_step();
	for (uint32_t i = 0; i < n; i++) {
		uint64_t key = all[i].key;
		uint64_t h = hash_group(&t->keys, (uint32_t)(key >> 32), key & UINT32_MAX);

		place(lines, to, h, key, all[i].value);
	}
	stripe_close(st);
	free(all);
	return true;
}

bool cluster_reserve(struct ipt *t, uint32_t s)
{
	struct stripe *st = &t->stripes[s];
	uint32_t nlines = load_relaxed32(&st->cluster_lines), cap = t->layout.cluster_cap;
	uint64_t need = load_relaxed32(&st->clusters) + 1;

	if (nlines < cap && need * 100 > (uint64_t)nlines * CLUSTER_SLOTS * STRIPE_CLUSTER_LOAD) {
		uint32_t to = stripe_grown(nlines, cap);

		if (grow(t, s, to))
			nlines = to;
	}
	return need <= (uint64_t)nlines * CLUSTER_SLOTS;
}
