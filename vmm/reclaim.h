/*
 * Reclaim: frames that are little used go to those who want some. A process of its own, the reclaimer (reclaimer.c),
 * walks the array as a clock's hand does (reclaim_clock.c) and chooses; but only a VM's own process changes its window
 * and its words. So the reclaimer asks, in batches, and the VMs do it (reclaim_vm.c). docs/RECLAIM.md has the whole.
 *
 * The board is memory that all processes of a host share from its start on. Each VM has a desk there, by its id: what it
 * may have, and one batch at a time that is asked of it. The reclaimer fills the batch in, sets ASKED, and has the host
 * ring the VM (ORDER_RECLAIM); the VM works on it between its other work, sets DONE, and rings the reclaimer by the
 * board's bell, as does everyone who finds the pool short. Any of them may die at any step: a desk whose VM is gone is
 * cleared by the host, which gives the id to nobody before.
 */
#ifndef VMM_RECLAIM_H
#define VMM_RECLAIM_H

#include "vmm/evict.h"

struct store;

#define RECLAIM_RUNS  64  /* to a batch */
#define RECLAIM_PAGES 512 /* to a run */

/* Pages that the VM is to look at: which were touched since the last look? These begin anew, with age 0; the others are
 * one older, and go out if that makes them as old as this. */
struct reclaim_run {
	uint64_t gfn;
	uint32_t count; /* 1 to RECLAIM_PAGES */
	uint32_t age;   /* 0: whether touched or not; RECLAIM_LOOK: none goes out */
};
#define RECLAIM_LOOK 1000

/* Frames' ages are below this. From here on they count the looks since the page didn't pack and had nowhere else to go:
 * it is tried again when it was touched and idle again, or after IPT_AGE_MOST - RECLAIM_STUBBORN looks. A template's,
 * which nobody changes, stays at IPT_AGE_MOST for ever. */
#define RECLAIM_STUBBORN 64

/* reclaim_turns.h: nobody takes turns, or this VM doesn't take part; it is its turn; it isn't. */
enum reclaim_turn { RECLAIM_NO_TURNS, RECLAIM_HAS_TURN, RECLAIM_WAITS_FOR_TURN };

enum reclaim_state { RECLAIM_FREE, RECLAIM_ASKED, RECLAIM_TAKEN, RECLAIM_DONE };

struct reclaim_answer {
	uint32_t looked, touched; /* pages; of them: touched since the last look */
	struct evict_count evicted;
	uint64_t ns; /* of a CPU */
};

struct reclaim_desk {
	_Atomic uint32_t state; /* enum reclaim_state */
	/* What the VM may have, frames; set by the host. limit 0: no other than its memory. */
	_Atomic uint32_t shares, min, limit;
	/* From the reclaimer: how old its pages must be to go; RECLAIM_LOOK: none are to. At 1 or 0 it may as well take
	 * some out itself when it finds the pool empty. */
	_Atomic uint32_t gives;
	/* From the reclaimer: enum reclaim_turn. One that waits for its turn gets nothing back from outside memory. */
	_Atomic uint32_t turn;
	/* What the reclaimer thinks of it: frames in its working set, and how wrong that may be (95 %). */
	_Atomic uint32_t working_set, working_set_error;
	/* Stalls of the last 10 and 60 seconds, in millionths: the share of time in which a vCPU of it waited for memory
	 * (Documentation/accounting/psi.rst: "some"). */
	_Atomic uint32_t stall10, stall60;
	/* The sharing domain, by number: in which file of the pool its frames are. */
	_Atomic uint32_t domain;
	/* A file's desk: its pages may be dropped, as no guest writes to them. Where one does the host knows which may. Set
	 * by the host. */
	_Atomic uint32_t droppable;
	/* Odd while the VM is at frames that it looked up and that may be others'; written by the VM. */
	_Atomic uint32_t at_work;
	_Atomic uint64_t stall_ns; /* the same since its start; written by the VM */
	/* CPU time of the VM's process since its start, now and then, and of that for pages on their way in and out; written
	 * by the VM. Where many wait for few CPUs, those tell of thrashing what stalls don't. */
	_Atomic uint64_t cpu_ns, work_ns;
	_Atomic uint64_t
		stalled_since_ns;  /* by the VM: a stall goes on, CLOCK_MONOTONIC; 0: none */
	_Atomic uint32_t born;     /* counts the VMs that had this desk */
	_Atomic uint32_t progress; /* by the VM, with each piece of a batch */
	uint32_t most; /* frames that the batch is to free; what is over is only looked at */
	uint32_t runs;
	struct reclaim_run run[RECLAIM_RUNS];
	struct reclaim_answer answer;
};

