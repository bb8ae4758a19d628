/*
 * What the merger remembers while it looks: sets of candidate frames by their contents' tag, and the run that is being
 * put together. Neither knows of memory, table or VMs.
 */
#ifndef VMM_MERGE_SET_H
#define VMM_MERGE_SET_H

#include "ipt/addr.h"

/* Frames of one tag and domain that a set keeps; others with the same contents add nothing. */
#define MERGE_SET_SAME 4

struct merge_entry {
	uint32_t tag;    /* of the contents, never 0; 0: no entry */
	uint32_t domain; /* 0: was removed */
	uint32_t frame;
};

/* A hash table by tag, open addressing. All zero is an empty set. */
struct merge_set {
	struct merge_entry *entry;
	uint32_t room; /* a power of two, or 0 */
	uint32_t used; /* removed ones included */
	uint32_t most; /* entries, at most: 0 for no limit */
};

void merge_set_free(struct merge_set *s);
/* Forget all, but keep the room. */
void merge_set_clear(struct merge_set *s);
/* Does nothing if there are enough of these, or no room any more. */
void merge_set_add(struct merge_set *s, uint32_t tag, uint32_t domain, frame_t f);
/* A frame of that tag and domain, `preferred` if that is one; INVALID_FRAME if there is none. */
frame_t merge_set_find(const struct merge_set *s, uint32_t tag, uint32_t domain, frame_t preferred);
void merge_set_remove(struct merge_set *s, uint32_t tag, uint32_t domain, frame_t f);

/* Pages of one VM at consecutive gfns and frames that are to be dealt with in the same way. */
struct merge_run {
	uint32_t count; /* 0: none */
	uint32_t vm;
	uint64_t gfn;
	uint32_t frame;
	/* Zero pages: UINT32_MAX. Else the first of the frames that hold the same, */
	uint32_t target;
	bool returns; /* which are the template's, at the same gfns */
	/* if they have to be published yet: whose they are, and where there */
	uint32_t target_vm;
	uint64_t target_gfn;
	uint32_t domain;
};

/* Does `next`, of one page, continue the run? Then it has become part of it. */
bool merge_run_extend(struct merge_run *r, const struct merge_run *next, uint32_t most);
/* The target that a page at (vm, gfn, f) would continue the run with: INVALID_FRAME if it wouldn't. */
frame_t merge_run_target(const struct merge_run *r, uint32_t vm, uint64_t gfn, frame_t f);

#endif
