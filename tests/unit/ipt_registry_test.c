/* The VM registry. */
#include "tests/unit/ipt_help.h"
#include <stdio.h>
#include <string.h>

BOTH_KINDS(ipt_registry, names_and_ids)
{
	struct ipt *t = help_table(kind, 1000);
	char longest[IPT_NAME_LEN], too_long[IPT_NAME_LEN + 1];
	vmid_t a = help_vm(t, "a"), b = help_vm(t, "b"), found, vm;

	memset(longest, 'x', sizeof(longest));
	longest[IPT_NAME_LEN - 1] = 0;
	memset(too_long, 'x', sizeof(too_long));
	too_long[IPT_NAME_LEN] = 0;

	cr_assert_eq(a.v, 1);
	cr_assert_eq(b.v, 2);
	cr_assert_eq(ipt_vm_add(t, "a", INVALID_VMID, &vm), -EEXIST);
	cr_assert_eq(ipt_vm_add(t, "", INVALID_VMID, &vm), -EINVAL);
	cr_assert_eq(ipt_vm_add(t, too_long, INVALID_VMID, &vm), -ENAMETOOLONG);
	cr_assert_eq(ipt_vm_add(t, "c", vmid(9), &vm), -ENOENT);
	cr_assert_eq(ipt_vm_add(t, longest, INVALID_VMID, &vm), 0);
	cr_assert_eq(ipt_vm_find(t, longest, &found), 0);
	cr_assert_eq(found.v, vm.v);
	cr_assert_eq(ipt_vm_find(t, "b", &found), 0);
	cr_assert_eq(found.v, b.v);
	cr_assert_eq(ipt_vm_find(t, "z", &found), -ENOENT);
	cr_assert_eq(ipt_vm_find(t, too_long, &found), -ENOENT);

	help_reap(t, a);
	cr_assert_eq(ipt_vm_find(t, "a", &found), -ENOENT);
	cr_assert_eq(ipt_vm_next(t, INVALID_VMID).v, b.v);
	cr_assert_eq(ipt_vm_next(t, vm).v, 0);
	cr_assert_eq(help_vm(t, "a again").v, 1, "ids are reused, smallest first");
	help_audit(t);
	ipt_detach(t);
}

Test(ipt_registry, full)
{
	struct ipt_config config = {
		.kind = IPT_INDEX, .frames = 100, .max_vms = 3, .nodes = 1, .colours = 1};
	struct ipt *t = NULL;
	vmid_t vm;

	cr_assert_eq(ipt_create(&t, &config), 0);
	help_vm(t, "1");
	vmid_t two = help_vm(t, "2");
	help_vm(t, "3");
	cr_assert_eq(ipt_vm_add(t, "4", INVALID_VMID, &vm), -ENOSPC);
	help_reap(t, two);
	cr_assert_eq(help_vm(t, "4").v, two.v);
	ipt_detach(t);
}

BOTH_KINDS(ipt_registry, unregistered_vms_get_nothing)
{
	struct ipt *t = help_table(kind, 1000);
	struct ipt_vm_info info;
	frame_t f;
	const uint32_t bad[] = {0, 1, 63, 64, 65, 5000, UINT32_MAX};

	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		vmid_t vm = vmid(bad[i]);
		struct ipt_key key = {vm, gfn(1)};

		cr_assert_eq(ipt_alloc(t, vm, 0, NULL, &f), -ENOENT);
		cr_assert_eq(ipt_free(t, vm, frame(0), 1), -ENOENT);
		cr_assert_eq(ipt_map(t, vm, gfn(0), frame(0), 1), -ENOENT);
		cr_assert_eq(ipt_unmap(t, vm, gfn(0), 1, NULL, NULL), -ENOENT);
		cr_assert_eq(ipt_vm_info(t, vm, &info), -ENOENT);
		cr_assert_eq(ipt_vm_reap(t, vm, NULL, NULL), -ENOENT);
		cr_assert_not(frame_valid(ipt_lookup(t, vm, gfn(1))));
		ipt_lookup_batch(t, &key, &f, 1);
		cr_assert_not(frame_valid(f));
		cr_assert_eq(ipt_lookup_run(t, vm, gfn(1), 5, &f), 0);
		cr_assert_eq(ipt_pin(t, vm, gfn(1), &f), -ENOENT);
	}
	ipt_detach(t);
}

