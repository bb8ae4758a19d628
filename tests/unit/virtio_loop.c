/* The io_uring loop by itself, and copies of guest memory. */
#include "virtio_fake.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/wait.h>
#include <unistd.h>

struct counter {
	struct loop_op op; /* must be first */
	struct loop *loop;
	int fd, calls, cancelled, last;
};

static void count(struct loop_op *op, int res, uint32_t flags)
{
	struct counter *c = (struct counter *)op;
	(void)flags;
	c->calls++;
	c->last = res;
	if (res == -ECANCELED)
		c->cancelled++;
}

/* Takes one of the eventfd's (a semaphore), so the next call must come by itself. */
static void take_one(struct loop_op *op, int res, uint32_t flags)
{
	struct counter *c = (struct counter *)op;
	uint64_t v;
	count(op, res, flags);
	if (res >= 0)
		cr_assert_eq(read(c->fd, &v, 8), 8);
}

static void cancel_self(struct loop_op *op, int res, uint32_t flags)
{
	struct counter *c = (struct counter *)op;
	count(op, res, flags);
	if (res >= 0)
		loop_cancel(c->loop, op);
}

Test(virtio_loop, watch_is_level_triggered)
{
	struct loop *l;
	uint64_t five = 5;
	cr_assert_eq(loop_create(&l, 4), 0);
	struct counter c = {.op = {take_one}, .loop = l, .fd = eventfd(0, EFD_SEMAPHORE)};
	cr_assert_eq(loop_watch(l, &c.op, c.fd, POLLIN), 0);
	cr_assert_eq(loop_step(l, NULL, 0), 0);
	cr_assert_eq(c.calls, 0);
	for (int round = 1; round <= 3; round++) {
		cr_assert_eq(write(c.fd, &five, 8), 8);
		for (int i = 0; i < 20; i++)
			loop_step(l, NULL, 5);
		cr_assert_eq(c.calls, 5 * round);
	}
	loop_cancel(l, &c.op);
	for (int i = 0; i < 5; i++)
		loop_step(l, NULL, 5);
	cr_assert_eq(c.cancelled, 1);
	cr_assert_eq(write(c.fd, &five, 8), 8);
	loop_step(l, NULL, 5);
	cr_assert_eq(c.calls, 16, "quiet after it was cancelled");

	/* Cancelled by its own callback. */
	struct counter d = {.op = {cancel_self}, .loop = l, .fd = c.fd};
	cr_assert_eq(loop_watch(l, &d.op, d.fd, POLLIN), 0);
	for (int i = 0; i < 5; i++)
		loop_step(l, NULL, 5);
	cr_assert_eq(d.calls, 2);
	cr_assert_eq(d.cancelled, 1);

	/* An fd that is none: told once. */
	struct counter e = {.op = {count}, .loop = l};
	cr_assert_eq(loop_watch(l, &e.op, 9999, POLLIN), 0);
	for (int i = 0; i < 5; i++)
		loop_step(l, NULL, 5);
	cr_assert_eq(e.calls, 1);
	cr_assert_eq(e.last, -EBADF);
	loop_destroy(l);
}

/* Far more operations than either ring has room for, all complete before any is taken. */
Test(virtio_loop, rings_overflow)
{
	struct loop *l;
	struct counter c[1000];
	cr_assert_eq(loop_create(&l, 4), 0);
	for (int round = 0; round < 3; round++) {
		for (int i = 0; i < 1000; i++) {
			c[i] = (struct counter){.op = {count}};
			struct io_uring_sqe *sqe = loop_sqe(l, &c[i].op);
			cr_assert_not_null(sqe);
			io_uring_prep_nop(sqe);
		}
		for (int i = 0; i < 1000; i++)
			loop_step(l, NULL, 0);
		for (int i = 0; i < 1000; i++)
			cr_assert_eq(c[i].calls, 1, "%d", i);
	}
	loop_destroy(l);
}

struct poster {
	struct loop_work work; /* must be first */
	struct loop *loop;
	atomic_int runs, again;
};

static void ran(struct loop_work *w)
{
	struct poster *p = (struct poster *)w;
	atomic_fetch_add(&p->runs, 1);
	if (atomic_load(&p->again) > 0) {
		atomic_fetch_sub(&p->again, 1);
		loop_post(p->loop, w);
	}
}

static void *run(void *arg)
{
	cr_assert_eq(loop_run(arg), 0);
	return NULL;
}

static void *post_many(void *arg)
{
	struct poster *p = arg;
	for (int i = 0; i < 20000; i++)
		loop_post(p->loop, &p->work);
	return NULL;
}

