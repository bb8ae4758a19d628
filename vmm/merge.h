/*
 * Merging equal frames of any VMs. A process of its own, the merger (merger.c, merge_scan.c), reads the pool and finds
 * frames that are equal; but only a VM's own process changes its window and its words. So the merger asks, and the VM
 * does it (merge_vm.c), page by page as far as things still are as they seemed. docs/MERGE.md has the whole.
 *
 * The board is memory that all processes of a host share from its start on: the one request under way, which
 * domain each VM is in, and the merger's counters. The merger fills the request in, sets ASKED, and has the host
 * ring the VM (ORDER_MERGE); the VM takes it, answers, sets DONE and wakes whoever waits for `state` (a futex).
 * Any of them may die at any step: the merger takes back what nobody took, and gives up on what a VM took
 * that is gone.
 */
#ifndef VMM_MERGE_H
#define VMM_MERGE_H

#include "vmm/link.h"
#include "vmm/memory.h"

#define MERGE_RUN 64 /* pages to a request, at most: a bit each in the answer */
#define MERGE_PIECES \
	16 /* and runs of such: each costs as much as five pages, and faults wait meanwhile */

enum merge_op {
	MERGE_ZERO,    /* pages that hold only zeroes: make them void */
	MERGE_PUBLISH, /* own frames become shared ones */
	MERGE_MERGE, /* own frames give way to the shared ones from `frame` on, which hold the same */
	MERGE_RETURN, /* own frames give way to what the template has there, which is the same again */
	MERGE_OPS
};

enum merge_state { MERGE_FREE, MERGE_ASKED, MERGE_TAKEN, MERGE_DONE };

/* Pages that follow each other, and what is to be done with them. */
struct merge_piece {
	uint64_t gfn;
	uint32_t op;
	uint32_t count; /* 1 to MERGE_RUN */
	uint32_t frame; /* of MERGE_MERGE */
};

struct merge_request {
	uint32_t vm; /* id */
	uint32_t domain;
	uint32_t pieces; /* of MERGE_RUN pages together, at most */
	struct merge_piece piece[MERGE_PIECES];
};

struct merge_answer {
	/* -ENOSPC: for some pieces the VM has too many mappings; -EPERM: it is in another domain; -EINVAL */
	int32_t status;
	uint64_t done; /* bit i: page i, counted over all pieces, was done */
	uint64_t ns;   /* of a CPU */
	bool still;    /* the guest stood still for it */
};

struct merge_counters { /* written by the merger only */
	_Atomic uint64_t passes, scanned_bytes, merger_ns, vms_ns;
	_Atomic uint64_t requests; /* asked */
	_Atomic uint64_t refused;  /* of them: the VM had no room for more mappings */
	_Atomic uint64_t unheard;  /* of them: the VM didn't answer */
	_Atomic uint64_t still;    /* of them: the guest stood still meanwhile */
	_Atomic uint64_t pages_done[MERGE_OPS];
	_Atomic uint64_t pages_refused; /* since they had changed, or were in use */
};

struct merge_board {
	_Atomic uint32_t state; /* enum merge_state */
	struct merge_request request;
	struct merge_answer answer;
	struct merge_counters counters;
	uint32_t vms;              /* ids below this have a domain */
	_Atomic uint32_t domain[]; /* by id; 0: not to be merged */
};

/* Memory for max_vms VMs that all processes share, and its descriptor, which stays the caller's. NULL if there is none. */
struct merge_board *merge_board_create(uint32_t max_vms, int *fd);
/* The one that a host before us made. NULL if it isn't one. */
struct merge_board *merge_board_attach(uint32_t max_vms, int fd);
void merge_board_destroy(struct merge_board *b);
/* Which domain a VM is in. b may be NULL: nothing is merged. */
void merge_set_domain(struct merge_board *b, vmid_t vm, uint32_t domain);
uint32_t merge_domain(const struct merge_board *b, vmid_t vm);

/* The merger's side: ask, have the host ring the VM (its id goes over the link), and wait. 0, with the answer;
 * -ETIME: the VM doesn't hear; -ESRCH: it is gone. */
int merge_ask(struct merge_board *b, struct ipt *table, int link, const struct merge_request *r,
	      struct merge_answer *answer);
/* What an earlier merger left asked: wait for its end. */
void merge_settle(struct merge_board *b, struct ipt *table);

/* The VM's side: do what is asked, if it is asked of this VM. `still`: nobody touches the window until this returns
 * (hold.h). 0; -errno if the window is not what the table says any more, and the VM can't go on. Loop's thread. */
int merge_take(struct memory *m, struct merge_board *b, bool still);
/* Is this VM asked for something that maps other frames? It may be another that is asked when merge_take looks. */
bool merge_remaps(const struct memory *m, const struct merge_board *b);
/* Give back what was needed for comparing. */
void merge_rest(void);

struct merger_links {
	struct ipt *table;
	struct merge_board *board;
	int link;         /* to the host: a VM's id, to be rung; from it: domains (domain_fds.h) */
	unsigned percent; /* of a CPU, the most that is spent, VMs' part included */
	void (*confine)(void *worker); /* into the sandbox, once all is made; may end the process */
	void *worker;
};
/* The merger's process, forked by the host: never returns. It ends when the link's other end is closed. */
_Noreturn void merger_process(const struct merger_links *links);

#endif
