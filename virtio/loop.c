/* The loop on io_uring. See loop.h. */
#include "ipt/fail.h"
#include "ipt/own.h"
#include "virtio/loop_private.h"
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

static _Thread_local char self; /* its address names the thread */

static bool is_me(const struct loop *l)
{
	/* Relaxed: only this thread writes or erases its own name. */
	return atomic_load_explicit(&l->owner, memory_order_relaxed) == (uintptr_t)&self;
}

/* ---- completions -------------------------------------------------------------------------- */

void loop_woken(struct loop *l)
{
	pthread_mutex_lock(&l->lock);
	l->woken = false;
	pthread_mutex_unlock(&l->lock);
}

static void wake_done(struct loop_op *op, int res, uint32_t flags)
{
	struct loop *l = (struct loop *)((char *)op - offsetof(struct loop, wake));
	(void)flags;
	l->wake_armed = false;
	loop_woken(l);
	/* A thread that ends takes the operations it submitted along (-ECANCELED): just arm again.
	 */
	if (res < 0 && res != -ECANCELED && res != -EINTR && res != -EAGAIN)
		l->wake_error = res;
}

/* ---- the ring ----------------------------------------------------------------------------- */

static int open_wake(struct loop *l, unsigned entries)
{
	l->entries = entries;
	l->wake_fd = eventfd(0, EFD_CLOEXEC);
	return l->wake_fd < 0 ? -errno : 0;
}

static int make_ring(struct io_uring *ring, unsigned entries)
{
	/* COOP_TASKRUN (5.19): no interrupt to a thread that enters the kernel soon anyway. */
	int r = fail_rc(LOOP_CREATE, io_uring_queue_init(entries, ring, IORING_SETUP_COOP_TASKRUN));
	return r == -EINVAL ? io_uring_queue_init(entries, ring, 0) : r;
}

/* Could we have one? In the sandbox it may be forbidden where it wasn't before (kernel.io_uring_disabled). */
static bool may_have_ring(void)
{
	struct io_uring ring;
	if (make_ring(&ring, 1))
		return false;
	io_uring_queue_exit(&ring);
	return true;
}

static int open_ring(struct loop *l)
{
	int r = make_ring(&l->ring, l->entries);
	if (r)
		return r;
	l->has_ring = true;
	r = loop_watch_by_ring(l);
	if (r) /* it isn't heard any more: loop_run ends */
		l->wake_error = r;
	return r;
}

static void close_ring(struct loop *l)
{
	if (l->has_ring)
		io_uring_queue_exit(&l->ring);
	l->has_ring = l->wake_armed = false;
	l->flying = 0;
}

/* There is nothing for it but watching. Cancelled here and now, so that the READ of the wake takes nothing later; what
 * was ready is so for poll(2) as well. (Before Linux 6.0 it can't be done, and the ring stays.) */
static void rest(struct loop *l)
{
	if (!l->has_ring || !loop_can_poll(l) || l->late_first < l->late_end ||
	    io_uring_sq_ready(&l->ring) || l->flying != loop_watches_armed(l) + l->wake_armed ||
	    !may_have_ring())
		return;
	struct io_uring_sync_cancel_reg all = {
		.flags = IORING_ASYNC_CANCEL_ANY | IORING_ASYNC_CANCEL_ALL, .timeout = {-1, -1}};
	int r = io_uring_register_sync_cancel(&l->ring, &all);
	if (r < 0 && r != -ENOENT)
		return;
	close_ring(l);
	loop_watch_by_poll(l);
	loop_woken(l);
}

int loop_create(struct loop **out, unsigned entries)
{
	struct loop *l = own_alloc(sizeof(*l));
	if (!l)
		return -ENOMEM;
	l->wake.done = wake_done;
	int r = open_wake(l, entries);
	if (!r && (r = open_ring(l)))
		close(l->wake_fd);
	if (r) {
		own_free(l);
		return r;
	}
	pthread_mutex_init(&l->lock, NULL);
	pthread_cond_init(&l->ran, NULL);
	*out = l;
	return 0;
}

static void let_go(struct loop *l)
{
	close_ring(l);
	close(l->wake_fd);
	loop_drop_watches(l);
	free(l->late);
}

