/* Descriptors that a loop watches: by its ring, or without one by poll(2). See loop_private.h. */
#include "ipt/fail.h"
#include "virtio/loop_private.h"
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

#define POLLED 16 /* descriptors that are polled, with the wake's; a loop with more has a ring */

static struct watch *new_watch(struct loop *l)
{
	for (unsigned i = 0; i < sizeof l->some / sizeof *l->some; i++)
		if (!l->some[i].op.done)
			return &l->some[i];
	return malloc(sizeof(struct watch));
}

static void free_watch(struct loop *l, struct watch *w)
{
	if (w >= l->some && w < l->some + sizeof l->some / sizeof *l->some)
		w->op.done = NULL;
	else
		free(w);
}

static void drop(struct watch *gone)
{
	struct loop *l = gone->loop;
	struct watch **p = &l->watches;
	while (*p != gone)
		p = &(*p)->next;
	*p = gone->next;
	l->watching--;
	free_watch(l, gone);
}

void loop_drop_watches(struct loop *l)
{
	while (l->watches)
		drop(l->watches);
}

static bool arm(struct watch *w)
{
	if (!w->loop->has_ring)
		return true;
	struct io_uring_sqe *sqe = loop_sqe(w->loop, &w->op);
	if (!sqe)
		return false;
	io_uring_prep_poll_add(sqe, w->fd, w->events);
	w->armed = true;
	return true;
}

static void watch_done(struct loop_op *op, int res, uint32_t flags)
{
	struct watch *w = (struct watch *)op;
	struct loop_op *user = w->user;
	(void)flags;
	w->armed = false;
	if (!w->cancelled)
		res = fail_result(FAIL_LOOP_POLL, FAIL_IDS, res);
	/* -ECANCELED without our asking: the thread that armed it ended. */
	if (!w->cancelled && res == -ECANCELED) {
		if (arm(w))
			return;
		res = -EBUSY;
	} else if (!w->cancelled && !w->once) {
		w->in_user = true;
		user->done(user, res, 0);
		w->in_user = false;
		if (!w->cancelled && res >= 0 && arm(w))
			return;
		/* A res below 0 the user has already. */
		res = w->cancelled ? -ECANCELED : res < 0 ? 0 : -EBUSY;
	} else if (w->cancelled) {
		res = -ECANCELED;
	} /* else it was once, and this is it */
	drop(w);
	if (res)
		user->done(user, res, 0);
}

static int begin(struct loop *l, struct loop_op *op, int fd, uint32_t events, bool once)
{
	/* Any operation makes a ring; this one does nothing. */
	if (!l->has_ring && l->watching >= POLLED - 1 && !loop_sqe(l, NULL))
		return -EBUSY;
	struct watch *w = new_watch(l);
	if (!w)
		return -ENOMEM;
	*w = (struct watch){.op = {watch_done},
			    .loop = l,
			    .user = op,
			    .fd = fd,
			    .events = events,
			    .once = once};
	if (!arm(w)) {
		free_watch(l, w);
		return -EBUSY;
	}
	w->next = l->watches;
	l->watches = w;
	l->watching++;
	return 0;
}

int loop_watch(struct loop *l, struct loop_op *op, int fd, uint32_t events)
{
	return begin(l, op, fd, events, false);
}

int loop_wait(struct loop *l, struct loop_op *op, int fd, uint32_t events)
{
	return begin(l, op, fd, events, true);
}

struct loop_op *loop_cancel_watch(struct loop *l, struct loop_op *op)
{
	for (struct watch *w = l->watches; w; w = w->next) {
		if (w->user != op || w->cancelled)
			continue;
		w->cancelled = true;
		/* Nothing in flight: watch_done, or loop_poll, sees the mark. */
		return w->armed ? &w->op : NULL;
	}
	return op;
}

/* ---- with a ring, and without -------------------------------------------------------------- */

int loop_watch_by_ring(struct loop *l)
{
	for (struct watch *w = l->watches; w; w = w->next) {
		/* One whose user is being told goes on when that is over. */
		if (w->in_user || w->armed)
			continue;
		if (!arm(w))
			return -EBUSY;
		struct io_uring_sqe *sqe = w->cancelled ? loop_sqe(l, NULL) : NULL;
		if (sqe)
			io_uring_prep_cancel(sqe, &w->op, 0);
	}
	return 0;
}

void loop_watch_by_poll(struct loop *l)
{
	for (struct watch *w = l->watches; w; w = w->next)
		w->armed = false;
}

unsigned loop_watches_armed(const struct loop *l)
{
	unsigned n = 0;
	for (const struct watch *w = l->watches; w; w = w->next)
		n += w->armed;
	return n;
}

bool loop_can_poll(const struct loop *l)
{
	return l->watching < POLLED;
}

static struct watch *cancelled(const struct loop *l)
{
	for (struct watch *w = l->watches; w; w = w->next)
		if (w->cancelled && !w->armed && !w->in_user)
			return w;
	return NULL;
}

bool loop_has_cancelled(const struct loop *l)
{
	return cancelled(l);
}

int loop_poll(struct loop *l, loop_done_fn *only, int timeout_ms)
{
	struct pollfd p[POLLED] = {{.fd = l->wake_fd, .events = POLLIN}};
	struct watch *of[POLLED], *w;
	nfds_t n = 1;
	int any = 0;
	if (only) { /* which watches and posted work are not */
		int rc = poll(NULL, 0, timeout_ms);
		return rc < 0 ? -errno : 0;
	}
	while (!l->has_ring && (w = cancelled(l))) {
		watch_done(&w->op, -ECANCELED, 0);
		any = 1;
	}
	if (l->has_ring) /* who was told made one */
		return any;
	for (w = l->watches; w && n < POLLED; w = w->next) {
		if (w->in_user)
			continue;
		p[n] = (struct pollfd){.fd = w->fd, .events = (short)w->events};
		of[n++] = w;
	}
	int rc = timeout_ms ? fail_rc(LOOP_SUBMIT, poll(p, n, timeout_ms) < 0 ? -errno : 0)
			    : poll(p, n, 0);
	if (rc < 0)
		return timeout_ms ? rc : -errno;
	if (p[0].revents) {
		uint64_t value;
		if (read(l->wake_fd, &value, sizeof value) < 0 && errno != EINTR)
			return -errno;
		loop_woken(l);
		any = 1;
	}
	/* Until somebody who is told needs a ring: that tells of the rest. */
	for (nfds_t i = 1; i < n && !l->has_ring; i++) {
		if (!p[i].revents || of[i]->cancelled)
			continue;
		watch_done(&of[i]->op, p[i].revents & POLLNVAL ? -EBADF : p[i].revents, 0);
		any = 1;
	}
	return any;
}
