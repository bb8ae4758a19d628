/* Locking a stripe, and what its holder's death means for either kind of forward map. */
#include "ipt/stripe.h"
#include "ipt/index.h"
#include "ipt/radix.h"

void stripe_lock(struct ipt *t, uint32_t s)
{
	if (!lock_take(&t->stripes[s].lock, LOCK_STRIPE))
		return;
	if (t->kind == IPT_INDEX)
		index_rebuild(t, s);
	else
		radix_rebuild(t, s);
	add_relaxed32(&t->header->repairs, 1);
	lock_mended(&t->stripes[s].lock);
}

void stripe_unlock(struct ipt *t, uint32_t s)
{
	lock_drop(&t->stripes[s].lock, LOCK_STRIPE);
}
