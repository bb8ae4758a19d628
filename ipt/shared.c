/*
 * A shared page going out of memory, and coming back for all who see it by aliases.
 *
 * Nobody's words change but the frame's: a slot takes its place, says where the bytes are, and gets the chain of
 * its aliases; and back. A shared page is nobody's, so neither is it a VM's that works at it. What belongs to somebody
 * only for a moment, the slot before and the frame after, is the *holder's*: a file without pages, whose counts can be
 * made anew after a death as a template's are (template.c). All is done under the registry's lock.
 *
 * Those who looked the frame up before it went may be at it still, and are asked for by `settle`, as there.
 */
#include "ipt/bad.h"
#include "ipt/chain.h"
#include "ipt/debug.h"
#include "ipt/map.h"
#include "ipt/place.h"
#include "ipt/reap.h"
#include "ipt/space.h"
#include "ipt/template.h"
#include "ipt/zone.h"
#include <errno.h>

/* ---- the holder ------------------------------------------------------------------------------ */

vmid_t ipt_holder(struct ipt *t)
{
	return vmid(load_relaxed32(&t->header->holder));
}

int ipt_holder_add(struct ipt *t, const char *name)
{
	vmid_t id;

	if (ipt_holder(t).v)
		return 0;
	if (t->kind != IPT_INDEX)
		return -EOPNOTSUPP;
	int err = ipt_file_add(t, name, &id);
	if (!err)
		store_relaxed32(&t->header->holder, id.v);
	return err;
}

static void under_way(struct ipt *t, uint32_t from, uint32_t to)
{
	store_relaxed32(&t->header->leaving, from + 1);
	store_relaxed32(&t->header->reached, to + 1);
	ipt_step();
}

void shared_settled(struct ipt *t)
{
	store_relaxed32(&t->header->leaving, 0);
	store_relaxed32(&t->header->reached, 0);
}

int ipt_holder_sweep(struct ipt *t, const struct ipt_out_ops *ops, void *ctx)
{
	uint32_t kept = 0;
	int err = 0;

	registry_lock(t);
	if (ipt_holder(t).v && registry_count(t, ipt_holder(t).v, IPT_LIMBO)) {
		recount_begin(t, ipt_holder(t));
		err = ops->settle(ctx);
		if (!err) {
			err = reap_limbo(t, ipt_holder(t), false, ops->clean, ctx, &kept);
			store_relaxed32(vm_frames(&t->vms[ipt_holder(t).v], IPT_LIMBO), kept);
		}
		recount_end(t);
	}
	registry_unlock(t);
	return err;
}

/* ---- going out ------------------------------------------------------------------------------- */

static uint32_t stamp_of(struct ipt *t, uint32_t f)
{
	return load_acquire32(&t->side[f]) / SIDE_GEN;
}

int ipt_sharer(struct ipt *t, frame_t f, struct ipt_sharer *out)
{
	if (f.v >= t->frames)
		return -EINVAL;
	if (f.v >= zone_mark(t, zone_of(t, f.v)))
		return -ENOENT;
	out->stamp = stamp_of(t, f.v);
	uint64_t w = load_acquire64(&t->words[f.v]);
	uint32_t slot = (uint32_t)word_gfn(w);
	if (word_state(w) != IPT_SHARED || !slot_is(t, slot) || slot >= t->layout.slot_end)
		return -ENOENT;
	w = load_acquire64(&t->words[slot]);
	out->vm = vmid(word_vm(w));
	return word_state(w) == IPT_ALIAS ? 0 : -ENOENT;
}

static bool may_go(struct ipt *t, uint32_t f)
{
	return !frames_pinned(t, f, 1) && (!bad_any(t) || bad_read(t, f) == IPT_GOOD);
}

/* The slot, the holder's spare one, takes the frame's place; the frame becomes the holder's. */
static int leave(struct ipt *t, uint32_t f, uint32_t stamp, uint32_t slot)
{
	int err = 0;

	chain_lock_two(t, f, slot);
	if (!chain_is(t, f) || stamp_of(t, f) != stamp)
		err = -ESTALE;
	else if (!may_go(t, f))
		err = -EBUSY;
	else
		chain_move(t, f, slot, ipt_holder(t));
	chain_unlock_two(t, f, slot);
	if (!err)
		slot_count(t, ipt_holder(t), IPT_SPARE, IPT_LIMBO, 1);
	return err;
}

