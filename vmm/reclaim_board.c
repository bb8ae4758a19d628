#include "ipt/fail.h"
#include "vmm/clock.h"
#include "vmm/reclaim.h"
#include "vmm/shared.h"
#include <linux/futex.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Of the pool: it is short below the one, and well again from the other on. */
#define LOW_SHARE  64
#define HIGH_SHARE 32

#define SETTLE_US   1000    /* how long VMs get to let go of frames that they looked up */
#define CPU_LOOK_NS 1000000 /* of work, after which the process's CPU time is looked at again */

static size_t bytes_of(uint32_t desks)
{
	return sizeof(struct reclaim_board) + desks * sizeof(struct reclaim_desk);
}

struct reclaim_board *reclaim_board_create(uint32_t max_vms, uint32_t frames, int *fd)
{
	uint32_t desks = max_vms + 1; /* ids begin with 1 */
	*fd = -1;
	struct reclaim_board *b =
		fail_null(WORKER_BOARD, shared_create("invisor-reclaim", bytes_of(desks), fd));
	if (!b)
		return NULL;
	b->desks = desks;
	b->low = frames / LOW_SHARE + 1;
	b->high = frames / HIGH_SHARE + 1;
	return b;
}

struct reclaim_board *reclaim_board_attach(uint32_t max_vms, int fd)
{
	struct reclaim_board *b = shared_attach(fd, bytes_of(max_vms + 1));
	if (b && b->desks != max_vms + 1) {
		munmap(b, bytes_of(max_vms + 1));
		return NULL;
	}
	return b;
}

void reclaim_board_destroy(struct reclaim_board *b)
{
	if (b)
		munmap(b, bytes_of(b->desks));
}

struct reclaim_desk *reclaim_desk(struct reclaim_board *b, vmid_t vm)
{
	return b && vm.v < b->desks ? &b->desk[vm.v] : NULL;
}

void reclaim_desk_clear(struct reclaim_board *b, vmid_t vm, uint32_t shares, uint32_t min,
			uint32_t limit)
{
	struct reclaim_desk *d = reclaim_desk(b, vm);
	if (!d)
		return;
	atomic_store_explicit(&d->shares, shares, memory_order_relaxed);
	atomic_store_explicit(&d->min, min, memory_order_relaxed);
	atomic_store_explicit(&d->limit, limit, memory_order_relaxed);
	d->gives = 1;
	d->turn = RECLAIM_NO_TURNS;
	d->at_work = d->droppable = 0;
	d->stall_ns = d->stalled_since_ns = d->cpu_ns = d->work_ns = 0;
	d->working_set = d->working_set_error = d->stall10 = d->stall60 = 0;
	atomic_fetch_add_explicit(&d->born, 1, memory_order_release);
	atomic_store_explicit(&d->state, RECLAIM_FREE, memory_order_release);
}

void reclaim_set_domain(struct reclaim_board *b, vmid_t id, uint32_t domain)
{
	struct reclaim_desk *d = reclaim_desk(b, id);
	if (d)
		atomic_store_explicit(&d->domain, domain, memory_order_relaxed);
}

uint32_t reclaim_domain(struct reclaim_board *b, vmid_t id)
{
	const struct reclaim_desk *d = reclaim_desk(b, id);
	return d ? atomic_load_explicit(&d->domain, memory_order_relaxed) : 0;
}

/* Is it a VM that a process works for? One that died in the middle of something seems to be at it for ever. */
static bool works(struct ipt *table, uint32_t id)
{
	struct ipt_vm_info info;
	return ipt_vm_info(table, vmid(id), &info) == 0 && info.kind == IPT_VM && !info.dying;
}

int reclaim_settle(const struct reclaim_board *b, struct ipt *table)
{
	uint64_t until = 0;
	atomic_thread_fence(memory_order_seq_cst);
	for (uint32_t id = 1; id < b->desks; id++) {
		const _Atomic uint32_t *at_work = &b->desk[id].at_work;
		uint32_t was = atomic_load_explicit(at_work, memory_order_seq_cst);
		if (!(was & 1) || !works(table, id))
			continue;
		until = until ? until : clock_ns() + SETTLE_US * 1000;
		while (atomic_load_explicit(at_work, memory_order_acquire) == was)
			if (clock_ns() > until)
				return -EBUSY;
	}
	return 0;
}

static void count(_Atomic uint64_t *counter, uint64_t n)
{
	atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

void reclaim_count(struct reclaim_board *b, const struct evict_count *c)
{
	struct reclaim_counters *to = &b->counters;
	count(&to->freed, c->freed);
	count(&to->zero, c->zero);
	count(&to->out, c->out);
	count(&to->in_file, c->in_file);
	count(&to->packed_bytes, c->packed_bytes);
	count(&to->refused, c->refused);
	count(&to->full, c->full);
	count(&to->errors, c->errors);
}

void reclaim_cleaned(struct reclaim_board *b, uint64_t pages, int error)
{
	if (!b)
		return;
	count(&b->counters.cleaned, pages);
	count(&b->counters.unclean, error != 0);
	reclaim_ring(b); /* it may be waiting for these */
}

void reclaim_worked(struct reclaim_desk *d, uint64_t ns)
{
	uint64_t before = atomic_load_explicit(&d->work_ns, memory_order_relaxed);
	atomic_store_explicit(&d->work_ns, before + ns, memory_order_relaxed);
	if (before / CPU_LOOK_NS != (before + ns) / CPU_LOOK_NS)
		atomic_store_explicit(&d->cpu_ns, clock_process_cpu_ns(), memory_order_relaxed);
}

bool reclaim_has_turn(const struct reclaim_desk *d)
{
	return !d || atomic_load_explicit(&d->turn, memory_order_acquire) != RECLAIM_WAITS_FOR_TURN;
}

void reclaim_ring(struct reclaim_board *b)
{
	atomic_fetch_add_explicit(&b->bell, 1, memory_order_release);
	syscall(SYS_futex, &b->bell, FUTEX_WAKE, 1, NULL, NULL, 0);
}

void reclaim_taken(struct reclaim_board *b, struct ipt *table)
{
	if (!b || ipt_free_frames(table) >= b->low ||
	    atomic_load_explicit(&b->rung, memory_order_relaxed))
		return;
	if (!atomic_exchange_explicit(&b->rung, 1, memory_order_acq_rel))
		reclaim_ring(b);
}
