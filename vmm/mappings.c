/*
 * How many mappings a window may get for the sake of saving memory. Taking pages away from the midst of a mapping costs
 * two more, and a process may have only so many (vm.max_map_count), which faults need too. What costs none may always
 * be done: in a window that came to its limit nearly all is in pieces, so that reclaim goes on there.
 */
#include "vmm/memory.h"

#define MAPPINGS_MOST  32768 /* of a window */
#define MAPPINGS_SHORT 16    /* shorter runs than this are refused from three quarters of it on */
#define COUNT_EVERY    2048 /* changes between counting mappings, which takes a microsecond for each */

static uint32_t mappings_most(const struct memory *m)
{
	uint32_t half = memory_allowed_mappings() / 2;
	uint32_t most = m->mappings.most ? m->mappings.most : MAPPINGS_MOST;
	return half && half < most ? half : most;
}

void memory_note_mapped(struct memory *m)
{
	struct memory_mappings *c = &m->mappings;
	bool counted = c->count && c->count < UINT32_MAX; /* it isn't always known */
	if (!counted || ++c->changes >= COUNT_EVERY || c->changes >= mappings_most(m) / 4) {
		c->count = memory_count_mappings(m);
		c->changes = 0;
	}
}

bool memory_is_crowded(const struct memory *m)
{
	return m->mappings.count >= mappings_most(m);
}

bool memory_has_room(struct memory *m, uint32_t count, unsigned growth)
{
	if (!growth)
		return true;
	memory_note_mapped(m);
	return m->mappings.count < mappings_most(m) / 4 * 3 ||
	       (!memory_is_crowded(m) && count >= MAPPINGS_SHORT);
}

unsigned memory_splits(const struct memory *m, gfn_t first, uint32_t n, frame_t f)
{
	struct ipt_place p;
	unsigned goes_on = 0;
	if (first.v && ipt_place(m->table, m->vm, gfn(first.v - 1), 1, &p) && p.kind == IPT_OWN &&
	    p.frame.v + 1 == f.v)
		goes_on++;
	if (ipt_place(m->table, m->vm, gfn_add(first, n), 1, &p) && p.kind == IPT_OWN &&
	    p.frame.v == f.v + n)
		goes_on++;
	return goes_on;
}
