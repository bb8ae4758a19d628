/* Mapping and unmapping. */
#include "ipt/map.h"
#include "ipt/chain.h"
#include "ipt/fail.h"
#include "ipt/run.h"
#include "ipt/space.h"
#include "ipt/zone.h"
#include <errno.h>
#include <stdlib.h>

/* The frames of [f, f + n) are limbo of vm. Reads no word beyond the mark. */
static bool all_limbo(struct ipt *t, uint32_t vm, uint32_t f, uint32_t n)
{
	for (uint32_t i = f; i < f + n; i++) {
		if ((i == f || i % IPT_CLUSTER_FRAMES == 0) && i >= zone_mark(t, zone_of(t, i)))
			return false;
		if (load_acquire64(&t->words[i]) != word_limbo(vm))
			return false;
	}
	return true;
}

int map_check(struct ipt *t, vmid_t vm, gfn_t first, frame_t f, uint32_t count)
{
	struct vm_slot *s;
	int err = registry_changes(t, vm, &s);

	if (!map_range_valid(first, count) || f.v >= t->frames || count > t->frames - f.v)
		return -EINVAL;
	if (err)
		return err;
	return all_limbo(t, vm.v, f.v, count) ? 0 : -EPERM;
}

/* What vm's slot stood for: pages that are out have a claim, tombs have none. These have no memory for links
 * either, and a VM that has nothing out must not populate it. */
static enum ipt_state was(const struct ipt *t, vmid_t vm, uint32_t slot)
{
	return registry_count(t, vm.v, IPT_OUT) && space_claimed(t, slot) ? IPT_OUT : IPT_TOMB;
}

void map_free_slots(struct ipt *t, vmid_t vm, const uint32_t *slots, uint32_t n)
{
	for (uint32_t i = 0, run; i < n; i += run) {
		run = 1;
		if (slots[i] == NO_SLOT)
			continue;
		enum ipt_state state = was(t, vm, slots[i]);
		while (i + run < n && slots[i + run] == slots[i] + run &&
		       was(t, vm, slots[i + run]) == state)
			run++;
		slot_count(t, vm, state, IPT_SPARE, run);
		for (uint32_t k = 0; k < run && state == IPT_OUT; k++)
			space_release(t, slots[i] + k);
		zone_free(t, t->config.nodes, vm, slots[i], run);
	}
}

/* Put things back as they were: frames were mapped at `done` gfns, in the place of these slots. */
static void undo(struct ipt *t, vmid_t vm, uint64_t g, uint32_t done, const uint32_t *slots)
{
	uint32_t frames[IPT_CLUSTER_FRAMES];

	for (uint32_t back = 0, n; back < done; back += n) { /* taking out can't fail */
		n = map_piece_len(g + back, done - back);
		if (!slots) {
			forward_unmap(t, vm.v, g + back, n, frames);
			continue;
		}
		for (uint32_t i = back; i < back + n; i++) {
			if (slots[i] == NO_SLOT)
				forward_unmap(t, vm.v, g + i, 1, frames);
			else /* there was room for it before */
				forward_swap(t, vm.v, g + i, slots[i], 1, was(t, vm, slots[i]),
					     1u << IPT_PRIVATE, frames);
		}
	}
}

int map_frames(struct ipt *t, vmid_t vm, uint64_t g, uint32_t f, uint32_t count, unsigned replaces)
{
	bool over = registry_count(t, vm.v, IPT_TOMB) || registry_count(t, vm.v, IPT_OUT);
	uint32_t few[IPT_CLUSTER_FRAMES];
	uint32_t *slots = !over                        ? NULL
			  : count > IPT_CLUSTER_FRAMES ? malloc(count * sizeof(*slots))
						       : few;
	int err = over && !slots ? -ENOMEM : 0;

	for (uint32_t done = 0, n; !err && done < count; done += n) {
		n = map_piece_len(g + done, count - done);
		if (over)
			err = forward_swap(t, vm.v, g + done, f + done, n, IPT_PRIVATE, replaces,
					   slots + done);
		else
			err = forward_map(t, vm.v, g + done, f + done, n, IPT_PRIVATE);
		if (err)
			undo(t, vm, g, done, slots);
	}
	if (!err) {
		slot_count(t, vm, IPT_LIMBO, IPT_PRIVATE, count);
		if (slots)
			map_free_slots(t, vm, slots, count);
	}
	if (slots != few)
		free(slots);
	return err;
}

