/* Bad frames: marked, left alone by all that moves frames, and never given out again. */
#include "tests/unit/ipt_help.h"
#include <string.h>

BOTH_KINDS(ipt_bad, frames_are_good_until_they_are_spoiled)
{
	struct ipt *t = help_table(kind, 1000);
	vmid_t vm = help_vm(t, "vm");
	frame_t f = help_mapped(t, vm, 100, 4), got;
	struct ipt_counts c;

	cr_assert_eq(ipt_health(t, f), IPT_GOOD);
	cr_assert_eq(ipt_spoil(t, frame(1000), IPT_LOST), -EINVAL);
	cr_assert_eq(ipt_spoil(t, f, IPT_GOOD), -EINVAL);
	cr_assert_eq(ipt_spoil(t, frame(999), IPT_LOST), -ESTALE, "it is free");
	cr_assert_eq(ipt_pin(t, vm, gfn(103), &got), 0);
	cr_assert_eq(ipt_spoil(t, frame_add(f, 3), IPT_LOST), -EBUSY, "a device uses it");
	cr_assert_eq(ipt_bad_frames(t), 0);
	ipt_unpin(t, got);
	cr_assert_eq(ipt_spoil(t, frame_add(f, 3), IPT_RETIRING), 0);
	cr_assert_eq(ipt_spoil(t, frame_add(f, 3), IPT_RETIRING), -EALREADY);
	cr_assert_eq(ipt_spoil(t, frame_add(f, 3), IPT_LOST), 0);
	cr_assert_eq(ipt_spoil(t, frame_add(f, 3), IPT_LOST), -EALREADY);
	cr_assert_eq(ipt_health(t, frame_add(f, 3)), IPT_LOST);
	cr_assert_eq(ipt_health(t, frame_add(f, 2)), IPT_GOOD);
	cr_assert_eq(ipt_lookup(t, vm, gfn(103)).v, f.v + 3, "it stays where it was");
	cr_assert_eq(ipt_pin(t, vm, gfn(103), &got), -EHWPOISON);
	cr_assert_eq(ipt_pin(t, vm, gfn(104), &got), 0);
	ipt_unpin(t, got);
	help_audit(t);

	/* Freed with its neighbours, it alone is retired. */
	cr_assert_eq(ipt_unmap(t, vm, gfn(100), 16, NULL, NULL), 0);
	cr_assert_eq(ipt_free(t, vm, f, 16), 0);
	help_audit(t);
	ipt_counts(t, &c);
	cr_assert_eq(c.frames[IPT_FREE], 999);
	cr_assert(c.bad == 1 && c.retired == 1);
	help_reap(t, vm);
	help_audit(t);
	cr_assert_eq(ipt_free_frames(t), 999);
	ipt_detach(t);
}

BOTH_KINDS(ipt_bad, reaping_and_collapsing_retire)
{
	struct ipt *t = help_table(kind, 1000);
	vmid_t vm = help_vm(t, "vm"), next;
	frame_t f = help_mapped(t, vm, 64, 4), own;

	cr_assert_eq(ipt_spoil(t, frame_add(f, 5), IPT_LOST), 0);
	cr_assert_eq(ipt_vm_freeze(t, vm, "template", &next), 0);
	cr_assert_eq(ipt_spoil(t, frame_add(f, 6), IPT_LOST), 0, "a template's");
	own = help_alloc(t, next, 0);
	cr_assert_eq(ipt_map(t, next, gfn(69), own, 1), 0);
	cr_assert_eq(ipt_vm_collapse(t, vm, NULL, NULL), 0);
	cr_assert_eq(ipt_lookup(t, next, gfn(69)).v, own.v);
	cr_assert_eq(ipt_lookup(t, next, gfn(70)).v, f.v + 6, "moved to the child, bad as it is");
	cr_assert_eq(ipt_health(t, frame_add(f, 6)), IPT_LOST);
	help_audit(t);
	cr_assert_eq(ipt_free_frames(t), 1000 - 17, "the overridden one is retired");
	help_reap(t, next);
	help_audit(t);
	cr_assert_eq(ipt_free_frames(t), 998);
	ipt_detach(t);
}

Test(ipt_bad, shared_and_what_would_move)
{
	struct ipt *t = help_table(IPT_INDEX, 1000);
	vmid_t a = help_vm(t, "a"), b = help_vm(t, "b");
	frame_t f = help_mapped(t, a, 0, 0), g = help_mapped(t, b, 7, 0);
	uint32_t done;

	cr_assert_eq(ipt_publish(t, a, gfn(0), 1, &done), 0);
	cr_assert_eq(ipt_spoil(t, f, IPT_LOST), 0, "a shared one");
	cr_assert_eq(ipt_spoil(t, g, IPT_LOST), 0);
	cr_assert_eq(ipt_merge(t, b, gfn(7), f, 1, &done, NULL, NULL), -EBUSY);
	cr_assert_eq(ipt_publish(t, b, gfn(7), 1, &done), -EBUSY);
	help_audit(t);
	help_reap(t, a);
	help_reap(t, b);
	help_audit(t);
	cr_assert_eq(ipt_free_frames(t), 998);
	ipt_detach(t);
}

