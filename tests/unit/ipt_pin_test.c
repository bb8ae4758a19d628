/* Pins. */
#include "tests/unit/ipt_help.h"

BOTH_KINDS(ipt_pin, holds_a_frame_through_unmap)
{
	struct ipt *t = help_table(kind, 1000);
	vmid_t vm = help_vm(t, "vm");
	frame_t f = help_mapped(t, vm, 32, 4), pinned;
	struct ipt_owner o;

	cr_assert_eq(ipt_pin(t, vm, gfn(35), &pinned), 0);
	cr_assert_eq(pinned.v, f.v + 3);
	cr_assert_eq(ipt_pin(t, vm, gfn(35), &pinned), 0);
	cr_assert_eq(ipt_owner(t, pinned, &o), 0);
	cr_assert_eq(o.pins, 2);
	cr_assert_eq(ipt_unmap(t, vm, gfn(32), 16, NULL, NULL), 0);
	cr_assert_eq(ipt_pin(t, vm, gfn(35), &pinned), -ENOENT);
	cr_assert_eq(ipt_free(t, vm, f, 16), -EBUSY);
	cr_assert_eq(ipt_free_frames(t), 1000 - 16, "nothing has changed");
	ipt_unpin(t, frame_add(f, 3));
	cr_assert_eq(ipt_free(t, vm, f, 16), -EBUSY);
	ipt_unpin(t, frame_add(f, 3));
	cr_assert_eq(ipt_free(t, vm, f, 16), 0);
	help_audit(t);
	ipt_detach(t);
}

Test(ipt_pin, overflows_at_65535)
{
	struct ipt *t = help_table(IPT_INDEX, 10);
	vmid_t vm = help_vm(t, "vm");
	frame_t f = help_mapped(t, vm, 0, 0), pinned;

	for (int i = 0; i < 65535; i++)
		cr_assert_eq(ipt_pin(t, vm, gfn(0), &pinned), 0);
	cr_assert_eq(ipt_pin(t, vm, gfn(0), &pinned), -EOVERFLOW);
	cr_assert_not(frame_valid(pinned));
	for (int i = 0; i < 65535; i++)
		ipt_unpin(t, f);
	cr_assert_eq(ipt_unmap(t, vm, gfn(0), 1, NULL, NULL), 0);
	cr_assert_eq(ipt_free(t, vm, f, 1), 0);
	help_audit(t);
	ipt_detach(t);
}

Test(ipt_pin, audit_tells_of_a_pinned_free_frame)
{
	struct ipt *t = help_table(IPT_INDEX, 100);
	vmid_t vm = help_vm(t, "vm");
	frame_t f = help_mapped(t, vm, 0, 0), pinned;

	cr_assert_eq(ipt_pin(t, vm, gfn(0), &pinned), 0);
	help_reap(t, vm); /* takes pins off */
	help_audit(t);
	vm = help_vm(t, "vm");
	frame_t again = help_mapped(t, vm, 0, 0);
	cr_assert_eq(again.v, f.v);
	cr_assert_eq(ipt_pin(t, vm, gfn(0), &pinned), 0);
	ipt_unpin(t, pinned);
	help_audit(t);
	ipt_detach(t);
}
