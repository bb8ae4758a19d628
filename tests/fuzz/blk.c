/* virtio-blk on a file of 128 KiB, writable or (by the create's turn) read-only. */
#include "tests/fuzz/fuzz.h"
#include "virtio/virtio.h"
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SECTORS 256u

static int create(struct drv *t)
{
	struct virtio_blk_config c = {
		.fd = memfd_create("fuzz", MFD_CLOEXEC), .read_only = false, .serial = "fuzz"};
	cr_assert(c.fd >= 0 && ftruncate(c.fd, SECTORS * 512) == 0);
	return virtio_blk_create(&t->dev, &t->env, &c);
}

/* A request that is one, or nearly: header, data, status. */
static void own(struct drv *t, struct fuzz_in *in)
{
	static const uint32_t types[] = {0, 1, 4, 8, 11, 13, 2, 0x80000000};
	uint64_t header = 0x20000 + fuzz_u8(in) * 24u, data = fuzz_address(in);
	unsigned shape = fuzz_u8(in);
	uint32_t type = types[shape & 7], n = 512u * fuzz_below(in, 64);
	uint64_t sector = fuzz_number(in);
	drv_blk_header(t, header, type, sector);
	if (type == 11 || type == 13) { /* ranges: sector, sectors, flags */
		n = 16 * (1 + n / 512 % 17);
		for (uint32_t i = 0; i < n && data < FAKE_BYTES - n; i += 16) {
			struct {
				uint64_t sector;
				uint32_t sectors, flags;
			} range = {fuzz_number(in), (uint32_t)fuzz_number(in), fuzz_below(in, 4)};
			fake_put(&t->mem, data + i, &range, sizeof(range));
		}
	}
	struct seg s[3] = {
		{header, 16, false}, {data, n, type == 0 || type == 8}, {0x30000, 1, true}};
	if (shape & 8)
		s[fuzz_below(in, 3)].len = (uint32_t)fuzz_number(in);
	if (shape & 16)
		s[fuzz_below(in, 3)].write ^= true;
	unsigned from = shape >> 5 & 1;
	drv_add(t, 0, s + from, 3 - from, shape & 0x40 ? 0x38000 : 0);
	drv_kick(t, 0);
}

static void works(struct drv *t)
{
	cr_assert_eq(drv_blk(t, 1, 3, 0x40000, 1024), 0, "a write");
	cr_assert_eq(drv_blk(t, 0, 3, 0x50000, 1024), 0, "a read");
	cr_assert_eq(drv_blk(t, 0, SECTORS - 1, 0x50000, 1024), 1, "a read past the end");
}

const struct fuzz_device fuzz_device = {.queues = 1, .create = create, .own = own, .works = works};
