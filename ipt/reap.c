/* Freeing what a dead VM owned. */
#include "ipt/reap.h"
#include "ipt/bad.h"
#include "ipt/chain.h"
#include "ipt/map.h"
#include "ipt/space.h"
#include "ipt/zone.h"
#include <errno.h>

void reap_mend(struct ipt *t)
{
	stripe_mend(t);
	chain_mend(t);
	for (unsigned z = 0; z < zone_count(t); z++) {
		zone_lock(t, z);
		zone_unlock(t, z);
	}
	radix_pages_lock(t);
	radix_pages_unlock(t);
	space_mend(t);
}

void ipt_mend(struct ipt *t)
{
	registry_lock(t);
	registry_unlock(t);
	reap_mend(t);
}

/* Unmap the frames of [from, to) that vm has mapped, a group's worth at a time. */
static void unmap_words(struct ipt *t, vmid_t vm, uint32_t from, uint32_t to)
{
	uint32_t frames[IPT_CLUSTER_FRAMES];

	for (uint32_t f = from; f < to;) {
		uint64_t w = load_acquire64(&t->words[f]), g = word_gfn(w);
		unsigned n = 1;

		if (!word_is_mapped(w) || word_vm(w) != vm.v) {
			f++;
			continue;
		}
		while (f + n < to && (g + n) % IPT_CLUSTER_FRAMES &&
		       word_maps(load_acquire64(&t->words[f + n]), vm.v, g + n))
			n++;
		forward_unmap(t, vm.v, g, n, frames);
		f += n;
	}
}

void reap_slots(struct ipt *t, vmid_t vm)
{
	unsigned z = t->config.nodes;

	for (uint32_t slot = zone_start(t, z), mark = zone_mark(t, z); slot < mark; slot++) {
		uint64_t w = load_acquire64(&t->words[slot]);
		uint32_t lost;

		if (word_state(w) == IPT_FREE || word_vm(w) != vm.v)
			continue;
		if (word_state(w) == IPT_ALIAS) {
			map_replace_alias(t, vm, word_gfn(w), slot, NO_FRAME, IPT_FREE, &lost);
		} else {
			if (word_is_mapped(w))
				forward_unmap(t, vm.v, word_gfn(w), 1, &lost);
			/* A tomb's link has no memory and is to stay so. */
			if (word_state(w) != IPT_TOMB && space_claimed(t, slot))
				space_release(t, slot);
			zone_free(t, z, vm, slot, 1);
		}
	}
}

/* Is frame f free of pins, or has become so? */
static bool unpinned(struct ipt *t, uint32_t f, bool orphaned)
{
	uint32_t side = load_relaxed32(&t->side[f]);

	if (!(side & SIDE_PINS) || bad_holds(t, f, side))
		return true;
	if (orphaned)
		atomic_fetch_and_explicit(&t->side[f], ~SIDE_PINS, memory_order_acq_rel);
	return orphaned;
}

struct reaping {
	struct ipt *t;
	vmid_t vm;
	bool orphaned;
	ipt_clean_fn *clean;
	void *ctx;
	uint32_t kept;
	int err; /* the first */
};

static void free_run(struct reaping *r, uint32_t f, uint32_t n)
{
	int err = r->clean ? r->clean(r->ctx, frame(f), n) : 0;

	if (!err) {
		/* What its counters say may be wrong by the step at which it died. */
		store_relaxed32(vm_frames(&r->t->vms[r->vm.v], IPT_LIMBO), n);
		err = ipt_free(r->t, r->vm, frame(f), n);
	}
	if (err)
		r->kept += n;
	r->err = r->err ? r->err : err;
}

/* The limbo frames of [from, to). */
static void free_words(struct reaping *r, uint32_t from, uint32_t to)
{
	uint64_t limbo = word_limbo(r->vm.v);

	for (uint32_t f = from; f < to;) {
		uint32_t n = 0;

		while (f + n < to && load_acquire64(&r->t->words[f + n]) == limbo &&
		       unpinned(r->t, f + n, r->orphaned))
			n++;
		if (n) {
			free_run(r, f, n);
		} else if (load_acquire64(&r->t->words[f]) == limbo) {
			r->kept++;
			r->err = r->err ? r->err : -EBUSY;
		}
		f += n + (n == 0);
	}
}

int reap_limbo(struct ipt *t, vmid_t vm, bool orphaned, ipt_clean_fn *clean, void *ctx,
	       uint32_t *kept)
{
	struct reaping r = {t, vm, orphaned, clean, ctx, 0, 0};

	for (unsigned z = 0; z < t->config.nodes; z++)
		free_words(&r, zone_start(t, z), zone_mark(t, z));
	*kept = r.kept;
	return r.err;
}

void reap_count(struct ipt *t, vmid_t vm, uint32_t kept)
{
	for (int i = IPT_LIMBO; i < IPT_NSTATES; i++) {
		store_relaxed32(vm_frames(&t->vms[vm.v], (enum ipt_state)i),
				i == IPT_LIMBO ? kept : 0);
		store_relaxed32(vm_adopted(&t->vms[vm.v], (enum ipt_state)i), 0);
	}
}

int ipt_vm_reap(struct ipt *t, vmid_t vm, ipt_clean_fn *clean, void *ctx)
{
	uint32_t kept;
	int err = registry_dying(t, vm);

	if (err)
		return err;
	reap_mend(t);
	reap_slots(t, vm);
	for (unsigned z = 0; z < t->config.nodes; z++)
		unmap_words(t, vm, zone_start(t, z), zone_mark(t, z));
	err = reap_limbo(t, vm, true, clean, ctx, &kept);
	reap_count(t, vm, kept);
	if (t->kind == IPT_RADIX)
		radix_drop(t, vm.v);
	if (!err)
		registry_remove(t, vm);
	return err;
}
