/* What mapping, unmapping and sharing have in common. */
#ifndef IPT_MAP_H
#define IPT_MAP_H

#include "ipt/forward.h"
#include "ipt/registry.h"
#include "ipt/slot.h"

/* How many of n gfns from g on lie in g's group. */
static inline unsigned map_piece_len(uint64_t g, uint64_t n)
{
	unsigned room = IPT_CLUSTER_FRAMES - (unsigned)(g & (IPT_CLUSTER_FRAMES - 1));

	return n < room ? (unsigned)n : room;
}

static inline bool map_range_valid(gfn_t first, uint32_t count)
{
	return count && first.v < IPT_MAX_GFN && count <= IPT_MAX_GFN - first.v;
}

/* May `count` frames from f on be mapped at vm's gfns from `first` on, as far as can be seen before it is
 * done? -EINVAL, -ENOENT, -EPERM as ipt_map. */
int map_check(struct ipt *t, vmid_t vm, gfn_t first, frame_t f, uint32_t count);
/* Map limbo frames where nothing of vm's stands but slots in the states whose bits are in `replaces`, of TOMB and
 * OUT. As ipt_map, which checks first. */
int map_frames(struct ipt *t, vmid_t vm, uint64_t g, uint32_t f, uint32_t count, unsigned replaces);
/* vm's alias at g: its slot, or NO_SLOT if there is none. */
uint32_t map_alias(struct ipt *t, vmid_t vm, uint64_t g);
/*
 * Take vm's alias at g, in `slot`, away, and put frame or slot `with` of vm there in that state
 * (nothing for NO_FRAME). *lost is the frame that became vm's limbo because this was its last alias,
 * or NO_FRAME. 0, or, with nothing changed, -ENOSPC, -ENOMEM. Takes a chain lock.
 */
int map_replace_alias(struct ipt *t, vmid_t vm, uint64_t g, uint32_t slot, uint32_t with,
		      enum ipt_state state, uint32_t *lost);
/* Take what vm itself has at n gfns from g on, all in one group, away. frames[i] is the frame that became
 * limbo by it, or NO_FRAME. */
void map_remove(struct ipt *t, vmid_t vm, uint64_t g, unsigned n, uint32_t *frames);
/* Free n slots that were tombs or pages that are out, with their space; nothing leads to them any more. NO_SLOT
 * stands for none. */
void map_free_slots(struct ipt *t, vmid_t vm, const uint32_t *slots, uint32_t n);

#endif
