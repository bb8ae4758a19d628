/* The loop on io_uring. See loop.h. */
#include "virtio/loop.h"
#include "ipt/fail.h"
#include "ipt/own.h"
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

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
	bool in_user; /* user->done is running */
	bool cancelled;
};

/*
 * Waking: whoever posts from outside writes to the eventfd, which a READ on the ring waits for.
 * `woken` says that a write is under way to the ring and its completion not yet seen, so that many
 * posts make one write. It is cleared before the posted list is looked at.
 *
 * Invariant: if the list is not empty and the loop's thread sleeps, then woken.
 */
struct loop {
	struct io_uring ring;
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
	struct late *late; /* late_first..late_end of late_room */
	unsigned late_first, late_end, late_room;
	struct loop_work *quiet; /* loop_when_quiet */
	int quiet_ms;
	bool idle;            /* the last round waited for as long as it might, and nothing came */
	bool rests;           /* quiet has run, and nothing came since */
	struct watch some[2]; /* the first ones, so that few need the heap; op.done: in use */
};

static _Thread_local char self; /* its address names the thread */

static bool is_me(const struct loop *l)
{
	/* Relaxed: only this thread writes or erases its own name. */
	return atomic_load_explicit(&l->owner, memory_order_relaxed) == (uintptr_t)&self;
}

/* ---- completions -------------------------------------------------------------------------- */

static void wake_done(struct loop_op *op, int res, uint32_t flags)
{
	struct loop *l = (struct loop *)((char *)op - offsetof(struct loop, wake));
	(void)flags;
	l->wake_armed = false;
	pthread_mutex_lock(&l->lock);
	l->woken = false;
	pthread_mutex_unlock(&l->lock);
	/* A thread that ends takes the operations it submitted along (-ECANCELED): just arm again.
	 */
	if (res < 0 && res != -ECANCELED && res != -EINTR && res != -EAGAIN)
		l->wake_error = res;
}

/* Ring and eventfd. */
static int open_ring(struct loop *l, unsigned entries)
{
	l->wake_fd = eventfd(0, EFD_CLOEXEC);
	if (l->wake_fd < 0)
		return -errno;
	/* COOP_TASKRUN (5.19): no interrupt to a thread that enters the kernel soon anyway. */
	int r = fail_rc(LOOP_CREATE,
			io_uring_queue_init(entries, &l->ring, IORING_SETUP_COOP_TASKRUN));
	if (r == -EINVAL)
		r = io_uring_queue_init(entries, &l->ring, 0);
	if (r)
		close(l->wake_fd);
	return r;
}

int loop_create(struct loop **out, unsigned entries)
{
	struct loop *l = own_alloc(sizeof(*l));
	if (!l)
		return -ENOMEM;
	l->wake.done = wake_done;
	int r = open_ring(l, entries);
	if (r) {
		own_free(l);
		return r;
	}
	pthread_mutex_init(&l->lock, NULL);
	pthread_cond_init(&l->ran, NULL);
	*out = l;
	return 0;
}

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

static void close_ring(struct loop *l)
{
	io_uring_queue_exit(&l->ring);
	close(l->wake_fd);
	while (l->watches) {
		struct watch *w = l->watches;
		l->watches = w->next;
		free_watch(l, w);
	}
	free(l->late);
}

void loop_forget(struct loop *l)
{
	close_ring(l);
	l->late = NULL;
	l->late_first = l->late_end = l->late_room = 0;
	l->wake_armed = l->woken = false;
	l->wake_error = 0;
	l->current = NULL;
	atomic_store_explicit(&l->owner, 0, memory_order_relaxed);
	atomic_store_explicit(&l->stop, false, memory_order_relaxed);
}

int loop_renew(struct loop *l, unsigned entries)
{
	return open_ring(l, entries);
}

void loop_destroy(struct loop *l)
{
	if (!l)
		return;
	close_ring(l);
	pthread_cond_destroy(&l->ran);
	pthread_mutex_destroy(&l->lock);
	own_free(l);
}

