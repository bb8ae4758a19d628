/* virtio-console with a sink that takes as much as it likes and input that comes at any time. */
#include "tests/fuzz/fuzz.h"
#include "virtio/virtio.h"
#include <string.h>

static struct {
	uint32_t take; /* of the next offer; UINT32_MAX: all */
	uint32_t sum;
} sink;

static size_t output(void *ctx, const char *bytes, size_t n)
{
	(void)ctx;
	for (size_t i = 0; i < n; i++) /* so that a sanitizer sees every byte */
		sink.sum += (uint8_t)bytes[i];
	size_t took = n < sink.take ? n : sink.take;
	sink.take = UINT32_MAX;
	return took;
}

static void room(void *ctx)
{
	struct drv *t = ctx;
	/* As the product does: no more than to have the loop look. */
	cr_assert(t->dev != NULL);
}

static int create(struct drv *t)
{
	int rc = virtio_console_create(&t->dev, &t->env, output, t);
	sink.take = UINT32_MAX;
	if (!rc)
		virtio_console_on_room(t->dev, room, t);
	return rc;
}

static void own(struct drv *t, struct fuzz_in *in)
{
	static const char text[5000] = "some text";
	unsigned what = fuzz_u8(in);
	if (what < 0x80) {
		size_t n = (size_t)fuzz_number(in) % sizeof(text);
		cr_assert_leq(virtio_console_input(t->dev, text, n), n);
	} else {
		sink.take = (uint32_t)fuzz_number(in);
	}
}

static void works(struct drv *t)
{
	struct seg from = {0x40000, 5000, false}, to = {0x50000, 100, true};
	uint32_t n;
	sink.take = UINT32_MAX;
	drv_add(t, 1, &from, 1, 0);
	drv_kick(t, 1);
	drv_wait(t, 1, NULL, NULL);
	drv_add(t, 0, &to, 1, 0);
	drv_kick(t, 0);
	virtio_console_input(t->dev, "hello", 5);
	drv_wait(t, 0, NULL, &n);
	cr_assert(n > 0 && n <= 100); /* what came before is still there */
}

const struct fuzz_device fuzz_device = {.queues = 2, .create = create, .own = own, .works = works};
