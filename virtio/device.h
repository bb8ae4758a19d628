/*
 * Inside virtio/: what a device (console.c, rng.c, blk.c), its transport (mmio.c) and its queues
 * (queue.c) know of each other.
 *
 * Words, as virtio 1.2 has them: a *descriptor* names one buffer; a *chain* is the descriptors of
 * one request, first what the device reads, then what it writes; the driver offers chains in the
 * *available* ring and gets them back in the *used* ring. To *pop* a chain is to take it from the
 * available ring; it is then *in flight*, its memory pinned, until virtq_done.
 *
 * Locks: dev->lock protects everything here but the two atomics. Queues move on the loop's thread
 * only, with the lock held; guest memory is reached on the loop's thread only. Under the lock may
 * be taken: the loop's list lock, and whatever env's irq and say and gmem's operations take.
 *
 * Invariants
 *   D1  dev->pinned = the popped chains of all queues that virtq_done or virtq_unpop hasn't had, and what else the device
 *       is at that has to come to its end before it stands still (virtio_hold)
 *   D2  q->flight = q's part of dev->pinned + the length of q's `unsent` list <= q->num
 *   D3  a device that isn't live (virtio_live) pops nothing and writes to no used ring
 *   D4  the interrupt line is high if and only if irq_status isn't 0
 */
#ifndef VIRTIO_DEVICE_H
#define VIRTIO_DEVICE_H

#include "virtio/faults.h"
#include "virtio/virtio.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#define VIRTIO_QUEUES_MAX 5   /* of a device; the most any of ours has */
#define VIRTQ_NUM_MAX     128 /* QueueNumMax, descriptors, unless a device wants less */
#define VIRTQ_TABLE_MAX   256 /* descriptors of an indirect table */
/* Pieces a chain's buffers may come to in the pool: what one readv takes (IOV_MAX). */
#define VIRTQ_PIECES_MAX 1024
#define VIRTQ_BYTES_MAX  (4 * MiB) /* all buffers of a chain together */

struct virtq_chain {
	struct virtq *q;
	struct virtq_chain *next; /* in q's unsent list */
	uint16_t head;            /* its first descriptor */
	uint32_t written;         /* for the used ring, once it is done */
	/* iov[0..readable) is what the device reads, the `writable` pieces after it what it writes;
	 * pinned, and not to be changed, since unmap wants them back as they are. */
	int readable, writable;
	uint64_t read_bytes, write_bytes;
	struct iovec iov[];
};

struct virtq {
	struct virtio_dev *dev;
	unsigned index;
	uint16_t num; /* descriptors; a power of two, or 0 if the driver wrote nonsense */
	bool ready;
	/* Of buffers the device wants addresses alone: they are neither looked for nor pinned, of any length, and
	 * a chain's iov[] has guest physical addresses. The device sets it before it pops from the queue. */
	bool unmapped;
	uint64_t desc, avail, used; /* guest physical addresses */
	uint16_t avail_next;        /* the available entry to pop next */
	uint16_t avail_seen;        /* the driver's index, as last read */
	uint16_t used_next;
	uint16_t used_told; /* used_next when the driver was last told, or could have been */
	bool told_valid;    /* used_told is from since the queue became ready */
	uint16_t flight;    /* chains popped and not yet in the used ring */
	uint16_t budget;    /* chains that may still be popped in this turn */
	struct virtq_chain *unsent; /* done, but the used ring had no frame (-EAGAIN) */
	struct virtq_chain **unsent_end;
};

struct virtio_ops {
	/* Pop what can be popped from q. Loop thread, lock held (and may be let go meanwhile by
	 * someone who holds a popped chain). */
	void (*process)(struct virtio_dev *d, struct virtq *q);
	/* Forget the driver. Nothing is in flight. Lock held; any thread. NULL: nothing to do. */
	void (*reset)(struct virtio_dev *d);
	/* The driver wrote into config space: [offset, offset + len) lies within it. Lock held; any
	 * thread. NULL: ignore. */
	void (*config_write)(struct virtio_dev *d, unsigned offset, const uint8_t *data,
			     unsigned len);
	/* Free what is the device's own, and the device. */
	void (*destroy)(struct virtio_dev *d);
	/* The callback of its loop operations, if it has any. */
	loop_done_fn *io_done;
};

