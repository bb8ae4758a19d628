/* virtio-balloon: pages wild and tame, numbers asked for at any time, a target that changes. */
#include "tests/fuzz/fuzz.h"
#include "virtio/virtio.h"
#include <errno.h>
#include <string.h>

#define RAM (256 * MiB)

static uint64_t given, deflated;

static int give(void *ctx, gpa_t at, uint64_t bytes)
{
	(void)ctx;
	cr_assert(bytes && !((at.v | bytes) & PAGE_MASK) && at.v + bytes > at.v, "whole pages");
	if (at.v >= RAM || bytes > RAM - at.v)
		return -EFAULT;
	given += bytes;
	return 0;
}

static void news(void *ctx, const struct virtio_balloon_stats *now)
{
	(void)ctx;
	cr_assert(now->driver || !now->reports);
	cr_assert(!(now->known >> VIRTIO_BALLOON_NUMBERS));
	cr_assert(now->deflated >= deflated, "a count went back");
	deflated = now->deflated;
}

static int create(struct drv *t)
{
	struct virtio_balloon_config c = {give, news, NULL};
	given = deflated = 0;
	return virtio_balloon_create(&t->dev, &t->env, &c);
}

static void own(struct drv *t, struct fuzz_in *in)
{
	unsigned what = fuzz_u8(in), n = fuzz_u8(in);
	uint64_t at = 0x60000;
	if (what < 0x20) {
		virtio_balloon_ask(t->dev);
		return;
	}
	if (what < 0x40) {
		virtio_balloon_resize(t->dev, (uint32_t)fuzz_number(in));
		return;
	}
	struct seg s[2] = {{at, 4 * n, false}, {at + 0x1000, 4096, true}};
	if (what < 0x80) { /* pages */
		uint32_t first = (uint32_t)fuzz_number(in), step = fuzz_u8(in);
		for (unsigned i = 0; i < n; i++) {
			uint32_t pfn = first + i * step;
			fake_put(&t->mem, at + 4 * i, &pfn, 4);
		}
		drv_add(t, what & 1, s, 1, 0);
		drv_kick(t, what & 1);
	} else if (what < 0xa0) { /* numbers */
		n %= 40;
		for (unsigned i = 0; i < n; i++) {
			uint16_t tag = (uint16_t)fuzz_number(in);
			uint64_t v = fuzz_number(in);
			fake_put(&t->mem, at + 10 * i, &tag, 2);
			fake_put(&t->mem, at + 10 * i + 2, &v, 8);
		}
		s[0].len = what & 1 ? (uint32_t)fuzz_number(in) : 10 * n;
		drv_add(t, 2, s, 1, 0);
		drv_kick(t, 2);
	} else { /* free pages */
		s[0] = (struct seg){fuzz_address(in), (uint32_t)fuzz_number(in), true};
		s[1].at = fuzz_number(in) * PAGE_SIZE;
		unsigned q = 2 + what % 3;
		drv_add(t, q, s, 1 + (what >> 4 & 1), 0);
		drv_kick(t, q);
	}
}

static void works(struct drv *t)
{
	uint32_t pfn[2] = {16, 17};
	struct seg s = {0x40000, sizeof(pfn), false};
	fake_put(&t->mem, 0x40000, pfn, sizeof(pfn));
	given = 0;
	drv_add(t, 0, &s, 1, 0);
	drv_kick(t, 0);
	drv_wait(t, 0, NULL, NULL);
	cr_assert_eq(given, 2 * PAGE_SIZE, "an inflation");
}

const struct fuzz_device fuzz_device = {.queues = 5, .create = create, .own = own, .works = works};
