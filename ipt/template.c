/*
 * A template's pages going out of memory, and coming back for all who see them.
 *
 * A template has no process that changes its words. So whoever does it holds the registry's lock, as
 * collapsing does, and all is done under it, or undone: what a template owns is all in one of the states at
 * any time that somebody else holds the lock. The header names the template meanwhile: after a death its
 * counts are made anew from its words. It also says which frames stand while words are swapped (index.c), and
 * which go back if the death comes before these are cleaned.
 *
 * Those who looked a frame up before it went may be at it still. They are asked for by `settle`, with the
 * table saying OUT already; then the frame is cleaned and freed.
 */
#include "ipt/template.h"
#include "ipt/chain.h"
#include "ipt/debug.h"
#include "ipt/map.h"
#include "ipt/move.h"
#include "ipt/space.h"
#include "ipt/zone.h"
#include <errno.h>
#include <sched.h>

/* ---- counting anew --------------------------------------------------------------------------- */

void recount_begin(struct ipt *t, vmid_t vm)
{
	store_release32(&t->header->recount, vm.v);
	ipt_step();
}

void recount_end(struct ipt *t)
{
	ipt_step();
	store_release32(&t->header->recount, 0);
}

void undo_begin(struct ipt *t, uint64_t g, uint32_t f, uint32_t n)
{
	struct table_stand *undo = &t->header->undo;

	store_release64(&undo->gfn, g);
	store_relaxed32(&undo->first, f);
	store_release32(&undo->count, n);
	ipt_step();
}

void undo_end(struct ipt *t)
{
	ipt_step();
	store_release32(&t->header->undo.count, 0);
}

/* Frames that left their gfns, and whose bytes are there still. What there is no room for is out, or void. */
static void put_back(struct ipt *t, vmid_t vm)
{
	uint32_t f = load_relaxed32(&t->header->undo.first), was[IPT_CLUSTER_FRAMES];
	uint64_t g = load_relaxed64(&t->header->undo.gfn);
	bool file = load_relaxed8(&t->vms[vm.v].kind) == IPT_FILE;

	for (uint32_t i = 0, n = load_acquire32(&t->header->undo.count), run; i < n; i += run + 1) {
		for (run = 0; i + run < n; run++) {
			if (load_acquire64(&t->words[f + i + run]) != word_limbo(vm.v))
				break;
		}
		if (run && file)
			forward_map(t, vm.v, g + i, f + i, run, IPT_PRIVATE);
		else if (run)
			forward_swap(t, vm.v, g + i, f + i, run, IPT_PRIVATE, 1u << IPT_OUT, was);
	}
	undo_end(t);
}

/* Slots that were claimed and came to nothing. */
static void free_spare(struct ipt *t, vmid_t vm)
{
	unsigned z = t->config.nodes;

	for (uint32_t slot = zone_start(t, z); slot < zone_mark(t, z); slot++) {
		if (load_acquire64(&t->words[slot]) != word_spare(vm.v))
			continue;
		if (space_claimed(t, slot))
			space_release(t, slot);
		zone_free(t, z, vm, slot, 1);
	}
}

static void count_words(struct ipt *t, uint32_t vm, uint32_t *have)
{
	for (unsigned z = 0; z < zone_count(t); z++) {
		for (uint32_t f = zone_start(t, z); f < zone_mark(t, z); f++) {
			uint64_t w = load_acquire64(&t->words[f]);
			enum ipt_state state = word_state(w);

			if (state >= IPT_LIMBO && state < IPT_NSTATES && word_vm(w) == vm)
				have[state]++;
		}
	}
}

void template_mend(struct ipt *t)
{
	vmid_t vm = {load_relaxed32(&t->header->recount)};
	uint32_t have[IPT_NSTATES] = {0};

	if (!vm.v)
		return;
	stripe_mend(t);
	chain_mend(t); /* before it is forgotten what was on its way */
	space_mend(t);
	put_back(t, vm);
	if (t->config.packed_pages || t->config.blocks)
		free_spare(t, vm);
	count_words(t, vm.v, have);
	for (int state = IPT_LIMBO; state < IPT_NSTATES; state++)
		store_relaxed32(vm_frames(&t->vms[vm.v], (enum ipt_state)state),
				have[state] - load_relaxed32(vm_adopted(&t->vms[vm.v],
									(enum ipt_state)state)));
	shared_settled(t);
	recount_end(t);
}

/* ---- going out ------------------------------------------------------------------------------- */

static bool is_template(struct ipt *t, vmid_t vm)
{
	struct vm_slot *s = registry_slot(t, vm, VM_LIVE);

	return s && load_relaxed8(&s->kind) == IPT_TEMPLATE;
}

/* Slots for n pages, in a row. */
static uint32_t take_slots(struct ipt *t, vmid_t vm, uint32_t n)
{
	return zone_alloc_slots(t, vm, n == IPT_CLUSTER_FRAMES ? IPT_CLUSTER_ORDER : 0);
}

static void give_up_slots(struct ipt *t, vmid_t vm, uint32_t slot, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		if (space_claimed(t, slot + i))
			space_release(t, slot + i);
	}
	zone_free(t, t->config.nodes, vm, slot, n);
}

