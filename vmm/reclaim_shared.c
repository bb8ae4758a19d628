#include "vmm/reclaim_shared.h"
#include "vmm/clock.h"
#include "vmm/store.h"
#include <errno.h>
#include <unistd.h>

#define LATER_MS \
	50 /* until the next try, if one doesn't: others want the registry's lock meanwhile */

/* The pages that go out at this moment. */
static struct {
	_Alignas(PAGE_SIZE) uint8_t page[IPT_CLUSTER_FRAMES][PAGE_SIZE];
	uint8_t packed[IPT_CLUSTER_FRAMES][STORE_PACKED_MOST];
	struct ipt_out out[IPT_CLUSTER_FRAMES];
} batch;

static void count(_Atomic uint64_t *counter, uint64_t n)
{
	atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

static int keep(void *ctx, uint32_t i, const struct ipt_out *where)
{
	const struct reclaim_shared *s = ctx;
	return store_mem_write(&s->store, where->where, batch.packed[i], where->bytes);
}

static int settle(void *ctx)
{
	const struct reclaim_shared *s = ctx;
	return reclaim_settle(s->links->board, s->links->table);
}

/* The host's page tables, and KVM's, lose the pages in every process by that. */
static int clean(void *ctx, frame_t first, uint32_t n)
{
	const struct reclaim_shared *s = ctx;
	return pool_clean((void *)(uintptr_t)&s->pool, first, n);
}

/* 0; -E2BIG: one doesn't pack; -EIO. */
static int pack(const struct pool *pool, frame_t f, uint32_t n)
{
	ssize_t bytes = (ssize_t)n << PAGE_SHIFT;
	if (pread(pool->fd, batch.page[0], (size_t)bytes, (off_t)f.v << PAGE_SHIFT) != bytes)
		return -EIO;
	for (uint32_t i = 0; i < n; i++) {
		struct ipt_out *o = &batch.out[i];
		*o = (struct ipt_out){.where = 0};
		if (store_is_zero(batch.page[i]))
			continue;
		if (store_pack(batch.page[i], batch.packed[i], &o->bytes))
			return -E2BIG;
		o->sum = store_sum(batch.packed[i], o->bytes);
	}
	return 0;
}

static void note_unsettled(struct reclaim_shared *s, int rc, uint32_t n)
{
	if (rc != -EBUSY)
		return;
	count(&s->links->board->counters.unsettled, n);
	s->later_ns = clock_ns() + LATER_MS * UINT64_C(1000000);
}

static const struct ipt_out_ops out_ops = {keep, settle, clean};

static int went(struct reclaim_shared *s, _Atomic uint64_t *counter, int rc, uint32_t n)
{
	struct reclaim_counters *c = &s->links->board->counters;
	note_unsettled(s, rc, n);
	if (rc)
		return rc;
	count(counter, n);
	count(&c->out, n);
	count(&c->freed, n);
	for (uint32_t i = 0; i < n; i++)
		count(&c->packed_bytes, batch.out[i].bytes);
	s->freed += n;
	return 0;
}

static int out(struct reclaim_shared *s, vmid_t vm, gfn_t first, frame_t f, uint32_t n)
{
	int rc = pack(&s->pool, f, n);
	if (!rc)
		rc = ipt_template_out(s->links->table, vm, first, f, batch.out, n, &out_ops, s);
	return went(s, &s->links->board->counters.shared, rc, n);
}

/* A file's pages are in the file. */
static void drop(struct reclaim_shared *s, vmid_t file, gfn_t first, frame_t f, uint32_t n)
{
	static const struct ipt_out_ops ops = {NULL, settle, clean};
	struct reclaim_counters *c = &s->links->board->counters;
	int rc = ipt_file_drop(s->links->table, file, first.v, f, n, &ops, s);
	note_unsettled(s, rc, n);
	if (rc)
		return;
	count(&c->dropped, n);
	count(&c->freed, n);
	s->freed += n;
}

/* A guest writes to some of the file's pages: the host knows which. */
static void leave_to_host(struct reclaim_shared *s, vmid_t file, gfn_t first, frame_t f, uint32_t n)
{
	struct reclaim_drops *d = &s->links->board->drops;
	if (atomic_load_explicit(&d->state, memory_order_acquire) != RECLAIM_FREE ||
	    s->drops == RECLAIM_DROPS)
		return; /* the hand comes by again */
	d->piece[s->drops++] = (typeof(d->piece[0])){file.v, f.v, n, first.v};
}

#define DISK_MS  1000  /* that a write takes, at most, as long as others are to wait for it */
#define FRESH_MS 10000 /* after which another write is waited for anew */

static void note_unclean(struct reclaim_shared *s, uint32_t pages)
{
	uint64_t now = clock_ns();
	if (pages && (!s->unclean.pages || now - s->unclean.told_ns > FRESH_MS * UINT64_C(1000000)))
		s->unclean.since_ns = now;
	s->unclean.pages = pages;
	s->unclean.told_ns = now;
}

bool reclaim_shared_waits(struct reclaim_shared *s)
{
	uint64_t now = clock_ns(), done = atomic_load_explicit(&s->links->board->counters.cleaned,
							       memory_order_relaxed);
	if (done != s->unclean.done)
		s->unclean.since_ns = now;
	s->unclean.done = done;
	return s->unclean.pages && now - s->unclean.since_ns < DISK_MS * UINT64_C(1000000);
}

bool reclaim_shared_ask(struct reclaim_shared *s)
{
	struct reclaim_drops *d = &s->links->board->drops;
	uint32_t state = atomic_load_explicit(&d->state, memory_order_acquire);
	if (state == RECLAIM_DONE) {
		s->freed += d->freed;
		note_unclean(s, d->unclean);
		atomic_store_explicit(&d->state, state = RECLAIM_FREE, memory_order_relaxed);
	}
	if (state != RECLAIM_FREE || !s->drops)
		return false;
	d->pieces = s->drops;
	d->freed = s->drops = 0;
	atomic_store_explicit(&d->state, RECLAIM_ASKED, memory_order_release);
	return true;
}

/* Looked up once: from one domain's file of the pool into the same one's packed memory, whoever writes on boards. False: we
 * are still to hear of it. */
static bool look_up_files(struct reclaim_shared *s, vmid_t vm)
{
	const struct domain_fd *of = domain_fds_of(&s->files, reclaim_domain(s->links->board, vm));
	if (!of)
		return false;
	s->pool.fd = of->fd;
	s->store = *s->links->store;
	s->store.mem_fd = of->packed;
	return true;
}

void reclaim_shared_out(void *ctx, vmid_t vm, gfn_t first, frame_t f, uint32_t n)
{
	struct reclaim_shared *s = ctx;
	struct ipt_vm_info info;
	if (clock_ns() < s->later_ns || ipt_vm_info(s->links->table, vm, &info) ||
	    !look_up_files(s, vm))
		return;
	if (info.kind == IPT_FILE) {
		const struct reclaim_desk *d = reclaim_desk(s->links->board, vm);
		bool here = d && atomic_load_explicit(&d->droppable, memory_order_acquire);
		(here ? drop : leave_to_host)(s, vm, first, f, n);
		return;
	}
	int rc = s->store.mem_pages ? out(s, vm, first, f, n) : -ENOSPC;
	if (rc != -E2BIG)
		return;
	for (uint32_t i = 0; i < n; i++)
		if (n == 1 || out(s, vm, gfn_add(first, i), frame_add(f, i), 1) == -E2BIG)
			ipt_set_age(s->links->table, frame_add(f, i), 1, IPT_AGE_MOST);
}

/* ---- merged frames ------------------------------------------------------------------------------ */

void reclaim_merged_out(void *ctx, frame_t f)
{
	struct reclaim_shared *s = ctx;
	struct ipt *t = s->links->table;
	struct ipt_sharer is, still;
	if (clock_ns() < s->later_ns || !s->links->store->mem_pages || ipt_sharer(t, f, &is) ||
	    !look_up_files(s, is.vm))
		return;
	/* It had the frame before and after we looked up its domain: so the frame is of that, too, and from the stamp on. */
	if (ipt_sharer(t, f, &still) || still.vm.v != is.vm.v || still.stamp != is.stamp)
		return;
	int rc = pack(&s->pool, f, 1);
	if (!rc)
		rc = ipt_shared_out(t, f, is.stamp, batch.out, &out_ops, s);
	if (went(s, &s->links->board->counters.merged, rc, 1) == -E2BIG)
		ipt_set_age(t, f, 1, IPT_AGE_MOST);
}
