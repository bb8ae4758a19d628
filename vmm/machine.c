/*
 * The machine's memory banks and its flattened device tree.
 *
 * The tree is written front to back by libfdt's sequential functions. Bindings: memory, cpus and
 * chosen as in the Devicetree Specification 0.4 (3.4, 3.8, 3.6); virtio,mmio, intel,ce4100-ioapic
 * and ns16550a as in Linux's Documentation/devicetree/bindings; ISA addresses (1, port) as in the
 * ISA bus binding to IEEE 1275.
 */
#include "vmm/machine.h"

#include <errno.h>
#include <libfdt.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define MACHINE_MEMORY_MAX (UINT64_C(1) << 40)

int machine_set_memory(struct machine *m, uint64_t mem_bytes)
{
	if (!mem_bytes || mem_bytes & PAGE_MASK || mem_bytes > MACHINE_MEMORY_MAX)
		return -EINVAL;
	uint64_t low = mem_bytes < MACHINE_LOW_END ? mem_bytes : MACHINE_LOW_END;
	m->mem_bytes = mem_bytes;
	m->bank[0] = (struct machine_bank){.base = gpa(0), .bytes = low};
	m->banks = 1;
	if (mem_bytes > low)
		m->bank[m->banks++] = (struct machine_bank){
			.base = gpa(MACHINE_HIGH_BASE), .bytes = mem_bytes - low, .window = low};
	m->ram_banks = m->banks;
	return 0;
}

static uint64_t pmem_align(uint64_t v)
{
	return (v + MACHINE_PMEM_ALIGN - 1) & ~(MACHINE_PMEM_ALIGN - 1);
}

int machine_add_pmem(struct machine *m, uint64_t bytes)
{
	if (!bytes || bytes & PAGE_MASK || bytes > MACHINE_PMEM_MAX || !m->banks)
		return -EINVAL;
	if (m->banks - m->ram_banks == MACHINE_MAX_PMEM)
		return -ENOSPC;
	const struct machine_bank *last = &m->bank[m->banks - 1];
	uint64_t base = pmem_align(last->base.v + last->bytes);
	m->bank[m->banks++] = (struct machine_bank){
		.base = gpa(base < MACHINE_HIGH_BASE ? MACHINE_HIGH_BASE : base),
		.bytes = bytes,
		.window = pmem_align(last->window + last->bytes),
		.pmem = true};
	return 0;
}

const struct machine_bank *machine_bank_of(const struct machine *m, gpa_t a, uint64_t len)
{
	for (unsigned i = 0; i < m->banks; i++) {
		const struct machine_bank *b = &m->bank[i];
		if (a.v >= b->base.v && a.v - b->base.v <= b->bytes &&
		    len <= b->bytes - (a.v - b->base.v))
			return b;
	}
	return NULL;
}

bool machine_is_ram(const struct machine *m, gpa_t a, uint64_t len)
{
	const struct machine_bank *b = machine_bank_of(m, a, len);
	return b && !b->pmem;
}

uint64_t machine_window_bytes(const struct machine *m)
{
	const struct machine_bank *last = &m->bank[m->banks - 1];
	return last->window + last->bytes;
}

/* A tree being written. The first failure sticks, so that calls needn't be checked one by one. */
struct tree {
	void *fdt;
	int status; /* 0 or -FDT_ERR_... */
};

static void note(struct tree *t, int status)
{
	if (!t->status)
		t->status = status;
}

static void begin(struct tree *t, const char *name)
{
	if (!t->status)
		note(t, fdt_begin_node(t->fdt, name));
}

__attribute__((format(printf, 2, 3))) static void begin_at(struct tree *t, const char *format, ...)
{
	char name[64];
	va_list ap;
	va_start(ap, format);
	vsnprintf(name, sizeof(name), format, ap);
	va_end(ap);
	begin(t, name);
}

static void end(struct tree *t)
{
	if (!t->status)
		note(t, fdt_end_node(t->fdt));
}

static void prop(struct tree *t, const char *name, const void *value, size_t len)
{
	if (!t->status)
		note(t, fdt_property(t->fdt, name, value, (int)len));
}

static void prop_string(struct tree *t, const char *name, const char *value)
{
	prop(t, name, value, strlen(value) + 1);
}

static void prop_cells(struct tree *t, const char *name, const uint32_t *cell, unsigned n)
{
	fdt32_t be[8];
	for (unsigned i = 0; i < n && i < 8; i++)
		be[i] = cpu_to_fdt32(cell[i]);
	prop(t, name, be, n * sizeof(be[0]));
}

static void prop_u32(struct tree *t, const char *name, uint32_t v)
{
	prop_cells(t, name, &v, 1);
}

/* reg of a node whose parent has two address and two size cells. */
static void prop_reg(struct tree *t, uint64_t base, uint64_t bytes)
{
	const uint32_t cell[] = {(uint32_t)(base >> 32), (uint32_t)base, (uint32_t)(bytes >> 32),
				 (uint32_t)bytes};
	prop_cells(t, "reg", cell, 4);
}

/* Linux's intel,ce4100-ioapic binding: pin, then 0 for edge rising or 2 for level high. */
static void prop_interrupt(struct tree *t, uint32_t gsi, uint32_t sense)
{
	const uint32_t cell[] = {gsi, sense};
	prop_cells(t, "interrupts", cell, 2);
}
#define SENSE_EDGE_RISING 0
#define SENSE_LEVEL_HIGH  2
#define IOAPIC_PHANDLE    1

