/* Templates' and merged pages going out, and files' being dropped, which the reclaimer does itself: no process works for
 * these. */
#ifndef VMM_RECLAIM_SHARED_H
#define VMM_RECLAIM_SHARED_H

#include "vmm/domain_fds.h"
#include "vmm/pool.h"
#include "vmm/reclaim.h"
#include "vmm/store.h"

struct reclaim_shared {
	const struct reclaimer_links *links;
	struct domain_fds files;   /* of the pool and of packed memory, by domain */
	struct pool pool;          /* where the frames are that go at this moment; */
	struct store store;        /* and where they go to */
	uint64_t freed;            /* frames */
	uint64_t later_ns;         /* a VM was at frames that it looked up; nothing before then */
	uint32_t drops;            /* that the host is to be asked for */
	struct {                   /* those that are written back before they can go: */
		uint32_t pages;    /* as the host's last answer says, */
		uint64_t told_ns;  /* which came then; */
		uint64_t done;     /* so many so far, in all, */
		uint64_t since_ns; /* and no more since then */
	} unclean;
};

/* A clock's `shared` and `merged`, with a struct reclaim_shared. These pages go into the packed memory only: what doesn't
 * pack stays. */
void reclaim_shared_out(void *ctx, vmid_t vm, gfn_t first, frame_t f, uint32_t n);
void reclaim_merged_out(void *ctx, frame_t f);
/* What the host was asked to drop, and whether there is more for it. True: it is to be rung. */
bool reclaim_shared_ask(struct reclaim_shared *s);
/* Are pages being written back that can go then? So that a round which brings nothing says little. Not for long, if none
 * has been written. */
bool reclaim_shared_waits(struct reclaim_shared *s);

#endif
