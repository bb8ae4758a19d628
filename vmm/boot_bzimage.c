/*
 * bzImage by the 64-bit boot protocol (Documentation/arch/x86/boot.rst, zero-page.rst). Layouts
 * come from <asm/bootparam.h>.
 */
#include "vmm/boot_parts.h"

#include <asm/bootparam.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>

#define SECTOR           512
#define SETUP_AT         offsetof(struct boot_params, hdr) /* 0x1f1, in the file as in the page */
#define MAGIC_HDRS       0x53726448u                       /* "HdrS" */
#define BOOT_FLAG        0xAA55
#define PROTOCOL_MIN     0x020c /* xloadflags, and XLF_KERNEL_64 in it */
#define SETUP_SECTS_OLD  4      /* what a setup_sects of 0 means */
#define ENTRY_64         0x200  /* from the load address */
#define LOADER_UNDEFINED 0xff   /* type_of_loader without a number of its own */
#define IDENTITY_GIB     4

_Static_assert(BOOT_HEADER_MAX == 0x290 - 0x1f1, "setup_header's room in the zero page");
_Static_assert(sizeof(struct setup_header) <= BOOT_HEADER_MAX, "setup_header fits");
_Static_assert(sizeof(struct boot_params) == 4096, "the zero page is a page");

bool boot_bzimage_is(const struct boot_image *image)
{
	struct setup_header h;
	if (image->kernel_bytes < SETUP_AT + sizeof(h))
		return false;
	memcpy(&h, image->kernel + SETUP_AT, sizeof(h));
	return h.boot_flag == BOOT_FLAG && h.header == MAGIC_HDRS;
}

/* Where the kernel goes: where it would like to be, which is also where it would move itself to if
 * it were loaded lower. 0 if there is no place for it. */
static uint64_t load_address(const struct setup_header *h, uint64_t room)
{
	uint64_t at = h->pref_address;
	if (h->relocatable_kernel) {
		uint64_t align = h->kernel_alignment;
		if (!align || align & (align - 1) || align > GiB)
			return 0;
		if (at < BOOT_KERNEL_MIN || at >= MACHINE_LOW_END)
			at = BOOT_KERNEL_MIN;
		at = boot_round_up(at, align);
	}
	if (at < BOOT_KERNEL_MIN || at >= MACHINE_LOW_END || room > MACHINE_LOW_END - at)
		return 0;
	return at;
}

int boot_bzimage_check(struct boot_image *image, char error[BOOT_ERROR_MAX])
{
	struct setup_header h;
	memcpy(&h, image->kernel + SETUP_AT, sizeof(h));
	if (h.version < PROTOCOL_MIN)
		return errorf(error, -ENOEXEC,
			      "kernel %s speaks boot protocol %u.%02u, this needs 2.12 (Linux "
			      "3.8) or later",
			      image->kernel_name, h.version >> 8, h.version & 0xff);
	if (!(h.xloadflags & XLF_KERNEL_64))
		return errorf(error, -ENOEXEC, "kernel %s is 32-bit: give a 64-bit (amd64) kernel",
			      image->kernel_name);
	if (!(h.loadflags & LOADED_HIGH))
		return errorf(error, -ENOEXEC, "kernel %s is a zImage: give a bzImage",
			      image->kernel_name);
	uint64_t setup = ((uint64_t)(h.setup_sects ? h.setup_sects : SETUP_SECTS_OLD) + 1) * SECTOR;
	uint64_t bytes = (uint64_t)h.syssize * 16;
	if (setup > image->kernel_bytes || bytes > image->kernel_bytes - setup)
		return errorf(error, -ENOEXEC,
			      "kernel %s is truncated: it has %zu bytes, its header says "
			      "%" PRIu64,
			      image->kernel_name, image->kernel_bytes, setup + bytes);
	if (bytes <= ENTRY_64)
		return errorf(error, -ENOEXEC, "kernel %s has no code after its header",
			      image->kernel_name);
	if (h.payload_offset > bytes || h.payload_length > bytes - h.payload_offset)
		return errorf(error, -ENOEXEC,
			      "kernel %s is damaged: its payload lies outside the file",
			      image->kernel_name);
	/* The jump instruction's offset at 0x201 says how long the header is. */
	size_t header = offsetof(struct setup_header, header) + (h.jump >> 8);
	if (header > BOOT_HEADER_MAX || SETUP_AT + header > image->kernel_bytes)
		return errorf(error, -ENOEXEC, "kernel %s is damaged: bad setup header length",
			      image->kernel_name);
	uint64_t room = h.init_size > bytes ? h.init_size : bytes;
	uint64_t at = load_address(&h, room);
	if (!at)
		return errorf(error, -ENOEXEC,
			      "kernel %s can't be placed: it wants %" PRIu64
			      " MiB at 0x%llx with alignment 0x%x",
			      image->kernel_name, room / MiB, (unsigned long long)h.pref_address,
			      h.kernel_alignment);

	image->kind = BOOT_BZIMAGE;
	memset(image->header, 0, sizeof(image->header));
	memcpy(image->header, image->kernel + SETUP_AT, header);
	image->header_bytes = header;
	image->segment[0] = (struct boot_segment){
		.offset = setup, .bytes = bytes, .at = gpa(at), .mem_bytes = room};
	image->segments = 1;
	image->entry = at + ENTRY_64;
	image->end = at + room;
	uint64_t initrd_end = (uint64_t)h.initrd_addr_max + 1;
	if (initrd_end < image->initrd_end)
		image->initrd_end = initrd_end;
	image->cmdline_max = h.cmdline_size;
	return 0;
}

