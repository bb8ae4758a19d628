/*
 * The frame allocator: one zone a NUMA node, and one for the slots, each a buddy system of its own (buddy.h) with a lock.
 */
#ifndef IPT_ZONE_H
#define IPT_ZONE_H

#include "ipt/table.h"

/* The NUMA nodes' zones, and the slots'. */
static inline unsigned zone_count(const struct ipt *t)
{
	return t->config.nodes + 1;
}

void zone_init(struct ipt *t, unsigned z);
/* The zone's frames are [zone_start, zone_end). */
uint32_t zone_start(const struct ipt *t, unsigned z);
uint32_t zone_end(const struct ipt *t, unsigned z);
unsigned zone_of(const struct ipt *t, uint32_t f);
/* Frames of the zone from here on were never touched; the reader must not touch their words, or it
 * would populate the array. */
uint32_t zone_mark(const struct ipt *t, unsigned z);
/* Take 2^order slots out of the slots' zone for vm (SPARE): the first, or UINT32_MAX if there are none. */
uint32_t zone_alloc_slots(struct ipt *t, vmid_t vm, unsigned order);
/* Give n limbo frames or spare slots of vm, all in one zone, back. */
void zone_free(struct ipt *t, unsigned z, vmid_t vm, uint32_t f, uint32_t n);
void zone_lock(struct ipt *t, unsigned z);
void zone_unlock(struct ipt *t, unsigned z);

#endif
