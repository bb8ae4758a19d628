#include "vmm/keeper.h"
#include "vmm/fds.h"
#include "vmm/ring.h"
#include "vmm/rundir.h"
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

/* For who connects to say what it wants; its host waits meanwhile, and for no longer than KEEPER_PATIENCE_MS. */
#define STRANGER_MS 1000
#define ROUNDS \
	16 /* of 4 KiB of a console: whoever always has something to say doesn't keep the next host waiting */

/* ---- messages ------------------------------------------------------------------------------ */

int keeper_send(int fd, const struct keeper_message *m, const int *fds)
{
	size_t bytes = sizeof m->head + m->head.bytes;
	int rc;
	while ((rc = link_send(fd, m, bytes, fds, m->head.fds)) == -EAGAIN) {
		struct pollfd p = {.fd = fd, .events = POLLOUT};
		int n = poll(&p, 1, KEEPER_PATIENCE_MS);
		if (n == 0)
			return -ETIME;
		if (n < 0 && errno != EINTR)
			return -errno;
	}
	return rc;
}

static bool makes_sense(const struct keeper_message *m, ssize_t got, const int *fds)
{
	const struct keeper_head *h = &m->head;
	const int8_t which[] = {h->link, h->console, h->ring, h->pidfd};
	unsigned n = 0;
	while (n < LINK_FDS_MAX && fds[n] >= 0)
		n++;
	for (unsigned i = 0; i < sizeof which; i++)
		if (which[i] < -1 || which[i] >= (int)n)
			return false;
	return got >= (ssize_t)sizeof *h && h->bytes <= sizeof m->record &&
	       (size_t)got == sizeof *h + h->bytes && h->fds == n;
}

int keeper_receive(int fd, struct keeper_message *m, int fds[LINK_FDS_MAX], int ms)
{
	ssize_t n;
	while ((n = link_receive(fd, m, sizeof *m, fds)) == -EAGAIN) {
		struct pollfd p = {.fd = fd, .events = POLLIN};
		int got = poll(&p, 1, ms);
		if (got == 0)
			return -ETIME;
		if (got < 0 && errno != EINTR)
			return -errno;
	}
	if (n == -ECONNRESET)
		return 0;
	if (n <= 0)
		return (int)n;
	if (makes_sense(m, n, fds))
		return 1;
	link_close(fds);
	return -EPROTO;
}

int keeper_peer(int fd)
{
	struct ucred peer = {.pid = 0};
	socklen_t n = sizeof peer;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &n) < 0)
		return -errno;
	return peer.uid == geteuid() && peer.pid > 0 ? peer.pid : -EPERM;
}

int keeper_dial(const char *path)
{
	struct sockaddr_un a;
	if (!rundir_address(&a, path))
		return -ENAMETOOLONG;
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	if (connect(fd, (struct sockaddr *)&a, sizeof a) < 0) {
		int rc = -errno;
		close(fd);
		return rc == -ECONNREFUSED ? -ENOENT : rc;
	}
	return fd;
}

int keeper_ask(const char *path, enum keeper_op op, uint64_t *vms)
{
	struct keeper_message m = {
		.head = {.op = op, .link = -1, .console = -1, .ring = -1, .pidfd = -1}};
	int fds[LINK_FDS_MAX];
	int fd = keeper_dial(path);
	if (fd < 0)
		return fd;
	int rc = keeper_peer(fd);
	if (rc > 0)
		rc = keeper_send(fd, &m, NULL);
	if (!rc)
		rc = keeper_receive(fd, &m, fds, KEEPER_PATIENCE_MS);
	close(fd);
	*vms = rc == 1 ? m.head.key : 0;
	return rc == 1 && op == KEEPER_END ? -EBUSY : rc < 0 ? rc : 0;
}

/* ---- what is kept -------------------------------------------------------------------------- */

struct kept {
	struct kept *next;
	int fd[LINK_FDS_MAX];
	struct ring ring; /* of a console that we read */
	bool over;        /* the VM: its process is gone */
	bool quiet;       /* it has closed its console */
	struct keeper_head head;
	uint8_t record[];
};

static struct keeper {
	struct kept *first;
	int listening, link; /* link: -1: there is no host */
	const char *path;
	struct pollfd *poll;
	size_t room;
} keeper;

static int fd_of(const struct kept *k, int8_t which)
{
	return which < 0 ? -1 : k->fd[which];
}

