#include "vmm/outlet.h"
#include "ipt/fail.h"
#include "vmm/container.h"
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define FLUSH_DELAY_MS 5

/* Send held bytes, as many as go without waiting. Lock held. A host that is gone takes everything.
 */
static void send_held(struct outlet *o)
{
	size_t sent = 0;
	while (sent < o->held) {
		ssize_t n = fail_call(CONSOLE_SEND, send(o->fd, o->buffer + sent, o->held - sent,
							 MSG_NOSIGNAL | MSG_DONTWAIT));
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && (errno == EAGAIN || errno == ENOMEM || errno == ENOBUFS))
			break;
		if (n < 0) {
			sent = o->held;
			break;
		}
		sent += (size_t)n;
	}
	memmove(o->buffer, o->buffer + sent, o->held - sent);
	o->held -= sent;
}

static void on_timer(struct loop_op *op, int res, uint32_t flags)
{
	(void)res;
	(void)flags;
	struct outlet *o = container(struct outlet, timer, op);
	pthread_mutex_lock(&o->lock);
	o->timer_set = false;
	send_held(o);
	bool again = o->held > 0;
	if (again)
		o->timer_set = true;
	pthread_mutex_unlock(&o->lock);
	if (again)
		loop_post(o->loop, &o->arm);
}

/* Where the loop can't be asked to wait: nothing that is held is to stay for ever. */
static void pass_time(void)
{
	nanosleep(&(struct timespec){.tv_nsec = FLUSH_DELAY_MS * 1000000}, NULL);
}

static void arm_timer(struct loop_work *w)
{
	struct outlet *o = container(struct outlet, arm, w);
	o->delay = (struct __kernel_timespec){.tv_nsec = FLUSH_DELAY_MS * 1000000};
	struct io_uring_sqe *sqe = loop_sqe(o->loop, &o->timer);
	if (sqe) {
		io_uring_prep_timeout(sqe, &o->delay, 0, 0);
	} else {
		pass_time();
		on_timer(&o->timer, 0, 0);
	}
}

static void on_writable(struct loop_op *op, int res, uint32_t flags)
{
	(void)res;
	(void)flags;
	struct outlet *o = container(struct outlet, writable, op);
	pthread_mutex_lock(&o->lock);
	send_held(o);
	o->waiting = false;
	pthread_mutex_unlock(&o->lock);
	o->room(o->ctx);
}

static void look_again(struct loop_work *w)
{
	struct outlet *o = container(struct outlet, again, w);
	pass_time();
	on_writable(&o->writable, 0, 0);
}

void outlet_init(struct outlet *o, char *buffer, int fd, struct loop *loop, void (*room)(void *ctx),
		 void *ctx)
{
	*o = (struct outlet){.fd = fd,
			     .buffer = buffer,
			     .loop = loop,
			     .lock = PTHREAD_MUTEX_INITIALIZER,
			     .arm = {.run = arm_timer},
			     .again = {.run = look_again},
			     .timer = {.done = on_timer},
			     .writable = {.done = on_writable},
			     .room = room,
			     .ctx = ctx};
}

void outlet_renew(struct outlet *o, int fd)
{
	loop_unpost(o->loop, &o->arm);
	loop_unpost(o->loop, &o->again);
	outlet_init(o, o->buffer, fd, o->loop, o->room, o->ctx);
}

/* Append up to n bytes; send on a line's end or a full buffer. Lock held. Returns how many went in.
 */
static size_t append(struct outlet *o, const char *bytes, size_t n)
{
	size_t room = OUTLET_BYTES - o->held;
	if (n > room)
		n = room;
	memcpy(o->buffer + o->held, bytes, n);
	o->held += n;
	if (o->held == OUTLET_BYTES || memchr(bytes, '\n', n))
		send_held(o);
	return n;
}

void outlet_write(struct outlet *o, const char *bytes, size_t n)
{
	pthread_mutex_lock(&o->lock);
	while (n) {
		size_t took = append(o, bytes, n);
		bytes += took;
		n -= took;
		if (n && o->held == OUTLET_BYTES) {
			pthread_mutex_unlock(&o->lock);
			struct pollfd p = {.fd = o->fd, .events = POLLOUT};
			poll(&p, 1, 100);
			pthread_mutex_lock(&o->lock);
			send_held(o);
		}
	}
	bool arm = o->held && !o->timer_set;
	if (arm)
		o->timer_set = true;
	pthread_mutex_unlock(&o->lock);
	if (arm)
		loop_post(o->loop, &o->arm);
}

size_t outlet_offer(struct outlet *o, const char *bytes, size_t n)
{
	size_t took = 0;
	bool arm = false, watch = false;
	pthread_mutex_lock(&o->lock);
	while (took < n) {
		size_t one = append(o, bytes + took, n - took);
		took += one;
		if (!one)
			break;
	}
	if (took < n && !o->waiting)
		watch = o->waiting = true;
	else if (o->held && !o->timer_set)
		arm = o->timer_set = true;
	pthread_mutex_unlock(&o->lock);
	if (watch && loop_wait(o->loop, &o->writable, o->fd, POLLOUT) < 0)
		loop_post(o->loop, &o->again);
	if (arm)
		loop_post(o->loop, &o->arm);
	return took;
}

void outlet_flush(struct outlet *o, int ms)
{
	pthread_mutex_lock(&o->lock);
	send_held(o);
	for (; o->held && ms > 0; ms -= 10) {
		struct pollfd p = {.fd = o->fd, .events = POLLOUT};
		poll(&p, 1, 10);
		send_held(o);
	}
	pthread_mutex_unlock(&o->lock);
}
