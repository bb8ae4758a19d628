/*
 * Reclaim, the VM's part: what the reclaimer asks for is done here, on the loop's thread, a few runs at a time so that
 * faults and devices don't wait for long.
 *
 * Looking: the kernel says which pages of a private piece the host's page tables have (PAGEMAP_SCAN,
 * Documentation/admin-guide/mm/pagemap.rst). KVM maps nothing that they don't have, so those were touched since they
 * were last taken out. Then they are taken out again, and the frames' ages follow: 0 if touched, one more if not. A touch
 * costs the guest what the kernel needs to find the page in the pool; no userfault.
 */
#include "vmm/clock.h"
#include "vmm/reclaim.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/types.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define STEP_US    500 /* on a batch before others get their turn */
#define PIECE      128 /* pages of a run that are looked at at once, with memory.lock held */
#define OWN_FRAMES 128 /* that a VM takes out when it finds the pool empty */

/* ---- which pages the host's page tables have ------------------------------------------------ */

/* linux/fs.h since 6.7; Debian 12's headers don't have it. */
struct page_run {
	__u64 start, end, categories;
};
struct scan {
	__u64 size, flags, start, end, walk_end, vec, vec_len, max_pages;
	__u64 category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define SCAN             _IOWR('f', 16, struct scan)
#define SCAN_PRESENT     (UINT64_C(1) << 3)
#define SCAN_RUNS        64
#define PAGEMAP_PRESENT_ (UINT64_C(1) << 63)

struct present {
	uint64_t bits[RECLAIM_PAGES / 64];
};

static bool is_present(const struct present *p, uint32_t i)
{
	return p->bits[i / 64] >> i % 64 & 1;
}

static int scan_present(int fd, uintptr_t at, uint32_t n, struct present *out)
{
	struct page_run run[SCAN_RUNS];
	struct scan s = {.size = sizeof s,
			 .start = at,
			 .end = at + ((uintptr_t)n << PAGE_SHIFT),
			 .vec = (uintptr_t)run,
			 .vec_len = SCAN_RUNS,
			 .category_mask = SCAN_PRESENT,
			 .return_mask = SCAN_PRESENT};
	while (s.start < s.end) {
		int got = ioctl(fd, SCAN, &s);
		if (got < 0)
			return -errno;
		for (int i = 0; i < got; i++)
			for (uint64_t a = run[i].start; a < run[i].end; a += PAGE_SIZE) {
				uint32_t k = (uint32_t)((a - at) >> PAGE_SHIFT);
				out->bits[k / 64] |= UINT64_C(1) << k % 64;
			}
		if (s.walk_end <= s.start)
			break;
		s.start = s.walk_end;
	}
	return 0;
}

/* Kernels before 6.7. */
static int read_present(int fd, uintptr_t at, uint32_t n, struct present *out)
{
	uint64_t entry[RECLAIM_PAGES];
	ssize_t bytes = (ssize_t)(n * sizeof *entry);
	if (pread(fd, entry, (size_t)bytes, (off_t)(at / PAGE_SIZE * sizeof *entry)) != bytes)
		return -EIO;
	for (uint32_t i = 0; i < n; i++)
		if (entry[i] & PAGEMAP_PRESENT_)
			out->bits[i / 64] |= UINT64_C(1) << i % 64;
	return 0;
}

static int find_present(struct memory *m, const uint8_t *at, uint32_t n, struct present *out)
{
	static bool old_kernel;
	int fd = memory_pagemap(m);
	*out = (struct present){{0}};
	if (fd < 0)
		return -EBADF;
	int rc = old_kernel ? -ENOTTY : scan_present(fd, (uintptr_t)at, n, out);
	if (rc == -ENOTTY || rc == -EINVAL) {
		old_kernel = true;
		rc = read_present(fd, (uintptr_t)at, n, out);
	}
	return rc;
}

/* Take our own pages out of the host's page tables; what is registered for userfaults is left as it is, since the next
 * touch of it would be one. */
static bool hide_private(const struct memory *m, gfn_t first, uint32_t n)
{
	for (uint32_t i = 0, run; i < n; i += run) {
		struct ipt_place p;
		run = ipt_place(m->table, m->vm, gfn_add(first, i), n - i, &p);
		run += !run;
		if (p.kind == IPT_OWN && madvise(window_at(&m->window, gfn_add(first, i)),
						 (size_t)run << PAGE_SHIFT, MADV_DONTNEED) < 0)
			return false;
	}
	return true;
}

/* ---- looking, and taking out --------------------------------------------------------------- */

/* Pages of one cluster at frames of our own that follow each other. */
struct piece {
	gfn_t first;
	frame_t own;
	uint32_t n;
	bool touched;
};

/* The next piece from page i of n on; how many pages it takes, or others before it. */
static uint32_t next_piece(const struct memory *m, gfn_t first, uint32_t i, uint32_t n,
			   const struct present *p, struct piece *out)
{
	struct ipt_place place;
	gfn_t g = gfn_add(first, i);
	uint32_t room = IPT_CLUSTER_FRAMES - (uint32_t)(g.v & (IPT_CLUSTER_FRAMES - 1));
	room = room < n - i ? room : n - i;
	uint32_t got = ipt_place(m->table, m->vm, g, room, &place);
	*out = (struct piece){.first = g, .own = place.frame};
	if (!got || place.kind != IPT_OWN)
		return got + !got;
	/* What was found not to pack is for itself, since it is older by another clock. */
	bool stubborn = ipt_age(m->table, place.frame) >= RECLAIM_STUBBORN;
	for (uint32_t k = 1; k < got; k++)
		if ((ipt_age(m->table, frame_add(place.frame, k)) >= RECLAIM_STUBBORN) != stubborn)
			got = k;
	out->n = got;
	for (uint32_t k = 0; k < got; k++)
		out->touched |= is_present(p, i + k);
	return got;
}

/* It was looked at once more. Is it to go, if pages of that age are? */
static bool grow_older(const struct memory *m, const struct piece *p, uint32_t least)
{
	uint32_t age = ipt_age(m->table, p->own);
	bool stubborn = age >= RECLAIM_STUBBORN;
	if (p->touched)
		age = 0;
	else if (stubborn)
		age = age < IPT_AGE_MOST ? age + 1 : RECLAIM_STUBBORN - 1;
	else
		age += age < RECLAIM_STUBBORN - 1;
	ipt_set_age(m->table, p->own, p->n, (uint8_t)age);
	return p->touched ? !least : !stubborn && age >= least;
}

/* Do what the run asks for; at most `most` frames go out. */
static int look(struct memory *m, const struct reclaim_run *r, uint32_t n, uint32_t most,
		struct reclaim_answer *a)
{
	struct present present;
	gfn_t first = gfn(r->gfn);
	bool any = false;
	int rc = 0;
	if (find_present(m, window_at(&m->window, first), n, &present)) {
		a->evicted.errors++; /* no /proc, or no descriptor: what isn't known stays */
		return 0;
	}
	for (uint32_t i = 0, step; i < n && !rc; i += step) {
		struct piece p;
		step = next_piece(m, first, i, n, &present, &p);
		a->looked += p.n;
		a->touched += p.touched ? p.n : 0;
		any |= p.touched;
		if (!p.n)
			continue;
		if (grow_older(m, &p, r->age) && a->evicted.freed < most && !a->evicted.full)
			rc = memory_evict(m, p.first, p.n, &a->evicted);
	}
	if (!rc && any && !hide_private(m, first, n))
		a->evicted.errors++; /* they look touched the next time too */
	return rc;
}

/* As much of a run as lies in one bank of RAM. */
static uint32_t clip(const struct memory *m, const struct reclaim_run *r)
{
	const struct machine_bank *b = r->gfn < IPT_MAX_GFN ? memory_bank(m, gfn(r->gfn)) : NULL;
	if (!b || b->pmem)
		return 0;
	uint64_t left = ((b->base.v + b->bytes) >> PAGE_SHIFT) - r->gfn;
	uint64_t n = r->count < left ? r->count : left;
	return n < RECLAIM_PAGES ? (uint32_t)n : RECLAIM_PAGES;
}

/* The next piece of the batch. */
static int obey(struct memory *m, struct reclaim_desk *d)
{
	struct reclaim_run r = d->run[m->reclaim_at];
	r.gfn += m->reclaim_page;
	r.count = r.count > m->reclaim_page ? r.count - m->reclaim_page : 0;
	uint32_t n = clip(m, &r);
	if (n > PIECE) {
		n = PIECE;
		m->reclaim_page += n;
	} else {
		m->reclaim_page = 0;
		m->reclaim_at++;
	}
	if (!n)
		return 0;
	pthread_mutex_lock(&m->lock);
	int rc = look(m, &r, n, d->most, &d->answer);
	pthread_mutex_unlock(&m->lock);
	atomic_fetch_add_explicit(&d->progress, 1, memory_order_relaxed);
	return rc;
}

int reclaim_take(struct memory *m, struct reclaim_board *b)
{
	struct reclaim_desk *d = reclaim_desk(b, m->vm);
	uint32_t state = d ? atomic_load_explicit(&d->state, memory_order_acquire) : RECLAIM_FREE;
	uint64_t began = clock_cpu_ns();
	int rc = 0;
	if (state == RECLAIM_ASKED) {
		m->reclaim_at = m->reclaim_page = 0;
		d->answer = (struct reclaim_answer){0};
		atomic_store_explicit(&d->state, RECLAIM_TAKEN, memory_order_relaxed);
	} else if (state != RECLAIM_TAKEN) {
		return 0;
	}
	uint32_t runs = d->runs < RECLAIM_RUNS ? d->runs : RECLAIM_RUNS;
	uint64_t spent = 0;
	while (!rc && spent < STEP_US * 1000 && m->reclaim_at < runs) {
		rc = obey(m, d);
		spent = clock_cpu_ns() - began;
	}
	d->answer.ns += spent;
	reclaim_worked(d, spent);
	if (m->reclaim_at < runs && !rc)
		return 1;
	atomic_store_explicit(&d->state, RECLAIM_DONE, memory_order_release);
	reclaim_ring(b);
	return rc;
}

/* ---- when the pool is empty ------------------------------------------------------------------ */

/* Our own hand goes over the window's clusters, in stretches, as the reclaimer's does over the pool. */
int reclaim_own(struct memory *m)
{
	const uint32_t stretch = IPT_CLUSTER_FRAMES * 4;
	struct reclaim_answer a = {0};
	int rc = 0;
	for (uint64_t seen = 0;
	     !rc && seen < m->clusters * 2 && a.evicted.freed < OWN_FRAMES && !a.evicted.full;
	     seen += 4) {
		uint64_t c = m->own_hand;
		m->own_hand = c + 4 < m->clusters ? c + 4 : 0;
		gfn_t first = window_gfn(&m->window, (uintptr_t)m->window.base +
							     c * (PAGE_SIZE << IPT_CLUSTER_ORDER));
		const struct reclaim_run r = {first.v, stretch, 1};
		uint32_t n = clip(m, &r);
		if (n)
			rc = look(m, &r, n, OWN_FRAMES, &a);
	}
	reclaim_count(m->reclaim, &a.evicted);
	return rc ? rc : (int)a.evicted.freed;
}