Test(virtio_loop, posting)
{
	struct loop *l;
	pthread_t thread, posters[2];
	cr_assert_eq(loop_create(&l, 16), 0);
	/* Stopped before it runs: returns at once, and runs the next time. */
	loop_stop(l);
	cr_assert_eq(loop_run(l), 0);
	struct poster p[2] = {{.work = {.run = ran}, .loop = l}, {.work = {.run = ran}, .loop = l}};
	cr_assert_eq(pthread_create(&thread, NULL, run, l), 0);
	/* Each post is followed by a run, however long the loop slept. */
	for (int i = 1; i <= 2000; i++) {
		loop_post(l, &p[0].work);
		for (int j = 0; atomic_load(&p[0].runs) < i; j++) {
			cr_assert_lt(j, 1000000, "a wake-up was lost");
			if (j > 100)
				usleep(10);
		}
	}
	cr_assert_eq(loop_step(l, NULL, 0), -EBUSY);
	for (int i = 0; i < 2; i++)
		pthread_create(&posters[i], NULL, post_many, &p[i]);
	for (int i = 0; i < 2; i++)
		pthread_join(posters[i], NULL);
	/* Posting itself again and again: others still get their turn. */
	atomic_store(&p[1].again, INT32_MAX);
	loop_post(l, &p[1].work);
	int before = atomic_load(&p[0].runs);
	loop_post(l, &p[0].work);
	while (atomic_load(&p[0].runs) == before)
		usleep(10);
	/* Taken back: not running when unpost returns. It may post itself once more from inside. */
	atomic_store(&p[1].again, 0);
	loop_unpost(l, &p[1].work);
	int runs = atomic_load(&p[1].runs);
	usleep(2000);
	cr_assert_eq(atomic_load(&p[1].runs), runs);
	loop_stop(l);
	pthread_join(thread, NULL);
	loop_destroy(l);
}

/* What the child of a loop's thread has of the loop: posted work, and nothing that is in flight. */
struct forker {
	struct loop_work work; /* must be first */
	struct loop *loop;
	struct counter watched, nop;
	struct poster posted;
	pid_t child;
};

static int child_of(struct forker *f)
{
	uint64_t one = 1;
	pthread_t thread;
	alarm(30);
	loop_forget(f->loop);
	if (loop_renew(f->loop, 4))
		return 1;
	/* The watch and the operation were the parent's. The event is there, for both. */
	for (int i = 0; i < 5; i++)
		if (loop_step(f->loop, NULL, 1))
			return 2;
	if (f->watched.calls || f->nop.calls)
		return 3;
	if (atomic_load(&f->posted.runs) != 1)
		return 4;
	/* It is a loop like any other. */
	struct counter mine = {.op = {count}, .fd = eventfd(1, 0)};
	if (loop_watch(f->loop, &mine.op, mine.fd, POLLIN) || loop_step(f->loop, NULL, 1000) ||
	    !mine.calls || read(mine.fd, &one, 8) != 8)
		return 5;
	if (pthread_create(&thread, NULL, run, f->loop))
		return 6;
	for (int i = 2; i < 500; i++) {
		loop_post(f->loop, &f->posted.work);
		for (int j = 0; atomic_load(&f->posted.runs) < i; j++) {
			if (j > 20000)
				return 7;
			usleep(100);
		}
	}
	loop_stop(f->loop);
	pthread_join(thread, NULL);
	loop_destroy(f->loop);
	return 0;
}

static void fork_inside(struct loop_work *w)
{
	struct forker *f = (struct forker *)w;
	struct io_uring_sqe *sqe = loop_sqe(f->loop, &f->nop.op);
	uint64_t one = 1;
	io_uring_prep_nop(sqe);
	loop_post(f->loop, &f->posted.work);
	cr_assert_eq(write(f->watched.fd, &one, 8), 8);
	f->child = fork();
	if (!f->child)
		_exit(child_of(f));
}

Test(virtio_loop, forked_from_inside, .timeout = 60)
{
	struct forker f = {.work = {.run = fork_inside},
			   .watched = {.op = {take_one}, .fd = eventfd(0, EFD_SEMAPHORE)},
			   .nop = {.op = {count}},
			   .posted = {.work = {.run = ran}}};
	cr_assert_eq(loop_create(&f.loop, 4), 0);
	for (int round = 1; round <= 5; round++) {
		int status;
		atomic_store(&f.posted.runs, 0);
		f.watched.calls = f.nop.calls = 0;
		if (round == 1)
			cr_assert_eq(loop_watch(f.loop, &f.watched.op, f.watched.fd, POLLIN), 0);
		loop_step(f.loop, NULL, 0);
		loop_post(f.loop, &f.work);
		for (int i = 0; i < 5; i++)
			cr_assert_eq(loop_step(f.loop, NULL, 1), 0);
		cr_assert_eq(waitpid(f.child, &status, 0), f.child);
		cr_assert_eq(status, 0, "the child: 0x%x", status);
		/* The parent's loop has missed nothing, and lost nothing with the child. */
		for (int i = 0; i < 5; i++)
			cr_assert_eq(loop_step(f.loop, NULL, 1), 0);
		cr_assert_eq(f.watched.calls, 1);
		cr_assert_eq(f.nop.calls, 1);
		cr_assert_eq(atomic_load(&f.posted.runs), 1);
	}
	f.watched.calls = 0;
	uint64_t one = 1;
	cr_assert_eq(write(f.watched.fd, &one, 8), 8);
	cr_assert_eq(loop_step(f.loop, NULL, 1000), 0);
	cr_assert_eq(f.watched.calls, 1, "the watch goes on after the child's end");
	loop_destroy(f.loop);
}

