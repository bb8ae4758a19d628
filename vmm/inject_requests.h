/* The request "inject" (requests.h, docs/CONTROL.md), and faults in answers. */
#ifndef VMM_INJECT_REQUESTS_H
#define VMM_INJECT_REQUESTS_H

#include "vmm/control.h"
#include "vmm/host_inject.h"

void take_inject(struct control_request *r, const json_t *o);

/* What became of one, into o: outcome, words, id, frame, seen_by. */
void inject_put_result(json_t *o, struct host *h, const struct inject_result *r);

#endif
