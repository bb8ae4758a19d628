#include "vmm/control.h"
#include "ipt/fail.h"
#include "vmm/clock.h"
#include "vmm/container.h"
#include "vmm/error.h"
#include "vmm/event.h"
#include "vmm/rundir.h"
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum phase {
	HEARING,   /* the request isn't whole yet */
	WAITING,   /* for its answer */
	ANSWERING, /* the answer goes out, then the connection closes */
	STREAMING,
};

struct control_request {
	struct control *control;
	struct host_source source;
	uint32_t watched; /* events, beside EPOLLHUP and EPOLLERR which always come */
	enum phase phase;
	char *heard;
	size_t held, room;
	char *reply; /* being sent */
	size_t reply_bytes, sent;
	struct control_stream stream;
	bool listening;  /* stream: its input is wanted */
	bool wants_room; /* stream: the last send took less than it was given */
	void (*gone)(void *ctx);
	void *ctx;         /* of `gone` and of the stream */
	uint64_t since_ns; /* connected, CLOCK_MONOTONIC */
	bool busy, doomed; /* a callback runs: the request is freed when it returns */
};

struct control {
	struct control_config config;
	struct host_source listening;
	struct host_source on_time; /* a timer that runs while requests are being heard */
	bool timing;
	char path[sizeof((struct sockaddr_un *)0)->sun_path];
	struct control_request *client[CONTROL_CLIENTS_MAX];
};

void *control_ctx(struct control_request *r)
{
	return r->control->config.ctx;
}

struct host *control_host(struct control_request *r)
{
	return r->control->config.host;
}

/* ---- connections --------------------------------------------------------------------------- */

static void watch(struct control_request *r, uint32_t events)
{
	if (events == r->watched)
		return;
	host_change_source(control_host(r), &r->source, events);
	r->watched = events;
}

static void watch_stream(struct control_request *r)
{
	bool out = r->wants_room || r->sent < r->reply_bytes;
	watch(r, (r->listening ? EPOLLIN : 0) | (out ? EPOLLOUT : 0));
}

static void release(struct control_request *r)
{
	free(r->heard);
	free(r->reply);
	free(r);
}

/* Close the connection, without a word to whoever answers it. */
static void drop(struct control_request *r)
{
	struct control *c = r->control;
	host_remove_source(c->config.host, &r->source);
	close(r->source.fd);
	bool full = true; /* then the listener was left out */
	for (unsigned i = 0; i < CONTROL_CLIENTS_MAX; i++)
		full = full && c->client[i];
	for (unsigned i = 0; i < CONTROL_CLIENTS_MAX; i++)
		if (c->client[i] == r)
			c->client[i] = NULL;
	if (full)
		host_change_source(c->config.host, &c->listening, EPOLLIN);
	r->doomed = true;
	if (!r->busy)
		release(r);
}

/* The client is gone, or the host will be. */
static void lose(struct control_request *r)
{
	void (*gone)(void *) = r->phase == STREAMING ? r->stream.gone
			       : r->phase == WAITING ? r->gone
						     : NULL;
	void *ctx = r->ctx;
	drop(r);
	if (gone)
		gone(ctx);
}

/* Send what is left of the answer. 0 when all is out, 1 if there is no room, -errno. */
static int push_reply(struct control_request *r)
{
	while (r->sent < r->reply_bytes) {
		ssize_t n = fail_call(CONTROL_SEND,
				      send(r->source.fd, r->reply + r->sent,
					   r->reply_bytes - r->sent, MSG_NOSIGNAL | MSG_DONTWAIT));
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN || errno == ENOMEM || errno == ENOBUFS ? 1 : -errno;
		r->sent += (size_t)n;
	}
	return 0;
}

/* One request a connection: when its answer is out, it closes. */
static void go_on_answering(struct control_request *r)
{
	if (push_reply(r) > 0)
		watch(r, EPOLLOUT); /* and hear nothing more of it meanwhile */
	else
		drop(r);
}

/* ---- answering ----------------------------------------------------------------------------- */

static bool set_reply(struct control_request *r, json_t *answer)
{
	r->reply = answer ? json_dumps(answer, JSON_COMPACT) : NULL;
	json_decref(answer);
	if (!r->reply)
		return false;
	r->reply_bytes = strlen(r->reply);
	r->reply[r->reply_bytes++] = '\n'; /* in the NUL's place: it is sent by length */
	return true;
}

void control_reply(struct control_request *r, json_t *answer)
{
	r->phase = ANSWERING;
	if (set_reply(r, answer))
		go_on_answering(r);
	else
		drop(r);
}

void control_refuse(struct control_request *r, const char *format, ...)
{
	char words[2048];
	va_list args;
	va_start(args, format);
	vsnprintf(words, sizeof words, format, args);
	va_end(args);
	json_t *text = json_string(words); /* NULL for what is no UTF-8 */
	if (!text)
		text = json_string("refused, in words that are no UTF-8 text");
	control_reply(r, json_pack("{s:o}", "error", text));
}