BOTH_KINDS(ipt_registry, lineage)
{
	struct ipt *t = help_table(kind, 1000);
	vmid_t base = help_vm(t, "base"), child, grandchild;
	struct ipt_vm_info info;
	struct ipt_key keys[4];
	frame_t out[4], f;

	cr_assert_eq(ipt_vm_add(t, "child", base, &child), 0);
	cr_assert_eq(ipt_vm_add(t, "grandchild", child, &grandchild), 0);
	frame_t a = help_mapped(t, base, 64, 5), b = help_mapped(t, child, 70, 0);
	cr_assert_eq(ipt_lookup(t, base, gfn(70)).v, a.v + 6);
	cr_assert_eq(ipt_lookup(t, grandchild, gfn(70)).v, b.v, "the nearest ancestor's");
	cr_assert_eq(ipt_lookup(t, grandchild, gfn(71)).v, a.v + 7);
	cr_assert_not(frame_valid(ipt_lookup(t, grandchild, gfn(96))));
	cr_assert_eq(ipt_lookup_run(t, grandchild, gfn(64), 100, &f), 6, "up to the override");
	cr_assert_eq(ipt_lookup_run(t, base, gfn(64), 100, &f), 32);
	for (int i = 0; i < 4; i++)
		keys[i] = (struct ipt_key){grandchild, gfn(69 + (uint64_t)i)};
	ipt_lookup_batch(t, keys, out, 4);
	cr_assert_eq(out[0].v, a.v + 5);
	cr_assert_eq(out[1].v, b.v);
	cr_assert_eq(ipt_pin(t, grandchild, gfn(64), &f), 0);
	cr_assert_eq(f.v, a.v);
	ipt_unpin(t, f);

	cr_assert_eq(ipt_vm_info(t, base, &info), 0);
	cr_assert_eq(info.children, 1);
	cr_assert_eq(info.frames[IPT_PRIVATE], 32);
	cr_assert_eq(ipt_vm_reap(t, base, NULL, NULL), -EBUSY);
	cr_assert_eq(ipt_vm_reap(t, child, NULL, NULL), -EBUSY);
	help_audit(t);
	help_reap(t, grandchild);
	help_reap(t, child);
	cr_assert_eq(ipt_vm_info(t, base, &info), 0);
	cr_assert_eq(info.children, 0);
	help_reap(t, base);
	help_audit(t);
	ipt_detach(t);
}

BOTH_KINDS(ipt_registry, freeze)
{
	struct ipt *t = help_table(kind, 1000);
	vmid_t vm = help_vm(t, "vm"), other = help_vm(t, "other"), on, clone, found, again;
	frame_t f = help_mapped(t, vm, 64, 4), limbo = help_alloc(t, vm, 0), own, mine;
	struct ipt_vm_info info;
	struct ipt_place p;

	cr_assert_eq(ipt_vm_freeze(t, vm, "other", &on), -EEXIST);
	cr_assert_eq(ipt_vm_freeze(t, vm, "vm", &on), -EEXIST);
	cr_assert_eq(ipt_vm_freeze(t, vm, "", &on), -EINVAL);
	cr_assert_eq(ipt_vm_freeze(t, vm, "a name of more than thirty-one bytes", &on),
		     -ENAMETOOLONG);
	cr_assert_eq(ipt_vm_freeze(t, vmid(9), "vm@1", &on), -ENOENT);
	cr_assert_eq(ipt_vm_freeze(t, vm, "vm@1", &on), 0);
	cr_assert_eq(ipt_vm_find(t, "vm", &found), 0);
	cr_assert_eq(found.v, on.v);
	cr_assert_eq(ipt_vm_find(t, "vm@1", &found), 0);
	cr_assert_eq(found.v, vm.v);
	cr_assert_eq(ipt_vm_info(t, vm, &info), 0);
	cr_assert_eq(info.kind, IPT_TEMPLATE);
	cr_assert_eq(info.children, 1);
	cr_assert_eq(info.frames[IPT_PRIVATE], 16);
	cr_assert_eq(ipt_vm_info(t, on, &info), 0);
	cr_assert_eq(info.kind, IPT_VM);
	cr_assert_eq(info.parent.v, vm.v);
	cr_assert_eq(info.frames[IPT_PRIVATE], 0);

	cr_assert_eq(ipt_alloc(t, vm, 0, NULL, &own), -EPERM);
	cr_assert_eq(ipt_map(t, vm, gfn(0), limbo, 1), -EPERM);
	cr_assert_eq(ipt_unmap(t, vm, gfn(64), 1, NULL, NULL), -EPERM);
	cr_assert_eq(ipt_vm_freeze(t, vm, "vm@2", &again), -EPERM);
	cr_assert_eq(ipt_vm_reap(t, vm, NULL, NULL), -EBUSY);
	cr_assert_eq(ipt_free(t, vm, limbo, 1), 0);

	cr_assert_eq(ipt_vm_add(t, "clone", vm, &clone), 0);
	mine = help_mapped(t, clone, 70, 0);
	cr_assert_eq(ipt_place(t, clone, gfn(64), 100, &p), 6);
	cr_assert(p.kind == IPT_INHERITED && p.at.v == vm.v && p.frame.v == f.v);
	cr_assert_eq(ipt_place(t, clone, gfn(70), 100, &p), 1);
	cr_assert(p.kind == IPT_OWN && p.at.v == clone.v && p.frame.v == mine.v);
	cr_assert_eq(ipt_place(t, on, gfn(64), 100, &p), 16);
	cr_assert(p.kind == IPT_INHERITED && p.at.v == vm.v && p.frame.v == f.v);
	cr_assert_eq(ipt_place(t, clone, gfn(60), 100, &p), 4);
	cr_assert(p.kind == IPT_VOID && !p.at.v && !frame_valid(p.frame));
	cr_assert_eq(ipt_place(t, clone, gfn(60), 3, &p), 3);
	cr_assert_eq(ipt_place(t, clone, gfn(60), 0, &p), 0);
	cr_assert_eq(ipt_place(t, clone, gfn(IPT_MAX_GFN), 1, &p), 0);
	cr_assert_eq(ipt_place(t, clone, gfn(IPT_MAX_GFN - 1), 5, &p), 1);
	cr_assert_eq(ipt_place(t, vmid(0), gfn(64), 1, &p), 0);

	/* Frozen again, the VM has two ancestors. */
	frame_t second = help_mapped(t, on, 65, 0);
	cr_assert_eq(ipt_vm_freeze(t, on, "vm@2", &again), 0);
	cr_assert_eq(ipt_place(t, again, gfn(65), 100, &p), 1);
	cr_assert(p.kind == IPT_INHERITED && p.at.v == on.v && p.frame.v == second.v);
	cr_assert_eq(ipt_lookup(t, again, gfn(66)).v, f.v + 2);
	help_audit(t);
	help_reap(t, clone);
	help_reap(t, again);
	help_reap(t, on);
	help_reap(t, vm);
	help_reap(t, other);
	cr_assert_eq(ipt_free_frames(t), 1000);
	help_audit(t);
	ipt_detach(t);
}

