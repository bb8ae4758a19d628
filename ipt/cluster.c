/* A stripe's table of clusters. See cluster.h. */
#include "ipt/cluster.h"
#include "ipt/debug.h"
#include "ipt/fail.h"
#include "ipt/stripe.h"
#include <stdlib.h>

static uint32_t next_line(uint32_t at, uint32_t nlines)
{
	return at + 1 == nlines ? 0 : at + 1;
}

struct cluster_slot cluster_find(struct ipt *t, uint32_t s, uint64_t h, uint64_t key)
{
	struct cluster_line *lines = cluster_lines(t, s);
	uint32_t nlines = load_relaxed32(&t->stripes[s].cluster_lines);
	uint32_t at = hash_scale(h, nlines);

	for (uint32_t i = 0; i < nlines; i++, at = next_line(at, nlines)) {
		unsigned m = cluster_match(&lines[at], key);

		if (m)
			return (struct cluster_slot){&lines[at], (unsigned)__builtin_ctz(m)};
		if (!(load_relaxed32(&lines[at].over) & CLUSTER_OVER_MASK))
			break;
	}
	return (struct cluster_slot){NULL, 0};
}

/* Another version of the line, before the first of two stores that belong together. A read-modify-write
 * with acquire, so that neither of them moves before it; wraps around within its bits. */
static void new_version(struct cluster_line *l)
{
	atomic_fetch_add_explicit(&l->over, UINT32_C(1) << CLUSTER_OVER_BITS, memory_order_acq_rel);
	ipt_step();
}

static void add_over(struct cluster_line *l, uint32_t n)
{
	uint32_t over = load_relaxed32(&l->over), count = (over + n) & CLUSTER_OVER_MASK;

	store_release32(&l->over, (over & ~CLUSTER_OVER_MASK) | count);
	ipt_step();
}

static struct cluster_slot place(struct cluster_line *lines, uint32_t nlines, uint64_t h,
				 uint64_t key, uint32_t base, bool full)
{
	uint32_t at = hash_scale(h, nlines), number = base >> IPT_CLUSTER_ORDER;

	for (uint32_t i = 0; i < nlines; i++, at = next_line(at, nlines)) {
		struct cluster_line *l = &lines[at];
		unsigned m = cluster_match(l, 0);

		if (m) {
			unsigned slot = (unsigned)__builtin_ctz(m);
			uint16_t rest = (uint16_t)(number >> CLUSTER_BASE_BITS);

			new_version(l);
			atomic_store_explicit(&l->rest[slot],
					      (uint16_t)(rest | (full ? CLUSTER_FULL : 0)),
					      memory_order_release);
			ipt_step();
			store_release64(&l->key[slot],
					key << CLUSTER_BASE_BITS | (number & CLUSTER_BASE_MASK));
			return (struct cluster_slot){l, slot};
		}
		add_over(l, 1);
	}
	abort(); /* reserve and insert disagree */
}

struct cluster_slot cluster_insert(struct ipt *t, uint32_t s, uint64_t h, uint64_t key,
				   uint32_t base, bool full)
{
	struct stripe *st = &t->stripes[s];

	/* The count first: a reader skips a table that counts none. */
	store_release32(&st->clusters, load_relaxed32(&st->clusters) + 1);
	ipt_step();
	return place(cluster_lines(t, s), load_relaxed32(&st->cluster_lines), h, key, base, full);
}

void cluster_set_full(struct cluster_slot slot, bool full)
{
	uint16_t rest = atomic_load_explicit(&slot.line->rest[slot.i], memory_order_relaxed);

	rest = (uint16_t)((rest & ~CLUSTER_FULL) | (full ? CLUSTER_FULL : 0));
	atomic_store_explicit(&slot.line->rest[slot.i], rest, memory_order_release);
}

void cluster_remove(struct ipt *t, uint32_t s, uint64_t h, uint64_t key)
{
	struct stripe *st = &t->stripes[s];
	struct cluster_line *lines = cluster_lines(t, s);
	uint32_t nlines = load_relaxed32(&st->cluster_lines), home = hash_scale(h, nlines);
	struct cluster_slot slot = cluster_find(t, s, h, key);

	if (!slot.line)
		return;
	new_version(slot.line);
	store_release64(&slot.line->key[slot.i], 0);
	ipt_step();
	for (uint32_t at = home; &lines[at] != slot.line; at = next_line(at, nlines))
		add_over(&lines[at], UINT32_MAX); /* minus one */
	store_release32(&st->clusters, load_relaxed32(&st->clusters) - 1);
}

/* Empties the slots; the versions go on, for the readers who are in them. */
static void lines_clear(struct cluster_line *lines, uint32_t nlines)
{
	for (uint32_t i = 0; i < nlines; i++) {
		new_version(&lines[i]);
		for (unsigned slot = 0; slot < CLUSTER_SLOTS; slot++)
			store_release64(&lines[i].key[slot], 0);
		store_release32(&lines[i].over,
				load_relaxed32(&lines[i].over) & ~CLUSTER_OVER_MASK);
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
	uint32_t base;
	bool full;
};

static uint32_t gather(struct cluster_line *lines, uint32_t nlines, struct element *out)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < nlines; i++) {
		for (unsigned at = 0; at < CLUSTER_SLOTS; at++) {
			struct cluster_slot slot = {&lines[i], at};
			uint64_t key = cluster_key_at(&lines[i], at);

			if (key)
				out[n++] = (struct element){key, cluster_base(slot),
							    cluster_is_full(slot)};
		}
	}
	return n;
}

#define GROW_FEW 64

/* Spread the elements over `to` lines. Readers miss meanwhile and see by seq that they must wait. */
static bool grow(struct ipt *t, uint32_t s, uint32_t to)
{
	struct stripe *st = &t->stripes[s];
	struct cluster_line *lines = cluster_lines(t, s);
	uint32_t nlines = load_relaxed32(&st->cluster_lines), n = load_relaxed32(&st->clusters);
	struct element few[GROW_FEW]; /* as in single.c */
	struct element *all =
		fail_null(IPT_GROW, n < GROW_FEW ? few : malloc((n + 1) * sizeof(*all)));

	if (!all)
		return false;
	n = gather(lines, nlines, all);
	bool opened = stripe_open(st);
	/* The size first: whatever a dead process leaves lies within it. */
	store_release32(&st->cluster_lines, to);
	ipt_step();
	lines_clear(lines, nlines);
	ipt_step();
	for (uint32_t i = 0; i < n; i++) {
		uint64_t key = all[i].key;
		uint64_t h = hash_group(&t->keys, (uint32_t)(key >> 32), key & UINT32_MAX);

		place(lines, to, h, key, all[i].base, all[i].full);
	}
	if (opened)
		stripe_close(st);
	if (all != few)
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
