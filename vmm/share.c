/*
 * Frames that others see too: a template's, a merged one, a file's. Their pieces of the window are registered with
 * userfaultfd for missing, minor and write-protect faults. A read is answered by putting in the pages that the pool
 * has, write-protected, many at once (UFFDIO_CONTINUE); a write by a copy in a frame of our own, whose mapping is a
 * private piece, which nobody watches. Documentation/admin-guide/mm/userfaultfd.rst.
 */
#include "ipt/whole.h"
#include "vmm/clock.h"
#include "vmm/memory.h"
#include "vmm/reclaim.h"
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

/* Pages shown at once: what one host page table holds. Each read fault that can be had less is one that KVM may take
 * asynchronously, and then copies (fault.c): with 32 pages a Linux clone that has answered a command had copied 411
 * frames instead of 335. */
#define SHOW_PAGES 512u

/* ---- copying ------------------------------------------------------------------------------- */

/* By the pool's descriptor: reading and writing by its mapping would give every clone page tables for it. */
int memory_copy_page(const struct pool *p, frame_t to, frame_t from)
{
	uint8_t page[PAGE_SIZE];
	int rc = whole_read(FAIL_POOL_READ, p->fd, page, sizeof page,
			    (uint64_t)from.v << PAGE_SHIFT);
	return rc ? rc
		  : whole_write(FAIL_POOL_WRITE, p->fd, page, sizeof page,
				(uint64_t)to.v << PAGE_SHIFT);
}

static bool is_pinned(const struct memory *m, frame_t f)
{
	struct ipt_owner o;
	return ipt_owner(m->table, f, &o) == 0 && o.pins && ipt_health(m->table, f) == IPT_GOOD;
}

void memory_free(struct memory *m, frame_t first, uint32_t n)
{
	/* What can't be cleaned, or is read by a device at this moment, stays in limbo until the VM's end. */
	for (uint32_t i = 0, run; i < n; i += run + 1) {
		for (run = 0; i + run < n && !is_pinned(m, frame_add(first, i + run)); run++)
			;
		frame_t f = frame_add(first, i);
		if (run && pool_clean((void *)m->pool, f, run) == 0)
			ipt_free(m->table, m->vm, f, run);
	}
}

void memory_lose(struct memory_lost *l, frame_t first, uint32_t n)
{
	typeof(l->run[0]) *last = l->runs ? &l->run[l->runs - 1] : NULL;
	if (last && last->first.v + last->n == first.v)
		last->n += n;
	else if (n && l->runs < MEMORY_RUN)
		l->run[l->runs++] = (typeof(*last)){first, n};
}

void memory_lose_run(void *lost, gfn_t g, frame_t first, uint32_t n)
{
	(void)g;
	memory_lose(lost, first, n);
}

void memory_free_lost(struct memory *m, const struct memory_lost *l)
{
	for (unsigned i = 0; i < l->runs; i++)
		memory_free(m, l->run[i].first, l->run[i].n);
}

int memory_put_back(struct memory *m, gfn_t first, frame_t f, uint32_t n)
{
	struct memory_lost lost = {.runs = 0}; /* shared frames of which we were the last viewer */
	int rc = ipt_map_over(m->table, m->vm, first, f, n, memory_lose_run, &lost);
	if (!rc)
		rc = window_map(&m->window, first, f, n);
	memory_free_lost(m, &lost);
	return rc;
}

/* Hold the frames from..from+n, which gfns first.. are seen at: they are neither freed nor used again while our window
 * shows them, whatever becomes of their template. -EEXIST if they aren't there any more. */
static int hold(struct memory *m, gfn_t first, frame_t from, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		frame_t f;
		int rc = ipt_pin(m->table, m->vm, gfn_add(first, i), &f);
		if (!rc && f.v != from.v + i) {
			ipt_unpin(m->table, f);
			rc = -ENOENT;
		}
		if (rc) {
			while (i--)
				ipt_unpin(m->table, frame_add(from, i));
			return rc == -ENOENT ? -EEXIST : rc;
		}
	}
	return 0;
}

