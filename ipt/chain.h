/*
 * The aliases of a SHARED frame: a chain of slots. The frame's word holds the first, each slot's link
 * the next and the one before. A SHARED frame has at least one; when it loses the last it goes to
 * limbo of the VM that let it go. While the page is out a SHARED slot has the chain in the frame's place, and
 * becomes a spare one of that VM. Frame or slot, it's called `f` here.
 *
 * All of a chain, its frame's word, and the words of slots that become its aliases or cease to be,
 * change under the chain's lock, one of TABLE_CHAINS by the frame's number. Chains can be made anew
 * from the slots: a slot that says ALIAS is one, whatever chain it is in. So the order of steps is:
 * link, word of the slot (by the index), chain; and back.
 */
#ifndef IPT_CHAIN_H
#define IPT_CHAIN_H

#include "ipt/slot.h"

void chain_lock(struct ipt *t, uint32_t f);
void chain_unlock(struct ipt *t, uint32_t f);
/* Lock the chain of the frame or slot that an alias is of, which may be another at any time before: returns it. */
uint32_t chain_lock_of(struct ipt *t, uint32_t slot);
/* Those of both f and g, in the order of the locks. */
void chain_lock_two(struct ipt *t, uint32_t f, uint32_t g);
void chain_unlock_two(struct ipt *t, uint32_t f, uint32_t g);
/* Take every chain's lock once, which repairs those whose holder died. */
void chain_mend(struct ipt *t);

/* ---- with the chain locked ------------------------------------------------------------------- */

/* Is f SHARED? */
bool chain_is(const struct ipt *t, uint32_t f);
/* Make `slot`, whose word says ALIAS, the first of f's aliases. The first of all makes f, which is limbo,
 * SHARED. */
void chain_push(struct ipt *t, uint32_t f, uint32_t slot);
/* Take `slot`, whose word says ALIAS no more, out. True if it was the last: then f is limbo of vm, or spare. */
bool chain_remove(struct ipt *t, uint32_t f, uint32_t slot, vmid_t vm);
/* All aliases of f, which is SHARED, are g's from now on, which nobody else changes meanwhile; f is limbo of vm, or
 * spare. Where it ends by a death each alias is one's or the other's, and both go on with what they have; the one
 * without is the table's holder's, if the header says that these two are under way. */
void chain_move(struct ipt *t, uint32_t f, uint32_t g, vmid_t vm);

#endif
