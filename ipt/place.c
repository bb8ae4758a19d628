/* Looking up: what a gfn is, for a VM and its lineage; who owns a frame. */
#include "ipt/place.h"
#include "ipt/forward.h"
#include "ipt/region.h"
#include "ipt/registry.h"
#include "ipt/slot.h"
#include "ipt/zone.h"
#include <errno.h>
#include <sched.h>

#define PLACE_SPINS 200

/* What stands at a gfn: nothing, a frame, an alias of one, or a page that is out. */
struct standing {
	enum ipt_place_kind kind;
	bool region; /* a region decides */
	bool shared; /* of a page that is out: it is nobody's, and others see it, too */
	uint32_t at; /* the VM of the lineage that decides, be it by a tomb; 0 for none */
	uint32_t f;
};

static const struct standing nothing = {IPT_VOID, false, false, 0, NO_FRAME};

/* What VM `at` itself has: FREE if nothing, else PRIVATE, ALIAS, TOMB or OUT, and the frame in *f (NO_FRAME
 * for the latter two). An alias of what is out is OUT, too, and *shared. */
static enum ipt_state find_own(struct ipt *t, uint32_t at, uint64_t g, uint32_t *f, bool *shared)
{
	*shared = false;
	for (;;) {
		uint32_t target, n = forward_find(t, at, g);

		*f = n;
		if (!slot_is(t, n))
			return n == NO_FRAME ? IPT_FREE : IPT_PRIVATE;
		enum ipt_state state = slot_read(t, n, at, g, &target);
		if (state == IPT_FREE)
			continue; /* changed meanwhile */
		*shared = state == IPT_ALIAS && slot_is(t, target);
		*f = state == IPT_ALIAS && !*shared ? target : NO_FRAME;
		return *shared ? IPT_OUT : state;
	}
}

/* What that is to a VM: its own, or its ancestor's. */
static enum ipt_place_kind kind_of(enum ipt_state state, bool own)
{
	if (state == IPT_TOMB)
		return IPT_VOID;
	if (state == IPT_OUT)
		return IPT_AWAY;
	if (!own)
		return IPT_INHERITED;
	return state == IPT_ALIAS ? IPT_MERGED : IPT_OWN;
}

/* What a page of a file is. */
static struct standing file_page(struct ipt *t, uint32_t at, uint32_t file, uint64_t page)
{
	uint32_t f = registry_has_own(t, file) ? forward_find(t, file, page) : NO_FRAME;

	/* A radix table's entry comes before the word; here he who makes it is another VM, which may die. */
	if (f != NO_FRAME && t->kind == IPT_RADIX &&
	    !word_maps(load_acquire64(&t->words[f]), file, page))
		f = NO_FRAME;
	return (struct standing){f == NO_FRAME ? IPT_VOID : IPT_FILE_PAGE, true, false, at, f};
}

/*
 * The lineage: what a VM doesn't have itself it has from its nearest ancestor that does, or that has a
 * region there. Right only if no lineage changed meanwhile. `missed`: vm's own entries are known to
 * have nothing.
 */
static struct standing walk(struct ipt *t, uint32_t vm, uint64_t g, bool missed)
{
	for (uint32_t at = vm; at; at = registry_parent(t, at)) {
		uint64_t page;
		uint32_t f;
		enum ipt_state state = IPT_FREE;
		bool shared;

		if (!(missed && at == vm) && registry_has_own(t, at))
			state = find_own(t, at, g, &f, &shared);
		if (state != IPT_FREE)
			return (struct standing){kind_of(state, at == vm), false, shared, at, f};
		if (region_count(t, at)) {
			uint32_t file = region_find(t, at, g, &page);

			if (file)
				return file_page(t, at, file, page);
		}
	}
	return nothing;
}

/*
 * Something that depends on a lineage, tried until that didn't change meanwhile; at last with the registry
 * locked, which waits for a change that takes long and finishes one whose maker died.
 *     for (struct attempt a = {0}; attempt_next(t, &a); a.own = ...)
 * goes on until attempt_next says that the last attempt counts: also if `own` is set, as what a VM has
 * itself never moves.
 */
struct attempt {
	uint32_t seq;
	unsigned tries;
	bool locked, own;
};

static bool attempt_next(struct ipt *t, struct attempt *a)
{
	if (a->locked)
		registry_unlock(t);
	if (a->locked || (a->tries && (a->own || lineage_still(t, a->seq))))
		return false;
	if (a->tries)
		sched_yield();
	a->locked = a->tries++ == PLACE_SPINS;
	if (a->locked)
		registry_lock(t);
	a->seq = lineage_read(t);
	return true;
}

static uint32_t find(struct ipt *t, uint32_t vm, uint64_t g)
{
	struct standing s = nothing;

	for (struct attempt a = {0}; attempt_next(t, &a); a.own = s.at == vm && !s.region)
		s = walk(t, vm, g, false);
	return s.f;
}

bool place_beneath(struct ipt *t, vmid_t vm, uint64_t g)
{
	struct standing s = nothing;

	for (struct attempt a = {0}; attempt_next(t, &a);)
		s = walk(t, vm.v, g, true);
	return s.kind != IPT_VOID || s.region;
}