struct reclaim_counters {        /* written by the reclaimer; freed to errors also by VMs */
	_Atomic uint64_t rounds; /* the hand went around the array */
	_Atomic uint64_t batches, batch_runs;
	_Atomic uint64_t looked, touched; /* pages */
	_Atomic uint64_t freed, zero, out, in_file, packed_bytes, refused, full, errors;
	_Atomic uint64_t shared;    /* of `out`: templates' pages; */
	_Atomic uint64_t merged;    /* merged ones */
	_Atomic uint64_t unsettled; /* of either: that stayed, as a VM was at them */
	_Atomic uint64_t
		dropped; /* of `freed`: pages of files, to be read again when they are touched */
	_Atomic uint64_t cleaned; /* pages that guests share and wrote, written back for that; */
	_Atomic uint64_t unclean; /* times that it failed; both by VMs and the host */
	_Atomic uint64_t reclaimer_ns, vms_ns;
	_Atomic uint64_t unheard; /* VMs that didn't answer in time */
	_Atomic uint64_t turns;   /* that began after a VM had waited for its turn */
};

/* A user's wish, one at a time: free so many frames of a VM (0: of all), wanted or not. */
struct reclaim_wish {
	_Atomic uint32_t state; /* enum reclaim_state */
	uint32_t vm, frames;
	_Atomic uint32_t freed;
};

/* Pages of files that guests share, to be dropped by the host if nobody has written to them since they were written
 * back; it says how many frames came free by that, and how many pages are being written back first. */
#define RECLAIM_DROPS 64
struct reclaim_drops {
	_Atomic uint32_t state; /* enum reclaim_state */
	uint32_t freed, unclean, pieces;
	struct {
		uint32_t file, frame, n; /* n pages, at most a cluster */
		uint64_t page;
	} piece[RECLAIM_DROPS];
};

struct reclaim_board {
	_Atomic uint32_t bell; /* a futex: rung by adding to it */
	_Atomic uint32_t rung; /* the pool was found short, and the reclaimer hasn't looked since */
	uint32_t low, high;    /* frames: below low it begins, from high on it is content */
	_Atomic uint32_t
		full; /* nothing more can be taken out: the store is full, or all is in use */
	struct reclaim_wish wish;
	struct reclaim_drops drops;
	struct reclaim_counters counters;
	uint32_t desks; /* ids below this have one */
	struct reclaim_desk desk[];
};

/* ---- the board ----------------------------------------------------------------------------- */

#define RECLAIM_SHARES 1000 /* that a VM has if nobody says otherwise */

/* Memory for max_vms VMs and a pool of `frames`, that all processes share, and its descriptor, which stays the
 * caller's. NULL if there is none. */
struct reclaim_board *reclaim_board_create(uint32_t max_vms, uint32_t frames, int *fd);
/* The one that a host before us made. NULL if it isn't one. */
struct reclaim_board *reclaim_board_attach(uint32_t max_vms, int fd);
void reclaim_board_destroy(struct reclaim_board *b);
/* A VM's desk; NULL if b is NULL, or the id has none. */
struct reclaim_desk *reclaim_desk(struct reclaim_board *b, vmid_t vm);
/* A VM begins, or has ended: its desk is empty and says what it may have. */
void reclaim_desk_clear(struct reclaim_board *b, vmid_t vm, uint32_t shares, uint32_t min,
			uint32_t limit);
/* In which domain's file of the pool the frames of that id are; b may be NULL. 0: unknown. */
void reclaim_set_domain(struct reclaim_board *b, vmid_t id, uint32_t domain);
uint32_t reclaim_domain(struct reclaim_board *b, vmid_t id);
/* The table doesn't say any more what it said. Wait until no VM is at work with what it looked up before (memory_enter):
 * 0; -EBUSY: after a millisecond one still is. */
int reclaim_settle(const struct reclaim_board *b, struct ipt *table);
/* What became of pages is counted. */
void reclaim_count(struct reclaim_board *b, const struct evict_count *c);
/* So many pages of files were written back since their frames are wanted; 0 or an -errno. b may be NULL. */
void reclaim_cleaned(struct reclaim_board *b, uint64_t pages, int error);
/* A VM has worked for so long on pages on their way. The VM's own thread. */
void reclaim_worked(struct reclaim_desk *d, uint64_t ns);
/* Is it this VM's turn to bring pages back (reclaim_turns.h)? Also where nobody takes turns. */
bool reclaim_has_turn(const struct reclaim_desk *d);
/* Wake the reclaimer. */
void reclaim_ring(struct reclaim_board *b);
/* The pool may have become short by what was just taken: wake the reclaimer if so. */
void reclaim_taken(struct reclaim_board *b, struct ipt *table);

/* ---- the VM's side: reclaim_vm.c, loop's thread --------------------------------------------- */

/* Do a part of what is asked of this VM. 1: there is more; 0; -errno if the window is not what the table says any more,
 * and the VM can't go on. */
int reclaim_take(struct memory *m, struct reclaim_board *b);
/* With memory.lock held: the pool has no frame, or we have as many as we may. Take out some of our own that are used
 * least. How many frames came free; -errno as reclaim_take. */
int reclaim_own(struct memory *m);

/* ---- the reclaimer's process ---------------------------------------------------------------- */

struct reclaimer_links {
	struct ipt *table;
	struct reclaim_board *board;
	const struct store *store;
	int link; /* to the host: a VM's id, to be rung; 0: feed the hungry. From it: domains (domain_fds.h) */
	void (*confine)(void *worker); /* into the sandbox, once all is made; may end the process */
	void *worker;
};
/* Never returns. It ends when the link's other end is closed. */
_Noreturn void reclaimer_process(const struct reclaimer_links *links);

#endif