/* Take everything off the completion ring without calling anybody. False if memory ran out; then
 * the rest stays on the ring. */
static bool collect(struct loop *l)
{
	struct io_uring_cqe *c;
	while (io_uring_peek_cqe(&l->ring, &c) == 0 && c) {
		if (l->late_first == l->late_end)
			l->late_first = l->late_end = 0;
		if (l->late_end == l->late_room) {
			unsigned room = l->late_room ? l->late_room * 2 : 32;
			struct late *p = realloc(l->late, room * sizeof(*p));
			if (!p)
				return false;
			l->late = p;
			l->late_room = room;
		}
		l->late[l->late_end++] = (struct late){io_uring_cqe_get_data(c), c->res, c->flags};
		io_uring_cqe_seen(&l->ring, c);
	}
	return true;
}

/* Where in `late` is the first completion for `only`? late_end: nowhere. */
static unsigned find_late(const struct loop *l, loop_done_fn *only)
{
	unsigned i = l->late_first;
	while (i < l->late_end && (!l->late[i].op || l->late[i].op->done != only))
		i++;
	return i;
}

/* The next completion for anybody, or for `only`. */
static bool next_completion(struct loop *l, loop_done_fn *only, struct late *out)
{
	if (only) {
		collect(l);
		unsigned i = find_late(l, only);
		if (i == l->late_end)
			return false;
		*out = l->late[i];
		memmove(&l->late[i], &l->late[i + 1], (--l->late_end - i) * sizeof(l->late[0]));
		return true;
	}
	if (l->late_first < l->late_end) {
		*out = l->late[l->late_first++];
		return true;
	}
	struct io_uring_cqe *c;
	if (io_uring_peek_cqe(&l->ring, &c) || !c)
		return false;
	*out = (struct late){io_uring_cqe_get_data(c), c->res, c->flags};
	io_uring_cqe_seen(&l->ring, c);
	return true;
}

static bool dispatch(struct loop *l, loop_done_fn *only)
{
	/* Bounded by what is there now: an op that completes at once and submits itself again must
	 * not keep the rest from its turn. */
	unsigned n = l->late_end - l->late_first + io_uring_cq_ready(&l->ring);
	bool any = false;
	struct late c;
	while (n-- && next_completion(l, only, &c)) {
		any = true;
		if (c.op) /* cancellations complete without one */
			c.op->done(c.op, c.res, c.flags);
	}
	return any;
}

/* ---- submitting --------------------------------------------------------------------------- */

struct io_uring_sqe *loop_sqe(struct loop *l, struct loop_op *op)
{
	struct io_uring_sqe *sqe;
	for (int tries = 0; !(sqe = fail_null(LOOP_ENTRY, io_uring_get_sqe(&l->ring))); tries++) {
		int r = io_uring_submit(&l->ring);
		if (r >= 0 || r == -EINTR)
			continue;
		/* -EBUSY: completions overflowed and the kernel takes no more before they are
		 * read. -EAGAIN, -ENOMEM: the kernel is short of memory for now. */
		if ((r != -EBUSY && r != -EAGAIN && r != -ENOMEM) || tries > 1000)
			return NULL;
		io_uring_get_events(&l->ring);
		if (!collect(l))
			return NULL;
		if (tries > 10)
			nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	}
	io_uring_prep_nop(sqe); /* so that one its caller leaves unprepared does no harm */
	io_uring_sqe_set_data(sqe, op);
	return sqe;
}

static bool watch_arm(struct watch *w)
{
	struct io_uring_sqe *sqe = loop_sqe(w->loop, &w->op);
	if (!sqe)
		return false;
	io_uring_prep_poll_add(sqe, w->fd, w->events);
	return true;
}

