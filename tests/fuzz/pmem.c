/* virtio-pmem, whose flushes take as many operations as the input says, and fail when it says so. */
#include "tests/fuzz/fuzz.h"
#include "virtio/virtio.h"
#include <errno.h>

static struct {
	struct drv *t;
	unsigned operations; /* that the next flush takes */
	bool fails, under_way;
} file;

static int flush(void *ctx, struct loop_op *op, bool begin, int res)
{
	(void)ctx;
	cr_assert_eq(file.under_way, !begin, "one flush at a time");
	file.under_way = file.operations > 0;
	if (!file.operations)
		return file.fails ? -EIO : res < 0 ? res : 0;
	file.operations--;
	io_uring_prep_nop(loop_sqe(file.t->loop, op));
	return 1;
}

static int create(struct drv *t)
{
	/* What the host wants comes to the same, and is never under way when a flush begins. */
	struct virtio_pmem_config c = {GiB, 2 * MiB, flush, &file, flush};
	file.t = t;
	file.operations = 0;
	file.fails = file.under_way = false;
	return virtio_pmem_create(&t->dev, &t->env, &c);
}

static void own(struct drv *t, struct fuzz_in *in)
{
	unsigned shape = fuzz_u8(in);
	uint64_t request = 0x30000 + (shape >> 4) * 0x100u;
	uint32_t type = shape & 8 ? (uint32_t)fuzz_number(in) : 0;
	struct seg s[2] = {{request, 4, false}, {request + 0x80, 4, true}};
	if (shape & 4)
		s[fuzz_below(in, 2)].len = (uint32_t)fuzz_number(in);
	fake_put(&t->mem, request, &type, 4);
	if (!file.under_way)
		file.operations = shape & 3;
	unsigned how = fuzz_u8(in);
	file.fails = how & 1;
	if (how & 2)
		virtio_pmem_clean(t->dev);
	drv_add(t, 0, s, 2, 0);
	drv_kick(t, 0);
}

static void works(struct drv *t)
{
	struct seg s[2] = {{0x40000, 4, false}, {0x41000, 4, true}};
	uint32_t type = 0, answer = 7;
	file.operations = 2;
	file.fails = false;
	fake_put(&t->mem, 0x40000, &type, 4);
	fake_put(&t->mem, 0x41000, &answer, 4);
	drv_add(t, 0, s, 2, 0);
	drv_kick(t, 0);
	drv_wait(t, 0, NULL, NULL);
	fake_get(&t->mem, 0x41000, &answer, 4);
	cr_assert_eq(answer, 0, "a flush");
}

const struct fuzz_device fuzz_device = {.queues = 1, .create = create, .own = own, .works = works};