int loop_fd(const struct loop *l)
{
	return l->ring.ring_fd;
}

int loop_keep(struct loop *l)
{
	return io_uring_ring_dontfork(&l->ring);
}

void loop_forget(struct loop *l)
{
	let_go(l);
	l->needs_ring = !may_have_ring();
	l->late = NULL;
	l->late_first = l->late_end = l->late_room = 0;
	l->woken = false;
	l->wake_error = 0;
	l->current = NULL;
	atomic_store_explicit(&l->owner, 0, memory_order_relaxed);
	atomic_store_explicit(&l->stop, false, memory_order_relaxed);
}

int loop_renew(struct loop *l, unsigned entries)
{
	int r = open_wake(l, entries);
	if (!r && l->needs_ring && (r = open_ring(l)))
		close(l->wake_fd);
	return r;
}

void loop_destroy(struct loop *l)
{
	if (!l)
		return;
	let_go(l);
	pthread_cond_destroy(&l->ran);
	pthread_mutex_destroy(&l->lock);
	own_free(l);
}

/* Take everything off the completion ring without calling anybody. False if memory ran out; then
 * the rest stays on the ring. */
static bool collect(struct loop *l)
{
	struct io_uring_cqe *c;
	while (l->has_ring && io_uring_peek_cqe(&l->ring, &c) == 0 && c) {
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
		l->flying--;
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
	if (!l->has_ring || io_uring_peek_cqe(&l->ring, &c) || !c)
		return false;
	*out = (struct late){io_uring_cqe_get_data(c), c->res, c->flags};
	io_uring_cqe_seen(&l->ring, c);
	l->flying--;
	return true;
}

static bool dispatch(struct loop *l, loop_done_fn *only)
{
	/* Bounded by what is there now: an op that completes at once and submits itself again must
	 * not keep the rest from its turn. */
	unsigned n = l->late_end - l->late_first + (l->has_ring ? io_uring_cq_ready(&l->ring) : 0);
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
	if (!l->has_ring && open_ring(l))
		return NULL;
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
	l->flying++;
	return sqe;
}

void loop_cancel(struct loop *l, struct loop_op *op)
{
	struct loop_op *target = loop_cancel_watch(l, op);
	struct io_uring_sqe *sqe = target && l->has_ring ? loop_sqe(l, NULL) : NULL;
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

/* Submit, and wait for a completion unless there is something to be done at once. */
static int enter_ring(struct loop *l, bool ready, int timeout_ms)
{
	if (ready || io_uring_cq_ready(&l->ring) || !timeout_ms)
		return io_uring_submit_and_get_events(&l->ring);
	if (timeout_ms < 0)
		return fail_rc(LOOP_SUBMIT, io_uring_submit_and_wait(&l->ring, 1));
	struct __kernel_timespec ts = {timeout_ms / 1000, timeout_ms % 1000 * 1000000L};
	struct io_uring_cqe *c;
	return fail_rc(LOOP_SUBMIT, io_uring_submit_and_wait_timeout(&l->ring, &c, 1, &ts, NULL));
}

/* One round. timeout_ms as loop_step. */
static int round_once(struct loop *l, loop_done_fn *only, int timeout_ms)
{
	if (l->has_ring && !l->wake_armed) {
		struct io_uring_sqe *sqe = loop_sqe(l, &l->wake);
		if (!sqe)
			return -EBUSY;
		io_uring_prep_read(sqe, l->wake_fd, &l->wake_value, sizeof(l->wake_value), 0);
		l->wake_armed = true;
	}
	bool ready =
		only ? find_late(l, only) < l->late_end
		     : l->late_first < l->late_end || anything_posted(l) || loop_has_cancelled(l);
	bool any = false;
	int r;
	if (l->has_ring) {
		r = enter_ring(l, ready, timeout_ms);
	} else {
		r = loop_poll(l, only, ready ? 0 : timeout_ms);
		any = r > 0;
	}
	any = dispatch(l, only) || any;
	/* Its time was up: -ETIME, or how many it submitted before. */
	l->idle = timeout_ms > 0 && !ready && !any && (r >= 0 || r == -ETIME);
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
			rest(l);
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