Test(ipt_registry, thousands)
{
	struct ipt_config config = {
		.kind = IPT_INDEX, .frames = 100, .max_vms = 5000, .nodes = 1, .colours = 1};
	struct ipt *t = NULL;
	char name[IPT_NAME_LEN];
	vmid_t base, vm, found;

	cr_assert_eq(ipt_create(&t, &config), 0);
	base = help_vm(t, "base");
	for (unsigned i = 0; i < 4000; i++) {
		snprintf(name, sizeof(name), "clone-%u", i);
		cr_assert_eq(ipt_vm_add(t, name, base, &vm), 0);
		cr_assert_eq(vm.v, i + 2);
	}
	for (unsigned i = 0; i < 4000; i += 7) {
		snprintf(name, sizeof(name), "clone-%u", i);
		cr_assert_eq(ipt_vm_find(t, name, &found), 0);
		cr_assert_eq(found.v, i + 2);
		cr_assert_eq(ipt_vm_add(t, name, base, &vm), -EEXIST);
	}
	help_reap(t, vmid(3000));
	help_reap(t, vmid(2000));
	cr_assert_eq(help_vm(t, "a").v, 2000);
	cr_assert_eq(help_vm(t, "b").v, 3000);
	cr_assert_eq(help_vm(t, "c").v, 4002);
	help_audit(t);
	ipt_detach(t);
}

static int fail_first(void *ctx, frame_t first, uint32_t count)
{
	int *calls = ctx;

	(void)first;
	(void)count;
	return (*calls)++ ? 0 : -EIO;
}

BOTH_KINDS(ipt_registry, reap_keeps_what_could_not_be_cleaned)
{
	struct ipt *t = help_table(kind, 2000);
	vmid_t vm = help_vm(t, "vm"), other = help_vm(t, "other"), found;
	struct ipt_vm_info info;
	int calls = 0;
	frame_t f;

	help_mapped(t, vm, 0, 3);
	help_mapped(t, other, 0, 3);
	help_mapped(t, vm, 160, 4);
	help_alloc(t, vm, 2);
	cr_assert_eq(ipt_pin(t, vm, gfn(3), &f), 0); /* by a process that is no more */
	cr_assert_eq(ipt_vm_reap(t, vm, fail_first, &calls), -EIO);
	cr_assert_eq(ipt_vm_info(t, vm, &info), 0);
	cr_assert(info.dying);
	cr_assert_gt(info.frames[IPT_LIMBO], 0);
	cr_assert_eq(info.frames[IPT_PRIVATE], 0);
	help_audit(t);
	cr_assert_eq(ipt_alloc(t, vm, 0, NULL, &f), -ENOENT, "a dying VM gets nothing");
	cr_assert_eq(ipt_vm_add(t, "vm", INVALID_VMID, &found), -EEXIST);
	cr_assert_eq(ipt_vm_reap(t, vm, fail_first, &calls), 0);
	cr_assert_eq(ipt_free_frames(t), 2000 - 8);
	help_audit(t);
	ipt_detach(t);
}
