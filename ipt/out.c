/* Pages that are not in memory: going out, and where they are. Coming back is ipt_map_over. */
#include "ipt/fail.h"
#include "ipt/map.h"
#include "ipt/place.h"
#include "ipt/run.h"
#include "ipt/space.h"
#include "ipt/zone.h"
#include <errno.h>

/* ---- claims ---------------------------------------------------------------------------------- */

void ipt_out_cancel(struct ipt *t, vmid_t vm, const uint32_t *slots, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		if (space_claimed(t, slots[i]))
			space_release(t, slots[i]);
		zone_free(t, t->config.nodes, vm, slots[i], 1);
	}
}

/* Spare slots: a cluster's in a row if there are such. How many there are. */
static uint32_t take_slots(struct ipt *t, vmid_t vm, uint32_t n, uint32_t *slots)
{
	uint32_t first = NO_SLOT, got = 0;

	if (n == IPT_CLUSTER_FRAMES)
		first = zone_alloc_slots(t, vm, IPT_CLUSTER_ORDER);
	if (first != NO_SLOT) {
		for (; got < n; got++)
			slots[got] = first + got;
	}
	while (got < n && (slots[got] = zone_alloc_slots(t, vm, 0)) != NO_SLOT)
		got++;
	return got;
}

static int out_check(struct ipt *t, vmid_t vm, uint32_t n)
{
	struct vm_slot *s;
	int err = registry_changes(t, vm, &s);

	if (!n || n > IPT_CLUSTER_FRAMES)
		return -EINVAL;
	return err || t->kind == IPT_INDEX ? err : -EOPNOTSUPP;
}

int ipt_out_claim(struct ipt *t, vmid_t vm, struct ipt_out *pages, uint32_t n, uint32_t *slots)
{
	int err = out_check(t, vm, n);

	if (!err)
		err = -fail_point(FAIL_IPT_OUT);
	if (err)
		return err;
	uint32_t got = take_slots(t, vm, n, slots);
	if (got < n)
		err = -ENOSPC;
	for (uint32_t i = 0; !err && i < n; i++)
		err = space_claim(t, vm, slots[i], &pages[i]);
	if (err)
		ipt_out_cancel(t, vm, slots, got);
	return err;
}

/* ---- going out ------------------------------------------------------------------------------- */

/* The frames that vm itself has at n gfns. -ENOENT, -EBUSY. */
static int find_frames(struct ipt *t, vmid_t vm, uint64_t g, uint32_t n, uint32_t *frames)
{
	for (uint32_t i = 0; i < n; i++) {
		frames[i] = forward_find(t, vm.v, g + i);
		if (frames[i] >= t->frames)
			return -ENOENT;
		if (frames_pinned(t, frames[i], 1))
			return -EBUSY;
	}
	return 0;
}

/* OUT in the place of n frames, at slots in a row. A pin that was counted before stays where it was, so it is
 * undone. */
static int put_out(struct ipt *t, vmid_t vm, uint64_t g, uint32_t slot, uint32_t n,
		   uint32_t *frames)
{
	uint32_t was[IPT_CLUSTER_FRAMES];
	int err = find_frames(t, vm, g, n, frames);

	if (!err)
		err = forward_swap(t, vm.v, g, slot, n, IPT_OUT, 1u << IPT_PRIVATE, was);
	if (err)
		return err;
	for (uint32_t i = 0; i < n && !err; i++)
		err = frames_pinned(t, frames[i], 1) ? -EBUSY : 0;
	for (uint32_t i = 0; i < n && err; i++) /* there was room for it before */
		forward_swap(t, vm.v, g + i, frames[i], 1, IPT_PRIVATE, 1u << IPT_OUT, was);
	if (!err) {
		slot_count(t, vm, IPT_SPARE, IPT_OUT, n);
		slot_count(t, vm, IPT_PRIVATE, IPT_LIMBO, n);
	}
	return err;
}

/* How many of the n slots follow each other, as a cluster's must, or else one. */
static uint32_t piece_of(const uint32_t *slots, uint32_t n)
{
	for (uint32_t i = 1; i < n; i++) {
		if (slots[i] != slots[0] + i)
			return 1;
	}
	return n;
}

int ipt_out_commit(struct ipt *t, vmid_t vm, gfn_t first, const uint32_t *slots, uint32_t n,
		   uint32_t *done, ipt_run_fn *gone, void *ctx)
{
	struct run run = {.gone = gone, .ctx = ctx};
	int err = out_check(t, vm, n);

	*done = 0;
	if (!map_range_valid(first, n) || n > map_piece_len(first.v, n))
		return -EINVAL;
	for (uint32_t piece; !err && *done < n;) {
		uint32_t frames[IPT_CLUSTER_FRAMES];
		uint64_t g = first.v + *done;

		piece = piece_of(slots + *done, n - *done);
		err = put_out(t, vm, g, slots[*done], piece, frames);
		if (err && piece > 1) /* page by page, as far as it goes */
			err = put_out(t, vm, g, slots[*done], piece = 1, frames);
		for (uint32_t i = 0; !err && i < piece; i++)
			run_add(&run, g + i, frames[i]);
		*done += err ? 0 : piece;
	}
	run_flush(&run);
	return err;
}

/* ---- where ----------------------------------------------------------------------------------- */

int ipt_out_read(struct ipt *t, vmid_t vm, gfn_t g, struct ipt_out *out, vmid_t *at)
{
	for (;;) {
		uint32_t has = place_away(t, vm, g.v);

		if (!has)
			return -ENOENT;
		uint32_t slot = forward_find(t, has, g.v);
		if (!slot_is(t, slot))
			continue; /* changed meanwhile */
		uint64_t w = load_acquire64(&t->words[slot]);
		if (!word_maps(w, has, g.v))
			continue;
		bool shared = word_state(w) == IPT_ALIAS;
		uint32_t told = shared ? slot_target(t, slot) : slot;
		if (!slot_is(t, told) || (!shared && word_state(w) != IPT_OUT))
			continue;
		*out = space_of(t, told);
		/* The link's loads before the second ones of what led there. */
		atomic_thread_fence(memory_order_acquire);
		if (((load_relaxed64(&t->words[slot]) ^ w) & ~WORD_FLAG) ||
		    (shared && slot_target(t, slot) != told))
			continue;
		*at = vmid(shared ? 0 : has);
		return 0;
	}
}
