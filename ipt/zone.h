/*
 * The frame allocator: a buddy system with one zone a NUMA node, free lists by order and colour,
 * whose links live in the words of the free frames themselves.
 */
#ifndef IPT_ZONE_H
#define IPT_ZONE_H

#include "ipt/table.h"

void zone_init(struct ipt *t, unsigned z);
/* The zone's frames are [zone_start, zone_end). */
uint32_t zone_start(const struct ipt *t, unsigned z);
uint32_t zone_end(const struct ipt *t, unsigned z);
unsigned zone_of(const struct ipt *t, uint32_t f);
/* Frames of the zone from here on were never touched; the reader must not touch their words, or it
 * would populate the array. */
uint32_t zone_mark(const struct ipt *t, unsigned z);
void zone_lock(struct ipt *t, unsigned z);
void zone_unlock(struct ipt *t, unsigned z);

#endif
