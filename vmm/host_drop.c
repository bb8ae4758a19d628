/*
 * Pages of files that guests share, and have not written to since they were last written back, leave the pool: they
 * are in the file. The reclaimer chooses them, by the board; here it is known what each guest has written (pmem.h). Whoever
 * has written to one of them is told to write it back, and it goes when the reclaimer's hand comes by again.
 *
 * The table first: from then on nobody finds the page. Whoever found it before is asked for (reclaim_settle), and so
 * has noted by then that he writes to it, or pinned it. Only then the sets are looked at.
 */
#include "vmm/host_domain.h"
#include "vmm/host_keep.h"
#include "vmm/pmem.h"
#include "vmm/reclaim.h"
#include <errno.h>

struct dropping {
	struct host *h;
	struct reclaim_board *board;
	const struct pmem_file *file;
	uint64_t page;
	uint32_t n;
};

static bool is_dirty(const struct dropping *d)
{
	if (pmem_left_dirty(d->file, d->page, d->n))
		return true;
	for (unsigned i = 0; i < d->h->vms; i++) {
		const struct host_vm *vm = d->h->vm[i];
		for (unsigned k = 0; k < vm->config.pmems; k++)
			if (vm->pmem[k] && vm->pmem[k]->file == d->file &&
			    pmem_is_dirty(vm->pmem[k], d->page, d->n))
				return true;
	}
	return false;
}

/* Have it written back for those who wrote to it. Pages, if there are such. */
static uint32_t want_clean(const struct dropping *d, bool *left)
{
	uint32_t wanted = host_left_want(d->file, d->page, d->n);
	*left |= wanted;
	for (unsigned i = 0; i < d->h->vms; i++) {
		struct host_vm *vm = d->h->vm[i];
		for (unsigned k = 0; k < vm->config.pmems; k++)
			if (vm->phase == HOST_VM_ALIVE && vm->pmem[k] &&
			    vm->pmem[k]->file == d->file &&
			    pmem_want_clean(vm->pmem[k], d->page, d->n)) {
				vm->unclean = true;
				wanted = d->n;
			}
	}
	return wanted;
}

static void order_write_back(struct host *h)
{
	for (unsigned i = 0; i < h->vms; i++) {
		if (h->vm[i]->unclean)
			host_order(h->vm[i], ORDER_WRITE_BACK);
		h->vm[i]->unclean = false;
	}
}

static int settle(void *ctx)
{
	const struct dropping *d = ctx;
	int rc = reclaim_settle(d->board, d->h->table);
	return rc ? rc : is_dirty(d) ? -EAGAIN : 0;
}

static int clean(void *ctx, frame_t first, uint32_t n)
{
	const struct dropping *d = ctx;
	return pool_clean((void *)(uintptr_t)d->file->pool, first, n);
}

void host_drop(struct host *h, struct reclaim_board *b)
{
	static const struct ipt_out_ops ops = {NULL, settle, clean};
	struct reclaim_drops *d = &b->drops;
	if (atomic_load_explicit(&d->state, memory_order_acquire) != RECLAIM_ASKED)
		return;
	uint32_t pieces = d->pieces < RECLAIM_DROPS ? d->pieces : RECLAIM_DROPS, freed = 0,
		 unclean = 0;
	bool left = false;
	int rc = 0;
	/* Not if somebody is at work for long: we have other things to do than to wait for him, page by page. */
	for (uint32_t i = 0; i < pieces && rc != -EBUSY; i++) {
		vmid_t id = vmid(d->piece[i].file);
		struct dropping one = {h, b, host_file_by_id(h, id), d->piece[i].page,
				       d->piece[i].n};
		if (!one.file || one.n > IPT_CLUSTER_FRAMES)
			continue;
		if (is_dirty(&one)) {
			unclean += want_clean(&one, &left);
			continue;
		}
		rc = ipt_file_drop(h->table, id, one.page, frame(d->piece[i].frame), one.n, &ops,
				   &one);
		freed += rc ? 0 : one.n;
	}
	atomic_fetch_add_explicit(&b->counters.dropped, freed, memory_order_relaxed);
	atomic_fetch_add_explicit(&b->counters.freed, freed, memory_order_relaxed);
	order_write_back(h);
	if (left)
		host_left_clean(h);
	d->freed = freed;
	d->unclean = unclean;
	atomic_store_explicit(&d->state, RECLAIM_DONE, memory_order_release);
	reclaim_ring(b);
}
