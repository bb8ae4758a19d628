/*
 * How much VMs stall for want of memory, as the kernel's PSI has it (Documentation/accounting/psi.rst, "some"): the share
 * of time in which a vCPU waited for a page, averaged exponentially over 10 s and 60 s, every 2 s or so.
 */
#ifndef VMM_RECLAIM_STALL_H
#define VMM_RECLAIM_STALL_H

#include "vmm/reclaim.h"

#define RECLAIM_STALL_MS 2000 /* between two looks, at least */

/* What is known of one VM; zero to begin with. */
struct reclaim_stall {
	uint32_t born;    /* the desk's, when it was last looked at */
	uint64_t seen_ns; /* of stalls that are in the averages */
	double avg10, avg60;
};

/* The averages after period_ns more, of which stalled_ns were stalled. */
void reclaim_stall_add(struct reclaim_stall *s, uint64_t stalled_ns, uint64_t period_ns);
/* How long a VM has stalled in all until now_ns; a stall that goes on is counted up to then. */
uint64_t reclaim_stalled_ns(const struct reclaim_desk *d, uint64_t now_ns);
/* Look at a desk again after period_ns, and write the averages to it. Those of a reclaimer before us go on. */
void reclaim_stall_look(struct reclaim_stall *s, struct reclaim_desk *d, uint64_t now_ns,
			uint64_t period_ns);

#endif
