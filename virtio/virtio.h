/*
 * virtio over MMIO (virtio 1.2, sections 2 and 4.2): what the VM's side sees of a device.
 *
 * A vCPU's MMIO exit goes to virtio_mmio_access on the vCPU's own thread; queues are processed on
 * the loop's thread. One mutex a device keeps the two apart; no code holds it while it waits for
 * I/O.
 */
#ifndef VIRTIO_VIRTIO_H
#define VIRTIO_VIRTIO_H

#include "virtio/gmem.h"
#include "virtio/loop.h"

#define VIRTIO_MMIO_SIZE 0x200 /* bytes of register window a device */

struct virtio_dev; /* a device with its transport */

/* What a device needs of its VM. All pointers outlive the device. */
struct virtio_env {
	struct gmem *gmem;
	struct loop *loop;
	/* Set the level of the device's interrupt line; any thread, device lock held. */
	void (*irq)(void *ctx, bool level);
	void *irq_ctx;
	/* One line about what a guest did wrong, or what failed on the host; any thread. */
	void (*say)(void *ctx, const char *line);
	void *say_ctx;
};

/* Register access by the guest: offset in the window, 1 to 8 bytes; every offset and length is safe
 * (what is no register reads as 0). Any vCPU thread. */
void virtio_mmio_access(struct virtio_dev *d, uint64_t offset, void *data, unsigned len,
			bool write);
/* The pool has frames again: go on with what stopped at -EAGAIN. Any thread. */
void virtio_retry(struct virtio_dev *d);
/* Stop the device, wait for its I/O in flight, free it. On a thread other than the loop's while the
 * loop runs, or on any after it stopped. */
void virtio_destroy(struct virtio_dev *d);
/* Device id (virtio 1.2 section 5) and a name for messages ("virtio-blk 0"). */
uint32_t virtio_id(const struct virtio_dev *d);

/* The devices. 0 or -errno. */

/* Bytes written by the guest go to `output` (any number of bytes, loop thread; if the sink is slow
 * it returns how many it took, and the device goes on after virtio_retry). Input by
 * virtio_console_input: returns how many bytes were taken (what the guest has room for, or a
 * bounded buffer of 4 KiB). */
typedef size_t virtio_console_out_fn(void *ctx, const char *bytes, size_t n);
int virtio_console_create(struct virtio_dev **out, const struct virtio_env *env,
			  virtio_console_out_fn *output, void *ctx);
size_t virtio_console_input(struct virtio_dev *d, const char *bytes, size_t n);

/* Entropy of getrandom(2). */
int virtio_rng_create(struct virtio_dev **out, const struct virtio_env *env);

/* A disk on a regular file or block device that is already open (fd is taken over on success).
 * Size in whole 512-byte sectors of the file's size. read_only: writes, discards and write-zeroes
 * are refused with an I/O error, and the feature bit says so. serial: at most 20 bytes, for GET_ID.
 */
struct virtio_blk_config {
	int fd;
	bool read_only;
	const char *serial;
};
int virtio_blk_create(struct virtio_dev **out, const struct virtio_env *env,
		      const struct virtio_blk_config *config);
struct virtio_blk_stats {
	uint64_t reads, writes, flushes, discards, errors;
	uint64_t bytes_read, bytes_written;
};
void virtio_blk_stats(struct virtio_dev *d, struct virtio_blk_stats *out);

#endif
