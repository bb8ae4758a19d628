/* machine.c: banks, their places in the window, and the device tree, read back by libfdt. */
#include "vmm/window.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <libfdt.h>
#include <stdio.h>
#include <string.h>

Test(boot_machine, banks)
{
	struct machine m = {0};
	cr_assert_eq(machine_set_memory(&m, 0), -EINVAL);
	cr_assert_eq(machine_set_memory(&m, 1024), -EINVAL);
	cr_assert_eq(machine_set_memory(&m, 4097), -EINVAL);
	cr_assert_eq(machine_set_memory(&m, UINT64_MAX & ~PAGE_MASK), -EINVAL);
	cr_assert_eq(machine_set_memory(&m, 4096), 0);
	cr_assert_eq(m.banks, 1);
	cr_assert_eq(machine_set_memory(&m, 3 * GiB), 0);
	cr_assert_eq(m.banks, 1);
	cr_assert_eq(m.bank[0].bytes, 3 * GiB);
	cr_assert_eq(machine_set_memory(&m, 3 * GiB + 4096), 0);
	cr_assert_eq(m.banks, 2);
	cr_assert_eq(m.bank[0].bytes, 3 * GiB);
	cr_assert_eq(m.bank[1].base.v, 4 * GiB);
	cr_assert_eq(m.bank[1].bytes, 4096);
	cr_assert_eq(m.mem_bytes, 3 * GiB + 4096);
}

Test(boot_machine, is_ram)
{
	struct machine m = {0};
	cr_assert_eq(machine_set_memory(&m, 4 * GiB), 0);
	static const struct {
		uint64_t at, len;
		bool is;
	} cases[] = {
		{0, 1, true},
		{0, 3 * GiB, true},
		{0, 3 * GiB + 1, false},
		{1, 3 * GiB, false},
		{3 * GiB - 1, 1, true},
		{3 * GiB - 1, 2, false},
		{3 * GiB + 1, 0, false},
		{MACHINE_MMIO_BASE, 4, false},
		{4 * GiB - 1, 2, false},
		{4 * GiB, GiB, true},
		{4 * GiB, GiB + 1, false},
		{5 * GiB - 8, 8, true},
		{5 * GiB, 1, false},
		{8, UINT64_MAX, false},
		{UINT64_MAX, 2, false},
		{UINT64_MAX - 7, 8, false},
	};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		cr_expect_eq(machine_is_ram(&m, gpa(cases[i].at), cases[i].len), cases[i].is,
			     "case %zu", i);
}

Test(boot_machine, devices_are_near_small_memory)
{
	struct machine m = {0};
	static const uint64_t sizes[] = {
		PAGE_SIZE, 256 * MiB, GiB - 2 * MiB, GiB - 2 * MiB + PAGE_SIZE,
		GiB,       3 * GiB,   64 * GiB};
	for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++) {
		cr_assert_eq(machine_set_memory(&m, sizes[i]), 0);
		uint64_t base = machine_mmio_base(m.bank[0].bytes);
		cr_expect_eq(base, i < 3 ? GiB - 2 * MiB : 0xD0000000);
		for (unsigned slot = 0; slot < MACHINE_MAX_VIRTIO; slot++)
			cr_expect_null(
				machine_bank_of(&m, gpa(base + slot * MACHINE_MMIO_STRIDE), 1));
	}
}

