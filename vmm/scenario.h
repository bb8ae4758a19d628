/*
 * Scenarios: faults for guests over time, from a JSON file (docs/FAULTS.md). A scenario is checked as a whole, then
 * planned: every random choice is made before the first fault, as a function of the seed and of the step's and
 * occurrence's numbers, so that the same seed gives the same list of faults.
 */
#ifndef VMM_SCENARIO_H
#define VMM_SCENARIO_H

#include "ipt/ipt.h"
#include "vmm/inject.h"
#include <jansson.h>

#define SCENARIO_STEPS  1000
#define SCENARIO_EVENTS 10000
#define SCENARIO_MS     86400000 /* a day */

struct vm_config;

struct scenario_step {
	uint64_t at_ms, every_ms;
	uint32_t count, jitter_ms;
	uint32_t chance; /* of each occurrence, parts per million */
	char vm[IPT_NAME_LEN];
	struct inject fault;
};

/* One fault to be injected. */
struct scenario_event {
	uint64_t at_ms;
	uint32_t step, occurrence;
	struct inject fault; /* nothing in it is random any more */
};

struct scenario {
	uint64_t seed;
	bool has_seed;
	bool from_start; /* time 0 is when all guests run, not when they are READY */
	bool stop;       /* guests are powered off at the end */
	uint64_t for_ms; /* when it ends */
	struct scenario_step *step;
	uint32_t steps;
	struct scenario_event
		*event; /* in the order of their times, then steps, then occurrences */
	uint32_t events;
};

/* Of a VM's name, its config, or NULL: there is no such VM. */
typedef const struct vm_config *scenario_vm_fn(void *ctx, const char *name);

/* Check and take over a parsed file. `name` is the file's, for words: "crash.json: steps[3].at: ...". -EINVAL with words,
 * -ENOMEM. */
int scenario_parse(struct scenario **out, const json_t *root, const char *name,
		   scenario_vm_fn *find, void *ctx, char *error);
/* What a file of 1 MiB at most holds; NULL with words that name the line if it is no JSON. */
json_t *scenario_read(const char *path, char *error);
/* Make the list of events. -ENOMEM; -E2BIG: more than SCENARIO_EVENTS. */
int scenario_plan(struct scenario *s, uint64_t seed);
void scenario_free(struct scenario *s);

#endif
