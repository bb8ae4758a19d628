/*
 * Banks of persistent memory (pmem.h) in a VM's window. Their pages are a file's frames, shared as any that others
 * see too (share.c): a read shows them write-protected. A private view's write copies. A shared view's write goes to
 * the common frame: the page is noted as dirty, then its protection is taken away, until the next flush protects it
 * again (userfaultfd, UFFDIO_WRITEPROTECT).
 *
 * A piece of the window becomes a file's while the guest runs, and mmap and UFFDIO_REGISTER are two steps: a write
 * in between would go to the common frame unseen. So the mapping is made without permission to write, registered,
 * rid of pages that were read meanwhile, and then made writable. A guest's write in between makes KVM_RUN fail with
 * EFAULT; `remaps` tells a vCPU that this was why (dax_was_remapping), and it tries again.
 */
#include "vmm/dax.h"
#include "vmm/memory.h"
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>

/* Pages that are made writable at once, as a guest goes on writing in address order: at most twice as many are
 * written back as it wrote. */
#define WRITE_MOST 16u

static void *make_set(uint64_t pages)
{
	void *at = mmap(NULL, pageset_bytes(pages), PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	return at == MAP_FAILED ? NULL : at;
}

int dax_attach(struct memory *m, struct pmem_view *const *views, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		void *set = make_set(views[i]->pages);
		if (!set)
			return -ENOMEM;
		m->dax[m->daxes++] =
			(struct dax){.view = views[i], .mapped = pageset_at(set, views[i]->pages)};
	}
	return 0;
}

struct dax *dax_of(const struct memory *m, gfn_t g)
{
	for (unsigned i = 0; i < m->daxes; i++) {
		const struct pmem_view *v = m->dax[i].view;
		if (g.v >= v->first.v && g.v - v->first.v < v->pages)
			return (struct dax *)(uintptr_t)&m->dax[i];
	}
	return NULL;
}

int dax_fetch(struct memory *m, struct dax *d, gfn_t g)
{
	return pmem_fetch(d->view, m->vm, g.v - d->view->first.v);
}

/* ---- the window ----------------------------------------------------------------------------- */

bool dax_was_remapping(const struct memory *m, uint64_t *seen)
{
	uint64_t now;
	while ((now = atomic_load_explicit(&m->remaps, memory_order_acquire)) % 2)
		sched_yield();
	bool was = now != *seen;
	*seen = now;
	return was;
}

void dax_note_mapped(struct dax *d, gfn_t first, uint32_t n)
{
	pageset_add(&d->mapped, first.v - d->view->first.v, n);
}

/* A run of the file's frames that the window hasn't. */
static int map_run(struct memory *m, struct dax *d, gfn_t first, frame_t f, uint32_t n)
{
	int rc = memory_remap(m, first, f, n);
	if (!rc)
		dax_note_mapped(d, first, n);
	return rc;
}

/* The parts of [first, first + n), which are the frames from f on, that aren't mapped yet. */
static int map_new(struct memory *m, struct dax *d, gfn_t first, frame_t f, uint32_t n)
{
	uint64_t page = first.v - d->view->first.v, end = page + n, at = page;
	int rc = 0;
	while (at < end && !rc) {
		uint64_t next = at, has = pageset_next(&d->mapped, &next, end - at);
		if (!has || next > end)
			next = end;
		if (next > at)
			rc = map_run(m, d, gfn(d->view->first.v + at),
				     frame_add(f, (uint32_t)(at - page)), (uint32_t)(next - at));
		at = next + (next < end ? has : 0);
	}
	return rc;
}

int dax_map(struct memory *m, struct dax *d, uint64_t from, uint64_t to)
{
	uint64_t first = d->view->first.v, end = first + d->view->pages;
	from = from < first ? first : from;
	to = to > end ? end : to;
	int rc = 0;
	for (uint32_t n; from < to && !rc; from += n ? n : 1) {
		struct ipt_place p;
		n = ipt_place(m->table, m->vm, gfn(from), (uint32_t)(to - from), &p);
		if (n && p.kind == IPT_FILE_PAGE)
			rc = map_new(m, d, gfn(from), p.frame, n);
	}
	return rc;
}

int dax_write(struct memory *m, struct dax *d, gfn_t g)
{
	uint64_t page = g.v - d->view->first.v, at = page, n = 1;
	if (d->wrote_pages && page == d->wrote_to)
		n = d->wrote_pages < WRITE_MOST ? d->wrote_pages * 2 : WRITE_MOST;
	n = pageset_next(&d->mapped, &at, n);
	/* Pages that were dropped stay mapped, but only those that the pool has can be written back. It may have been about to
	 * be dropped just when it was to be shown (host_drop.c): then the guest tries again. */
	struct ipt_place p;
	n = at == page ? ipt_place(m->table, m->vm, g, (uint32_t)n, &p) : 0;
	if (!n || p.kind != IPT_FILE_PAGE)
		return 0;
	d->wrote_to = page + n;
	d->wrote_pages = (uint32_t)n;
	pmem_note_write(d->view, page, n); /* before it can */
	return fault_protect(m->uffd, window_at(&m->window, g), n << PAGE_SHIFT, false);
}

bool dax_note_device(struct memory *m, gfn_t g)
{
	struct dax *d = dax_of(m, g);
	if (!d || !d->view->share)
		return false;
	pmem_note_write(d->view, g.v - d->view->first.v, 1);
	return true;
}

int dax_protect(struct memory *m, gfn_t first, uint64_t count)
{
	struct dax *d = dax_of(m, first);
	int rc = 0;
	pthread_mutex_lock(&m->lock);
	/* What a device alone wrote isn't in the window. */
	uint64_t at = first.v - d->view->first.v, end = at + count, n;
	while (!rc && (n = pageset_next(&d->mapped, &at, count)) && at < end) {
		n = at + n > end ? end - at : n;
		rc = fault_protect(m->uffd, window_at(&m->window, gfn(d->view->first.v + at)),
				   n << PAGE_SHIFT, true);
		at += n;
	}
	pthread_mutex_unlock(&m->lock);
	return rc;
}

int dax_adopt(struct memory *m)
{
	for (unsigned i = 0; i < m->daxes; i++) {
		const struct dax *d = &m->dax[i];
		uint64_t at = 0, n;
		for (; (n = pageset_next(&d->mapped, &at, d->view->pages)); at += n) {
			uint8_t *piece = window_at(&m->window, gfn(d->view->first.v + at));
			int rc = fault_register(m->uffd, piece, n << PAGE_SHIFT, true);
			if (rc)
				return rc;
		}
	}
	return 0;
}
