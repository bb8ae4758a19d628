/* Requests of the control socket about VMs that stand still or come in numbers: pause, resume, clone. */
#ifndef VMM_CLONE_REQUESTS_H
#define VMM_CLONE_REQUESTS_H

#include "vmm/control.h"

void take_pause(struct control_request *r, const json_t *o);
void take_resume(struct control_request *r, const json_t *o);
void take_clone(struct control_request *r, const json_t *o);

#endif
