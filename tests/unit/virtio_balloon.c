/* The balloon: pages that it takes, reports, numbers; by a driver that plays by the rules, and by one that doesn't. */
#include "virtio_fake.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <linux/virtio_mmio.h>
#include <string.h>

#define PFNS    0x100000u
#define NUMBERS 0x180000u
#define TABLE   0x1c0000u
#define RAM     (256 * MiB) /* of the VM, as give has it; more than the fake's memory */

enum { INFLATE, DEFLATE, STATS, THREE, FOUR };
enum { STATS_VQ = 1 << 1, ON_OOM = 1 << 2, POISON = 1 << 4, REPORTING = 1 << 5 };
#define ALL UINT64_MAX

struct gift {
	uint64_t at, bytes;
};

struct guest {
	struct drv t;
	struct gift gift[4096];
	unsigned gifts;
	struct virtio_balloon_stats told;
	unsigned times_told;
};

static int give(void *ctx, gpa_t at, uint64_t bytes)
{
	struct guest *g = ctx;
	cr_assert(bytes && !((at.v | bytes) & PAGE_MASK), "whole pages");
	if (at.v >= RAM || bytes > RAM - at.v)
		return -EFAULT;
	g->gift[g->gifts++ % 4096] = (struct gift){at.v, bytes};
	return 0;
}

static void news(void *ctx, const struct virtio_balloon_stats *now)
{
	struct guest *g = ctx;
	g->told = *now;
	g->times_told++;
}

static void make(struct guest *g)
{
	memset(g, 0, sizeof(*g));
	drv_init(&g->t);
	struct virtio_balloon_config c = {give, news, g};
	cr_assert_eq(virtio_balloon_create(&g->t.dev, &g->t.env, &c), 0);
}

static struct guest *balloon(uint64_t mask)
{
	static struct guest g;
	make(&g);
	drv_start(&g.t, mask, 5);
	for (int i = 0; i < 5; i++)
		drv_step(&g.t, 1);
	cr_assert_eq(g.gifts, 0);
	return &g;
}

static void name(struct guest *g, unsigned q, const uint32_t *pfn, unsigned n)
{
	struct seg s = {PFNS, 4 * n, false};
	fake_put(&g->t.mem, PFNS, pfn, 4 * n);
	drv_add(&g->t, q, &s, 1, 0);
	drv_kick(&g->t, q);
	drv_wait(&g->t, q, NULL, NULL);
}

static bool failed(struct guest *g)
{
	return drv_rd(&g->t, VIRTIO_MMIO_STATUS) & 0x40;
}

static bool is_gift(struct guest *g, unsigned i, uint64_t page, uint64_t pages)
{
	return i < g->gifts && g->gift[i].at == page << PAGE_SHIFT &&
	       g->gift[i].bytes == pages << PAGE_SHIFT;
}

