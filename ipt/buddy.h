/*
 * The free blocks of a zone: 2^order aligned frames, on lists by order and colour whose links live in the words of the
 * free frames themselves, each merged with its buddy as soon as both are free; and the wilderness, frames from the
 * zone's mark on that were never touched. Which of them is taken is zone.c's to choose. All with the zone locked.
 */
#ifndef IPT_BUDDY_H
#define IPT_BUDDY_H

#include "ipt/zone.h"

#define BUDDY_NONE UINT32_MAX /* no block */

/* Free [f, end) of zone z, below its mark, whose words are 0, as the largest blocks that fit. */
void buddy_free(struct ipt *t, unsigned z, uint32_t f, uint32_t end);
/* The head of the free block that holds frame f, which is below the mark; BUDDY_NONE if it isn't free. */
uint32_t buddy_holding(struct ipt *t, unsigned z, uint32_t f);
/* Split free block `head` until `target`, which lies in it, is a block of that order off the lists: its words are 0. */
void buddy_take(struct ipt *t, struct zone *z, uint32_t head, uint32_t target, unsigned order);
/* Move one block from the wilderness to the lists; its order, or -1 if there is no wilderness. */
int buddy_carve(struct ipt *t, unsigned z);
/* Could the wilderness give a block of that order? Without the lock too: a guess. */
bool buddy_could_carve(const struct ipt *t, unsigned z, unsigned order);
/* Carve until the lists hold a block of that order; false if there is no wilderness for it. */
bool buddy_replenish(struct ipt *t, unsigned z, unsigned order);
/* A dead process left the zone in flux: make the lists anew from the words. */
void buddy_rebuild(struct ipt *t, unsigned z);

#endif