void control_on_gone(struct control_request *r, void (*gone)(void *ctx), void *ctx)
{
	r->gone = gone;
	r->ctx = ctx;
}

/* ---- streams ------------------------------------------------------------------------------- */

void control_stream(struct control_request *r, json_t *answer, const struct control_stream *stream,
		    void *ctx)
{
	r->phase = STREAMING;
	r->stream = *stream;
	r->ctx = ctx;
	r->listening = true;
	/* Without an answer the client's end is all that comes of it; an error on the way is the
	 * connection's end, of which the loop tells. */
	if (!set_reply(r, answer))
		shutdown(r->source.fd, SHUT_RDWR);
	else
		push_reply(r);
	watch_stream(r);
}

size_t control_stream_send(struct control_request *r, const char *bytes, size_t n)
{
	ssize_t took = 0;
	if (r->sent == r->reply_bytes && n)
		took = send(r->source.fd, bytes, n, MSG_NOSIGNAL | MSG_DONTWAIT);
	bool failed = took < 0 && errno != EAGAIN && errno != EINTR;
	if (took < 0)
		took = 0;
	r->wants_room = (size_t)took < n && !failed;
	watch_stream(r);
	return (size_t)took;
}

void control_stream_resume(struct control_request *r)
{
	r->listening = true;
	watch_stream(r);
}

void control_stream_end(struct control_request *r)
{
	r->phase = ANSWERING;
	go_on_answering(r);
}

/* Peek, give, then take what was taken: what is refused stays in the socket. */
static void stream_input(struct control_request *r)
{
	char bytes[4096];
	ssize_t n = recv(r->source.fd, bytes, sizeof bytes, MSG_PEEK | MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n < 0) {
		lose(r);
		return;
	}
	if (n == 0) {
		r->listening = false;
		watch_stream(r);
		if (r->stream.input_end)
			r->stream.input_end(r->ctx);
		return;
	}
	r->busy = true;
	size_t took = r->stream.input(r->ctx, bytes, (size_t)n);
	r->busy = false;
	if (r->doomed) {
		release(r);
		return;
	}
	if (took && recv(r->source.fd, bytes, took, MSG_DONTWAIT) < 0) {
		lose(r);
		return;
	}
	if (took < (size_t)n) {
		r->listening = false;
		watch_stream(r);
	}
}

static void on_stream(struct control_request *r, uint32_t events)
{
	if (events & EPOLLIN && r->listening) {
		stream_input(r);
		return;
	}
	if (events & (EPOLLHUP | EPOLLERR) || (events & EPOLLOUT && push_reply(r) < 0)) {
		lose(r);
		return;
	}
	bool room = r->wants_room && r->sent == r->reply_bytes;
	if (room)
		r->wants_room = false;
	watch_stream(r);
	if (room)
		r->stream.room(r->ctx);
}

/* ---- hearing ------------------------------------------------------------------------------- */

static void handle(struct control_request *r)
{
	json_error_t where;
	json_t *object = json_loadb(r->heard, r->held, 0, &where);
	free(r->heard);
	r->heard = NULL;
	/* Hear no more, but of the client's going: a client that only shut its sending side stays. */
	r->phase = WAITING;
	watch(r, 0);
	if (json_is_object(object))
		r->control->config.handler(r, object);
	else
		control_refuse(r, "a request is one JSON object on a line");
	json_decref(object);
}

/* Take bytes up to the end of the line; what follows is a stream's. */
static void hear(struct control_request *r)
{
	if (r->held == r->room) {
		size_t room = r->room ? r->room * 2 : 4096;
		char *more = realloc(r->heard, room);
		if (!more) {
			drop(r);
			return;
		}
		r->heard = more;
		r->room = room;
	}
	char *at = r->heard + r->held;
	ssize_t n = fail_call(CONTROL_READ,
			      recv(r->source.fd, at, r->room - r->held, MSG_PEEK | MSG_DONTWAIT));
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	char *end = n > 0 ? memchr(at, '\n', (size_t)n) : NULL;
	size_t take = end ? (size_t)(end - at) + 1 : (size_t)n;
	if (n <= 0 || recv(r->source.fd, at, take, MSG_DONTWAIT) != (ssize_t)take) {
		drop(r);
		return;
	}
	r->held += take;
	if (end)
		handle(r);
	else if (r->held == CONTROL_REQUEST_MAX)
		control_refuse(r, "a request has %d bytes at most", CONTROL_REQUEST_MAX);
}

static void on_client(struct host_source *s, uint32_t events)
{
	struct control_request *r = container(struct control_request, source, s);
	switch (r->phase) {
	case HEARING:
		hear(r);
		return;
	case WAITING:
		lose(r);
		return;
	case ANSWERING:
		go_on_answering(r);
		return;
	case STREAMING:
		on_stream(r, events);
		return;
	}
}

/* ---- who may ask, and for how long --------------------------------------------------------- */

static void set_timer(struct control *c, bool on)
{
	const time_t s = on ? 1 : 0;
	if (c->timing != on)
		timerfd_settime(c->on_time.fd, 0, &(struct itimerspec){{s, 0}, {s, 0}}, NULL);
	c->timing = on;
}

