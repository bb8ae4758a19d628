#include "vmm/memory.h"
#include "ipt/own.h"
#include "vmm/error.h"
#include "vmm/evict.h"
#include "vmm/merge.h"
#include "vmm/reclaim.h"
#include <errno.h>
#include <string.h>
#include <unistd.h>

/*
 * Which extent a fault gets. Memory is promised to a VM only where it was touched, and a touch at
 * the end of a run of touched clusters says that the run goes on (kernels fill memory up- or
 * downwards), so the extent is as long as that run, from one cluster to 2 MiB, naturally aligned.
 */
#define EXTENT_MAX_CLUSTERS (1u << (IPT_MAX_ORDER - IPT_CLUSTER_ORDER))

bool memory_touched(const struct memory *m, uint64_t cluster)
{
	return m->touched[cluster / 64] >> (cluster % 64) & 1;
}

static void touch(struct memory *m, uint64_t first, uint64_t count)
{
	for (uint64_t c = first; c < first + count; c++)
		m->touched[c / 64] |= UINT64_C(1) << (c % 64);
}

/* Clusters are numbered in window order, 16 pages each; banks start on cluster boundaries. */
static uint64_t cluster_of(const struct memory *m, gfn_t g)
{
	return (uint64_t)(window_at(&m->window, g) - m->window.base) >>
	       (PAGE_SHIFT + IPT_CLUSTER_ORDER);
}

const struct machine_bank *memory_bank(const struct memory *m, gfn_t g)
{
	return machine_bank_of(m->machine, gfn_gpa(g), 1);
}

struct extent {
	gfn_t first;
	unsigned order;
};

/* Has cluster c, whose first gfn is `first`, no frame? */
static bool cluster_is_void(const struct memory *m, uint64_t c, gfn_t first)
{
	struct ipt_place p;
	if (!memory_touched(m, c))
		return true;
	return m->gave_back &&
	       ipt_place(m->table, m->vm, first, IPT_CLUSTER_FRAMES, &p) == IPT_CLUSTER_FRAMES &&
	       p.kind == IPT_VOID;
}

/* Is the naturally aligned block of 2^order gfns around g wholly in its bank and void? */
static bool block_is_void(const struct memory *m, const struct machine_bank *b, gfn_t g,
			  unsigned order, struct extent *e)
{
	uint64_t first = g.v & ~((UINT64_C(1) << order) - 1);
	uint64_t start = first << PAGE_SHIFT, bytes = PAGE_SIZE << order;
	if (start < b->base.v || start - b->base.v + bytes > b->bytes ||
	    (b->pmem && dax_of(m, gfn(first))))
		return false;
	uint64_t c = cluster_of(m, gfn(first)), n = UINT64_C(1) << (order - IPT_CLUSTER_ORDER);
	for (uint64_t i = 0; i < n; i++)
		if (!cluster_is_void(m, c + i, gfn(first + i * IPT_CLUSTER_FRAMES)))
			return false;
	*e = (struct extent){gfn(first), order};
	return true;
}

static struct extent choose_extent(const struct memory *m, gfn_t g)
{
	const struct machine_bank *b = memory_bank(m, g);
	struct extent e = {g, 0};
	uint64_t c = cluster_of(m, g);
	uint64_t below = 0, above = 0;
	while (below < EXTENT_MAX_CLUSTERS && below < c && memory_touched(m, c - 1 - below))
		below++;
	while (above < EXTENT_MAX_CLUSTERS && c + 1 + above < m->clusters &&
	       memory_touched(m, c + 1 + above))
		above++;
	uint64_t run = below > above ? below : above;
	for (unsigned order = IPT_CLUSTER_ORDER;
	     order <= IPT_MAX_ORDER &&
	     (UINT64_C(1) << (order - IPT_CLUSTER_ORDER)) <= (run ? run : 1);
	     order++)
		if (!block_is_void(m, b, g, order, &e))
			break;
	return e;
}

