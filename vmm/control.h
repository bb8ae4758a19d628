/*
 * A host's control socket, in the run directory (rundir.h): one JSON object a line in, one a line out
 * (docs/CONTROL.md). A connection carries one request. Its handler answers at once or later, or
 * makes a byte stream of the connection. All on the host's one thread.
 */
#ifndef VMM_CONTROL_H
#define VMM_CONTROL_H

#include "vmm/host.h"
#include <jansson.h>

struct control;
struct control_request; /* one connection with its request */

#define CONTROL_REQUEST_MAX 65536 /* bytes of one request, its newline included */
#define CONTROL_CLIENTS_MAX 64    /* connections at once; more wait in the backlog */
#define CONTROL_HEAR_MS     10000

struct control_config {
	struct host *host;
	const char *file; /* the socket's name in the run directory; NULL: host-PID.sock */
	/* Take a request (an object, valid during the call): control_reply, control_refuse or
	 * control_stream, now or at any time later. */
	void (*handler)(struct control_request *r, const json_t *object);
	void *ctx;        /* the handler's, by control_ctx */
	unsigned hear_ms; /* a request must have come within, to the second; 0: CONTROL_HEAR_MS */
};

/* Serve the user that this process is of, and root. Sockets of hosts that died are removed on the way. -errno with words. */
int control_create(struct control **out, const struct control_config *config, char *error);
/* Close all connections; those that wait for their answer, and streams, are told that they are gone. */
void control_destroy(struct control *c);

void *control_ctx(struct control_request *r);
struct host *control_host(struct control_request *r);

/* Answer, and be done with the request: it must not be used after. Takes the reference to `answer`; NULL
 * (no memory) closes the connection. */
void control_reply(struct control_request *r, json_t *answer);
/* Answer {"error": words}. */
void control_refuse(struct control_request *r, const char *format, ...)
	__attribute__((format(printf, 2, 3)));
/* For a request that isn't answered at once: `gone` is called if its client goes away before, and then
 * the request must not be used after. */
void control_on_gone(struct control_request *r, void (*gone)(void *ctx), void *ctx);

struct control_stream {
	/* Bytes from the client. Returns how many were taken; if fewer than n, the rest is offered
	 * again after control_stream_resume. */
	size_t (*input)(void *ctx, const char *bytes, size_t n);
	/* The client sends no more; it still listens. May be NULL. */
	void (*input_end)(void *ctx);
	/* There is room again after control_stream_send took less than it was given. */
	void (*room)(void *ctx);
	/* The client is gone; the request must not be used after. */
	void (*gone)(void *ctx);
};

/* Answer, then carry bytes both ways until control_stream_end or `gone`. */
void control_stream(struct control_request *r, json_t *answer, const struct control_stream *stream,
		    void *ctx);
/* Returns how many bytes were taken, nothing being kept here. Never waits. */
size_t control_stream_send(struct control_request *r, const char *bytes, size_t n);
void control_stream_resume(struct control_request *r);
/* Close it; the client still gets what was taken. The request must not be used after. */
void control_stream_end(struct control_request *r);

#endif
