/*
 * A driver out to do harm: random register accesses and random or mutated rings, by fixed seeds,
 * against each device, with guest memory failing at random too. What must hold: no crash, no hang,
 * every turn of bounded work, nothing pinned after a reset, and a device that is reset afterwards
 * works. (Under SANITIZE=address,undefined it must also hold that no byte outside is touched.)
 */
#include "virtio_fake.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <linux/virtio_mmio.h>
#include <linux/virtio_ring.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define ROUNDS      400
#define STEPS       250 /* a round; each is a few register accesses or ring changes */
#define SECONDS_MAX 6   /* a device; slow machines do fewer rounds */
#define SECTORS     256

struct hostile {
	struct drv drv; /* must be first */
	struct rnd rnd;
	unsigned queues;
	uint64_t accesses;
};

static size_t swallow(void *ctx, const char *bytes, size_t n)
{
	struct hostile *h = ctx;
	unsigned sum = 0;
	for (size_t i = 0; i < n; i++) /* so that a sanitizer sees every byte */
		sum += (uint8_t)bytes[i];
	return sum == 1 || rnd_one_in(&h->rnd, 4) ? rnd_below(&h->rnd, (uint32_t)n + 1) : n;
}

/* Numbers that are interesting as addresses, lengths and indexes. */
static uint64_t odd_number(struct rnd *r)
{
	uint64_t v = rnd64(r);
	switch (rnd_below(r, 10)) {
	case 0:
		return v;
	case 1:
		return UINT64_MAX - v % 64;
	case 2:
		return FAKE_BYTES - v % 64;
	case 3:
		return v % 8;
	case 4:
		return 1ull << v % 64;
	case 5:
		return (uint32_t)v;
	case 6:
		return v % FAKE_BYTES & ~15ull;
	default:
		return v % FAKE_BYTES;
	}
}

static void random_register(struct hostile *h)
{
	static const uint16_t known[] = {0x10, 0x14, 0x20, 0x24, 0x30, 0x34,  0x38, 0x44, 0x50,
					 0x50, 0x50, 0x60, 0x64, 0x70, 0x70,  0x80, 0x84, 0x90,
					 0x94, 0xa0, 0xa4, 0xb0, 0xfc, 0x100, 0x120};
	struct rnd *r = &h->rnd;
	uint8_t data[16];
	uint64_t offset = rnd_one_in(r, 4) ? odd_number(r) % 0x300
					   : known[rnd_below(r, sizeof(known) / sizeof(known[0]))];
	unsigned len = rnd_one_in(r, 8) ? rnd_below(r, 9) : 4;
	uint64_t v = rnd_one_in(r, 2) ? rnd_below(r, 4) : odd_number(r);
	if (offset == VIRTIO_MMIO_STATUS && !rnd_one_in(r, 20) && v == 0)
		v = 0xf; /* else it would hardly ever live */
	memcpy(data, &v, 8);
	virtio_mmio_access(h->drv.dev, offset, data, len, rnd_below(r, 3) != 0);
	h->accesses++;
}

static void random_desc(struct hostile *h, uint64_t at, unsigned i)
{
	struct rnd *r = &h->rnd;
	struct vring_desc d = {0};
	/* Mostly well-formed, or walks would end at the first descriptor. */
	d.addr = rnd_one_in(r, 16) ? odd_number(r) : 0x40000 + rnd_below(r, 0x300000);
	d.len = rnd_one_in(r, 16)
			? (uint32_t)odd_number(r)
			: (rnd_one_in(r, 2) ? 512 * (1 + rnd_below(r, 8)) : 1 + rnd_below(r, 6000));
	d.flags = rnd_one_in(r, 16) ? (uint16_t)rnd64(r) : (uint16_t)rnd_below(r, 4);
	d.next = rnd_one_in(r, 16) ? (uint16_t)rnd64(r) : (uint16_t)((i + 1) % h->drv.q[0].num);
	fake_put(&h->drv.mem, at + 16 * i, &d, sizeof(d));
}