static void step(struct loop *l, int times)
{
	for (int i = 0; i < times; i++)
		cr_assert_eq(loop_step(l, NULL, 1), 0);
}

static void quiet(struct loop_work *w)
{
	loop_stop(((struct poster *)w)->loop);
	ran(w);
}

/* Run the loop until it has had nothing to do, and has let its ring go. */
static void run_till_quiet(struct loop *l)
{
	struct poster p = {.work = {.run = quiet}, .loop = l};
	loop_when_quiet(l, &p.work, 5);
	cr_assert_eq(loop_run(l), 0);
	cr_assert_eq(atomic_load(&p.runs), 1);
	loop_when_quiet(l, NULL, 0);
}

/* A ring is a descriptor of the process's. */
static unsigned rings(void)
{
	char path[64], to[64];
	unsigned n = 0;
	for (int fd = 0; fd < 256; fd++) {
		snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
		ssize_t got = readlink(path, to, sizeof to - 1);
		to[got > 0 ? got : 0] = 0;
		n += strstr(to, "[io_uring]") != NULL;
	}
	return n;
}

Test(virtio_loop, goes_on_without_its_ring, .timeout = 60)
{
	struct loop *l;
	uint64_t one = 1;
	cr_assert_eq(loop_create(&l, 4), 0);
	struct counter watched = {.op = {take_one}, .fd = eventfd(0, EFD_SEMAPHORE)};
	struct counter once = {.op = {count}, .fd = eventfd(0, 0)};
	struct counter nop = {.op = {count}};
	struct poster posted = {.work = {.run = ran}, .loop = l};
	int runs = 0;
	cr_assert_eq(loop_watch(l, &watched.op, watched.fd, POLLIN), 0);
	for (int round = 1; round <= 3; round++) {
		once.calls = watched.calls = nop.calls = 0;
		cr_assert_eq(loop_wait(l, &once.op, once.fd, POLLIN), 0);
		cr_assert_eq(rings(), round == 1);
		run_till_quiet(l);
		cr_assert_eq(rings(), 0);
		/* A watch, level-triggered; a wait, once; posts, of this thread and of another that wakes it. */
		cr_assert_eq(write(watched.fd, &one, 8), 8);
		cr_assert_eq(write(watched.fd, &one, 8), 8);
		cr_assert_eq(write(once.fd, &one, 8), 8);
		step(l, 5);
		cr_assert_eq(watched.calls, 2);
		cr_assert_eq(once.calls, 1);
		cr_assert_eq(once.last, POLLIN);
		loop_post(l, &posted.work);
		step(l, 1);
		cr_assert_eq(atomic_load(&posted.runs), ++runs);
		pthread_t thread;
		cr_assert_eq(pthread_create(&thread, NULL, run, l), 0);
		for (int i = 0; i < 500; i++) {
			loop_post(l, &posted.work);
			runs++;
			for (int j = 0; atomic_load(&posted.runs) < runs; j++) {
				cr_assert_lt(j, 100000, "a wake-up was lost");
				usleep(10);
			}
		}
		loop_stop(l);
		pthread_join(thread, NULL);
		cr_assert_eq(rings(), 0);
		/* An operation brings the ring back, which takes over what is watched. */
		cr_assert_eq(loop_wait(l, &once.op, once.fd, POLLIN), 0);
		io_uring_prep_nop(loop_sqe(l, &nop.op));
		cr_assert_eq(write(watched.fd, &one, 8), 8);
		step(l, 5);
		cr_assert_eq(rings(), 1);
		cr_assert_eq(nop.calls, 1);
		cr_assert_eq(watched.calls, 3);
		cr_assert_eq(once.calls, 2, "it is ready still");
		cr_assert_eq(read(once.fd, &one, 8), 8);
		one = 1;
		run_till_quiet(l);
		cr_assert_eq(rings(), 0);
	}
	/* With something in flight the ring stays. */
	struct __kernel_timespec soon = {.tv_nsec = 50000000};
	nop.calls = 0;
	io_uring_prep_timeout(loop_sqe(l, &nop.op), &soon, 0, 0);
	run_till_quiet(l);
	cr_assert_eq(nop.calls, 0);
	cr_assert_eq(rings(), 1);
	for (int i = 0; i < 1000 && !nop.calls; i++)
		step(l, 1);
	cr_assert_eq(nop.last, -ETIME);
	/* Taken back without one: they hear of it as with one. A ring that comes in between changes nothing. */
	for (int ring = 0; ring < 2; ring++) {
		run_till_quiet(l);
		cr_assert_eq(rings(), 0);
		cr_assert_eq(loop_wait(l, &once.op, once.fd, POLLIN), 0);
		once.calls = once.cancelled = watched.calls = watched.cancelled = 0;
		loop_cancel(l, &once.op);
		loop_cancel(l, &watched.op);
		if (ring)
			io_uring_prep_nop(loop_sqe(l, &nop.op));
		step(l, 5);
		cr_assert_eq(once.cancelled, 1);
		cr_assert_eq(watched.cancelled, 1);
		cr_assert_eq(once.calls + watched.calls, 2);
		cr_assert_eq(write(watched.fd, &one, 8), 8);
		step(l, 3);
		cr_assert_eq(watched.calls, 1);
		cr_assert_eq(read(watched.fd, &one, 8), 8);
		cr_assert_eq(loop_watch(l, &watched.op, watched.fd, POLLIN), 0);
	}
	loop_destroy(l);
	cr_assert_eq(rings(), 0);
	close(watched.fd);
	close(once.fd);
}

