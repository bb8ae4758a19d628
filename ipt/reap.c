/* Freeing what a dead VM owned. */
#include "ipt/forward.h"
#include "ipt/registry.h"
#include "ipt/zone.h"
#include <errno.h>

/* Take every lock once: whoever died holding one left it to be mended. */
static void mend_all(struct ipt *t)
{
	for (uint32_t s = 0; s < t->layout.nstripes; s++) {
		stripe_lock(t, s);
		stripe_unlock(t, s);
	}
	for (unsigned z = 0; z < t->config.nodes; z++) {
		zone_lock(t, z);
		zone_unlock(t, z);
	}
	radix_pages_lock(t);
	radix_pages_unlock(t);
}

/* Unmap the frames of [from, to) that vm has mapped, a group's worth at a time. */
static void unmap_words(struct ipt *t, vmid_t vm, uint32_t from, uint32_t to)
{
	uint32_t frames[IPT_CLUSTER_FRAMES];

	for (uint32_t f = from; f < to;) {
		uint64_t w = load_acquire64(&t->words[f]), g = word_gfn(w);
		unsigned n = 1;

		if (word_state(w) != IPT_PRIVATE || word_vm(w) != vm.v) {
			f++;
			continue;
		}
		while (f + n < to && (g + n) % IPT_CLUSTER_FRAMES &&
		       word_maps(load_acquire64(&t->words[f + n]), vm.v, g + n))
			n++;
		forward_unmap(t, vm.v, g, n, frames);
		f += n;
	}
}

/* Clean and free the limbo frames of vm in [from, to); *kept counts those that couldn't be. */
static int free_words(struct ipt *t, vmid_t vm, uint32_t from, uint32_t to, ipt_clean_fn *clean,
		      void *ctx, uint32_t *kept)
{
	struct vm_slot *s = &t->vms[vm.v];
	uint64_t limbo = word_limbo(vm.v);
	int first_err = 0;

	for (uint32_t f = from; f < to;) {
		uint32_t n = 0;
		int err = 0;

		for (; f + n < to && load_acquire64(&t->words[f + n]) == limbo; n++) {
			/* Nobody is left to unpin it. */
			if (load_relaxed32(&t->side[f + n]) & SIDE_PINS)
				atomic_fetch_and_explicit(&t->side[f + n], ~SIDE_PINS,
							  memory_order_acq_rel);
		}
		if (!n) {
			f++;
			continue;
		}
		if (clean)
			err = clean(ctx, frame(f), n);
		if (!err) {
			/* What its counters say may be wrong by the step at which it died. */
			store_relaxed32(&s->frames[IPT_LIMBO], n);
			err = ipt_free(t, vm, frame(f), n);
		}
		if (err) {
			*kept += n;
			first_err = first_err ? first_err : err;
		}
		f += n;
	}
	return first_err;
}

int ipt_vm_reap(struct ipt *t, vmid_t vm, ipt_clean_fn *clean, void *ctx)
{
	uint32_t kept = 0;
	int err = registry_dying(t, vm);

	if (err)
		return err;
	mend_all(t);
	for (unsigned z = 0; z < t->config.nodes; z++)
		unmap_words(t, vm, zone_start(t, z), zone_mark(t, z));
	for (unsigned z = 0; z < t->config.nodes; z++) {
		int failed =
			free_words(t, vm, zone_start(t, z), zone_mark(t, z), clean, ctx, &kept);

		err = err ? err : failed;
	}
	store_relaxed32(&t->vms[vm.v].frames[IPT_PRIVATE], 0);
	store_relaxed32(&t->vms[vm.v].frames[IPT_LIMBO], kept);
	if (t->kind == IPT_RADIX)
		radix_drop(t, vm.v);
	if (!err)
		registry_remove(t, vm);
	return err;
}
