/*
 * Slots: what a VM has at a gfn that is no frame of its own. They are numbered like frames, from the
 * pool's size on, and their words go on where the frames' end, so that everything that leads to a
 * frame leads to a slot as well: index, clusters, rebuilding, auditing. There are as many as frames,
 * or four times as many if there is space for what isn't in memory, but only what is left of IPT_MAX_FRAMES
 * numbers for large pools, and none with radix tables. A free slot is a block of the last zone, a spare one a VM's in the middle of something.
 *
 *   TOMB     void here, whatever the ancestors have
 *   ALIAS    here is a SHARED frame; link(slot) says which
 *   OUT      here is a page whose bytes are not in memory; link(slot) says where they are
 *   SHARED   the same for a page that several see, by aliases of this slot; no gfn leads here
 *
 *   link     of an alias: the target, a frame or a slot, and the slots behind and before in its chain, 0 for none (see
 *            chain.h). Of an OUT or SHARED slot, or a spare one that is to become one: where, SLOT_CLAIM | bytes, and
 *            the sum (see space.h); no link of another kind has SLOT_CLAIM
 */
#ifndef IPT_SLOT_H
#define IPT_SLOT_H

#include "ipt/table.h"

#define NO_SLOT    UINT32_MAX
#define SLOT_CLAIM (UINT32_C(1) << 31)

static inline bool slot_is(const struct ipt *t, uint32_t f)
{
	return f >= t->frames && f != NO_SLOT;
}

static inline struct slot_link *slot_link(const struct ipt *t, uint32_t slot)
{
	return &t->links[slot - t->layout.slot_first];
}

static inline uint32_t slot_target(const struct ipt *t, uint32_t slot)
{
	return load_acquire32(&slot_link(t, slot)->target);
}

static inline uint32_t slot_next(const struct ipt *t, uint32_t slot)
{
	return load_relaxed32(&slot_link(t, slot)->next);
}

/* Is one of n frames from f on pinned? seq_cst, as pin.c's count: one of us and who pins it sees the other. */
static inline bool frames_pinned(const struct ipt *t, uint32_t f, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		if (atomic_load(&t->side[f + i]) & SIDE_PINS)
			return true;
	}
	return false;
}

/* Count n of vm's frames or slots from one state to another. */
static inline void slot_count(struct ipt *t, vmid_t vm, enum ipt_state from, enum ipt_state to,
			      uint32_t n)
{
	add_relaxed32(vm_frames(&t->vms[vm.v], to), n);
	add_relaxed32(vm_frames(&t->vms[vm.v], from), -n);
}

/*
 * What vm's own entry at g is, when forward_find found a slot there: IPT_ALIAS, and the frame or slot in *target;
 * IPT_TOMB or IPT_OUT; IPT_FREE if it is not that slot any more. No lock.
 */
static inline enum ipt_state slot_read(const struct ipt *t, uint32_t slot, uint32_t vm, uint64_t g,
				       uint32_t *target)
{
	uint64_t w = load_acquire64(&t->words[slot]);

	if (!word_maps(w, vm, g))
		return IPT_FREE;
	if (word_state(w) == IPT_ALIAS) {
		*target = slot_target(t, slot);
		if ((load_acquire64(&t->words[slot]) ^ w) & ~WORD_FLAG)
			return IPT_FREE;
	}
	return word_state(w);
}

#endif
