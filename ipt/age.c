/* How long ago a frame was used, as whoever looks after that says. */
#include "ipt/table.h"

uint8_t ipt_age(struct ipt *t, frame_t f)
{
	return (uint8_t)((load_relaxed32(&t->side[f.v]) & SIDE_AGE) >> SIDE_AGE_SHIFT);
}

bool ipt_moved(struct ipt *t, frame_t f)
{
	return load_acquire32(&t->side[f.v]) & SIDE_MOVED;
}

void ipt_set_age(struct ipt *t, frame_t first, uint32_t n, uint8_t age)
{
	for (uint32_t f = first.v; f < first.v + n; f++) {
		uint32_t s = load_relaxed32(&t->side[f]);

		while (!atomic_compare_exchange_weak_explicit(
			&t->side[f], &s, (s & ~SIDE_AGE) | (uint32_t)age << SIDE_AGE_SHIFT,
			memory_order_relaxed, memory_order_relaxed))
			;
	}
}
