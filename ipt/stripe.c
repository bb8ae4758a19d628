/* Locking a stripe, and what its holder's death means for either kind of forward map. */
#include "ipt/stripe.h"
#include "ipt/index.h"
#include "ipt/radix.h"

static void take(struct ipt *t, uint32_t s, enum lock_level level)
{
	if (!lock_take(&t->stripes[s].lock, level))
		return;
	if (t->kind == IPT_INDEX)
		index_rebuild(t, s);
	else
		radix_rebuild(t, s);
	add_relaxed32(&t->header->repairs, 1);
	lock_mended(&t->stripes[s].lock);
}

void stripe_lock(struct ipt *t, uint32_t s)
{
	take(t, s, LOCK_STRIPE);
}

void stripe_unlock(struct ipt *t, uint32_t s)
{
	lock_drop(&t->stripes[s].lock, LOCK_STRIPE);
}

void stripe_mend(struct ipt *t)
{
	for (uint32_t s = 0; s < t->layout.nstripes; s++) {
		stripe_lock(t, s);
		stripe_unlock(t, s);
	}
}

void stripe_lock_two(struct ipt *t, uint32_t a, uint32_t b)
{
	stripe_lock(t, a < b ? a : b);
	if (a != b)
		take(t, a < b ? b : a, LOCK_STRIPE_2);
}

void stripe_unlock_two(struct ipt *t, uint32_t a, uint32_t b)
{
	if (a != b)
		lock_drop(&t->stripes[a < b ? b : a].lock, LOCK_STRIPE_2);
	stripe_unlock(t, a < b ? a : b);
}
