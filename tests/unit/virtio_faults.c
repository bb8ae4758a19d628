/* Injected faults of devices: what the driver and the file get to see. */
#include "virtio/faults.h"
#include "virtio_fake.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <linux/virtio_mmio.h>
#include <linux/virtio_ring.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { IN, OUT, FLUSH = 4 };
enum { OK, IOERR, UNSUPP };

#define DATA    0x100000u
#define SECTORS 4096u

struct plan {
	struct virtio_disk_fault fault;
	unsigned asked;
	enum virtio_disk_op op;
	uint64_t at, bytes;
	enum virtio_irq_fault irq;
};

static void on_disk(void *ctx, struct virtio_dev *d, enum virtio_disk_op op, uint64_t at,
		    uint64_t bytes, struct virtio_disk_fault *out)
{
	struct plan *p = ctx;
	(void)d;
	p->asked++;
	p->op = op;
	p->at = at;
	p->bytes = bytes;
	*out = p->fault;
}

static enum virtio_irq_fault on_interrupt(void *ctx, struct virtio_dev *d)
{
	const struct plan *p = ctx;
	(void)d;
	return p->irq;
}

static struct plan plan;
static const struct virtio_faults faults = {on_disk, on_interrupt, &plan};

static int begin_with(struct drv *t, uint64_t features)
{
	int fd = temp_file(SECTORS * 512, true);
	plan = (struct plan){.asked = 0};
	drv_init(t);
	struct virtio_blk_config c = {.fd = dup(fd), .read_only = false, .serial = "serial"};
	cr_assert_eq(virtio_blk_create(&t->dev, &t->env, &c), 0);
	drv_start(t, features, 1);
	virtio_set_faults(t->dev, &faults);
	return fd;
}

static int begin(struct drv *t)
{
	return begin_with(t, UINT64_MAX);
}

static uint8_t file_byte(int fd, uint64_t at)
{
	uint8_t b = 0;
	cr_assert_eq(pread(fd, &b, 1, (off_t)at), 1);
	return b;
}

Test(virtio_faults, a_request_fails_and_nothing_is_done)
{
	struct drv t;
	int fd = begin(&t);
	uint8_t zeroes[4096] = {0};
	fake_put(&t.mem, DATA, zeroes, sizeof zeroes);
	cr_assert_eq(drv_blk(&t, OUT, 8, DATA, 4096), OK);
	cr_assert(plan.asked == 1 && plan.op == VIRTIO_DISK_WRITE && plan.at == 4096 &&
		  plan.bytes == 4096);
	plan.fault.status = VIRTIO_DISK_EIO;
	cr_assert_eq(drv_blk(&t, OUT, 16, DATA, 4096), IOERR);
	cr_assert_eq(file_byte(fd, 16 * 512), fill_byte(16 * 512), "nothing was written");
	cr_assert_eq(drv_blk(&t, IN, 16, DATA, 512), IOERR);
	cr_assert_eq(drv_blk(&t, FLUSH, 0, DATA, 0), IOERR);
	cr_assert_eq(plan.op, VIRTIO_DISK_FLUSH);
	plan.fault.status = VIRTIO_DISK_UNSUPPORTED;
	cr_assert_eq(drv_blk(&t, IN, 16, DATA, 512), UNSUPP);
	virtio_set_faults(t.dev, NULL);
	cr_assert_eq(drv_blk(&t, IN, 16, DATA, 512), OK);
	cr_assert_eq(plan.asked, 5, "out of bounds, or nobody's business");
	drv_fini(&t);
	close(fd);
}

