/*
 * ELF kernels by the PVH boot ABI: xen/include/public/arch-x86/hvm/start_info.h, version 1. The
 * entry gets EBX = physical address of the start info, in 32-bit protected mode without paging.
 */
#include "vmm/boot_parts.h"

#include <stddef.h>

#define START_MAGIC 0x336ec578u

struct start_info {
	uint32_t magic;
	uint32_t version;
	uint32_t flags;
	uint32_t modules;
	uint64_t module_list; /* gpa of struct start_module[modules] */
	uint64_t cmdline;     /* gpa of a NUL-terminated string */
	uint64_t rsdp;
	uint64_t memory_map; /* gpa of struct start_range[ranges] */
	uint32_t ranges;
	uint32_t reserved;
};
struct start_module {
	uint64_t base, bytes, cmdline, reserved;
};
struct start_range {
	uint64_t base, bytes;
	uint32_t type; /* as e820 */
	uint32_t reserved;
};
_Static_assert(sizeof(struct start_info) == 56, "start_info.h: version 1 has 56 bytes");
_Static_assert(sizeof(struct start_module) == 32 && sizeof(struct start_range) == 24,
	       "start_info.h");

/* What goes to BOOT_INFO. */
struct info_page {
	struct start_info info;
	struct start_module module;
	struct start_range range[BOOT_MAX_RANGES];
};

int boot_pvh_load(const struct boot_image *image, const struct machine *m,
		  const struct boot_layout *layout, struct gmem *mem, struct boot_plan *plan,
		  char error[BOOT_ERROR_MAX])
{
	struct boot_range range[BOOT_MAX_RANGES];
	struct info_page page = {
		.info =
			{
				.magic = START_MAGIC,
				.version = 1,
				.cmdline = BOOT_CMDLINE,
				.rsdp = BOOT_ACPI_BASE,
				.memory_map = BOOT_INFO + offsetof(struct info_page, range),
				.ranges = boot_memory_map(m, range),
			},
	};
	for (unsigned i = 0; i < page.info.ranges; i++)
		page.range[i] = (struct start_range){
			.base = range[i].base, .bytes = range[i].bytes, .type = range[i].type};
	if (layout->initrd_bytes) {
		page.info.modules = 1;
		page.info.module_list = BOOT_INFO + offsetof(struct info_page, module);
		page.module = (struct start_module){.base = layout->initrd.v,
						    .bytes = layout->initrd_bytes};
	}
	int err = boot_write(mem, gpa(BOOT_INFO), &page, sizeof(page), "the start info", error);
	if (!err)
		err = boot_write_gdt(mem, BOOT_MODE_FLAT32, error);
	if (err)
		return err;
	boot_cpu_state(&plan->cpu[0], BOOT_MODE_FLAT32, 0);
	struct kvm_regs *r = &plan->cpu[0].regs;
	r->rip = image->entry;
	r->rsp = BOOT_STACK_TOP;
	r->rbx = BOOT_INFO;
	return 0;
}