static void watch_done(struct loop_op *op, int res, uint32_t flags)
{
	struct watch *w = (struct watch *)op;
	struct loop *l = w->loop;
	(void)flags;
	/* -ECANCELED without our asking: the thread that armed it ended. */
	if (!w->cancelled)
		res = fail_result(FAIL_LOOP_POLL, FAIL_IDS, res);
	if (!w->cancelled && res != -ECANCELED) {
		w->in_user = true;
		w->user->done(w->user, res, 0);
		w->in_user = false;
	}
	if (!w->cancelled && (res >= 0 || res == -ECANCELED)) {
		if (watch_arm(w))
			return;
		res = -EBUSY;
	} else if (w->cancelled) {
		res = -ECANCELED;
	} else {
		res = 0; /* the user has it already */
	}
	for (struct watch **p = &l->watches; *p; p = &(*p)->next) {
		if (*p == w) {
			*p = w->next;
			break;
		}
	}
	struct loop_op *user = w->user;
	free_watch(l, w);
	if (res)
		user->done(user, res, 0);
}

int loop_watch(struct loop *l, struct loop_op *op, int fd, uint32_t events)
{
	struct watch *w = new_watch(l);
	if (!w)
		return -ENOMEM;
	*w = (struct watch){.op = {watch_done}, .loop = l, .user = op, .fd = fd, .events = events};
	if (!watch_arm(w)) {
		free_watch(l, w);
		return -EBUSY;
	}
	w->next = l->watches;
	l->watches = w;
	return 0;
}

void loop_cancel(struct loop *l, struct loop_op *op)
{
	struct loop_op *target = op;
	for (struct watch *w = l->watches; w; w = w->next) {
		if (w->user == op && !w->cancelled) {
			w->cancelled = true;
			if (w->in_user)
				return; /* nothing in flight; watch_done sees the mark */
			target = &w->op;
			break;
		}
	}
	struct io_uring_sqe *sqe = loop_sqe(l, NULL);
	if (sqe)
		io_uring_prep_cancel(sqe, target, 0);
}

/* ---- posting ------------------------------------------------------------------------------ */