/* Persistent memory lies above RAM and above 4 GiB, aligned, and no memory map tells of it. */
Test(boot_machine, pmem_banks)
{
	static const uint64_t rams[] = {64 * MiB, 64 * MiB + 4096, 3 * GiB, 3 * GiB + 4096,
					7 * GiB + 12288};
	for (size_t i = 0; i < sizeof(rams) / sizeof(rams[0]); i++) {
		struct machine m = {0};
		cr_assert_eq(machine_add_pmem(&m, 4096), -EINVAL, "RAM first");
		cr_assert_eq(machine_set_memory(&m, rams[i]), 0);
		unsigned ram = m.banks;
		uint64_t ram_end = m.bank[ram - 1].base.v + m.bank[ram - 1].bytes;
		cr_assert_eq(machine_add_pmem(&m, 0), -EINVAL);
		cr_assert_eq(machine_add_pmem(&m, 4097), -EINVAL);
		cr_assert_eq(machine_add_pmem(&m, 64 * GiB + 4096), -EINVAL);
		cr_assert_eq(machine_add_pmem(&m, 4096), 0);
		cr_assert_eq(machine_add_pmem(&m, 64 * GiB), 0);
		cr_assert_eq(machine_add_pmem(&m, 3 * MiB), 0);
		cr_assert_eq(machine_add_pmem(&m, 4096), 0);
		cr_assert_eq(machine_add_pmem(&m, 4096), -ENOSPC);
		cr_assert_eq(m.ram_banks, ram);
		cr_assert_eq(m.banks, ram + 4);
		cr_assert_eq(m.mem_bytes, rams[i], "RAM alone");
		for (unsigned b = 1; b < m.banks; b++) {
			const struct machine_bank *at = &m.bank[b], *before = at - 1;
			cr_assert_eq(at->pmem, b >= ram);
			cr_assert_geq(at->base.v, before->base.v + before->bytes);
			cr_assert_geq(at->window, before->window + before->bytes);
			cr_assert(!at->pmem || (at->base.v >= 4 * GiB && at->base.v >= ram_end));
			cr_assert_eq(at->base.v % (2 * MiB), 0);
			cr_assert_eq(at->window % (2 * MiB), 0, "2 MiB of gpa are 2 MiB of hva");
			cr_assert_eq(machine_is_ram(&m, at->base, 1), !at->pmem);
			cr_assert_eq(machine_bank_of(&m, at->base, at->bytes), at);
			cr_assert_null(machine_bank_of(&m, at->base, at->bytes + 1));
		}
		const struct machine_bank *last = &m.bank[m.banks - 1];
		cr_assert_eq(machine_window_bytes(&m), last->window + 4096);

		static char fdt[65536];
		m.cpus = 1;
		cr_assert_eq(machine_fdt(&m, gpa(0), 0, fdt, sizeof(fdt)), 0);
		unsigned nodes = 0;
		for (int n = -1; (n = fdt_node_offset_by_prop_value(fdt, n, "device_type", "memory",
								    sizeof("memory"))) >= 0;)
			nodes++;
		cr_assert_eq(nodes, ram);
	}
}

/* The window leads from every page of every bank to itself and back, and from gaps nowhere. */
Test(boot_machine, window_of_all_banks)
{
	struct machine m = {0};
	cr_assert_eq(machine_set_memory(&m, 3 * GiB + 5 * PAGE_SIZE), 0);
	cr_assert_eq(machine_add_pmem(&m, 3 * PAGE_SIZE), 0);
	cr_assert_eq(machine_add_pmem(&m, 4 * MiB), 0);
	struct window w = {.base = (uint8_t *)(uintptr_t)(1ull << 40),
			   .bytes = machine_window_bytes(&m),
			   .machine = &m};
	for (unsigned i = 0; i < m.banks; i++) {
		const struct machine_bank *b = &m.bank[i];
		gfn_t first = gpa_gfn(b->base);
		uint64_t pages = b->bytes / PAGE_SIZE;
		for (uint64_t p = 0; p < pages; p += p == 5 && pages > 2048 ? pages - 6 : 1) {
			uint8_t *at = window_at(&w, gfn_add(first, p));
			cr_assert_eq(at, w.base + b->window + p * PAGE_SIZE);
			cr_assert_eq(window_gfn(&w, (uintptr_t)at).v, first.v + p);
		}
		cr_assert_null(window_at(&w, gfn_add(first, pages)), "bank %u", i);
		uint64_t end = (uintptr_t)w.base + b->window + b->bytes;
		if (i != 0) /* the second bank of RAM follows the first */
			cr_assert_eq(window_gfn(&w, end).v, INVALID_GFN.v);
	}
	cr_assert_eq(window_gfn(&w, (uintptr_t)w.base - 1).v, INVALID_GFN.v);
	cr_assert_null(window_at(&w, gpa_gfn(gpa(MACHINE_MMIO_BASE))));
}

