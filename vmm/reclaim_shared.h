/* Templates' pages going out, which the reclaimer does itself: a template has no process that changes anything. */
#ifndef VMM_RECLAIM_SHARED_H
#define VMM_RECLAIM_SHARED_H

#include "vmm/reclaim_clock.h"

struct reclaim_shared {
	const struct reclaimer_links *links;
	const struct reclaim_clock *clock;
	uint64_t freed; /* frames */
};

/* A clock's `shared`, with a struct reclaim_shared. Into the packed memory only: what doesn't pack stays. */
void reclaim_shared_out(void *ctx, vmid_t vm, gfn_t first, frame_t f, uint32_t n);

#endif
