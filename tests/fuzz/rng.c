/* virtio-rng. */
#include "tests/fuzz/fuzz.h"
#include "virtio/virtio.h"

static int create(struct drv *t)
{
	return virtio_rng_create(&t->dev, &t->env);
}

static void works(struct drv *t)
{
	struct seg s = {0x40000, 64, true};
	uint32_t n;
	drv_add(t, 0, &s, 1, 0);
	drv_kick(t, 0);
	drv_wait(t, 0, NULL, &n);
	cr_assert_eq(n, 64);
}

const struct fuzz_device fuzz_device = {.queues = 1, .create = create, .works = works};
