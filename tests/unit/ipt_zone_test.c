/* The frame allocator. */
#include "tests/unit/ipt_help.h"

Test(ipt_zone, every_order_is_aligned_and_comes_back)
{
	struct ipt *t = help_table(IPT_INDEX, 5000);
	vmid_t vm = help_vm(t, "vm");
	frame_t f[10];

	for (unsigned o = 0; o <= IPT_MAX_ORDER; o++) {
		f[o] = help_alloc(t, vm, o);
		cr_assert_eq(f[o].v % (1u << o), 0);
	}
	cr_assert_eq(ipt_free_frames(t), 5000 - 1023);
	help_audit(t);
	for (unsigned o = 0; o <= IPT_MAX_ORDER; o++)
		cr_assert_eq(ipt_free(t, vm, f[o], 1u << o), 0);
	cr_assert_eq(ipt_free_frames(t), 5000);
	help_audit(t);
	for (int i = 0; i < 9; i++)
		help_alloc(t, vm, 9);
	frame_t none;
	cr_assert_eq(ipt_alloc(t, vm, 9, NULL, &none), -ENOMEM);
	cr_assert_not(frame_valid(none));
	cr_assert_eq(ipt_free_frames(t), 5000 - 9 * 512);
	cr_assert_eq(ipt_largest_order(t), 8);
	help_audit(t);
	ipt_detach(t);
}

Test(ipt_zone, errors_change_nothing)
{
	struct ipt *t = help_table(IPT_INDEX, 1000);
	vmid_t vm = help_vm(t, "vm"), other = help_vm(t, "other");
	frame_t f, mine = help_alloc(t, vm, 4);

	cr_assert_eq(ipt_alloc(t, vm, 10, NULL, &f), -EINVAL);
	cr_assert_eq(ipt_free(t, vm, mine, 0), -EINVAL);
	cr_assert_eq(ipt_free(t, vm, frame(1000), 1), -EINVAL);
	cr_assert_eq(ipt_free(t, vm, frame(999), 2), -EINVAL);
	cr_assert_eq(ipt_free(t, vm, frame(10), UINT32_MAX), -EINVAL);
	cr_assert_eq(ipt_free(t, vm, mine, 17), -EPERM);
	cr_assert_eq(ipt_free(t, other, mine, 1), -EPERM);
	cr_assert_eq(ipt_free(t, vm, frame(900), 1), -EPERM, "free already, never touched");
	cr_assert_eq(ipt_map(t, vm, gfn(0), mine, 1), 0);
	cr_assert_eq(ipt_free(t, vm, mine, 1), -EPERM, "mapped");
	cr_assert_eq(ipt_free_frames(t), 1000 - 16);
	help_audit(t);
	ipt_detach(t);
}

Test(ipt_zone, goal_keeps_runs_together)
{
	struct ipt *t = help_table(IPT_INDEX, 1 << 16);
	vmid_t a = help_vm(t, "a"), b = help_vm(t, "b");
	struct ipt_hint hint = {frame(5 * 512 + 48), 0, 0};
	frame_t f;

	cr_assert_eq(ipt_alloc(t, a, 4, &hint, &f), 0);
	cr_assert_eq(f.v, 5 * 512 + 48, "in the wilderness");
	for (int i = 0; i < 10; i++) {
		hint.goal = frame_add(f, 16);
		cr_assert_eq(ipt_alloc(t, a, 4, &hint, &f), 0);
		cr_assert_eq(f.v, hint.goal.v);
	}
	help_audit(t);
	/* Taken: another run, at the same offset within 2 MiB, and room to go on. */
	hint.goal = frame(5 * 512 + 48);
	cr_assert_eq(ipt_alloc(t, b, 4, &hint, &f), 0);
	cr_assert_neq(f.v, hint.goal.v);
	cr_assert_eq(f.v % 512, 48);
	hint.goal = frame_add(f, 16);
	cr_assert_eq(ipt_alloc(t, b, 4, &hint, &f), 0);
	cr_assert_eq(f.v, hint.goal.v);
	hint.goal = frame((1 << 16) - 1);
	cr_assert_eq(ipt_alloc(t, b, 9, &hint, &f), 0);
	cr_assert_eq(f.v, (1 << 16) - 512, "a goal is aligned down");
	hint.goal = frame(1 << 20);
	cr_assert_eq(ipt_alloc(t, b, 0, &hint, &f), 0, "a goal outside the pool is only a wish");
	help_audit(t);
	ipt_detach(t);
}

