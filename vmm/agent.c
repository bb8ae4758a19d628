#include "vmm/agent.h"
#include "ipt/fail.h"
#include "vmm/base64.h"
#include "vmm/container.h"
#include "vmm/error.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#define NONCE_CHARS 16
#define PART_CHARS  768 /* base64 of the command in one line; a multiple of 4 */
#define PARTS_MAX   ((BASE64_CHARS(AGENT_COMMAND_MAX) + PART_CHARS - 1) / PART_CHARS)
#define FRAME_CHARS (2 * NONCE_CHARS + 9) /* "N exec ... N\n" */

/* The command under way. */
struct agent {
	struct host_vm *vm;
	struct host_source source;
	const struct agent_events *events;
	void *ctx;
	char nonce[NONCE_CHARS + 1];
	bool over;       /* freed as soon as nobody looks at it */
	bool listening;  /* the source is in the host's loop */
	unsigned inside; /* callbacks and readers under way */
	char request[BASE64_CHARS(AGENT_COMMAND_MAX) + PARTS_MAX * FRAME_CHARS + 2];
	size_t request_bytes, sent;
	char line[AGENT_LINE_MAX];
	size_t held;
	bool too_long; /* the line is: skipped up to its end */
};

/* ---- life ---------------------------------------------------------------------------------- */

static void stop_listening(struct agent *a)
{
	if (a->listening)
		host_remove_source(a->vm->host, &a->source);
	a->listening = false;
}

/* Listen for what can go on now: input, and room while the request isn't out. */
static int listen_again(struct agent *a)
{
	uint32_t events = EPOLLIN | (a->sent < a->request_bytes ? EPOLLOUT : 0);
	if (a->listening && events) {
		host_change_source(a->vm->host, &a->source, events);
		return 0;
	}
	stop_listening(a);
	if (!events)
		return 0;
	int rc = host_add_source(a->vm->host, &a->source, events);
	a->listening = rc == 0;
	return rc;
}

/* Over: the VM is free for the next command, whatever still looks at this one. */
static void end(struct agent *a)
{
	stop_listening(a);
	a->over = true;
	if (a->vm->agent == a)
		a->vm->agent = NULL;
}

static void leave(struct agent *a)
{
	if (!--a->inside && a->over)
		free(a);
}

static void fail(struct agent *a, const char *words)
{
	if (a->over)
		return;
	end(a);
	a->events->failed(a->ctx, words);
}

static void listen_or_fail(struct agent *a)
{
	if (listen_again(a))
		fail(a, "can't listen to the guest's agent any more");
}

/* ---- what the guest says ------------------------------------------------------------------- */

static bool begins(const char *text, size_t n, const char *word)
{
	size_t len = strlen(word);
	return n >= len && !memcmp(text, word, len);
}

static void on_status(struct agent *a, const char *text, size_t n)
{
	unsigned status = 0;
	bool ok = n >= 1 && n <= 3;
	for (size_t i = 0; i < n && ok; i++) {
		ok = text[i] >= '0' && text[i] <= '9';
		status = status * 10 + (unsigned)(text[i] - '0');
	}
	if (!ok || status > 255) {
		fail(a, "the guest's agent gave a status that is none");
		return;
	}
	end(a);
	a->events->done(a->ctx, status);
}

/* A whole line. What doesn't begin with our nonce was meant for somebody before us: another command's
 * answer, or that of the VM which this one is a clone of. */
static void on_line(struct agent *a, const char *line, size_t n)
{
	char bytes[AGENT_LINE_MAX];
	if (!begins(line, n, a->nonce) || n <= NONCE_CHARS || line[NONCE_CHARS] != ' ')
		return;
	line += NONCE_CHARS + 1;
	n -= NONCE_CHARS + 1;
	if (begins(line, n, "out ")) {
		long got = base64_decode(bytes, line + 4, n - 4);
		if (got < 0)
			fail(a, "the guest's agent sent output that isn't base64");
		else if (got > 0)
			a->events->output(a->ctx, bytes, (size_t)got);
	} else if (begins(line, n, "status ")) {
		on_status(a, line + 7, n - 7);
	} else {
		fail(a, "the guest's agent says what it shouldn't");
	}
}

/* Take the next piece of the line; returns how many of the n bytes belong to it. */
static size_t take(struct agent *a, const char *bytes, size_t n)
{
	const char *newline = memchr(bytes, '\n', n);
	size_t piece = newline ? (size_t)(newline - bytes) : n;
	if (piece > sizeof a->line - a->held) {
		if (!a->too_long && begins(a->line, a->held, a->nonce))
			fail(a, "the guest's agent sent a line that is too long");
		a->too_long = true;
		a->held = 0;
	}
	if (!a->too_long) {
		memcpy(a->line + a->held, bytes, piece);
		a->held += piece;
	}
	if (!newline)
		return piece;
	if (!a->too_long)
		on_line(a, a->line, a->held);
	a->too_long = false;
	a->held = 0;
	return piece + 1;
}

/* Read what there is, at most `rounds` pieces of it, so that a guest that never falls silent doesn't
 * keep the host. Peeks first: what comes after the command stays in the socket. 0 at the stream's end. */