/* So that mappings merge. Shared neighbours don't count: their frames continue in others that are shared. */
frame_t memory_goal(const struct memory *m, gfn_t first, uint32_t count)
{
	struct ipt_place p;
	if (first.v && ipt_place(m->table, m->vm, gfn(first.v - 1), 1, &p) && p.kind == IPT_OWN)
		return frame_add(p.frame, 1);
	if (ipt_place(m->table, m->vm, gfn_add(first, count), 1, &p) && p.kind == IPT_OWN &&
	    p.frame.v >= count)
		return frame(p.frame.v - count);
	return INVALID_FRAME;
}

static int populate_extent(struct memory *m, gfn_t g)
{
	struct extent e = choose_extent(m, g);
	struct ipt_hint hint = {.goal = memory_goal(m, e.first, UINT32_C(1) << e.order)};
	frame_t f;
	int rc;
	/* A pool that is short gives a smaller extent, down to the one page. */
	while ((rc = ipt_alloc(m->table, m->vm, e.order, &hint, &f)) == -ENOMEM && e.order) {
		e.order--;
		if (e.order < IPT_CLUSTER_ORDER)
			e = (struct extent){g, 0};
		else
			e.first = gfn(g.v & ~((UINT64_C(1) << e.order) - 1));
		hint.goal = INVALID_FRAME;
	}
	if (rc)
		return rc == -ENOMEM ? -EAGAIN : rc;
	uint32_t count = UINT32_C(1) << e.order;
	rc = ipt_map(m->table, m->vm, e.first, f, count);
	if (rc) {
		ipt_free(m->table, m->vm, f, count); /* never touched, so still clean */
		return rc;
	}
	rc = window_map(&m->window, e.first, f, count);
	if (rc) {
		ipt_unmap(m->table, m->vm, e.first, count, NULL, NULL);
		ipt_free(m->table, m->vm, f, count);
		return rc;
	}
	touch(m, cluster_of(m, e.first), (count + IPT_CLUSTER_FRAMES - 1) / IPT_CLUSTER_FRAMES);
	atomic_fetch_add_explicit(&m->mailbox->extents, 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&m->mailbox->extent_frames, count, memory_order_relaxed);
	return 0;
}

void memory_note_own(struct memory *m, gfn_t g)
{
	touch(m, cluster_of(m, g), 1);
}

bool memory_is_lost(const struct memory *m, gfn_t g)
{
	struct ipt_place p;
	return ipt_place(m->table, m->vm, g, 1, &p) && ipt_health(m->table, p.frame) == IPT_LOST;
}

static void count_work(const struct memory *m)
{
	struct reclaim_desk *d = reclaim_desk(m->reclaim, m->vm);
	if (d) /* before what is looked up then: whoever changes the table first looks here after */
		atomic_fetch_add_explicit(&d->at_work, 1, memory_order_seq_cst);
}

void memory_enter(struct memory *m)
{
	pthread_mutex_lock(&m->lock);
	count_work(m);
}

void memory_leave(struct memory *m)
{
	count_work(m);
	pthread_mutex_unlock(&m->lock);
}

static bool is_away(const struct memory *m, gfn_t g)
{
	struct ipt_place p;
	return m->store && ipt_place(m->table, m->vm, g, 1, &p) && p.kind == IPT_AWAY;
}

void memory_note_void(struct memory *m, gfn_t first, uint64_t count)
{
	uint64_t end = first.v + count,
		 at = (first.v + IPT_CLUSTER_FRAMES - 1) & ~(uint64_t)(IPT_CLUSTER_FRAMES - 1);
	for (; at + IPT_CLUSTER_FRAMES <= end; at += IPT_CLUSTER_FRAMES) {
		uint64_t c = cluster_of(m, gfn(at));
		m->touched[c / 64] &= ~(UINT64_C(1) << (c % 64));
	}
}

static int populate(struct memory *m, gfn_t g)
{
	struct dax *d = dax_of(m, g);
	int rc = d               ? dax_fetch(m, d, g)
		 : is_away(m, g) ? memory_fetch(m, g)
				 : populate_extent(m, g);
	if (!rc)
		reclaim_taken(m->reclaim, m->table);
	return rc;
}

/* Is it ours to give, when the pool is empty? Not if the reclaimer finds nothing more: we would take out what we are
 * about to use, for ever, instead of waiting. */