Test(virtio_balloon, offers_what_it_can_and_has_its_config)
{
	static struct guest g;
	make(&g);
	cr_assert_eq(virtio_id(g.t.dev), 5);
	drv_wr(&g.t, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
	cr_assert_eq(drv_rd(&g.t, VIRTIO_MMIO_DEVICE_FEATURES) & 0xff,
		     STATS_VQ | ON_OOM | POISON | REPORTING);
	virtio_balloon_resize(g.t.dev, 1234);
	cr_assert(!atomic_load(&g.t.irq), "there is no driver yet");
	cr_assert_eq(g.told.target, 1234);
	drv_start(&g.t, ALL, 5);
	drv_step(&g.t, 1);
	cr_assert(g.told.driver && g.told.reports);
	cr_assert_eq(drv_rd(&g.t, VIRTIO_MMIO_CONFIG), 1234);
	uint32_t generation = drv_rd(&g.t, VIRTIO_MMIO_CONFIG_GENERATION);
	virtio_balloon_resize(g.t.dev, 77);
	cr_assert(atomic_load(&g.t.irq));
	cr_assert_eq(drv_rd(&g.t, VIRTIO_MMIO_INTERRUPT_STATUS) & 2, 2);
	cr_assert_neq(drv_rd(&g.t, VIRTIO_MMIO_CONFIG_GENERATION), generation);
	cr_assert_eq(drv_rd(&g.t, VIRTIO_MMIO_CONFIG), 77);
	drv_wr(&g.t, VIRTIO_MMIO_INTERRUPT_ACK, 2);
	cr_assert(!atomic_load(&g.t.irq));
	virtio_balloon_resize(g.t.dev, 77);
	cr_assert(!atomic_load(&g.t.irq), "it is so already");
	drv_wr(&g.t, VIRTIO_MMIO_CONFIG + 4, 55);
	cr_assert_eq(g.told.actual, 55);
	uint8_t byte = 1;
	virtio_mmio_access(g.t.dev, VIRTIO_MMIO_CONFIG + 5, &byte, 1, true);
	cr_assert_eq(g.told.actual, 256 + 55);
	drv_wr(&g.t, VIRTIO_MMIO_CONFIG, 1); /* isn't the driver's */
	drv_wr(&g.t, VIRTIO_MMIO_CONFIG + 8, 1);
	cr_assert_eq(drv_rd(&g.t, VIRTIO_MMIO_CONFIG), 77);
	cr_assert_eq(drv_rd(&g.t, VIRTIO_MMIO_CONFIG + 8), 0);
	cr_assert_eq(drv_rd(&g.t, VIRTIO_MMIO_CONFIG + 16), 0);
	/* A new driver begins with an empty balloon, and with the target. */
	drv_reset(&g.t);
	cr_assert(!g.told.driver && !g.told.actual);
	cr_assert_eq(drv_rd(&g.t, VIRTIO_MMIO_CONFIG), 77);
	cr_assert_eq(drv_rd(&g.t, VIRTIO_MMIO_CONFIG + 4), 0);
	drv_fini(&g.t);
}

Test(virtio_balloon, pages_come_as_runs)
{
	struct guest *g = balloon(ALL);
	const uint32_t pfn[] = {1000, 999, 998, 5, 1001, 40, 5, 6, 5};
	name(g, INFLATE, pfn, 9);
	cr_assert_eq(g->gifts, 3);
	cr_assert(is_gift(g, 0, 5, 2));
	cr_assert(is_gift(g, 1, 40, 1));
	cr_assert(is_gift(g, 2, 998, 4));
	/* Some are no memory of the VM's: the others count. The last page of 16 TiB doesn't wrap to 0. */
	const uint32_t wild[] = {UINT32_MAX, UINT32_MAX - 1, RAM >> PAGE_SHIFT, 7, 0};
	name(g, INFLATE, wild, 5);
	cr_assert_eq(g->gifts, 5);
	cr_assert(is_gift(g, 3, 0, 1));
	cr_assert(is_gift(g, 4, 7, 1));
	cr_assert(!failed(g));
	name(g, DEFLATE, pfn, 9);
	cr_assert_eq(g->gifts, 5, "nothing is given there");
	struct virtio_balloon_stats s;
	virtio_balloon_stats(g->t.dev, &s);
	cr_assert_eq(s.inflated, 7 + 5);
	cr_assert_eq(s.refused, 3);
	cr_assert_eq(s.deflated, 9);
	drv_fini(&g->t);
}

Test(virtio_balloon, many_pages_in_one_request_and_too_many)
{
	static uint32_t pfn[5000];
	struct guest *g = balloon(ALL);
	for (unsigned i = 0; i < 5000; i++)
		pfn[i] = 20000 - i;
	name(g, INFLATE, pfn, 4096);
	uint64_t pages = 0;
	for (unsigned i = 0; i < g->gifts; i++)
		pages += g->gift[i].bytes >> PAGE_SHIFT;
	cr_assert_eq(pages, 4096);
	cr_assert_leq(g->gifts, 16);
	cr_assert(!failed(g));
	for (unsigned round = 0; round < 4; round++) {
		unsigned gifts = g->gifts;
		struct seg s = {PFNS, (const uint32_t[]){4097 * 4, 3, 6, 8}[round], round == 3};
		fake_put(&g->t.mem, PFNS, pfn, sizeof(pfn));
		drv_add(&g->t, round % 2, &s, 1, 0);
		drv_kick(&g->t, round % 2);
		drv_wait(&g->t, round % 2, NULL, NULL);
		cr_assert(failed(g), "%u", round);
		cr_assert_eq(g->gifts, gifts);
		cr_assert(strstr(g->t.line, "impossible number"), "%s", g->t.line);
		drv_reset(&g->t);
		drv_start(&g->t, ALL, 5);
	}
	/* More requests than are seen to in one turn. */
	for (unsigned i = 0; i < 20; i++) {
		struct seg s = {PFNS + 512 * i, 512, false};
		drv_add(&g->t, INFLATE, &s, 1, 0);
	}
	drv_kick(&g->t, INFLATE);
	for (unsigned i = 0; i < 20; i++)
		drv_wait(&g->t, INFLATE, NULL, NULL);
	cr_assert(!failed(g));
	drv_fini(&g->t);
}

static void report(struct guest *g, unsigned q, const struct seg *s, unsigned n)
{
	uint64_t maps = g->t.mem.maps;
	int pins = atomic_load(&g->t.mem.pinned);
	drv_add(&g->t, q, s, n, TABLE);
	drv_kick(&g->t, q);
	drv_wait(&g->t, q, NULL, NULL);
	cr_assert_lt(g->t.mem.maps - maps, 40, "the buffers aren't looked at");
	cr_assert_eq(atomic_load(&g->t.mem.pinned), pins);
}

/* By the specification reports are on queue 4; Linux leaves out the queue that isn't there. */
Test(virtio_balloon, reports_on_either_queue)
{
	static const struct seg big[] = {{32 * MiB, 4 * MiB, true}, {40 * MiB, 64 * MiB, true}};
	for (unsigned q = STATS; q <= FOUR; q++) {
		struct guest *g = balloon(q == STATS ? ALL & ~STATS_VQ : ALL);
		report(g, q, big, 2);
		cr_assert_eq(g->gifts, 2);
		cr_assert(is_gift(g, 0, 8192, 1024));
		cr_assert(is_gift(g, 1, 10240, 16384));
		cr_assert_eq(g->told.reported, 68 * MiB);
		/* Of pages in part nothing is given. */
		static const struct seg odd[] = {
			{5000, 3000, true}, {9000, 8000, true}, {0x10800, 0x1000, true}};
		report(g, q, odd, 3);
		cr_assert_eq(g->gifts, 3);
		cr_assert(is_gift(g, 2, 3, 1));
		cr_assert(!failed(g));
		drv_fini(&g->t);
	}
}

Test(virtio_balloon, reports_that_are_none)
{
	static const struct seg bad[][2] = {
		{{RAM, 4096, true}, {0, 4096, true}},
		{{RAM - 4096, 8192, true}, {0, 4096, true}},
		{{UINT64_MAX - 4095, 8192, true}, {0, 4096, true}},
		{{UINT64_MAX - 8191, 4096, true}, {0, 4096, true}},
		{{4096, 4096, false}, {8192, 4096, false}},
	};
	for (unsigned i = 0; i < 5; i++) {
		struct guest *g = balloon(ALL);
		report(g, FOUR, bad[i], 2);
		cr_assert(failed(g), "%u", i);
		cr_assert_eq(g->gifts, 0);
		cr_assert(strstr(g->t.line, "report"), "%s", g->t.line);
		drv_reset(&g->t);
		drv_start(&g->t, ALL & ~REPORTING, 5);
		/* Who didn't agree to reports isn't heard. */
		drv_add(&g->t, FOUR, &bad[0][1], 1, 0);
		drv_kick(&g->t, FOUR);
		for (int k = 0; k < 5; k++)
			drv_step(&g->t, 1);
		cr_assert_eq(g->gifts, 0);
		cr_assert(!g->told.reports && g->told.driver);
		drv_fini(&g->t);
	}
}

/* What the driver finds in its free pages is what it filled them with, or zero where that is the same. */
Test(virtio_balloon, poisoned_pages_are_kept)
{
	struct guest *g = balloon(ALL);
	static const struct seg s = {32 * MiB, 2 * MiB, true};
	drv_wr(&g->t, VIRTIO_MMIO_CONFIG + 12, 0xaaaaaaaa);
	cr_assert_eq(drv_rd(&g->t, VIRTIO_MMIO_CONFIG + 12), 0xaaaaaaaa);
	report(g, FOUR, &s, 1);
	cr_assert_eq(g->gifts, 0);
	const uint32_t pfn = 9; /* of a page of the balloon it expects nothing */
	name(g, INFLATE, &pfn, 1);
	cr_assert_eq(g->gifts, 1);
	drv_wr(&g->t, VIRTIO_MMIO_CONFIG + 12, 0);
	report(g, FOUR, &s, 1);
	cr_assert_eq(g->gifts, 2);
	drv_reset(&g->t);
	drv_start(&g->t, ALL & ~POISON, 5);
	drv_wr(&g->t, VIRTIO_MMIO_CONFIG + 12, 0xaaaaaaaa);
	report(g, FOUR, &s, 1);
	cr_assert_eq(g->gifts, 3, "without the feature the field says nothing");
	drv_fini(&g->t);
}

static void put_number(struct guest *g, unsigned i, uint16_t tag, uint64_t value)
{
	fake_put(&g->t.mem, NUMBERS + 10 * i, &tag, 2);
	fake_put(&g->t.mem, NUMBERS + 10 * i + 2, &value, 8);
}

static void send_numbers(struct guest *g, unsigned bytes)
{
	struct seg s = {NUMBERS, bytes, false};
	drv_add(&g->t, STATS, &s, 1, 0);
	drv_kick(&g->t, STATS);
	for (int i = 0; i < 3; i++)
		drv_step(&g->t, 1);
}

Test(virtio_balloon, numbers_when_they_are_asked_for)
{
	struct guest *g = balloon(ALL);
	virtio_balloon_ask(g->t.dev); /* the driver's first will do */
	put_number(g, 0, 4, 1 << 20);
	put_number(g, 1, 999, 5);
	put_number(g, 2, 2, UINT64_MAX);
	send_numbers(g, 35); /* half a number at the end */
	cr_assert_eq(g->told.known, 1 << 4 | 1 << 2);
	cr_assert_eq(g->told.number[4], 1 << 20);
	cr_assert_eq(g->told.number[2], UINT64_MAX);
	cr_assert_eq(g->told.times, 1);
	cr_assert(!drv_used(&g->t, STATS, NULL, NULL), "the buffer is kept");
	cr_assert_eq(atomic_load(&g->t.mem.pinned), 0, "and not pinned");
	for (unsigned round = 2; round < 6; round++) {
		/* Neither notifications nor a pause make new numbers of it. */
		put_number(g, 0, 4, round);
		drv_kick(&g->t, STATS);
		virtio_pause(g->t.dev);
		atomic_store(&g->t.irq, false);
		virtio_resume(g->t.dev);
		drv_step(&g->t, 1);
		cr_assert_eq(g->told.times, round - 1);
		virtio_balloon_ask(g->t.dev);
		virtio_balloon_ask(g->t.dev);
		drv_wait(&g->t, STATS, NULL, NULL);
		virtio_balloon_ask(g->t.dev);
		for (int i = 0; i < 3; i++)
			drv_step(&g->t, 1);
		cr_assert(!drv_used(&g->t, STATS, NULL, NULL));
		send_numbers(g, 30);
		cr_assert_eq(g->told.times, round);
		cr_assert_eq(g->told.number[4], round);
	}
	/* Nothing at all, and what the device should write, are numbers too, of which there are none. */
	virtio_balloon_ask(g->t.dev);
	drv_wait(&g->t, STATS, NULL, NULL);
	struct seg odd = {NUMBERS, 100, true};
	drv_add(&g->t, STATS, &odd, 1, 0);
	drv_kick(&g->t, STATS);
	drv_step(&g->t, 1);
	cr_assert(!failed(g));
	drv_reset(&g->t);
	cr_assert_eq(g->told.known, 0);
	virtio_balloon_ask(g->t.dev); /* nobody is there */
	drv_fini(&g->t);
}
