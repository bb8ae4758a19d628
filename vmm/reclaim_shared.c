#include "vmm/reclaim_shared.h"
#include "vmm/clock.h"
#include "vmm/store.h"
#include <errno.h>
#include <unistd.h>

#define SETTLE_US 1000 /* how long VMs get to let go of frames that they looked up */
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

/* Is it a VM that a process works for? One that died in the middle of something seems to be at it for ever. */
static bool works(const struct reclaim_shared *s, uint32_t id)
{
	struct ipt_vm_info info;
	return ipt_vm_info(s->links->table, vmid(id), &info) == 0 && info.kind == IPT_VM &&
	       !info.dying;
}

/* The table says that the pages are out. Whoever looked before that is at work still (memory_enter). */
static int settle(void *ctx)
{
	const struct reclaim_shared *s = ctx;
	const struct reclaim_board *b = s->links->board;
	uint64_t until = 0;
	atomic_thread_fence(memory_order_seq_cst);
	for (uint32_t id = 1; id < s->clock->vms; id++) {
		const _Atomic uint32_t *at_work = &b->desk[id].at_work;
		uint32_t was = atomic_load_explicit(at_work, memory_order_seq_cst);
		if (!(was & 1) || !works(s, id))
			continue;
		until = until ? until : clock_ns() + SETTLE_US * 1000;
		while (atomic_load_explicit(at_work, memory_order_acquire) == was)
			if (clock_ns() > until)
				return -EBUSY;
	}
	return 0;
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

static int out(struct reclaim_shared *s, vmid_t vm, gfn_t first, frame_t f, uint32_t n)
{
	static const struct ipt_out_ops ops = {keep, settle, clean};
	struct reclaim_counters *c = &s->links->board->counters;
	int rc = pack(&s->pool, f, n);
	if (!rc)
		rc = ipt_template_out(s->links->table, vm, first, f, batch.out, n, &ops, s);
	note_unsettled(s, rc, n);
	if (rc)
		return rc;
	count(&c->shared, n);
	count(&c->out, n);
	count(&c->freed, n);
	for (uint32_t i = 0; i < n; i++)
		count(&c->packed_bytes, batch.out[i].bytes);
	s->freed += n;
	return 0;
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

void reclaim_shared_out(void *ctx, vmid_t vm, gfn_t first, frame_t f, uint32_t n)
{
	struct reclaim_shared *s = ctx;
	struct ipt_vm_info info;
	if (clock_ns() < s->later_ns || ipt_vm_info(s->links->table, vm, &info))
		return;
	/* Looked up once: from one domain's file of the pool into the same one's packed memory, whoever writes on boards. */
	const struct domain_fd *of = domain_fds_of(&s->files, reclaim_domain(s->links->board, vm));
	if (!of)
		return; /* we are still to hear of it */
	s->pool.fd = of->fd;
	s->store = *s->links->store;
	s->store.mem_fd = of->packed;
	if (info.kind == IPT_FILE) {
		drop(s, vm, first, f, n);
		return;
	}
	int rc = s->store.mem_pages ? out(s, vm, first, f, n) : -ENOSPC;
	if (rc != -E2BIG)
		return;
	for (uint32_t i = 0; i < n; i++)
		if (n == 1 || out(s, vm, gfn_add(first, i), frame_add(f, i), 1) == -E2BIG)
			ipt_set_age(s->links->table, frame_add(f, i), 1, IPT_AGE_MOST);
}
