/* keeper.c: what it keeps, to whom it gives it, and when it ends. */
#include "vmm/keeper.h"
#include "vmm/ring.h"
#include "vmm/rundir.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define MS 3000 /* for what is to happen */

static char dir[64], path[100];
static int host; /* the link of who started it */
static pid_t keeper;

static struct keeper_message message(uint32_t op, uint32_t kind, uint64_t key, const char *text)
{
	struct keeper_message m = {.head = {.op = op,
					    .kind = kind,
					    .key = key,
					    .bytes = (uint32_t)strlen(text),
					    .link = -1,
					    .console = -1,
					    .ring = -1,
					    .pidfd = -1}};
	memcpy(m.record, text, strlen(text));
	return m;
}

static void start(void)
{
	struct sockaddr_un a;
	struct keeper_message m;
	int link[2], fds[LINK_FDS_MAX];
	strcpy(dir, "/tmp/keeper-test-XXXXXX");
	cr_assert_not_null(mkdtemp(dir));
	snprintf(path, sizeof path, "%s/keeper.sock", dir);
	int listening = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	cr_assert(rundir_address(&a, path));
	cr_assert_eq(bind(listening, (struct sockaddr *)&a, sizeof a), 0);
	cr_assert_eq(link_pair(link), 0);
	fflush(NULL);
	keeper = fork();
	if (keeper == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		keeper_process(listening, link[1], path);
	}
	close(listening);
	close(link[1]);
	host = link[0];
	cr_assert_eq(keeper_receive(host, &m, fds, MS), 1);
	cr_assert_eq(m.head.op, KEEPER_READY);
}

static void stop(void)
{
	if (keeper > 0) {
		kill(keeper, SIGKILL);
		waitpid(keeper, NULL, 0);
	}
	unlink(path);
	rmdir(dir);
}

static bool ends(void)
{
	for (int ms = 0; ms < MS; ms += 10, usleep(10000))
		if (waitpid(keeper, NULL, WNOHANG) == keeper) {
			keeper = 0;
			return access(path, F_OK) < 0; /* and takes its socket along */
		}
	return false;
}

/* A VM: a process that sleeps, its link's and console's other ends. */
struct fake {
	pid_t pid;
	int pidfd, link[2], console[2], ring;
};

static struct fake make_vm(uint64_t key, const char *text, bool born)
{
	struct fake v;
	fflush(NULL);
	v.pid = fork();
	if (v.pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close_range(0, ~0u, 0); /* the ends of what is to be heard of by its end */
		pause();
		_exit(0);
	}
	v.pidfd = (int)syscall(SYS_pidfd_open, v.pid, 0);
	v.ring = ring_share();
	cr_assert(v.pidfd >= 0 && v.ring >= 0);
	cr_assert_eq(link_pair(v.link), 0);
	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, v.console),
		     0);
	struct keeper_message m = message(KEEPER_PUT, KEEPER_VM, key, text);
	m.head.link = 0;
	m.head.console = 1;
	m.head.ring = 2;
	m.head.pidfd = born ? 3 : -1;
	m.head.fds = born ? 4 : 3;
	cr_assert_eq(keeper_send(host, &m, (int[]){v.link[0], v.console[0], v.ring, v.pidfd}), 0);
	close(v.link[0]);
	close(v.console[0]);
	return v;
}

static void end_vm(struct fake *v)
{
	kill(v->pid, SIGKILL);
	waitpid(v->pid, NULL, 0);
	close(v->link[1]);
}

/* Become the next host: the link, and how many records came; their texts, each followed by a space. */
static int take(char *texts, unsigned *records, int fds[LINK_FDS_MAX])
{
	struct keeper_message m = message(KEEPER_TAKE, KEEPER_HOST, 0, "");
	int fd = keeper_dial(path);
	cr_assert(fd >= 0, "%d", fd);
	cr_assert_eq(keeper_peer(fd), keeper);
	cr_assert_eq(keeper_send(fd, &m, NULL), 0);
	*texts = 0;
	*records = 0;
	while (keeper_receive(fd, &m, fds, MS) == 1 && m.head.op == KEEPER_PUT) {
		sprintf(texts + strlen(texts), "%.*s ", (int)m.head.bytes, (char *)m.record);
		++*records;
	}
	cr_assert_eq(m.head.op, KEEPER_DONE);
	return fd;
}

