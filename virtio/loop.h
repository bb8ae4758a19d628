/*
 * The memory-and-device loop: one thread on one io_uring, for everything of a VM that isn't a vCPU. While there is
 * nothing but descriptors to watch it does without the ring, whose memory an idle VM would have for nothing.
 * Users embed a struct loop_op for each kind of operation that they may have in flight, take an SQE
 * for it, prepare it with liburing's io_uring_prep_*, and get its completion by callback, always on
 * the loop's thread. Other threads reach the loop only by loop_post.
 *
 * The loop's thread is whichever thread is inside loop_run or loop_step; only one can be at a time.
 * Callbacks run without any of the loop's locks held, so they may call anything here.
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

/* Something another thread wants the loop to run; posting it again before it ran has no effect, and
 * posting it from inside its own run makes it run once more, after what else is waiting. */
struct loop_work {
	void (*run)(struct loop_work *w);
	struct loop_work *next;
	bool queued;
};

/* Make a loop with room for `entries` (power of two) operations that wait to be submitted; any
 * number may be in flight. -errno of io_uring_queue_init (-ENOSYS or -EPERM: the kernel forbids
 * io_uring), -EMFILE, -ENOMEM. */
int loop_create(struct loop **out, unsigned entries);
/* Nothing may be in flight or posted that still matters: no callback comes after this. */
void loop_destroy(struct loop *l);

/* For who waits elsewhere, by poll(2), and calls loop_step(l, NULL, 0) when this descriptor can be read. Not with
 * loop_when_quiet, after which a loop may be without it. */
int loop_fd(const struct loop *l);
/* Processes that are forked don't get the ring's memory, with which they could submit for us. 0 or -errno. */
int loop_keep(struct loop *l);

/* In a process that the loop's thread forked from inside a callback. loop_forget: let go of the ring, which is the
 * parent's; operations in flight are the parent's too, watches are dropped, posted work stays posted.
 * loop_renew: then the loop can be run; it makes a ring of its own with its first operation, or here where loop_forget found
 * that it can't: then nobody is to find out later. As loop_create. */
void loop_forget(struct loop *l);
int loop_renew(struct loop *l, unsigned entries);

/* An SQE whose completion goes to op; submits what is pending when the queue is full, so never NULL
 * except when submitting itself fails, or there is no ring and none can be made. Loop thread only (or before loop_run). Submitted at the
 * latest when the loop waits next. */
struct io_uring_sqe *loop_sqe(struct loop *l, struct loop_op *op);
/* Poll fd for events (POLLIN...) again and again, op->done with the revents each time. Level
 * triggered: as long as fd is ready, done is called, so it need not drain fd. Ends after a res
 * below 0, which is passed on. Loop thread, or before loop_run. -ENOMEM, -EBUSY (submitting
 * failed).
 *
 * It is a one-shot poll, armed anew in the io_uring_enter that waits: measured as fast as a
 * multishot poll (1.6 us an event on eventfd for both, Linux 6.18), which is edge-triggered and so
 * loses events of whoever reads only one. */
int loop_watch(struct loop *l, struct loop_op *op, int fd, uint32_t events);
/* The same once: done is called with the revents, or with what went wrong, and that is all. */
int loop_wait(struct loop *l, struct loop_op *op, int fd, uint32_t events);
/* Cancel what op has in flight; its done still comes, with -ECANCELED, or with its own result if it
 * was past cancelling (a watch always ends with -ECANCELED). Loop thread only. */
void loop_cancel(struct loop *l, struct loop_op *op);

/* Run w->run on the loop's thread. Any thread. */
void loop_post(struct loop *l, struct loop_work *w);
/* Take w back: when this returns it is neither queued nor running (unless called from its own run).
 * Any thread, without locks that w->run takes. */
void loop_unpost(struct loop *l, struct loop_work *w);

/* Handle completions until loop_stop; returns 0 or -errno (-EBUSY: another thread runs the loop).
 */
int loop_run(struct loop *l);
/* Handle what is there, waiting at most timeout_ms for it (-1: until something comes, 0: not at
 * all), then return. 0, or as loop_run. With `only` it calls nothing but completions whose op->done
 * is `only`, and leaves the others and the posted work for later: how an owner of operations waits
 * for them when nobody runs the loop any more, or from inside a callback. */
int loop_step(struct loop *l, loop_done_fn *only, int timeout_ms);
/* Have loop_run run w->run each time that it has had nothing to do for `ms`: once, and again only after it had. Before
 * loop_run, or on the loop's thread; NULL: nothing. */
void loop_when_quiet(struct loop *l, struct loop_work *w, int ms);
/* Ask loop_run to return after the callbacks that are under way. Any thread. If the loop doesn't
 * run, its next loop_run returns at once. */
void loop_stop(struct loop *l);

#endif
