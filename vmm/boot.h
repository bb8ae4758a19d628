/*
 * Getting a kernel into a VM's memory and a vCPU to its first instruction. Three kinds of image,
 * told apart by their contents, never by name:
 *
 *   bzImage    Linux/x86 boot protocol 2.12+, 64-bit entry (Documentation/arch/x86/boot.rst)
 *   ELF + PVH  vmlinux with a XEN_ELFNOTE_PHYS32_ENTRY note
 *              (xen/include/public/arch-x86/hvm/start_info.h)
 *   bare ELF   a 64-bit static ELF with our note (name "invisor", type 1), linked at 1 MiB or
 *              above with physical and virtual addresses the same: entered by every vCPU at once in
 *              CPL 3 with IOPL 3, paging on (identity, user), RDI = gpa of the FDT, RSI = vCPU
 *              number, RSP = top of a stack of its own (16-byte aligned, BOOT_STACK_BYTES);
 *              machine checks are on (CR4.MCE)
 *
 * Nothing here knows KVM's ioctls beyond struct kvm_regs/kvm_sregs, and guest memory is reached
 * only through gmem (virtio/gmem.h).
 *
 * What is below 1 MiB once a VM is loaded (everything for Linux lies in three 64 KiB clusters):
 *
 *   0x00000  zeros, left so. Bare: also the TSS, whose I/O map of zeros lets CPL 3 use all ports
 *            below 0x8000, even on a KVM that keeps IOPL to itself
 *   0x01000  GDT
 *   0x02000  zero page (struct boot_params), or PVH start info, memory map and module list
 *   0x03000  command line, at most MACHINE_CMDLINE_MAX bytes with its NUL
 *   0x04000  FDT, behind a struct setup_data of type SETUP_DTB; at most BOOT_DTB_SIZE bytes
 *   0x09000  Linux: page tables, the first 4 GiB one to one (PML4, PDPT, 4 page directories). Bare: the
 *            IDT, zeros until the guest writes gates there; its GDT has code of CPL 0 for them (BOOT_BARE_CS0)
 *   0x0f000  Linux: a page for the first stack
 *   0x20000  bare: page tables, up to 0x80000
 *   0x80000  bare: BOOT_STACK_BYTES of stack for each of MACHINE_MAX_CPUS vCPUs, up to 0xa0000
 *   0xe0000  Linux: ACPI tables
 *   0xef000  Linux: the generation id and the clone's number (identity.h)
 *   0xffff0  Linux: the reset vector, real-mode code that resets the machine
 *
 * A bare guest may use every byte of RAM from 1 MiB on that its own segments and the initrd leave.
 */
#ifndef VMM_BOOT_H
#define VMM_BOOT_H

#include "virtio/gmem.h"
#include "vmm/machine.h"
#include <linux/kvm.h>

#define BOOT_GDT          UINT64_C(0x1000)
#define BOOT_INFO         UINT64_C(0x2000)
#define BOOT_CMDLINE      UINT64_C(0x3000)
#define BOOT_DTB          UINT64_C(0x4000)
#define BOOT_DTB_SIZE     UINT64_C(0x5000)
#define BOOT_TABLES       UINT64_C(0x9000)
#define BOOT_STACK_TOP    UINT64_C(0x10000)
#define BOOT_BARE_IDT     UINT64_C(0x9000)
#define BOOT_BARE_CS0     0x10
#define BOOT_BARE_TABLES  UINT64_C(0x20000)
#define BOOT_BARE_STACKS  UINT64_C(0x80000)
#define BOOT_STACK_BYTES  UINT64_C(0x4000)
#define BOOT_IDENTITY     UINT64_C(0xEF000)
#define BOOT_RESET_VECTOR UINT64_C(0xFFFF0)
#define BOOT_LOW_END      UINT64_C(0xA0000)  /* RAM below the PC's hole ends */
#define BOOT_KERNEL_MIN   UINT64_C(0x100000) /* and goes on here: no image may load below */
#define BOOT_FDT          (BOOT_DTB + 16)    /* where the FDT itself begins: 16-byte aligned */

enum boot_kind { BOOT_BZIMAGE, BOOT_PVH, BOOT_BARE };