static struct machine whole(uint64_t bytes)
{
	struct machine m = {.name = "web-1",
			    .cpus = 8,
			    .virtio_slots = 16,
			    .cmdline = "root=/dev/vda \"quoted\""};
	for (unsigned i = 0; i < 16; i++)
		m.virtio_id[i] = 2 + i;
	cr_assert_eq(machine_set_memory(&m, bytes), 0);
	return m;
}

static uint32_t cell(const void *fdt, int node, const char *name, unsigned i)
{
	int len;
	const fdt32_t *p = fdt_getprop(fdt, node, name, &len);
	cr_assert(p && len >= (int)(4 * (i + 1)), "%s", name);
	return fdt32_to_cpu(p[i]);
}

static uint64_t cells2(const void *fdt, int node, const char *name, unsigned i)
{
	return (uint64_t)cell(fdt, node, name, i) << 32 | cell(fdt, node, name, i + 1);
}

static const char *text(const void *fdt, int node, const char *name)
{
	int len;
	const char *p = fdt_getprop(fdt, node, name, &len);
	cr_assert(p && len > 0 && p[len - 1] == '\0', "%s", name);
	return p;
}

static uint8_t blob[20000] __attribute__((aligned(8)));

Test(boot_machine, tree)
{
	struct machine m = whole(5 * GiB);
	memset(blob, 0xaa, sizeof(blob));
	cr_assert_eq(machine_fdt(&m, gpa(0x7f00000), 12345, blob, sizeof(blob)), 0);
	cr_assert_eq(fdt_check_full(blob, sizeof(blob)), 0);
	cr_assert_lt(fdt_totalsize(blob), 8192);
	cr_assert_str_eq(text(blob, 0, "compatible"), "invisor,pc");
	cr_assert_str_eq(text(blob, 0, "model"), "web-1");
	cr_assert_eq(cell(blob, 0, "#address-cells", 0), 2);
	cr_assert_eq(cell(blob, 0, "#size-cells", 0), 2);

	int n = fdt_path_offset(blob, "/chosen");
	cr_assert_str_eq(text(blob, n, "bootargs"), m.cmdline);
	cr_assert_eq(cells2(blob, n, "linux,initrd-start", 0), 0x7f00000);
	cr_assert_eq(cells2(blob, n, "linux,initrd-end", 0), 0x7f00000 + 12345);
	int uart = fdt_path_offset(blob, text(blob, n, "stdout-path"));
	cr_assert_eq(fdt_node_check_compatible(blob, uart, "ns16550a"), 0);
	cr_assert_eq(cell(blob, uart, "reg", 0), 1, "an I/O port");
	cr_assert_eq(cell(blob, uart, "reg", 1), MACHINE_COM1_PORT);
	cr_assert_eq(cell(blob, uart, "reg", 2), 8);
	cr_assert_eq(cell(blob, uart, "interrupts", 0), MACHINE_COM1_GSI);

	int bank0 = fdt_path_offset(blob, "/memory@0");
	int bank1 = fdt_path_offset(blob, "/memory@100000000");
	cr_assert_str_eq(text(blob, bank0, "device_type"), "memory");
	cr_assert_eq(cells2(blob, bank0, "reg", 0), 0);
	cr_assert_eq(cells2(blob, bank0, "reg", 2), 3 * GiB);
	cr_assert_eq(cells2(blob, bank1, "reg", 0), 4 * GiB);
	cr_assert_eq(cells2(blob, bank1, "reg", 2), 2 * GiB);

	int io = fdt_node_offset_by_phandle(blob, cell(blob, 0, "interrupt-parent", 0));
	cr_assert_eq(fdt_node_check_compatible(blob, io, "intel,ce4100-ioapic"), 0);
	cr_assert_eq(cells2(blob, io, "reg", 0), MACHINE_IOAPIC_BASE);
	cr_assert_eq(cell(blob, io, "#interrupt-cells", 0), 2);

	unsigned found = 0;
	for (n = fdt_node_offset_by_compatible(blob, -1, "virtio,mmio"); n >= 0;
	     n = fdt_node_offset_by_compatible(blob, n, "virtio,mmio"), found++) {
		char name[32];
		uint64_t base = machine_mmio_base(m.bank[0].bytes) + found * MACHINE_MMIO_STRIDE;
		snprintf(name, sizeof(name), "virtio_mmio@%" PRIx64, base);
		cr_assert_str_eq(fdt_get_name(blob, n, NULL), name);
		cr_assert_eq(cells2(blob, n, "reg", 0), base);
		cr_assert_eq(cells2(blob, n, "reg", 2), MACHINE_MMIO_BYTES);
		cr_assert_eq(cell(blob, n, "interrupts", 0), MACHINE_VIRTIO_GSI + found);
		cr_assert_eq(cell(blob, n, "interrupts", 1), 2, "level, high");
		cr_assert_eq(cell(blob, n, "invisor,virtio-id", 0), 2 + found);
	}
	cr_assert_eq(found, 16);

	unsigned cpus = 0;
	fdt_for_each_subnode(n, blob, fdt_path_offset(blob, "/cpus"))
	{
		cr_assert_str_eq(text(blob, n, "device_type"), "cpu");
		cr_assert_eq(cell(blob, n, "reg", 0), cpus);
		cpus++;
	}
	cr_assert_eq(cpus, 8);
}

