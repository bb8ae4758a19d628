/*
 * A fleet of clones: one template of 128 MiB and FLEET clones of it, each with PRIVATE pages of its own, against what
 * per-VM radix tables hold for the same: every VM has all its gfns in tables of its own, and the reverse map names
 * every (VM, gfn) that sees a frame, a word each. Bytes are populated pages of the tables' memfds; the radix tables
 * are made for a part of the fleet, and what they take is proportional to it.
 */
#include "tests/bench/ipt_bench.h"

#define FLEET      500
#define PRIVATE    500
#define CLONES     1000
#define RUN        4  /* half of the private pages come in runs of so many, half alone */
#define RADIX_PART 20 /* VMs for which radix tables are made */
#define REVERSE    8  /* bytes of a reverse map's word */

static void map_guest(struct ipt *t, vmid_t vm)
{
	for (uint64_t g = 0; g < BENCH_VM_FRAMES; g += 512)
		bench_map(t, vm, g, 9);
}

static uint64_t total(struct ipt *t)
{
	struct ipt_bytes b;

	ipt_bytes(t, &b);
	return b.array + b.side + b.forward + b.slots + b.other;
}

static uint64_t fleet_bytes(void)
{
	struct ipt *t =
		bench_make(IPT_INDEX, CLONES + 8, BENCH_VM_FRAMES + FLEET * (PRIVATE + RUN) + 4096);
	vmid_t vm = bench_add_vm(t, "vm", 0, INVALID_VMID), template = vm;

	map_guest(t, vm);
	bench_check(ipt_vm_freeze(t, vm, "vm@1", &vm), "freeze");
	for (unsigned i = 0; i < FLEET; i++) {
		vmid_t clone = bench_add_vm(t, "clone", i, template);
		unsigned have = 0;

		while (have < PRIVATE) {
			bool run = have < PRIVATE / 2;
			uint64_t g = bench_random() % (BENCH_VM_FRAMES / RUN) * RUN;
			struct ipt_place p;

			if (ipt_place(t, clone, gfn(g), 1, &p) && p.kind == IPT_OWN)
				continue;
			bench_map(t, clone, g, run ? 2 : 0);
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
	struct ipt *t = bench_make(IPT_INDEX, CLONES + 8, 4 * BENCH_VM_FRAMES);
	vmid_t vm = bench_add_vm(t, "vm", 0, INVALID_VMID), template = vm;

	map_guest(t, vm);
	bench_check(ipt_vm_freeze(t, vm, "vm@1", &vm), "freeze");
	uint64_t before = total(t);
	for (unsigned i = 0; i < CLONES; i++)
		bench_add_vm(t, "clone", i, template);
	bench_tell_value("clone-table-bytes", (double)(total(t) - before) / CLONES, "bytes", 100);
	ipt_detach(t);
}

static double radix_bytes_a_vm(void)
{
	struct ipt *t = bench_make(IPT_RADIX, CLONES + 8, RADIX_PART * BENCH_VM_FRAMES);
	struct ipt_bytes b;

	for (unsigned i = 0; i < RADIX_PART; i++)
		map_guest(t, bench_add_vm(t, "vm", i, INVALID_VMID));
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
