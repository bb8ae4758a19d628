/*
 * Per-VM radix tables: the other kind of forward map, laid out as the hardware's are. Four levels of
 * 512 eight-byte entries in 4 KiB pages, made as gfns are mapped and given back when the VM is reaped.
 * Its reverse map is the array.
 */
#ifndef IPT_RADIX_H
#define IPT_RADIX_H

#include "ipt/table.h"

#define RADIX_LEVELS  4
#define RADIX_BITS    9
#define RADIX_ENTRIES (1u << RADIX_BITS)
#define RADIX_PRESENT UINT64_C(1)
#define RADIX_SHIFT   12 /* an entry is frame (level 0) or table page << 12 | present */

typedef _Atomic uint64_t radix_entry;

static inline radix_entry *radix_page(const struct ipt *t, uint32_t page)
{
	return (radix_entry *)(t->forward + (t->layout.page_base - t->layout.forward) +
			       ((uint64_t)page << PAGE_SHIFT));
}

static inline unsigned radix_slot(uint64_t g, unsigned level)
{
	return (unsigned)(g >> (level * RADIX_BITS)) & (RADIX_ENTRIES - 1);
}

/* The frame that vm itself has at gfn g, or UINT32_MAX. No lock. vm is in the registry's range. */
static inline uint32_t radix_find(const struct ipt *t, uint32_t vm, uint64_t g)
{
	uint32_t page = load_acquire32(&t->vms[vm].radix_root);

	if (!page--)
		return UINT32_MAX;
	for (unsigned level = RADIX_LEVELS - 1;; level--) {
		uint64_t e = load_acquire64(&radix_page(t, page)[radix_slot(g, level)]);

		if (!(e & RADIX_PRESENT))
			return UINT32_MAX;
		page = (uint32_t)(e >> RADIX_SHIFT);
		if (level == 0)
			return page;
	}
}

/* radix_find for n keys, level by level, their memory accesses overlapped. Keys may be out of range, and
 * come out as UINT32_MAX. */
void radix_find_batch(struct ipt *t, const struct ipt_key *keys, frame_t *out, unsigned n);

/* As index_map and index_unmap; the gfns are in one group of 16. -ENOSPC when table pages run out. */
int radix_map(struct ipt *t, uint32_t vm, uint64_t g, uint32_t f, unsigned n);
unsigned radix_unmap(struct ipt *t, uint32_t vm, uint64_t g, unsigned n, uint32_t *frames);

/* See forward_move. */
int radix_move(struct ipt *t, uint32_t from, uint32_t to, uint64_t g, uint32_t f, unsigned n);

/* Give back all table pages of a VM that maps nothing any more. Takes the pages lock. */
void radix_drop(struct ipt *t, uint32_t vm);
/* With the stripe locked: drop what the array doesn't confirm from the tables of its VMs. */
void radix_rebuild(struct ipt *t, uint32_t s);

/* Call visit for every table page of a VM and every entry in level 0, the page's own first. */
typedef void radix_visit(void *ctx, uint32_t page, unsigned level, uint64_t g, radix_entry *entry);
void radix_walk(struct ipt *t, uint32_t vm, radix_visit *visit, void *ctx);

/* The pages lock, and the bitmap it protects: bit p set for a table page in use. */
void radix_pages_lock(struct ipt *t);
void radix_pages_unlock(struct ipt *t);
bool radix_page_used(struct ipt *t, uint32_t page);

#endif
