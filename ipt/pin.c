/*
 * Pins: I/O in flight into a frame.
 *
 * A frame may be unmapped, freed and given to another VM between a look-up and the count. So the side
 * entry is read first, then the word is seen to map the frame, then the pin is counted only if the entry
 * is still the one that was read: ipt_free changes its generation, and does so only without pins. Once
 * counted the frame can't be freed; whether it is still mapped is looked at once more.
 */
#include "ipt/bad.h"
#include "ipt/forward.h"
#include "ipt/registry.h"
#include <assert.h>
#include <errno.h>

static bool still_maps(struct ipt *t, uint32_t f, vmid_t vm, uint64_t g)
{
	uint64_t w = load_acquire64(&t->words[f]);
	uint32_t at = vm.v;

	while (at && !word_maps(w, at, g))
		at = registry_parent(t, at);
	/* By an alias or a region? */
	return at != 0 || ipt_lookup(t, vm, gfn(g)).v == f;
}

int ipt_pin(struct ipt *t, vmid_t vm, gfn_t g, frame_t *out)
{
	for (;;) {
		frame_t f = ipt_lookup(t, vm, g);

		*out = f;
		if (!frame_valid(f))
			return -ENOENT;
		uint32_t side = load_acquire32(&t->side[f.v]);
		if (!still_maps(t, f.v, vm, g.v))
			continue;
		if ((side & SIDE_PINS) == SIDE_PINS) {
			*out = INVALID_FRAME;
			return -EOVERFLOW;
		}
		/* seq_cst: the count must be there before the word is read again, so that one of
		 * us and ipt_free sees the other. */
		if (!atomic_compare_exchange_strong(&t->side[f.v], &side, side + 1))
			continue;
		/* Of us and ipt_spoil, which marks first and then looks for pins, one sees the other. */
		enum ipt_health h = bad_any(t) ? bad_read(t, f.v) : IPT_GOOD;
		if (h == IPT_GOOD && still_maps(t, f.v, vm, g.v))
			return 0;
		ipt_unpin(t, f);
		if (h == IPT_LOST) {
			*out = INVALID_FRAME;
			return -EHWPOISON;
		}
	}
}

void ipt_unpin(struct ipt *t, frame_t f)
{
	assert(f.v < t->frames);
	uint32_t side = load_relaxed32(&t->side[f.v]);

	do {
		assert((side & SIDE_PINS) && "unpinned more often than pinned");
		if (!(side & SIDE_PINS))
			return;
	} while (!atomic_compare_exchange_weak_explicit(
		&t->side[f.v], &side, side - 1, memory_order_acq_rel, memory_order_relaxed));
}
