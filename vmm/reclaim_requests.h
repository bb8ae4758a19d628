/* Requests about what guests have in memory: "reclaim" and "limit" (requests.h, docs/CONTROL.md). */
#ifndef VMM_RECLAIM_REQUESTS_H
#define VMM_RECLAIM_REQUESTS_H

#include "vmm/control.h"

void take_reclaim(struct control_request *r, const json_t *o);
void take_limit(struct control_request *r, const json_t *o);

#endif