/* A piece of the kernel file and its place. Checked: offset + bytes lies in the file, bytes <=
 * mem_bytes, pieces don't overlap, and all lie in [BOOT_KERNEL_MIN, MACHINE_LOW_END). */
struct boot_segment {
	uint64_t offset, bytes;
	gpa_t at;
	uint64_t mem_bytes;
};
#define BOOT_MAX_SEGMENTS 32
#define BOOT_NAME_MAX     80
#define BOOT_HEADER_MAX   0x9f /* struct setup_header ends below 0x290 */

/* An image checked once in the host and loaded into many VMs: files mapped read-only. What the
 * loaders go by was copied out of the file while it was checked, so that a file that changes
 * later gives a broken guest at worst. (One that is cut short later gives SIGBUS: replace kernels
 * by renaming, as packages do.) */
struct boot_image {
	enum boot_kind kind;
	const uint8_t *kernel;
	size_t kernel_bytes;
	const uint8_t *initrd; /* NULL if none */
	size_t initrd_bytes;
	uint64_t entry;     /* gpa of the first instruction */
	uint64_t min_bytes; /* least guest memory it can be loaded into */

	struct boot_segment segment[BOOT_MAX_SEGMENTS];
	unsigned segments;
	uint64_t end;                    /* the kernel takes nothing at or above this gpa */
	uint64_t initrd_end;             /* the initrd must lie wholly below this gpa */
	uint64_t cmdline_max;            /* bytes without the NUL */
	uint8_t header[BOOT_HEADER_MAX]; /* bzImage: the setup header as the file has it */
	size_t header_bytes;
	char kernel_name[BOOT_NAME_MAX]; /* for messages; long paths keep their end */
	char initrd_name[BOOT_NAME_MAX];
};

#define BOOT_ERROR_MAX 256

/* Open, map and check kernel and initrd (NULL: none). Truncated, foreign, 32-bit, overlapping or
 * otherwise unusable images: -ENOEXEC, -EFBIG..., with one line in `error` that names the file and
 * what is wrong with it. */
int boot_image_open(struct boot_image *out, const char *kernel_path, const char *initrd_path,
		    char error[BOOT_ERROR_MAX]);
void boot_image_close(struct boot_image *image);
/* The check alone, of an image already in memory whose kernel, kernel_bytes and kernel_name are
 * set: fills in the rest. -ENOEXEC or -EFBIG with words. (boot_image_open uses it, and so do
 * tests.) */
int boot_image_check(struct boot_image *image, char error[BOOT_ERROR_MAX]);
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
 * into guest memory, and say how the vCPUs start. -errno of gmem, or -E2BIG, with words.
 *
 * The memory must be as new, reading as zeros: what an image wants zeroed (.bss) isn't written, so
 * that it takes no frames before the guest touches it. A reboot in place must drop the old
 * contents first. */
int boot_load(const struct boot_image *image, const struct machine *m, struct gmem *mem,
	      struct boot_plan *plan, char error[BOOT_ERROR_MAX]);
/* Change in `sregs` (from KVM_GET_SREGS of the fresh vCPU, so its APIC base stays) what the plan
 * sets. Nothing for a vCPU that doesn't run yet. */
void boot_apply_sregs(const struct boot_cpu *cpu, struct kvm_sregs *sregs);

/* ACPI (6.4) tables for the machine, with all pointers and checksums, to be placed at `base`
 * (16-byte aligned, below 1 MiB): RSDP first. HW-reduced FADT with sleep control and reset
 * registers, MADT (LAPICs, IOAPIC), DSDT with LNRO0005 devices for the virtio slots, COM1, and, behind
 * a generic event device, the power button (PNP0C0C, MACHINE_POWER_GSI) and the generation id
 * (VM_Gen_Counter, MACHINE_GENERATION_GSI).
 * Returns the bytes used, or -ENOSPC. (acpi.c) */
int64_t acpi_build(const struct machine *m, gpa_t base, void *out, size_t size);
#define BOOT_ACPI_BASE UINT64_C(0xE0000)
#define BOOT_ACPI_SIZE (BOOT_IDENTITY - BOOT_ACPI_BASE)

#endif
