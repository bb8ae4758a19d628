/* A stripe's table of single frames. See single.h. */
#include "ipt/single.h"
#include "ipt/debug.h"
#include "ipt/fail.h"
#include "ipt/stripe.h"
#include <errno.h>
#include <stdlib.h>

static uint32_t next_line(uint32_t at, uint32_t nlines)
{
	return at + 1 == nlines ? 0 : at + 1;
}

static void place(struct single_line *lines, uint32_t nlines, uint64_t h, uint32_t f)
{
	uint32_t at = hash_scale(h, nlines);

	for (uint32_t i = 0; i < nlines; i++, at = next_line(at, nlines)) {
		struct single_line *l = &lines[at];
		unsigned m = single_match(l, 0);

		if (m) {
			unsigned slot = (unsigned)__builtin_ctz(m);

			store_release32(&l->slot[slot], f | single_tag4(h));
			ipt_step();
			atomic_store_explicit(&l->tag[slot], single_tag(h), memory_order_release);
			return;
		}
		store_release32(&l->over, load_relaxed32(&l->over) + 1);
		ipt_step();
	}
	abort(); /* reserve and insert disagree */
}

void single_insert(struct ipt *t, uint32_t s, uint64_t h, uint32_t f)
{
	struct stripe *st = &t->stripes[s];

	/* The count first: a reader skips a table that counts none. */
	store_release32(&st->singles, load_relaxed32(&st->singles) + 1);
	ipt_step();
	place(single_lines(t, s), load_relaxed32(&st->single_lines), h, f);
	ipt_step();
}

void single_remove(struct ipt *t, uint32_t s, uint64_t h, uint32_t f)
{
	struct stripe *st = &t->stripes[s];
	struct single_line *lines = single_lines(t, s);
	uint32_t nlines = load_relaxed32(&st->single_lines), home = hash_scale(h, nlines);
	uint32_t at = home, want = f | single_tag4(h);

	for (uint32_t i = 0; i < nlines; i++, at = next_line(at, nlines)) {
		struct single_line *l = &lines[at];

		for (unsigned m = single_match(l, single_tag(h)); m; m &= m - 1) {
			unsigned slot = (unsigned)__builtin_ctz(m);

			if (load_relaxed32(&l->slot[slot]) != want)
				continue;
			atomic_store_explicit(&l->tag[slot], 0, memory_order_release);
			ipt_step();
			for (; home != at; home = next_line(home, nlines)) {
				store_release32(&lines[home].over,
						load_relaxed32(&lines[home].over) - 1);
				ipt_step();
			}
			store_release32(&st->singles, load_relaxed32(&st->singles) - 1);
			return;
		}
		if (!load_relaxed32(&l->over))
			return;
	}
}

static void lines_clear(struct single_line *lines, uint32_t nlines)
{
	for (uint32_t i = 0; i < nlines; i++) {
		for (unsigned slot = 0; slot < SINGLE_SLOTS; slot++)
			atomic_store_explicit(&lines[i].tag[slot], 0, memory_order_release);
		store_release32(&lines[i].over, 0);
	}
}

void single_clear(struct ipt *t, uint32_t s)
{
	struct stripe *st = &t->stripes[s];

	lines_clear(single_lines(t, s), load_relaxed32(&st->single_lines));
	store_release32(&st->singles, 0);
}

/* The frames of all elements. */
static uint32_t gather(struct single_line *lines, uint32_t nlines, uint32_t *out)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < nlines; i++) {
		unsigned m = SINGLE_ALL & ~single_match(&lines[i], 0);

		for (; m; m &= m - 1)
			out[n++] = load_relaxed32(&lines[i].slot[__builtin_ctz(m)]) &
				   SINGLE_FRAME_MASK;
	}
	return n;
}

#define GROW_FEW 256

/* Spread the elements over `to` lines. An element holds only part of its hash, so the words of all
 * their frames are read for the keys. */
static bool grow(struct ipt *t, uint32_t s, uint32_t to)
{
	struct stripe *st = &t->stripes[s];
	struct single_line *lines = single_lines(t, s);
	uint32_t nlines = load_relaxed32(&st->single_lines), n = load_relaxed32(&st->singles);
	/* Few need no malloc, which in a clone would write to pages that it shares with its template. */
	uint32_t few[GROW_FEW];
	uint32_t *all = fail_null(IPT_GROW, n < GROW_FEW ? few : malloc((n + 1) * sizeof(*all)));

	if (!all)
		return false;
	n = gather(lines, nlines, all);
	bool opened = stripe_open(st);
	/* The size first: whatever a dead process leaves lies within it. */
	store_release32(&st->single_lines, to);
	ipt_step();
	lines_clear(lines, nlines);
	ipt_step();
	for (uint32_t i = 0; i < n; i++) {
		if (i + 8 < n)
			__builtin_prefetch((const void *)&t->words[all[i + 8]]);
		uint64_t w = load_relaxed64(&t->words[all[i]]), g = word_gfn(w);
		uint64_t h = hash_group(&t->keys, word_vm(w), g >> IPT_CLUSTER_ORDER);

		place(lines, to, hash_gfn(&t->keys, h, g), all[i]);
	}
	if (opened)
		stripe_close(st);
	if (all != few)
		free(all);
	return true;
}

int single_reserve(struct ipt *t, uint32_t s, unsigned n)
{
	struct stripe *st = &t->stripes[s];
	uint32_t nlines = load_relaxed32(&st->single_lines), cap = t->layout.single_cap;
	uint64_t need = (uint64_t)load_relaxed32(&st->singles) + n;

	if (nlines < cap && need * 100 > (uint64_t)nlines * SINGLE_SLOTS * STRIPE_SINGLE_LOAD) {
		uint32_t to = stripe_grown(nlines, cap);

		if (grow(t, s, to))
			nlines = to;
	}
	if (need <= (uint64_t)nlines * SINGLE_SLOTS)
		return 0;
	return nlines < cap ? -ENOMEM : -ENOSPC;
}
