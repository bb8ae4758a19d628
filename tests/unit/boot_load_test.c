/* boot_load: what lies in guest memory afterwards, and how the vCPUs start. */
#include "tests/unit/boot_fake.h"

#include <asm/bootparam.h>
#include <criterion/criterion.h>
#include <errno.h>
#include <libfdt.h>
#include <string.h>
#include <sys/mman.h>

#define CMDLINE "console=ttyS0 quiet"

static struct boot_memory memory;
static struct boot_buffer buffer;
static struct boot_image image;
static struct boot_plan plan;
static char error[BOOT_ERROR_MAX];

static uint64_t le64(uint64_t at)
{
	uint64_t v;
	memcpy(&v, boot_memory_at(&memory, at, 8), 8);
	return v;
}

/* Walk the page tables of a vCPU in guest memory: the gpa and the flags of the entry that maps
 * `virt`, or 0 flags. Only 2 MiB pages at the end, as boot makes them. */
static uint64_t walk(const struct boot_cpu *cpu, uint64_t virt, uint64_t *flags)
{
	uint64_t table = cpu->sregs.cr3, common = 7;
	*flags = 0;
	for (int shift = 39; shift >= 21; shift -= 9) {
		uint64_t e = le64(table + (virt >> shift & 511) * 8);
		if (!(e & 1))
			return 0;
		common &= e;
		if (shift == 21) {
			cr_assert(e & 0x80, "not a 2 MiB page");
			*flags = common | (e & 0x18);
			return (e & ~UINT64_C(0x1fffff)) | (virt & 0x1fffff);
		}
		cr_assert(!(e & 0x80), "a larger page");
		table = e & ~UINT64_C(0xfff);
	}
	return 0;
}

static void load(uint64_t bytes, unsigned cpus, unsigned slots)
{
	boot_memory_init(&memory, bytes, cpus, slots, CMDLINE);
	cr_assert_eq(boot_image_fits(&image, &memory.machine, error), 0, "%s", error);
	int err = boot_load(&image, &memory.machine, &memory.gmem, &plan, error);
	cr_assert_eq(err, 0, "%s", error);
}

static void with_initrd(size_t bytes)
{
	uint8_t *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	cr_assert_neq((void *)p, MAP_FAILED);
	for (size_t i = 0; i < bytes; i++)
		p[i] = (uint8_t)(i * 11 + 5);
	image.initrd = p;
	image.initrd_bytes = bytes;
	strcpy(image.initrd_name, "rd");
	cr_assert_eq(boot_image_check(&image, error), 0, "%s", error);
}

static void check_segments(void)
{
	for (unsigned i = 0; i < image.segments; i++) {
		const struct boot_segment *s = &image.segment[i];
		const uint8_t *p = boot_memory_at(&memory, s->at.v, s->mem_bytes);
		cr_assert_eq(memcmp(p, image.kernel + s->offset, s->bytes), 0, "segment %u", i);
		for (uint64_t j = s->bytes; j < s->mem_bytes; j++)
			cr_assert_eq(p[j], 0, "segment %u isn't zero at its end", i);
	}
}

static void check_reset_vector(void)
{
	static const uint8_t code[] = {0xba, 0x04, 0x06, 0xb0, 0x42, 0xee};
	cr_assert_eq(memcmp(boot_memory_at(&memory, 0xffff0, 16), code, sizeof(code)), 0);
}

static void check_fdt(uint64_t at)
{
	const void *fdt = boot_memory_at(&memory, at, BOOT_DTB_SIZE - 16);
	cr_assert_eq(fdt_check_full(fdt, BOOT_DTB_SIZE - 16), 0);
	int len, chosen = fdt_path_offset(fdt, "/chosen");
	cr_assert_str_eq(fdt_getprop(fdt, chosen, "bootargs", &len), CMDLINE);
}