static int claim_all(struct ipt *t, vmid_t vm, uint32_t slot, struct ipt_out *pages, uint32_t n,
		     const struct ipt_out_ops *ops, void *ctx)
{
	int err = 0;

	for (uint32_t i = 0; !err && i < n; i++) {
		err = space_claim(t, vm, slot + i, &pages[i]);
		if (!err && pages[i].bytes)
			err = ops->keep(ctx, i, &pages[i]);
	}
	return err;
}

void template_free(struct ipt *t, vmid_t vm, uint32_t f, uint32_t n)
{
	for (int tries = 0; ipt_free(t, vm, frame(f), n) && tries < 1000; tries++)
		sched_yield();
}

/* The slots take the frames' places, if these are nobody's any more then. */
static int swap_out(struct ipt *t, vmid_t vm, uint64_t g, uint32_t f, uint32_t slot, uint32_t n,
		    const struct ipt_out_ops *ops, void *ctx)
{
	uint32_t was[IPT_CLUSTER_FRAMES];

	undo_begin(t, g, f, n);
	int err = forward_swap(t, vm.v, g, slot, n, IPT_OUT, 1u << IPT_PRIVATE, was);
	if (err) {
		undo_end(t);
		return err;
	}
	slot_count(t, vm, IPT_SPARE, IPT_OUT, n);
	slot_count(t, vm, IPT_PRIVATE, IPT_LIMBO, n);
	err = ops->settle(ctx);
	if (!err && frames_pinned(t, f, n))
		err = -EBUSY;
	undo_end(t);
	if (!err)
		err = ops->clean(ctx, frame(f), n);
	if (!err) {
		template_free(t, vm, f, n);
		return 0;
	}
	/* There was room for it before. */
	forward_swap(t, vm.v, g, f, n, IPT_PRIVATE, 1u << IPT_OUT, was);
	slot_count(t, vm, IPT_OUT, IPT_SPARE, n);
	slot_count(t, vm, IPT_LIMBO, IPT_PRIVATE, n);
	return err;
}

static int out_locked(struct ipt *t, vmid_t vm, uint64_t g, uint32_t f, struct ipt_out *pages,
		      uint32_t n, const struct ipt_out_ops *ops, void *ctx)
{
	if (!is_template(t, vm) || !forward_has_run(t, vm.v, g, f, n))
		return -ESTALE;
	if (frames_pinned(t, f, n))
		return -EBUSY;
	recount_begin(t, vm);
	uint32_t slot = take_slots(t, vm, n);
	int err = slot == NO_SLOT ? -ENOSPC : claim_all(t, vm, slot, pages, n, ops, ctx);
	if (!err)
		err = swap_out(t, vm, g, f, slot, n, ops, ctx);
	if (err && slot != NO_SLOT)
		give_up_slots(t, vm, slot, n);
	recount_end(t);
	return err;
}

int ipt_template_out(struct ipt *t, vmid_t vm, gfn_t first, frame_t f, struct ipt_out *pages,
		     uint32_t n, const struct ipt_out_ops *ops, void *ctx)
{
	if (!map_range_valid(first, n) || (n != 1 && n != IPT_CLUSTER_FRAMES) ||
	    n > map_piece_len(first.v, n) || f.v >= t->frames || n > t->frames - f.v)
		return -EINVAL;
	if (t->kind != IPT_INDEX)
		return -EOPNOTSUPP;
	registry_lock(t);
	int err = out_locked(t, vm, first.v, f.v, pages, n, ops, ctx);
	registry_unlock(t);
	return err;
}

/* ---- coming back ----------------------------------------------------------------------------- */

static int in_locked(struct ipt *t, vmid_t by, vmid_t vm, uint64_t g, uint32_t f, uint32_t n)
{
	uint32_t slots[IPT_CLUSTER_FRAMES];

	if (!is_template(t, vm))
		return -ESTALE;
	for (uint32_t i = 0; i < n; i++) {
		uint32_t slot = forward_find(t, vm.v, g + i);

		if (!slot_is(t, slot) || word_state(load_acquire64(&t->words[slot])) != IPT_OUT)
			return -ESTALE;
	}
	recount_begin(t, vm);
	for (uint32_t i = 0; i < n; i++)
		atomic_fetch_or_explicit(&t->side[f + i], SIDE_MOVED, memory_order_release);
	move_begin(t, by.v, vm.v, f, n, IPT_PRIVATE);
	int err = forward_swap(t, vm.v, g, f, n, IPT_PRIVATE, 1u << IPT_OUT, slots);
	move_end(t);
	if (!err) {
		add_relaxed32(vm_frames(&t->vms[by.v], IPT_LIMBO), -n);
		map_free_slots(t, vm, slots, n);
	}
	recount_end(t);
	return err;
}

int ipt_template_in(struct ipt *t, vmid_t by, vmid_t vm, gfn_t first, frame_t f, uint32_t n)
{
	int err = map_check(t, by, first, f, n);

	if (!err && n > map_piece_len(first.v, n))
		err = -EINVAL;
	if (err)
		return err;
	registry_lock(t);
	err = in_locked(t, by, vm, first.v, f.v, n);
	registry_unlock(t);
	return err;
}