/* As many as poll(2) is not asked for: then it is the ring that watches. And one that is closed, which is an error. */
Test(virtio_loop, watches_many, .timeout = 60)
{
	enum { N = 40 };
	struct loop *l;
	struct counter c[N];
	uint64_t one = 1;
	cr_assert_eq(loop_create(&l, 4), 0);
	for (int i = 0; i < N; i++) {
		c[i] = (struct counter){.op = {take_one}, .fd = eventfd(0, EFD_SEMAPHORE)};
		cr_assert_eq(loop_watch(l, &c[i].op, c[i].fd, POLLIN), 0);
		run_till_quiet(l);
		cr_assert_eq(rings(), i >= 15, "%d", i);
		cr_assert_eq(write(c[i].fd, &one, 8), 8);
		step(l, 2);
		cr_assert_eq(c[i].calls, 1);
	}
	loop_destroy(l);
	cr_assert_eq(loop_create(&l, 4), 0);
	run_till_quiet(l);
	struct counter bad = {.op = {count}};
	cr_assert_eq(loop_watch(l, &bad.op, 1000, POLLIN), 0);
	step(l, 3);
	cr_assert_eq(bad.calls, 1);
	cr_assert_eq(bad.last, -EBADF);
	loop_destroy(l);
}

Test(virtio_gmem, copies)
{
	struct fake f;
	uint8_t a[100000], b[100000];
	uint16_t v;
	fake_init(&f);
	struct gmem *m = &f.gmem;
	for (unsigned i = 0; i < sizeof(a); i++)
		a[i] = fill_byte(i);
	for (unsigned at = 0x1ff0; at < 0x2010; at += 5) {
		cr_assert_eq(gmem_write(m, gpa(at), a, sizeof(a)), 0);
		cr_assert_eq(gmem_read(m, gpa(at), b, sizeof(b)), 0);
		cr_assert(!memcmp(a, b, sizeof(a)));
	}
	cr_assert_eq(gmem_read(m, gpa(0), b, 0), 0);
	cr_assert_eq(gmem_read(m, gpa(FAKE_BYTES - 1), b, 2), -EFAULT);
	cr_assert_eq(gmem_write(m, gpa(UINT64_MAX), b, 2), -EFAULT);
	cr_assert_eq(gmem_write(m, gpa(UINT64_MAX - 100), a, sizeof(a)), -EFAULT);
	cr_assert_eq(gmem_store16_release(m, gpa(0x1000), 0x1234), 0);
	cr_assert_eq(gmem_read(m, gpa(0x1000), b, 2), 0);
	cr_assert(b[0] == 0x34 && b[1] == 0x12, "little-endian");
	cr_assert_eq(gmem_load16_acquire(m, gpa(0x1000), &v), 0);
	cr_assert_eq(v, 0x1234);
	cr_assert_eq(gmem_load16_acquire(m, gpa(0x1001), &v), -EINVAL);
	cr_assert_eq(gmem_store16_release(m, gpa(FAKE_BYTES), v), -EFAULT);
	f.fail = 1;
	f.skip = 1;
	f.error = -EAGAIN;
	cr_assert_eq(gmem_write(m, gpa(0), a, sizeof(a)), -EAGAIN);
	fake_fini(&f);
}
