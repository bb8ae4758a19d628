/* The frame allocator. See zone.h. */
#include "ipt/zone.h"
#include "ipt/bad.h"
#include "ipt/buddy.h"
#include "ipt/debug.h"
#include "ipt/fail.h"
#include "ipt/registry.h"
#include <assert.h>
#include <errno.h>

/* Frames that are asked for one by one: room for so many is sought where a run begins. */
#define ZONE_RUN_ORDER 3
/* How far beyond the mark a goal may lie: everything up to it leaves the wilderness, and each 2 MiB
 * block that does so populates a page of the array. */
#define ZONE_GOAL_REACH (UINT32_C(256) << IPT_MAX_ORDER)

uint32_t zone_start(const struct ipt *t, unsigned z)
{
	uint64_t start = (uint64_t)t->layout.zone_frames * z;

	if (z == t->config.nodes)
		return t->layout.slot_first;
	return start < t->frames ? (uint32_t)start : t->frames;
}

uint32_t zone_end(const struct ipt *t, unsigned z)
{
	if (z == t->config.nodes)
		return t->layout.slot_end;
	return z + 1 == t->config.nodes ? t->frames : zone_start(t, z + 1);
}

unsigned zone_of(const struct ipt *t, uint32_t f)
{
	if (f >= t->frames)
		return t->config.nodes;
	unsigned z = t->config.nodes == 1 ? 0 : f / t->layout.zone_frames;

	return z < t->config.nodes ? z : t->config.nodes - 1;
}

uint32_t zone_mark(const struct ipt *t, unsigned z)
{
	return load_acquire32(&t->zones[z].mark);
}

void zone_init(struct ipt *t, unsigned z)
{
	store_relaxed32(&t->zones[z].mark, zone_start(t, z));
	store_relaxed32(&t->zones[z].free, zone_end(t, z) - zone_start(t, z));
}

void zone_lock(struct ipt *t, unsigned z)
{
	if (lock_take(&t->zones[z].lock, LOCK_ZONE)) {
		buddy_rebuild(t, z);
		lock_mended(&t->zones[z].lock);
	}
}

void zone_unlock(struct ipt *t, unsigned z)
{
	lock_drop(&t->zones[z].lock, LOCK_ZONE);
}

/* ---- allocation ------------------------------------------------------------------------------ */

/* Exactly the block at the goal, if it is free and near enough. */
static uint32_t take_goal(struct ipt *t, unsigned zi, uint32_t goal, unsigned order)
{
	struct zone *z = &t->zones[zi];
	uint32_t target = goal & ~((1u << order) - 1), mark = load_relaxed32(&z->mark);

	if (target < zone_start(t, zi) || zone_end(t, zi) - target < 1u << order)
		return BUDDY_NONE;
	if (target >= mark && target - mark > ZONE_GOAL_REACH)
		return BUDDY_NONE;
	while (load_relaxed32(&z->mark) <= target)
		buddy_carve(t, zi);
	uint32_t head = buddy_holding(t, zi, target);
	if (head == BUDDY_NONE || word_order(load_relaxed64(&t->words[head])) < order)
		return BUDDY_NONE;
	buddy_take(t, z, head, target, order);
	return target;
}

/* A block of that order whose low bits are those of `like`, out of a free block of order k. */
static uint32_t take_like(struct ipt *t, struct zone *z, unsigned k, uint32_t like, unsigned order)
{
	unsigned colours = t->config.colours;
	unsigned colour = like & (colours - 1) & ~((1u << k) - 1);
	uint32_t lists = load_relaxed32(&z->lists[k]);

	if (!(lists & 1u << colour))
		return BUDDY_NONE;
	uint32_t head = z->first[k][colour] - 1;
	uint32_t target = head + (like & ((1u << k) - 1) & ~((1u << order) - 1));
	buddy_take(t, z, head, target, order);
	return target;
}

/* Any block of that order from the smallest free block that has one. */
static uint32_t take_any(struct ipt *t, struct zone *z, unsigned order)
{
	for (unsigned k = order; k <= IPT_MAX_ORDER; k++) {
		uint32_t lists = load_relaxed32(&z->lists[k]);

		if (!lists)
			continue;
		uint32_t head = z->first[k][__builtin_ctz(lists)] - 1;
		buddy_take(t, z, head, head, order);
		return head;
	}
	return BUDDY_NONE;
}

/*
 * With a goal that could not be had, a run begins anew, at the goal's offset in a free block, so that frame and gfn stay
 * congruent. Clusters and more come out of the largest block, so that the next goals of the same run find their frames
 * free. Single frames, which clones copy here and there, come out of the smallest one with room for a short run: each
 * in a block of 2 MiB of its own would break them all up, and populate the array for it.
 */
