/* What `invisor density` compares with (vmm/density_replay.c) and how (vmm/density_report.c), without guests. */
#include "tests/unit/ipt_help.h"
#include "vmm/density.h"

#define FRAMES 4096

static struct machine machine_of(uint64_t bytes)
{
	struct machine m = {.cpus = 1};
	cr_assert_eq(machine_set_memory(&m, bytes), 0);
	return m;
}

static void replay(struct density_replay *out, struct ipt *t, const struct machine *m,
		   uint64_t limit)
{
	char error[ERROR_MAX] = "";
	cr_assert_eq(density_replay(out, t, m, limit, error), 0, "%s", error);
}

static vmid_t clone_of(struct ipt *t, vmid_t template, const char *name)
{
	vmid_t vm = INVALID_VMID;
	cr_assert_eq(ipt_vm_add(t, name, template, &vm), 0);
	return vm;
}

/* Page by page, without ipt_place. */
static uint64_t seen(struct ipt *t, vmid_t vm, uint64_t gfns)
{
	uint64_t n = 0;
	for (uint64_t g = 0; g < gfns; g++)
		n += frame_valid(ipt_lookup(t, vm, gfn(g)));
	return n;
}

Test(density_replay, vms_map_what_they_own)
{
	struct density_replay p;
	struct machine m = machine_of(16 * MiB);
	struct ipt *t = help_table(IPT_INDEX, FRAMES);
	vmid_t a = help_vm(t, "a"), b = help_vm(t, "b");
	help_vm(t, "void");
	help_mapped(t, a, 0, 9);
	help_mapped(t, a, 1000, 0);
	help_mapped(t, b, 4095, 0);
	help_alloc(t, b, 3); /* limbo is nobody's to see */
	replay(&p, t, &m, FRAMES);
	cr_expect_eq(p.vms, 3);
	cr_expect_eq(p.vms_replayed, 3);
	cr_expect_eq(p.seen, 514);
	cr_expect_eq(p.mappings, 514);
	cr_expect_eq(p.inherited, 0);
	cr_expect_eq(p.mismatches, 0);
	/* a: root, two above, leaves of gfn 0 and of 1000; b: root, two above, a leaf. */
	cr_expect_eq(p.table_pages, 5 + 4);
	cr_expect_geq(p.bytes.forward, p.table_pages * PAGE_SIZE);
	cr_expect_geq(p.bytes.array, p.mappings * 8);
	ipt_detach(t);
}

Test(density_replay, nothing_mapped_and_no_vms)
{
	struct density_replay p;
	struct machine m = machine_of(16 * MiB);
	struct ipt *t = help_table(IPT_INDEX, FRAMES);
	replay(&p, t, &m, FRAMES);
	cr_expect_eq(p.vms, 0);
	help_vm(t, "a");
	replay(&p, t, &m, 0);
	cr_expect_eq(p.vms_replayed, 1);
	cr_expect_eq(p.seen + p.mappings + p.table_pages + p.mismatches, 0);
	ipt_detach(t);
}

/* A VM with 1024 frames, frozen: it goes on as "vm" with two clones. */
struct family {
	struct ipt *t;
	vmid_t template, vm, x, y;
};

static struct family make_family(void)
{
	struct family f = {.t = help_table(IPT_INDEX, FRAMES)};
	f.template = help_vm(f.t, "vm");
	help_mapped(f.t, f.template, 0, 9);
	help_mapped(f.t, f.template, 2048, 9);
	cr_assert_eq(ipt_vm_freeze(f.t, f.template, "vm@1", &f.vm), 0);
	f.x = clone_of(f.t, f.template, "x");
	f.y = clone_of(f.t, f.template, "y");
	return f;
}