Test(ipt_zone, nodes)
{
	struct ipt *t = help_table_of(IPT_INDEX, 4 * 2048, 4, 1);
	vmid_t vm = help_vm(t, "vm");
	struct ipt_hint hint = {INVALID_FRAME, 2, 0};
	frame_t f;

	for (int i = 0; i < 4; i++) {
		cr_assert_eq(ipt_alloc(t, vm, 9, &hint, &f), 0);
		cr_assert_eq(f.v / 2048, 2);
	}
	cr_assert_eq(ipt_alloc(t, vm, 9, &hint, &f), 0);
	cr_assert_eq(f.v / 2048, 3, "the next when it is empty");
	hint.goal = frame(2048);
	cr_assert_eq(ipt_alloc(t, vm, 0, &hint, &f), 0);
	cr_assert_eq(f.v, 2048);
	for (int i = 0; i < 10; i++)
		cr_assert_eq(ipt_alloc(t, vm, 9, NULL, &f), 0);
	cr_assert_eq(ipt_alloc(t, vm, 9, NULL, &f), -ENOMEM);
	help_audit(t);
	/* A run of frames across two nodes is freed into both. */
	cr_assert_eq(ipt_free(t, vm, frame(3 * 2048 - 512), 1024), 0);
	cr_assert_eq(ipt_largest_order(t), 9);
	help_audit(t);
	help_reap(t, vm);
	cr_assert_eq(ipt_free_frames(t), 4 * 2048);
	help_audit(t);
	ipt_detach(t);
}

Test(ipt_zone, frames_that_were_never_used_are_passed_over)
{
	struct ipt *t = help_table_of(IPT_INDEX, 4 * 2048, 4, 1);
	vmid_t vm = help_vm(t, "vm");
	struct ipt_hint hint = {INVALID_FRAME, 2, 0};
	frame_t f;

	cr_expect(!frame_valid(ipt_next_used(t, frame(0))));
	cr_assert_eq(ipt_alloc(t, vm, 4, &hint, &f), 0);
	cr_expect_eq(ipt_next_used(t, frame(0)).v, 2 * 2048);
	cr_expect_eq(ipt_next_used(t, f).v, f.v);
	cr_expect_eq(ipt_next_used(t, frame(f.v + 15)).v, f.v + 15);
	cr_expect(!frame_valid(
		ipt_next_used(t, frame(f.v + 512)))); /* they come into use in such blocks */
	cr_expect(!frame_valid(ipt_next_used(t, frame(4 * 2048))), "beyond the pool");
	/* Once used is used for good. */
	cr_assert_eq(ipt_free(t, vm, f, 16), 0);
	cr_expect_eq(ipt_next_used(t, frame(0)).v, 2 * 2048);
	hint.node = 3;
	cr_assert_eq(ipt_alloc(t, vm, 0, &hint, &f), 0);
	cr_expect_eq(ipt_next_used(t, frame(2 * 2048 + 512)).v, f.v);
	ipt_detach(t);
}

Test(ipt_zone, colours)
{
	struct ipt *t = help_table_of(IPT_INDEX, 4096, 1, 16);
	vmid_t vm = help_vm(t, "vm");
	frame_t f;

	for (unsigned i = 0; i < 600; i++) {
		struct ipt_hint hint = {INVALID_FRAME, 0, i % 3 * 5};
		unsigned order = i % 7 == 0 ? 2 : 0;

		cr_assert_eq(ipt_alloc(t, vm, order, &hint, &f), 0);
		cr_assert_eq(f.v % 16 >> order, hint.colour >> order);
	}
	help_audit(t);
	/* A colour that is used up is only a wish. */
	struct ipt_hint hint = {INVALID_FRAME, 0, 3};
	for (unsigned got = 0; ipt_free_frames(t); got++) {
		cr_assert_eq(ipt_alloc(t, vm, 0, &hint, &f), 0);
		if (got < 220) /* of 256; some went with blocks above */
			cr_assert_eq(f.v % 16, 3);
	}
	help_audit(t);
	help_reap(t, vm);
	help_audit(t);
	cr_assert_eq(ipt_largest_order(t), 9);
	ipt_detach(t);
}

Test(ipt_zone, odd_pools)
{
	for (uint32_t frames = 1; frames < 1400; frames += 1 + frames / 7) {
		for (unsigned nodes = 1; nodes <= IPT_MAX_NODES; nodes++) {
			struct ipt *t = help_table_of(IPT_INDEX, frames, nodes, 4);
			vmid_t vm = help_vm(t, "vm");
			uint32_t got = 0;
			frame_t f;

			while (!ipt_alloc(t, vm, 0, NULL, &f))
				got++;
			cr_assert_eq(got, frames, "%u of %u frames, %u nodes", got, frames, nodes);
			help_audit(t);
			help_reap(t, vm);
			cr_assert_eq(ipt_free_frames(t), frames);
			help_audit(t);
			ipt_detach(t);
		}
	}
}