static ssize_t read_some(struct agent *a, unsigned rounds)
{
	char bytes[4096];
	ssize_t got = 1;
	while (rounds-- && got > 0 && !a->over) {
		got = fail_call(AGENT_RECEIVE, recv(a->vm->agent_fd, bytes, sizeof bytes,
						    MSG_PEEK | MSG_DONTWAIT));
		size_t used = 0;
		while (got > 0 && used < (size_t)got && !a->over)
			used += take(a, bytes + used, (size_t)got - used);
		if (used && recv(a->vm->agent_fd, bytes, used, MSG_DONTWAIT) < 0)
			return -1;
	}
	return got;
}

/* ---- the socket ---------------------------------------------------------------------------- */

static void send_request(struct agent *a)
{
	while (a->sent < a->request_bytes) {
		ssize_t n = fail_call(AGENT_SEND, send(a->vm->agent_fd, a->request + a->sent,
						       a->request_bytes - a->sent,
						       MSG_NOSIGNAL | MSG_DONTWAIT));
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && (errno == EAGAIN || errno == ENOMEM || errno == ENOBUFS))
			return; /* there will be room */
		if (n < 0)      /* the VM's end will be told */
			a->sent = a->request_bytes;
		else
			a->sent += (size_t)n;
	}
}

static void on_socket(struct host_source *s, uint32_t events)
{
	struct agent *a = container(struct agent, source, s);
	a->inside++;
	bool was_sending = a->sent < a->request_bytes;
	if (events & EPOLLOUT)
		send_request(a);
	ssize_t got = read_some(a, 4);
	if (!a->over && (got == 0 || events & (EPOLLERR | EPOLLHUP)))
		stop_listening(a); /* agent_vm_ended reads the rest */
	else if (!a->over && (a->sent < a->request_bytes) != was_sending)
		listen_or_fail(a);
	leave(a);
}

/* ---- commands ------------------------------------------------------------------------------ */

/* The request's lines. An empty one first ends what a request before us may have left unfinished. */
static void write_request(struct agent *a, const char *command, size_t bytes)
{
	char *to = a->request;
	*to++ = '\n';
	for (size_t at = 0; at < bytes; at += PART_CHARS / 4 * 3) {
		size_t n = bytes - at;
		bool last = n <= PART_CHARS / 4 * 3;
		n = last ? n : PART_CHARS / 4 * 3;
		to += sprintf(to, "%s %s ", a->nonce, last ? "exec" : "more");
		to += base64_encode(to, command + at, n);
		to += sprintf(to, " %s\n", a->nonce);
	}
	a->request_bytes = (size_t)(to - a->request);
}

int agent_exec(struct host_vm *vm, const char *command, size_t bytes, const struct agent_events *e,
	       void *ctx, char *error)
{
	const char *name = vm->config.machine.name;
	uint64_t nonce;
	if (vm->phase != HOST_VM_ALIVE)
		return errorf(error, -ESRCH, "%s doesn't run", name);
	if (vm->agent)
		return errorf(error, -EBUSY, "%s is busy with another command", name);
	if (bytes > AGENT_COMMAND_MAX)
		return errorf(error, -E2BIG, "the command has %zu bytes; at most %u are possible",
			      bytes, AGENT_COMMAND_MAX);
	if (!bytes || memchr(command, 0, bytes))
		return errorf(error, -EINVAL, "the command is empty, or has a NUL in it");
	if (getrandom(&nonce, sizeof nonce, 0) != sizeof nonce)
		return errorf(error, -EIO, "getrandom: %s", strerror(errno));
	struct agent *a = calloc(1, sizeof *a);
	if (!a)
		return errorf(error, -ENOMEM, "no memory for a command");
	a->vm = vm;
	a->events = e;
	a->ctx = ctx;
	a->source = (struct host_source){vm->agent_fd, on_socket};
	snprintf(a->nonce, sizeof a->nonce, "%016" PRIx64, nonce);
	write_request(a, command, bytes);
	send_request(a);
	int rc = listen_again(a);
	if (rc) {
		free(a);
		return errorf(error, rc, "%s: can't listen to its agent: %s", name, strerror(-rc));
	}
	vm->agent = a;
	return 0;
}

void agent_cancel(struct host_vm *vm)
{
	struct agent *a = vm->agent;
	char line[64];
	if (!a)
		return;
	a->inside++;
	end(a);
	int n = snprintf(line, sizeof line, "\n%s cancel - %s\n", a->nonce, a->nonce);
	/* If there is no room for it, the next command ends this one. */
	send(vm->agent_fd, line, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT);
	leave(a);
}

void agent_close(struct host_vm *vm)
{
	struct agent *a = vm->agent;
	if (a) {
		a->inside++;
		end(a);
		leave(a);
	}
	if (vm->agent_fd >= 0)
		close(vm->agent_fd);
	vm->agent_fd = -1;
}

void agent_vm_ended(struct host_vm *vm)
{
	struct agent *a = vm->agent;
	if (a) {
		a->inside++;
		while (read_some(a, 1) > 0 && !a->over)
			; /* no more than a socket holds */
		fail(a, "the VM ended before the command did");
		leave(a);
	}
	agent_close(vm);
}
