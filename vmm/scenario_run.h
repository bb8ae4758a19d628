/* A scenario under way in a host: its clock, and the report. */
#ifndef VMM_SCENARIO_RUN_H
#define VMM_SCENARIO_RUN_H

#include "vmm/fleet.h"
#include "vmm/scenario.h"

#define SCENARIO_SCHEMA "invisor-scenario-1"

struct scenario_run;

/* Begin: its time 0 is when all guests are ready or up (as it says; `now`: at once). s is planned, and becomes the run's,
 * also on an error. `name` is for the report. `done` is called when it is over, unless that is NULL. One at a time in a
 * fleet: -EBUSY. -errno. */
int scenario_run_start(struct fleet *f, struct scenario *s, const char *name, bool now,
		       void (*done)(void *ctx), void *ctx);
/* What was injected so far, and what the guests did. NULL: there is none, or no memory. */
json_t *scenario_run_report(struct fleet *f);
/* A VM is gone, its guest's console is still there. */
void scenario_run_ended(struct fleet *f, struct host_vm *vm);
/* Stop it, if there is one. */
void scenario_run_close(struct fleet *f);

#endif
