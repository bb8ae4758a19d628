/*
 * A VM's pages going out of memory (evict.c) and coming back (fetch.c). docs/RECLAIM.md has the whole. All with
 * memory.lock held.
 */
#ifndef VMM_EVICT_H
#define VMM_EVICT_H

#include "vmm/memory.h"

/* What became of pages; added to. */
struct evict_count {
	uint32_t freed;        /* frames */
	uint32_t out, zero;    /* of them: to the store; nothing but zeroes */
	uint32_t in_file;      /* of `out`: in the swap file, as they are */
	uint64_t packed_bytes; /* of the others */
	uint32_t refused;      /* pinned, not ours, or: */
	uint32_t full, errors; /* times that the store had no room, or failed */
};

/* Take up to n pages, of first's group of 16 and as far as they lie at frames of our own that follow each other, out of
 * memory. 0, whatever became of them; -errno if the window is not what the table says any more, and the VM can't go
 * on. */
int memory_evict(struct memory *m, gfn_t first, uint32_t n, struct evict_count *c);
/* Register a private piece for userfaults and take it out of the host's page tables. -EBUSY: it can't be. */
int memory_hide(struct memory *m, gfn_t first, uint32_t n);
/* Did a page of first's group of 16 go out within the last RECLAIM_SOON_S seconds? */
#define RECLAIM_SOON_S 10
bool memory_went_lately(const struct memory *m, gfn_t first);
/* Write to the swap file, or read from it, those of n pages, 16 at the most, that it has as `out` says. The process's way to it is
 * made when it is first needed. Errors of store_io_create, store_file_write, store_file_read. */
int memory_file_io(struct memory *m, bool write, const struct ipt_out *out,
		   uint8_t (*page)[PAGE_SIZE], uint32_t n);

/* Give back the room for pages on their way out, and in. */
void evict_rest(void);
void fetch_rest(void);

/* Bring the page at g, which is away, back, with its neighbours: as our own, mapped, or as the template's whose it is,
 * not mapped yet. 0; -EAGAIN: no frame; -EEXIST: it became
 * something else meanwhile, look again; -EIO and the like, -EBADMSG: its bytes can't be had; the page stays where it
 * is. */
int memory_fetch(struct memory *m, gfn_t g);

#endif
