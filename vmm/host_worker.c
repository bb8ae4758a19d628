#include "vmm/host_worker.h"
#include "ipt/fail.h"
#include "vmm/clock.h"
#include "vmm/error.h"
#include "vmm/fds.h"
#include "vmm/host_domain.h"
#include "vmm/host_private.h"
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* One that ends sooner than this after its start has failed; after so many in a row it is left alone. */
#define LIVES_S  10
#define FAILS_IN 5

/* Private memory that it may get, beside what it has when it begins. */
#define SPARE_BYTES (64 * MiB)
#define SPARE_FRAME UINT64_C(64)

void host_worker_init(struct host_worker *w, struct host *h)
{
	*w = (struct host_worker){.host = h, .pidfd = -1, .link_fd = -1};
}

static _Noreturn void child(struct host_worker *w, int link, pid_t parent, uid_t user)
{
	int keep[SANDBOX_FDS + WORKER_KEEP + 1];
	sigset_t none;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(1);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGINT, SIG_IGN); /* the terminal's Ctrl-C is for the host */
	sandbox_streams(&w->host->sandbox);
	unsigned n = sandbox_fds(&w->host->sandbox, keep);
	memcpy(keep + n, w->keep, w->keeps * sizeof *keep);
	n += w->keeps;
	keep[n++] = link;
	fds_close_all_but(keep, n);
	w->user = user;
	w->run(w, link);
	_exit(1);
}

void host_worker_confine(const struct host_worker *w, enum seccomp_kind kind)
{
	const struct host *h = w->host;
	uint64_t data = sandbox_data_bytes();
	const struct sandbox_limits limits = {
		.data_bytes = data ? data + SPARE_BYTES + host_frames(h) * SPARE_FRAME : 0,
		.lock_bytes = 64 * KiB,
		.files = 64 + 2 * DOMAINS_MOST,
		.tasks = 4};
	char error[ERROR_MAX];
	if (sandbox_enter(&h->sandbox, kind, w->user, &limits, error)) {
		dprintf(STDERR_FILENO, "invisor: %s: %s\n", seccomp_kind_name(kind), error);
		_exit(1);
	}
}

/* Somebody may have done so before: a handle is never another process's. */
static void wait_for_end(const struct host_worker *w)
{
	siginfo_t info;
	waitid(P_PIDFD, (id_t)w->pidfd, &info, WEXITED);
}

static void let_go(struct host_worker *w)
{
	if (w->pidfd < 0)
		return;
	host_remove_source(w->host, &w->on_exit);
	host_remove_source(w->host, &w->on_link);
	close(w->pidfd);
	close(w->link_fd);
	w->pidfd = w->link_fd = -1;
}

static void on_exit_of_worker(struct host_source *s, uint32_t events)
{
	struct host_worker *w = container(struct host_worker, on_exit, s);
	(void)events;
	wait_for_end(w);
	let_go(w);
	if (clock_ns() - w->started_ns >= LIVES_S * UINT64_C(1000000000))
		w->failed = 0;
	w->due = true;
	if (host_worker_tick(w))
		host_want_tick(w->host);
}

bool host_worker_tick(struct host_worker *w)
{
	if (!w->due)
		return false;
	w->due = ++w->failed < FAILS_IN && host_worker_start(w);
	if (!w->due && !host_worker_runs(w) && w->failed_for_good)
		w->failed_for_good(w);
	return w->due;
}

static void on_link(struct host_source *s, uint32_t events)
{
	struct host_worker *w = container(struct host_worker, on_link, s);
	uint32_t id;
	int fds[LINK_FDS_MAX];
	ssize_t n = link_receive(w->link_fd, &id, sizeof id, fds);
	(void)events;
	link_close(fds);
	if (n > 0)
		w->heard(w, id);
	if (n == 0)
		host_remove_source(w->host, s); /* the pidfd tells of the end */
}

int host_worker_start(struct host_worker *w)
{
	int link[2];
	int rc = link_pair(link);
	if (rc)
		return rc;
	pid_t parent = getpid();
	uid_t user = sandbox_next_id(&w->host->sandbox);
	fflush(NULL);
	w->pid = fail_call(WORKER_FORK, fork());
	if (w->pid == 0)
		child(w, link[1], parent, user);
	rc = w->pid < 0 ? -errno : 0;
	close(link[1]);
	w->link_fd = link[0];
	w->pidfd = rc ? -1 : (int)fail_call(WORKER_PIDFD, syscall(SYS_pidfd_open, w->pid, 0));
	if (!rc && w->pidfd < 0)
		rc = -errno;
	w->on_exit = (struct host_source){w->pidfd, on_exit_of_worker};
	w->on_link = (struct host_source){w->link_fd, on_link};
	w->started_ns = clock_ns();
	w->starts++;
	if (!rc)
		rc = host_add_source(w->host, &w->on_exit, EPOLLIN);
	if (!rc)
		rc = host_add_source(w->host, &w->on_link, EPOLLIN);
	if (!rc) {
		host_domain_tell_all(w);
		return 0;
	}
	close(w->link_fd); /* which ends it, if it is there */
	if (w->pidfd >= 0)
		close(w->pidfd);
	w->pidfd = w->link_fd = -1;
	return rc;
}

void host_worker_stop(struct host_worker *w)
{
	if (w->pidfd < 0)
		return;
	syscall(SYS_pidfd_send_signal, w->pidfd, SIGKILL, NULL, 0);
	wait_for_end(w);
	let_go(w);
}
