/*
 * Turns: what is done when the guests that want memory want more than there is. Shared out evenly, each would wait for pages
 * most of the time, the ones it takes being those that another is about to touch. So as many of them as fit have their
 * turn, with all they use in memory, and the others wait; then they change places (P. J. Denning, "The working set model
 * for program behavior", CACM 1968: no program runs without its working set; S. Jiang and X. Zhang, "Token-ordered LRU",
 * 2005, protects one process's pages at a time). Guests that use little take no part, and are served as ever.
 *
 * Here is only the choice, without any VM; the reclaimer tells the VMs by their desks. Turns are shared out by time for
 * each share: who has had least comes next.
 */
#ifndef VMM_RECLAIM_TURNS_H
#define VMM_RECLAIM_TURNS_H

#include <stdbool.h>
#include <stdint.h>

#define RECLAIM_TURNS_MS 500 /* between two looks, at least */

/* What is seen of a VM; a VM with at least `min` frames to keep for ever may not be put off for them. */
struct reclaim_fact {
	bool live;
	uint32_t born;       /* another one than before: another VM */
	uint32_t shares;     /* at least 1 */
	uint32_t min;        /* frames that it keeps in any case */
	uint32_t frames;     /* its own, in memory */
	uint32_t used;       /* of them, at most, as it seems */
	uint32_t out;        /* and out of it */
	uint64_t stalled_ns; /* in all */
	uint64_t cpu_ns,
		work_ns; /* CPU time of its process in all, and of that for pages on their way */
};

struct reclaim_turn_vm {
	uint32_t born;
	bool member;   /* it takes part */
	bool waits;    /* it isn't its turn */
	double stall;  /* share of the last few seconds of its turns in which it waited for pages */
	double had;    /* seconds of turns for each thousandth of a thousand shares */
	uint32_t need; /* frames that it used when it didn't wait for pages; 0: not known */
	uint64_t since_ns; /* its turn, or its waiting, began */
	uint64_t stalled_ns, cpu_ns, work_ns;
};

struct reclaim_turns {
	struct reclaim_turn_vm *vm; /* by id */
	uint32_t vms;
	uint32_t waiting; /* how many wait */
	uint64_t looked_ns;
	uint64_t changed_ns; /* the set of those whose turn it is */
	double margin;       /* what is needed is that much more than it seemed; at least 1 */
};

/* For ids below vms. 0 or -ENOMEM. */
int reclaim_turns_create(struct reclaim_turns *t, uint32_t vms);
void reclaim_turns_destroy(struct reclaim_turns *t);
/* Look again, at now_ns: fact[id] for all ids; `room` frames are there for those that take part. True: somebody's turn
 * began or ended. */
bool reclaim_turns_look(struct reclaim_turns *t, const struct reclaim_fact *fact, uint32_t room,
			uint64_t now_ns);

#endif
