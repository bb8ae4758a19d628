/*
 * The machine a VM is: one description, made by the command line, from which the FDT, the ACPI
 * tables, the e820 map and KVM's set-up all come.
 */
#ifndef VMM_MACHINE_H
#define VMM_MACHINE_H

#include "ipt/addr.h"
#include <stddef.h>

#define MACHINE_MAX_CPUS   8
#define MACHINE_MAX_VIRTIO 16
#define MACHINE_MAX_PMEM   4
#define MACHINE_MAX_BANKS  (2 + MACHINE_MAX_PMEM)
#define MACHINE_CMDLINE_MAX \
	2048 /* bytes with the NUL: COMMAND_LINE_SIZE of arch/x86/include/asm/setup.h */

/* The map of guest physical addresses. RAM is one bank up to MACHINE_LOW_END and, where it is
 * larger, a second from 4 GiB on. Banks of persistent memory come behind it, each from a multiple of
 * MACHINE_PMEM_ALIGN on, which is what Linux asks of memory that it maps as device pages. */
#define MACHINE_LOW_END        UINT64_C(0xC0000000) /* RAM below 4 GiB ends here at the latest: 3 GiB */
#define MACHINE_HIGH_BASE      UINT64_C(0x100000000)
#define MACHINE_PMEM_ALIGN     (2 * MiB)
#define MACHINE_PMEM_MAX       (64 * GiB)           /* bytes of a bank */
#define MACHINE_MMIO_BASE      UINT64_C(0xD0000000) /* virtio slot i at base + i * 0x1000 */
#define MACHINE_MMIO_NEAR      UINT64_C(0x3FE00000) /* the base where RAM doesn't come so far */
#define MACHINE_MMIO_STRIDE    UINT64_C(0x1000)
#define MACHINE_MMIO_BYTES     UINT64_C(0x200) /* of it registers: VIRTIO_MMIO_SIZE */
#define MACHINE_IOAPIC_BASE    UINT64_C(0xFEC00000)
#define MACHINE_LAPIC_BASE     UINT64_C(0xFEE00000)
#define MACHINE_TSS_BASE       UINT64_C(0xFFFBD000) /* KVM_SET_TSS_ADDR: 3 pages, Intel only */
#define MACHINE_VIRTIO_GSI     5 /* virtio slot i on GSI 5 + i, level, active high */
#define MACHINE_POWER_GSI      22 /* edge: a pulse is the power button, please shut down (ACPI GED) */
#define MACHINE_GENERATION_GSI 23 /* edge: a pulse says that the generation id changed (ACPI GED) */

/* Ports. */
#define MACHINE_COM1_PORT   0x3f8 /* 16550, IRQ 4 */
#define MACHINE_COM1_GSI    4
#define MACHINE_I8042_PORT  0x64  /* writing 0xFE resets (the keyboard controller's reset line) */
#define MACHINE_SLEEP_PORT  0x600 /* ACPI 6.4, 4.8.3.7: sleep control; status at + 1 */
#define MACHINE_SLEEP_S5    5     /* SLP_TYP for S5 as our DSDT gives it */
#define MACHINE_RESET_PORT  0x604 /* ACPI reset register: writing MACHINE_RESET_VALUE reboots */
#define MACHINE_RESET_VALUE 0x42
/* A read gives the number of the clone, 0 for a VM that was booted: 4 bytes, little-endian. */
#define MACHINE_IDENTITY_PORT 0x608
/* A read comes back as soon as a virtio interrupt line is high or input comes, perhaps earlier: how
 * a guest rests that can't execute HLT. */
#define MACHINE_IDLE_PORT 0x60c

/* Where virtio slot 0 is, for so much RAM below MACHINE_LOW_END. Near to it, the second stage needs a table less, of which a
 * vCPU has 40 pages ready: once it has used 36, KVM takes 40 more (arch/x86/kvm/mmu/mmu.c, mmu_topup_memory_caches). */
static inline uint64_t machine_mmio_base(uint64_t low_bytes)
{
	return low_bytes <= MACHINE_MMIO_NEAR ? MACHINE_MMIO_NEAR : MACHINE_MMIO_BASE;
}

/* A range of guest physical addresses with memory behind it. Only RAM is told of in memory maps: what
 * is persistent memory the guest learns from its device. */
struct machine_bank {
	gpa_t base;
	uint64_t bytes;
	uint64_t window; /* where the bank begins in the VM's window (vmm/window.h), bytes */
	bool pmem;
};

struct machine {
	char name[32];
	uint64_t mem_bytes;                          /* whole 4 KiB pages */
	struct machine_bank bank[MACHINE_MAX_BANKS]; /* by address: RAM, then persistent memory */
	unsigned banks, ram_banks;
	unsigned cpus;                          /* 1 to MACHINE_MAX_CPUS */
	unsigned virtio_slots;                  /* 0 to MACHINE_MAX_VIRTIO */
	uint32_t virtio_id[MACHINE_MAX_VIRTIO]; /* device id in each slot, virtio 1.2 section 5 */
	const char *cmdline;
};

/* Lay banks out for mem_bytes of RAM. -EINVAL for 0, no whole number of pages, or more than 1 TiB. */
int machine_set_memory(struct machine *m, uint64_t mem_bytes);
/* Add a bank of persistent memory; it is m->bank[m->ram_banks + i], i counting from 0. -EINVAL for no
 * whole number of pages, 0 or more than MACHINE_PMEM_MAX, -ENOSPC for one too many. */
int machine_add_pmem(struct machine *m, uint64_t bytes);
/* The bank that [gpa, gpa + len) lies wholly in, or NULL. */
const struct machine_bank *machine_bank_of(const struct machine *m, gpa_t gpa, uint64_t len);
/* Is it RAM? That is where an image may be loaded. Devices may reach all banks: pages of persistent
 * memory that a guest maps directly are buffers like any other. */
bool machine_is_ram(const struct machine *m, gpa_t gpa, uint64_t len);
/* Bytes from the first bank's start in the window to the last one's end. */
uint64_t machine_window_bytes(const struct machine *m);

/* The machine as a flattened device tree (Devicetree Specification 0.4), built with libfdt: /memory
 * banks, /cpus, virtio,mmio nodes with reg and interrupts, serial, /chosen with bootargs and, if
 * initrd_bytes, linux,initrd-start/-end. Writes at most `size` bytes: -ENOSPC. */
int machine_fdt(const struct machine *m, gpa_t initrd, uint64_t initrd_bytes, void *out,
		size_t size);

#endif
