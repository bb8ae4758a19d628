/*
 * The memory-and-device loop: one thread on one io_uring, for everything of a VM that isn't a vCPU.
 * Users embed a struct loop_op for each kind of operation that they may have in flight, take an SQE
 * for it, prepare it with liburing's io_uring_prep_*, and get its completion by callback, always on
 * the loop's thread. Other threads reach the loop only by loop_post.
 */
#ifndef VIRTIO_LOOP_H
#define VIRTIO_LOOP_H

#include <liburing.h>
#include <stdbool.h>
#include <stdint.h>

struct loop;
struct loop_op;
/* res and flags as the CQE has them. The op may be submitted again from inside. */
typedef void loop_done_fn(struct loop_op *op, int res, uint32_t flags);

struct loop_op {
	loop_done_fn *done;
};

/* Something another thread wants the loop to run; posting it again before it ran has no effect. */
struct loop_work {
	void (*run)(struct loop_work *w);
	struct loop_work *next;
	bool queued;
};

/* Make a loop with room for `entries` (power of two) operations. -errno of io_uring_queue_init
 * (-ENOSYS or -EPERM: the kernel forbids io_uring). */
int loop_create(struct loop **out, unsigned entries);
void loop_destroy(struct loop *l);

/* An SQE whose completion goes to op; submits what is pending when the queue is full, so never NULL
 * except when submitting itself fails. Loop thread only (or before loop_run). Submitted at the
 * latest when the loop waits next. */
struct io_uring_sqe *loop_sqe(struct loop *l, struct loop_op *op);
/* Poll fd for events (POLLIN...) again and again, op->done with the revents each time. */
int loop_watch(struct loop *l, struct loop_op *op, int fd, uint32_t events);
/* Cancel what op has in flight; its done still comes, with -ECANCELED. */
void loop_cancel(struct loop *l, struct loop_op *op);

/* Run w->run on the loop's thread. Any thread. */
void loop_post(struct loop *l, struct loop_work *w);

/* Handle completions until loop_stop; returns 0 or -errno. */
int loop_run(struct loop *l);
/* Ask loop_run to return after the callbacks that are under way. Any thread. */
void loop_stop(struct loop *l);
bool loop_is_me(const struct loop *l);

#endif
