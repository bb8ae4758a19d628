/*
 * Bringing pages back into memory. A template's page that is out is brought back for all who see it, by whoever touches
 * it first.
 */
#include "vmm/evict.h"
#include "vmm/store.h"
#include <errno.h>
#include <string.h>
#include <unistd.h>

#define CLUSTER IPT_CLUSTER_FRAMES

/* Pages that are being brought back: 2^order from `first` on. One at a time in a process. */
static struct {
	_Alignas(PAGE_SIZE) uint8_t page[CLUSTER][PAGE_SIZE];
	struct ipt_out out[CLUSTER];
	vmid_t at; /* whose they are */
} batch;

/* The largest aligned block around g that is all away, at the same VM's. */
static unsigned block_around(const struct memory *m, gfn_t g, gfn_t *first)
{
	struct ipt_place p, q;
	unsigned order = 0;
	*first = g;
	if (!ipt_place(m->table, m->vm, g, 1, &p))
		return 0;
	for (unsigned o = 1; o <= IPT_CLUSTER_ORDER; o++) {
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
		if (!rc && i && at.v != batch.at.v)
			rc = -ENOENT;
		batch.at = at;
	}
	return rc == -ENOENT ? -EEXIST : rc;
}

static int read_file(struct memory *m, uint32_t n)
{
	struct store_block b[CLUSTER];
	uint32_t blocks = 0;
	for (uint32_t i = 0; i < n; i++)
		if (batch.out[i].bytes && batch.out[i].where & IPT_IN_FILE)
			b[blocks++] =
				(struct store_block){.block = batch.out[i].where & ~IPT_IN_FILE,
						     .sum = batch.out[i].sum,
						     .page = batch.page[i]};
	if (!blocks)
		return 0;
	int rc = memory_store_io(m);
	return rc ? rc : store_file_read(m->io, b, blocks);
}

static int read_store(struct memory *m, uint32_t n)
{
	int rc = read_file(m, n);
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
		size_t bytes = (size_t)run << PAGE_SHIFT;
		off_t at = (off_t)frame_add(f, i).v << PAGE_SHIFT;
		if (run && pwrite(m->pool->fd, batch.page[i], bytes, at) != (ssize_t)bytes)
			return -EIO;
		run += !run;
	}
	return 0;
}

static int fetch_block(struct memory *m, gfn_t first, unsigned order, frame_t f)
{
	uint32_t n = 1u << order;
	int rc = where(m, first, n);
	if (!rc)
		rc = read_store(m, n);
	if (!still(m, first, n))
		rc = -EEXIST;
	if (!rc)
		rc = fill(m, f, n);
	if (!rc && batch.at.v != m->vm.v) {
		rc = ipt_template_in(m->table, m->vm, batch.at, first, f, n);
		return rc == -ESTALE ? -EEXIST : rc;
	}
	/* If its mapping fails the page stays watched, and the next touch of it tries again. */
	return rc ? rc : memory_put_back(m, first, f, n);
}

int memory_fetch(struct memory *m, gfn_t g)
{
	gfn_t first;
	unsigned order = block_around(m, g, &first);
	struct ipt_hint hint = {.goal = memory_goal(m, first, 1u << order)};
	frame_t f;
	int rc = ipt_alloc(m->table, m->vm, order, &hint, &f);
	if (rc == -ENOMEM && order) {
		order = 0;
		first = g;
		rc = ipt_alloc(m->table, m->vm, 0, NULL, &f);
	}
	if (rc)
		return rc == -ENOMEM ? -EAGAIN : rc;
	rc = fetch_block(m, first, order, f);
	if (rc && order && rc != -EEXIST) { /* a neighbour's trouble is no reason */
		memory_free(m, frame_add(f, 1), (1u << order) - 1);
		order = 0;
		first = g;
		rc = fetch_block(m, g, 0, f);
	}
	struct ipt_owner o;
	if (rc &&
	    !(ipt_owner(m->table, f, &o) == 0 && o.state == IPT_PRIVATE && o.vm.v == m->vm.v)) {
		memory_free(m, f, 1u << order);
		return rc;
	}
	if (batch.at.v == m->vm.v)
		memory_note_own(m, g);
	atomic_fetch_add_explicit(&m->mailbox->fetched_frames, 1u << order, memory_order_relaxed);
	return rc;
}
