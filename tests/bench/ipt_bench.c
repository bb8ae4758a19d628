/*
 * bench-ipt [ID-PREFIX...]: the table's figures, one JSON object a line on stdout, text on stderr.
 * Kinds are measured alternately in the same run; a figure is the median of the rounds' ratios and its
 * spread is their 10th to 90th percentile.
 */
#include "tests/bench/ipt_bench.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static char **prefixes;
static uint64_t random_state = UINT64_C(0x243f6a8885a308d3);

uint64_t bench_random(void)
{
	/* xorshift64* */
	random_state ^= random_state >> 12;
	random_state ^= random_state << 25;
	random_state ^= random_state >> 27;
	return random_state * UINT64_C(0x2545f4914f6cdd1d);
}

uint64_t bench_ns(void)
{
	struct timespec ts;

	/* This thread's, so that others' turns on the processor don't count. */
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return (uint64_t)ts.tv_sec * UINT64_C(1000000000) + (uint64_t)ts.tv_nsec;
}

void bench_add(struct bench_samples *s, double v)
{
	if (s->n < sizeof(s->v) / sizeof(s->v[0]))
		s->v[s->n++] = v;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

double bench_quantile(struct bench_samples *s, double q)
{
	qsort(s->v, s->n, sizeof(s->v[0]), by_value);
	return s->n ? s->v[(unsigned)(q * (s->n - 1) + 0.5)] : 0;
}

bool bench_wanted(const char *id)
{
	if (!*prefixes)
		return true;
	for (char **p = prefixes; *p; p++) {
		if (!strncmp(id, *p, strlen(*p)))
			return true;
	}
	return false;
}

bool bench_wanted_under(const char *prefix)
{
	for (char **p = prefixes; *p; p++) {
		if (!strncmp(prefix, *p, strlen(prefix)))
			return true;
	}
	return bench_wanted(prefix);
}

void bench_tell(const char *id, struct bench_samples *s, const char *unit, double bound)
{
	double value = bench_quantile(s, 0.5);
	double lo = bench_quantile(s, 0.1), hi = bench_quantile(s, 0.9);

	if (!bench_wanted(id))
		return;
	printf("{\"id\": \"%s\", \"value\": %.4g, \"unit\": \"%s\", \"bound\": ", id, value, unit);
	if (bound >= 0)
		printf("%.4g", bound);
	else
		printf("null");
	printf(", \"spread\": [%.4g, %.4g], \"n\": %u}\n", lo, hi, s->n);
	fflush(stdout);
	fprintf(stderr, "  %-32s %8.4g %s", id, value, unit);
	if (s->n > 1)
		fprintf(stderr, "  (%.4g to %.4g, %u rounds)", lo, hi, s->n);
	if (bound >= 0)
		fprintf(stderr, "  at most %.4g: %s", bound, value <= bound ? "holds" : "MISSED");
	fprintf(stderr, "\n");
}

void bench_tell_value(const char *id, double value, const char *unit, double bound)
{
	struct bench_samples s = {{value}, 1};

	bench_tell(id, &s, unit, bound);
}

int main(int argc, char **argv)
{
	(void)argc;
	prefixes = argv + 1;
	fprintf(stderr, "ipt: %d VMs of %d MiB, pool of %d GiB (the table alone; no pool memory)\n",
		BENCH_VMS, BENCH_VM_FRAMES / 256, BENCH_FRAMES / (256 * 1024));
	bench_lookups();
	bench_owner();
	bench_bytes();
	bench_fleet();
	bench_victim();
	return 0;
}
