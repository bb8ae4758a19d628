/*
 * Getting a kernel into a VM's memory and a vCPU to its first instruction. Three kinds of image,
 * told apart by their contents, never by name: bzImage     Linux/x86 boot protocol 2.12+, 64-bit
 * entry (Documentation/arch/x86/boot.rst) ELF + PVH   vmlinux with a XEN_ELFNOTE_PHYS32_ENTRY note
 * (xen/include/public/arch-x86/hvm/start_info.h) bare ELF    a 64-bit static ELF with our note
 * (name "invisor", type 1): entered by every vCPU at once in CPL 3 with IOPL 3, paging on
 * (identity, user), RDI = gpa of the FDT, RSI = vCPU number, RSP = top of a stack of its own
 * (16-byte aligned)
 *
 * Nothing here knows KVM's ioctls beyond struct kvm_regs/kvm_sregs, and guest memory is reached
 * only through gmem (virtio/gmem.h).
 */
#ifndef VMM_BOOT_H
#define VMM_BOOT_H

#include "virtio/gmem.h"
#include "vmm/machine.h"
#include <linux/kvm.h>

enum boot_kind { BOOT_BZIMAGE, BOOT_PVH, BOOT_BARE };

/* An image checked once in the host and loaded into many VMs: files mapped read-only. */
struct boot_image {
	enum boot_kind kind;
	const uint8_t *kernel;
	size_t kernel_bytes;
	const uint8_t *initrd; /* NULL if none */
	size_t initrd_bytes;
	uint64_t entry;     /* as the image gives it; loaders may add to it */
	uint64_t min_bytes; /* least guest memory it can be loaded into */
};

#define BOOT_ERROR_MAX 256

/* Open, map and check kernel and initrd (NULL: none). Truncated, foreign, 32-bit, overlapping or
 * otherwise unusable images: -ENOEXEC, -EFBIG..., with one line in `error` that names the file and
 * what is wrong with it. */
int boot_image_open(struct boot_image *out, const char *kernel_path, const char *initrd_path,
		    char error[BOOT_ERROR_MAX]);
void boot_image_close(struct boot_image *image);
/* Would it fit this machine? 0, or -E2BIG (initrd or kernel larger than memory, command line too
 * long) with words. Called before any VM is made. */
int boot_image_fits(const struct boot_image *image, const struct machine *m,
		    char error[BOOT_ERROR_MAX]);

/* How each vCPU starts. */
struct boot_cpu {
	bool runs; /* false: waits for INIT/SIPI (Linux's application processors) */
	struct kvm_regs regs;
	/* The segments, control registers, EFER, GDT and IDT to set, over what KVM_GET_SREGS gave:
	 * boot_apply_sregs does it. */
	struct kvm_sregs sregs;
};
struct boot_plan {
	struct boot_cpu cpu[MACHINE_MAX_CPUS];
};

/* Write kernel, initrd, command line, zero page or start info, FDT, ACPI tables and page tables
 * into guest memory, and say how the vCPUs start. -errno of gmem, or -E2BIG. */
int boot_load(const struct boot_image *image, const struct machine *m, struct gmem *mem,
	      struct boot_plan *plan, char error[BOOT_ERROR_MAX]);
/* Change in `sregs` (from KVM_GET_SREGS of the fresh vCPU, so its APIC base stays) what the plan
 * sets. */
void boot_apply_sregs(const struct boot_cpu *cpu, struct kvm_sregs *sregs);

/* ACPI (6.4) tables for the machine, with all pointers and checksums, to be placed at `base`
 * (16-byte aligned, below 1 MiB): RSDP first. HW-reduced FADT with sleep control and reset
 * registers, MADT (LAPICs, IOAPIC), DSDT with LNRO0005 devices for the virtio slots and COM1.
 * Returns the bytes used, or -ENOSPC. (acpi.c) */
int64_t acpi_build(const struct machine *m, gpa_t base, void *out, size_t size);
#define BOOT_ACPI_BASE UINT64_C(0xE0000)
#define BOOT_ACPI_SIZE UINT64_C(0x10000)

#endif