static bool gives(const struct memory *m)
{
	const struct reclaim_desk *d = reclaim_desk(m->reclaim, m->vm);
	return d && atomic_load_explicit(&d->gives, memory_order_relaxed) <= 1 &&
	       !atomic_load_explicit(&m->reclaim->full, memory_order_relaxed);
}

int memory_make_room(struct memory *m)
{
	reclaim_taken(m->reclaim, m->table);
	int made = gives(m) ? reclaim_own(m) : 0;
	if (made < 0)
		return made == -EAGAIN ? -EIO : made; /* which would be taken for an empty pool */
	/* Say so, then look once more: the host frees frames first and reads `hungry` after, so (both sequentially
	 * consistent) one of us sees the other. Also if we freed some, since others may be quicker with these. */
	atomic_store_explicit(&m->mailbox->hungry, 1, memory_order_seq_cst);
	return made > 0 || ipt_free_frames(m->table) > 0;
}

/* One who has as much as it may takes some of its own out first. 0, also if there is nowhere to put it. */
static int keep_to_limit(struct memory *m)
{
	const struct reclaim_desk *d = reclaim_desk(m->reclaim, m->vm);
	uint32_t limit = d ? atomic_load_explicit(&d->limit, memory_order_relaxed) : 0;
	struct ipt_vm_info info;
	if (!limit || ipt_vm_info(m->table, m->vm, &info) || info.frames[IPT_PRIVATE] < limit)
		return 0;
	int made = reclaim_own(m);
	return made >= 0 ? 0 : made == -EAGAIN ? -EIO : made;
}

int memory_populate_locked(struct memory *m, gfn_t g)
{
	int rc = keep_to_limit(m);
	if (!rc)
		rc = populate(m, g);
	if (rc != -EAGAIN)
		return rc;
	int made = memory_make_room(m);
	return made > 0 ? populate(m, g) : made < 0 ? made : rc;
}

int memory_populate(struct memory *m, gfn_t g)
{
	if (!memory_bank(m, g))
		return -EFAULT;
	memory_enter(m);
	int rc = 0;
	if (!frame_valid(ipt_lookup(m->table, m->vm, g)))
		rc = memory_populate_locked(m, g);
	memory_leave(m);
	return rc;
}

int memory_create(struct memory *m, struct ipt *table, vmid_t vm, const struct machine *machine,
		  const struct pool *pool, struct mailbox *mailbox, char *error)
{
	*m = (struct memory){
		.gmem = {.ops = &memory_gmem_ops,
			 .bytes = machine->bank[machine->banks - 1].base.v +
				  machine->bank[machine->banks - 1].bytes},
		.table = table,
		.vm = vm,
		.machine = machine,
		.pool = pool,
		.mailbox = mailbox,
		.uffd = -1,
		.pagemap = -1,
		.maps = -1,
		.learner = -1,
		.unshown = INVALID_GFN,
		.lock = PTHREAD_MUTEX_INITIALIZER,
		.clusters = (machine_window_bytes(machine) >> PAGE_SHIFT) / IPT_CLUSTER_FRAMES + 1,
	};
	m->touched = own_alloc((m->clusters + 63) / 64 * sizeof *m->touched);
	if (!m->touched)
		return errorf(error, -ENOMEM, "%s: no memory for the bitmap", machine->name);
	int rc = window_create(&m->window, machine, pool);
	if (rc)
		return errorf(error, rc, "%s: no address space for a window of %" PRIu64 " MiB: %s",
			      machine->name, machine_window_bytes(machine) / MiB, strerror(-rc));
	m->uffd = fault_open(error);
	if (m->uffd < 0)
		return m->uffd;
	rc = fault_register(m->uffd, m->window.base, m->window.bytes, false);
	if (rc)
		return errorf(error, rc, "%s: userfaultfd can't watch the window: %s",
			      machine->name, strerror(-rc));
	return 0;
}

void memory_rest(struct memory *m)
{
	pthread_mutex_lock(&m->lock);
	/* A failure leaves all as it was (ipt/sealed.h). */
	ipt_rest(m->table);
	pool_rest(m->pool);
	evict_rest();
	merge_rest();
	fetch_rest();
	pthread_mutex_unlock(&m->lock);
}
