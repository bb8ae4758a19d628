/*
 * The hash index: (vm, gfn) -> frame, one kind of forward map. A stripe's clusters and singles are
 * looked up in this order; a stripe that has none of a kind costs no probe for it.
 */
#ifndef IPT_INDEX_H
#define IPT_INDEX_H

#include "ipt/cluster.h"
#include "ipt/single.h"
#include "ipt/stripe.h"

#define NO_FRAME UINT32_MAX

/* One attempt without the lock: the frame or NO_FRAME, which needs the check of seq. */
static inline uint32_t index_probe(const struct ipt *t, uint32_t s, uint64_t h, uint32_t vm,
				   uint64_t g)
{
	const struct stripe *st = &t->stripes[s];

	if (load_acquire32(&st->clusters)) {
		uint32_t base;
		enum cluster_answer answer =
			cluster_read(cluster_lines(t, s), load_acquire32(&st->cluster_lines), h,
				     CLUSTER_KEY(vm, g >> IPT_CLUSTER_ORDER), &base);

		if (answer != CLUSTER_NONE) {
			uint32_t f = base + (uint32_t)(g & 15);

			if (answer == CLUSTER_WHOLE ||
			    word_maps(load_acquire64(&t->words[f]), vm, g))
				return f;
		}
	}
	if (load_acquire32(&st->singles))
		return single_read(t, single_lines(t, s), load_acquire32(&st->single_lines),
				   hash_gfn(&t->keys, h, g), vm, g);
	return NO_FRAME;
}

/* The second opinion on a miss: again until nobody moved elements meanwhile, at last with the lock. */
uint32_t index_find_slow(struct ipt *t, uint32_t s, uint64_t h, uint32_t vm, uint64_t g);

/* The frame that vm itself (not its lineage) has at gfn g, or NO_FRAME. No lock. */
static inline uint32_t index_find(struct ipt *t, uint32_t vm, uint64_t g)
{
	uint64_t h = hash_group(&t->keys, vm, g >> IPT_CLUSTER_ORDER);
	uint32_t s = stripe_of(t, h);
	uint32_t seq = load_acquire32(&t->stripes[s].seq);
	uint32_t f = index_probe(t, s, h, vm, g);

	if (f != NO_FRAME)
		return f;
	/* All loads of the probe were acquires, so this one follows them. */
	if (!(seq & 1) && load_relaxed32(&t->stripes[s].seq) == seq)
		return NO_FRAME;
	return index_find_slow(t, s, h, vm, g);
}

/* index_find for n keys, their memory accesses overlapped, but one attempt for each: where out is
 * NO_FRAME it takes index_find to say whether there is nothing, and what that reads is on its way.
 * Keys may be out of range, and come out as NO_FRAME. */
void index_find_batch(struct ipt *t, const struct ipt_key *keys, frame_t *out, unsigned n);

/*
 * Map n gfns from g on, all in one group of 16, at n limbo frames or spare slots of vm from f on. 0
 * or, with nothing changed, -EEXIST, -ENOSPC, -ENOMEM. Takes the stripe lock.
 */
int index_map(struct ipt *t, uint32_t vm, uint64_t g, uint32_t f, unsigned n, enum ipt_state state);
/*
 * The same where something may stand already, in one of the states whose bits are in `replaces` (else
 * -EEXIST): it is unmapped, and no reader misses meanwhile. old[i] is what was at g + i, or NO_FRAME.
 */
int index_swap(struct ipt *t, uint32_t vm, uint64_t g, uint32_t f, unsigned n, enum ipt_state state,
	       unsigned replaces, uint32_t *old);
/* Unmap n gfns from g on, all in one group; frames[i] is what was at g + i or NO_FRAME. Returns how
 * many there were. Takes the stripe lock. */
unsigned index_unmap(struct ipt *t, uint32_t vm, uint64_t g, unsigned n, uint32_t *frames);

/* See forward_move. */
int index_move(struct ipt *t, uint32_t from, uint32_t to, uint64_t g, uint32_t f, unsigned n);

/* With the stripe locked: make its elements anew from the array. */
void index_rebuild(struct ipt *t, uint32_t s);

#endif