static void tree_chosen(struct tree *t, const struct machine *m, gpa_t initrd,
			uint64_t initrd_bytes)
{
	begin(t, "chosen");
	prop_string(t, "bootargs", m->cmdline ? m->cmdline : "");
	prop_string(t, "stdout-path", "/isa/serial@i3f8");
	if (initrd_bytes) {
		fdt64_t at = cpu_to_fdt64(initrd.v);
		prop(t, "linux,initrd-start", &at, sizeof(at));
		at = cpu_to_fdt64(initrd.v + initrd_bytes);
		prop(t, "linux,initrd-end", &at, sizeof(at));
	}
	end(t);
}

static void tree_memory(struct tree *t, const struct machine *m)
{
	for (unsigned i = 0; i < m->ram_banks; i++) {
		begin_at(t, "memory@%" PRIx64, m->bank[i].base.v);
		prop_string(t, "device_type", "memory");
		prop_reg(t, m->bank[i].base.v, m->bank[i].bytes);
		end(t);
	}
}

static void tree_cpus(struct tree *t, const struct machine *m)
{
	begin(t, "cpus");
	prop_u32(t, "#address-cells", 1);
	prop_u32(t, "#size-cells", 0);
	for (unsigned i = 0; i < m->cpus; i++) {
		begin_at(t, "cpu@%x", i);
		prop_string(t, "device_type", "cpu");
		prop_string(t, "compatible", "invisor,x86-64");
		prop_u32(t, "reg", i); /* APIC id, and what a bare guest gets in RSI */
		end(t);
	}
	end(t);
}

static void tree_interrupts(struct tree *t)
{
	begin_at(t, "interrupt-controller@%" PRIx64, MACHINE_IOAPIC_BASE);
	prop_string(t, "compatible", "intel,ce4100-ioapic");
	prop_reg(t, MACHINE_IOAPIC_BASE, 0x1000);
	prop(t, "interrupt-controller", NULL, 0);
	prop_u32(t, "#interrupt-cells", 2);
	prop_u32(t, "#address-cells", 0);
	prop_u32(t, "phandle", IOAPIC_PHANDLE);
	end(t);
	begin_at(t, "local-apic@%" PRIx64, MACHINE_LAPIC_BASE);
	prop_string(t, "compatible", "intel,ce4100-lapic");
	prop_reg(t, MACHINE_LAPIC_BASE, 0x1000);
	end(t);
}

static void tree_virtio(struct tree *t, const struct machine *m)
{
	for (unsigned i = 0; i < m->virtio_slots; i++) {
		uint64_t base = machine_mmio_base(m->bank[0].bytes) + i * MACHINE_MMIO_STRIDE;
		begin_at(t, "virtio_mmio@%" PRIx64, base);
		prop_string(t, "compatible", "virtio,mmio");
		prop_reg(t, base, MACHINE_MMIO_BYTES);
		prop_interrupt(t, MACHINE_VIRTIO_GSI + i, SENSE_LEVEL_HIGH);
		prop_u32(t, "invisor,virtio-id", m->virtio_id[i]);
		end(t);
	}
}

/* Ports: (1, port) is an I/O address on an ISA bus. */
static void tree_isa(struct tree *t)
{
	begin(t, "isa");
	prop_string(t, "compatible", "isa");
	prop_u32(t, "#address-cells", 2);
	prop_u32(t, "#size-cells", 1);
	prop(t, "ranges", NULL, 0);
	begin_at(t, "serial@i%x", MACHINE_COM1_PORT);
	prop_string(t, "compatible", "ns16550a");
	prop_cells(t, "reg", (const uint32_t[]){1, MACHINE_COM1_PORT, 8}, 3);
	prop_u32(t, "clock-frequency", 1843200);
	prop_u32(t, "current-speed", 115200);
	prop_interrupt(t, MACHINE_COM1_GSI, SENSE_EDGE_RISING);
	end(t);
	/* Sleep control (write 0x20 | MACHINE_SLEEP_S5 << 2 to power off) and reset registers. */
	begin_at(t, "power@i%x", MACHINE_SLEEP_PORT);
	prop_string(t, "compatible", "invisor,power");
	prop_cells(t, "reg", (const uint32_t[]){1, MACHINE_SLEEP_PORT, 2, 1, MACHINE_RESET_PORT, 1},
		   6);
	prop_cells(t, "invisor,values",
		   (const uint32_t[]){0x20 | MACHINE_SLEEP_S5 << 2, MACHINE_RESET_VALUE}, 2);
	end(t);
	end(t);
}

int machine_fdt(const struct machine *m, gpa_t initrd, uint64_t initrd_bytes, void *out,
		size_t size)
{
	if (m->banks > MACHINE_MAX_BANKS || m->cpus > MACHINE_MAX_CPUS ||
	    m->virtio_slots > MACHINE_MAX_VIRTIO || initrd_bytes > UINT64_MAX - initrd.v)
		return -EINVAL;
	struct tree t = {.fdt = out};
	note(&t, fdt_create(out, size > INT32_MAX ? INT32_MAX : (int)size));
	if (!t.status)
		note(&t, fdt_finish_reservemap(out));
	begin(&t, "");
	prop_string(&t, "compatible", "invisor,pc");
	prop_string(&t, "model", m->name);
	prop_u32(&t, "#address-cells", 2);
	prop_u32(&t, "#size-cells", 2);
	prop_u32(&t, "interrupt-parent", IOAPIC_PHANDLE);
	tree_chosen(&t, m, initrd, initrd_bytes);
	tree_memory(&t, m);
	tree_cpus(&t, m);
	tree_interrupts(&t);
	tree_virtio(&t, m);
	tree_isa(&t);
	end(&t);
	if (!t.status)
		note(&t, fdt_finish(out));
	if (t.status == -FDT_ERR_NOSPACE)
		return -ENOSPC;
	return t.status ? -EINVAL : 0;
}
