/*
 * The aliases of a SHARED frame: a chain of slots. The frame's word holds the first, each slot's link
 * the next and the one before. A SHARED frame has at least one; when it loses the last it goes to
 * limbo of the VM that let it go.
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

/* ---- with the chain locked ------------------------------------------------------------------- */

/* Is f SHARED? */
bool chain_is(const struct ipt *t, uint32_t f);
/* Make `slot`, whose word says ALIAS, the first of f's aliases. The first of all makes f, which is limbo,
 * SHARED. */
void chain_push(struct ipt *t, uint32_t f, uint32_t slot);
/* Take `slot`, whose word says ALIAS no more, out. True if it was the last: then f is limbo of vm. */
bool chain_remove(struct ipt *t, uint32_t f, uint32_t slot, vmid_t vm);

#endif
