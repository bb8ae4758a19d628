/* The worlds to measure in. */
#include "tests/bench/ipt_bench.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void check(int err, const char *what)
{
	if (!err)
		return;
	fprintf(stderr, "bench-ipt: %s: %s\n", what, strerror(-err));
	exit(1);
}

struct ipt *bench_table(enum ipt_kind kind)
{
	struct ipt_config config = {.kind = kind,
				    .frames = BENCH_FRAMES,
				    .max_vms = BENCH_VMS,
				    .nodes = 1,
				    .colours = 1,
				    .seed = 20250611};
	struct ipt *t;

	check(ipt_create(&t, &config), "create a table");
	for (int i = 0; i < BENCH_VMS; i++) {
		char name[IPT_NAME_LEN];
		vmid_t vm;

		snprintf(name, sizeof(name), "vm%d", i);
		check(ipt_vm_add(t, name, INVALID_VMID, &vm), "add a VM");
	}
	return t;
}

static void map_block(struct ipt *t, vmid_t vm, uint64_t g, unsigned order)
{
	frame_t f;

	check(ipt_alloc(t, vm, order, NULL, &f), "allocate");
	check(ipt_map(t, vm, gfn(g), f, 1u << order), "map");
}

/* 2 MiB of a guest's memory. */
static void map_guest(struct ipt *t, vmid_t vm, uint64_t g)
{
	if (g / 512 % 4) {
		map_block(t, vm, g, 9);
		return;
	}
	for (unsigned i = 0; i < 512; i += IPT_CLUSTER_FRAMES)
		map_block(t, vm, g + i, IPT_CLUSTER_ORDER);
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
				map_block(t, vmid(vm), at, 0);
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
