/* Mapping, unmapping, looking up, owners. */
#include "ipt/forward.h"
#include "ipt/registry.h"
#include "ipt/zone.h"
#include <errno.h>

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

/* How many of n gfns from g on lie in g's group. */
static unsigned piece_len(uint64_t g, uint64_t n)
{
	unsigned room = IPT_CLUSTER_FRAMES - (unsigned)(g & (IPT_CLUSTER_FRAMES - 1));

	return n < room ? (unsigned)n : room;
}

static void moved(struct vm_slot *s, enum ipt_state from, enum ipt_state to, uint32_t n)
{
	add_relaxed32(&s->frames[from], -n);
	add_relaxed32(&s->frames[to], n);
}

static bool range_valid(gfn_t first, uint32_t count)
{
	return count && first.v < IPT_MAX_GFN && count <= IPT_MAX_GFN - first.v;
}

int ipt_map(struct ipt *t, vmid_t vm, gfn_t first, frame_t fr, uint32_t count)
{
	struct vm_slot *s = registry_slot(t, vm, VM_LIVE);
	uint32_t frames[IPT_CLUSTER_FRAMES];

	if (!range_valid(first, count) || fr.v >= t->frames || count > t->frames - fr.v)
		return -EINVAL;
	if (!s)
		return -ENOENT;
	if (!all_limbo(t, vm.v, fr.v, count))
		return -EPERM;
	for (uint32_t done = 0; done < count;) {
		uint64_t g = first.v + done;
		unsigned n = piece_len(g, count - done);
		int err = forward_map(t, vm.v, g, fr.v + done, n);

		if (!err) {
			done += n;
			continue;
		}
		for (uint32_t back = 0; back < done; back += n) { /* taking out can't fail */
			n = piece_len(first.v + back, done - back);
			forward_unmap(t, vm.v, first.v + back, n, frames);
		}
		return err;
	}
	moved(s, IPT_LIMBO, IPT_PRIVATE, count);
	return 0;
}

/* A run of frames that is being reported as it grows. */
struct run {
	uint64_t g;
	uint32_t f, n;
};

static void run_flush(struct run *r, ipt_run_fn *gone, void *ctx)
{
	if (r->n && gone)
		gone(ctx, gfn(r->g), frame(r->f), r->n);
	r->n = 0;
}

static void run_add(struct run *r, uint64_t g, uint32_t f, ipt_run_fn *gone, void *ctx)
{
	if (r->n && (f == NO_FRAME || f != r->f + r->n || g != r->g + r->n))
		run_flush(r, gone, ctx);
	if (f == NO_FRAME)
		return;
	if (!r->n)
		*r = (struct run){g, f, 0};
	r->n++;
}

int ipt_unmap(struct ipt *t, vmid_t vm, gfn_t first, uint32_t count, ipt_run_fn *gone, void *ctx)
{
	struct vm_slot *s = registry_slot(t, vm, VM_NONE);
	uint32_t frames[IPT_CLUSTER_FRAMES];
	struct run run = {0};

	if (!range_valid(first, count))
		return -EINVAL;
	if (!s)
		return -ENOENT;
	/* A range may be far larger than what is mapped in it: done when the VM has nothing left. */
	for (uint64_t g = first.v, end = g + count;
	     g < end && load_relaxed32(&s->frames[IPT_PRIVATE]);) {
		unsigned n = piece_len(g, end - g);
		unsigned had = forward_unmap(t, vm.v, g, n, frames);

		moved(s, IPT_PRIVATE, IPT_LIMBO, had);
		for (unsigned i = 0; i < n; i++)
			run_add(&run, g + i, frames[i], gone, ctx);
		g += n;
	}
	run_flush(&run, gone, ctx);
	return 0;
}

/*
 * The lineage: what a VM doesn't have itself it has from its nearest ancestor that does. (Entries of a
 * clone's own that say "void here, whatever the template has" belong into forward_find's answer, as a
 * third kind beside a frame and NO_FRAME, and end the walk.) *at is the VM that has it.
 */
static uint32_t find_lineage(struct ipt *t, uint32_t vm, uint64_t g, uint32_t *at)
{
	for (; vm; vm = registry_parent(t, vm)) {
		uint32_t f = forward_find(t, vm, g);

		if (f != NO_FRAME) {
			*at = vm;
			return f;
		}
	}
	return NO_FRAME;
}

frame_t ipt_lookup(struct ipt *t, vmid_t vm, gfn_t g)
{
	uint32_t at;

	if (!forward_key_valid(t, vm.v, g.v))
		return INVALID_FRAME;
	uint32_t f = forward_find(t, vm.v, g.v);
	if (f != NO_FRAME)
		return frame(f);
	return frame(find_lineage(t, registry_parent(t, vm.v), g.v, &at));
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
		if (forward_find(t, vm, g) != NO_FRAME)
			return true;
	}
	return false;
}

uint32_t ipt_lookup_run(struct ipt *t, vmid_t vm, gfn_t first, uint32_t max, frame_t *out)
{
	uint32_t at, n = 0, f = NO_FRAME;

	if (max && forward_key_valid(t, vm.v, first.v))
		f = find_lineage(t, vm.v, first.v, &at);
	*out = frame(f);
	if (f == NO_FRAME)
		return 0;
	/* The next frame's word says whether the run goes on: no need to look its gfn up. */
	do
		n++;
	while (n < max && f + n < t->frames && first.v + n < IPT_MAX_GFN &&
	       ((f + n) % IPT_CLUSTER_FRAMES || f + n < zone_mark(t, zone_of(t, f + n))) &&
	       word_maps(load_acquire64(&t->words[f + n]), at, first.v + n) &&
	       !overridden(t, vm.v, at, first.v + n));
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
