/* Inside the reclaimer's process: what it does and when (reclaimer.c), and its dealings with the VMs (reclaimer_desks.c). */
#ifndef VMM_RECLAIMER_PRIVATE_H
#define VMM_RECLAIMER_PRIVATE_H

#include "vmm/reclaim_clock.h"
#include "vmm/reclaim_shared.h"
#include "vmm/reclaim_stall.h"
#include "vmm/reclaim_turns.h"

#define ANSWER_MS 20 /* between looks for answers that nobody rang for */
#define SAMPLE_RUNS \
	16 /* of 2 MiB to a sample, at most: what is looked at costs the guest a fault a page */

struct desk_note {
	uint64_t rung_ns;
	uint64_t deaf_until_ns;
	uint32_t progress; /* the desk's, when it was looked at */
	bool asked;        /* and not answered, or given up */
	bool sample;       /* what is asked tells of how much is used */
};

struct reclaimer {
	struct reclaimer_links links;
	struct reclaim_clock clock;
	struct reclaim_shared shared;
	struct desk_note *note; /* by id */
	uint64_t cpu_ns;
	uint64_t freed;              /* by answers, in all */
	unsigned asked;              /* desks that have something to do */
	uint64_t sign_ns;            /* when one of them was seen to do it */
	uint64_t sample_ns;          /* when the next sample is due */
	bool sample_again;           /* the sample's first look is done */
	struct reclaim_stall *stall; /* by id */
	uint64_t stalls_ns;          /* when they were looked at */
	struct reclaim_turns turns;
	struct reclaim_fact *fact; /* by id */
	uint32_t sample_at[SAMPLE_RUNS];
	unsigned short dice[3];
	uint64_t trim_ns; /* with several domains the packed memory isn't trimmed again before */
};

static inline void reclaimer_count(_Atomic uint64_t *counter, uint64_t n)
{
	atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

/* ---- reclaimer_desks.c ---------------------------------------------------------------------- */

/* Have the host ring a VM; 0: feed the hungry, and see what is done. */
void reclaimer_ring_host(const struct reclaimer *r, uint32_t id);
/* Give all VMs the batches that the hand has collected, of which at most `most` frames each are to come free. `sample`:
 * what they answer tells of how much is used. */
void reclaimer_ask_all(struct reclaimer *r, uint32_t most, bool sample);
/* Take what there is of answers, and look at stalls and turns. */
void reclaimer_collect(struct reclaimer *r);
/* Until at most `left` VMs have something to do yet. Those that say nothing don't count for long. */
void reclaimer_wait_for_answers(struct reclaimer *r, unsigned left);
/* Sleep until the bell has rung since it was read, at most so long. The process ends when the host has gone. */
void reclaimer_rest(struct reclaimer *r, uint32_t bell, uint64_t ms);
uint32_t reclaimer_bell(const struct reclaimer *r);
/* Desks that another reclaimer, which died, had asked are as if they had been given up. */
void reclaimer_inherit(struct reclaimer *r);

#endif
