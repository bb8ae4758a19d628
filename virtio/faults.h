/*
 * Faults that somebody who tests his guest wants its devices to have (docs/FAULTS.md). A device has none until it is
 * given these; then it asks here, with its lock held, what is to go wrong. Without them that costs a look at a pointer.
 */
#ifndef VIRTIO_FAULTS_H
#define VIRTIO_FAULTS_H

#include <stdbool.h>
#include <stdint.h>

struct virtio_dev;

enum virtio_disk_op { VIRTIO_DISK_READ, VIRTIO_DISK_WRITE, VIRTIO_DISK_FLUSH };

/* What is to become of a disk's request; all zero: nothing out of the ordinary. */
struct virtio_disk_fault {
	uint32_t delay_ms; /* it is begun only then; at most VIRTIO_FAULT_MS */
	bool torn;         /* a write: only `sectors` of it, less than it has, reach the file */
	uint32_t sectors;
	enum {
		VIRTIO_DISK_OK,
		VIRTIO_DISK_EIO,
		VIRTIO_DISK_UNSUPPORTED
	} status; /* what the guest
		is told; of others than torn writes nothing is done then */
};
#define VIRTIO_FAULT_MS 10000

enum virtio_irq_fault { VIRTIO_IRQ_TELL, VIRTIO_IRQ_DROP, VIRTIO_IRQ_LATER };

struct virtio_faults {
	/* A request of the disk that is in bounds is about to be begun: `bytes` from byte `at` on (a flush: all). Loop's
	 * thread. */
	void (*disk)(void *ctx, struct virtio_dev *d, enum virtio_disk_op op, uint64_t at,
		     uint64_t bytes, struct virtio_disk_fault *out);
	/* The driver is about to be interrupted, since used rings have moved. LATER: who says so calls
	 * virtio_interrupt_now when it is time. Loop's thread: used rings move only there. */
	enum virtio_irq_fault (*interrupt)(void *ctx, struct virtio_dev *d);
	void *ctx;
};

/* NULL: none any more. The struct stays the caller's. Any thread. */
void virtio_set_faults(struct virtio_dev *d, const struct virtio_faults *f);
/* The interrupt that was to come later. Any thread, without the device's lock. */
void virtio_interrupt_now(struct virtio_dev *d);

#endif