int ipt_map(struct ipt *t, vmid_t vm, gfn_t first, frame_t fr, uint32_t count)
{
	int err = map_check(t, vm, first, fr, count);

	if (!err)
		err = -fail_point(FAIL_IPT_MAP);
	return err ? err : map_frames(t, vm, first.v, fr.v, count, 1u << IPT_TOMB);
}

uint32_t map_alias(struct ipt *t, vmid_t vm, uint64_t g)
{
	uint32_t slot, target;

	if (!registry_count(t, vm.v, IPT_ALIAS))
		return NO_SLOT;
	slot = forward_find(t, vm.v, g);
	return slot_is(t, slot) && slot_read(t, slot, vm.v, g, &target) == IPT_ALIAS ? slot
										     : NO_SLOT;
}

int map_replace_alias(struct ipt *t, vmid_t vm, uint64_t g, uint32_t slot, uint32_t with,
		      enum ipt_state state, uint32_t *lost)
{
	uint32_t f = chain_lock_of(t, slot), old;
	bool last = false;
	int err = 0;

	*lost = NO_FRAME;
	if (with == NO_FRAME)
		forward_unmap(t, vm.v, g, 1, &old);
	else
		err = forward_swap(t, vm.v, g, with, 1, state, 1u << IPT_ALIAS, &old);
	if (!err)
		last = chain_remove(t, f, slot, vm);
	chain_unlock(t, f);
	if (err)
		return err;
	slot_count(t, vm, IPT_ALIAS, IPT_SPARE, 1);
	zone_free(t, t->config.nodes, vm, slot, 1);
	if (last && f < t->frames) {
		*lost = f;
		add_relaxed32(vm_frames(&t->vms[vm.v], IPT_LIMBO), 1);
	} else if (last) { /* of a page that is out */
		add_relaxed32(vm_frames(&t->vms[vm.v], IPT_SPARE), 1);
		ipt_out_cancel(t, vm, &f, 1);
	}
	return 0;
}

/* Unmap what is there, but for aliases. */
static void remove_plain(struct ipt *t, vmid_t vm, uint64_t g, unsigned n, uint32_t *frames)
{
	uint32_t slots[IPT_CLUSTER_FRAMES];
	unsigned had = forward_unmap(t, vm.v, g, n, frames), nslots = 0;

	for (unsigned i = 0; i < n; i++) {
		if (slot_is(t, frames[i])) {
			slots[nslots++] = frames[i];
			frames[i] = NO_FRAME;
		}
	}
	slot_count(t, vm, IPT_PRIVATE, IPT_LIMBO, had - nslots);
	map_free_slots(t, vm, slots, nslots);
}

void map_remove(struct ipt *t, vmid_t vm, uint64_t g, unsigned n, uint32_t *frames)
{
	if (!registry_count(t, vm.v, IPT_ALIAS)) {
		remove_plain(t, vm, g, n, frames);
		return;
	}
	for (unsigned i = 0; i < n; i++) {
		uint32_t slot = map_alias(t, vm, g + i);

		if (slot == NO_SLOT)
			remove_plain(t, vm, g + i, 1, &frames[i]);
		else
			map_replace_alias(t, vm, g + i, slot, NO_FRAME, IPT_FREE, &frames[i]);
	}
}

int ipt_unmap(struct ipt *t, vmid_t vm, gfn_t first, uint32_t count, ipt_run_fn *gone, void *ctx)
{
	struct vm_slot *s = registry_slot(t, vm, VM_NONE);
	uint32_t frames[IPT_CLUSTER_FRAMES];
	struct run run = {.gone = gone, .ctx = ctx};

	if (!map_range_valid(first, count))
		return -EINVAL;
	if (!s)
		return -ENOENT;
	if (load_relaxed8(&s->kind) != IPT_VM)
		return -EPERM;
	/* A range may be far larger than what is mapped in it: done when the VM has nothing left. */
	for (uint64_t g = first.v, end = g + count; g < end && registry_has_own(t, vm.v);) {
		unsigned n = map_piece_len(g, end - g);

		map_remove(t, vm, g, n, frames);
		for (unsigned i = 0; i < n; i++)
			run_add(&run, g + i, frames[i]);
		g += n;
	}
	run_flush(&run);
	return 0;
}