/* A request that is one, or nearly. */
static void near_request(struct hostile *h, unsigned q)
{
	struct rnd *r = &h->rnd;
	static const uint32_t types[] = {0, 0, 1, 1, 4, 8, 11, 13, 14, 2};
	uint64_t header = 0x20000 + rnd_below(r, 0x8000), data = 0x40000 + rnd_below(r, 0x100000);
	uint32_t type = types[rnd_below(r, 10)], n = 512 * rnd_below(r, 40);
	bool in = type == 0 || type == 8;
	drv_blk_header(&h->drv, header, rnd_one_in(r, 30) ? (uint32_t)rnd64(r) : type,
		       rnd_one_in(r, 10) ? odd_number(r) : rnd_below(r, SECTORS));
	if (type > 8) {
		n = 16 * (1 + rnd_below(r, 17));
		for (uint32_t i = 0; i < n; i += 16) {
			struct {
				uint64_t sector;
				uint32_t sectors, flags;
			} range = {rnd_below(r, SECTORS), rnd_below(r, 60), rnd_below(r, 2)};
			if (rnd_one_in(r, 20))
				range.sectors = (uint32_t)odd_number(r);
			fake_put(&h->drv.mem, data + i, &range, 16);
		}
	}
	struct seg s[3] = {{header, 16, false}, {data, n, in}, {0x30000, 1, true}};
	if (rnd_one_in(r, 20))
		s[rnd_below(r, 3)].len = (uint32_t)odd_number(r);
	if (rnd_one_in(r, 20))
		s[rnd_below(r, 3)].at = odd_number(r);
	if (rnd_one_in(r, 20))
		s[rnd_below(r, 3)].write ^= true;
	unsigned from = h->queues == 2 || rnd_one_in(r, 20) ? rnd_below(r, 3) : 0;
	drv_add(&h->drv, q, s + from, 3 - from, rnd_one_in(r, 2) ? 0x28000 + 64 * q : 0);
}

static void mutate(struct hostile *h)
{
	struct rnd *r = &h->rnd;
	unsigned i = rnd_below(r, h->queues);
	struct drv_queue *q = &h->drv.q[i];
	uint16_t v;
	switch (rnd_below(r, 12)) {
	case 0:
		for (unsigned k = 0; k < q->num; k++)
			random_desc(h, q->desc, k);
		break;
	case 1:
		random_desc(h, q->desc, rnd_below(r, q->num));
		break;
	case 2: /* an index anywhere, mostly near */
		v = rnd_one_in(r, 6) ? (uint16_t)rnd64(r) : (uint16_t)rnd_below(r, 200);
		q->avail_idx = (uint16_t)(q->avail_idx + v);
		fake_store16(&h->drv.mem, q->avail + 2, q->avail_idx);
		break;
	case 3: /* entries */
		v = rnd_one_in(r, 8) ? (uint16_t)rnd64(r) : (uint16_t)rnd_below(r, DRV_NUM);
		fake_put(&h->drv.mem, q->avail + 4 + 2 * rnd_below(r, DRV_NUM), &v, 2);
		break;
	case 4: /* flags, used_event, or into the used ring */
		v = (uint16_t)rnd64(r);
		fake_put(&h->drv.mem, rnd_one_in(r, 2) ? q->avail : q->used + rnd_below(r, 1024),
			 &v, 2);
		break;
	case 5: { /* a table, and one that uses it */
		uint64_t table = 0x28000 + 16 * rnd_below(r, 64);
		for (unsigned k = 0; k < 8; k++)
			random_desc(h, table, k);
		struct vring_desc d = {table, 16 * (1 + rnd_below(r, 9)), VRING_DESC_F_INDIRECT, 0};
		if (rnd_one_in(r, 6))
			d.len = (uint32_t)odd_number(r);
		fake_put(&h->drv.mem, q->desc + 16 * rnd_below(r, DRV_NUM), &d, 16);
		break;
	}
	default:
		near_request(h, i);
	}
	if (rnd_one_in(r, 2))
		drv_kick(&h->drv, i);
}

