/* Failpoints of a running host: the request "fail", and the command that sends it (docs/FAULTS.md). */
#ifndef VMM_FAIL_REQUESTS_H
#define VMM_FAIL_REQUESTS_H

#include "vmm/control.h"

void take_fail(struct control_request *r, const json_t *o);

#endif
