/*
 * Merging, the VM's part: what the merger asks for is done here, under memory.lock, a page at a time as far as
 * things are as the merger saw them.
 *
 * First the pages are watched: registered for write protection and taken out of the host's page tables, so that the
 * guest and KVM can't write to them; nor can devices, which pin what they use under the same lock, and pinned pages are
 * left alone. Then they are compared, and what doesn't fit is made private again.
 *
 * A page that became void stays mapped where it was, watched. Whatever happens to that frame, a touch of the page is a
 * userfault, and the table, which decides, says void. But a page that was merged has to be mapped elsewhere, and the
 * kernel can't map and watch in one step. In between the guest may touch it, so it is mapped copied (window.h): what
 * was written then is on an anonymous page. /proc/self/pagemap shows it, and it goes back to the VM's old frame.
 *
 * Of a guest that stands still (hold.h) nobody writes, and none of that is needed: the pages are mapped like others that
 * are shared, and where its neighbours are the template's, too, all become one mapping again. So an idle clone has fewer
 * mappings the more it gives back.
 *
 * A page that is as the template's again is treated like a merged one, but for the table, which forgets it. The template's
 * frame is pinned from before it is compared until the window shows it, so that it is neither freed nor changed.
 */
#include "vmm/clock.h"
#include "vmm/evict.h"
#include "vmm/merge.h"
#include "vmm/store.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* /proc/PID/pagemap, Documentation/admin-guide/mm/pagemap.rst */
#define PAGEMAP_PRESENT (UINT64_C(1) << 63)
#define PAGEMAP_SWAPPED (UINT64_C(1) << 62)
#define PAGEMAP_FILE    (UINT64_C(1) << 61)

_Static_assert(MERGE_RUN <= MEMORY_RUN, "what a request frees can be noted");

/* Pages of a VM that lie at frames of its own which follow each other. */
struct job {
	struct memory *m;
	/* Frames that gave way in this request: of pages that stand alone they often follow each other. */
	struct memory_lost *lost;
	gfn_t first;
	frame_t own;
	uint32_t n;
	bool still;    /* nobody touches the window, and it isn't watched */
	uint64_t done; /* a bit a page */
};

static uint64_t bits(uint32_t from, uint32_t n)
{
	return (n < 64 ? (UINT64_C(1) << n) - 1 : UINT64_MAX) << from;
}

/* ---- bytes, by the pool's descriptor: its mapping would cost page tables ---------------------- */

/* One request at a time in a process. Not on the stack, which would stay that deep. */
static _Alignas(PAGE_SIZE) uint8_t one[PAGE_SIZE], another[PAGE_SIZE];

void merge_rest(void)
{
	madvise(one, sizeof one, MADV_DONTNEED);
	madvise(another, sizeof another, MADV_DONTNEED);
}

static bool read_page(const struct job *j, frame_t f, uint8_t *page)
{
	return pread(j->m->pool->fd, page, PAGE_SIZE, (off_t)f.v << PAGE_SHIFT) ==
	       (ssize_t)PAGE_SIZE;
}

static bool is_zero(const struct job *j, frame_t f)
{
	return read_page(j, f, one) && store_is_zero(one);
}

static bool are_equal(const struct job *j, frame_t f, frame_t g)
{
	return read_page(j, f, one) && read_page(j, g, another) && !memcmp(one, another, PAGE_SIZE);
}

/* ---- watching ------------------------------------------------------------------------------ */

static int make_private(const struct job *j, uint32_t i, uint32_t n)
{
	return n && !j->still
		       ? window_map(&j->m->window, gfn_add(j->first, i), frame_add(j->own, i), n)
		       : 0;
}

static int watch(const struct job *j)
{
	if (j->still) {
		j->m->shares = true; /* as memory_hide says it */
		return 0;
	}
	/* From then on whoever writes waits for us. */
	int rc = memory_hide(j->m, j->first, j->n);
	return rc == -EBUSY && make_private(j, 0, j->n) ? -EIO : rc;
}

/* ---- what is asked for --------------------------------------------------------------------- */

static bool is_pinned(const struct job *j, uint32_t i)
{
	return memory_has_pins(j->m, frame_add(j->own, i), 1);
}

static bool is_droppable(const struct job *j, uint32_t i)
{
	return !is_pinned(j, i) && is_zero(j, frame_add(j->own, i));
}

static int drop(struct job *j)
{
	struct memory *m = j->m;
	int rc = watch(j);
	for (uint32_t i = 0, n; !rc && i < j->n; i += n) {
		bool zero = is_droppable(j, i);
		uint32_t done = 0;
		for (n = 1; i + n < j->n && is_droppable(j, i + n) == zero; n++)
			;
		if (zero)
			ipt_drop(m->table, m->vm, gfn_add(j->first, i), n, &done, memory_lose_run,
				 j->lost);
		j->done |= done ? bits(i, done) : 0;
		rc = make_private(j, i + done, n - done);
	}
	m->gave_back = m->watched_voids = true;
	atomic_fetch_add_explicit(&m->mailbox->zero_frames, (unsigned)__builtin_popcountll(j->done),
				  memory_order_relaxed);
	return rc;
}

