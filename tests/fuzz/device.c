/*
 * A virtio device behind its registers, with a driver that does what the input says: registers in any order and
 * width, rings of any contents, memory that fails. What must hold: no fault (the sanitizers', and guest memory is
 * poisoned where it isn't pinned), turns of bounded work, nothing pinned after a reset, few lines said, and a device
 * that works after a reset.
 */
#include "tests/fuzz/fuzz.h"
#include "virtio/virtio.h"
#include <errno.h>
#include <linux/virtio_mmio.h>
#include <linux/virtio_ring.h>
#include <string.h>

/* Where a step's maps may end: a ring's worth of chains, each of as many buffers as a chain may have. */
#define MAPS_MAX (2 * DRV_NUM * 400ul)

static struct drv drv;

enum op {
	START,
	REGISTER,
	ACCESS,
	CHAIN,
	DESCRIPTOR,
	ENTRY,
	INDEX,
	BYTES,
	KICK,
	STEP,
	FAIL,
	OWN,
	RESTART,
	RETRY,
	PAUSE,
	OPS
};

uint64_t fuzz_address(struct fuzz_in *in)
{
	unsigned page = fuzz_u8(in);
	if (page >= 0xc0)
		return fuzz_number(in);
	return 0x20000 + page * PAGE_SIZE + fuzz_u8(in) * 16u;
}

static void before(struct drv *t)
{
	if (fuzz_device.before)
		fuzz_device.before(t);
}

static void start(struct drv *t, uint64_t mask)
{
	before(t);
	drv_start(t, mask, fuzz_device.queues);
}

static void access_register(struct drv *t, struct fuzz_in *in, bool known)
{
	static const uint16_t offsets[] = {0x10, 0x14, 0x20, 0x24, 0x30, 0x34, 0x38,  0x44,
					   0x50, 0x60, 0x64, 0x70, 0x80, 0x84, 0x90,  0x94,
					   0xa0, 0xa4, 0xb0, 0xfc, 0x0,  0x8,  0x100, 0x120};
	uint8_t data[16] = {0};
	uint64_t offset, v;
	unsigned len = 4;
	bool write = true;
	if (known) {
		offset = offsets[fuzz_below(in, sizeof(offsets) / sizeof(offsets[0]))];
	} else {
		offset = fuzz_u16(in);
		len = fuzz_below(in, 32);
		write = len < 16;
		len %= 16;
	}
	v = fuzz_number(in);
	memcpy(data, &v, sizeof(v));
	if (write)
		before(t);
	virtio_mmio_access(t->dev, offset, data, len, write);
}

static void put_descriptor(struct drv *t, struct fuzz_in *in, unsigned q)
{
	uint64_t at = t->q[q].desc + 16 * fuzz_below(in, DRV_NUM);
	struct vring_desc d = {.addr = fuzz_address(in), .len = (uint32_t)fuzz_number(in)};
	unsigned table = fuzz_u8(in);
	if (table >= 0x80) /* of an indirect table */
		at = 0x20000 + table % 16 * 16;
	d.flags = fuzz_u8(in);
	d.next = (uint16_t)fuzz_number(in);
	fake_put(&t->mem, at, &d, sizeof(d));
}

static void make_chain(struct drv *t, struct fuzz_in *in, unsigned q)
{
	struct seg s[8];
	unsigned shape = fuzz_u8(in), n = 1 + shape % 8;
	uint8_t writes = fuzz_u8(in);
	for (unsigned i = 0; i < n; i++)
		s[i] = (struct seg){fuzz_address(in), (uint32_t)fuzz_number(in), writes >> i & 1};
	uint64_t table = shape & 0x80 ? 0x20000 + (shape >> 3 & 7) * 256 : 0;
	uint16_t at = drv_add(t, q, s, n, table);
	if (fuzz_below(in, 4) == 3) { /* one of its descriptors goes astray */
		unsigned i = fuzz_below(in, n);
		uint16_t wrong[2] = {fuzz_u8(in), (uint16_t)fuzz_number(in)};
		at = (uint16_t)((at + i) & (t->q[q].num - 1));
		fake_put(&t->mem, (table ? table + 16 * i : t->q[q].desc + 16 * at) + 12, wrong,
			 sizeof(wrong));
	}
	if (!(shape & 0x40))
		drv_kick(t, q);
}