static void one_round(struct hostile *h)
{
	struct drv *t = &h->drv;
	struct rnd *r = &h->rnd;
	t->mem.chaos = NULL;
	drv_start(t, rnd64(r) | rnd64(r), h->queues);
	t->mem.odds = 1 + rnd_below(r, 400);
	if (t->mem.odds > 50)
		t->mem.chaos = r;
	for (int step = 0; step < STEPS; step++) {
		if (rnd_one_in(r, 40))
			for (int i = 0; i < 40; i++)
				random_register(h);
		else
			mutate(h);
		if (rnd_one_in(r, 4)) {
			uint64_t maps = t->mem.maps;
			cr_assert_eq(loop_step(t->loop, NULL, 0), 0);
			/* One turn: a ring's worth of chains, each of bounded length. */
			cr_assert_lt(t->mem.maps - maps, 2 * DRV_NUM * 400ul);
		}
		if (rnd_one_in(r, 8))
			virtio_retry(t->dev);
		if (virtio_id(t->dev) == 5 && rnd_one_in(r, 8)) {
			virtio_balloon_ask(t->dev);
			virtio_balloon_resize(t->dev, rnd_below(r, 3));
		}
		if (virtio_id(t->dev) == 3 && rnd_one_in(r, 8))
			virtio_console_input(t->dev, (const char *)h, rnd_below(r, 5000));
		if (drv_rd(t, VIRTIO_MMIO_STATUS) & 0xc0) {
			drv_reset(t);
			drv_start(t, rnd64(r) | rnd64(r), h->queues);
		}
	}
	drv_reset(t);
}

/* The device is as good as new: it answers a plain request. */
static void still_works(struct hostile *h)
{
	struct drv *t = &h->drv;
	t->mem.chaos = NULL;
	drv_start(t, UINT64_MAX, h->queues);
	struct seg s[3] = {{0x20000, 16, false}, {0x21000, 512, true}, {0x22000, 1, true}};
	uint8_t status = 0xee;
	fake_put(&t->mem, 0x22000, &status, 1);
	drv_blk_header(t, 0x20000, 0, 0);
	unsigned q = h->queues - 1, id = virtio_id(t->dev);
	bool whole = id == 2 || id == 27;
	drv_add(t, q, whole || id == 3 ? s : s + 1, whole ? 3 : 1, 0);
	drv_kick(t, q);
	for (int i = 0; id == 3 && i < 100; i++) { /* a console's sink may have said no */
		virtio_retry(t->dev);
		drv_step(t, 0);
	}
	drv_wait(t, q, NULL, NULL);
	fake_get(&t->mem, 0x22000, &status, 1);
	cr_assert(id != 2 || !status);
	drv_reset(t);
}

static void attack(struct hostile *h, uint64_t seed, int rounds)
{
	struct timespec start, now;
	clock_gettime(CLOCK_MONOTONIC, &start);
	for (int round = 0; round < rounds; round++) {
		h->rnd.state = seed * 1000003 + (uint64_t)round; /* any round can be had alone */
		one_round(h);
		if (round % 50 == 0)
			still_works(h);
		clock_gettime(CLOCK_MONOTONIC, &now);
		if (now.tv_sec - start.tv_sec >= SECONDS_MAX)
			break;
	}
	still_works(h);
	cr_assert_leq(atomic_load(&h->drv.said), 17);
	drv_fini(&h->drv);
}

Test(virtio_hostile, rng, .timeout = 60)
{
	struct hostile *h = calloc(1, sizeof(*h));
	drv_init(&h->drv);
	h->queues = 1;
	cr_assert_eq(virtio_rng_create(&h->drv.dev, &h->drv.env), 0);
	attack(h, 1, ROUNDS);
	free(h);
}

Test(virtio_hostile, console, .timeout = 60)
{
	struct hostile *h = calloc(1, sizeof(*h));
	drv_init(&h->drv);
	h->queues = 2;
	cr_assert_eq(virtio_console_create(&h->drv.dev, &h->drv.env, swallow, h), 0);
	attack(h, 2, ROUNDS);
	free(h);
}