Test(boot_machine, small_tree)
{
	struct machine m = {.name = "", .cpus = 1};
	cr_assert_eq(machine_set_memory(&m, 16 * MiB), 0);
	cr_assert_eq(machine_fdt(&m, gpa(0), 0, blob, sizeof(blob)), 0);
	int chosen = fdt_path_offset(blob, "/chosen");
	cr_assert_str_eq(text(blob, chosen, "bootargs"), "");
	cr_assert_null(fdt_getprop(blob, chosen, "linux,initrd-start", NULL));
	cr_assert_lt(fdt_path_offset(blob, "/memory@100000000"), 0);
	cr_assert_lt(fdt_node_offset_by_compatible(blob, -1, "virtio,mmio"), 0);
}

/* Every size too small is -ENOSPC, and nothing is written behind it. */
Test(boot_machine, no_space)
{
	struct machine m = whole(5 * GiB);
	cr_assert_eq(machine_fdt(&m, gpa(0x1000), 1, blob, sizeof(blob)), 0);
	size_t need = fdt_totalsize(blob);
	size_t size = 0;
	int err;
	while (memset(blob, 0xaa, sizeof(blob)),
	       (err = machine_fdt(&m, gpa(0x1000), 1, blob, size)) == -ENOSPC) {
		for (size_t i = size; i < sizeof(blob); i++)
			cr_assert_eq(blob[i], 0xaa);
		size++;
	}
	cr_assert_eq(err, 0);
	/* While it is written, libfdt wants a few bytes more than the result has. */
	cr_assert(size >= need && size < need + 64, "%zu, %zu", size, need);
}

Test(boot_machine, nonsense_is_refused)
{
	struct machine m = whole(16 * MiB);
	m.cpus = MACHINE_MAX_CPUS + 1;
	cr_assert_eq(machine_fdt(&m, gpa(0), 0, blob, sizeof(blob)), -EINVAL);
	m = whole(16 * MiB);
	m.virtio_slots = MACHINE_MAX_VIRTIO + 1;
	cr_assert_eq(machine_fdt(&m, gpa(0), 0, blob, sizeof(blob)), -EINVAL);
	m = whole(16 * MiB);
	cr_assert_eq(machine_fdt(&m, gpa(8), UINT64_MAX, blob, sizeof(blob)), -EINVAL);
}
