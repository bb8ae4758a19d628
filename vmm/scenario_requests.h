/* The request "scenario" (requests.h, docs/CONTROL.md). */
#ifndef VMM_SCENARIO_REQUESTS_H
#define VMM_SCENARIO_REQUESTS_H

#include "vmm/control.h"

void take_scenario(struct control_request *r, const json_t *o);
/* A report in lines, for people. */
void scenario_say(const json_t *report);

#endif
