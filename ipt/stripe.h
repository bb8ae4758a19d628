/*
 * Stripes of the forward map: each has a lock, its part of the elements (index), or its part of the VMs
 * (radix). Which stripe a key belongs to follows from its group's hash, so that one lock covers a
 * cluster and the singles of the same 64 KiB.
 */
#ifndef IPT_STRIPE_H
#define IPT_STRIPE_H

#include "ipt/debug.h"
#include "ipt/table.h"

/* A table grows when it would be fuller than this, percent of its slots; by an eighth, in whole pages. */
#define STRIPE_CLUSTER_LOAD 60
#define STRIPE_SINGLE_LOAD  82

static inline uint32_t stripe_of(const struct ipt *t, uint64_t group_hash)
{
	return (uint32_t)(group_hash >> 40) & t->stripe_mask;
}

/* Elements move between these two: a reader's miss doesn't count. Who opens closes. The first is a
 * read-modify-write with acquire, so that no element's store moves before it. */
static inline bool stripe_open(struct stripe *st)
{
	/* Odd already: we are in the middle of a greater change, or a dead process was. */
	bool opens = !(load_relaxed32(&st->seq) & 1);

	if (opens)
		atomic_fetch_add_explicit(&st->seq, 1, memory_order_acq_rel);
	ipt_step();
	return opens;
}

static inline void stripe_close(struct stripe *st)
{
	ipt_step();
	atomic_fetch_add_explicit(&st->seq, 1, memory_order_release);
}

static inline uint32_t stripe_grown(uint32_t lines, uint32_t cap)
{
	const uint32_t page = PAGE_SIZE / TABLE_LINE;
	uint32_t to = (lines + lines / 8 + page) / page * page;

	return to < cap ? to : cap;
}

/* Take the lock; rebuilds the stripe from the array if its last holder died. */
void stripe_lock(struct ipt *t, uint32_t s);
void stripe_unlock(struct ipt *t, uint32_t s);
/* Take each once, which repairs those whose holder died. */
void stripe_mend(struct ipt *t);
/* Take the locks of two stripes, which may be one and the same. */
void stripe_lock_two(struct ipt *t, uint32_t a, uint32_t b);
void stripe_unlock_two(struct ipt *t, uint32_t a, uint32_t b);

#endif