static struct kept **find(uint32_t kind, uint64_t key)
{
	struct kept **at = &keeper.first;
	while (*at && ((*at)->head.kind != kind || (*at)->head.key != key))
		at = &(*at)->next;
	return at;
}

static void free_kept(struct kept *k)
{
	link_close(k->fd);
	ring_free(&k->ring);
	free(k);
}

static void drop(uint32_t kind, uint64_t key)
{
	struct kept **at = find(kind, key), *k = *at;
	if (!k)
		return;
	*at = k->next;
	free_kept(k);
}

static void put(const struct keeper_message *m, const int fds[LINK_FDS_MAX])
{
	struct kept **at = find(m->head.kind, m->head.key), *old = *at;
	struct kept *k = calloc(1, sizeof *k + m->head.bytes);
	if (!k)
		_exit(1); /* the host fills another */
	k->head = m->head;
	memcpy(k->record, m->record, m->head.bytes);
	memcpy(k->fd, fds, sizeof k->fd);
	k->next = old ? old->next : NULL;
	*at = k;
	if (old)
		free_kept(old);
}

/* ---- VMs without a host -------------------------------------------------------------------- */

static bool is_over(struct kept *k)
{
	int process = fd_of(k, k->head.pidfd), link = fd_of(k, k->head.link);
	char byte;
	if (k->head.kind != KEEPER_VM || k->over)
		return true;
	if (process >= 0)
		k->over = poll(&(struct pollfd){.fd = process, .events = POLLIN}, 1, 0) != 0;
	else if (keeper.link < 0) { /* nothing but the end of its link tells of its process's end */
		ssize_t n;
		while ((n = recv(link, &byte, 1, MSG_DONTWAIT)) > 0)
			;
		k->over = n == 0;
	}
	return k->over;
}

static void read_console(struct kept *k)
{
	char bytes[4096];
	ssize_t n = 1;
	if (!k->ring.shared && ring_open(&k->ring, fd_of(k, k->head.ring)))
		k->ring = (struct ring){.bytes = NULL}; /* read all the same */
	for (unsigned rounds = 0; rounds < ROUNDS && n > 0; rounds++) {
		n = recv(fd_of(k, k->head.console), bytes, sizeof bytes, MSG_DONTWAIT);
		if (k->ring.shared && n > 0)
			ring_put(&k->ring, bytes, (size_t)n);
	}
	k->quiet = n == 0; /* or it would be ready all the time */
}

static unsigned count(void)
{
	unsigned n = 0;
	for (struct kept *k = keeper.first; k; k = k->next)
		n += !is_over(k);
	return n;
}

static _Noreturn void end(void)
{
	for (struct kept *k = keeper.first; k; k = k->next)
		if (k->head.kind == KEEPER_VM && k->head.pidfd >= 0)
			syscall(SYS_pidfd_send_signal, k->fd[k->head.pidfd], SIGKILL, NULL, 0);
	unlink(keeper.path);
	_exit(0);
}

/* Nobody has anything left to lose. */
static void end_if_idle(void)
{
	for (struct kept *k = keeper.first; k; k = k->next)
		if (!is_over(k) || k->head.writes)
			return;
	end();
}

static void host_gone(void)
{
	close(keeper.link);
	keeper.link = -1;
	for (struct kept *k = keeper.first; k; k = k->next)
		if (k->head.kind == KEEPER_VM && k->head.pidfd < 0 && k->head.link >= 0)
			shutdown(fd_of(k, k->head.link), SHUT_WR);
	end_if_idle();
}

/* ---- what is said to it -------------------------------------------------------------------- */

/* All that the host has said so far. */
static void hear_host(int ms)
{
	static struct keeper_message m;
	int fds[LINK_FDS_MAX], rc;
	while (keeper.link >= 0 && (rc = keeper_receive(keeper.link, &m, fds, ms)) != -ETIME) {
		if (rc <= 0) {
			if (rc <
			    0) /* too many files open, perhaps: the host is to know that we are none */
				_exit(1);
			host_gone();
		} else if (m.head.op == KEEPER_PUT) {
			put(&m, fds);
		} else {
			link_close(fds);
			if (m.head.op == KEEPER_DROP)
				drop(m.head.kind, m.head.key);
			else if (m.head.op == KEEPER_END)
				end();
		}
	}
}

