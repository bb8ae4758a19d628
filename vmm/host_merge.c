/* The merger as the host sees it: its start and its end, VMs to be rung for it. */
#include "ipt/fail.h"
#include "vmm/error.h"
#include "vmm/host_domain.h"
#include "vmm/host_keep.h"
#include "vmm/host_worker.h"
#include "vmm/merge.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct host_merger {
	struct host_worker worker;
	struct merge_board *board;
	int board_fd;
};

/* In the merger's process. */
static void confine(void *w)
{
	host_worker_confine(w, SECCOMP_MERGER);
}

static void run(struct host_worker *w, int link)
{
	struct host_merger *g = container(struct host_merger, worker, w);
	struct host *h = w->host;
	const struct merger_links links = {.table = h->table,
					   .board = g->board,
					   .link = link,
					   .percent = h->config.merge_percent,
					   .confine = confine,
					   .worker = w};
	fail_be(FAIL_MERGER, NULL);
	merger_process(&links);
}

static void heard(struct host_worker *w, uint32_t id)
{
	struct host_vm *vm = host_vm_by_id(w->host, vmid(id));
	if (vm)
		host_order(vm, ORDER_MERGE);
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
	h->merger = g;
	if (g) {
		host_worker_init(&g->worker, h);
		g->worker.run = run;
		g->worker.heard = heard;
		g->worker.reads_only = true;
		g->worker.keep[g->worker.keeps++] = ipt_fd(h->table);
		g->board_fd = host_adopt_fd(h, KEPT_MERGE);
		g->board = g->board_fd >= 0 ? merge_board_attach(h->config.max_vms, g->board_fd)
					    : merge_board_create(h->config.max_vms, &g->board_fd);
	}
	if (!g || !g->board)
		return errorf(error, -ENOMEM, "no memory for the merger");
	rc = host_worker_start(&g->worker);
	return rc ? errorf(error, rc, "the merger: can't start its process: %s", strerror(-rc)) : 0;
}

bool host_merge_tick(struct host *h)
{
	return h->merger && host_worker_tick(&h->merger->worker);
}

void host_merge_destroy(struct host *h)
{
	struct host_merger *g = h->merger;
	if (!g)
		return;
	host_worker_stop(&g->worker);
	merge_board_destroy(g->board);
	if (g->board_fd >= 0)
		close(g->board_fd);
	free(g);
	h->merger = NULL;
}

struct merge_board *host_merge_board(struct host *h)
{
	return h->merger ? h->merger->board : NULL;
}

int host_merge_board_fd(struct host *h)
{
	return h->merger ? h->merger->board_fd : -1;
}

struct host_worker *host_merge_worker(struct host *h)
{
	return h->merger ? &h->merger->worker : NULL;
}

void host_merge_admit(struct host_vm *vm)
{
	merge_set_domain(host_merge_board(vm->host), vm->id, host_domain_merged_as(vm->domain));
}

void host_merge_info(struct host *h, struct host_merge *out)
{
	const struct host_merger *g = h->merger;
	*out = (struct host_merge){0};
	if (!g)
		return;
	*out = (struct host_merge){.percent = h->config.merge_percent,
				   .running = host_worker_runs(&g->worker),
				   .starts = g->worker.starts,
				   .counters = &g->board->counters};
}
