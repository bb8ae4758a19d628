#include "vmm/reclaim_stall.h"
#include <math.h>

#define MILLION 1e6

static double average(double before, double share, double period, double window)
{
	double keeps = exp(-period / window);
	return before * keeps + share * (1 - keeps);
}

void reclaim_stall_add(struct reclaim_stall *s, uint64_t stalled_ns, uint64_t period_ns)
{
	if (!period_ns)
		return;
	double period = (double)period_ns / 1e9;
	double share = stalled_ns < period_ns ? (double)stalled_ns / (double)period_ns : 1;
	s->avg10 = average(s->avg10, share, period, 10);
	s->avg60 = average(s->avg60, share, period, 60);
}

uint64_t reclaim_stalled_ns(const struct reclaim_desk *d, uint64_t now_ns)
{
	/* The VM clears stalled_since before it adds: so nothing is counted twice, and what is missed for a moment
	 * is there at the next look. */
	uint64_t total = atomic_load_explicit(&d->stall_ns, memory_order_acquire);
	uint64_t since = atomic_load_explicit(&d->stalled_since_ns, memory_order_relaxed);
	return total + (since && now_ns > since ? now_ns - since : 0);
}

void reclaim_stall_look(struct reclaim_stall *s, struct reclaim_desk *d, uint64_t now_ns,
			uint64_t period_ns)
{
	uint32_t born = atomic_load_explicit(&d->born, memory_order_acquire);
	uint64_t total = reclaim_stalled_ns(d, now_ns);
	if (s->born != born) {
		*s = (struct reclaim_stall){.born = born,
					    .seen_ns = total,
					    .avg10 = d->stall10 / MILLION,
					    .avg60 = d->stall60 / MILLION};
		return;
	}
	uint64_t more = total > s->seen_ns ? total - s->seen_ns : 0;
	s->seen_ns += more;
	reclaim_stall_add(s, more, period_ns);
	d->stall10 = (uint32_t)lround(s->avg10 * MILLION);
	d->stall60 = (uint32_t)lround(s->avg60 * MILLION);
}