struct virtio_dev {
	const struct virtio_ops *ops;
	struct virtio_env env;
	uint32_t id;
	char name[40];
	uint64_t features; /* offered */
	unsigned queues;
	uint16_t queue_max;    /* QueueNumMax: VIRTQ_NUM_MAX, or set before virtio_init */
	const uint8_t *config; /* little-endian bytes */
	unsigned config_bytes;

	pthread_mutex_t lock;
	pthread_cond_t idle; /* pinned became 0 */
	struct virtq q[VIRTIO_QUEUES_MAX];
	unsigned pinned;
	uint64_t driver_features;
	uint32_t features_sel, driver_features_sel, queue_sel;
	uint32_t status, irq_status;
	uint32_t generation; /* of config space */
	unsigned draining;   /* threads that wait for pinned to become 0 */
	bool dying;
	bool paused;  /* pops nothing until virtio_resume */
	bool stalled; /* a pop or a used ring met -EAGAIN, or a console's sink was full */
	unsigned said;
	const struct virtio_faults *faults; /* NULL: none */

	/* any thread, no lock */
	atomic_uint notified; /* queues to look at, by bit */
	atomic_bool retry;
	struct loop_work work;
};

static inline bool virtio_has(const struct virtio_dev *d, unsigned feature)
{
	return d->driver_features >> feature & 1;
}

/* ---- mmio.c ------------------------------------------------------------------------------- */

/* Set up the transport's part of d (zeroed). */
int virtio_init(struct virtio_dev *d, const struct virtio_env *env, const struct virtio_ops *ops,
		uint32_t id, const char *name, uint64_t features, unsigned queues);
/* Undo virtio_init, at the end of ops->destroy. */
void virtio_fini(struct virtio_dev *d);
/* May the device work for the driver now? Lock held. */
bool virtio_live(const struct virtio_dev *d);
/* Have the loop look at queues (by bit). Any thread. */
void virtio_kick(struct virtio_dev *d, unsigned queues);
/* The device begins, and ends, work of its own on the loop. Lock held. */
void virtio_hold(struct virtio_dev *d);
void virtio_release(struct virtio_dev *d);
/* The driver broke the rules: say so, and stop until it resets the device. Lock held. */
void virtio_fail(struct virtio_dev *d, const struct virtq *q, const char *what);
/* One line through env->say, preceded by the device's name; not more than a few a device, since
 * guests can cause them at will. Lock held. */
void virtio_say(struct virtio_dev *d, const char *format, ...)
	__attribute__((format(printf, 2, 3)));
/* Tell the driver that used rings have moved. Lock held. */
void virtio_interrupt(struct virtio_dev *d);
/* The device has changed its config space: tell the driver, if there is one. Lock held. */
void virtio_config_changed(struct virtio_dev *d);

/* ---- queue.c ------------------------------------------------------------------------------ */
/* All on the loop's thread with the lock held, but for virtq_start and virtq_reset. */

/* What is wrong with the addresses the driver gave, or NULL and the queue is ready. */
const char *virtq_start(struct virtq *q);
/* Forget everything; none of its chains is pinned any more. */
void virtq_reset(struct virtq *q);
/* The next chain, or NULL: there is none, the turn's budget is spent, the pool has no frame (the
 * device is then marked stalled and comes back by virtio_retry), or the driver broke the rules
 * (virtio_fail). */
struct virtq_chain *virtq_pop(struct virtq *q);
/* Put c back as the next chain to pop, as if it had not been. c was the last one popped. */
void virtq_unpop(struct virtq_chain *c);
/* Give c back to the driver with `written` bytes written from the start of its writable part, and
 * interrupt it if it wants that. c is gone. */
void virtq_done(struct virtq_chain *c, uint32_t written);
/* Try again what is unsent. */
void virtq_send(struct virtq *q);

/* Copy to or from pieces, starting `skip` bytes in; returns how many bytes there were. */
size_t iov_read(const struct iovec *iov, int n, uint64_t skip, void *to, size_t len);
size_t iov_write(const struct iovec *iov, int n, uint64_t skip, const void *from, size_t len);

#endif