static int none(void *ctx)
{
	(void)ctx;
	return 0;
}

static int clean(void *ctx, frame_t first, uint32_t n)
{
	(void)first;
	*(uint32_t *)ctx += n;
	return 0;
}

BOTH_KINDS(ipt_bad, a_files_page_is_dropped_and_its_frame_retired)
{
	static const struct ipt_out_ops ops = {NULL, none, clean};
	struct ipt *t = help_table(kind, 1000);
	vmid_t a = help_vm(t, "a"), file;
	uint32_t done, cleaned = 0;

	cr_assert_eq(ipt_file_add(t, "f", &file), 0);
	cr_assert_eq(ipt_vm_region(t, a, gfn(4096), 64, file, 0), 0);
	frame_t f = help_alloc(t, a, 4);
	cr_assert_eq(ipt_file_map(t, a, file, 16, f, 16, &done), 0);
	cr_assert_eq(ipt_spoil(t, frame_add(f, 2), IPT_RETIRING), 0);
	cr_assert_eq(ipt_file_drop(t, file, 16, f, 16, &ops, &cleaned), -EBUSY, "with others");
	cr_assert_eq(ipt_file_drop(t, file, 18, frame_add(f, 2), 1, &ops, &cleaned), 0);
	cr_assert_eq(cleaned, 1);
	cr_assert_eq(ipt_spoil(t, frame_add(f, 4), IPT_LOST), 0);
	cr_assert_eq(ipt_file_drop(t, file, 20, frame_add(f, 4), 1, &ops, &cleaned), -EBUSY,
		     "the file may not have what was lost");
	cr_assert_eq(ipt_lookup(t, a, gfn(4096 + 20)).v, f.v + 4);
	cr_assert(!frame_valid(ipt_lookup(t, a, gfn(4096 + 18))));
	cr_assert_eq(ipt_lookup(t, a, gfn(4096 + 19)).v, f.v + 3);
	help_audit(t);
	cr_assert_eq(ipt_free_frames(t), 1000 - 16);
	ipt_detach(t);
}

/* Frames come and go, are spoiled in all states, free ones too; none that was retired comes back. */
BOTH_KINDS(ipt_bad, no_allocation_gives_a_retired_frame)
{
	enum { FRAMES = 600, STEPS = 4000 };
	static bool retired[FRAMES], spoiled[FRAMES];
	struct help_random r = {20};
	struct ipt *t = help_table_of(kind, FRAMES, 2, 4);
	vmid_t vm = help_vm(t, "vm");
	uint32_t held[FRAMES], n = 0, bad = 0;

	memset(retired, 0, sizeof(retired));
	memset(spoiled, 0, sizeof(spoiled));
	for (unsigned step = 0; step < STEPS; step++) {
		uint32_t f = help_below(&r, FRAMES);
		unsigned what = help_below(&r, 100);
		frame_t got;

		if (what < 60 && n < FRAMES && ipt_alloc(t, vm, 0, NULL, &got) == 0) {
			cr_assert(!retired[got.v], "frame %u was retired", got.v);
			held[n++] = got.v;
		} else if (what < 97 && n) {
			uint32_t i = help_below(&r, n);

			cr_assert_eq(ipt_free(t, vm, frame(held[i]), 1), 0);
			retired[held[i]] = spoiled[held[i]];
			held[i] = held[--n];
		} else if (what < 99) {
			int err = ipt_spoil(t, frame(f), IPT_LOST);

			cr_assert(err == 0 || err == -ESTALE || err == -EALREADY);
			bad += !err;
			spoiled[f] |= !err;
		} else if (!ipt_retire_free(t, frame(f))) {
			retired[f] = true;
			bad++;
		}
		cr_assert_eq(ipt_bad_frames(t), bad);
	}
	help_audit(t);
	cr_assert_gt(bad, 20);
	uint32_t gone = 0;
	for (unsigned f = 0; f < FRAMES; f++)
		gone += retired[f];
	cr_assert_eq(ipt_free_frames(t), FRAMES - n - gone);
	help_reap(t, vm);
	help_audit(t);
	cr_assert_eq(ipt_free_frames(t), FRAMES - bad);
	ipt_detach(t);
}
