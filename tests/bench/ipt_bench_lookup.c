/*
 * Look-up figures. Keys are made beforehand, packed into 4 bytes (vm 6 bits, gfn 15 bits), 4 MiB of them
 * read in order, the same for both tables.
 *
 * lookup-*: each look-up begins when the one before it has its answer, as a device's does that must
 * follow a pointer. lookup-overlapped-*: one after another without waiting. lookup-batch-*: 16 at a
 * time through ipt_lookup_batch, both tables by their own batch.
 */
#include "tests/bench/ipt_bench.h"
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define KEYS  (1u << 20)
#define ROUND (1u << 17) /* look-ups to a round */
#define BATCH 16
#define WARM  4 /* rounds untimed before each timed one */

static uint32_t *packed;
static struct ipt_key *keys;
static volatile uint64_t sink;

static void make_keys(void)
{
	packed = malloc(KEYS * sizeof(*packed));
	keys = malloc(KEYS * sizeof(*keys));
	if (!packed || !keys)
		abort();
	for (unsigned i = 0; i < KEYS; i++) {
		packed[i] = (uint32_t)(bench_random() >> 43);
		keys[i].vm = vmid((packed[i] >> 15) + 1);
		keys[i].gfn = gfn(packed[i] & (BENCH_VM_FRAMES - 1));
	}
}

/* ns a look-up, each waiting for the one before it: the answer's top bit, which is never set, is part of
 * the next key. */
static double dependent(struct ipt *t, unsigned from)
{
	uint64_t start = bench_ns();
	uint32_t f = 0;

	for (unsigned i = from; i < from + ROUND; i++) {
		uint32_t k = packed[i & (KEYS - 1)] | (f & UINT32_C(0x80000000)) >> 31;

		f = ipt_lookup(t, vmid((k >> 15) + 1), gfn(k & (BENCH_VM_FRAMES - 1))).v;
	}
	sink = f;
	return (double)(bench_ns() - start) / ROUND;
}

static double overlapped(struct ipt *t, unsigned from)
{
	uint64_t start = bench_ns(), sum = 0;

	for (unsigned i = from; i < from + ROUND; i++) {
		uint32_t k = packed[i & (KEYS - 1)];

		sum += ipt_lookup(t, vmid((k >> 15) + 1), gfn(k & (BENCH_VM_FRAMES - 1))).v;
	}
	sink = sum;
	return (double)(bench_ns() - start) / ROUND;
}

static double batched(struct ipt *t, unsigned from)
{
	uint64_t start = bench_ns(), sum = 0;
	frame_t out[BATCH];

	for (unsigned i = from; i < from + ROUND; i += BATCH) {
		ipt_lookup_batch(t, &keys[i & (KEYS - 1)], out, BATCH);
		sum += out[0].v + out[BATCH - 1].v;
	}
	sink = sum;
	return (double)(bench_ns() - start) / ROUND;
}

/* ---- the physical limit: a chain of dependent reads of random lines --------------------------- */

static uint64_t *chain;
static uint64_t chain_at;

static uint64_t table_bytes(struct ipt *t)
{
	struct ipt_bytes b;

	ipt_bytes(t, &b);
	return b.array + b.forward;
}

/* One cycle through all lines of as many bytes, in shared memory like the table's. */
static void make_chain(uint64_t bytes)
{
	uint64_t n = bytes / 64;
	uint32_t *order = malloc(n * sizeof(*order));
	int fd = memfd_create("chain", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, (off_t)bytes) || !order)
		abort();
	chain = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
	if (chain == MAP_FAILED)
		abort();
	for (uint64_t i = 0; i < n; i++)
		order[i] = (uint32_t)i;
	for (uint64_t i = n - 1; i > 0; i--) {
		uint64_t j = bench_random() % (i + 1);
		uint32_t swap = order[i];

		order[i] = order[j];
		order[j] = swap;
	}
	for (uint64_t i = 0; i < n; i++)
		chain[order[i] * UINT64_C(8)] = order[(i + 1) % n] * UINT64_C(8);
	free(order);
	close(fd);
}

static double chained(void)
{
	uint64_t start = bench_ns();

	for (unsigned i = 0; i < ROUND; i++)
		chain_at = chain[chain_at];
	sink = chain_at;
	return (double)(bench_ns() - start) / ROUND;
}

/* ---- figures --------------------------------------------------------------------------------- */

enum way { WAY_IPT, WAY_RADIX, WAY_CHAIN, WAYS };

struct lookups {
	struct bench_samples one[WAYS], over[2], batch[2];
	struct bench_samples ratio, over_ratio, batch_ratio, batch_plain, dram;
};

