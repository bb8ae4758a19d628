/* The reclaimer as the host sees it: the store, the reclaimer's start and end, VMs to be rung for it, users' wishes. */
#include "ipt/fail.h"
#include "vmm/error.h"
#include "vmm/host_domain.h"
#include "vmm/host_keep.h"
#include "vmm/host_worker.h"
#include "vmm/reclaim.h"
#include "vmm/store.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct host_reclaimer {
	struct host_worker worker;
	struct store store;
	struct reclaim_board *board;
	int board_fd;
	host_wished_fn *wished; /* somebody waits for his wish */
	void *wished_ctx;
};

/* In the reclaimer's process. */
static void confine(void *w)
{
	host_worker_confine(w, SECCOMP_RECLAIMER);
}

static void run(struct host_worker *w, int link)
{
	struct host_reclaimer *g = container(struct host_reclaimer, worker, w);
	const struct reclaimer_links links = {.table = w->host->table,
					      .board = g->board,
					      .store = &g->store,
					      .link = link,
					      .confine = confine,
					      .worker = w};
	fail_be(FAIL_RECLAIMER, NULL);
	reclaimer_process(&links);
}

static void told(struct host_reclaimer *g)
{
	struct reclaim_wish *w = &g->board->wish;
	if (atomic_load_explicit(&w->state, memory_order_acquire) != RECLAIM_DONE)
		return;
	uint32_t freed = atomic_load_explicit(&w->freed, memory_order_relaxed);
	atomic_store_explicit(&w->state, RECLAIM_FREE, memory_order_release);
	host_wished_fn *wished = g->wished;
	g->wished = NULL;
	if (wished)
		wished(g->wished_ctx, freed);
}

static int settle(void *host)
{
	const struct host *h = host;
	return reclaim_settle(h->reclaimer->board, h->table);
}

/* Frames of merged pages that went out and were being looked at, or whose reclaimer died then. True: some are left, as
 * somebody is at work. */
static bool sweep(struct host *h)
{
	static const struct ipt_out_ops ops = {NULL, settle, host_domain_clean_all};
	struct ipt_vm_info info;
	return ipt_vm_info(h->table, ipt_holder(h->table), &info) == 0 && info.frames[IPT_LIMBO] &&
	       ipt_holder_sweep(h->table, &ops, h);
}

static void heard(struct host_worker *w, uint32_t id)
{
	struct host_reclaimer *g = container(struct host_reclaimer, worker, w);
	struct host_vm *vm = id ? host_vm_by_id(w->host, vmid(id)) : NULL;
	if (vm)
		host_order(vm, ORDER_RECLAIM);
	if (!id) {
		host_drop(w->host, g->board);
		if (sweep(w->host))
			host_want_tick(w->host);
		host_feed_the_hungry(w->host);
		host_tell_starved(w->host);
		told(g);
	}
}

static void wake(struct host_worker *w)
{
	reclaim_ring(container(struct host_reclaimer, worker, w)->board);
}

/* Nobody fulfils a wish any more, and those who wait for memory are to hear of it. */
static void failed(struct host_worker *w)
{
	struct host_reclaimer *g = container(struct host_reclaimer, worker, w);
	struct reclaim_wish *wish = &g->board->wish;
	if (atomic_load_explicit(&wish->state, memory_order_acquire) != RECLAIM_FREE)
		atomic_store_explicit(&wish->state, RECLAIM_DONE, memory_order_release);
	told(g);
	host_tell_starved(w->host);
}

bool host_reclaim_is_full(struct host *h)
{
	const struct host_reclaimer *g = h->reclaimer;
	return !g || !host_worker_runs(&g->worker) ||
	       atomic_load_explicit(&g->board->full, memory_order_relaxed);
}

/* ---- before the table is made: what space it is to account for -------------------------------- */

int host_reclaim_open(struct host *h, struct ipt_config *c, char *error)
{
	const struct host_config *config = &h->config;
	if (!config->pack_bytes && !config->swap_file)
		return 0;
	if (config->kind != IPT_INDEX)
		return errorf(
			error, -EOPNOTSUPP,
			"%s: a table of kind radix has no room for pages that are not in memory; "
			"use ipt",
			config->pack_bytes ? "--pack" : "--swap");
	int rc = fault_can_share(error);
	if (rc)
		return rc;
	struct host_reclaimer *g = calloc(1, sizeof *g);
	h->reclaimer = g;
	if (!g)
		return errorf(error, -ENOMEM, "no memory for the reclaimer");
	host_worker_init(&g->worker, h);
	g->store = (struct store){.mem_fd = -1, .file_fd = -1};
	g->board_fd = host_adopt_fd(h, KEPT_RECLAIM);
	g->board = g->board_fd >= 0 ? reclaim_board_attach(c->max_vms, g->board_fd)
				    : reclaim_board_create(c->max_vms, c->frames, &g->board_fd);
	if (!g->board)
		return errorf(error, -ENOMEM, "no memory for the reclaimer");
	if (host_adopt_store(h, &g->store))
		return 0;
	rc = store_create(&g->store, 0, config->swap_file, config->swap_bytes, error);
	if (!rc && config->pack_bytes) /* each domain makes its own */
		rc = store_mem_size(&g->store, config->pack_bytes, error);
	c->packed_pages = g->store.mem_pages;
	c->blocks = g->store.file_blocks;
	return rc;
}