static void wake(struct loop *l)
{
	uint64_t one = 1;
	/* Can't block: the counter would have to reach 2^64 - 1. */
	while (write(l->wake_fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

void loop_post(struct loop *l, struct loop_work *w)
{
	bool ring = false;
	pthread_mutex_lock(&l->lock);
	if (!w->queued) {
		w->queued = true;
		w->next = NULL;
		if (l->first)
			l->last->next = w;
		else
			l->first = w;
		l->last = w;
		l->posted++;
		/* The loop's own thread looks at the list before it sleeps. */
		ring = !l->woken && !is_me(l);
		l->woken |= ring;
	}
	pthread_mutex_unlock(&l->lock);
	if (ring)
		wake(l);
}

void loop_unpost(struct loop *l, struct loop_work *w)
{
	pthread_mutex_lock(&l->lock);
	for (;;) {
		if (w->queued) {
			struct loop_work **p = &l->first, *before = NULL;
			while (*p != w) {
				before = *p;
				p = &(*p)->next;
			}
			*p = w->next;
			if (l->last == w)
				l->last = before;
			w->queued = false;
			l->posted--;
		}
		if (l->current != w || is_me(l))
			break;
		pthread_cond_wait(&l->ran, &l->lock);
	}
	pthread_mutex_unlock(&l->lock);
}

static bool anything_posted(struct loop *l)
{
	pthread_mutex_lock(&l->lock);
	bool any = l->first != NULL;
	pthread_mutex_unlock(&l->lock);
	return any;
}

static void run_posted(struct loop *l)
{
	pthread_mutex_lock(&l->lock);
	/* As many as are there now: work that posts itself again waits for the next round. */
	for (unsigned n = l->posted; n && l->first; n--) {
		struct loop_work *w = l->first;
		l->first = w->next;
		l->posted--;
		w->queued = false;
		struct loop_work *outer = l->current; /* not NULL if a run calls loop_step */
		l->current = w;
		pthread_mutex_unlock(&l->lock);
		w->run(w);
		pthread_mutex_lock(&l->lock);
		l->current = outer;
		pthread_cond_broadcast(&l->ran);
	}
	pthread_mutex_unlock(&l->lock);
}

/* ---- running ------------------------------------------------------------------------------ */

/* Become the loop's thread; *nested says that we were already. */
static int enter(struct loop *l, bool *nested)
{
	uintptr_t nobody = 0;
	*nested = is_me(l);
	/* Acquire, against leave's release: what the last owner did to the ring is seen. */
	if (!*nested &&
	    !atomic_compare_exchange_strong_explicit(&l->owner, &nobody, (uintptr_t)&self,
						     memory_order_acquire, memory_order_relaxed))
		return -EBUSY;
	return 0;
}

static void leave(struct loop *l, bool nested)
{
	if (!nested)
		atomic_store_explicit(&l->owner, 0, memory_order_release);
}

/* One round. timeout_ms as loop_step. */
static int round_once(struct loop *l, loop_done_fn *only, int timeout_ms)
{
	if (!l->wake_armed) {
		struct io_uring_sqe *sqe = loop_sqe(l, &l->wake);
		if (!sqe)
			return -EBUSY;
		io_uring_prep_read(sqe, l->wake_fd, &l->wake_value, sizeof(l->wake_value), 0);
		l->wake_armed = true;
	}
	bool ready = only ? find_late(l, only) < l->late_end
			  : l->late_first < l->late_end || anything_posted(l);
	bool waits = false;
	int r;
	if (ready || io_uring_cq_ready(&l->ring) || !timeout_ms) {
		r = io_uring_submit_and_get_events(&l->ring);
	} else if (timeout_ms < 0) {
		r = fail_rc(LOOP_SUBMIT, io_uring_submit_and_wait(&l->ring, 1));
	} else {
		struct __kernel_timespec ts = {timeout_ms / 1000, timeout_ms % 1000 * 1000000L};
		struct io_uring_cqe *c;
		waits = true;
		r = fail_rc(LOOP_SUBMIT,
			    io_uring_submit_and_wait_timeout(&l->ring, &c, 1, &ts, NULL));
	}
	bool any = dispatch(l, only);
	/* Its time was up: -ETIME, or how many it submitted before. */
	l->idle = waits && !any && (r >= 0 || r == -ETIME);
	l->rests = l->rests && !any;
	if (!only)
		run_posted(l);
	if (r == -EBUSY || r == -EAGAIN || r == -ENOMEM) {
		if (!any) /* the kernel is short of memory: don't spin on it */
			nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
		return 0;
	}
	if (r < 0 && r != -EINTR && r != -ETIME)
		return r;
	return l->wake_error;
}

int loop_step(struct loop *l, loop_done_fn *only, int timeout_ms)
{
	bool nested;
	int r = enter(l, &nested);
	if (r)
		return r;
	r = round_once(l, only, timeout_ms);
	leave(l, nested);
	return r;
}

void loop_when_quiet(struct loop *l, struct loop_work *w, int ms)
{
	l->quiet = w;
	l->quiet_ms = ms;
	l->rests = false;
}

int loop_run(struct loop *l)
{
	bool nested;
	int r = enter(l, &nested);
	if (r)
		return r;
	/* Acquire: what the thread that asked us to stop wrote before is seen. */
	while (!r && !atomic_exchange_explicit(&l->stop, false, memory_order_acq_rel)) {
		r = round_once(l, NULL, l->quiet && !l->rests ? l->quiet_ms : -1);
		if (!r && l->idle) {
			l->rests = true;
			l->quiet->run(l->quiet);
		}
	}
	leave(l, nested);
	return r;
}

void loop_stop(struct loop *l)
{
	atomic_store_explicit(&l->stop, true, memory_order_release);
	wake(l);
}
