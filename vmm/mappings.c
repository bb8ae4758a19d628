/*
 * How many mappings a window may get for the sake of saving memory: taking pages away from the midst of a mapping costs
 * two more, and a process may have only so many (vm.max_map_count), which faults need too.
 */
#include "vmm/memory.h"

#define MAPPINGS_MOST  32768 /* of a window */
#define MAPPINGS_SHORT 16    /* shorter runs than this are refused from three quarters of it on */
#define COUNT_EVERY    2048  /* changes, at least, between counting mappings */

static uint32_t mappings_most(void)
{
	uint32_t half = memory_allowed_mappings() / 2;
	return half && half < MAPPINGS_MOST ? half : MAPPINGS_MOST;
}

bool memory_has_room(struct memory *m, uint32_t count)
{
	uint32_t most = mappings_most();
	if (!m->mappings_left) {
		m->mappings = memory_count_mappings(m);
		uint32_t left = m->mappings < most ? (most - m->mappings) / 2 : 0;
		m->mappings_left = left < COUNT_EVERY ? left : COUNT_EVERY;
	}
	if (!m->mappings_left || (m->mappings > most / 4 * 3 && count < MAPPINGS_SHORT))
		return false;
	m->mappings_left--;
	return true;
}