/* Who connects and doesn't say what he wants keeps others out. */
static void on_time(struct host_source *s, uint32_t events)
{
	struct control *c = container(struct control, on_time, s);
	uint64_t now = clock_ns();
	bool more = false;
	(void)events;
	event_drain(s->fd);
	for (unsigned i = 0; i < CONTROL_CLIENTS_MAX; i++) {
		struct control_request *r = c->client[i];
		if (!r || r->phase != HEARING)
			continue;
		if (now - r->since_ns >= c->config.hear_ms * UINT64_C(1000000))
			control_refuse(r, "the request didn't come within %u ms",
				       c->config.hear_ms);
		else
			more = true;
	}
	set_timer(c, more);
}

static bool may_ask(int fd)
{
	struct ucred peer;
	socklen_t len = sizeof peer;
	return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) == 0 &&
	       (peer.uid == 0 || peer.uid == geteuid());
}

/* Nothing but words. What has come of its request by now is taken out, or closing would reset the connection, and the
 * words be lost. */
static void turn_away(int fd, const char *words)
{
	char dropped[512];
	if (send(fd, words, strlen(words), MSG_NOSIGNAL | MSG_DONTWAIT) > 0)
		while (recv(fd, dropped, sizeof dropped, MSG_DONTWAIT) > 0)
			;
}

static void on_listening(struct host_source *s, uint32_t events)
{
	struct control *c = container(struct control, listening, s);
	(void)events;
	unsigned place = 0;
	while (place < CONTROL_CLIENTS_MAX && c->client[place])
		place++;
	if (place == CONTROL_CLIENTS_MAX) {
		host_change_source(c->config.host, s, 0); /* drop() listens again */
		return;
	}
	int fd =
		fail_call(CONTROL_ACCEPT, accept4(s->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK));
	if (fd < 0)
		return;
	bool may = may_ask(fd);
	struct control_request *r = may ? fail_null(CONTROL_MEMORY, calloc(1, sizeof *r)) : NULL;
	if (r) {
		*r = (struct control_request){.control = c,
					      .source = {fd, on_client},
					      .watched = EPOLLIN,
					      .since_ns = clock_ns()};
		set_timer(c, true);
		if (host_add_source(c->config.host, &r->source, EPOLLIN) == 0) {
			c->client[place] = r;
			return;
		}
		free(r);
	}
	turn_away(fd, may ? "{\"error\":\"the host has no memory for this connection\"}\n"
			  : "{\"error\":\"this host is another user's\"}\n");
	close(fd);
}

/* ---- the socket ---------------------------------------------------------------------------- */

/* Bind and listen at c->path, from the first moment on for its user alone. */
static int open_socket(struct control *c, const char *path)
{
	struct sockaddr_un a;
	if (!rundir_address(&a, path))
		return -ENAMETOOLONG;
	c->listening.fd = fail_call(CONTROL_OPEN,
				    socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
	if (c->listening.fd < 0)
		return -errno;
	unlink(path); /* a dead host's of our name */
	if (bind(c->listening.fd, (struct sockaddr *)&a, sizeof a) < 0)
		return -errno;
	snprintf(c->path, sizeof c->path, "%s", a.sun_path);
	if (chmod(path, 0600) < 0 || listen(c->listening.fd, 32) < 0)
		return -errno;
	return host_add_source(c->config.host, &c->listening, EPOLLIN);
}

int control_create(struct control **out, const struct control_config *config, char *error)
{
	char dir[256], path[600];
	int rc = rundir_make(error);
	if (rc)
		return rc;
	rundir_tidy();
	rundir_path(dir, sizeof dir);
	if (config->file)
		snprintf(path, sizeof path, "%s/%s", dir, config->file);
	else
		snprintf(path, sizeof path, "%s/host-%d.sock", dir, (int)getpid());
	struct control *c = calloc(1, sizeof *c);
	if (!c)
		return errorf(error, -ENOMEM, "no memory for the control socket");
	*c = (struct control){
		.config = *config,
		.listening = {-1, on_listening},
		.on_time = {timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK), on_time}};
	c->config.hear_ms = config->hear_ms ? config->hear_ms : CONTROL_HEAR_MS;
	rc = c->on_time.fd < 0 ? -errno : host_add_source(config->host, &c->on_time, EPOLLIN);
	if (!rc)
		rc = open_socket(c, path);
	if (rc) {
		control_destroy(c);
		return errorf(error, rc, "control socket %.150s: %s", path, strerror(-rc));
	}
	*out = c;
	return 0;
}

void control_destroy(struct control *c)
{
	for (unsigned i = 0; i < CONTROL_CLIENTS_MAX; i++)
		if (c->client[i])
			lose(c->client[i]);
	if (c->listening.fd >= 0) {
		host_remove_source(c->config.host, &c->listening);
		close(c->listening.fd);
	}
	if (c->on_time.fd >= 0) {
		host_remove_source(c->config.host, &c->on_time);
		close(c->on_time.fd);
	}
	if (*c->path)
		unlink(c->path);
	free(c);
}
