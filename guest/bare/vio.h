/*
 * A driver's side of virtio over MMIO (virtio 1.2, sections 2.7 and 4.2), by polling: split queues,
 * a batch of requests at a time. Interrupts only end a rest at the idle port, where they are asked for.
 */
#ifndef BARE_VIO_H
#define BARE_VIO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define VIO_ID_BLK     2
#define VIO_ID_CONSOLE 3
#define VIO_ID_RNG     4
#define VIO_ID_BALLOON 5
#define VIO_ID_PMEM    27

#define VIO_F_VERSION_1 (UINT64_C(1) << 32)

#define VIO_QUEUE_MAX 32

struct vio_desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags, next;
};

struct vio_avail {
	uint16_t flags, idx, ring[VIO_QUEUE_MAX], used_event;
};

struct vio_used {
	uint16_t flags, idx;
	struct {
		uint32_t id, len;
	} ring[VIO_QUEUE_MAX];
	uint16_t avail_event;
};

struct vio_queue {
	struct vio_desc desc[VIO_QUEUE_MAX] __attribute__((aligned(16)));
	struct vio_avail avail __attribute__((aligned(2)));
	struct vio_used used __attribute__((aligned(4)));
	uint64_t regs;
	uint16_t number, size; /* which queue of the device, and its descriptors */
	uint16_t filled;       /* descriptors used by the batch */
	uint16_t seen;         /* of used.idx */
};

/* A piece of memory in a request. Those that the device writes come last. */
struct vio_piece {
	const void *at;
	uint32_t len;
	bool device_writes;
};

/* Registers of the k-th device of a kind, in address order; 0 if there is none. */
uint64_t vio_find(uint32_t id, unsigned k);
/* Reset the device and negotiate `want` of what it offers (with VERSION_1 always): the features
 * agreed on are left in *features. NULL, or what went wrong. Then set up the queues and vio_go. */
const char *vio_open(uint64_t regs, uint64_t want, uint64_t *features);
const char *vio_queue_open(struct vio_queue *q, uint64_t regs, uint16_t number);
/* Should the device raise its interrupt when it has used a request of this queue? Not at first. */
void vio_interrupts(struct vio_queue *q, bool on);
/* Would vio_poll find something? */
bool vio_pending(const struct vio_queue *q);
/* Take back the device's interrupt if it stands. */
void vio_acknowledge(uint64_t regs);
void vio_go(uint64_t regs);
/* Stop using the device. */
void vio_close(uint64_t regs);
uint64_t vio_offered(uint64_t regs);
uint8_t vio_config8(uint64_t regs, unsigned offset);
uint32_t vio_config32(uint64_t regs, unsigned offset);
void vio_config_write32(uint64_t regs, unsigned offset, uint32_t v);
uint64_t vio_config64(uint64_t regs, unsigned offset);

/* Forget the last batch, all of which has been used. */
void vio_begin(struct vio_queue *q);
/* A request of n pieces: its id (descriptor of its first piece). The queue must have room. */
uint16_t vio_add(struct vio_queue *q, const struct vio_piece *piece, unsigned n);
void vio_kick(struct vio_queue *q);
/* Has the device used another request? Its id and how many bytes it wrote. */
bool vio_poll(struct vio_queue *q, uint32_t *id, uint32_t *len);
/* Wait for another; false after half a minute. */
bool vio_wait(struct vio_queue *q, uint32_t *id, uint32_t *len);

#endif
