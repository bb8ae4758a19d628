/* Creating, attaching, and what a table costs. */
#include "tests/unit/ipt_help.h"
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

Test(ipt_table, create_refuses_configs_out_of_range)
{
	const struct ipt_config good = {
		.kind = IPT_INDEX, .frames = 100, .max_vms = 4, .nodes = 1, .colours = 1};
	struct ipt_config bad[] = {good, good, good, good, good, good, good, good, good};
	struct ipt *t = NULL;

	bad[0].kind = (enum ipt_kind)7;
	bad[1].frames = 0;
	bad[2].frames = IPT_MAX_FRAMES + 1;
	bad[3].max_vms = 0;
	bad[4].max_vms = IPT_MAX_VMS;
	bad[5].nodes = 0;
	bad[6].nodes = IPT_MAX_NODES + 1;
	bad[7].colours = 3;
	bad[8].colours = 2 * IPT_MAX_COLOURS;
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		cr_assert_eq(ipt_create(&t, &bad[i]), -EINVAL, "config %u", i);
}

Test(ipt_table, attach_refuses_what_is_no_table)
{
	struct ipt *t = NULL;
	int empty = memfd_create("empty", 0), pipes[2];

	cr_assert_eq(ipt_attach(&t, empty), -EPROTO);
	cr_assert_eq(ftruncate(empty, 1 << 20), 0);
	cr_assert_eq(ipt_attach(&t, empty), -EPROTO);
	cr_assert_eq(pipe(pipes), 0);
	cr_assert_eq(ipt_attach(&t, pipes[0]), -EPROTO);
	cr_assert_eq(ipt_attach(&t, -1), -EBADF);

	struct ipt *whole = help_table(IPT_INDEX, 1000);
	char byte = 'x';
	cr_assert_eq(pwrite(ipt_fd(whole), &byte, 1, 0), 1);
	cr_assert_eq(ipt_attach(&t, ipt_fd(whole)), -EPROTO);
	ipt_detach(whole);

	/* A table can't be cut short; a copy of its first pages is none. */
	char page[8192];
	whole = help_table(IPT_INDEX, 1000);
	cr_assert_eq(ftruncate(ipt_fd(whole), 8192), -1);
	cr_assert_eq(errno, EPERM);
	cr_assert_eq(pread(ipt_fd(whole), page, sizeof(page), 0), (ssize_t)sizeof(page));
	cr_assert_eq(ftruncate(empty, 0), 0);
	cr_assert_eq(pwrite(empty, page, sizeof(page), 0), (ssize_t)sizeof(page));
	cr_assert_eq(ipt_attach(&t, empty), -EPROTO);
	ipt_detach(whole);
	ipt_detach(NULL);
}

BOTH_KINDS(ipt_table, two_handles_are_one_table)
{
	struct ipt *a = help_table(kind, 1000), *b = NULL;
	struct ipt_vm_info info;

	cr_assert_eq(ipt_attach(&b, ipt_fd(a)), 0);
	cr_assert_eq(ipt_config(b)->frames, 1000);
	vmid_t vm = help_vm(a, "one");
	frame_t f = help_mapped(a, vm, 77, 0);
	cr_assert_eq(ipt_lookup(b, vm, gfn(77)).v, f.v);
	ipt_detach(a); /* lives on while b has it */
	cr_assert_eq(ipt_vm_info(b, vm, &info), 0);
	cr_assert_eq(info.frames[IPT_PRIVATE], 1);
	help_audit(b);
	ipt_detach(b);
}

BOTH_KINDS(ipt_table, largest_pool_costs_nothing_until_used)
{
	/* The thread sanitizer leaves no room for 3 TiB of addresses. */
	const uint32_t frames = UNDER_TSAN ? IPT_MAX_FRAMES / 16 : IPT_MAX_FRAMES;
	struct ipt_config config = {.kind = kind,
				    .frames = frames,
				    .max_vms = IPT_MAX_VMS - 1,
				    .nodes = IPT_MAX_NODES,
				    .colours = 16,
				    .seed = 1};
	struct ipt *t = NULL;
	struct ipt_bytes b;

	cr_assert_eq(ipt_create(&t, &config), 0);
	cr_assert_eq(ipt_free_frames(t), frames);
	cr_assert_eq(ipt_largest_order(t), IPT_MAX_ORDER);
	cr_assert_eq(ipt_bytes(t, &b), 0);
	cr_assert_eq(b.array + b.side, 0);
	cr_assert_lt(b.forward + b.other, 256 * KiB);

	vmid_t vm = help_vm(t, "one");
	frame_t f = help_mapped(t, vm, 512, 9);
	struct ipt_owner o;
	for (uint32_t i = 0; i < frames; i += frames / 1000)
		cr_assert_eq(ipt_owner(t, frame(i), &o), 0);
	cr_assert_eq(ipt_lookup(t, vm, gfn(1000)).v, f.v + 488);
	cr_assert_eq(ipt_bytes(t, &b), 0);
	cr_assert_leq(b.array, 16 * KiB,
		      "looking at untouched frames must not populate their words");
	cr_assert_leq(b.side, 4 * KiB);
	ipt_detach(t);
}

/* All-in bytes a frame at full occupancy: the budget. The bench measures the same on 8 GiB. */
static double full_cost(unsigned order, bool scattered)
{
	const uint32_t frames = 1 << 18;
	struct ipt *t = help_table(IPT_INDEX, frames);
	vmid_t vm = help_vm(t, "one");
	struct ipt_bytes b;
	frame_t pinned;

	for (uint32_t i = 0; i < frames; i += 1u << order) {
		uint64_t g = scattered ? (uint64_t)i * 7919 * 16 % IPT_MAX_GFN : i;

		frame_t f = help_mapped(t, vm, g, order);
		if (i % 512 == 0) { /* the side entries too */
			cr_assert_eq(ipt_pin(t, vm, gfn(g), &pinned), 0);
			ipt_unpin(t, f);
		}
	}
	cr_assert_eq(ipt_free_frames(t), 0);
	cr_assert_eq(ipt_bytes(t, &b), 0);
	ipt_detach(t);
	return (double)(b.array + b.side + b.forward + b.other) / frames;
}

Test(ipt_table, full_pool_stays_within_budget)
{
	double clustered = full_cost(9, false), single = full_cost(0, true);

	cr_assert_leq(clustered, 14.0, "%.2f bytes a frame in clusters", clustered);
	cr_assert_leq(single, 20.0, "%.2f bytes a frame singly", single);
}
