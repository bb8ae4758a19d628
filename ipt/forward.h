/*
 * The one interface of both kinds of forward map: (vm, gfn) -> frame, for the gfns that a VM has itself.
 * A branch on the kind, which the processor predicts, rather than a pointer, which the compiler can't
 * see through.
 */
#ifndef IPT_FORWARD_H
#define IPT_FORWARD_H

#include "ipt/index.h"
#include "ipt/radix.h"

static inline bool forward_key_valid(const struct ipt *t, uint32_t vm, uint64_t g)
{
	return vm - 1 < t->max_vms && g < IPT_MAX_GFN;
}

/* The key is valid. NO_FRAME if vm itself has nothing there. */
static inline uint32_t forward_find(struct ipt *t, uint32_t vm, uint64_t g)
{
	return t->kind == IPT_INDEX ? index_find(t, vm, g) : radix_find(t, vm, g);
}

/* Has vm itself the frames from f on at its n gfns from g on? */
static inline bool forward_has_run(struct ipt *t, uint32_t vm, uint64_t g, uint32_t f, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		if (forward_find(t, vm, g + i) != f + i)
			return false;
	}
	return true;
}

/* Map n frames or slots from f on, all in one group, in that state (PRIVATE, ALIAS or TOMB). 0, or, with
 * nothing changed, -EEXIST, -ENOSPC, -ENOMEM. */
static inline int forward_map(struct ipt *t, uint32_t vm, uint64_t g, uint32_t f, unsigned n,
			      enum ipt_state state)
{
	return t->kind == IPT_INDEX ? index_map(t, vm, g, f, n, state) : radix_map(t, vm, g, f, n);
}

/* See index_swap: where there are slots, there is an index. */
static inline int forward_swap(struct ipt *t, uint32_t vm, uint64_t g, uint32_t f, unsigned n,
			       enum ipt_state state, unsigned replaces, uint32_t *old)
{
	return index_swap(t, vm, g, f, n, state, replaces, old);
}

static inline unsigned forward_unmap(struct ipt *t, uint32_t vm, uint64_t g, unsigned n,
				     uint32_t *frames)
{
	return t->kind == IPT_INDEX ? index_unmap(t, vm, g, n, frames)
				    : radix_unmap(t, vm, g, n, frames);
}

/* Make n frames from f on, mapped at gfns of VM `from` from g on (all in one group), VM `to`'s, but
 * not those at whose gfns it has something itself. 0, or, with nothing changed, -ENOSPC, -ENOMEM.
 * Takes the locks of both keys' stripes. */
static inline int forward_move(struct ipt *t, uint32_t from, uint32_t to, uint64_t g, uint32_t f,
			       unsigned n)
{
	return t->kind == IPT_INDEX ? index_move(t, from, to, g, f, n)
				    : radix_move(t, from, to, g, f, n);
}

#endif