/* A shared page's new owner: first..first+n are `from`.., shared and held, and none or (n = 1) one has a page. */
static int replace(struct memory *m, gfn_t first, frame_t from, uint32_t n, bool copy,
		   struct memory_lost *lost)
{
	unsigned order = 0;
	while (1u << order < n)
		order++;
	struct ipt_hint hint = {.goal = memory_goal(m, first, n)};
	frame_t f;
	int rc = ipt_alloc(m->table, m->vm, order, &hint, &f);
	if (rc)
		return rc == -ENOMEM ? -EAGAIN : rc;
	if (copy)
		rc = memory_copy_page(m->pool, f, from);
	if (!rc)
		rc = ipt_map_over(m->table, m->vm, first, f, n, memory_lose_run, lost);
	if (rc) {
		memory_free(m, f, 1u << order);
		return rc;
	}
	memory_note_own(m, first);
	reclaim_taken(m->reclaim, m->table);
	atomic_fetch_add_explicit(&m->mailbox->copied_frames, n, memory_order_relaxed);
	/* If this fails the page stays watched, and the next touch of it tries again. */
	return window_map(&m->window, first, f, n);
}

static int take_over(struct memory *m, gfn_t first, frame_t from, uint32_t n, bool copy)
{
	int rc = hold(m, first, from, n);
	if (rc)
		return rc;
	struct memory_lost lost = {.runs = 0};
	rc = replace(m, first, from, n, copy, &lost);
	for (uint32_t i = 0; i < n; i++)
		ipt_unpin(m->table, frame_add(from, i));
	memory_free_lost(m, &lost);
	return rc;
}

static void note(struct memory *m, enum learn_kind kind, gfn_t g)
{
	if (m->learner < 0)
		return;
	if (learn_is_through(m->learn, m->learner, clock_ns()))
		m->learner = -1;
	else
		learn_note(m->learn, m->learner, kind, g);
}

/* The part of g's 64 KiB around it that is shared like g and has no pages in the pool either: 2^k pages, aligned, so
 * that a guest which begins to use memory that its template never did gets it in pieces, not page by page. */
static uint32_t blank_around(const struct memory *m, gfn_t g, frame_t f, gfn_t *first)
{
	uint32_t n = 1;
	*first = g;
	for (uint32_t size = 2; size <= IPT_CLUSTER_FRAMES; size *= 2) {
		gfn_t start = gfn(g.v & ~(uint64_t)(size - 1));
		uint32_t before = (uint32_t)(g.v - start.v);
		struct ipt_place p;
		if (f.v < before || ipt_place(m->table, m->vm, start, size, &p) < size ||
		    !memory_is_shared(&p) || p.frame.v != f.v - before)
			break;
		off_t at = (off_t)p.frame.v << PAGE_SHIFT, data = lseek(m->pool->fd, at, SEEK_DATA);
		if (data >= 0 && data < at + (off_t)(size << PAGE_SHIFT))
			break;
		*first = start;
		n = size;
	}
	return n;
}

static int own_shared(struct memory *m, gfn_t g, const struct ipt_place *p)
{
	gfn_t first = g;
	bool copy = pool_has(m->pool, p->frame);
	uint32_t n = copy ? 1 : blank_around(m, g, p->frame, &first);
	int rc = take_over(m, first, frame(p->frame.v - (uint32_t)(g.v - first.v)), n, copy);
	if ((rc == -EAGAIN || rc == -EHWPOISON) && n > 1)
		rc = take_over(m, g, p->frame, 1, copy);
	if (!rc)
		note(m, LEARN_WROTE, g);
	return rc;
}

static int show_locked(struct memory *m, gfn_t g);