Test(virtio_hostile, blk, .timeout = 60)
{
	for (unsigned kind = 0; kind < 3; kind++) {
		struct hostile *h = calloc(1, sizeof(*h));
		drv_init(&h->drv);
		h->queues = 1;
		struct virtio_blk_config c = {.fd = temp_file(SECTORS * 512, true),
					      .read_only = kind == 1,
					      .is_volatile = kind == 2,
					      .serial = "x"};
		cr_assert_eq(virtio_blk_create(&h->drv.dev, &h->drv.env, &c), 0);
		attack(h, 3 + kind, ROUNDS / (kind ? 2 : 1));
		free(h);
	}
}

/* A flush of a few operations, which fails now and then. */
static int flush(void *ctx, struct loop_op *op, bool begin, int res)
{
	struct hostile *h = ctx;
	(void)begin;
	if (rnd_one_in(&h->rnd, 3))
		return rnd_one_in(&h->rnd, 4) ? -EIO : res;
	io_uring_prep_nop(loop_sqe(h->drv.loop, op));
	return 1;
}

Test(virtio_hostile, pmem, .timeout = 60)
{
	struct hostile *h = calloc(1, sizeof(*h));
	drv_init(&h->drv);
	h->queues = 1;
	struct virtio_pmem_config c = {GiB, 2 * MiB, flush, h, NULL};
	cr_assert_eq(virtio_pmem_create(&h->drv.dev, &h->drv.env, &c), 0);
	attack(h, 7, ROUNDS);
	free(h);
}

/* Whole pages, wherever they are; some are no memory. The driver's numbers are asked for in between. */
static int give(void *ctx, gpa_t at, uint64_t bytes)
{
	struct hostile *h = ctx;
	cr_assert(bytes && !((at.v | bytes) & PAGE_MASK) && at.v + bytes > at.v);
	return rnd_one_in(&h->rnd, 3) ? -EFAULT : 0;
}

static void hear(void *ctx, const struct virtio_balloon_stats *now)
{
	(void)ctx;
	cr_assert(now->driver || !now->reports);
}

Test(virtio_hostile, balloon, .timeout = 60)
{
	struct hostile *h = calloc(1, sizeof(*h));
	drv_init(&h->drv);
	h->queues = 5;
	struct virtio_balloon_config c = {give, hear, h};
	cr_assert_eq(virtio_balloon_create(&h->drv.dev, &h->drv.env, &c), 0);
	attack(h, 9, ROUNDS / 2);
	free(h);
}

/* Registers alone, from four vCPUs at once, while the loop works. */
static void *vcpu(void *arg)
{
	struct hostile *h = arg, mine = {.rnd = {(uint64_t)(uintptr_t)&mine}};
	mine.rnd.state = 42;
	for (int i = 0; i < 50000; i++) {
		uint32_t v = rnd_below(&mine.rnd, 16);
		uint64_t offset = 4 * (uint64_t)rnd_below(&mine.rnd, 0x42);
		/* Addresses stay as they are, so that what is live has memory. */
		bool write = rnd_one_in(&mine.rnd, 2) && (offset < 0x80 || offset > 0xa4);
		virtio_mmio_access(h->drv.dev, offset, &v, 4, write);
		if (i % 64 == 0) {
			virtio_retry(h->drv.dev);
			virtio_console_input(h->drv.dev, "hello", 5);
		}
	}
	return NULL;
}

static size_t no_sink(void *ctx, const char *bytes, size_t n)
{
	(void)ctx;
	(void)bytes;
	return n;
}

Test(virtio_hostile, many_vcpus, .timeout = 60)
{
	struct hostile *h = calloc(1, sizeof(*h));
	pthread_t t[4];
	drv_init(&h->drv);
	cr_assert_eq(virtio_console_create(&h->drv.dev, &h->drv.env, no_sink, NULL), 0);
	drv_thread(&h->drv);
	drv_start(&h->drv, UINT64_MAX, 2);
	for (int i = 0; i < 4; i++)
		cr_assert_eq(pthread_create(&t[i], NULL, vcpu, h), 0);
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
	drv_reset(&h->drv);
	h->queues = 2;
	still_works(h);
	drv_fini(&h->drv);
	free(h);
}
