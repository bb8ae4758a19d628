/*
 * Where frames' bytes are. Each sharing domain (host_domain.h) has a file of its own, a memfd as large as the whole pool,
 * in which frame f is the page at f * 4 KiB; it has memory only where it was written. A frame's bytes are in the file of
 * its owner's domain, and in no other, as it is punched out of that before it becomes free. So frame numbers, the table and
 * the allocator know nothing of domains, and a VM's process, which has its domain's file alone, can't reach the others'
 * bytes, whatever it or the table says.
 */
#ifndef VMM_POOL_H
#define VMM_POOL_H

#include "ipt/addr.h"
#include <stdbool.h>
#include <stddef.h>

struct pool {
	int fd;
	uint8_t *base; /* NULL: not mapped in this process */
	uint32_t frames;
};

/* Make a file for `frames` frames. -errno of memfd_create or ftruncate, with words. */
int pool_create(struct pool *p, uint32_t frames, char *error);
/* The file that fd is, of so many frames; takes fd. -errno; -EPROTO: it is no such file. */
int pool_attach(struct pool *p, int fd, uint32_t frames);
/* Map it whole, for this process and those that it forks. -errno with words. */
int pool_map(struct pool *p, char *error);
/* The same for this process alone, if it isn't mapped yet. */
int pool_map_alone(struct pool *p, char *error);
void pool_destroy(struct pool *p);

/* The bytes of a frame. Precondition: f < frames, mapped. */
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

/* Has the frame memory here? One that nobody ever wrote to has none, and reads as zero. */
bool pool_has(const struct pool *p, frame_t f);
/* Bytes that have host memory behind them here now. */
uint64_t pool_populated_bytes(const struct pool *p);

#endif
