/*
 * Device tree to struct board, in one pass over libfdt's tags. (Of libfdt only functions without a
 * stack canary may be called, see mem.c; fdt_next_node and fdt_getprop aren't among them.)
 */
#include "guest/bare/board.h"
#include "guest/bare/cpu.h"
#include "guest/bare/text.h"
#include <libfdt.h>

#define DEPTH_MAX 8

struct board board;

/* What matters of the properties of a node. */
struct node {
	const char *device_type, *compatible;
	const fdt32_t *reg;
	int reg_cells, compatible_bytes;
	unsigned address_cells, size_cells; /* for its children */
};

static uint64_t cells(const fdt32_t *at, unsigned n)
{
	uint64_t v = 0;
	for (unsigned i = 0; i < n; i++)
		v = v << 32 | fdt32_to_cpu(at[i]);
	return v;
}

static bool lists(const char *strings, int bytes, const char *word)
{
	while (bytes > 0) {
		size_t n = strnlen(strings, (size_t)bytes);
		if (text_is(strings, n, word))
			return true;
		strings += n + 1;
		bytes -= (int)n + 1;
	}
	return false;
}

static void add_bank(uint64_t base, uint64_t bytes)
{
	unsigned i = board.banks;
	if (bytes == 0 || i == BOARD_MAX_BANKS)
		return;
	for (; i > 0 && board.bank[i - 1].base > base; i--)
		board.bank[i] = board.bank[i - 1];
	board.bank[i].base = base;
	board.bank[i].bytes = bytes;
	board.banks++;
	board.mem_bytes += bytes;
}

static void add_virtio(uint64_t base)
{
	unsigned i = board.virtios;
	if (i == BOARD_MAX_VIRTIO)
		return;
	for (; i > 0 && board.virtio[i - 1] > base; i--)
		board.virtio[i] = board.virtio[i - 1];
	board.virtio[i] = base;
	board.virtios++;
}

static void add_node(const struct node *n, const struct node *parent)
{
	unsigned a = parent->address_cells, s = parent->size_cells;
	if (n->device_type != NULL && strcmp(n->device_type, "cpu") == 0)
		board.cpus++;
	if (n->reg == NULL || a > 2 || s > 2 || a + s == 0)
		return;
	if (n->device_type != NULL && strcmp(n->device_type, "memory") == 0) {
		for (int i = 0; i + (int)(a + s) <= n->reg_cells; i += (int)(a + s))
			add_bank(cells(n->reg + i, a), cells(n->reg + i + a, s));
	}
	if (n->compatible != NULL && lists(n->compatible, n->compatible_bytes, "virtio,mmio") &&
	    n->reg_cells >= (int)(a + s))
		add_virtio(cells(n->reg, a));
}

static void add_property(struct node *n, const char *name, const void *value, int bytes)
{
	bool text = bytes > 0 && ((const char *)value)[bytes - 1] == '\0';
	if (strcmp(name, "device_type") == 0 && text) {
		n->device_type = value;
	} else if (strcmp(name, "compatible") == 0 && text) {
		n->compatible = value;
		n->compatible_bytes = bytes;
	} else if (strcmp(name, "reg") == 0) {
		n->reg = value;
		n->reg_cells = bytes / 4;
	} else if (strcmp(name, "#address-cells") == 0 && bytes == 4) {
		n->address_cells = (unsigned)cells(value, 1);
	} else if (strcmp(name, "#size-cells") == 0 && bytes == 4) {
		n->size_cells = (unsigned)cells(value, 1);
	} else if (strcmp(name, "timebase-frequency") == 0 && (bytes == 4 || bytes == 8)) {
		board.tsc_hz = cells(value, (unsigned)bytes / 4);
		board.tsc_from = "fdt";
	} else if (strcmp(name, "bootargs") == 0 && text && bytes <= BOARD_ARGS_MAX) {
		memcpy(board.args, value, (size_t)bytes);
	}
}

/* The TSC's frequency where the device tree doesn't tell it. */
static void guess_tsc(void)
{
	uint32_t r[4], most[4];
	cpu_id(0x40000000, r);
	if (r[0] >= 0x40000010 && r[0] < 0x40000100) { /* the timing leaf, kHz */
		cpu_id(0x40000010, r);
		board.tsc_hz = r[0] * UINT64_C(1000);
	}
	cpu_id(0, most);
	if (board.tsc_hz == 0 && most[0] >= 0x15) { /* crystal clock and its multiplier */
		cpu_id(0x15, r);
		if (r[0] != 0)
			board.tsc_hz = (uint64_t)r[2] * r[1] / r[0];
	}
	if (board.tsc_hz == 0 && most[0] >= 0x16) { /* nominal frequency, MHz */
		cpu_id(0x16, r);
		board.tsc_hz = (r[0] & 0xffff) * UINT64_C(1000000);
	}
	board.tsc_from = "cpuid";
	if (board.tsc_hz == 0) {
		board.tsc_hz = UINT64_C(2500000000);
		board.tsc_from = "guess";
	}
}

const char *board_read(const void *fdt)
{
	struct node stack[DEPTH_MAX + 1];
	int depth = 0, at = 0, next, bytes;
	uint32_t tag;

	if (fdt_check_header(fdt) != 0)
		return "no device tree where RDI points";
	memset(stack, 0, sizeof stack);
	stack[0].address_cells = 2;
	stack[0].size_cells = 1;
	while ((tag = fdt_next_tag(fdt, at, &next)) != FDT_END) {
		if (next < 0)
			return "the device tree ends early";
		if (tag == FDT_BEGIN_NODE) {
			if (++depth > DEPTH_MAX)
				return "the device tree is too deep";
			memset(&stack[depth], 0, sizeof stack[depth]);
			stack[depth].address_cells = 2;
			stack[depth].size_cells = 1;
		} else if (tag == FDT_PROP && depth > 0) {
			const struct fdt_property *p = fdt_offset_ptr(fdt, at, sizeof *p);
			if (p == NULL)
				return "the device tree has a broken property";
			bytes = (int)fdt32_to_cpu(p->len);
			const char *name = fdt_string(fdt, (int)fdt32_to_cpu(p->nameoff));
			if (name != NULL)
				add_property(&stack[depth], name, p->data, bytes);
		} else if (tag == FDT_END_NODE) {
			if (depth == 0)
				return "the device tree has an end too many";
			add_node(&stack[depth], &stack[depth - 1]);
			depth--;
		}
		at = next;
	}
	if (board.banks == 0)
		return "the device tree has no memory";
	if (board.cpus == 0)
		return "the device tree has no cpus";
	if (board.tsc_hz == 0)
		guess_tsc();
	return NULL;
}
