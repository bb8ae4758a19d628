/*
 * Times in nanoseconds, counted in buckets of at most 12.5 % width, so that quantiles need no
 * samples kept. Counting is one atomic add, from any process that maps it.
 */
#ifndef VMM_HISTOGRAM_H
#define VMM_HISTOGRAM_H

#include <stdatomic.h>
#include <stdint.h>

#define HISTOGRAM_BUCKETS 320 /* 8 a power of two: up to 2^40 ns, 18 minutes */

struct histogram {
	_Atomic uint32_t count[HISTOGRAM_BUCKETS];
	_Atomic uint64_t n, max;
};

void histogram_add(struct histogram *h, uint64_t ns);
/* The value that a share q (0 to 1) of the samples does not exceed, at a bucket's upper end, at
 * most the maximum; 0 with no samples. */
uint64_t histogram_quantile(const struct histogram *h, double q);

#endif
