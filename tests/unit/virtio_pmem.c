/* The persistent memory device: its flushes by a driver that plays by the rules, and by one that doesn't. */
#include "virtio_fake.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <linux/virtio_mmio.h>
#include <string.h>
#include <unistd.h>

#define START   (8 * GiB)
#define BYTES   (6 * MiB)
#define REQUEST 0x20000u
#define ANSWER  0x30000u

/* A flush of `steps` operations; the answers that came before it ended are noted. */
struct flusher {
	struct drv *t;
	unsigned steps, left, begun;
	bool under_way;
	int end; /* what a flush comes to */
};

static int flush(void *ctx, struct loop_op *op, bool begin, int res)
{
	struct flusher *f = ctx;
	cr_assert_eq(begin, !f->under_way, "one flush at a time");
	cr_assert_eq(res, 0);
	if (begin) {
		f->begun++;
		f->left = f->steps;
	}
	f->under_way = f->left > 0;
	if (!f->under_way)
		return f->end;
	f->left--;
	io_uring_prep_nop(loop_sqe(f->t->loop, op));
	return 1;
}

static void pmem(struct drv *t, struct flusher *f, unsigned steps)
{
	*f = (struct flusher){.t = t, .steps = steps};
	drv_init(t);
	struct virtio_pmem_config c = {START, BYTES, flush, f, NULL};
	cr_assert_eq(virtio_pmem_create(&t->dev, &t->env, &c), 0);
}

/* Request i: `type` in `in` bytes, an answer in `out`. */
static uint16_t ask(struct drv *t, unsigned i, uint32_t type, uint32_t in, uint32_t out)
{
	struct seg s[2] = {{REQUEST + 64 * i, in, false}, {ANSWER + 64 * i, out, true}};
	uint8_t none[64];
	memset(none, 0xee, sizeof(none));
	fake_put(&t->mem, s[0].at, &type, sizeof(type));
	fake_put(&t->mem, s[1].at, none, sizeof(none));
	return drv_add(t, 0, s, 2, 0);
}

static uint32_t answer(struct drv *t, unsigned i)
{
	uint32_t ret;
	fake_get(&t->mem, ANSWER + 64 * i, &ret, sizeof(ret));
	return ret;
}

static uint32_t ask_and_wait(struct drv *t, uint32_t type)
{
	uint32_t len;
	ask(t, 0, type, 4, 4);
	drv_kick(t, 0);
	drv_wait(t, 0, NULL, &len);
	cr_assert_eq(len, 4);
	return answer(t, 0);
}

Test(virtio_pmem, says_where_it_is)
{
	struct drv t;
	struct flusher f;
	pmem(&t, &f, 0);
	cr_assert_eq(virtio_id(t.dev), 27);
	cr_assert_str_eq(virtio_name(t.dev), "virtio-pmem");
	uint64_t v = 0;
	virtio_mmio_access(t.dev, VIRTIO_MMIO_CONFIG, &v, 8, false);
	cr_assert_eq(v, START);
	virtio_mmio_access(t.dev, VIRTIO_MMIO_CONFIG + 8, &v, 8, false);
	cr_assert_eq(v, BYTES);
	/* As Linux reads it, and nothing behind it. */
	cr_assert_eq(drv_rd(&t, VIRTIO_MMIO_CONFIG + 4), START >> 32);
	cr_assert_eq(drv_rd(&t, VIRTIO_MMIO_CONFIG + 16), 0);
	drv_wr(&t, VIRTIO_MMIO_CONFIG, 0);
	virtio_mmio_access(t.dev, VIRTIO_MMIO_CONFIG, &v, 8, false);
	cr_assert_eq(v, START);
	drv_fini(&t);
}

Test(virtio_pmem, refuses_what_is_no_range_of_pages)
{
	struct drv t;
	drv_init(&t);
	static const uint64_t bad[][2] = {
		{START, 0}, {START, 4095}, {START + 1, 4096}, {UINT64_MAX & ~PAGE_MASK, 8192}};
	for (unsigned i = 0; i < 4; i++) {
		struct virtio_pmem_config c = {bad[i][0], bad[i][1], NULL, NULL, NULL};
		cr_assert_eq(virtio_pmem_create(&t.dev, &t.env, &c), -EINVAL, "%u", i);
	}
	struct virtio_pmem_config c = {START, 4096, NULL, NULL, NULL};
	cr_assert_eq(virtio_pmem_create(&t.dev, &t.env, &c), 0);
	drv_fini(&t);
}

static void has_counted(struct drv *t, uint64_t requests, uint64_t flushes, uint64_t errors)
{
	struct virtio_pmem_stats s;
	virtio_pmem_stats(t->dev, &s);
	cr_assert_eq(s.requests, requests);
	cr_assert_eq(s.flushes, flushes);
	cr_assert_eq(s.errors, errors);
}

