/*
 * Taking a VM's own pages out of memory: the bytes go to the store, the table says so, the frames become free.
 *
 * First the pages are hidden, as for merging (merge_vm.c): their piece of the window is registered for userfaults and
 * taken out of the host's page tables. From then on whoever touches them waits for us, devices wait for memory.lock, and
 * what a device has pinned is left alone. So the bytes that are read then are the last ones. Whatever fails, the page is
 * mapped where it was and stays.
 */
#include "vmm/evict.h"
#include "ipt/whole.h"
#include "vmm/clock.h"
#include "vmm/error.h"
#include "vmm/reclaim.h"
#include "vmm/store.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define CLUSTER IPT_CLUSTER_FRAMES

/* What is being taken out: pages of a group of 16 at frames that follow each other. One at a time in a process. */
static struct batch {
	_Alignas(PAGE_SIZE) uint8_t page[CLUSTER][PAGE_SIZE];
	uint8_t packed[CLUSTER][STORE_PACKED_MOST];
	struct ipt_out out[CLUSTER];
	uint32_t slot[CLUSTER];
	uint32_t zeroes, in_file;
} batch;

void evict_rest(void)
{
	madvise(&batch, sizeof batch, MADV_DONTNEED);
}

/* ---- bytes --------------------------------------------------------------------------------- */

/* What each page becomes: nothing, packed, or as it is (in the file). */
static void pack(uint32_t n)
{
	batch.zeroes = batch.in_file = 0;
	for (uint32_t i = 0; i < n; i++) {
		struct ipt_out *o = &batch.out[i];
		*o = (struct ipt_out){.where = 0};
		if (store_is_zero(batch.page[i])) {
			batch.zeroes++;
		} else if (store_pack(batch.page[i], batch.packed[i], &o->bytes) == 0) {
			o->sum = store_sum(batch.packed[i], o->bytes);
		} else {
			batch.in_file++;
			o->where = IPT_IN_FILE;
			o->bytes = PAGE_SIZE;
			o->sum = store_sum(batch.page[i], PAGE_SIZE);
		}
	}
}

/* Those that were to be packed go into the file. */
static void unpack_to_file(uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		if (batch.out[i].bytes)
			batch.out[i] = (struct ipt_out){IPT_IN_FILE, PAGE_SIZE,
							store_sum(batch.page[i], PAGE_SIZE)};
}

static int claim(const struct memory *m, uint32_t n)
{
	bool packed = m->store->mem_pages, file = m->store->file_blocks;
	if (!packed)
		unpack_to_file(n);
	int rc = ipt_out_claim(m->table, m->vm, batch.out, n, batch.slot);
	if (rc == -ENOSPC && packed && file) {
		unpack_to_file(n);
		rc = ipt_out_claim(m->table, m->vm, batch.out, n, batch.slot);
	}
	return rc;
}

static int open_file(struct memory *m)
{
	char error[ERROR_MAX];
	return m->io ? 0 : store_io_create(&m->io, m->store, m->vm.v, error);
}

int memory_file_io(struct memory *m, bool write, const struct ipt_out *out,
		   uint8_t (*page)[PAGE_SIZE], uint32_t n)
{
	struct store_block b[CLUSTER];
	uint32_t blocks = 0;
	for (uint32_t i = 0; i < n; i++)
		if (out[i].bytes && out[i].where & IPT_IN_FILE)
			b[blocks++] = (struct store_block){.block = out[i].where & ~IPT_IN_FILE,
							   .sum = out[i].sum,
							   .page = page[i]};
	if (!blocks)
		return 0;
	int rc = open_file(m);
	return rc ? rc : (write ? store_file_write : store_file_read)(m->io, b, blocks);
}

static int write_store(struct memory *m, uint32_t n)
{
	int rc = memory_file_io(m, true, batch.out, batch.page, n);
	for (uint32_t i = 0; i < n && !rc; i++) {
		const struct ipt_out *o = &batch.out[i];
		if (o->bytes && !(o->where & IPT_IN_FILE))
			rc = store_mem_write(m->store, o->where, batch.packed[i], o->bytes);
	}
	return rc;
}

/* ---- when pages went ----------------------------------------------------------------------- */

/* For each cluster of the window, the second in which a page of it last went out, +1; it wraps after 18 hours. */
static uint16_t *went;

static uint64_t cluster_of(const struct memory *m, gfn_t g)
{
	return (uint64_t)(window_at(&m->window, g) - m->window.base) >>
	       (PAGE_SHIFT + IPT_CLUSTER_ORDER);
}

static uint16_t second_now(void)
{
	return (uint16_t)(clock_ns() / 1000000000);
}

static void note_went(const struct memory *m, gfn_t first)
{
	if (!went)
		went = calloc(m->clusters, sizeof *went);
	if (went)
		went[cluster_of(m, first)] = (uint16_t)(second_now() + 1);
}

bool memory_went_lately(const struct memory *m, gfn_t first)
{
	uint16_t then = went ? went[cluster_of(m, first)] : 0;
	return then && (uint16_t)(second_now() + 1 - then) < RECLAIM_SOON_S;
}

