/* The worlds to measure in. */
#include "ipt/radix.h"
#include "tests/bench/ipt_bench.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void bench_check(int err, const char *what)
{
	if (!err)
		return;
	fprintf(stderr, "bench-ipt: %s: %s\n", what, strerror(-err));
	exit(1);
}

struct ipt *bench_make(enum ipt_kind kind, uint32_t max_vms, uint32_t frames)
{
	struct ipt_config config = {.kind = kind,
				    .frames = frames,
				    .max_vms = max_vms,
				    .nodes = 1,
				    .colours = 1,
				    .seed = 20250611};
	struct ipt *t;

	bench_check(ipt_create(&t, &config), "create a table");
	return t;
}

vmid_t bench_add_vm(struct ipt *t, const char *what, unsigned i, vmid_t parent)
{
	char name[IPT_NAME_LEN];
	vmid_t vm;

	snprintf(name, sizeof(name), "%s%u", what, i);
	bench_check(ipt_vm_add(t, name, parent, &vm), "add a VM");
	return vm;
}

void bench_map(struct ipt *t, vmid_t vm, uint64_t g, unsigned order)
{
	frame_t f;

	bench_check(ipt_alloc(t, vm, order, NULL, &f), "allocate");
	bench_check(ipt_map(t, vm, gfn(g), f, 1u << order), "map");
}

bool bench_search(const struct ipt *t, uint32_t page, unsigned level, uint32_t f)
{
	const radix_entry *entries = radix_page(t, page);
	uint64_t want = (uint64_t)f << RADIX_SHIFT | RADIX_PRESENT;

	for (unsigned i = 0; i < RADIX_ENTRIES; i++) {
		uint64_t e = load_relaxed64(&entries[i]);

		if (level == 0 ? e == want
			       : e & RADIX_PRESENT && bench_search(t, (uint32_t)(e >> RADIX_SHIFT),
								   level - 1, f))
			return true;
	}
	return false;
}

struct ipt *bench_table(enum ipt_kind kind)
{
	struct ipt *t = bench_make(kind, BENCH_VMS, BENCH_FRAMES);

	for (unsigned i = 0; i < BENCH_VMS; i++)
		bench_add_vm(t, "vm", i, INVALID_VMID);
	return t;
}

/* 2 MiB of a guest's memory. */
static void map_guest(struct ipt *t, vmid_t vm, uint64_t g)
{
	if (g / 512 % 4) {
		bench_map(t, vm, g, 9);
		return;
	}
	for (unsigned i = 0; i < 512; i += IPT_CLUSTER_FRAMES)
		bench_map(t, vm, g + i, IPT_CLUSTER_ORDER);
}

/* The i-th gfn of 32,768 in an order that looks random; odd multipliers permute. */
static uint64_t scatter(unsigned i)
{
	uint32_t x = i * 20077u;

	x ^= (x & (BENCH_VM_FRAMES - 1)) >> 7;
	return (x * 12347u) & (BENCH_VM_FRAMES - 1);
}

/*
 * Step by step through each VM's memory, all VMs alternating, as guests that boot together do. Random
 * gfns come from a generator of their own, the same for any kind of table.
 */
void bench_fill(struct ipt *t, enum bench_shape shape, unsigned step, unsigned steps)
{
	unsigned from = BENCH_VM_FRAMES / 512 * step / steps * 512;
	unsigned to = BENCH_VM_FRAMES / 512 * (step + 1) / steps * 512;

	for (unsigned g = from; g < to; g += 512) {
		for (uint32_t vm = 1; vm <= BENCH_VMS; vm++) {
			if (shape == BENCH_GUESTS)
				map_guest(t, vmid(vm), g);
			for (unsigned i = g; shape != BENCH_GUESTS && i < g + 512; i++) {
				uint64_t at = scatter(i);

				/* 17 bits of gfn space for every bit of i: one frame per 128 gfns
				 * at least, anywhere in 36 bits. */
				if (shape == BENCH_SPARSE)
					at = (at << 21 | ((uint64_t)i * 40503u & 0x1fffff));
				bench_map(t, vmid(vm), at, 0);
			}
		}
	}
}

struct ipt *bench_world(enum ipt_kind kind, enum bench_shape shape)
{
	struct ipt *t = bench_table(kind);

	bench_fill(t, shape, 0, 1);
	return t;
}