static unsigned count(void)
{
	uint64_t n = 99;
	cr_assert_eq(keeper_ask(path, KEEPER_COUNT, &n), 0);
	return (unsigned)n;
}

TestSuite(keeper, .init = start, .fini = stop);

Test(keeper, gives_the_next_host_what_the_last_one_left)
{
	char texts[200];
	unsigned n;
	int fds[LINK_FDS_MAX];
	struct keeper_message m = message(KEEPER_PUT, KEEPER_HOST, 0, "host");
	cr_assert_eq(keeper_send(host, &m, NULL), 0);
	struct fake a = make_vm(1, "a", true), b = make_vm(2, "b", true), c = make_vm(3, "c", true);
	/* Once more, in its place; and one that is gone. */
	m = message(KEEPER_PUT, KEEPER_HOST, 0, "HOST");
	cr_assert_eq(keeper_send(host, &m, NULL), 0);
	m = message(KEEPER_DROP, KEEPER_VM, 2, "");
	cr_assert_eq(keeper_send(host, &m, NULL), 0);
	cr_assert_eq(count(), 2);
	/* Nobody gets anything while there is a host: the keeper waits for its end. */
	close(host);
	int next = take(texts, &n, fds);
	cr_assert_str_eq(texts, "HOST a c ");
	/* And the one after that, what is changed since. */
	m = message(KEEPER_DROP, KEEPER_VM, 1, "");
	cr_assert_eq(keeper_send(next, &m, NULL), 0);
	close(next);
	next = take(texts, &n, fds);
	cr_assert_str_eq(texts, "HOST c ");
	end_vm(&a);
	end_vm(&b);
	end_vm(&c);
	close(next);
	cr_assert(ends());
}

Test(keeper, holds_links_open_and_hangs_up_on_who_was_never_born)
{
	char byte;
	struct fake born = make_vm(1, "born", true), half = make_vm(2, "half", false);
	close(host);
	struct pollfd p = {.fd = half.link[1], .events = POLLIN};
	cr_assert_eq(poll(&p, 1, MS), 1);
	cr_assert_eq(recv(half.link[1], &byte, 1, 0), 0, "its link has ended");
	cr_assert_eq(recv(born.link[1], &byte, 1, 0), -1);
	cr_assert_eq(errno, EAGAIN, "this one's has not");
	cr_assert_eq(count(), 2);
	end_vm(&half);
	for (int ms = 0; count() != 1 && ms < MS; ms += 10)
		usleep(10000);
	cr_assert_eq(count(), 1);
	end_vm(&born);
	cr_assert(ends());
}

Test(keeper, reads_consoles_when_nobody_else_does)
{
	struct fake v = make_vm(1, "v", true);
	struct ring ring = {.bytes = NULL};
	const char *bytes;
	char texts[100], line[1000];
	unsigned n;
	int fds[LINK_FDS_MAX];
	memset(line, 'x', sizeof line);
	cr_assert_eq(send(v.console[1], "with a host", 11, 0), 11);
	usleep(50000);
	cr_assert_eq(ring_open(&ring, v.ring), 0);
	cr_assert_eq(ring.written, 0, "that is for the host to read");
	ring_free(&ring);
	close(host);
	for (unsigned sent = 0; sent < 300;)
		if (send(v.console[1], line, sizeof line, 0) == sizeof line)
			sent++;
		else
			usleep(1000); /* a full socket, which is soon empty */
	for (int ms = 0; send(v.console[1], "end", 3, 0) != 3; ms++, usleep(1000))
		cr_assert_lt(ms, MS);
	usleep(100000);
	int next = take(texts, &n, fds);
	cr_assert_eq(ring_open(&ring, v.ring), 0);
	cr_assert_eq(ring.written, 11 + 300 * sizeof line + 3);
	cr_assert_eq(ring_first(&ring), ring.written - RING_BYTES, "the last of it is there");
	cr_assert_eq(ring_piece(&ring, ring.written - 3, &bytes), 3);
	cr_assert(!memcmp(bytes, "end", 3));
	ring_free(&ring);
	close(next);
	end_vm(&v);
}

