/*
 * What all three entries have in common: where things go, the memory map, and the parts written
 * for every kernel (its segments, initrd, command line, FDT).
 */
#include "vmm/boot_parts.h"

#include <asm/bootparam.h>
#include <errno.h>
#include <libfdt.h>
#include <stdlib.h>
#include <string.h>

int boot_write(struct gmem *mem, gpa_t to, const void *from, uint64_t len, const char *what,
	       char error[BOOT_ERROR_MAX])
{
	int err = gmem_load(mem, to, from, len);
	if (err == -EAGAIN)
		errorf(error, err, "the pool has no free memory left for %s", what);
	else if (err)
		errorf(error, err, "can't write %s at " PRIgpa ", %" PRIu64 " bytes: %s", what,
		       to.v, len, strerror(-err));
	return err;
}

unsigned boot_memory_map(const struct machine *m, struct boot_range out[BOOT_MAX_RANGES])
{
	unsigned n = 0;
	uint64_t low = m->bank[0].bytes;
	out[n++] = (struct boot_range){0, low < BOOT_LOW_END ? low : BOOT_LOW_END, BOOT_RANGE_RAM};
	out[n++] = (struct boot_range){BOOT_ACPI_BASE, BOOT_KERNEL_MIN - BOOT_ACPI_BASE,
				       BOOT_RANGE_RESERVED};
	if (low > BOOT_KERNEL_MIN)
		out[n++] =
			(struct boot_range){BOOT_KERNEL_MIN, low - BOOT_KERNEL_MIN, BOOT_RANGE_RAM};
	if (m->ram_banks > 1)
		out[n++] = (struct boot_range){m->bank[1].base.v, m->bank[1].bytes, BOOT_RANGE_RAM};
	return n;
}

#define MIB_UP(bytes) (((bytes) + MiB - 1) / MiB)

int boot_layout(const struct boot_image *image, const struct machine *m, struct boot_layout *out,
		char error[BOOT_ERROR_MAX])
{
	*out = (struct boot_layout){0};
	if (!m->banks || !m->cpus || m->cpus > MACHINE_MAX_CPUS || m->banks > MACHINE_MAX_BANKS ||
	    m->virtio_slots > MACHINE_MAX_VIRTIO)
		return errorf(error, -EINVAL,
			      "a machine with %u banks of memory, %u CPUs and "
			      "%u virtio slots can't be built",
			      m->banks, m->cpus, m->virtio_slots);
	uint64_t low = m->bank[0].bytes;
	if (low < image->end)
		return errorf(error, -E2BIG,
			      "kernel %s needs at least %" PRIu64
			      " MiB of memory to load, the guest has %" PRIu64
			      " KiB: give it more with --mem",
			      image->kernel_name, MIB_UP(image->min_bytes), m->mem_bytes / KiB);
	if (image->initrd) {
		uint64_t top = low < image->initrd_end ? low : image->initrd_end;
		/* Page-aligned, as high as it goes; end and top are whole pages or rounded here. */
		uint64_t bytes = boot_round_up(image->initrd_bytes, PAGE_SIZE);
		uint64_t floor = boot_round_up(image->end, PAGE_SIZE);
		top &= ~PAGE_MASK;
		if (top < floor || top - floor < bytes)
			return errorf(error, -E2BIG,
				      "initrd %s has %" PRIu64
				      " MiB and doesn't fit beside the kernel into a guest with "
				      "%" PRIu64 " MiB of memory: give it at least %" PRIu64
				      " MiB with --mem",
				      image->initrd_name, MIB_UP(image->initrd_bytes),
				      m->mem_bytes / MiB, MIB_UP(image->min_bytes));
		out->initrd = gpa(top - bytes);
		out->initrd_bytes = image->initrd_bytes;
	}
	size_t len = m->cmdline ? strlen(m->cmdline) : 0;
	uint64_t limit = MACHINE_CMDLINE_MAX - 1;
	if (image->cmdline_max < limit)
		limit = image->cmdline_max;
	if (len > limit)
		return errorf(error, -E2BIG,
			      "the kernel command line has %zu characters, kernel %s takes at "
			      "most %" PRIu64 ": shorten --append",
			      len, image->kernel_name, limit);
	return image->kind == BOOT_BARE ? boot_bare_fits(m, error) : 0;
}

int boot_image_fits(const struct boot_image *image, const struct machine *m,
		    char error[BOOT_ERROR_MAX])
{
	struct boot_layout layout;
	return boot_layout(image, m, &layout, error);
}

/* What a segment has in memory beyond the file is zero already. (Debian's vmlinux has its .bss in the
 * file: gmem_load leaves pages of zeros alone.) */