static int publish(struct job *j)
{
	struct memory *m = j->m;
	int rc = watch(j);
	for (uint32_t i = 0; !rc && i < j->n;) {
		uint32_t done;
		int refused = ipt_publish(m->table, m->vm, gfn_add(j->first, i), j->n - i, &done);
		j->done |= done ? bits(i, done) : 0;
		i += done;
		if (refused && i < j->n)
			rc = make_private(j, i++, 1);
	}
	atomic_fetch_add_explicit(&m->mailbox->published_frames,
				  (unsigned)__builtin_popcountll(j->done), memory_order_relaxed);
	return rc;
}

/* Pages i.. that have aliases already, but keep what the old frames hold. */
static int undo(const struct job *j, uint32_t i, uint32_t n)
{
	return memory_put_back(j->m, gfn_add(j->first, i), frame_add(j->own, i), n);
}

static bool read_pagemap(int pagemap, const uint8_t *at, uint64_t *entry, uint32_t n)
{
	ssize_t bytes = (ssize_t)(n * sizeof *entry);
	off_t from = (off_t)((uintptr_t)at / PAGE_SIZE * sizeof *entry);
	return pread(pagemap, entry, (size_t)bytes, from) == bytes;
}

/* The page at `at` has something in the page tables, from before it was watched. Was it written to? 1, 0 or -errno;
 * then nobody can write to it any more. */
static int was_written(const struct memory *m, uint8_t *at, int pagemap)
{
	uint64_t entry;
	int rc = fault_protect(m->uffd, at, PAGE_SIZE, true), error;
	if (rc)
		return rc;
	if (!read_pagemap(pagemap, at, &entry, 1))
		return -EIO;
	if (entry & PAGEMAP_PRESENT)
		return !(entry & PAGEMAP_FILE);
	/* Swapped out, or, if the page that was read has gone since, the protection's marker, which looks the same. */
	return entry & PAGEMAP_SWAPPED && !fault_continue(m->uffd, at, PAGE_SIZE, &error);
}

/* What the guest wrote to pages i.. between mapping and watching goes to their old frames, which become its own
 * again; *kept has a bit for each of these pages. */
static int save_what_slipped(const struct job *j, uint32_t i, uint32_t n, int pagemap,
			     uint64_t *kept)
{
	struct memory *m = j->m;
	uint64_t entry[MERGE_RUN];
	uint8_t *at = window_at(&m->window, gfn_add(j->first, i));
	int rc = 0;
	*kept = 0;
	if (!read_pagemap(pagemap, at, entry, n))
		return -EIO;
	for (uint32_t k = 0; rc >= 0 && k < n; k++, at += PAGE_SIZE) {
		rc = entry[k] & (PAGEMAP_PRESENT | PAGEMAP_SWAPPED) ? was_written(m, at, pagemap)
								    : 0;
		if (rc <= 0)
			continue;
		off_t to = (off_t)frame_add(j->own, i + k).v << PAGE_SHIFT;
		if (pwrite(m->pool->fd, at, PAGE_SIZE, to) != (ssize_t)PAGE_SIZE)
			return -EIO;
		rc = undo(j, i + k, 1);
		*kept |= bits(i + k, 1);
	}
	return rc;
}

/* Who reads them need not fault; that would look at what is around, too (share.c). If it fails, he does. */
static void show(const struct memory *m, gfn_t first, uint32_t n)
{
	int error;
	if (n)
		fault_continue(m->uffd, window_at(&m->window, first), (uint64_t)n << PAGE_SHIFT,
			       &error);
}

/* Map pages i.. at frames that are shared; *kept has a bit for each that was written to meanwhile, and stayed. */
static int map_copied(const struct job *j, uint32_t i, uint32_t n, frame_t target, int pagemap,
		      uint64_t *kept)
{
	struct memory *m = j->m;
	gfn_t first = gfn_add(j->first, i);
	int rc = window_map_copied(&m->window, first, target, n);
	if (!rc)
		rc = fault_register(m->uffd, window_at(&m->window, first),
				    (uint64_t)n << PAGE_SHIFT, true);
	return rc ? rc : save_what_slipped(j, i, n, pagemap, kept);
}

