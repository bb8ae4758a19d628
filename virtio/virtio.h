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
	/* Set the level of the device's interrupt line; any thread, device lock held, so it may not
	 * call back into the device. Called only when the level changes; low at first. */
	void (*irq)(void *ctx, bool level);
	void *irq_ctx;
	/* One line about what a guest did wrong, or what failed on the host, without newline; any
	 * thread, device lock held. At most 17 a device in its life. */
	void (*say)(void *ctx, const char *line);
	void *say_ctx;
};

/* Register access by the guest: offset in the window, any length (KVM's are 1 to 8 bytes); every
 * offset and length is safe (what is no register reads as 0). Any vCPU thread. Returns at once,
 * but for a reset with I/O in flight: that waits for it. */
void virtio_mmio_access(struct virtio_dev *d, uint64_t offset, void *data, unsigned len,
			bool write);
/* The pool has frames again, or the console's sink takes bytes again: go on with what stopped. Any
 * thread. */
void virtio_retry(struct virtio_dev *d);
/* Take no more requests, and wait until none is in flight: what is done by then has been told to the driver.
 * Loop's thread (it handles completions of I/O meanwhile, nothing else), without vCPUs running. */
void virtio_pause(struct virtio_dev *d);
/* Go on; also in a process that was forked from one whose device was paused, with env's loop made anew. Raises
 * the interrupt line again where it was high. Any thread. */
void virtio_resume(struct virtio_dev *d);
/* Stop the device, wait for its I/O in flight, free it. On a thread other than the loop's while the
 * loop runs, or on any after it stopped; the vCPUs no longer access it. */
void virtio_destroy(struct virtio_dev *d);
/* Device id (virtio 1.2 section 5). */
uint32_t virtio_id(const struct virtio_dev *d);
/* What its messages begin with: "virtio-blk" and the serial, unless set otherwise (at most 39 bytes
 * are kept). Set it before the guest runs. */
const char *virtio_name(const struct virtio_dev *d);
void virtio_set_name(struct virtio_dev *d, const char *name);

/* The devices. 0 or -errno. */

/* Bytes written by the guest go to `output` (any number of bytes, loop thread, no lock held; if the
 * sink is slow it returns how many it took, and the device goes on after virtio_retry). Input by
 * virtio_console_input, any thread: returns how many bytes were taken (as many as a buffer of 4 KiB
 * has room for; what the guest doesn't take, before its driver is up for instance, stays there). */
typedef size_t virtio_console_out_fn(void *ctx, const char *bytes, size_t n);
int virtio_console_create(struct virtio_dev **out, const struct virtio_env *env,
			  virtio_console_out_fn *output, void *ctx);
size_t virtio_console_input(struct virtio_dev *d, const char *bytes, size_t n);
/* Have room(ctx) called on the loop's thread, without locks, when virtio_console_input took less
 * than it was given and would now take more. Set it before the guest runs. */
void virtio_console_on_room(struct virtio_dev *d, void (*room)(void *ctx), void *ctx);

/* Entropy of getrandom(2). */
int virtio_rng_create(struct virtio_dev **out, const struct virtio_env *env);

/* A disk on a regular file or block device that is already open (fd is taken over on success).
 * Size in whole 512-byte sectors of the file's size: -EINVAL if there is none, -ENOTBLK if fd is
 * neither, -EACCES if it isn't open for what is wanted. read_only: writes, discards and write-zeroes
 * are refused with an I/O error, and the feature bit says so. serial: at most 20 bytes, for GET_ID.
 * is_volatile: what was written and not flushed may be lost by virtio_blk_cut; not with read_only.
 */
struct virtio_blk_config {
	int fd;
	bool read_only, is_volatile;
	const char *serial;
};
int virtio_blk_create(struct virtio_dev **out, const struct virtio_env *env,
		      const struct virtio_blk_config *config);
/* Requests since the device was made; errors: those that the host failed, not those that the guest
 * got wrong. Write-zeroes count as writes, without bytes. */
struct virtio_blk_stats {
	uint64_t reads, writes, flushes, discards, errors;
	uint64_t bytes_read, bytes_written;
};
void virtio_blk_stats(struct virtio_dev *d, struct virtio_blk_stats *out);