static int own_locked(struct memory *m, gfn_t g)
{
	struct dax *d = dax_of(m, g);
	struct ipt_place p;
	if (!ipt_place(m->table, m->vm, g, 1, &p) || p.kind == IPT_VOID || p.kind == IPT_AWAY) {
		bool was_void = p.kind == IPT_VOID;
		int rc = memory_populate_locked(m, g);
		if (rc || (was_void && !d) || !ipt_place(m->table, m->vm, g, 1, &p))
			return rc;
		if (!was_void && p.kind == IPT_OWN)
			return 0;
		if (p.kind == IPT_AWAY)
			return -EEXIST; /* again, already */
	}
	if (ipt_health(m->table, p.frame) != IPT_GOOD)
		return -EHWPOISON;
	if (d && d->view->share) {
		int rc = show_locked(m, g);
		return rc ? rc : dax_write(m, d, g);
	}
	if (p.kind == IPT_OWN)
		return m->shares ? window_map(&m->window, g, p.frame, 1) : 0;
	int rc = own_shared(m, g, &p);
	if (rc != -EAGAIN)
		return rc;
	int made = memory_make_room(m);
	return made > 0 ? own_shared(m, g, &p) : made < 0 ? made : rc;
}

int memory_own(struct memory *m, gfn_t g)
{
	if (!memory_bank(m, g))
		return -EFAULT;
	memory_enter(m);
	int rc = own_locked(m, g);
	for (int tries = 0; rc == -EEXIST && tries < 8; tries++)
		rc = own_locked(m, g); /* its template's end made it ours meanwhile */
	memory_leave(m);
	return rc;
}

/* ---- before a freeze ----------------------------------------------------------------------- */

#define WORTH_MAPPINGS 16 /* merged pages that follow each other, in one mapping */

/* One merged page becomes the VM's own. If then it doesn't come into the window, that shows nothing there: a touch tries
 * again, as does the next freeze. */
static int unmerge(struct memory *m, gfn_t g, frame_t from)
{
	struct ipt_place p;
	if (fail_call(WINDOW_HIDE, madvise(window_at(&m->window, g), PAGE_SIZE, MADV_DONTNEED)) < 0)
		return -errno;
	int rc = take_over(m, g, from, 1, true);
	if (!rc || rc == -EAGAIN)
		return rc;
	if (!ipt_place(m->table, m->vm, g, 1, &p) || p.kind != IPT_OWN)
		return 0; /* it is lost, say */
	m->unshown = g;
	return rc;
}

static int show_unshown(struct memory *m)
{
	struct ipt_place p;
	int rc = 0;
	if (ipt_place(m->table, m->vm, m->unshown, 1, &p) && p.kind == IPT_OWN)
		rc = window_map(&m->window, m->unshown, p.frame, 1);
	if (!rc)
		m->unshown = INVALID_GFN;
	return rc;
}

static int unmerge_bank(struct memory *m, const struct machine_bank *b)
{
	gfn_t g = gpa_gfn(b->base), end = gfn_add(g, b->bytes >> PAGE_SHIFT);
	uint32_t goes_on = UINT32_MAX,
		 enough = ipt_config(m->table)->frames / 8; /* frame; frames */
	int rc = 0;
	for (uint32_t n; !rc && g.v < end.v; g.v += n) {
		struct ipt_place p;
		uint64_t left = end.v - g.v;
		n = ipt_place(m->table, m->vm, g, left < UINT16_MAX ? (uint32_t)left : UINT16_MAX,
			      &p);
		bool merged = p.kind == IPT_MERGED && p.at.v == m->vm.v;
		if (merged && n < WORTH_MAPPINGS && p.frame.v != goes_on) {
			rc = ipt_free_frames(m->table) < enough ? -EAGAIN : unmerge(m, g, p.frame);
			n = 1;
			merged = false;
		}
		goes_on = merged ? p.frame.v + n : UINT32_MAX;
		n = n ? n : 1;
	}
	return rc;
}