static int load_segments(const struct boot_image *image, struct gmem *mem,
			 char error[BOOT_ERROR_MAX])
{
	for (unsigned i = 0; i < image->segments; i++) {
		const struct boot_segment *s = &image->segment[i];
		int err = s->bytes ? boot_write(mem, s->at, image->kernel + s->offset, s->bytes,
						"the kernel", error)
				   : 0;
		if (err)
			return err;
	}
	return 0;
}

/* The FDT, in a setup_data node so that a bzImage's setup_data can point at it. */
static int load_fdt(const struct machine *m, const struct boot_layout *layout, struct gmem *mem,
		    char error[BOOT_ERROR_MAX])
{
	_Static_assert(sizeof(struct setup_data) == BOOT_FDT - BOOT_DTB, "FDT follows its header");
	uint8_t *node = calloc(1, BOOT_DTB_SIZE);
	if (!node)
		return errorf(error, -ENOMEM, "no memory for the device tree");
	void *fdt = node + sizeof(struct setup_data);
	int err = machine_fdt(m, layout->initrd, layout->initrd_bytes, fdt,
			      BOOT_DTB_SIZE - sizeof(struct setup_data));
	if (err) {
		errorf(error, err, "can't write the machine's device tree: %s", strerror(-err));
	} else {
		struct setup_data head = {.type = SETUP_DTB, .len = fdt_totalsize(fdt)};
		memcpy(node, &head, sizeof(head));
		err = boot_write(mem, gpa(BOOT_DTB), node, sizeof(head) + head.len,
				 "the device tree", error);
	}
	free(node);
	return err;
}

static int load_acpi(const struct machine *m, struct gmem *mem, char error[BOOT_ERROR_MAX])
{
	uint8_t *tables = calloc(1, BOOT_ACPI_SIZE);
	if (!tables)
		return errorf(error, -ENOMEM, "no memory for the ACPI tables");
	int64_t n = acpi_build(m, gpa(BOOT_ACPI_BASE), tables, BOOT_ACPI_SIZE);
	int err = n < 0 ? errorf(error, (int)n, "the ACPI tables don't fit")
			: boot_write(mem, gpa(BOOT_ACPI_BASE), tables, (uint64_t)n,
				     "the ACPI tables", error);
	free(tables);
	return err;
}

/* What a PC has its firmware for at the end: real-mode code at F000:FFF0 that resets the machine.
 * Linux jumps there on a hardware-reduced machine without EFI (arch/x86/kernel/reboot.c: it asks
 * for EFI first and then takes BOOT_BIOS, never the ACPI reset register). */
static int load_reset_vector(struct gmem *mem, char error[BOOT_ERROR_MAX])
{
	static const uint8_t code[] = {
		0xba,
		MACHINE_RESET_PORT & 0xff,
		MACHINE_RESET_PORT >> 8, /* mov dx, port */
		0xb0,
		MACHINE_RESET_VALUE, /* mov al, value */
		0xee,                /* out dx, al */
		0xf4,                /* hlt */
		0xeb,
		0xfd, /* jmp to hlt */
	};
	_Static_assert(sizeof(code) <= BOOT_KERNEL_MIN - BOOT_RESET_VECTOR, "16 bytes");
	return boot_write(mem, gpa(BOOT_RESET_VECTOR), code, sizeof(code), "the reset vector",
			  error);
}

int boot_load(const struct boot_image *image, const struct machine *m, struct gmem *mem,
	      struct boot_plan *plan, char error[BOOT_ERROR_MAX])
{
	struct boot_layout layout;
	memset(plan, 0, sizeof(*plan));
	int err = boot_layout(image, m, &layout, error);
	if (!err)
		err = load_segments(image, mem, error);
	if (!err && layout.initrd_bytes)
		err = boot_write(mem, layout.initrd, image->initrd, layout.initrd_bytes,
				 "the initrd", error);
	const char *cmdline = m->cmdline ? m->cmdline : "";
	if (!err)
		err = boot_write(mem, gpa(BOOT_CMDLINE), cmdline, strlen(cmdline) + 1,
				 "the command line", error);
	if (!err)
		err = load_fdt(m, &layout, mem, error);
	if (!err && image->kind != BOOT_BARE)
		err = load_acpi(m, mem, error);
	if (!err && image->kind != BOOT_BARE)
		err = load_reset_vector(mem, error);
	if (err)
		return err;
	switch (image->kind) {
	case BOOT_BZIMAGE:
		return boot_bzimage_load(image, m, &layout, mem, plan, error);
	case BOOT_PVH:
		return boot_pvh_load(image, m, &layout, mem, plan, error);
	case BOOT_BARE:
		return boot_bare_load(image, m, mem, plan, error);
	}
	return errorf(error, -EINVAL, "kernel %s wasn't checked", image->kernel_name);
}