int host_reclaim_start(struct host *h, char *error)
{
	struct host_reclaimer *g = h->reclaimer;
	if (!g)
		return 0;
	struct host_worker *w = &g->worker;
	w->run = run;
	w->heard = heard;
	w->wake = wake;
	w->failed_for_good = failed;
	w->keep[w->keeps++] = ipt_fd(h->table);
	if (g->store.file_fd >= 0)
		w->keep[w->keeps++] = g->store.file_fd;
	int rc = host_worker_start(w);
	return rc ? errorf(error, rc, "the reclaimer: can't start its process: %s", strerror(-rc))
		  : 0;
}

bool host_reclaim_tick(struct host *h)
{
	if (!h->reclaimer)
		return false;
	bool more = host_worker_tick(&h->reclaimer->worker);
	return sweep(h) || more;
}

void host_reclaim_destroy(struct host *h)
{
	struct host_reclaimer *g = h->reclaimer;
	if (!g)
		return;
	host_worker_stop(&g->worker);
	store_destroy(&g->store);
	reclaim_board_destroy(g->board);
	if (g->board_fd >= 0)
		close(g->board_fd);
	free(g);
	h->reclaimer = NULL;
}

/* ---- for VMs ------------------------------------------------------------------------------- */

struct reclaim_board *host_reclaim_board(struct host *h)
{
	return h->reclaimer ? h->reclaimer->board : NULL;
}

int host_reclaim_board_fd(struct host *h)
{
	return h->reclaimer ? h->reclaimer->board_fd : -1;
}

const struct store *host_store(const struct host *h)
{
	return h->reclaimer ? &h->reclaimer->store : NULL;
}

struct host_worker *host_reclaim_worker(struct host *h)
{
	return h->reclaimer ? &h->reclaimer->worker : NULL;
}

int host_reclaim_packed(const struct host *h, int *fd, char *error)
{
	const struct store *s = host_store(h);
	*fd = s && s->mem_pages ? store_mem_create(s, error) : -1;
	return s && s->mem_pages && *fd < 0 ? *fd : 0;
}

const struct store *host_reclaim_store(struct host *h, const struct domain *d)
{
	if (h->reclaimer)
		h->reclaimer->store.mem_fd = d->packed_fd;
	return host_store(h);
}

void host_reclaim_admit(struct host_vm *vm)
{
	const struct vm_memory_share *s = &vm->config.memory_share;
	reclaim_desk_clear(host_reclaim_board(vm->host), vm->id,
			   s->shares ? s->shares : RECLAIM_SHARES, s->min, s->limit);
	reclaim_set_domain(host_reclaim_board(vm->host), vm->id, vm->domain->number);
}

void host_reclaim_file(struct host *h, const struct pmem_file *f, uint32_t domain)
{
	struct reclaim_desk *d = reclaim_desk(host_reclaim_board(h), f->id);
	reclaim_set_domain(host_reclaim_board(h), f->id, domain);
	if (d) /* one that was shared may have pages that aren't in the file */
		atomic_store_explicit(&d->droppable, f->write_fd < 0, memory_order_release);
}

int host_reclaim_may_reap(const struct host_vm *vm)
{
	const struct store *s = host_store(vm->host);
	return s && s->file_fd >= 0 && store_io_lives(s, vm->id.v) == 1 ? -EAGAIN : 0;
}

/* ---- for users ----------------------------------------------------------------------------- */

int host_limit(struct host_vm *vm, uint32_t frames)
{
	struct reclaim_board *b = host_reclaim_board(vm->host);
	struct reclaim_desk *d = reclaim_desk(b, vm->id);
	if (!d)
		return -EOPNOTSUPP;
	vm->config.memory_share.limit = frames;
	atomic_store_explicit(&d->limit, frames, memory_order_relaxed);
	reclaim_ring(b);
	return 0;
}

int host_wish(struct host *h, struct host_vm *vm, uint32_t frames, host_wished_fn *wished,
	      void *ctx)
{
	struct host_reclaimer *g = h->reclaimer;
	if (!g || !host_worker_runs(&g->worker))
		return -EOPNOTSUPP;
	struct reclaim_wish *w = &g->board->wish;
	if (g->wished || atomic_load_explicit(&w->state, memory_order_acquire) != RECLAIM_FREE)
		return -EBUSY;
	w->vm = vm ? vm->id.v : 0;
	w->frames = frames;
	w->freed = 0;
	g->wished = wished;
	g->wished_ctx = ctx;
	atomic_store_explicit(&w->state, RECLAIM_ASKED, memory_order_release);
	reclaim_ring(g->board);
	return 0;
}

void host_wish_forget(struct host *h)
{
	if (h->reclaimer)
		h->reclaimer->wished = NULL;
}

void host_reclaim_info(struct host *h, struct host_reclaim *out)
{
	struct host_reclaimer *g = h->reclaimer;
	*out = (struct host_reclaim){0};
	if (!g)
		return;
	ipt_space(h->table, &out->space);
	out->on = true;
	out->running = host_worker_runs(&g->worker);
	out->starts = g->worker.starts;
	out->board = g->board;
	out->packed_populated = host_domain_packed_bytes(h);
}
