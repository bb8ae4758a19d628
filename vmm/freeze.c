/*
 * A VM's memory when it is frozen, and when it is a clone's: every piece of the window is registered for write
 * protection, and what others of the same template wrote to at once is copied ahead. See share.c for what follows.
 */
#include "ipt/fail.h"
#include "vmm/clock.h"
#include "vmm/error.h"
#include "vmm/memory.h"
#include "vmm/store.h"
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

/* Call fn for every run of clusters in the window that have frames. */
typedef int run_fn(struct memory *m, uint8_t *at, uint64_t bytes);

static int each_run(struct memory *m, run_fn *fn)
{
	const uint64_t cluster = PAGE_SIZE << IPT_CLUSTER_ORDER;
	int rc = 0;
	for (uint64_t c = 0, n; c < m->clusters && !rc; c += n) {
		for (n = 0; c + n < m->clusters && memory_touched(m, c + n); n++)
			;
		if (!n) {
			n = 1;
			continue;
		}
		uint64_t from = c * cluster, to = (c + n) * cluster;
		rc = fn(m, m->window.base + from,
			(to < m->window.bytes ? to : m->window.bytes) - from);
	}
	return rc;
}

/* A cluster may have void pages beside its frames, and pages of a file that aren't mapped (dax.c). These can't be
 * registered in this way, so it goes page by page. Void ones whose frames were given back can, and must be: whose page
 * would be seen there? */
static int register_run(struct memory *m, uint8_t *at, uint64_t bytes)
{
	const uint64_t cluster = PAGE_SIZE << IPT_CLUSTER_ORDER;
	int rc = fault_register(m->uffd, at, bytes, true);
	if (rc != -EINVAL)
		return rc;
	rc = 0;
	if (bytes > cluster) { /* most clusters have no such pages */
		for (uint64_t done = 0; done < bytes && !rc; done += cluster)
			rc = register_run(m, at + done,
					  bytes - done < cluster ? bytes - done : cluster);
		return rc;
	}
	for (uint8_t *end = at + bytes; at < end && !rc; at += PAGE_SIZE) {
		struct ipt_place p;
		gfn_t g = window_gfn(&m->window, (uintptr_t)at);
		rc = fault_register(m->uffd, at, PAGE_SIZE, true);
		if (rc == -EINVAL && ipt_place(m->table, m->vm, g, 1, &p) &&
		    (p.kind == IPT_VOID || p.kind == IPT_FILE_PAGE || p.kind == IPT_AWAY))
			rc = 0;
	}
	return rc;
}

/* Drops the host's mappings, not the pool's pages: the next touch of each is a fault. */
static int hide_run(struct memory *m, uint8_t *at, uint64_t bytes)
{
	(void)m;
	return fail_call(WINDOW_HIDE, madvise(at, bytes, MADV_DONTNEED)) < 0 ? -errno : 0;
}

int memory_freeze(struct memory *m, char *error)
{
	pthread_mutex_lock(&m->lock);
	int rc = m->shares ? memory_unmerge(m) : 0;
	m->shares = true;        /* from the first piece on */
	store_io_destroy(m->io); /* which is by our id, and that becomes the template's */
	m->io = NULL;
	if (!rc)
		rc = each_run(m, register_run);
	if (!rc)
		rc = each_run(m, hide_run);
	pthread_mutex_unlock(&m->lock);
	if (rc)
		return errorf(error, rc, "%s: userfaultfd can't write-protect the window: %s",
			      m->machine->name, strerror(-rc));
	return 0;
}

static void begin_learning(struct memory *m, struct learn *learn)
{
	m->learn = learn;
	m->learner = learn ? learn_join(learn, clock_ns()) : -1;
}

void memory_go_on(struct memory *m, vmid_t vm, struct learn *learn)
{
	m->vm = vm;
	begin_learning(m, learn);
}

void memory_become(struct memory *m, vmid_t vm, struct mailbox *mailbox, struct learn *learn)
{
	m->vm = vm;
	m->mailbox = mailbox;
	begin_learning(m, learn);
}

int memory_adopt(struct memory *m, char *error)
{
	m->shares = true;
	m->own_hand = m->stalled_ns = 0;
	m->pagemap = m->maps = -1; /* the template's process has closed them */
	store_io_forget(m->io);
	m->io = NULL;
	m->uffd = fault_open(error);
	if (m->uffd < 0)
		return m->uffd;
	int rc = fault_register(m->uffd, m->window.base, m->window.bytes, false);
	if (!rc)
		rc = each_run(m, register_run);
	if (!rc)
		rc = dax_adopt(m);
	if (rc)
		return errorf(error, rc, "%s: userfaultfd can't watch the window: %s",
			      m->machine->name, strerror(-rc));
	return 0;
}

/* Copy n pages that follow each other as gfns, into frames from f on. */
static int copy_run(struct memory *m, const gfn_t *pages, unsigned n, frame_t f)
{
	for (unsigned i = 0; i < n; i++) {
		struct ipt_place p;
		int rc = -EFAULT;
		if (ipt_place(m->table, m->vm, pages[i], 1, &p) && memory_is_shared(&p))
			rc = memory_copy_page(m->pool, frame_add(f, i), p.frame);
		if (!rc && ipt_health(m->table, p.frame) != IPT_GOOD)
			rc = -EHWPOISON; /* perhaps destroyed before it was copied */
		if (rc)
			return rc;
	}
	int rc = ipt_map(m->table, m->vm, pages[0], f, n);
	if (rc)
		return rc;
	rc = window_map(&m->window, pages[0], f, n);
	if (rc)
		ipt_unmap(m->table, m->vm, pages[0], n, NULL, NULL);
	for (unsigned i = 0; !rc && i < n; i++)
		memory_note_own(m, pages[i]);
	return rc;
}

void memory_copy_ahead(struct memory *m, const gfn_t *pages, unsigned n)
{
	unsigned order = 0, done = 0;
	while (order < IPT_MAX_ORDER && 1u << order < n)
		order++;
	unsigned room = 1u << order;
	frame_t f;
	n = n < room ? n : room;
	if (!n)
		return;
	memory_enter(m);
	if (ipt_alloc(m->table, m->vm, order, NULL, &f) == 0) {
		for (unsigned i = 0, run; i < n; i += run) {
			for (run = 1; i + run < n && pages[i + run].v == pages[i].v + run; run++)
				;
			if (copy_run(m, pages + i, run, frame_add(f, done)) == 0)
				done += run;
		}
		if (done < room) {
			pool_clean((void *)m->pool, frame_add(f, done), room - done);
			ipt_free(m->table, m->vm, frame_add(f, done), room - done);
		}
	}
	atomic_fetch_add_explicit(&m->mailbox->copied_frames, done, memory_order_relaxed);
	atomic_fetch_add_explicit(&m->mailbox->predicted_frames, done, memory_order_relaxed);
	memory_leave(m);
}
