#include "vmm/histogram.h"

/* Values below 8 have a bucket each; above, the top bit picks the octave and the next three bits
 * the eighth of it. */
static unsigned bucket_of(uint64_t v)
{
	if (v < 8)
		return (unsigned)v;
	unsigned top = 63 - (unsigned)__builtin_clzll(v);
	unsigned b = (top - 2) * 8 + (unsigned)((v >> (top - 3)) & 7);
	return b < HISTOGRAM_BUCKETS ? b : HISTOGRAM_BUCKETS - 1;
}

static uint64_t bucket_end(unsigned b)
{
	if (b < 8)
		return b;
	unsigned top = b / 8 + 2;
	return ((UINT64_C(8) + b % 8 + 1) << (top - 3)) - 1;
}

void histogram_add(struct histogram *h, uint64_t ns)
{
	atomic_fetch_add_explicit(&h->count[bucket_of(ns)], 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&h->n, 1, memory_order_relaxed);
	uint64_t max = atomic_load_explicit(&h->max, memory_order_relaxed);
	while (ns > max && !atomic_compare_exchange_weak_explicit(
				   &h->max, &max, ns, memory_order_relaxed, memory_order_relaxed))
		;
}

uint64_t histogram_quantile(const struct histogram *h, double q)
{
	uint64_t n = 0, max = atomic_load_explicit(&h->max, memory_order_relaxed);
	for (unsigned b = 0; b < HISTOGRAM_BUCKETS; b++)
		n += atomic_load_explicit(&h->count[b], memory_order_relaxed);
	if (!n)
		return 0;
	uint64_t rank = (uint64_t)(q * (double)n), seen = 0;
	if ((double)rank < q * (double)n || !rank)
		rank++;
	for (unsigned b = 0; b < HISTOGRAM_BUCKETS; b++) {
		seen += atomic_load_explicit(&h->count[b], memory_order_relaxed);
		if (seen >= rank)
			return bucket_end(b) < max ? bucket_end(b) : max;
	}
	return max;
}
