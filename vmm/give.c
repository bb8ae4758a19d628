/*
 * Memory that the guest gives away (the balloon's, virtio/balloon.c): its frames are freed, and the window is plain void
 * there again, as window_create made it, so that mappings become one with the void around them instead of more.
 *
 * What a touch meets in the meantime, by a guest that doesn't keep its word or by KVM:
 *   own frames        leave the table first (limbo) and stay in the window until it is closed; what is written to them by
 *                     then is lost, as was promised. They are cleaned and freed only when the window hasn't them any more
 *   others' frames    leave the window first, which is watched there: a touch waits for us, who are the loop. The frame
 *                     may be gone as soon as the table has let go of it
 *   a closed piece    has no page yet and must not get one before userfaultfd watches it, since that page would neither be
 *                     the guest's next one nor zero. So nobody may touch it: KVM_RUN fails with EFAULT, `remaps` tells the
 *                     vCPU why, and it tries again (as in dax.c)
 * From then on a touch is a fault like the first ever, which waits until we have done the rest.
 */
#include "vmm/evict.h"
#include <errno.h>

#define CHUNK 512u /* pages dealt with at once, at most: 2 MiB, aligned */

/* What a part of a chunk came to. */
struct given {
	struct memory *m;
	unsigned runs;
	struct {
		frame_t first;
		uint32_t n;
	} run[CHUNK]; /* in limbo */
};

static void note_gone(void *ctx, gfn_t g, frame_t first, uint32_t n)
{
	struct given *d = ctx;
	(void)g;
	if (d->runs < CHUNK)
		d->run[d->runs++] = (typeof(d->run[0])){first, n};
}

/* How many of n frames from f on no device uses (or does), the first among them. */
static uint32_t alike(const struct memory *m, frame_t f, uint32_t n, bool *pinned)
{
	uint32_t k = 0;
	*pinned = memory_has_pins(m, f, 1);
	do
		k++;
	while (k < n && memory_has_pins(m, frame_add(f, k), 1) == *pinned);
	return k;
}

/* Make [at, at + n) void in the table, as far as can be: how many pages from `at` on came to the same, and whether that
 * is void. */
static uint32_t drop_some(struct given *d, uint64_t at, uint32_t n, bool *is_void)
{
	struct memory *m = d->m;
	struct ipt_place p;
	uint32_t k = ipt_place(m->table, m->vm, gfn(at), n, &p), done;
	bool pinned;
	*is_void = !k || p.kind == IPT_VOID;
	if (*is_void)
		return k ? k : 1;
	if (p.kind == IPT_AWAY) /* the window shows nothing there */
		pinned = false;
	else
		k = alike(m, p.frame, k, &pinned);
	if (pinned || p.kind == IPT_FILE_PAGE ||
	    (p.kind != IPT_OWN && p.kind != IPT_AWAY && memory_hide(m, gfn(at), k)))
		return k;
	ipt_drop(m->table, m->vm, gfn(at), k, &done, note_gone, d);
	*is_void = done > 0;
	return done ? done : k;
}

static int make_void(struct memory *m, uint64_t from, uint64_t to)
{
	uint8_t *at = window_at(&m->window, gfn(from));
	atomic_fetch_add_explicit(&m->remaps, 1, memory_order_seq_cst);
	int rc = window_close(&m->window, gfn(from), to - from);
	if (!rc)
		rc = fault_register(m->uffd, at, (to - from) << PAGE_SHIFT, false);
	if (!rc)
		rc = window_open(&m->window, gfn(from), to - from);
	atomic_fetch_add_explicit(&m->remaps, 1, memory_order_seq_cst);
	return rc;
}

static uint64_t cluster_start(uint64_t g)
{
	return g & ~(uint64_t)(IPT_CLUSTER_FRAMES - 1);
}

/* Has the table nothing for the cluster? It may reach beyond its bank. */
static bool has_nothing(const struct memory *m, uint64_t start)
{
	struct ipt_place p;
	return ipt_place(m->table, m->vm, gfn(start), IPT_CLUSTER_FRAMES, &p) ==
		       IPT_CLUSTER_FRAMES &&
	       p.kind == IPT_VOID;
}

/* Pages [from, to) are void in the table: in the window too. */
static int give_window(struct memory *m, uint64_t from, uint64_t to)
{
	int rc = make_void(m, from, to);
	/* The rest of a cluster may have been void before. */
	uint64_t first = cluster_start(from), end = cluster_start(to + IPT_CLUSTER_FRAMES - 1);
	bool in_part = false;
	if (end > to && (m->watched_voids || !has_nothing(m, end - IPT_CLUSTER_FRAMES))) {
		end -= IPT_CLUSTER_FRAMES;
		in_part = true;
	}
	if (first < from && (m->watched_voids || !has_nothing(m, first))) {
		first += IPT_CLUSTER_FRAMES;
		in_part = true;
	}
	m->gave_back = m->gave_back || in_part;
	if (!rc && first < end)
		memory_note_void(m, gfn(first), end - first);
	return rc;
}

static bool is_touched(const struct memory *m, const struct machine_bank *b, uint64_t from,
		       uint64_t to)
{
	uint64_t base = b->base.v >> PAGE_SHIFT, window = b->window >> PAGE_SHIFT;
	uint64_t c = (from - base + window) / IPT_CLUSTER_FRAMES;
	uint64_t last = (to - 1 - base + window) / IPT_CLUSTER_FRAMES;
	while (c <= last && !memory_touched(m, c))
		c++;
	return c <= last;
}

/* A part of a bank, within 2 MiB. */
static int give_chunk(struct memory *m, const struct machine_bank *b, uint64_t from, uint64_t to)
{
	struct given d = {.m = m};
	int rc = 0;
	if (!is_touched(m, b, from, to) || !memory_has_room(m, (uint32_t)(to - from), 2))
		return 0;
	uint64_t begun = from; /* [begun, at) is void in the table */
	for (uint64_t at = from; !rc && at < to;) {
		bool is_void;
		uint32_t n = drop_some(&d, at, (uint32_t)(to - at), &is_void);
		if (!is_void && at > begun && is_touched(m, b, begun, at))
			rc = give_window(m, begun, at);
		at += n;
		begun = is_void ? begun : at;
	}
	if (!rc && to > begun && is_touched(m, b, begun, to))
		rc = give_window(m, begun, to);
	uint64_t frames = 0;
	for (unsigned i = 0; !rc && i < d.runs; i++) {
		memory_free(m, d.run[i].first, d.run[i].n);
		frames += d.run[i].n;
	}
	atomic_fetch_add_explicit(&m->mailbox->given_frames, frames, memory_order_relaxed);
	return rc;
}

int memory_give(struct memory *m, gfn_t first, uint64_t count)
{
	if (!count || count > IPT_MAX_GFN || first.v > IPT_MAX_GFN)
		return -EFAULT;
	const struct machine_bank *b =
		machine_bank_of(m->machine, gfn_gpa(first), count << PAGE_SHIFT);
	if (!b)
		return -EFAULT;
	if (b->pmem)
		return 0;
	int rc = 0;
	for (uint64_t at = first.v, end = at + count, next; !rc && at < end; at = next) {
		next = (at & ~(uint64_t)(CHUNK - 1)) + CHUNK;
		next = next < end ? next : end;
		/* Not for all of it at once: others wait for this lock. */
		memory_enter(m);
		rc = give_chunk(m, b, at, next);
		memory_leave(m);
	}
	return rc;
}