static uint32_t take_anew(struct ipt *t, unsigned zi, unsigned order, uint32_t goal)
{
	struct zone *z = &t->zones[zi];
	uint32_t f;

	for (unsigned k = ZONE_RUN_ORDER; order < IPT_CLUSTER_ORDER && k < IPT_MAX_ORDER; k++) {
		f = k < order ? BUDDY_NONE : take_like(t, z, k, goal, order);
		if (f != BUDDY_NONE)
			return f;
	}
	if (!load_relaxed32(&z->lists[IPT_MAX_ORDER]))
		buddy_replenish(t, zi, IPT_MAX_ORDER);
	for (unsigned k = IPT_MAX_ORDER; k + 1 > order; k--) {
		f = take_like(t, z, k, goal, order);
		if (f != BUDDY_NONE)
			return f;
	}
	return BUDDY_NONE;
}

/* The goal, or a run's beginning; else the smallest block that will do, of the wanted colour if any. */
static uint32_t zone_take(struct ipt *t, unsigned zi, unsigned order, const struct ipt_hint *hint)
{
	struct zone *z = &t->zones[zi];
	uint32_t f;

	if (hint && frame_valid(hint->goal)) {
		if (hint->goal.v < t->frames && zone_of(t, hint->goal.v) == zi) {
			f = take_goal(t, zi, hint->goal.v, order);
			if (f != BUDDY_NONE)
				return f;
		}
		f = take_anew(t, zi, order, hint->goal.v);
		if (f != BUDDY_NONE)
			return f;
	} else if (hint && t->config.colours > 1) {
		do {
			for (unsigned k = order; k <= IPT_MAX_ORDER; k++) {
				f = take_like(t, z, k, hint->colour, order);
				if (f != BUDDY_NONE)
					return f;
			}
		} while (buddy_replenish(t, zi, IPT_MAX_ORDER));
	}
	f = take_any(t, z, order);
	if (f == BUDDY_NONE && buddy_replenish(t, zi, order))
		f = take_any(t, z, order);
	return f;
}

static uint32_t zone_alloc(struct ipt *t, unsigned zi, struct vm_slot *s, vmid_t vm, unsigned order,
			   const struct ipt_hint *hint)
{
	bool slots = zi == t->config.nodes;
	struct zone *z = &t->zones[zi];

	if (load_relaxed32(&z->free) < 1u << order)
		return BUDDY_NONE;
	zone_lock(t, zi);
	uint32_t f = zone_take(t, zi, order, hint);
	if (f != BUDDY_NONE) {
		for (uint32_t i = 0; i < 1u << order; i++) {
			store_release64(&t->words[f + i],
					slots ? word_spare(vm.v) : word_limbo(vm.v));
			ipt_step();
		}
		add_relaxed32(&z->free, -(1u << order));
		add_relaxed32(vm_frames(s, slots ? IPT_SPARE : IPT_LIMBO), 1u << order);
	}
	zone_unlock(t, zi);
	return f;
}

uint32_t zone_alloc_slots(struct ipt *t, vmid_t vm, unsigned order)
{
	return zone_alloc(t, t->config.nodes, &t->vms[vm.v], vm, order, NULL);
}

int ipt_alloc(struct ipt *t, vmid_t vm, unsigned order, const struct ipt_hint *hint, frame_t *out)
{
	unsigned nodes = t->config.nodes, from = 0;
	struct vm_slot *s;
	int err = registry_changes(t, vm, &s);

	if (order > IPT_MAX_ORDER)
		return -EINVAL;
	if (!err)
		err = -fail_point(FAIL_IPT_ALLOC);
	if (err)
		return err;
	if (hint && frame_valid(hint->goal) && hint->goal.v < t->frames)
		from = zone_of(t, hint->goal.v);
	else if (hint)
		from = hint->node % nodes;
	for (unsigned i = 0; i < nodes; i++) {
		uint32_t f = zone_alloc(t, (from + i) % nodes, s, vm, order, hint);

		if (f != BUDDY_NONE) {
			*out = frame(f);
			return 0;
		}
	}
	*out = INVALID_FRAME;
	return -ENOMEM;
}

/*
 * Take the pins' door off a limbo frame that is about to be freed: whoever looked it up before now
 * fails to pin it, because the generation is part of what he compares. -EBUSY if it is pinned.
 */
static int side_close(struct ipt *t, uint32_t f)
{
	uint32_t s = load_relaxed32(&t->side[f]);

	do {
		if (s & SIDE_PINS && !bad_holds(t, f, s))
			return -EBUSY;
	} while (!atomic_compare_exchange_weak_explicit(
		&t->side[f], &s, (s & ~(SIDE_AGE | SIDE_MOVED | SIDE_PINS)) + SIDE_GEN,
		memory_order_acq_rel, memory_order_relaxed));
	return 0;
}

