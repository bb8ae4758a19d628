/*
 * The pool: one memfd whose 4 KiB pages are the machine's frames, mapped whole into every process
 * that may touch frames. A page costs host memory only once it was written.
 */
#ifndef VMM_POOL_H
#define VMM_POOL_H

#include "ipt/addr.h"
#include <stddef.h>

struct pool {
	int fd;
	uint8_t *base;
	uint32_t frames;
};

/* Make a pool of `frames` pages. -errno of memfd_create, ftruncate or mmap, with words. */
int pool_create(struct pool *p, uint32_t frames, char *error);
/* The pool that fd holds, of so many frames; takes fd. -errno; -EPROTO: it is no such pool. */
int pool_attach(struct pool *p, int fd, uint32_t frames);
void pool_destroy(struct pool *p);

/* The bytes of a frame. Precondition: f < frames. */
static inline void *pool_at(const struct pool *p, frame_t f)
{
	return p->base + ((size_t)f.v << PAGE_SHIFT);
}

/* The frame that holds the byte at `at`, which must lie in the pool. */
static inline frame_t pool_frame(const struct pool *p, const void *at)
{
	return frame((uint32_t)(((uintptr_t)at - (uintptr_t)p->base) >> PAGE_SHIFT));
}

/* Make frames read as zero and give their memory back to the host (hole punch). An ipt_clean_fn
 * with the pool as its context. -errno of fallocate. */
int pool_clean(void *pool, frame_t first, uint32_t count);

/* Give frames that have no host memory some, of zeroes; others stay as they are. -errno of fallocate. */
int pool_fill(const struct pool *p, frame_t first, uint32_t count);

/* Give back the page tables of this process's own view of the pool (not its window's); it stays where it is, and other
 * threads may be using it. -errno of mmap. */
int pool_rest(const struct pool *p);

/* Bytes of the pool that have host memory behind them now. */
uint64_t pool_populated_bytes(const struct pool *p);

#endif