Test(boot_load, bzimage)
{
	boot_tiny_bzimage(&buffer);
	cr_assert_eq(boot_buffer_check(&buffer, &image, error), 0);
	with_initrd(100001);
	load(64 * MiB, 4, 3);
	check_segments();
	check_reset_vector();

	struct boot_params *p = (void *)boot_memory_at(&memory, BOOT_INFO, sizeof(*p));
	cr_assert_eq(p->hdr.header, 0x53726448);
	cr_assert_eq(p->hdr.type_of_loader, 0xff);
	cr_assert_eq(p->hdr.init_size, 0x300000);
	cr_assert_eq(p->sentinel, 0);
	cr_assert_eq(p->acpi_rsdp_addr, BOOT_ACPI_BASE);
	cr_assert_str_eq((char *)boot_memory_at(&memory, p->hdr.cmd_line_ptr, 2048), CMDLINE);
	cr_assert_eq(memcmp(boot_memory_at(&memory, p->acpi_rsdp_addr, 8), "RSD PTR ", 8), 0);
	/* The header's copy ends where the file says: nothing of the file beyond it. */
	for (unsigned i = 0x280; i < 0x290; i++)
		cr_assert_eq(((uint8_t *)p)[i], 0);

	cr_assert_eq(p->hdr.ramdisk_size, 100001);
	cr_assert_eq(p->hdr.ramdisk_image & 0xfff, 0);
	cr_assert_eq(p->hdr.ramdisk_image, 64 * MiB - 100 * KiB, "as high as it goes");
	cr_assert_eq(
		memcmp(boot_memory_at(&memory, p->hdr.ramdisk_image, 100001), image.initrd, 100001),
		0);

	cr_assert_eq(p->e820_entries, 3);
	static const struct boot_e820_entry expect[] = {
		{0, 0xA0000, 1}, {0xE0000, 0x20000, 2}, {0x100000, 63 * MiB, 1}};
	cr_assert_eq(memcmp(p->e820_table, expect, sizeof(expect)), 0);

	struct setup_data *d = (void *)boot_memory_at(&memory, p->hdr.setup_data, sizeof(*d));
	cr_assert_eq(d->type, SETUP_DTB);
	cr_assert_eq(d->next, 0);
	check_fdt(p->hdr.setup_data + sizeof(*d));
	cr_assert_eq(fdt_totalsize(d->data), d->len);
	cr_assert_eq((uintptr_t)d->data % 8, 0);

	const struct boot_cpu *cpu = &plan.cpu[0];
	cr_assert(cpu->runs);
	cr_assert(!plan.cpu[1].runs && !plan.cpu[3].runs);
	cr_assert_eq(cpu->regs.rip, 0x1000200);
	cr_assert_eq(cpu->regs.rsi, BOOT_INFO);
	cr_assert_eq(cpu->regs.rflags, 2);
	cr_assert_eq(cpu->sregs.cs.selector, 0x10);
	cr_assert_eq(cpu->sregs.ss.selector, 0x18);
	cr_assert(cpu->sregs.cs.l && !cpu->sregs.cs.db && cpu->sregs.cs.dpl == 0);
	cr_assert_eq(cpu->sregs.efer & 0x500, 0x500);
	cr_assert_eq(cpu->sregs.cr0 & 0x80000001, 0x80000001);
	for (uint64_t v = 0; v < 4 * GiB; v += 62 * MiB + 123) {
		uint64_t flags;
		cr_assert_eq(walk(cpu, v, &flags), v);
		cr_assert_eq(flags & 3, 3);
	}
	/* The GDT's entries are the segments the vCPU has: flat 64-bit code, flat data. */
	cr_assert_eq(cpu->sregs.gdt.base, BOOT_GDT);
	cr_assert_eq(le64(BOOT_GDT + 0x10), 0x00af9b000000ffff);
	cr_assert_eq(le64(BOOT_GDT + 0x18), 0x00cf93000000ffff);
}

Test(boot_load, bzimage_two_banks)
{
	boot_tiny_bzimage(&buffer);
	cr_assert_eq(boot_buffer_check(&buffer, &image, error), 0);
	with_initrd(5000);
	load(5 * GiB, 1, 0);
	struct boot_params *p = (void *)boot_memory_at(&memory, BOOT_INFO, sizeof(*p));
	cr_assert_eq(p->e820_entries, 4);
	cr_assert_eq(p->e820_table[2].size, 3 * GiB - MiB);
	cr_assert_eq(p->e820_table[3].addr, 4 * GiB);
	cr_assert_eq(p->e820_table[3].size, 2 * GiB);
	cr_assert_eq(p->hdr.ramdisk_image, 0x80000000 - 2 * PAGE_SIZE, "below initrd_addr_max");
}

