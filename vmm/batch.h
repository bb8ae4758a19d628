/*
 * Guests started together from one setup: their setup (image, disks, options) lives until the last of
 * them is gone, and whoever asked for them may wait until all are up or ready.
 */
#ifndef VMM_BATCH_H
#define VMM_BATCH_H

#include "vmm/control.h"
#include "vmm/run.h"

struct fleet;

enum batch_wait {
	BATCH_UP,    /* for the first KVM_RUN of each */
	BATCH_READY, /* for each one's ready word */
};

struct batch {
	const struct run_setup *setup;
	unsigned refs;             /* one a guest, one of whoever starts them */
	unsigned count, up, ready; /* guests in all, that ran, that said the ready word */
	/* Of a batch that a request asked for: */
	struct run_setup own; /* `setup` points here */
	char **args;          /* what own.options points to; args[0] isn't used */
	int argc;
	bool nameless; /* the host gives names */
	enum batch_wait wait;
	struct control_request *request; /* waits for its answer */
	json_t *answer;
};

/* A batch of a setup that stays the caller's. NULL without memory. One reference is the caller's. */
struct batch *batch_of(const struct run_setup *setup);
/* A batch from the arguments of `invisor run` (an array of strings): parsed, checked and opened as that
 * command does, for a host with a pool of pool_bytes. -errno with words. */
int batch_parse(struct batch **out, const json_t *options, const struct host_config *host,
		char *error);
/* The batch of a guest that another host started, of whose setup nothing is left. NULL without memory. */
struct batch *batch_adopted(void);
void batch_hold(struct batch *b);
void batch_drop(struct batch *b);

/* Answer r with the names once all guests have come as far as `wait` says; with words if one ends
 * before. */
void batch_answer(struct batch *b, struct control_request *r, enum batch_wait wait);
/* Another guest is up or ready. */
void batch_progress(struct batch *b);
/* A guest ended; `reached` says whether it was up and ready before. */
void batch_lost(struct batch *b, const struct host_vm *vm, bool up, bool ready);

#endif