static void step(struct drv *t)
{
	uint64_t maps = t->mem.maps;
	cr_assert_eq(loop_step(t->loop, NULL, 0), 0);
	cr_assert_lt(t->mem.maps - maps, MAPS_MAX, "a turn without end");
}

static void run_one(struct drv *t, struct fuzz_in *in)
{
	static const int errors[] = {-EAGAIN, -EFAULT, -ENOBUFS, -EOVERFLOW};
	enum op op = fuzz_below(in, OPS);
	unsigned i = fuzz_below(in, fuzz_device.queues);
	struct drv_queue *q = &t->q[i];
	const uint8_t *bytes;
	size_t n;
	switch (op) {
	case START:
		t->mem.fail = 0;
		start(t, fuzz_take(in, 5));
		break;
	case REGISTER:
		access_register(t, in, true);
		break;
	case ACCESS:
		access_register(t, in, false);
		break;
	case CHAIN:
		make_chain(t, in, i);
		break;
	case DESCRIPTOR:
		put_descriptor(t, in, i);
		break;
	case ENTRY: {
		uint16_t head = (uint16_t)fuzz_number(in);
		fake_put(&t->mem, q->avail + 4 + 2 * fuzz_below(in, DRV_NUM), &head, 2);
		break;
	}
	case INDEX:
		q->avail_idx = (uint16_t)(q->avail_idx + fuzz_number(in));
		fake_store16(&t->mem, q->avail + 2, q->avail_idx);
		break;
	case BYTES: { /* also into the rings */
		uint64_t at = fuzz_u8(in);
		at = at >= 0x80 ? 0x1000 + (at & 15) * 0x1000 + fuzz_u8(in) * 4
				: 0x20000 + at * 0x1000;
		bytes = fuzz_bytes(in, 64, &n);
		fake_put(&t->mem, at, bytes, n);
		break;
	}
	case KICK:
		drv_kick(t, i);
		break;
	case STEP:
		step(t);
		break;
	case FAIL:
		t->mem.skip = fuzz_u8(in);
		t->mem.fail = fuzz_below(in, 8);
		t->mem.error = errors[fuzz_below(in, 4)];
		break;
	case OWN:
		if (fuzz_device.own)
			fuzz_device.own(t, in);
		break;
	case RESTART:
		t->mem.fail = 0;
		start(t, UINT64_MAX);
		break;
	case RETRY:
		virtio_retry(t->dev);
		step(t);
		break;
	case PAUSE:
		before(t);
		virtio_pause(t->dev);
		cr_assert_eq(atomic_load(&t->mem.pinned), 0, "pages stay pinned in a pause");
		step(t);
		atomic_store(&t->irq, false); /* as for a new VM, whose lines are low */
		virtio_resume(t->dev);
		break;
	case OPS:
		break;
	}
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	drv_init(&drv);
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct drv *t = &drv;
	struct fuzz_in in = {data, size};
	atomic_store(&t->said, 0);
	atomic_store(&t->irq, false);
	t->mem.skip = t->mem.fail = 0;
	cr_assert_eq(fuzz_device.create(t), 0);
	start(t, UINT64_MAX);
	for (unsigned ops = 0; in.left && ops < 300; ops++)
		run_one(t, &in);
	t->mem.skip = t->mem.fail = 0;
	before(t);
	drv_reset(t);
	start(t, UINT64_MAX);
	fuzz_device.works(t);
	before(t);
	drv_reset(t);
	cr_assert_leq(atomic_load(&t->said), 17);
	virtio_destroy(t->dev);
	t->dev = NULL;
	fake_wipe(&t->mem);
	return 0;
}