uint32_t place_away(struct ipt *t, vmid_t vm, uint64_t g)
{
	struct standing s = nothing;

	if (!forward_key_valid(t, vm.v, g))
		return 0;
	for (struct attempt a = {0}; attempt_next(t, &a); a.own = s.at == vm.v && !s.region)
		s = walk(t, vm.v, g, false);
	return s.kind == IPT_AWAY ? s.at : 0;
}

frame_t ipt_lookup(struct ipt *t, vmid_t vm, gfn_t g)
{
	uint32_t seq = lineage_read(t);

	if (!forward_key_valid(t, vm.v, g.v))
		return INVALID_FRAME;
	uint32_t f = forward_find(t, vm.v, g.v);
	if (f < t->frames)
		return frame(f);
	if (f == NO_FRAME) {
		f = walk(t, vm.v, g.v, true).f;
		if (lineage_still(t, seq))
			return frame(f);
	}
	return frame(find(t, vm.v, g.v));
}

void ipt_lookup_batch(struct ipt *t, const struct ipt_key *keys, frame_t *out, unsigned n)
{
	if (t->kind == IPT_INDEX)
		index_find_batch(t, keys, out, n);
	else
		radix_find_batch(t, keys, out, n);
	for (unsigned i = 0; i < n; i++) {
		if (out[i].v >= t->frames)
			out[i] = ipt_lookup(t, keys[i].vm, keys[i].gfn);
	}
}

/* Does a VM below `at` in vm's lineage decide what is at g? */
static bool overridden(struct ipt *t, uint32_t vm, uint32_t at, uint64_t g)
{
	for (; vm && vm != at; vm = registry_parent(t, vm)) {
		if ((registry_has_own(t, vm) && forward_find(t, vm, g) != NO_FRAME) ||
		    (region_count(t, vm) && region_covers(t, vm, g)))
			return true;
	}
	return false;
}

/* Does g have, as the next frame's word says, what VM `at` has there at frame f? Then there is no need
 * to look it up, but for what overrides it. */
static bool word_says(struct ipt *t, uint32_t vm, uint32_t at, uint64_t g, uint32_t f)
{
	return f < t->frames && f < zone_mark(t, zone_of(t, f)) &&
	       word_maps(load_acquire64(&t->words[f]), at, g) && !overridden(t, vm, at, g);
}

/* Does the run that began with s go on n gfns further, at g? */
static bool goes_on(struct ipt *t, uint32_t vm, const struct standing *s, uint64_t g, uint32_t n)
{
	if ((s->kind == IPT_OWN || s->kind == IPT_INHERITED) &&
	    word_says(t, vm, s->at, g, s->f + n))
		return true;
	struct standing next = walk(t, vm, g, false);
	if (next.kind != s->kind)
		return false;
	if (s->kind == IPT_AWAY)
		return next.shared == s->shared && (s->shared || next.at == s->at);
	return s->kind == IPT_VOID || (next.at == s->at && next.f == s->f + n);
}

static uint32_t place(struct ipt *t, uint32_t vm, uint64_t g, uint32_t max, struct ipt_place *out)
{
	struct standing s = walk(t, vm, g, false);
	uint32_t n = 1;

	*out = (struct ipt_place){s.kind, vmid(s.kind == IPT_VOID || s.shared ? 0 : s.at),
				  frame(s.f)};
	while (n < max && g + n < IPT_MAX_GFN && goes_on(t, vm, &s, g + n, n))
		n++;
	return n;
}

uint32_t ipt_place(struct ipt *t, vmid_t vm, gfn_t first, uint32_t max, struct ipt_place *out)
{
	uint32_t n = 0;

	*out = (struct ipt_place){IPT_VOID, INVALID_VMID, INVALID_FRAME};
	if (!max || !forward_key_valid(t, vm.v, first.v))
		return 0;
	for (struct attempt a = {0}; attempt_next(t, &a);
	     a.own = out->at.v == vm.v && out->kind != IPT_FILE_PAGE)
		n = place(t, vm.v, first.v, max, out);
	return n;
}

uint32_t ipt_lookup_run(struct ipt *t, vmid_t vm, gfn_t first, uint32_t max, frame_t *out)
{
	struct ipt_place p;
	uint32_t n = ipt_place(t, vm, first, max, &p);

	*out = p.frame;
	return frame_valid(p.frame) ? n : 0; /* neither void nor away */
}

int ipt_owner(struct ipt *t, frame_t f, struct ipt_owner *out)
{
	if (f.v >= t->frames)
		return -EINVAL;
	*out = (struct ipt_owner){IPT_FREE, INVALID_VMID, INVALID_GFN, 0};
	if (f.v >= zone_mark(t, zone_of(t, f.v)))
		return 0; /* never touched, and its word must stay so */
	uint64_t w = load_acquire64(&t->words[f.v]);
	out->state = word_state(w);
	if (out->state == IPT_FREE)
		return 0;
	if (out->state != IPT_SHARED)
		out->vm = vmid(word_vm(w));
	if (out->state == IPT_PRIVATE)
		out->gfn = gfn(word_gfn(w));
	out->pins = load_relaxed32(&t->side[f.v]) & SIDE_PINS;
	return 0;
}
