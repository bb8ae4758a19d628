/* One look of the merger at the whole pool, in steps. */
#ifndef VMM_MERGE_SCAN_H
#define VMM_MERGE_SCAN_H

#include "vmm/domain_fds.h"
#include "vmm/merge.h"
#include "vmm/merge_again.h"
#include "vmm/merge_set.h"

#define MERGE_STEP 64 /* frames looked at in one step */

/* What the merger is about to ask for. Returns which pages were done, a bit each, counted over all pieces. */
typedef uint64_t merge_ask_fn(void *ctx, const struct merge_request *r);

struct merge_vm; /* what a pass knows of a VM */

/* Runs of one VM, of MERGE_RUN pages at most, which are asked for together. */
struct merge_batch {
	uint32_t runs, pages;
	struct merge_run run[MERGE_PIECES];
};
#define MERGE_BATCHES 64 /* at a time, by VM */

struct merge_scan {
	struct ipt *table;
	struct domain_fds files; /* of the pool, by domain: where we look at frames */
	struct merge_board *board;
	merge_ask_fn *ask;
	void *ctx;
	uint32_t *tag; /* of each frame's contents when it was last looked at; 0: never */
	/* The domain of each that is shared; of a template's, whose its tag is (OF_TEMPLATE). */
	uint32_t *domain;
	uint32_t zeroes;     /* the tag of a page of them */
	uint8_t *calm;       /* times in a row that each was looked at, and hadn't changed */
	struct merge_vm *vm; /* by id */
	uint32_t pass;
	struct merge_set shared;  /* frames that are, or were, shared */
	struct merge_set seen;    /* private ones that this pass came by, which don't change */
	struct merge_again again; /* pages that were given back */
	struct merge_run run;
	struct merge_batch batch[MERGE_BATCHES];
	struct merge_request request;
	bool short_runs;   /* take these too */
	uint64_t young_ns; /* a clone keeps what it has of the template's for so long */
	uint64_t now_ns;   /* when the pass began; set by the caller before */
	uint8_t *bytes;    /* of a step's frames */
	uint64_t scanned_bytes, pages_done; /* so far */
};

/* -ENOMEM. The rest is set by the caller before. */
int merge_scan_create(struct merge_scan *s);
void merge_scan_destroy(struct merge_scan *s);
/* Begin a pass. */
void merge_scan_begin(struct merge_scan *s);
/* Look at the frames from f on, and ask for what can be done; returns where to go on, UINT32_MAX at the end of the
 * pass. */
uint32_t merge_scan_step(struct merge_scan *s, uint32_t f);
/* A VM didn't hear, or has no room: leave it alone for the rest of the pass. */
void merge_scan_leave(struct merge_scan *s, uint32_t vm);

#endif
