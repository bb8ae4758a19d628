/*
 * The way into a VM's process, an outlet's counterpart: bytes of a stream socket, given to a sink
 * (a UART, a virtio console) as fast as it takes them. What the sink has no room for waits in the
 * socket, and so with whoever sends. All on the loop's thread but inlet_wanted.
 */
#ifndef VMM_INLET_H
#define VMM_INLET_H

#include "virtio/loop.h"
#include <stddef.h>

/* Returns how many of the n bytes it took; if fewer, inlet_wanted says when it takes more. */
typedef size_t inlet_sink_fn(void *ctx, const char *bytes, size_t n);
/* The socket can't be watched any more, -errno: nothing more will come. */
typedef void inlet_lost_fn(void *ctx, int rc);

#define INLET_BYTES 512

struct inlet {
	int fd; /* non-blocking */
	struct loop *loop;
	inlet_sink_fn *sink;
	inlet_lost_fn *lost;
	void *ctx;
	char *buffer; /* of INLET_BYTES, elsewhere as an outlet's: read, but not taken by the sink yet */
	size_t held;
	bool watched;
	unsigned errors; /* of watching it, in a row */
	struct loop_op readable;
	struct loop_work wanted;
};

/* Begins to read as soon as the loop runs. Loop thread, or before loop_run. */
void inlet_init(struct inlet *i, char *buffer, int fd, struct loop *loop, inlet_sink_fn *sink,
		inlet_lost_fn *lost, void *ctx);
/* The sink takes bytes (again). Any thread. */
void inlet_wanted(struct inlet *i);

#endif