int memory_unmerge(struct memory *m)
{
	int rc = show_unshown(m);
	for (unsigned i = 0; !rc && i < m->machine->banks; i++)
		rc = unmerge_bank(m, &m->machine->bank[i]);
	return rc == -EAGAIN ? 0 : rc; /* the rest has to stay as it is */
}

/* ---- showing ------------------------------------------------------------------------------- */

/* Put n shared pages in, all of which the pool has; those that are in already are passed over. */
static int show_pages(struct memory *m, gfn_t first, uint32_t n)
{
	uint8_t *at = window_at(&m->window, first);
	uint64_t left = (uint64_t)n << PAGE_SHIFT, step = left;
	while (left) {
		int error;
		uint64_t did = fault_continue(m->uffd, at, step < left ? step : left, &error);
		if (!did && error == -ENOENT && step > PAGE_SIZE) {
			step = PAGE_SIZE; /* the range isn't one mapping: page by page */
			continue;
		}
		if (!did && error != -EEXIST && error != -ENOENT)
			return error;
		did = did ? did : PAGE_SIZE;
		at += did;
		left -= did;
	}
	return 0;
}

/* Of n shared gfns at frames from f on, those that the pool has pages for. */
static int show_run(struct memory *m, gfn_t first, uint32_t n, frame_t f)
{
	off_t start = (off_t)f.v << PAGE_SHIFT, end = start + ((off_t)n << PAGE_SHIFT), data, hole;
	int rc = 0;
	for (off_t at = start; !rc && at < end; at = hole) {
		data = lseek(m->pool->fd, at, SEEK_DATA);
		if (data < 0 || data >= end)
			break;
		hole = lseek(m->pool->fd, data, SEEK_HOLE);
		hole = hole < 0 || hole > end ? end : hole;
		rc = show_pages(m, gfn_add(first, (uint64_t)(data - start) >> PAGE_SHIFT),
				(uint32_t)((hole - data) >> PAGE_SHIFT));
	}
	return rc;
}

int memory_remap(struct memory *m, gfn_t first, frame_t f, uint32_t n)
{
	uint8_t *at = window_at(&m->window, first);
	size_t bytes = (size_t)n << PAGE_SHIFT;
	atomic_fetch_add_explicit(&m->remaps, 1, memory_order_seq_cst);
	int rc = window_map_read_only(&m->window, first, f, n);
	if (!rc)
		rc = fault_register(m->uffd, at, bytes, true);
	/* Where this fails a guest that writes there ends with EFAULT; what it reads is right. */
	if (!rc && (fail_call(WINDOW_HIDE, madvise(at, bytes, MADV_DONTNEED)) < 0 ||
		    fail_call(WINDOW_PROTECT, mprotect(at, bytes, PROT_READ | PROT_WRITE)) < 0))
		rc = -errno;
	atomic_fetch_add_explicit(&m->remaps, 1, memory_order_seq_cst);
	return rc;
}

static bool may_move(const struct ipt_place *p)
{
	return p->kind == IPT_INHERITED || p->kind == IPT_MERGED || p->kind == IPT_FILE_PAGE;
}

static bool is_moved(const struct memory *m, const struct ipt_place *p)
{
	return may_move(p) && ipt_moved(m->table, p->frame);
}

/* A template's, a merged or a file's page came back in another frame, and its neighbours with it: the window has the one before
 * there, of which nothing is known. */
static int show_moved(struct memory *m, gfn_t g)
{
	struct ipt_place p;
	gfn_t first = gfn(g.v & ~(uint64_t)(IPT_CLUSTER_FRAMES - 1));
	uint32_t n = 0;
	for (; first.v <= g.v; first.v += n) {
		uint64_t end = (g.v | (IPT_CLUSTER_FRAMES - 1)) + 1;
		n = ipt_place(m->table, m->vm, first, (uint32_t)(end - first.v), &p);
		if (!n || first.v + n > g.v)
			break;
	}
	while (n && may_move(&p) && !ipt_moved(m->table, p.frame) && first.v < g.v) {
		first.v++;
		p.frame.v++;
		n--;
	}
	uint32_t moved = 0;
	while (may_move(&p) && moved < n && ipt_moved(m->table, frame_add(p.frame, moved)))
		moved++;
	if (!may_move(&p) || first.v + moved <= g.v)
		return -EEXIST; /* it became something else: the guest tries again */
	int rc = memory_remap(m, first, p.frame, moved);
	if (!rc && dax_of(m, g))
		dax_note_mapped(dax_of(m, g), first, moved);
	return rc ? rc : show_run(m, first, moved, p.frame);
}