/* Put those of [f, end), whose words are 0 or RETIRED, that are 0 on the lists. How many aren't. */
static uint32_t free_good(struct ipt *t, unsigned zi, uint32_t f, uint32_t end)
{
	uint32_t retired = 0;

	while (f < end) {
		uint32_t from = f;

		while (f < end && load_relaxed64(&t->words[f]) != WORD_RETIRED)
			f++;
		buddy_free(t, zi, from, f);
		retired += f < end;
		f += f < end;
	}
	return retired;
}

void zone_free(struct ipt *t, unsigned zi, vmid_t vm, uint32_t f, uint32_t n)
{
	bool slots = zi == t->config.nodes;
	uint64_t owned = slots ? word_spare(vm.v) : word_limbo(vm.v);

	zone_lock(t, zi);
	bool any_bad = !slots && bad_any(t);
	for (uint32_t i = f; i < f + n; i++) {
		assert(load_relaxed64(&t->words[i]) == owned && "freed by two at once");
		(void)owned;
		bool bad = any_bad && bad_read(t, i) != IPT_GOOD;
		store_release64(&t->words[i], bad ? WORD_RETIRED : 0);
		ipt_step();
	}
	uint32_t retired = any_bad ? free_good(t, zi, f, f + n) : 0;
	if (!any_bad)
		buddy_free(t, zi, f, f + n);
	add_relaxed32(&t->zones[zi].free, n - retired);
	ipt_step();
	add_relaxed32(vm_frames(&t->vms[vm.v], slots ? IPT_SPARE : IPT_LIMBO), -n);
	zone_unlock(t, zi);
}

int ipt_free(struct ipt *t, vmid_t vm, frame_t first, uint32_t count)
{
	struct vm_slot *s = registry_slot(t, vm, VM_NONE);
	uint64_t limbo = word_limbo(vm.v);

	if (!s)
		return -ENOENT;
	if (count == 0 || first.v >= t->frames || count > t->frames - first.v)
		return -EINVAL;
	for (uint32_t f = first.v; f < first.v + count; f++) {
		if (f >= zone_mark(t, zone_of(t, f)) || load_acquire64(&t->words[f]) != limbo)
			return -EPERM;
	}
	for (uint32_t f = first.v; f < first.v + count; f++) {
		int err = side_close(t, f);

		if (err)
			return err;
		ipt_step();
	}
	for (uint32_t f = first.v, stop = f + count; f < stop;) {
		unsigned zi = zone_of(t, f);
		uint32_t end = zone_end(t, zi) < stop ? zone_end(t, zi) : stop;

		zone_free(t, zi, vm, f, end - f);
		f = end;
	}
	return 0;
}

int ipt_retire_free(struct ipt *t, frame_t fr)
{
	uint32_t f = fr.v;

	if (f >= t->frames)
		return -EINVAL;
	unsigned zi = zone_of(t, f);
	struct zone *z = &t->zones[zi];
	zone_lock(t, zi);
	uint32_t mark = load_relaxed32(&z->mark);
	int err = f >= mark && f - mark > ZONE_GOAL_REACH ? -ERANGE : 0;
	if (!err && take_goal(t, zi, f, 0) == BUDDY_NONE)
		err = -ESTALE;
	if (!err) {
		bad_mark(t, f, IPT_LOST);
		ipt_step();
		store_release64(&t->words[f], WORD_RETIRED);
		ipt_step();
		add_relaxed32(&z->free, UINT32_MAX); /* minus one */
	}
	zone_unlock(t, zi);
	return err;
}

uint32_t ipt_free_frames(struct ipt *t)
{
	uint32_t sum = 0;

	for (unsigned z = 0; z < t->config.nodes; z++)
		sum += load_relaxed32(&t->zones[z].free);
	return sum;
}

frame_t ipt_next_used(struct ipt *t, frame_t f)
{
	for (; f.v < t->frames; f.v = zone_start(t, zone_of(t, f.v) + 1))
		if (f.v < zone_mark(t, zone_of(t, f.v)))
			return f;
	return INVALID_FRAME;
}

int ipt_largest_order(struct ipt *t)
{
	for (int order = IPT_MAX_ORDER; order >= 0; order--) {
		for (unsigned z = 0; z < t->config.nodes; z++) {
			if (load_relaxed32(&t->zones[z].lists[order]) ||
			    buddy_could_carve(t, z, (unsigned)order))
				return order;
		}
	}
	return -1;
}