/* ---- the window and the table -------------------------------------------------------------- */

int memory_hide(struct memory *m, gfn_t first, uint32_t n)
{
	uint8_t *at = window_at(&m->window, first);
	size_t bytes = (size_t)n << PAGE_SHIFT;
	m->shares = true;
	if (fault_register(m->uffd, at, bytes, true))
		return -EBUSY;
	return fail_call(WINDOW_HIDE, madvise(at, bytes, MADV_DONTNEED)) < 0 ? -errno : 0;
}

static void gone(void *ctx, gfn_t g, frame_t first, uint32_t n)
{
	(void)g;
	memory_free(ctx, first, n);
}

bool memory_has_pins(const struct memory *m, frame_t f, uint32_t n)
{
	struct ipt_owner o;
	for (uint32_t i = 0; i < n; i++)
		if (ipt_owner(m->table, frame_add(f, i), &o) || o.pins)
			return true;
	return false;
}

/* All zeroes: nothing need be kept. */
static int drop(struct memory *m, gfn_t first, uint32_t n, struct evict_count *c)
{
	uint32_t done;
	int rc = ipt_drop(m->table, m->vm, first, n, &done, gone, m);
	m->gave_back = m->watched_voids = true;
	c->zero += done;
	c->freed += done;
	return done == n ? 0 : rc;
}

static int put_out(struct memory *m, gfn_t first, uint32_t n, struct evict_count *c)
{
	uint32_t done = 0;
	int rc = claim(m, n);
	if (rc)
		return rc;
	rc = write_store(m, n);
	if (!rc)
		rc = ipt_out_commit(m->table, m->vm, first, batch.slot, n, &done, gone, m);
	if (done < n)
		ipt_out_cancel(m->table, m->vm, batch.slot + done, n - done);
	for (uint32_t i = 0; i < done; i++) {
		c->packed_bytes += batch.out[i].where & IPT_IN_FILE ? 0 : batch.out[i].bytes;
		c->in_file += batch.out[i].bytes && batch.out[i].where & IPT_IN_FILE;
		c->zero += !batch.out[i].bytes;
	}
	c->freed += done;
	c->out += done;
	if (done)
		note_went(m, first);
	return rc;
}

/* What is still ours of these pages is mapped as it was. */
static int bring_back(struct memory *m, gfn_t first, uint32_t n)
{
	int rc = 0;
	for (uint32_t i = 0, run; i < n && !rc; i += run) {
		struct ipt_place p;
		run = ipt_place(m->table, m->vm, gfn_add(first, i), n - i, &p);
		if (!run)
			return -EFAULT;
		if (p.kind == IPT_OWN)
			rc = window_map(&m->window, gfn_add(first, i), p.frame, run);
	}
	return rc;
}

/* Some of the pages that were read, at frames from f on, don't pack, and there is no file: these stay, which is
 * remembered; the others go. */
static int evict_packable(struct memory *m, gfn_t first, frame_t f, uint32_t n,
			  struct evict_count *c)
{
	uint32_t stay = 0;
	for (uint32_t i = 0; i < n; i++)
		stay |= (uint32_t)(batch.out[i].where == IPT_IN_FILE) << i;
	int rc = bring_back(m, first, n);
	for (uint32_t i = 0, run; i < n && !rc; i += run) {
		bool stays = stay >> i & 1;
		for (run = 1; i + run < n && (stay >> (i + run) & 1) == stays; run++)
			;
		if (stays) {
			c->refused += run;
			ipt_set_age(m->table, frame_add(f, i), run, RECLAIM_STUBBORN);
		} else {
			rc = memory_evict(m, gfn_add(first, i), run, c);
		}
	}
	return rc;
}

int memory_evict(struct memory *m, gfn_t first, uint32_t n, struct evict_count *c)
{
	struct ipt_place p;
	uint32_t room = CLUSTER - (uint32_t)(first.v & (CLUSTER - 1));
	n = ipt_place(m->table, m->vm, first, n < room ? n : room, &p);
	if (!m->store || !n || p.kind != IPT_OWN || memory_has_pins(m, p.frame, n)) {
		c->refused += n;
		return 0;
	}
	if (!memory_has_room(m, n, memory_splits(m, first, n, p.frame))) {
		c->refused += n;
		return 0;
	}
	uint32_t freed = c->freed;
	int rc = memory_hide(m, first, n);
	if (!rc)
		rc = whole_read(FAIL_POOL_READ, m->pool->fd, batch.page, (size_t)n << PAGE_SHIFT,
				(uint64_t)p.frame.v << PAGE_SHIFT);
	if (!rc) {
		pack(n);
		if (batch.in_file && !m->store->file_blocks)
			return evict_packable(m, first, p.frame, n, c);
		rc = batch.zeroes == n ? drop(m, first, n, c) : put_out(m, first, n, c);
	}
	if (!rc)
		return 0;
	c->refused += n - (c->freed - freed);
	c->full += rc == -ENOSPC;
	c->errors += rc != -ENOSPC && rc != -EBUSY;
	return bring_back(m, first, n);
}