static int give_all(int to)
{
	static struct keeper_message m;
	int rc = 0;
	for (struct kept *k = keeper.first; k && !rc; k = k->next) {
		m.head = k->head;
		memcpy(m.record, k->record, k->head.bytes);
		ring_free(&k->ring); /* the host goes on with it */
		rc = keeper_send(to, &m, k->fd);
	}
	m.head = (struct keeper_head){
		.op = KEEPER_DONE, .link = -1, .console = -1, .ring = -1, .pidfd = -1};
	return rc ? rc : keeper_send(to, &m, NULL);
}

static void take_host(int fd)
{
	/* The one before is dead, or it would hold the run directory's lock; what it said last may be on its way. */
	hear_host(KEEPER_PATIENCE_MS);
	if (keeper.link >= 0 || give_all(fd))
		close(fd);
	else
		keeper.link = fd;
}

static void on_listening(void)
{
	static struct keeper_message m;
	int fds[LINK_FDS_MAX];
	int fd = accept4(keeper.listening, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd < 0)
		return;
	if (keeper_peer(fd) < 0 || keeper_receive(fd, &m, fds, STRANGER_MS) != 1) {
		close(fd);
		return;
	}
	link_close(fds);
	if (m.head.op == KEEPER_TAKE) {
		take_host(fd);
		return;
	}
	hear_host(0);
	if (m.head.op == KEEPER_END && keeper.link < 0)
		end();
	if (m.head.op == KEEPER_COUNT || m.head.op == KEEPER_END) {
		m.head = (struct keeper_head){.op = KEEPER_DONE,
					      .key = count(),
					      .link = -1,
					      .console = -1,
					      .ring = -1,
					      .pidfd = -1};
		keeper_send(fd, &m, NULL);
	}
	close(fd);
}

/* ---- the process --------------------------------------------------------------------------- */

static struct pollfd *add(size_t *n, int fd, short events)
{
	if (*n == keeper.room) {
		size_t room = keeper.room ? 2 * keeper.room : 64;
		struct pollfd *more = realloc(keeper.poll, room * sizeof *more);
		if (!more)
			_exit(1);
		keeper.poll = more;
		keeper.room = room;
	}
	keeper.poll[*n] = (struct pollfd){.fd = fd, .events = events};
	return &keeper.poll[(*n)++];
}

/* With a host there is only the host to listen to. */
static size_t watch(void)
{
	size_t n = 0;
	add(&n, keeper.listening, POLLIN);
	if (keeper.link >= 0) {
		add(&n, keeper.link, POLLIN);
		return n;
	}
	for (struct kept *k = keeper.first; k; k = k->next) {
		if (is_over(k))
			continue;
		bool born = k->head.pidfd >= 0;
		add(&n, born ? fd_of(k, k->head.pidfd) : fd_of(k, k->head.link),
		    born ? POLLIN : POLLRDHUP);
		if (!k->quiet)
			add(&n, fd_of(k, k->head.console), POLLIN);
	}
	return n;
}

static void look_after_vms(void)
{
	for (struct kept *k = keeper.first; k; k = k->next)
		if (k->head.kind == KEEPER_VM && k->head.console >= 0)
			read_console(k);
	end_if_idle();
}

_Noreturn void keeper_process(int listening, int link, const char *path)
{
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGINT, SIG_IGN); /* the terminal's are for the host */
	signal(SIGHUP, SIG_IGN);
	signal(SIGTERM, SIG_DFL);
	fds_close_all_but((int[]){listening, link}, 2);
	prctl(PR_SET_NAME, "keeper");
	keeper = (struct keeper){.listening = listening, .link = link, .path = path};
	const struct keeper_message ready = {
		.head = {.op = KEEPER_READY, .link = -1, .console = -1, .ring = -1, .pidfd = -1}};
	if (listen(listening, 8) < 0 || keeper_send(link, &ready, NULL))
		_exit(1);
	for (;;) {
		size_t n = watch();
		if (keeper.link <
		    0) /* the last may have been found over at any look, and isn't watched then */
			end_if_idle();
		if (poll(keeper.poll, n, -1) < 0 && errno != EINTR)
			_exit(1);
		if (keeper.poll[0].revents)
			on_listening();
		else if (keeper.link >= 0)
			hear_host(0);
		else
			look_after_vms();
	}
}