Test(virtio_pmem, answers_when_the_flush_is_done)
{
	for (unsigned steps = 0; steps < 4; steps++) {
		struct drv t;
		struct flusher f;
		pmem(&t, &f, steps);
		drv_start(&t, UINT64_MAX, 1);
		cr_assert_eq(ask_and_wait(&t, 0), 0);
		cr_assert_eq(f.begun, 1);
		f.end = -ENOSPC;
		cr_assert_eq(ask_and_wait(&t, 0), 1, "an I/O error");
		cr_assert_eq(f.begun, 2);
		f.end = 0;
		cr_assert_eq(ask_and_wait(&t, 1), 1, "no such request");
		cr_assert_eq(ask_and_wait(&t, UINT32_MAX), 1);
		cr_assert_eq(f.begun, 2);
		has_counted(&t, 4, 2, 1);
		drv_fini(&t);
	}
}

Test(virtio_pmem, without_flush_all_is_well)
{
	struct drv t;
	drv_init(&t);
	struct virtio_pmem_config c = {START, BYTES, NULL, NULL, NULL};
	cr_assert_eq(virtio_pmem_create(&t.dev, &t.env, &c), 0);
	drv_start(&t, UINT64_MAX, 1);
	cr_assert_eq(ask_and_wait(&t, 0), 0);
	drv_fini(&t);
}

/* Requests that come while a flush is under way aren't answered by it, but all by the next. */
Test(virtio_pmem, later_requests_get_a_later_flush)
{
	struct drv t;
	struct flusher f;
	pmem(&t, &f, 6);
	drv_start(&t, UINT64_MAX, 1);
	ask(&t, 0, 0, 4, 4);
	drv_kick(&t, 0);
	while (!f.under_way)
		drv_step(&t, 1);
	for (unsigned i = 1; i < 9; i++)
		ask(&t, i, 0, 4, 4);
	drv_kick(&t, 0);
	drv_wait(&t, 0, NULL, NULL);
	cr_assert_eq(answer(&t, 0), 0);
	cr_assert_eq(answer(&t, 1), 0xeeeeeeee, "the flush had begun before it");
	for (unsigned i = 1; i < 9; i++)
		drv_wait(&t, 0, NULL, NULL);
	for (unsigned i = 1; i < 9; i++)
		cr_assert_eq(answer(&t, i), 0);
	cr_assert_eq(f.begun, 2);
	drv_fini(&t);
}

Test(virtio_pmem, a_full_queue)
{
	struct drv t;
	struct flusher f;
	pmem(&t, &f, 2);
	drv_start(&t, UINT64_MAX, 1);
	for (int round = 0; round < 20; round++) {
		for (unsigned i = 0; i < DRV_NUM / 2; i++)
			ask(&t, i, 0, 4 + i % 2, 4 + i % 9);
		drv_kick(&t, 0);
		for (unsigned i = 0; i < DRV_NUM / 2; i++)
			drv_wait(&t, 0, NULL, NULL);
		for (unsigned i = 0; i < DRV_NUM / 2; i++)
			cr_assert_eq(answer(&t, i), 0);
	}
	cr_assert_eq(atomic_load(&t.said), 0, "%s", t.line);
	drv_fini(&t);
}

Test(virtio_pmem, a_request_that_is_none)
{
	for (unsigned i = 0; i < 4; i++) {
		struct drv t;
		struct flusher f;
		pmem(&t, &f, 3);
		drv_start(&t, UINT64_MAX, 1);
		ask(&t, 1, 0, 4, 4); /* a good one before it is answered all the same */
		if (i < 2) {
			ask(&t, 0, 0, i ? 4 : 3, i ? 3 : 4);
		} else {
			struct seg s = {REQUEST, 4, i == 3};
			drv_add(&t, 0, &s, 1, 0);
		}
		drv_kick(&t, 0);
		for (int wait = 0; wait < 100 && !atomic_load(&t.said); wait++)
			drv_step(&t, 10);
		cr_assert_eq(atomic_load(&t.said), 1);
		cr_assert(strstr(t.line, "without type"), "%s", t.line);
		cr_assert(drv_rd(&t, VIRTIO_MMIO_STATUS) & 0x40, "DEVICE_NEEDS_RESET");
		drv_reset(&t);
		drv_start(&t, UINT64_MAX, 1);
		cr_assert_eq(ask_and_wait(&t, 0), 0);
		drv_fini(&t);
	}
}