/* Pages i.. have aliases of frames that hold the same: map these. */
static int map_merged(struct job *j, uint32_t i, uint32_t n, frame_t target, int pagemap)
{
	struct memory *m = j->m;
	uint64_t kept = 0;
	gfn_t first = gfn_add(j->first, i);
	int rc = j->still ? memory_remap(m, first, target, n)
			  : map_copied(j, i, n, target, pagemap, &kept);
	for (uint32_t k = i, run; !rc && k < i + n; k += run + 1) {
		for (run = 0; k + run < i + n && !(kept & bits(k + run, 1)); run++)
			;
		j->done |= run ? bits(k, run) : 0;
		memory_lose(j->lost, frame_add(j->own, k), run);
		show(m, gfn_add(j->first, k), run);
	}
	return rc;
}

/* Compared only now: an alias holds its frame fast, and nobody sees ours before we have looked. */
static int settle(struct job *j, uint32_t i, uint32_t n, frame_t target, int pagemap)
{
	int rc = 0;
	for (uint32_t end = i + n; !rc && i < end; i += n) {
		bool equal = are_equal(j, frame_add(j->own, i), frame_add(target, i));
		for (n = 1; i + n < end && are_equal(j, frame_add(j->own, i + n),
						     frame_add(target, i + n)) == equal;
		     n++)
			;
		rc = equal ? map_merged(j, i, n, frame_add(target, i), pagemap) : undo(j, i, n);
	}
	return rc;
}

static int merge(struct job *j, frame_t target)
{
	struct memory *m = j->m;
	int pagemap = memory_pagemap(m);
	if (pagemap < 0)
		return -EBUSY;
	int rc = watch(j);
	for (uint32_t i = 0; !rc && i < j->n;) {
		uint32_t done;
		int refused = ipt_merge(m->table, m->vm, gfn_add(j->first, i), frame_add(target, i),
					j->n - i, &done, NULL, NULL);
		rc = settle(j, i, done, target, pagemap);
		i += done;
		if (!rc && refused && i < j->n)
			rc = make_private(j, i++, 1);
	}
	atomic_fetch_add_explicit(&m->mailbox->merged_frames,
				  (unsigned)__builtin_popcountll(j->done), memory_order_relaxed);
	return rc;
}

/* Our template; INVALID_VMID: none. It ends only when its frames aren't pinned, or are ours. */
static vmid_t template_of(const struct job *j)
{
	struct ipt_vm_info info;
	return ipt_vm_info(j->m->table, j->m->vm, &info) ? INVALID_VMID : info.parent;
}

/* Hold the frame that the template has at page i, if it is one with the same bytes. */
static bool hold_templates(const struct job *j, uint32_t i, frame_t *f)
{
	struct ipt *t = j->m->table;
	vmid_t at = template_of(j);
	if (!at.v || is_pinned(j, i) || ipt_pin(t, at, gfn_add(j->first, i), f))
		return false;
	/* It may have ended before we had the pin, and another may have its id. */
	if (template_of(j).v == at.v && are_equal(j, frame_add(j->own, i), *f))
		return true;
	ipt_unpin(t, *f);
	return false;
}

/* Page i is the template's again, whose frame f we hold. If that isn't what we inherit, it stays ours. */
static int forget(struct job *j, uint32_t i, frame_t f, bool *forgotten)
{
	struct memory *m = j->m;
	struct ipt_place p;
	gfn_t g = gfn_add(j->first, i);
	*forgotten = false;
	if (ipt_unmap(m->table, m->vm, g, 1, NULL, NULL))
		return make_private(j, i, 1);
	*forgotten =
		ipt_place(m->table, m->vm, g, 1, &p) && p.frame.v == f.v && p.kind != IPT_FILE_PAGE;
	return *forgotten ? 0 : undo(j, i, 1);
}

/* Pages from i on whose templates' frames, held, follow each other. How many, in *n. */
static int return_run(struct job *j, uint32_t i, uint32_t *n, int pagemap)
{
	frame_t first = INVALID_FRAME, f;
	int rc = 0;
	for (*n = 0; !rc && i + *n < j->n; *n += 1) {
		bool forgotten = false, held = hold_templates(j, i + *n, &f);
		if (held && *n && f.v != first.v + *n) {
			ipt_unpin(j->m->table, f);
			break; /* the next run's */
		}
		if (held)
			rc = forget(j, i + *n, f, &forgotten);
		if (held && !forgotten)
			ipt_unpin(j->m->table, f);
		if (!forgotten)
			break;
		first = *n ? first : f;
	}
	if (!rc && *n)
		rc = map_merged(j, i, *n, first, pagemap);
	for (uint32_t k = 0; k < *n; k++)
		ipt_unpin(j->m->table, frame_add(first, k));
	return rc;
}

