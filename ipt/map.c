/* Mapping and unmapping. */
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
	struct vm_slot *s;
	uint32_t frames[IPT_CLUSTER_FRAMES];
	int err = registry_changes(t, vm, &s);

	if (!range_valid(first, count) || fr.v >= t->frames || count > t->frames - fr.v)
		return -EINVAL;
	if (err)
		return err;
	if (!all_limbo(t, vm.v, fr.v, count))
		return -EPERM;
	for (uint32_t done = 0; done < count;) {
		uint64_t g = first.v + done;
		unsigned n = piece_len(g, count - done);

		err = forward_map(t, vm.v, g, fr.v + done, n);
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
	if (load_relaxed32(&s->kind) == IPT_TEMPLATE)
		return -EPERM;
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
