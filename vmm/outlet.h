/*
 * Where a VM's console bytes leave its process: a buffer in front of the console socket, so that a
 * guest which writes a byte an exit costs the host a system call a line, not a byte. A line goes
 * out at once, what isn't a line after a few milliseconds. If the host reads slowly, a vCPU that
 * writes waits; the loop never does.
 */
#ifndef VMM_OUTLET_H
#define VMM_OUTLET_H

#include "virtio/loop.h"
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

#define OUTLET_BYTES 1024

struct outlet {
	int fd; /* non-blocking */
	struct loop *loop;
	pthread_mutex_t lock;
	char *buffer; /* of OUTLET_BYTES: elsewhere, so that a clone that says nothing need not have its own */
	size_t held;
	bool timer_set;
	struct loop_work arm, again;
	struct loop_op timer, writable;
	struct __kernel_timespec delay;
	bool waiting;            /* the loop waits for room to write */
	void (*room)(void *ctx); /* called on the loop when there is room again */
	void *ctx;
};

void outlet_init(struct outlet *o, char *buffer, int fd, struct loop *loop, void (*room)(void *ctx),
		 void *ctx);
/* In a forked process with a loop of its own: what is held is the parent's to send, the socket another. */
void outlet_renew(struct outlet *o, int fd);
/* Take all bytes, waiting for the host if need be. Not on the loop's thread. */
void outlet_write(struct outlet *o, const char *bytes, size_t n);
/* Take what there is room for, possibly nothing; then `room` will be called. Loop thread. */
size_t outlet_offer(struct outlet *o, const char *bytes, size_t n);
/* Send what is held, waiting at most `ms`. Any thread. */
void outlet_flush(struct outlet *o, int ms);

#endif