/* CPU time of the keeper so far, in clock ticks. */
static unsigned long ticks(void)
{
	char name[64];
	unsigned long user = 0, system = 0;
	snprintf(name, sizeof name, "/proc/%d/stat", (int)keeper);
	FILE *f = fopen(name, "re");
	cr_assert_not_null(f);
	cr_assert_eq(fscanf(f, "%*d %*s %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user,
			    &system),
		     2);
	fclose(f);
	return user + system;
}

Test(keeper, is_not_kept_busy_by_who_closes_his_console)
{
	struct fake v = make_vm(1, "v", true);
	close(host);
	usleep(50000);
	cr_assert_eq(send(v.console[1], "last words", 10, 0), 10);
	close(v.console[1]);
	uint64_t written = 0;
	for (int ms = 0; ms < MS && written != 10; ms += 10, usleep(10000)) {
		struct ring ring = {.bytes = NULL};
		cr_assert_eq(ring_open(&ring, v.ring), 0);
		written = ring.written;
		ring_free(&ring);
	}
	cr_assert_eq(written, 10);
	unsigned long before = ticks();
	usleep(600000);
	cr_assert_leq(ticks() - before, 10, "of some 60 that there were");
	end_vm(&v);
	cr_assert(ends());
}

Test(keeper, stays_for_what_is_to_be_written_to_files)
{
	struct keeper_message m = message(KEEPER_PUT, KEEPER_VM, 1, "writes");
	m.head.writes = true;
	cr_assert_eq(keeper_send(host, &m, NULL), 0);
	close(host);
	usleep(100000);
	cr_assert_eq(waitpid(keeper, NULL, WNOHANG), 0);
	char texts[100];
	unsigned n;
	int fds[LINK_FDS_MAX];
	int next = take(texts, &n, fds);
	m = message(KEEPER_DROP, KEEPER_VM, 1, "");
	cr_assert_eq(keeper_send(next, &m, NULL), 0);
	close(next);
	cr_assert(ends());
}

Test(keeper, ends_vms_when_asked_to_while_there_is_no_host)
{
	uint64_t n;
	struct fake v = make_vm(1, "v", true);
	cr_assert_eq(keeper_ask(path, KEEPER_END, &n), -EBUSY);
	cr_assert_eq(count(), 1, "not while it has a host");
	close(host);
	/* The VM's process has the host's end, too, until it has closed it. */
	int rc = -EBUSY;
	for (int ms = 0; ms < MS && rc == -EBUSY; ms += 10, usleep(10000))
		rc = keeper_ask(path, KEEPER_END, &n);
	cr_assert_eq(rc, 0);
	cr_assert(ends());
	struct pollfd p = {.fd = v.pidfd, .events = POLLIN};
	cr_assert_eq(poll(&p, 1, MS), 1);
	waitpid(v.pid, NULL, 0);
}

Test(keeper, is_none_for_a_host_that_talks_nonsense)
{
	/* It ends, and so its host knows that nothing is kept. */
	struct keeper_message m = message(KEEPER_PUT, KEEPER_VM, 1, "x");
	m.head.console = 3;
	cr_assert_eq(keeper_send(host, &m, NULL), 0);
	char byte;
	struct pollfd p = {.fd = host, .events = POLLIN};
	cr_assert_eq(poll(&p, 1, MS), 1);
	cr_assert_eq(recv(host, &byte, 1, 0), 0);
	waitpid(keeper, NULL, 0);
	keeper = 0;
}

Test(keeper, is_not_held_up_by_who_connects_and_says_nothing_that_makes_sense)
{
	struct fake v = make_vm(1, "v", true);
	int fd = keeper_dial(path);
	cr_assert_eq(send(fd, "?", 1, 0), 1);
	cr_assert_eq(count(), 1);
	close(fd);
	end_vm(&v);
}
