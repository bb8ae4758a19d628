/* The merger as the host sees it: its start and its end, VMs to be rung for it, sharing domains. */
#include "vmm/clock.h"
#include "vmm/error.h"
#include "vmm/fds.h"
#include "vmm/host_private.h"
#include "vmm/merge.h"
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* One that ends sooner than this after its start has failed; after so many in a row there is no merging. */
#define LIVES_S  10
#define FAILS_IN 5

struct host_merger {
	struct host *host;
	struct merge_board *board;
	pid_t pid;
	int pidfd, link_fd;
	struct host_source on_exit, on_link;
	unsigned starts, failed; /* failed: in a row */
	uint64_t started_ns;
	char (*domain)[IPT_NAME_LEN]; /* names; number i + 1 is domain[i] */
	unsigned domains;
};

static int start(struct host_merger *g);

/* ---- its process --------------------------------------------------------------------------- */

static _Noreturn void child(struct host_merger *g, int link, pid_t parent)
{
	struct host *h = g->host;
	sigset_t none;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(1);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGINT, SIG_IGN); /* the terminal's Ctrl-C is for the host */
	fds_close_all_but((int[]){h->pool.fd, ipt_fd(h->table), link}, 3);
	merger_process(h->table, h->pool.fd, g->board, link, h->config.merge_percent);
}

static void let_go(struct host_merger *g)
{
	if (g->pidfd < 0)
		return;
	host_remove_source(g->host, &g->on_exit);
	host_remove_source(g->host, &g->on_link);
	close(g->pidfd);
	close(g->link_fd);
	g->pidfd = g->link_fd = -1;
}

static void on_exit_of_merger(struct host_source *s, uint32_t events)
{
	struct host_merger *g = container(struct host_merger, on_exit, s);
	(void)events;
	waitpid(g->pid, NULL, 0);
	let_go(g);
	if (clock_ns() - g->started_ns >= LIVES_S * UINT64_C(1000000000))
		g->failed = 0;
	if (++g->failed < FAILS_IN)
		start(g);
}

static void on_link(struct host_source *s, uint32_t events)
{
	struct host_merger *g = container(struct host_merger, on_link, s);
	uint32_t id;
	int fds[LINK_FDS_MAX];
	ssize_t n = link_receive(g->link_fd, &id, sizeof id, fds);
	(void)events;
	link_close(fds);
	struct host_vm *vm = n > 0 ? host_vm_by_id(g->host, vmid(id)) : NULL;
	if (vm)
		host_order(vm, ORDER_MERGE);
	if (n == 0)
		host_remove_source(g->host, s); /* the pidfd tells of the end */
}

static int start(struct host_merger *g)
{
	int link[2];
	int rc = link_pair(link);
	if (rc)
		return rc;
	pid_t parent = getpid();
	fflush(NULL);
	g->pid = fork();
	if (g->pid == 0)
		child(g, link[1], parent);
	rc = g->pid < 0 ? -errno : 0;
	close(link[1]);
	g->link_fd = link[0];
	g->pidfd = rc ? -1 : (int)syscall(SYS_pidfd_open, g->pid, 0);
	if (!rc && g->pidfd < 0)
		rc = -errno;
	g->on_exit = (struct host_source){g->pidfd, on_exit_of_merger};
	g->on_link = (struct host_source){g->link_fd, on_link};
	g->started_ns = clock_ns();
	g->starts++;
	if (!rc)
		rc = host_add_source(g->host, &g->on_exit, EPOLLIN);
	if (!rc)
		rc = host_add_source(g->host, &g->on_link, EPOLLIN);
	if (!rc)
		return 0;
	close(g->link_fd); /* which ends it, if it is there */
	if (g->pidfd >= 0)
		close(g->pidfd);
	g->pidfd = g->link_fd = -1;
	return rc;
}

/* ---- for the host -------------------------------------------------------------------------- */

int host_merge_create(struct host *h, char *error)
{
	if (!h->config.merge_percent)
		return 0;
	if (h->config.kind != IPT_INDEX)
		return errorf(error, -EOPNOTSUPP,
			      "--merge: a table of kind radix can't merge frames; use ipt");
	int rc = fault_can_share(error);
	if (rc)
		return rc;
	struct host_merger *g = calloc(1, sizeof *g);
	if (g)
		*g = (struct host_merger){.host = h,
					  .board = merge_board_create(h->config.max_vms),
					  .pidfd = -1,
					  .link_fd = -1};
	h->merger = g;
	if (!g || !g->board)
		return errorf(error, -ENOMEM, "no memory for the merger");
	rc = start(g);
	return rc ? errorf(error, rc, "the merger: can't start its process: %s", strerror(-rc)) : 0;
}

void host_merge_destroy(struct host *h)
{
	struct host_merger *g = h->merger;
	if (!g)
		return;
	if (g->pidfd >= 0) {
		syscall(SYS_pidfd_send_signal, g->pidfd, SIGKILL, NULL, 0);
		waitpid(g->pid, NULL, 0);
		let_go(g);
	}
	merge_board_destroy(g->board);
	free(g->domain);
	free(g);
	h->merger = NULL;
}

struct merge_board *host_merge_board(struct host *h)
{
	return h->merger ? h->merger->board : NULL;
}

/* The number of a domain, a new one for a new name; 0 for none, and where there is no memory for a name. */
static uint32_t number_of(struct host_merger *g, const char *name)
{
	const char *wanted = *name ? name : HOST_DOMAIN_DEFAULT;
	if (!strcmp(wanted, HOST_DOMAIN_NONE))
		return 0;
	for (unsigned i = 0; i < g->domains; i++)
		if (!strcmp(g->domain[i], wanted))
			return i + 1;
	char(*more)[IPT_NAME_LEN] = realloc(g->domain, (g->domains + 1) * sizeof *more);
	if (!more)
		return 0;
	g->domain = more;
	snprintf(g->domain[g->domains], sizeof *more, "%s", wanted);
	return ++g->domains;
}

void host_merge_admit(struct host_vm *vm)
{
	struct host_merger *g = vm->host->merger;
	if (g)
		merge_set_domain(g->board, vm->id, number_of(g, vm->config.share_domain));
}

void host_merge_info(struct host *h, struct host_merge *out)
{
	const struct host_merger *g = h->merger;
	*out = (struct host_merge){0};
	if (!g)
		return;
	*out = (struct host_merge){.percent = h->config.merge_percent,
				   .running = g->pidfd >= 0,
				   .starts = g->starts,
				   .counters = &g->board->counters};
}
