/* Commands for guests: the control socket's request "exec" (docs/CONTROL.md). `invisor exec` is in
 * commands.h. */
#ifndef VMM_EXEC_H
#define VMM_EXEC_H

#include "vmm/control.h"

#define EXEC_OUTPUT_MAX \
	(4u << 20) /* bytes that a command may write; one that writes more is ended */

/* A request_kind's handler. */
void exec_take(struct control_request *r, const json_t *object);

#endif