Test(virtio_faults, a_torn_write_leaves_its_first_sectors)
{
	struct drv t;
	int fd = begin(&t);
	uint8_t zeroes[8192] = {0};
	fake_put(&t.mem, DATA, zeroes, sizeof zeroes);
	for (unsigned keep = 0; keep < 20; keep += 3) {
		for (unsigned told = 0; told < 2; told++) {
			uint64_t sector = 64 * keep + 32 * told, real = keep < 15 ? keep : 15;
			plan.fault = (struct virtio_disk_fault){.torn = true,
								.sectors = keep,
								.status = told ? VIRTIO_DISK_EIO
									       : VIRTIO_DISK_OK};
			cr_assert_eq(drv_blk(&t, OUT, sector, DATA, 8192), told ? IOERR : OK);
			for (unsigned i = 0; i < 16; i++)
				cr_assert_eq(file_byte(fd, (sector + i) * 512 + 7),
					     i < real ? 0 : fill_byte((sector + i) * 512 + 7),
					     "sector %u of a write torn after %u", i, keep);
		}
	}
	drv_fini(&t);
	close(fd);
}

static double seconds(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

Test(virtio_faults, a_request_comes_late)
{
	struct drv t;
	int fd = begin(&t);
	plan.fault.delay_ms = 200;
	double began = seconds();
	cr_assert_eq(drv_blk(&t, IN, 16, DATA, 512), OK);
	cr_assert_geq(seconds() - began, 0.2);
	uint8_t b;
	fake_get(&t.mem, DATA + 9, &b, 1);
	cr_assert_eq(b, fill_byte(16 * 512 + 9), "and has what was asked for");
	plan.fault.status = VIRTIO_DISK_EIO;
	began = seconds();
	cr_assert_eq(drv_blk(&t, IN, 16, DATA, 512), IOERR);
	cr_assert_geq(seconds() - began, 0.2);
	drv_fini(&t); /* asserts that nothing is pinned */
	close(fd);
}

Test(virtio_faults, an_interrupt_is_lost_or_late)
{
	struct drv t;
	int fd = begin_with(&t, ~(UINT64_C(1) << VIRTIO_RING_F_EVENT_IDX));
	cr_assert_eq(drv_blk(&t, IN, 16, DATA, 512), OK);
	cr_assert(t.irq, "as it should be");
	drv_wr(&t, VIRTIO_MMIO_INTERRUPT_ACK, 3);
	cr_assert(!t.irq);
	plan.irq = VIRTIO_IRQ_DROP;
	cr_assert_eq(drv_blk(&t, IN, 16, DATA, 512), OK);
	cr_assert(!t.irq, "it was dropped");
	plan.irq = VIRTIO_IRQ_TELL;
	cr_assert_eq(drv_blk(&t, IN, 16, DATA, 512), OK);
	cr_assert(t.irq, "the next one comes");
	drv_wr(&t, VIRTIO_MMIO_INTERRUPT_ACK, 3);
	plan.irq = VIRTIO_IRQ_LATER;
	cr_assert_eq(drv_blk(&t, IN, 16, DATA, 512), OK);
	cr_assert(!t.irq);
	virtio_interrupt_now(t.dev);
	cr_assert(t.irq);
	drv_reset(&t);
	cr_assert(!t.irq);
	virtio_interrupt_now(t.dev);
	cr_assert(!t.irq, "the driver is gone");
	drv_fini(&t);
	close(fd);
}

/* The driver says by an index which answer it wants to hear of. The device has said that one, in vain; it says the next
 * one too. */
Test(virtio_faults, after_a_lost_interrupt_the_next_one_comes)
{
	struct drv t;
	int fd = begin(&t);
	plan.irq = VIRTIO_IRQ_DROP;
	cr_assert_eq(drv_blk(&t, IN, 16, DATA, 512), OK);
	cr_assert(!t.irq);
	plan.irq = VIRTIO_IRQ_TELL;
	cr_assert_eq(drv_blk(&t, IN, 16, DATA, 512), OK);
	cr_assert(t.irq);
	drv_wr(&t, VIRTIO_MMIO_INTERRUPT_ACK, 3);
	cr_assert_eq(drv_blk(&t, IN, 16, DATA, 512), OK);
	cr_assert(!t.irq, "this driver wanted to hear of the first alone");
	drv_fini(&t);
	close(fd);
}
