/*
 * Space for what isn't in memory: granules of 64 bytes of the packed memory, and blocks of the swap file.
 * Only the accounting: what is kept there is not the table's business.
 *
 * The slots are the truth: one that is SPARE, OUT or SHARED, and whose link says SLOT_CLAIM, has the space that
 * its link tells. The bitmaps are made of that and can be made anew. They are split into TABLE_ARENAS, each
 * with a lock, and a VM begins to look in one that follows from its id.
 */
#ifndef IPT_SPACE_H
#define IPT_SPACE_H

#include "ipt/slot.h"

/* Has the slot, SPARE, OUT or SHARED, claimed space (be it for a page of zeroes, which needs none)? */
static inline bool space_claimed(const struct ipt *t, uint32_t slot)
{
	/* Acquire: with the claim is seen what it says. */
	return load_acquire32(&slot_link(t, slot)->next) & SLOT_CLAIM;
}

/* What the slot's claim says. */
static inline struct ipt_out space_of(const struct ipt *t, uint32_t slot)
{
	const struct slot_link *l = slot_link(t, slot);

	return (struct ipt_out){load_relaxed32(&l->target), load_relaxed32(&l->next) & ~SLOT_CLAIM,
				load_relaxed32(&l->prev)};
}

/* Claim what page->bytes take for vm's spare slot; page->where says where it may be, and then where it
 * is. -ENOSPC. Takes an arena's lock, and maybe each in turn. */
int space_claim(struct ipt *t, vmid_t vm, uint32_t slot, struct ipt_out *page);
/* Give back what a slot has claimed; no gfn leads to it any more. Takes an arena's lock. */
void space_release(struct ipt *t, uint32_t slot);

void space_lock(struct ipt *t, unsigned arena);
void space_unlock(struct ipt *t, unsigned arena);
/* Take each once, which repairs those whose holder died. Nothing where there is no store. */
void space_mend(struct ipt *t);
/* With arena's lock held: is the space in use, all of it, none of it (0), or only some (-1)? */
int space_used(const struct ipt *t, const struct ipt_out *page);
/* The word of a bitmap, and its bits, that a page takes which is somewhere. */
_Atomic uint64_t *space_bits(const struct ipt *t, const struct ipt_out *page, uint64_t *bits);
unsigned space_arena_of(const struct ipt *t, const struct ipt_out *page);

#endif
