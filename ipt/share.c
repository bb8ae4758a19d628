/*
 * Sharing outside the lineage: frames that belong to no VM and whose viewers have aliases, and gfns
 * that are void although an ancestor has something there.
 */
#include "ipt/chain.h"
#include "ipt/fail.h"
#include "ipt/map.h"
#include "ipt/place.h"
#include "ipt/region.h"
#include "ipt/run.h"
#include "ipt/zone.h"
#include <errno.h>

/* ---- aliases instead of frames --------------------------------------------------------------- */

/*
 * Put an alias of f, whose chain is locked, in the place of vm's own frame `old` at g. That is limbo
 * for a moment, as seen by the array: if it is f itself, chain_push makes it SHARED at once. A pin
 * that was counted before then stays where it was, so it is undone.
 */
static int alias_in_place(struct ipt *t, vmid_t vm, uint64_t g, uint32_t old, uint32_t f,
			  uint32_t slot)
{
	uint32_t was;

	store_release32(&slot_link(t, slot)->target, f);
	int err = forward_swap(t, vm.v, g, slot, 1, IPT_ALIAS, 1u << IPT_PRIVATE, &was);
	if (err)
		return err;
	if (frames_pinned(t, old, 1)) {
		/* There was room for it before. */
		forward_swap(t, vm.v, g, old, 1, IPT_PRIVATE, 1u << IPT_ALIAS, &was);
		return -EBUSY;
	}
	chain_push(t, f, slot);
	return 0;
}

/* vm's own frame `old` at g gives way to an alias of f, which is `old` itself or a SHARED one. */
static int give_up(struct ipt *t, vmid_t vm, uint64_t g, uint32_t old, uint32_t f)
{
	if (frames_pinned(t, old, 1))
		return -EBUSY;
	uint32_t slot = zone_alloc_slots(t, vm, 0);
	if (slot == NO_SLOT)
		return -ENOSPC;
	chain_lock(t, f);
	int err = f == old || chain_is(t, f) ? 0 : -ESTALE;
	if (!err)
		err = alias_in_place(t, vm, g, old, f, slot);
	chain_unlock(t, f);
	if (err) {
		zone_free(t, t->config.nodes, vm, slot, 1);
		return err;
	}
	slot_count(t, vm, IPT_SPARE, IPT_ALIAS, 1);
	add_relaxed32(vm_frames(&t->vms[vm.v], IPT_PRIVATE), UINT32_MAX); /* minus one */
	if (f != old)
		add_relaxed32(vm_frames(&t->vms[vm.v], IPT_LIMBO), 1);
	return 0;
}

static int share_check(struct ipt *t, vmid_t vm, gfn_t first, uint32_t count)
{
	struct vm_slot *s;
	int err = registry_changes(t, vm, &s);

	if (!map_range_valid(first, count))
		return -EINVAL;
	return err || t->kind == IPT_INDEX ? err : -EOPNOTSUPP;
}

int ipt_publish(struct ipt *t, vmid_t vm, gfn_t first, uint32_t count, uint32_t *done)
{
	int err = share_check(t, vm, first, count);

	for (*done = 0; !err && *done < count; *done += !err) {
		uint32_t f = forward_find(t, vm.v, first.v + *done);

		err = f < t->frames ? give_up(t, vm, first.v + *done, f, f) : -ENOENT;
	}
	return err;
}

int ipt_merge(struct ipt *t, vmid_t vm, gfn_t first, frame_t fr, uint32_t count, uint32_t *done,
	      ipt_run_fn *gone, void *ctx)
{
	struct run run = {.gone = gone, .ctx = ctx};
	int err = share_check(t, vm, first, count);

	*done = 0;
	if (fr.v >= t->frames || count > t->frames - fr.v)
		return -EINVAL;
	for (; !err && *done < count; *done += !err) {
		uint64_t g = first.v + *done;
		uint32_t f = fr.v + *done, old = forward_find(t, vm.v, g);

		if (old >= t->frames)
			err = -ENOENT;
		else if (f >= zone_mark(t, zone_of(t, f)) || f == old)
			err = -ESTALE;
		else
			err = give_up(t, vm, g, old, f);
		if (!err)
			run_add(&run, g, old);
	}
	run_flush(&run);
	return err;
}

/* ---- frames instead of aliases --------------------------------------------------------------- */

/* How many of n gfns from g on have no alias of vm's. */
static uint32_t before_alias(struct ipt *t, vmid_t vm, uint64_t g, uint32_t n)
{
	uint32_t i = 0;

	while (i < n && map_alias(t, vm, g + i) == NO_SLOT)
		i++;
	return i;
}

static bool has_frames(struct ipt *t, vmid_t vm, uint64_t g, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		if (forward_find(t, vm.v, g + i) < t->frames)
			return true;
	}
	return false;
}

