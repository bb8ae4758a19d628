/* The requests that a host's control socket takes (docs/CONTROL.md): a table of names and handlers. */
#ifndef VMM_REQUESTS_H
#define VMM_REQUESTS_H

#include "vmm/control.h"

/* A control socket's handler; its ctx is the host's struct fleet. */
void requests_handle(struct control_request *r, const json_t *object);

/* One request, by the value of its "do". The handler is a control_config's. */
struct request_kind {
	const char *name;
	void (*handler)(struct control_request *r, const json_t *object);
};

/* requests_fleet.c */
void requests_run(struct control_request *r, const json_t *o);
void requests_stop(struct control_request *r, const json_t *o);
void requests_kill(struct control_request *r, const json_t *o);
void requests_console(struct control_request *r, const json_t *o);
void requests_status(struct control_request *r, const json_t *o);

#endif
