/*
 * Inside the loop: its ring and what it hands out (loop.c), and descriptors that are watched (loop_watch.c).
 *
 * A loop has its ring when it needs it. Without operations in flight it only waits for descriptors, which poll(2) does as
 * well, and needs no memory of the kernel's: so a ring that had nothing else to do for a while goes, and the next
 * operation makes another. A clone begins without.
 */
#ifndef VIRTIO_LOOP_PRIVATE_H
#define VIRTIO_LOOP_PRIVATE_H

#include "virtio/loop.h"
#include <pthread.h>
#include <stdatomic.h>

/* A completion taken off the ring and not yet handed out. */
struct late {
	struct loop_op *op;
	int res;
	uint32_t flags;
};

struct watch {
	struct loop_op op; /* what the ring knows; must be first */
	struct loop *loop;
	struct loop_op *user;
	struct watch *next;
	int fd;
	uint32_t events;
	bool once;
	bool armed;   /* in flight on the ring */
	bool in_user; /* user->done is running */
	bool cancelled;
};

/*
 * Waking: whoever posts from outside writes to the eventfd, which a READ on the ring waits for, or a poll.
 * `woken` says that a write is under way and was not yet seen, so that many posts make one write. It is cleared before
 * the posted list is looked at.
 *
 * Invariants
 *   if the list is not empty and the loop's thread sleeps, then woken
 *   flying = what was taken of the ring and has no completion yet; 0 without a ring
 *   without a ring no watch is armed, and neither is the wake
 */
struct loop {
	struct io_uring ring; /* if has_ring */
	unsigned entries;
	bool has_ring;
	bool needs_ring; /* since it couldn't have one later */
	unsigned flying;
	atomic_uintptr_t owner; /* &self of the thread inside loop_run or loop_step, or 0 */
	atomic_bool stop;

	pthread_mutex_t lock; /* the four below; a leaf: nothing is taken inside */
	pthread_cond_t ran;   /* `current` changed */
	struct loop_work *first, *last, *current;
	unsigned posted; /* length of the list */
	bool woken;

	/* the rest belongs to the loop's thread */
	int wake_fd, wake_error;
	uint64_t wake_value;
	struct loop_op wake;
	bool wake_armed;
	struct watch *watches;
	unsigned watching; /* how many */
	struct late *late; /* late_first..late_end of late_room */
	unsigned late_first, late_end, late_room;
	struct loop_work *quiet; /* loop_when_quiet */
	int quiet_ms;
	bool idle;            /* the last round waited for as long as it might, and nothing came */
	bool rests;           /* quiet has run, and nothing came since */
	struct watch some[4]; /* the first ones, so that few need the heap; op.done: in use */
};

/* ---- loop.c -------------------------------------------------------------------------------- */

/* The wake's event was taken. */
void loop_woken(struct loop *l);

/* ---- loop_watch.c -------------------------------------------------------------------------- */

/* Without a ring: wait for watches and the wake (with `only`: for the wake alone), and tell those who wait. 1 if anything
 * came, 0, or -errno of poll(2). */
int loop_poll(struct loop *l, loop_done_fn *only, int timeout_ms);
/* A watch is to hear that it is cancelled; the ring won't tell. */
bool loop_has_cancelled(const struct loop *l);
/* There is a ring now: it watches from here on. 0 or -EBUSY. */
int loop_watch_by_ring(struct loop *l);
/* There is none any more. */
void loop_watch_by_poll(struct loop *l);
/* How many are in flight on the ring. */
unsigned loop_watches_armed(const struct loop *l);
/* So few are watched that it can do without a ring. */
bool loop_can_poll(const struct loop *l);
void loop_drop_watches(struct loop *l);
/* Cancel op if it is a watch: NULL if that is all; else what the ring has in flight for it. */
struct loop_op *loop_cancel_watch(struct loop *l, struct loop_op *op);

#endif