Test(boot_load, pvh)
{
	boot_tiny_elf(&buffer, false, 4);
	cr_assert_eq(boot_buffer_check(&buffer, &image, error), 0);
	with_initrd(7777);
	load(32 * MiB, 2, 1);
	check_segments();
	check_reset_vector();
	const struct boot_cpu *cpu = &plan.cpu[0];
	cr_assert(cpu->runs && !plan.cpu[1].runs);
	cr_assert_eq(cpu->regs.rip, BOOT_TINY_ENTRY);
	cr_assert_eq(cpu->regs.rflags, 2);
	cr_assert_eq(cpu->sregs.cr0, 0x11);
	cr_assert_eq(cpu->sregs.cr4, 0);
	cr_assert_eq(cpu->sregs.efer, 0);
	cr_assert(cpu->sregs.cs.db && !cpu->sregs.cs.l);
	cr_assert_eq(cpu->sregs.cs.limit, 0xffffffff);
	cr_assert_eq(cpu->sregs.tr.limit, 0x67);
	cr_assert_eq(le64(BOOT_GDT + 0x10), 0x00cf9b000000ffff);

	uint64_t at = cpu->regs.rbx; /* hvm_start_info's offsets, from start_info.h */
	uint32_t w[4];
	memcpy(w, boot_memory_at(&memory, at, 16), 16);
	cr_assert_eq(w[0], 0x336ec578);
	cr_assert_eq(w[1], 1);
	cr_assert_eq(w[3], 1, "modules");
	uint64_t list = le64(at + 16), map = le64(at + 40);
	cr_assert_str_eq((char *)boot_memory_at(&memory, le64(at + 24), 2048), CMDLINE);
	cr_assert_eq(le64(at + 32), BOOT_ACPI_BASE);
	cr_assert_eq((uint32_t)le64(at + 48), 3, "ranges");
	cr_assert_eq(le64(list + 8), 7777);
	cr_assert_eq(memcmp(boot_memory_at(&memory, le64(list), 7777), image.initrd, 7777), 0);
	cr_assert_eq(le64(map + 2 * 24), 0x100000);
	cr_assert_eq(le64(map + 2 * 24 + 8), 31 * MiB);
	cr_assert_eq((uint32_t)le64(map + 24 + 16), 2, "reserved");
}

static void check_bare_tables(uint64_t bytes)
{
	uint64_t flags;
	for (unsigned i = 0; i < memory.machine.banks; i++) {
		const struct machine_bank *b = &memory.machine.bank[i];
		uint64_t step = b->bytes / 61 + 1;
		for (uint64_t v = b->base.v; v < b->base.v + b->bytes; v += step) {
			cr_assert_eq(walk(&plan.cpu[0], v, &flags), v);
			cr_assert_eq(flags, 7, "user, writable, cached at 0x%" PRIx64, v);
		}
		uint64_t last = b->base.v + b->bytes - 1;
		cr_assert_eq(walk(&plan.cpu[0], last, &flags), last);
		walk(&plan.cpu[0], (last | 0x1fffff) + 1, &flags);
		cr_assert(!flags || last + 1 == machine_mmio_base(memory.machine.bank[0].bytes),
			  "nothing behind RAM");
	}
	uint64_t mmio = machine_mmio_base(memory.machine.bank[0].bytes);
	const uint64_t device[] = {mmio, mmio + 16 * MACHINE_MMIO_STRIDE - 1, MACHINE_IOAPIC_BASE,
				   MACHINE_LAPIC_BASE};
	for (unsigned i = 0; i < 4; i++) {
		cr_assert_eq(walk(&plan.cpu[0], device[i], &flags), device[i]);
		cr_assert_eq(flags, 0x17, "user, writable, not cached");
	}
	walk(&plan.cpu[0], MACHINE_HIGH_BASE + bytes, &flags);
	cr_assert_eq(flags, 0);
}

Test(boot_load, bare)
{
	static const uint64_t sizes[] = {4 * MiB,  64 * MiB, 3 * GiB, 3 * GiB + PAGE_SIZE,
					 64 * GiB, 93 * GiB};
	for (unsigned s = 0; s < 6; s++) {
		boot_tiny_elf(&buffer, true, 4);
		cr_assert_eq(boot_buffer_check(&buffer, &image, error), 0);
		load(sizes[s], 8, 16);
		check_segments();
		check_bare_tables(sizes[s]);
		for (unsigned i = 0; i < 8; i++) {
			const struct boot_cpu *cpu = &plan.cpu[i];
			cr_assert(cpu->runs);
			cr_assert_eq(cpu->regs.rip, BOOT_TINY_ENTRY);
			cr_assert_eq(cpu->regs.rflags, 0x3002);
			cr_assert_eq(cpu->regs.rsi, i);
			cr_assert_eq(cpu->regs.rsp % 16, 0);
			cr_assert_eq(cpu->regs.rsp, BOOT_BARE_STACKS + (i + 1) * BOOT_STACK_BYTES);
			check_fdt(cpu->regs.rdi);
			cr_assert_eq(cpu->sregs.cs.selector, 0x33);
			cr_assert_eq(cpu->sregs.ss.selector, 0x2b);
			cr_assert(cpu->sregs.cs.dpl == 3 && cpu->sregs.cs.l);
			cr_assert(cpu->sregs.ss.dpl == 3);
			cr_assert_eq(cpu->sregs.efer, 0xd01);
			cr_assert_eq(cpu->sregs.cr4, 0x660);
			cr_assert_eq(cpu->sregs.idt.base, BOOT_BARE_IDT);
			cr_assert_eq(cpu->sregs.idt.limit, 0xfff);
		}
		cr_assert_eq(le64(BOOT_GDT + BOOT_BARE_CS0), 0x00af9b000000ffff);
		cr_assert_eq(le64(BOOT_GDT + 0x28), 0x00cff3000000ffff);
		cr_assert_eq(le64(BOOT_GDT + 0x30), 0x00affb000000ffff);
		boot_memory_free(&memory);
		boot_buffer_free(&buffer);
	}
}

