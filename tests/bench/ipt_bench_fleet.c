/*
 * A fleet of clones: one template of 128 MiB and FLEET clones of it, each with PRIVATE pages of its own, against what
 * per-VM radix tables hold for the same: every VM has all its gfns in tables of its own, and the reverse map names
 * every (VM, gfn) that sees a frame, a word each. Bytes are populated pages of the tables' memfds; the radix tables
 * are made for a part of the fleet, and what they take is proportional to it.
 */
#include "tests/bench/ipt_bench.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FLEET      500
#define PRIVATE    500
#define CLONES     1000
#define RUN        4  /* half of the private pages come in runs of so many, half alone */
#define RADIX_PART 20 /* VMs for which radix tables are made */
#define REVERSE    8  /* bytes of a reverse map's word */

static void check(int err, const char *what)
{
	if (!err)
		return;
	fprintf(stderr, "bench-ipt: fleet: %s: %s\n", what, strerror(-err));
	exit(1);
}

static struct ipt *table(enum ipt_kind kind, uint32_t frames)
{
	struct ipt_config config = {.kind = kind,
				    .frames = frames,
				    .max_vms = CLONES + 8,
				    .nodes = 1,
				    .colours = 1,
				    .seed = 20261125};
	struct ipt *t;

	check(ipt_create(&t, &config), "create a table");
	return t;
}

static vmid_t add(struct ipt *t, const char *what, unsigned i, vmid_t parent)
{
	char name[IPT_NAME_LEN];
	vmid_t vm;

	snprintf(name, sizeof(name), "%s%u", what, i);
	check(ipt_vm_add(t, name, parent, &vm), "add a VM");
	return vm;
}

static void map_run(struct ipt *t, vmid_t vm, uint64_t g, unsigned order)
{
	frame_t f;

	check(ipt_alloc(t, vm, order, NULL, &f), "allocate");
	check(ipt_map(t, vm, gfn(g), f, 1u << order), "map");
}

static void map_guest(struct ipt *t, vmid_t vm)
{
	for (uint64_t g = 0; g < BENCH_VM_FRAMES; g += 512)
		map_run(t, vm, g, 9);
}

static uint64_t total(struct ipt *t)
{
	struct ipt_bytes b;

	ipt_bytes(t, &b);
	return b.array + b.side + b.forward + b.slots + b.other;
}

static uint64_t fleet_bytes(void)
{
	struct ipt *t = table(IPT_INDEX, BENCH_VM_FRAMES + FLEET * (PRIVATE + RUN) + 4096);
	vmid_t vm = add(t, "vm", 0, INVALID_VMID), template = vm;

	map_guest(t, vm);
	check(ipt_vm_freeze(t, vm, "vm@1", &vm), "freeze");
	for (unsigned i = 0; i < FLEET; i++) {
		vmid_t clone = add(t, "clone", i, template);
		unsigned have = 0;

		while (have < PRIVATE) {
			bool run = have < PRIVATE / 2;
			uint64_t g = bench_random() % (BENCH_VM_FRAMES / RUN) * RUN;
			struct ipt_place p;

			if (ipt_place(t, clone, gfn(g), 1, &p) && p.kind == IPT_OWN)
				continue;
			map_run(t, clone, g, run ? 2 : 0);
			have += run ? RUN : 1;
		}
	}
	uint64_t bytes = total(t);
	ipt_detach(t);
	return bytes;
}

/* What 1,000 more clones take before they write to anything. */
static void clone_bytes(void)
{
	struct ipt *t = table(IPT_INDEX, 4 * BENCH_VM_FRAMES);
	vmid_t vm = add(t, "vm", 0, INVALID_VMID), template = vm;

	map_guest(t, vm);
	check(ipt_vm_freeze(t, vm, "vm@1", &vm), "freeze");
	uint64_t before = total(t);
	for (unsigned i = 0; i < CLONES; i++)
		add(t, "clone", i, template);
	bench_tell_value("clone-table-bytes", (double)(total(t) - before) / CLONES, "bytes", 100);
	ipt_detach(t);
}

static double radix_bytes_a_vm(void)
{
	struct ipt *t = table(IPT_RADIX, RADIX_PART * BENCH_VM_FRAMES);
	struct ipt_bytes b;

	for (unsigned i = 0; i < RADIX_PART; i++)
		map_guest(t, add(t, "vm", i, INVALID_VMID));
	ipt_bytes(t, &b);
	ipt_detach(t);
	return (double)b.forward / RADIX_PART;
}

void bench_fleet(void)
{
	if (bench_wanted("clone-table-bytes"))
		clone_bytes();
	if (!bench_wanted("fleet-metadata-ratio") && !bench_wanted("fleet-metadata-mib") &&
	    !bench_wanted("fleet-radix-mib"))
		return;
	double ours = (double)fleet_bytes();
	double radix = FLEET * (radix_bytes_a_vm() + (double)BENCH_VM_FRAMES * REVERSE);

	bench_tell_value("fleet-metadata-ratio", ours / radix, "ratio", 0.1);
	bench_tell_value("fleet-metadata-mib", ours / (double)MiB, "MiB", -1);
	bench_tell_value("fleet-radix-mib", radix / (double)MiB, "MiB", -1);
}