static void fill_zero_page(struct boot_params *p, const struct boot_image *image,
			   const struct machine *m, const struct boot_layout *layout)
{
	memcpy((uint8_t *)p + SETUP_AT, image->header, image->header_bytes);
	struct setup_header *h = &p->hdr;
	h->type_of_loader = LOADER_UNDEFINED;
	h->ext_loader_type = 0;
	h->ext_loader_ver = 0;
	h->loadflags &= (__u8) ~(CAN_USE_HEAP | KASLR_FLAG);
	h->code32_start = (__u32)image->segment[0].at.v;
	h->cmd_line_ptr = (__u32)BOOT_CMDLINE;
	h->ramdisk_image = (__u32)layout->initrd.v;
	h->ramdisk_size = (__u32)layout->initrd_bytes;
	h->setup_data = BOOT_DTB;
	p->acpi_rsdp_addr = BOOT_ACPI_BASE;

	struct boot_range range[BOOT_MAX_RANGES];
	unsigned n = boot_memory_map(m, range);
	for (unsigned i = 0; i < n; i++)
		p->e820_table[i] = (struct boot_e820_entry){
			.addr = range[i].base, .size = range[i].bytes, .type = range[i].type};
	p->e820_entries = (__u8)n;
}

/* The first 4 GiB one to one in pages of 2 MiB: kernel, zero page and command line lie there. */
static int write_tables(struct gmem *mem, char error[BOOT_ERROR_MAX])
{
	_Static_assert(BOOT_TABLES + (2 + IDENTITY_GIB) * 4096 <= BOOT_STACK_TOP - 4096,
		       "page tables end below the stack");
	uint64_t pml4 = (BOOT_TABLES + PAGE_SIZE) | PTE_PRESENT | PTE_WRITE;
	uint64_t pdpt[IDENTITY_GIB], pd[512];
	int err = boot_write(mem, gpa(BOOT_TABLES), &pml4, sizeof(pml4), "page tables", error);
	for (unsigned i = 0; i < IDENTITY_GIB && !err; i++) {
		uint64_t table = BOOT_TABLES + (2 + i) * PAGE_SIZE;
		pdpt[i] = table | PTE_PRESENT | PTE_WRITE;
		for (unsigned j = 0; j < 512; j++)
			pd[j] = (i * GiB + j * 2 * MiB) | PTE_PRESENT | PTE_WRITE | PTE_LARGE;
		err = boot_write(mem, gpa(table), pd, sizeof(pd), "page tables", error);
	}
	return err ? err
		   : boot_write(mem, gpa(BOOT_TABLES + PAGE_SIZE), pdpt, sizeof(pdpt),
				"page tables", error);
}

int boot_bzimage_load(const struct boot_image *image, const struct machine *m,
		      const struct boot_layout *layout, struct gmem *mem, struct boot_plan *plan,
		      char error[BOOT_ERROR_MAX])
{
	struct boot_params zero_page = {0};
	fill_zero_page(&zero_page, image, m, layout);
	int err = boot_write(mem, gpa(BOOT_INFO), &zero_page, sizeof(zero_page), "the zero page",
			     error);
	if (!err)
		err = write_tables(mem, error);
	if (!err)
		err = boot_write_gdt(mem, BOOT_MODE_LONG, error);
	if (err)
		return err;
	boot_cpu_state(&plan->cpu[0], BOOT_MODE_LONG, BOOT_TABLES);
	struct kvm_regs *r = &plan->cpu[0].regs;
	r->rip = image->entry;
	r->rsp = BOOT_STACK_TOP;
	r->rsi = BOOT_INFO;
	return 0;
}