int ipt_map_over(struct ipt *t, vmid_t vm, gfn_t first, frame_t fr, uint32_t count,
		 ipt_run_fn *gone, void *ctx)
{
	struct run run = {.gone = gone, .ctx = ctx};
	int err = map_check(t, vm, first, fr, count);

	if (!err)
		err = -fail_point(FAIL_IPT_MAP);
	if (err)
		return err;
	const unsigned replaces = 1u << IPT_TOMB | 1u << IPT_OUT;
	if (!registry_count(t, vm.v, IPT_ALIAS))
		return map_frames(t, vm, first.v, fr.v, count, replaces);
	if (has_frames(t, vm, first.v, count))
		return -EEXIST;
	for (uint32_t done = 0; !err && done < count;) {
		uint64_t g = first.v + done;
		uint32_t n = before_alias(t, vm, g, count - done), lost;

		if (n) {
			err = map_frames(t, vm, g, fr.v + done, n, replaces);
		} else {
			n = 1;
			err = map_replace_alias(t, vm, g, map_alias(t, vm, g), fr.v + done,
						IPT_PRIVATE, &lost);
			if (!err) {
				slot_count(t, vm, IPT_LIMBO, IPT_PRIVATE, 1);
				run_add(&run, g, lost);
			}
		}
		done += n;
	}
	run_flush(&run);
	return err;
}

/* ---- nothing instead of anything ------------------------------------------------------------- */

/* Tombs at n gfns from g on, in one group, in the place of what stands there, which is no alias. frames[i]
 * is the frame that it was, or NO_FRAME: a page that was out is gone. */
static int entomb(struct ipt *t, vmid_t vm, uint64_t g, unsigned n, uint32_t *frames)
{
	unsigned order = n == IPT_CLUSTER_FRAMES ? IPT_CLUSTER_ORDER : 0;
	uint32_t slot = zone_alloc_slots(t, vm, order);

	if (slot == NO_SLOT)
		return -ENOSPC;
	int err = forward_swap(t, vm.v, g, slot, n, IPT_TOMB, 1u << IPT_PRIVATE | 1u << IPT_OUT,
			       frames);
	if (err) {
		zone_free(t, t->config.nodes, vm, slot, n);
		return err;
	}
	slot_count(t, vm, IPT_SPARE, IPT_TOMB, n);
	for (unsigned i = 0; i < n; i++) {
		if (slot_is(t, frames[i])) {
			map_free_slots(t, vm, &frames[i], 1);
			frames[i] = NO_FRAME;
		} else if (frames[i] != NO_FRAME) {
			slot_count(t, vm, IPT_PRIVATE, IPT_LIMBO, 1);
		}
	}
	return 0;
}

static int entomb_alias(struct ipt *t, vmid_t vm, uint64_t g, uint32_t slot, uint32_t *lost)
{
	uint32_t tomb = zone_alloc_slots(t, vm, 0);

	if (tomb == NO_SLOT)
		return -ENOSPC;
	int err = map_replace_alias(t, vm, g, slot, tomb, IPT_TOMB, lost);
	if (err)
		zone_free(t, t->config.nodes, vm, tomb, 1);
	else
		slot_count(t, vm, IPT_SPARE, IPT_TOMB, 1);
	return err;
}

/* Make g void. *lost is the frame that vm gave up there, or NO_FRAME. */
static int drop_one(struct ipt *t, vmid_t vm, uint64_t g, uint32_t *lost)
{
	uint32_t own = forward_find(t, vm.v, g), alias = map_alias(t, vm, g);

	*lost = NO_FRAME;
	if (slot_is(t, own) && word_state(load_acquire64(&t->words[own])) == IPT_TOMB)
		return 0;
	if (!place_beneath(t, vm, g)) {
		if (own != NO_FRAME)
			map_remove(t, vm, g, 1, lost);
		return 0;
	}
	if (t->kind != IPT_INDEX)
		return -EOPNOTSUPP;
	return alias == NO_SLOT ? entomb(t, vm, g, 1, lost) : entomb_alias(t, vm, g, alias, lost);
}

/* Are all gfns of a group to be tombs, and none of them alias or tomb now? */
static bool drops_whole(struct ipt *t, vmid_t vm, uint64_t g, unsigned n)
{
	if (n != IPT_CLUSTER_FRAMES || t->kind != IPT_INDEX)
		return false;
	for (unsigned i = 0; i < n; i++) {
		if (!place_beneath(t, vm, g + i) || slot_is(t, forward_find(t, vm.v, g + i)))
			return false;
	}
	return true;
}

static int drop_piece(struct ipt *t, vmid_t vm, uint64_t g, unsigned n, uint32_t *done,
		      struct run *run)
{
	uint32_t frames[IPT_CLUSTER_FRAMES];
	bool whole = true;
	int err = 0;

	if (!registry_parent(t, vm.v) && !region_count(t, vm.v))
		map_remove(t, vm, g, n, frames);
	else
		whole = drops_whole(t, vm, g, n) && !entomb(t, vm, g, n, frames);

	for (unsigned i = 0; i < n && !err; i++) {
		if (!whole)
			err = drop_one(t, vm, g + i, &frames[i]);
		if (!err) {
			run_add(run, g + i, frames[i]);
			*done += 1;
		}
	}
	return err;
}

int ipt_drop(struct ipt *t, vmid_t vm, gfn_t first, uint32_t count, uint32_t *done,
	     ipt_run_fn *gone, void *ctx)
{
	struct run run = {.gone = gone, .ctx = ctx};
	struct vm_slot *s;
	int err = registry_changes(t, vm, &s);

	*done = 0;
	if (!map_range_valid(first, count))
		return -EINVAL;
	while (!err && *done < count) {
		uint64_t g = first.v + *done;

		err = drop_piece(t, vm, g, map_piece_len(g, count - *done), done, &run);
	}
	run_flush(&run);
	return err;
}