static void measure(struct ipt *const t[2], struct lookups *l)
{
	for (unsigned r = 0; r < BENCH_ROUNDS + 2; r++) {
		double one[2], over[2], batch[2], line = chain ? chained() : 0;

		/* Which kind goes first alternates. Each finds the caches as its own look-ups leave
		 * them, not as the other's do. */
		for (unsigned k = 0; k < 2; k++) {
			unsigned w = (k + r) % 2;

			for (unsigned i = 1; i <= WARM; i++)
				batched(t[w], (r + i) * ROUND);
			one[w] = dependent(t[w], r * ROUND);
			over[w] = overlapped(t[w], r * ROUND + ROUND / 2);
			batch[w] = batched(t[w], r * ROUND + ROUND / 4);
		}
		if (r < 2)
			continue; /* warming up */
		for (unsigned w = 0; w < 2; w++) {
			bench_add(&l->one[w], one[w]);
			bench_add(&l->over[w], over[w]);
			bench_add(&l->batch[w], batch[w]);
		}
		bench_add(&l->ratio, one[WAY_IPT] / one[WAY_RADIX]);
		bench_add(&l->over_ratio, over[WAY_IPT] / over[WAY_RADIX]);
		bench_add(&l->batch_ratio, batch[WAY_IPT] / batch[WAY_RADIX]);
		bench_add(&l->batch_plain, batch[WAY_IPT] / over[WAY_RADIX]);
		if (chain) {
			bench_add(&l->one[WAY_CHAIN], line);
			bench_add(&l->dram, one[WAY_IPT] / line);
		}
	}
}

static void tell_times(const char *what, struct bench_samples s[2])
{
	fprintf(stderr, "  %-32s ipt %.1f ns, radix %.1f ns\n", what, bench_quantile(&s[0], 0.5),
		bench_quantile(&s[1], 0.5));
}

static void lookups_guests(void)
{
	static struct lookups l;
	struct ipt *t[2] = {bench_world(IPT_INDEX, BENCH_GUESTS),
			    bench_world(IPT_RADIX, BENCH_GUESTS)};

	make_chain(table_bytes(t[0]));
	measure(t, &l);
	tell_times("look-up", l.one);
	tell_times("look-up, overlapped", l.over);
	tell_times("look-up in batches of 16", l.batch);
	fprintf(stderr, "  %-32s %.1f ns\n", "dependent random line",
		bench_quantile(&l.one[WAY_CHAIN], 0.5));
	bench_tell("lookup-ratio", &l.ratio, "ratio", 1.0);
	bench_tell("lookup-overlapped-ratio", &l.over_ratio, "ratio", -1);
	/* Against the radix tables' own batch. */
	bench_tell("lookup-batch-ratio", &l.batch_ratio, "ratio", 0.7);
	bench_tell("lookup-batch-over-plain-ratio", &l.batch_plain, "ratio", -1);
	bench_tell("lookup-dram-ratio", &l.dram, "ratio", -1);
	ipt_detach(t[0]);
	ipt_detach(t[1]);
	chain = NULL;
}

static void lookups_single(void)
{
	static struct lookups l;
	struct ipt *t[2] = {bench_world(IPT_INDEX, BENCH_DENSE),
			    bench_world(IPT_RADIX, BENCH_DENSE)};

	chain = NULL;
	measure(t, &l);
	tell_times("look-up of singles", l.one);
	tell_times("the same, overlapped", l.over);
	tell_times("the same in batches of 16", l.batch);
	bench_tell("lookup-single-ratio", &l.ratio, "ratio", -1);
	bench_tell("lookup-single-overlapped-ratio", &l.over_ratio, "ratio", -1);
	bench_tell("lookup-single-batch-ratio", &l.batch_ratio, "ratio", -1);
	ipt_detach(t[0]);
	ipt_detach(t[1]);
}

void bench_lookups(void)
{
	bool single = bench_wanted("lookup-single-ratio") ||
		      bench_wanted("lookup-single-overlapped-ratio") ||
		      bench_wanted("lookup-single-batch-ratio");
	bool guests = bench_wanted("lookup-ratio") || bench_wanted("lookup-overlapped-ratio") ||
		      bench_wanted("lookup-batch-ratio") ||
		      bench_wanted("lookup-batch-over-plain-ratio") ||
		      bench_wanted("lookup-dram-ratio");

	if (!single && !guests)
		return;
	make_keys();
	if (guests)
		lookups_guests();
	if (single)
		lookups_single();
	free(packed);
	free(keys);
}
