/* Looking up: what a gfn is, for a VM and its lineage; who owns a frame. */
#include "ipt/forward.h"
#include "ipt/registry.h"
#include "ipt/zone.h"
#include <errno.h>
#include <sched.h>

#define PLACE_SPINS 200

/* Does a VM have anything of its own? If not, its forward map needn't be asked. */
static bool has_own(const struct ipt *t, uint32_t vm)
{
	return registry_count(t, vm, IPT_PRIVATE) != 0;
}

/*
 * The lineage: what a VM doesn't have itself it has from its nearest ancestor that does. *at is the VM that
 * has it, from `from` on upwards. Right only if no lineage changed meanwhile.
 */
static uint32_t walk(struct ipt *t, uint32_t from, uint64_t g, uint32_t *at)
{
	for (uint32_t vm = from; vm; vm = registry_parent(t, vm)) {
		uint32_t f = forward_find(t, vm, g);

		if (f != NO_FRAME) {
			*at = vm;
			return f;
		}
	}
	*at = 0;
	return NO_FRAME;
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

static uint32_t find(struct ipt *t, uint32_t vm, uint64_t g, uint32_t *at)
{
	uint32_t f = NO_FRAME;

	for (struct attempt a = {0}; attempt_next(t, &a); a.own = *at == vm)
		f = walk(t, vm, g, at);
	return f;
}

frame_t ipt_lookup(struct ipt *t, vmid_t vm, gfn_t g)
{
	uint32_t seq = lineage_read(t), at;

	if (!forward_key_valid(t, vm.v, g.v))
		return INVALID_FRAME;
	uint32_t f = forward_find(t, vm.v, g.v);
	if (f != NO_FRAME)
		return frame(f);
	f = walk(t, registry_parent(t, vm.v), g.v, &at);
	if (lineage_still(t, seq))
		return frame(f);
	return frame(find(t, vm.v, g.v, &at));
}

void ipt_lookup_batch(struct ipt *t, const struct ipt_key *keys, frame_t *out, unsigned n)
{
	if (t->kind == IPT_INDEX)
		index_find_batch(t, keys, out, n);
	else
		radix_find_batch(t, keys, out, n);
	for (unsigned i = 0; i < n; i++) {
		if (!frame_valid(out[i]))
			out[i] = ipt_lookup(t, keys[i].vm, keys[i].gfn);
	}
}

/* Does a VM below `at` in vm's lineage have an entry of its own at g? */
static bool overridden(struct ipt *t, uint32_t vm, uint32_t at, uint64_t g)
{
	for (; vm && vm != at; vm = registry_parent(t, vm)) {
		if (has_own(t, vm) && forward_find(t, vm, g) != NO_FRAME)
			return true;
	}
	return false;
}

/* How many gfns from g on, which is at frame f of VM `at`, go on at the next frames. The next frame's word
 * says whether they do: no need to look its gfn up. */
static uint32_t run_length(struct ipt *t, uint32_t vm, uint32_t at, uint64_t g, uint32_t f,
			   uint32_t max)
{
	uint32_t n = 1;

	while (n < max && f + n < t->frames && g + n < IPT_MAX_GFN &&
	       ((f + n) % IPT_CLUSTER_FRAMES || f + n < zone_mark(t, zone_of(t, f + n))) &&
	       word_maps(load_acquire64(&t->words[f + n]), at, g + n) &&
	       !overridden(t, vm, at, g + n))
		n++;
	return n;
}

uint32_t ipt_lookup_run(struct ipt *t, vmid_t vm, gfn_t first, uint32_t max, frame_t *out)
{
	struct ipt_place p;
	uint32_t n = ipt_place(t, vm, first, max, &p);

	*out = p.frame;
	return p.kind == IPT_VOID ? 0 : n;
}

static uint32_t place(struct ipt *t, uint32_t vm, uint64_t g, uint32_t max, struct ipt_place *out)
{
	uint32_t at, n = 1, f = walk(t, vm, g, &at);

	if (f != NO_FRAME) {
		*out = (struct ipt_place){at == vm ? IPT_OWN : IPT_INHERITED, vmid(at), frame(f)};
		return run_length(t, vm, at, g, f, max);
	}
	*out = (struct ipt_place){IPT_VOID, INVALID_VMID, INVALID_FRAME};
	while (n < max && g + n < IPT_MAX_GFN && !overridden(t, vm, 0, g + n))
		n++;
	return n;
}

uint32_t ipt_place(struct ipt *t, vmid_t vm, gfn_t first, uint32_t max, struct ipt_place *out)
{
	uint32_t n = 0;

	*out = (struct ipt_place){IPT_VOID, INVALID_VMID, INVALID_FRAME};
	if (!max || !forward_key_valid(t, vm.v, first.v))
		return 0;
	for (struct attempt a = {0}; attempt_next(t, &a); a.own = out->kind == IPT_OWN)
		n = place(t, vm.v, first.v, max, out);
	return n;
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
	out->vm = vmid(word_vm(w));
	if (out->state == IPT_PRIVATE)
		out->gfn = gfn(word_gfn(w));
	out->pins = load_relaxed32(&t->side[f.v]) & SIDE_PINS;
	return 0;
}