Test(density_replay, clones_map_what_they_inherit)
{
	struct density_replay p;
	struct machine m = machine_of(16 * MiB);
	struct family f = make_family();
	uint32_t done;
	/* x: frames of its own over inherited ones and where there were none; holes; shared frames. */
	help_mapped(f.t, f.x, 16, 4);
	help_mapped(f.t, f.x, 600, 2);
	cr_assert_eq(ipt_drop(f.t, f.x, gfn(100), 50, &done, NULL, NULL), 0);
	help_mapped(f.t, f.y, 700, 2);
	cr_assert_eq(ipt_publish(f.t, f.x, gfn(600), 4, &done), 0);
	frame_t shared = ipt_lookup(f.t, f.x, gfn(600));
	cr_assert_eq(ipt_merge(f.t, f.y, gfn(700), shared, 4, &done, NULL, NULL), 0);
	replay(&p, f.t, &m, FRAMES);
	cr_expect_eq(p.vms, 3, "templates aren't replayed");
	cr_expect_eq(p.vms_replayed, 3);
	cr_expect_eq(p.seen, seen(f.t, f.vm, 4096) + seen(f.t, f.x, 4096) + seen(f.t, f.y, 4096));
	cr_expect_eq(p.seen, 3 * 1024 + 4 - 50 + 4);
	cr_expect_eq(p.inherited, 3 * 1024 - 16 - 50);
	cr_expect_eq(p.mappings, p.seen);
	cr_expect_eq(p.mismatches, 0);
	cr_expect_geq(p.bytes.array, p.mappings * 8);
	/* Each has a root, two above, and the leaves of 0 and 2048; x and y one more. */
	cr_expect_eq(p.table_pages, 3 * 5 + 2);
	help_audit(f.t);
	ipt_detach(f.t);
}

Test(density_replay, some_vms_stand_for_all)
{
	char error[ERROR_MAX] = "";
	struct density_replay all;
	struct density_row row = {.guests = 3};
	struct machine m = machine_of(16 * MiB);
	struct family f = make_family();
	replay(&all, f.t, &m, 3 * 1024);
	cr_expect_eq(all.vms_replayed, 3);
	replay(&row.replay, f.t, &m, 3 * 1024 - 1);
	cr_expect_eq(row.replay.vms, 3);
	cr_expect_eq(row.replay.vms_replayed, 2);
	cr_expect_eq(row.replay.seen, 3 * 1024);
	cr_expect_eq(row.replay.inherited, 3 * 1024);
	cr_expect_eq(row.replay.mappings, 2 * 1024);
	cr_expect_eq(row.replay.mismatches, 0);
	cr_expect_eq(density_radix_tables_bytes(&row), row.replay.bytes.forward * 3 / 2);
	cr_expect_eq(density_reverse_map_bytes(&row), row.replay.bytes.array * 3 / 2);
	row.replay = all;
	cr_expect_eq(density_radix_tables_bytes(&row), all.bytes.forward);
	cr_expect_eq(density_reverse_map_bytes(&row), all.bytes.array);
	cr_expect_eq(density_replay(&all, f.t, &m, 1023, error), -E2BIG);
	cr_expect(strstr(error, "1023"), "%s", error);
	ipt_detach(f.t);
}

Test(density_replay, memory_above_4_gib)
{
	struct density_replay p;
	struct machine m = machine_of(3 * GiB + 64 * MiB);
	struct ipt *t = help_table(IPT_INDEX, FRAMES);
	vmid_t a = help_vm(t, "a");
	help_mapped(t, a, 0, 4);
	help_mapped(t, a, MACHINE_HIGH_BASE / PAGE_SIZE + 5, 0);
	replay(&p, t, &m, FRAMES);
	cr_expect_eq(p.seen, 17);
	cr_expect_eq(p.mismatches, 0);
	ipt_detach(t);
}

/* The frames are asked as well as the VMs: what the walk over the VM's memory doesn't find is told. */
Test(density_replay, what_is_missing_is_told)
{
	struct density_replay p;
	struct machine m = machine_of(8 * MiB);
	struct family f = make_family();
	help_mapped(f.t, f.x, 2047, 0);
	replay(&p, f.t, &m, FRAMES);
	cr_expect_eq(p.seen, 3 * 512 + 1);
	/* 512 gfns of each of three, which aren't in the copy; and as many more viewers than mappings. */
	cr_expect_eq(p.mismatches, 2 * 3 * 512);
	ipt_detach(f.t);
}

Test(density_report, all_parts_of_the_table_count)
{
	const struct ipt_bytes b = {
		.array = 1, .side = 20, .slots = 300, .forward = 4000, .other = 50000};
	cr_expect_eq(density_table_bytes(&b), 54321);
}

Test(density_report, break_even)
{
	const unsigned guests[] = {1, 2, 4};
	const uint64_t flat[] = {100, 100, 100}, grows[] = {50, 150, 300}, high[] = {99, 99, 99};
	cr_expect_eq(density_break_even(guests, flat, high, 3), -1);
	cr_expect_eq(density_break_even(guests, flat, flat, 3), 1);
	cr_expect_float_eq(density_break_even(guests, flat, grows, 3), 1.5, 1e-9);
	cr_expect_eq(density_break_even(guests, flat, grows, 1), -1);
}