/* A reset waits for the flush under way and begins none for those that wait, whoever runs the loop. */
Test(virtio_pmem, reset_in_flight)
{
	for (int threaded = 0; threaded < 2; threaded++) {
		struct drv t;
		struct flusher f;
		pmem(&t, &f, 50);
		if (threaded)
			drv_thread(&t);
		for (int round = 0; round < 30; round++) {
			drv_start(&t, UINT64_MAX, 1);
			unsigned begun = f.begun;
			for (unsigned i = 0; i < 20; i++) {
				ask(&t, i, 0, 4, 4);
				drv_kick(&t, 0);
				if (i == 10)
					drv_step(&t, 0);
			}
			drv_reset(&t);
			cr_assert_leq(f.begun - begun, 2);
			cr_assert(!f.under_way);
		}
		drv_fini(&t);
	}
}

/* ---- what the host wants --------------------------------------------------------------------- */

/* Passes of two operations each, `wanted` of them; and flushes, of which none begins in the midst of a pass. */
struct cleaner {
	struct flusher f; /* must be first */
	unsigned wanted, left, passes;
	bool under_way;
	int end;
};

static int flush_between(void *ctx, struct loop_op *op, bool begin, int res)
{
	const struct cleaner *c = ctx;
	cr_assert(!c->under_way, "a flush in the midst of a pass");
	return flush(ctx, op, begin, res);
}

static int clean(void *ctx, struct loop_op *op, bool begin, int res)
{
	struct cleaner *c = ctx;
	cr_assert_eq(begin, !c->under_way);
	cr_assert(!c->f.under_way, "a pass in the midst of a flush");
	cr_assert_eq(res, 0);
	if (begin && !c->wanted)
		return 0;
	if (begin)
		c->left = 2;
	c->under_way = c->left > 0;
	if (!c->under_way) {
		c->wanted--;
		c->passes++;

		return c->end;
	}
	c->left--;
	io_uring_prep_nop(loop_sqe(c->f.t->loop, op));
	return 1;
}

static void cleaning(struct drv *t, struct cleaner *c, unsigned steps)
{
	*c = (struct cleaner){.f = {.t = t, .steps = steps}};
	drv_init(t);
	struct virtio_pmem_config config = {START, BYTES, flush_between, c, clean};
	cr_assert_eq(virtio_pmem_create(&t->dev, &t->env, &config), 0);
}

Test(virtio_pmem, cleans_what_the_host_wants)
{
	struct drv t;
	struct cleaner c;
	cleaning(&t, &c, 3);
	/* No driver is up. */
	virtio_pmem_clean(t.dev);
	cr_assert_eq(c.passes, 0);
	c.wanted = 3;
	virtio_pmem_clean(t.dev);
	for (int i = 0; i < 100 && c.wanted; i++)
		drv_step(&t, 1);
	cr_assert_eq(c.passes, 3);
	/* A failure ends it until it is wanted again. */
	c.wanted = 3;
	c.end = -EIO;
	virtio_pmem_clean(t.dev);
	for (int i = 0; i < 20; i++)
		drv_step(&t, 1);
	cr_assert_eq(c.passes, 4);
	c.end = 0;
	/* The guest's flushes come in between, and none is told of any of it. */
	drv_start(&t, UINT64_MAX, 1);
	virtio_pmem_clean(t.dev);
	c.wanted = 100;
	cr_assert_eq(ask_and_wait(&t, 0), 0);
	cr_assert_lt(c.passes, 10, "it waited for all");
	for (int i = 0; i < 1000 && c.wanted; i++)
		drv_step(&t, 1);
	cr_assert_eq(c.passes, 104);
	has_counted(&t, 1, 1, 0);
	drv_fini(&t);
}

/* Who resets, pauses or destroys the device waits for the pass under way, and no other begins. */
Test(virtio_pmem, stands_still_after_the_pass)
{
	for (int threaded = 0; threaded < 2; threaded++) {
		struct drv t;
		struct cleaner c;
		cleaning(&t, &c, 3);
		drv_start(&t, UINT64_MAX, 1);
		c.wanted = 100;
		virtio_pmem_clean(t.dev);
		cr_assert(c.under_way);
		if (threaded)
			drv_thread(&t);
		drv_reset(&t);
		cr_assert(!c.under_way);
		cr_assert_leq(c.passes, threaded ? 100 : 1);
		drv_fini(&t);
	}
	struct drv t;
	struct cleaner c;
	cleaning(&t, &c, 3);
	c.wanted = 100;
	virtio_pmem_clean(t.dev);
	virtio_pause(t.dev);
	cr_assert(!c.under_way);
	cr_assert_eq(c.passes, 1);
	/* While it stands still nothing of the guest's is in the way, and who pauses it again waits for all of it. */
	virtio_pmem_clean(t.dev);
	cr_assert(c.under_way);
	virtio_pause(t.dev);
	cr_assert_eq(c.passes, 100);
	virtio_resume(t.dev);
	c.wanted = 100;
	virtio_pmem_clean(t.dev);
	cr_assert(c.under_way);
	drv_fini(&t); /* which destroys it */
	cr_assert(!c.under_way);
	cr_assert_eq(c.passes, 101);
}
