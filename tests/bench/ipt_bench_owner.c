/*
 * owner-ratio: who owns a random frame, over one random read of an array of the same size. Frames are
 * made beforehand. Each waits for the one before it.
 */
#include "ipt/radix.h"
#include "tests/bench/ipt_bench.h"
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define FRAMES   (1u << 20)
#define ROUND    (1u << 17)
#define SEARCHES 64

static uint32_t *frames;
static uint64_t *array;
static volatile uint64_t sink;

static void make(void)
{
	uint64_t bytes = (uint64_t)BENCH_FRAMES * 8;
	int fd = memfd_create("array", MFD_CLOEXEC);

	frames = malloc(FRAMES * sizeof(*frames));
	if (fd < 0 || ftruncate(fd, (off_t)bytes) || !frames)
		abort();
	array = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
	if (array == MAP_FAILED)
		abort();
	for (uint32_t i = 0; i < BENCH_FRAMES; i++)
		array[i] = i;
	for (unsigned i = 0; i < FRAMES; i++)
		frames[i] = (uint32_t)bench_random() % BENCH_FRAMES;
	close(fd);
}

static double owners(struct ipt *t, unsigned from)
{
	uint64_t start = bench_ns(), last = 0;
	struct ipt_owner o;

	for (unsigned i = from; i < from + ROUND; i++) {
		ipt_owner(t, frame(frames[i & (FRAMES - 1)] ^ (uint32_t)(last >> 63)), &o);
		last = o.gfn.v + o.vm.v;
	}
	sink = last;
	return (double)(bench_ns() - start) / ROUND;
}

static double reads(unsigned from)
{
	uint64_t start = bench_ns(), last = 0;

	for (unsigned i = from; i < from + ROUND; i++)
		last = array[frames[i & (FRAMES - 1)] ^ (uint32_t)(last >> 63)];
	sink = last;
	return (double)(bench_ns() - start) / ROUND;
}

/* ns to find who maps a frame when there are only per-VM forward tables. */
static double searches(struct ipt *t)
{
	uint64_t start = bench_ns();

	for (unsigned i = 0; i < SEARCHES; i++) {
		for (uint32_t vm = 1; vm <= BENCH_VMS; vm++) {
			uint32_t root = load_acquire32(&t->vms[vm].radix_root);

			if (root && bench_search(t, root - 1, RADIX_LEVELS - 1, frames[i]))
				break;
		}
	}
	return (double)(bench_ns() - start) / SEARCHES;
}

void bench_owner(void)
{
	static struct bench_samples ratio, owner, read, sought;

	if (!bench_wanted("owner-ratio") && !bench_wanted("owner-search-ns"))
		return;
	make();
	struct ipt *t = bench_world(IPT_INDEX, BENCH_GUESTS);
	for (unsigned r = 0; r < BENCH_ROUNDS + 2; r++) {
		double a, b;

		if (r % 2) {
			a = owners(t, r * ROUND);
			b = reads(r * ROUND + ROUND / 2);
		} else {
			b = reads(r * ROUND + ROUND / 2);
			a = owners(t, r * ROUND);
		}
		if (r < 2)
			continue;
		bench_add(&owner, a);
		bench_add(&read, b);
		bench_add(&ratio, a / b);
	}
	ipt_detach(t);
	t = bench_world(IPT_RADIX, BENCH_GUESTS);
	bench_add(&sought, searches(t));
	ipt_detach(t);
	fprintf(stderr, "  %-32s %.1f ns, random array read %.1f ns\n", "owner",
		bench_quantile(&owner, 0.5), bench_quantile(&read, 0.5));
	bench_tell("owner-ratio", &ratio, "ratio", 1.5);
	bench_tell("owner-search-ns", &sought, "ns", -1);
	munmap(array, (size_t)BENCH_FRAMES * 8);
	free(frames);
}
