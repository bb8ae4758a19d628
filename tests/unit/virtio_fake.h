/*
 * A stand-in for a VM: guest memory in a plain array, its pages scattered so that a buffer of two
 * pages is never one piece, pins counted; and a small virtio driver that talks to a device through
 * its registers and rings alone.
 */
#ifndef TESTS_VIRTIO_FAKE_H
#define TESTS_VIRTIO_FAKE_H

#include "virtio/virtio.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define FAKE_PAGES 1024u /* 4 MiB, a power of two */
#define FAKE_BYTES (FAKE_PAGES * PAGE_SIZE)

/* A generator with a seed of its own (splitmix64), so that a run can be had again. */
struct rnd {
	uint64_t state;
};
uint64_t rnd64(struct rnd *r);
uint32_t rnd_below(struct rnd *r, uint32_t n);
bool rnd_one_in(struct rnd *r, uint32_t n);

struct fake {
	struct gmem gmem; /* must be first */
	uint8_t *pool;
	uint16_t place[FAKE_PAGES]; /* guest page to page of the pool */
	atomic_int pins[FAKE_PAGES];
	atomic_int pinned;               /* sum of pins */
	atomic_bool written[FAKE_PAGES]; /* guest pages that may be other than zero */
	/* The next `skip` maps work, the `fail` after them return `error`. */
	int skip, fail, error;
	struct rnd *chaos; /* if set, one in `odds` maps fails with EAGAIN, or rarely EFAULT */
	uint32_t odds;
	uint64_t maps;
};
void fake_init(struct fake *f);
void fake_fini(struct fake *f); /* asserts that nothing is pinned */
void fake_wipe(struct fake *f); /* the same, and all of it reads as zero again */
void fake_put(struct fake *f, uint64_t at, const void *from, size_t n);
void fake_get(struct fake *f, uint64_t at, void *to, size_t n);
uint16_t fake_load16(struct fake *f, uint64_t at);
void fake_store16(struct fake *f, uint64_t at, uint16_t v);

#define DRV_NUM 128

struct drv_queue {
	uint64_t desc, avail, used;
	uint16_t num;
	uint16_t avail_idx, used_seen;
	uint16_t next_desc; /* direct descriptors are handed out in turn */
};

/* One buffer of a request. */
struct seg {
	uint64_t at;
	uint32_t len;
	bool write;
};

struct drv {
	struct fake mem;
	struct loop *loop;
	struct virtio_dev *dev;
	struct virtio_env env;
	pthread_t thread; /* of the loop, if drv_thread was called */
	bool threaded;
	atomic_bool irq;
	atomic_int irqs, said;
	char line[256]; /* the last one said */
	uint64_t features;
	struct drv_queue q[5];
};

/* Make everything but the device, which the caller makes with t->env. */
void drv_init(struct drv *t);
/* Destroy the device, the loop and the memory. */
void drv_fini(struct drv *t);
/* Run the loop on a thread of its own from here on; drv_step then only waits a little. */
void drv_thread(struct drv *t);
void drv_step(struct drv *t, int ms);
uint32_t drv_rd(struct drv *t, uint64_t offset);
void drv_wr(struct drv *t, uint64_t offset, uint32_t v);
/* Negotiate (what is offered and in `mask`), set up `queues` and go to DRIVER_OK. */
void drv_start(struct drv *t, uint64_t mask, unsigned queues);
void drv_reset(struct drv *t); /* asserts that nothing stays pinned */
/* Make a chain available; returns its head. With `table` not 0 an indirect table is put there. */
uint16_t drv_add(struct drv *t, unsigned q, const struct seg *s, unsigned n, uint64_t table);
void drv_kick(struct drv *t, unsigned q);
/* Is there a used chain? Takes it. */
bool drv_used(struct drv *t, unsigned q, uint16_t *id, uint32_t *len);
/* Wait for one; fails the test after some seconds. */
void drv_wait(struct drv *t, unsigned q, uint16_t *id, uint32_t *len);

/* A disk request, all in one: type, sector, data at `at`. Returns the status byte. */
uint8_t drv_blk(struct drv *t, uint32_t type, uint64_t sector, uint64_t at, uint32_t bytes);
void drv_blk_header(struct drv *t, uint64_t at, uint32_t type, uint64_t sector);

/* An unlinked temporary file of `bytes`, byte i being fill_byte(i); in memory (tmpfs) or on disk. */
int temp_file(uint64_t bytes, bool in_memory);
static inline uint8_t fill_byte(uint64_t i)
{
	return (uint8_t)(i * 7 + i / 251 + 1);
}

#endif