Test(boot_load, applied_state_keeps_the_apic)
{
	boot_tiny_elf(&buffer, true, 4);
	cr_assert_eq(boot_buffer_check(&buffer, &image, error), 0);
	load(4 * MiB, 1, 0);
	struct kvm_sregs fresh = {.apic_base = 0xfee00900, .cr8 = 5};
	fresh.cs.selector = 0xf000;
	struct kvm_sregs s = fresh;
	boot_apply_sregs(&plan.cpu[1], &s);
	cr_assert_eq(memcmp(&s, &fresh, sizeof(s)), 0, "a vCPU that waits stays as it is");
	boot_apply_sregs(&plan.cpu[0], &s);
	cr_assert_eq(s.apic_base, 0xfee00900);
	cr_assert_eq(s.cs.selector, 0x33);
	cr_assert_eq(s.cr3, BOOT_BARE_TABLES);
}

static void too_small(uint64_t bytes, const char *cmdline, const char *word)
{
	boot_memory_init(&memory, bytes, 1, 0, cmdline);
	error[0] = '\0';
	cr_assert_eq(boot_image_fits(&image, &memory.machine, error), -E2BIG);
	cr_assert_not_null(strstr(error, word), "%s", error);
	cr_assert_eq(boot_load(&image, &memory.machine, &memory.gmem, &plan, error), -E2BIG);
	cr_assert_eq(memory.maps, 0, "nothing was written");
	boot_memory_free(&memory);
}

Test(boot_load, too_little_memory)
{
	boot_tiny_bzimage(&buffer);
	cr_assert_eq(boot_buffer_check(&buffer, &image, error), 0);
	too_small(4 * KiB, "", "--mem");
	too_small(19 * MiB - PAGE_SIZE, "", "at least 19 MiB");
}

Test(boot_load, edges)
{
	char line[3000];
	boot_tiny_bzimage(&buffer);
	cr_assert_eq(boot_buffer_check(&buffer, &image, error), 0);
	memset(line, 'x', sizeof(line));
	line[2048] = '\0';
	too_small(64 * MiB, line, "--append");
	line[2047] = '\0';
	boot_memory_init(&memory, 64 * MiB, 1, 0, line);
	cr_assert_eq(boot_load(&image, &memory.machine, &memory.gmem, &plan, error), 0, "%s",
		     error);
	boot_memory_free(&memory);

	with_initrd(3 * MiB + 1);
	cr_assert_eq(image.min_bytes, 22 * MiB + PAGE_SIZE);
	load(image.min_bytes, 1, 0); /* exactly */
	boot_memory_free(&memory);
	too_small(image.min_bytes - PAGE_SIZE, "", "initrd rd");

	boot_tiny_elf(&buffer, true, 4);
	cr_assert_eq(boot_buffer_check(&buffer, &image, error), 0);
	too_small(93 * GiB + PAGE_SIZE, "", "93 GiB"); /* 93 GiB fit: see bare */
}

/* A pool without frames, at any moment: -EAGAIN with words, and it can be tried again. */
Test(boot_load, memory_runs_out)
{
	boot_tiny_elf(&buffer, false, 4);
	cr_assert_eq(boot_buffer_check(&buffer, &image, error), 0);
	load(8 * MiB, 1, 4);
	uint64_t all = memory.maps;
	for (uint64_t n = 1; n < all; n++) {
		boot_memory_clear(&memory);
		memory.fails = n;
		cr_assert_eq(boot_load(&image, &memory.machine, &memory.gmem, &plan, error),
			     -EAGAIN);
		cr_assert_not_null(strstr(error, "pool"), "%s", error);
		memory.fails = 0;
		cr_assert_eq(boot_load(&image, &memory.machine, &memory.gmem, &plan, error), 0);
		check_segments();
	}
}