static int give_to_template(struct job *j)
{
	struct memory *m = j->m;
	int pagemap = memory_pagemap(m);
	if (pagemap < 0)
		return -EBUSY;
	int rc = watch(j);
	for (uint32_t i = 0, n; !rc && i < j->n; i += n) {
		rc = return_run(j, i, &n, pagemap);
		if (!rc && !n)
			rc = make_private(j, i, n = 1);
	}
	atomic_fetch_add_explicit(&m->mailbox->returned_frames,
				  (unsigned)__builtin_popcountll(j->done), memory_order_relaxed);
	return rc;
}

/* ---- requests ------------------------------------------------------------------------------ */

/* As much of what is asked for as lies in one bank of RAM, at frames of our own that follow each other. */
static bool begin(struct job *j, const struct merge_piece *r)
{
	struct memory *m = j->m;
	struct ipt_place p;
	const struct machine_bank *b = memory_bank(m, j->first);
	if (!b || b->pmem)
		return false;
	uint64_t bank_end = (b->base.v + b->bytes) >> PAGE_SHIFT;
	uint64_t most = bank_end - j->first.v < r->count ? bank_end - j->first.v : r->count;
	j->n = ipt_place(m->table, m->vm, j->first, (uint32_t)most, &p);
	j->own = p.frame;
	return p.kind == IPT_OWN;
}

static bool maps_others(const struct merge_piece *p)
{
	return p->op == MERGE_RETURN || p->op == MERGE_MERGE;
}

static int do_piece(struct memory *m, struct memory_lost *lost, const struct merge_piece *r,
		    bool still, uint64_t *done)
{
	struct job j = {
		.m = m, .lost = lost, .first = gfn(r->gfn), .still = still && maps_others(r)};
	int rc = 0;
	if (begin(&j, r))
		rc = r->op == MERGE_ZERO      ? drop(&j)
		     : r->op == MERGE_PUBLISH ? publish(&j)
		     : r->op == MERGE_RETURN  ? give_to_template(&j)
					      : merge(&j, frame(r->frame));
	*done = j.done;
	return rc == -EBUSY ? 0 : rc; /* then all is as it was */
}

static bool makes_sense(const struct merge_request *r)
{
	uint32_t pages = 0;
	for (uint32_t i = 0; i < r->pieces && i < MERGE_PIECES; i++) {
		const struct merge_piece *p = &r->piece[i];
		if (!p->count || p->count > MERGE_RUN || p->gfn >= IPT_MAX_GFN ||
		    p->op >= MERGE_OPS)
			return false;
		pages += p->count;
	}
	return r->pieces && r->pieces <= MERGE_PIECES && pages <= MERGE_RUN;
}

static int obey(struct memory *m, const struct merge_board *b, const struct merge_request *r,
		bool still, struct merge_answer *a)
{
	static struct memory_lost lost; /* loop's thread alone */
	int rc = 0;
	lost.runs = 0;
	if (!makes_sense(r))
		a->status = -EINVAL;
	else if (!r->domain || r->domain != merge_domain(b, m->vm))
		a->status = -EPERM; /* the request was for one who had our id before */
	if (a->status)
		return 0;
	memory_enter(m); /* a frame that we are told to merge with may go out */
	for (uint32_t i = 0, at = 0; !rc && i < r->pieces; at += r->piece[i++].count) {
		uint64_t done = 0;
		if (memory_has_room(m, r->piece[i].count, 2))
			rc = do_piece(m, &lost, &r->piece[i], still, &done);
		else
			a->status = -ENOSPC;
		a->done |= done << at;
	}
	memory_free_lost(m, &lost);
	memory_leave(m);
	return rc;
}

bool merge_remaps(const struct memory *m, const struct merge_board *b)
{
	if (!b || b->request.vm != m->vm.v ||
	    atomic_load_explicit(&b->state, memory_order_acquire) != MERGE_ASKED)
		return false;
	for (uint32_t i = 0; i < b->request.pieces && i < MERGE_PIECES; i++)
		if (maps_others(&b->request.piece[i]))
			return true;
	return false;
}

int merge_take(struct memory *m, struct merge_board *b, bool still)
{
	uint32_t asked = MERGE_ASKED;
	uint64_t began = clock_cpu_ns();
	if (!b || b->request.vm != m->vm.v ||
	    !atomic_compare_exchange_strong_explicit(&b->state, &asked, MERGE_TAKEN,
						     memory_order_acq_rel, memory_order_relaxed))
		return 0;
	static struct merge_request r; /* loop's thread alone */
	r = b->request;
	struct merge_answer a = {.still = still};
	/* Between the two looks another VM may have been asked: it won't be told, but its page is left as it is. */
	int rc = r.vm == m->vm.v ? obey(m, b, &r, still, &a) : 0;
	a.ns = clock_cpu_ns() - began;
	b->answer = a;
	atomic_store_explicit(&b->state, MERGE_DONE, memory_order_release);
	syscall(SYS_futex, &b->state, FUTEX_WAKE, 1, NULL, NULL, 0);
	return rc;
}