/* Memory that a volatile disk's process may need for its cache. */
#define VIRTIO_BLK_CACHE_BYTES (32 * MiB)
/* A power cut: what becomes of writes that no flush made durable. */
struct virtio_blk_cut {
	enum { VIRTIO_BLK_LOSE_ALL, VIRTIO_BLK_LOSE_NONE, VIRTIO_BLK_LOSE_RANDOM } lose;
	/* RANDOM: the what-th number that goes with a sector, of 0 to below - 1; the same whenever it is asked for. */
	uint64_t (*draw)(void *ctx, uint64_t sector, unsigned what, uint64_t below);
	void *ctx;
};
struct virtio_blk_loss {
	uint64_t writes, bytes;           /* that were not flushed */
	uint64_t lost_writes, lost_bytes; /* of these: wholly or in part; in whole sectors */
	uint64_t evicted; /* writes that were durable without a flush, since the cache was full */
	int error;        /* -errno: something that was to be lost is in the file */
};
/* The file gets what a power cut leaves of it: all that was flushed, of the rest as `how` says. Of a disk that isn't
 * volatile nothing is lost, and *out is all zero. On the loop's thread, which handles nothing of the device from here
 * on. */
void virtio_blk_cut(struct virtio_dev *d, const struct virtio_blk_cut *how,
		    struct virtio_blk_loss *out);

/* Persistent memory: tells the driver that [start, start + bytes) of the guest's physical space is
 * such, and carries out its flushes. Both in whole pages, else -EINVAL. */
struct virtio_pmem_config {
	uint64_t start, bytes;
	/* Make durable what the guest has written: called with `begin`, and again with the result of
	 * each operation that it began for op (loop_sqe), one at a time. Returns 1 if it began one, 0
	 * if all is durable, -errno if it isn't (the guest gets an I/O error). A flush that has begun
	 * comes to its end before another begins. Loop thread, device lock held. NULL: nothing of it
	 * is durable, so that a flush has nothing to do. */
	int (*flush)(void *ctx, struct loop_op *op, bool begin, int res);
	void *ctx;
	/* The same for virtio_pmem_clean, which the guest hears nothing of: make a bounded part of it durable. 0 at once if
	 * there is nothing to do (any more), or not now. */
	int (*clean)(void *ctx, struct loop_op *op, bool begin, int res);
};
int virtio_pmem_create(struct virtio_dev **out, const struct virtio_env *env,
		       const struct virtio_pmem_config *config);
/* Requests since the device was made, flushes that answered them, and those that failed. */
struct virtio_pmem_stats {
	uint64_t requests, flushes, errors;
};
void virtio_pmem_stats(struct virtio_dev *d, struct virtio_pmem_stats *out);
/* The host wants something durable that the guest didn't ask for: `clean` is called, between the guest's flushes, until it
 * has nothing to do or fails. Also where no driver is up, and while the device stands still: who must be sure that nothing is
 * under way calls virtio_pause again. What is left when one begins to pause or reset the device is forgotten. Loop thread. */
void virtio_pmem_clean(struct virtio_dev *d);

/* Memory that the guest does without: by a balloon that it fills as large as it is told to, and what it reports as
 * free. */
#define VIRTIO_BALLOON_NUMBERS 10
struct virtio_balloon_stats {
	bool driver;  /* one is up */
	bool reports; /* and tells of its free pages */
	uint32_t target,
		actual; /* pages that the balloon is to hold, and does as the driver says */
	uint64_t inflated, deflated; /* pages so far */
	uint64_t reported;           /* bytes so far */
	uint64_t refused; /* pages of the balloon so far that are no memory of the VM's */
	uint32_t known;   /* bit i: number[i] is known */
	uint32_t times;   /* how often the driver sent them */
	uint64_t number[VIRTIO_BALLOON_NUMBERS]; /* by tag, virtio 1.2 section 5.5.6.4 */
};
struct virtio_balloon_config {
	/* The guest wants nothing any more of what is at [at, at + bytes), whole pages; what it reads there next
	 * is zeroes, or what was there. 0; -EFAULT if it isn't all memory of the VM's. Loop's thread, device lock
	 * held, so it may not call back into the device. */
	int (*give)(void *ctx, gpa_t at, uint64_t bytes);
	/* The balloon is as large as that, or its driver came, went, or sent numbers. Any thread, device lock held,
	 * as above. */
	void (*news)(void *ctx, const struct virtio_balloon_stats *now);
	void *ctx;
};
int virtio_balloon_create(struct virtio_dev **out, const struct virtio_env *env,
			  const struct virtio_balloon_config *config);
/* How many pages of 4 KiB it is to hold; the driver is told, now or when there is one. Any thread. */
void virtio_balloon_resize(struct virtio_dev *d, uint32_t pages);
/* Have the driver send its numbers anew, if it does such. Any thread. */
void virtio_balloon_ask(struct virtio_dev *d);
void virtio_balloon_stats(struct virtio_dev *d, struct virtio_balloon_stats *out);

#endif