static int show_around(struct memory *m, gfn_t g, const struct machine_bank *b)
{
	uint64_t start = g.v & ~(uint64_t)(SHOW_PAGES - 1), end = start + SHOW_PAGES;
	uint64_t bank = b->base.v >> PAGE_SHIFT, bank_end = bank + (b->bytes >> PAGE_SHIFT);
	start = start < bank ? bank : start;
	end = end > bank_end ? bank_end : end;
	struct dax *d = dax_of(m, g);
	int rc = 0;
	note(m, LEARN_READ, gfn(start));
	for (uint64_t at = start; !rc && at < end;) {
		struct ipt_place p;
		uint32_t n = ipt_place(m->table, m->vm, gfn(at), (uint32_t)(end - at), &p);
		bool moved = n && is_moved(m, &p);
		for (uint32_t i = 1; i < n && may_move(&p); i++)
			if (ipt_moved(m->table, frame_add(p.frame, i)) != moved)
				n = i;
		if (n && d && p.kind == IPT_FILE_PAGE &&
		    !moved) /* others bring pages in at any time */
			rc = dax_map(m, d, at, at + n);
		if (!rc && n && memory_is_shared(&p) && !moved)
			rc = show_run(m, gfn(at), n, p.frame);
		at += n ? n : 1;
	}
	return rc;
}

static int show_locked(struct memory *m, gfn_t g)
{
	struct ipt_place p;
	if (!ipt_place(m->table, m->vm, g, 1, &p) || !memory_is_shared(&p))
		return 0; /* meanwhile it became something else: the guest tries again */
	bool moved = is_moved(m, &p);
	if (!moved && pool_has(m->pool, p.frame))
		return show_around(m, g, memory_bank(m, g));
	/* It has no page since it is damaged? (Which is said first: ipt_spoil.) */
	if (ipt_health(m->table, p.frame) != IPT_GOOD)
		return -EHWPOISON;
	/* A page that is read before anybody wrote to it is made in the pool, of zeroes. Those around may be in
	 * already, and finding that out again costs a call a page. */
	int rc = pool_has(m->pool, p.frame) ? 0 : pool_fill(m->pool, p.frame, 1);
	if (rc || moved)
		return rc ? rc : show_moved(m, g);
	return dax_of(m, g) ? show_around(m, g, memory_bank(m, g)) : show_pages(m, g, 1);
}

int memory_show(struct memory *m, gfn_t g)
{
	if (!memory_bank(m, g))
		return -EFAULT;
	memory_enter(m);
	int rc = show_locked(m, g);
	memory_leave(m);
	return rc;
}

int memory_show_known(struct memory *m, gfn_t g)
{
	if (!memory_bank(m, g))
		return -EFAULT;
	memory_enter(m);
	struct ipt_place p;
	int rc = 0;
	if (ipt_place(m->table, m->vm, g, 1, &p) && memory_is_shared(&p) &&
	    pool_has(m->pool, p.frame))
		rc = is_moved(m, &p) ? show_moved(m, g) : show_around(m, g, memory_bank(m, g));
	memory_leave(m);
	return rc;
}

void memory_show_ahead(struct memory *m, gfn_t g)
{
	const struct machine_bank *b = memory_bank(m, g);
	memory_enter(m);
	if (b && !dax_of(m, g))
		show_around(m, g, b);
	memory_leave(m);
}
