/*
 * Regions: gfns of a VM that are pages of a file, as far as neither the VM nor one below it in the lineage
 * has something of its own there. A region stays with the id it was made for, so a template's are its
 * descendants' by the lineage.
 */
#ifndef IPT_REGION_H
#define IPT_REGION_H

#include "ipt/table.h"

static inline struct region *region_of(const struct ipt *t, uint32_t vm)
{
	return &t->regions[(uint64_t)vm * IPT_MAX_REGIONS];
}

static inline uint32_t region_count(const struct ipt *t, uint32_t vm)
{
	return load_acquire8(&t->vms[vm].regions);
}

/* The file whose page gfn g of VM `at` is by a region of its own, and the page; 0 for none. */
static inline uint32_t region_find(const struct ipt *t, uint32_t at, uint64_t g, uint64_t *page)
{
	const struct region *r = region_of(t, at);

	for (uint32_t n = region_count(t, at); n--; r++) {
		uint64_t off = g - load_relaxed64(&r->first);

		if (off < load_relaxed64(&r->count)) {
			*page = load_relaxed64(&r->file_first) + off;
			return load_relaxed32(&r->file);
		}
	}
	return 0;
}

static inline bool region_covers(const struct ipt *t, uint32_t at, uint64_t g)
{
	uint64_t page;

	return region_find(t, at, g, &page) != 0;
}

/* ---- with the registry locked ---------------------------------------------------------------- */

/* Has a registered VM a region of the file? */
bool region_uses(struct ipt *t, uint32_t file);
/* Would VM `to` have room for the regions of `from` too? */
bool region_fits(const struct ipt *t, uint32_t from, uint32_t to);
/* Give `to`, behind its own, the regions of `from`, as far as it hasn't them. */
void region_inherit(struct ipt *t, uint32_t from, uint32_t to);

#endif
