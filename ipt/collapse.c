/*
 * Moving what a template owns into its only child, so that a line of templates doesn't grow forever.
 *
 * A piece of up to 16 frames at a time, and each of them by one store to its word, with the stripes of
 * both keys locked, so that whoever dies leaves every frame the one's or the other's and both stripes
 * to be rebuilt. Look-ups go on meanwhile: one that misses in the child before a frame comes there and
 * in the template after it left sees by the lineage's counter that it must look again. The child's
 * process goes on mapping too: what it maps first stays, and the template's frame for it is freed.
 */
#include "ipt/debug.h"
#include "ipt/map.h"
#include "ipt/move.h"
#include "ipt/reap.h"
#include "ipt/region.h"
#include "ipt/zone.h"
#include <errno.h>

static bool has(const struct ipt *t, uint32_t vm, uint32_t f)
{
	uint64_t w = load_acquire64(&t->words[f]);

	return word_is_mapped(w) && word_vm(w) == vm;
}

/* Move n frames from f on, one piece of `from`'s, with the registry locked. */
static int move_piece(struct ipt *t, uint32_t from, uint32_t to, uint64_t g, uint32_t f, unsigned n)
{
	enum ipt_state state = word_state(load_acquire64(&t->words[f]));

	move_begin(t, from, to, f, n, state);
	lineage_open(t);
	int err = forward_move(t, from, to, g, f, n);
	lineage_close(t);
	add_relaxed32(vm_frames(&t->vms[from], state), -move_end(t));
	return err;
}

/* The child may have died, or have been collapsed into its own. */
static int piece(struct ipt *t, vmid_t vm, vmid_t child, uint64_t g, uint32_t f, unsigned n)
{
	uint32_t frames[IPT_CLUSTER_FRAMES];
	int err = -EBUSY;

	registry_lock(t);
	if (registry_slot(t, child, VM_LIVE) && registry_parent(t, child.v) == vm.v)
		err = region_covers(t, child.v, g) ? 0 : move_piece(t, vm.v, child.v, g, f, n);
	registry_unlock(t);
	for (unsigned i = 0; !err && i < n; i++) {
		/* The child has its own. */
		if (has(t, vm.v, f + i))
			map_remove(t, vm, g + i, 1, frames);
	}
	return err;
}

static int pieces(struct ipt *t, vmid_t vm, vmid_t child, uint32_t from, uint32_t to)
{
	int err = 0;

	for (uint32_t f = from; !err && f < to;) {
		uint64_t w = load_acquire64(&t->words[f]), g = word_gfn(w);
		unsigned n = 1;

		if (!has(t, vm.v, f)) {
			f++;
			continue;
		}
		while (f + n < to && (g + n) % IPT_CLUSTER_FRAMES &&
		       (load_acquire64(&t->words[f + n]) & ~WORD_FLAG) ==
			       word_mapped(word_state(w), vm.v, g + n) &&
		       region_covers(t, child.v, g + n) == region_covers(t, child.v, g))
			n++;
		err = piece(t, vm, child, g, f, n);
		f += n;
	}
	return err;
}

/* Give the child a limbo frame that is pinned. */
static int leave_one(struct ipt *t, vmid_t vm, vmid_t child, uint32_t f)
{
	int err = -EBUSY;

	registry_lock(t);
	if (registry_slot(t, child, VM_LIVE) && registry_parent(t, child.v) == vm.v) {
		move_begin(t, vm.v, child.v, f, 1, IPT_LIMBO);
		store_release64(&t->words[f], word_limbo(child.v));
		ipt_step();
		move_end(t);
		err = 0;
	}
	registry_unlock(t);
	return err;
}

static int leave_pinned(struct ipt *t, vmid_t vm, vmid_t child)
{
	int err = 0;

	for (unsigned z = 0; z < t->config.nodes; z++)
		for (uint32_t f = zone_start(t, z); !err && f < zone_mark(t, z); f++)
			if (load_acquire64(&t->words[f]) == word_limbo(vm.v) &&
			    load_relaxed32(&t->side[f]) & SIDE_PINS)
				err = leave_one(t, vm, child, f);
	return err;
}

static int collapse(struct ipt *t, vmid_t vm, ipt_clean_fn *clean, void *ctx, bool leave)
{
	uint32_t kept;
	vmid_t child;
	int err = registry_heir(t, vm, &child);

	if (err)
		return err;
	if (!child.v)
		return ipt_vm_reap(t, vm, clean, ctx);
	reap_mend(t);
	for (unsigned z = 0; !err && z < zone_count(t); z++)
		err = pieces(t, vm, child, zone_start(t, z), zone_mark(t, z));
	if (err)
		return err;
	reap_slots(t, vm); /* spare ones */
	err = reap_limbo(t, vm, false, clean, ctx, &kept);
	reap_count(t, vm, kept);
	if (err == -EBUSY && leave) {
		err = leave_pinned(t, vm, child);
		if (!err) /* others may have become unpinned meanwhile */
			err = reap_limbo(t, vm, false, clean, ctx, &kept);
		reap_count(t, vm, err ? kept : 0);
	}
	if (err)
		return err;
	registry_skip(t, vm, child);
	return 0;
}

int ipt_vm_collapse(struct ipt *t, vmid_t vm, ipt_clean_fn *clean, void *ctx)
{
	return collapse(t, vm, clean, ctx, false);
}

int ipt_vm_collapse_pinned(struct ipt *t, vmid_t vm, ipt_clean_fn *clean, void *ctx)
{
	return collapse(t, vm, clean, ctx, true);
}
