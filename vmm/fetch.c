/*
 * Bringing pages back into memory. A template's or a merged page that is out is brought back for all who see it, by
 * whoever touches it first.
 */
#include "ipt/whole.h"
#include "vmm/evict.h"
#include "vmm/reclaim.h"
#include "vmm/store.h"
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#define CLUSTER IPT_CLUSTER_FRAMES

/* Pages that are being brought back: 2^order from `first` on. One at a time in a process. */
static struct {
	_Alignas(PAGE_SIZE) uint8_t page[CLUSTER][PAGE_SIZE];
	struct ipt_out out[CLUSTER];
	vmid_t at; /* whose they are; INVALID_VMID: one, which several share */
} batch;

void fetch_rest(void)
{
	madvise(&batch, sizeof batch, MADV_DONTNEED);
}

/* ---- how much is brought back at once ------------------------------------------------------- */

/*
 * Pages near one that is wanted are soon wanted too, or they aren't: then 15 of 16 go out again without having been
 * used, and 15 others had to go for them. So a fetch begins with little, and takes the more the more often the next one
 * is near one of the last.
 */
#define STREAMS 4
#define NEAR    CLUSTER /* pages */
#define PIECES_MOST \
	32768u /* of a window, that bringing single pages back may come to; vm.max_map_count is 65530 */

static struct {
	struct {
		uint64_t at; /* gfn */
		unsigned order;
	} stream[STREAMS];
	unsigned next; /* to be forgotten */
} ahead;

/* Of which order the block should be that is brought back for g. In a crowded window one mapping is to come of many. */
static unsigned order_wanted(const struct memory *m, gfn_t g)
{
	unsigned least = 0;
	while (least < IPT_CLUSTER_ORDER && m->window.bytes >> PAGE_SHIFT >> least > PIECES_MOST)
		least++;
	/* For its turn there is room for all it uses: the sooner it is there the better. */
	const struct reclaim_desk *d = reclaim_desk(m->reclaim, m->vm);
	if ((d && atomic_load_explicit(&d->turn, memory_order_relaxed) == RECLAIM_HAS_TURN) ||
	    memory_is_crowded(m))
		return IPT_CLUSTER_ORDER;
	for (unsigned i = 0; i < STREAMS; i++) {
		uint64_t at = ahead.stream[i].at;
		if ((g.v > at ? g.v - at : at - g.v) > NEAR)
			continue;
		unsigned order = ahead.stream[i].order + 2;
		ahead.stream[i].at = g.v;
		ahead.stream[i].order = order < IPT_CLUSTER_ORDER ? order : IPT_CLUSTER_ORDER;
		return ahead.stream[i].order;
	}
	unsigned i = ahead.next++ % STREAMS;
	ahead.stream[i].at = g.v;
	ahead.stream[i].order = least;
	return least;
}

/* The largest aligned block around g that is all away, at the same VM's, up to 2^most. Shared pages come one by one. */
static unsigned block_around(const struct memory *m, gfn_t g, unsigned most, gfn_t *first)
{
	struct ipt_place p, q;
	unsigned order = 0;
	*first = g;
	if (!ipt_place(m->table, m->vm, g, 1, &p) || !p.at.v)
		return 0;
	for (unsigned o = 1; o <= most; o++) {
		uint32_t size = 1u << o;
		gfn_t start = gfn(g.v & ~(uint64_t)(size - 1));
		if (ipt_place(m->table, m->vm, start, size, &q) < size || q.kind != IPT_AWAY ||
		    q.at.v != p.at.v)
			break;
		order = o;
		*first = start;
	}
	return order;
}

static int where(const struct memory *m, gfn_t first, uint32_t n)
{
	int rc = 0;
	for (uint32_t i = 0; i < n && !rc; i++) {
		vmid_t at;
		rc = ipt_out_read(m->table, m->vm, gfn_add(first, i), &batch.out[i], &at);
		if (!rc && i && (at.v != batch.at.v || !at.v))
			rc = -ENOENT;
		if (!rc)
			batch.at = at;
	}
	return rc == -ENOENT ? -EEXIST : rc;
}

static int read_store(struct memory *m, uint32_t n)
{
	int rc = memory_file_io(m, false, batch.out, batch.page, n);
	for (uint32_t i = 0; i < n && !rc; i++) {
		const struct ipt_out *o = &batch.out[i];
		if (o->bytes && !(o->where & IPT_IN_FILE))
			rc = store_mem_read(m->store, o->where, o->bytes, o->sum, batch.page[i]);
	}
	return rc;
}