/* The frame takes the slot's place again, and true; but if nobody sees the page any more the slot is gone. (And
 * SHARED it is none but by us.) */
static bool return_to(struct ipt *t, uint32_t f, uint32_t slot)
{
	chain_lock_two(t, f, slot);
	bool there = chain_is(t, slot);
	if (there)
		chain_move(t, slot, f, ipt_holder(t));
	chain_unlock_two(t, f, slot);
	if (there)
		slot_count(t, ipt_holder(t), IPT_LIMBO, IPT_SPARE, 1);
	return there;
}

static int out_locked(struct ipt *t, uint32_t f, uint32_t stamp, struct ipt_out *page,
		      const struct ipt_out_ops *ops, void *ctx)
{
	vmid_t vm = ipt_holder(t);
	uint32_t slot = zone_alloc_slots(t, vm, 0);
	int err = slot == NO_SLOT ? -ENOSPC : space_claim(t, vm, slot, page);

	if (!err && page->bytes)
		err = ops->keep(ctx, 0, page);
	if (!err) {
		under_way(t, f, slot);
		err = leave(t, f, stamp, slot);
	}
	if (err) {
		if (slot != NO_SLOT)
			ipt_out_cancel(t, vm, &slot, 1);
		return err;
	}
	err = ops->settle(ctx);
	if (!err && !may_go(t, f))
		err = -EBUSY;
	if (!err)
		err = ops->clean(ctx, frame(f), 1);
	if (!err)
		template_free(t, vm, f, 1);
	else if (return_to(t, f, slot))
		ipt_out_cancel(t, vm, &slot, 1);
	return err;
}

int ipt_shared_out(struct ipt *t, frame_t f, uint32_t stamp, struct ipt_out *page,
		   const struct ipt_out_ops *ops, void *ctx)
{
	if (f.v >= t->frames)
		return -EINVAL;
	if (!ipt_holder(t).v)
		return -EOPNOTSUPP;
	registry_lock(t);
	recount_begin(t, ipt_holder(t));
	int err = out_locked(t, f.v, stamp, page, ops, ctx);
	shared_settled(t);
	recount_end(t);
	registry_unlock(t);
	return err;
}

/* ---- coming back ----------------------------------------------------------------------------- */

/* The slot that holds the page which vm sees at g by an alias, its own or an ancestor's; the alias is *alias. */
static uint32_t find(struct ipt *t, vmid_t vm, uint64_t g, uint32_t *alias)
{
	uint32_t has = place_away(t, vm, g), target;

	if (!has)
		return NO_SLOT;
	*alias = forward_find(t, has, g);
	if (!slot_is(t, *alias) || slot_read(t, *alias, has, g, &target) != IPT_ALIAS)
		return NO_SLOT;
	return slot_is(t, target) ? target : NO_SLOT;
}

static int in_locked(struct ipt *t, vmid_t by, uint64_t g, uint32_t f)
{
	uint32_t alias, slot = find(t, by, g, &alias);
	int err = 0;

	if (slot == NO_SLOT)
		return -ESTALE;
	recount_begin(t, ipt_holder(t));
	atomic_fetch_or_explicit(&t->side[f], SIDE_MOVED, memory_order_release);
	under_way(t, slot, f);
	chain_lock_two(t, slot, f);
	/* It is still alias's: so nobody gave the slot away. */
	if (chain_is(t, slot) && slot_target(t, alias) == slot &&
	    word_state(load_acquire64(&t->words[alias])) == IPT_ALIAS)
		chain_move(t, slot, f, ipt_holder(t));
	else
		err = -ESTALE;
	chain_unlock_two(t, slot, f);
	if (!err) {
		add_relaxed32(vm_frames(&t->vms[by.v], IPT_LIMBO), UINT32_MAX); /* minus one */
		add_relaxed32(vm_frames(&t->vms[ipt_holder(t).v], IPT_SPARE), 1);
		ipt_out_cancel(t, ipt_holder(t), &slot, 1);
	}
	shared_settled(t);
	recount_end(t);
	return err;
}

int ipt_shared_in(struct ipt *t, vmid_t by, gfn_t g, frame_t f)
{
	int err = map_check(t, by, g, f, 1);

	if (err)
		return err;
	registry_lock(t);
	err = ipt_holder(t).v ? in_locked(t, by, g.v, f.v) : -EOPNOTSUPP;
	registry_unlock(t);
	return err;
}