/* Is it all still where it was when it was read? An ancestor's may have gone meanwhile, and others' bytes have come
 * there. */
static bool still(const struct memory *m, gfn_t first, uint32_t n)
{
	vmid_t at;
	for (uint32_t i = 0; i < n && batch.at.v != m->vm.v; i++) {
		struct ipt_out o;
		if (ipt_out_read(m->table, m->vm, gfn_add(first, i), &o, &at) ||
		    at.v != batch.at.v || memcmp(&o, &batch.out[i], sizeof o))
			return false;
	}
	return true;
}

/* Pages of zeroes are those of fresh frames. */
static int fill(const struct memory *m, frame_t f, uint32_t n)
{
	for (uint32_t i = 0, run; i < n; i += run) {
		for (run = 0; i + run < n && batch.out[i + run].bytes; run++)
			;
		if (run && whole_write(FAIL_POOL_WRITE, m->pool->fd, batch.page[i],
				       (size_t)run << PAGE_SHIFT,
				       (uint64_t)frame_add(f, i).v << PAGE_SHIFT))
			return -EIO;
		run += !run;
	}
	return 0;
}

/* A template that is being collapsed takes nothing any more, which may go on for long; but we may have our own. */
static bool is_ending(const struct memory *m, vmid_t vm)
{
	struct ipt_vm_info info;
	return ipt_vm_info(m->table, vm, &info) == 0 && info.dying;
}

static int fetch_block(struct memory *m, gfn_t first, unsigned order, frame_t f)
{
	uint32_t n = 1u << order;
	int rc = where(m, first, n);
	if (rc)
		return rc;
	rc = read_store(m, n);
	if (!still(m, first, n))
		return -EEXIST;
	if (!rc)
		rc = fill(m, f, n);
	if (!rc && !batch.at.v) {
		rc = ipt_shared_in(m->table, m->vm, first, f);
		return rc == -ESTALE ? -EEXIST : rc;
	}
	if (!rc && batch.at.v != m->vm.v) {
		rc = ipt_template_in(m->table, m->vm, batch.at, first, f, n);
		if (rc != -ESTALE || !is_ending(m, batch.at))
			return rc == -ESTALE ? -EEXIST : rc;
		batch.at = m->vm;
		rc = 0;
	}
	/* If its mapping fails the page stays watched, and the next touch of it tries again. */
	return rc ? rc : memory_put_back(m, first, f, n);
}

/* Did the frames become ours at gfns, or the template's, or shared? Then they are nobody's to free. */
static bool is_limbo(const struct memory *m, frame_t f)
{
	struct ipt_owner o;
	return ipt_owner(m->table, f, &o) == 0 && o.state == IPT_LIMBO && o.vm.v == m->vm.v;
}

int memory_fetch(struct memory *m, gfn_t g)
{
	gfn_t first;
	unsigned order = block_around(m, g, order_wanted(m, g), &first);
	struct ipt_hint hint = {.goal = memory_goal(m, first, 1u << order)};
	frame_t f;
	int rc;
	memory_note_mapped(m);
	while ((rc = ipt_alloc(m->table, m->vm, order, &hint, &f)) == -ENOMEM && order) {
		order--;
		first = gfn(g.v & ~((UINT64_C(1) << order) - 1));
		hint.goal = INVALID_FRAME;
	}
	if (rc)
		return rc == -ENOMEM ? -EAGAIN : rc;
	rc = fetch_block(m, first, order, f);
	if (rc && order && rc != -EEXIST && is_limbo(m, f)) {
		/* A neighbour's trouble is no reason. These frames may have got bytes already. */
		memory_free(m, f, 1u << order);
		order = 0;
		first = g;
		rc = ipt_alloc(m->table, m->vm, 0, NULL, &f);
		if (rc)
			return rc == -ENOMEM ? -EAGAIN : rc;
		rc = fetch_block(m, g, 0, f);
	}
	if (rc && is_limbo(m, f)) {
		memory_free(m, f, 1u << order);
		return rc;
	}
	if (batch.at.v == m->vm.v)
		memory_note_own(m, g);
	atomic_fetch_add_explicit(&m->mailbox->fetched_frames, 1u << order, memory_order_relaxed);
	if (memory_went_lately(m, first))
		atomic_fetch_add_explicit(&m->mailbox->fetched_soon, 1u << order,
					  memory_order_relaxed);
	return rc;
}
