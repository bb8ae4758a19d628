/*
 * Register states a vCPU starts in.
 *
 *   flat 32-bit   PVH (start_info.h, "the boot ABI"): protected mode, paging off
 *   long          boot.rst, "64-bit boot protocol": CPL 0, paging on, __BOOT_CS and __BOOT_DS
 *   long user     the bare guest: CPL 3 with IOPL 3, so that a KVM without hardware support runs
 *                 it natively, and in and out work
 *
 * VMX checks guest state at entry (Intel SDM vol. 3, 27.3.1): TR must be a busy TSS, LDTR unusable
 * or an LDT, the RPL of SS that of CS, and segments must have their accessed bit.
 */
#include "vmm/boot_parts.h"

#include <string.h>

#define CR0_PE         (UINT64_C(1) << 0)
#define CR0_MP         (UINT64_C(1) << 1)
#define CR0_ET         (UINT64_C(1) << 4)
#define CR0_NE         (UINT64_C(1) << 5)
#define CR0_WP         (UINT64_C(1) << 16)
#define CR0_AM         (UINT64_C(1) << 18)
#define CR0_PG         (UINT64_C(1) << 31)
#define CR4_PAE        (UINT64_C(1) << 5)
#define CR4_MCE        (UINT64_C(1) << 6)
#define CR4_OSFXSR     (UINT64_C(1) << 9)
#define CR4_OSXMMEXCPT (UINT64_C(1) << 10)
#define EFER_SCE       (UINT64_C(1) << 0)
#define EFER_LME       (UINT64_C(1) << 8)
#define EFER_LMA       (UINT64_C(1) << 10)
#define EFER_NXE       (UINT64_C(1) << 11)
#define RFLAGS_ONE     (UINT64_C(1) << 1)
#define RFLAGS_IOPL3   (UINT64_C(3) << 12)

#define TYPE_DATA 3  /* read, write, accessed */
#define TYPE_CODE 11 /* execute, read, accessed */
#define TYPE_TSS  11 /* busy */

#define GDT_ENTRIES 7 /* null, unused, 0x10, 0x18, unused, 0x28, 0x30 */

static struct kvm_segment segment(uint16_t selector, uint8_t type, bool code64)
{
	return (struct kvm_segment){
		.limit = UINT32_MAX,
		.selector = selector,
		.type = type,
		.present = 1,
		.dpl = selector & 3,
		.db = !code64,
		.s = 1,
		.l = code64,
		.g = 1,
	};
}

static struct kvm_segment code_segment(enum boot_mode mode)
{
	return segment(mode == BOOT_MODE_LONG_USER ? BOOT_USER_CS : BOOT_CS, TYPE_CODE,
		       mode != BOOT_MODE_FLAT32);
}

static struct kvm_segment data_segment(enum boot_mode mode)
{
	return segment(mode == BOOT_MODE_LONG_USER ? BOOT_USER_DS : BOOT_DS, TYPE_DATA, false);
}

/* A GDT entry for a flat segment (Intel SDM vol. 3, figure 3-8): base 0, limit all ones. */
static uint64_t descriptor(const struct kvm_segment *s)
{
	uint64_t access = s->type | s->s << 4 | s->dpl << 5 | s->present << 7;
	uint64_t flags = (uint64_t)s->l << 1 | s->db << 2 | s->g << 3;
	return UINT64_C(0x000F00000000FFFF) | access << 40 | flags << 52;
}

void boot_cpu_state(struct boot_cpu *cpu, enum boot_mode mode, uint64_t cr3)
{
	memset(cpu, 0, sizeof(*cpu));
	cpu->runs = true;
	cpu->regs.rflags = RFLAGS_ONE;
	struct kvm_sregs *s = &cpu->sregs;
	s->cs = code_segment(mode);
	s->ds = s->es = s->fs = s->gs = s->ss = data_segment(mode);
	s->tr = (struct kvm_segment){.limit = 0x67, .type = TYPE_TSS, .present = 1};
	s->ldt = (struct kvm_segment){.unusable = 1};
	s->gdt = (struct kvm_dtable){.base = BOOT_GDT, .limit = GDT_ENTRIES * 8 - 1};
	s->cr0 = CR0_PE | CR0_ET;
	if (mode == BOOT_MODE_FLAT32)
		return;
	s->cr0 |= CR0_PG | CR0_NE;
	s->cr3 = cr3;
	s->cr4 = CR4_PAE;
	s->efer = EFER_LME | EFER_LMA;
	if (mode != BOOT_MODE_LONG_USER)
		return;
	s->cr0 |= CR0_MP | CR0_WP | CR0_AM;
	s->cr4 |= CR4_MCE | CR4_OSFXSR | CR4_OSXMMEXCPT;
	s->idt = (struct kvm_dtable){.base = BOOT_BARE_IDT, .limit = PAGE_SIZE - 1};
	s->efer |= EFER_NXE | EFER_SCE;
	/* All ports for CPL 3, twice over: by IOPL 3, and, for a KVM that keeps IOPL to itself, by the
	 * TSS's I/O permission map (SDM vol. 1, 19.5.2). The TSS lies at gpa 0 and is zero: so the map
	 * begins at its own start, and covers every port below 0x8000 (then comes the GDT). */
	cpu->regs.rflags |= RFLAGS_IOPL3;
	s->tr.limit = 0xffff;
}

int boot_write_gdt(struct gmem *mem, enum boot_mode mode, char error[BOOT_ERROR_MAX])
{
	uint64_t gdt[GDT_ENTRIES] = {0};
	const struct kvm_segment cs = code_segment(mode), ds = data_segment(mode);
	gdt[cs.selector >> 3] = descriptor(&cs);
	gdt[ds.selector >> 3] = descriptor(&ds);
	if (mode == BOOT_MODE_LONG_USER) {
		const struct kvm_segment cs0 = code_segment(BOOT_MODE_LONG);
		gdt[BOOT_BARE_CS0 >> 3] = descriptor(&cs0);
	}
	return boot_write(mem, gpa(BOOT_GDT), gdt, sizeof(gdt), "the GDT", error);
}

void boot_apply_sregs(const struct boot_cpu *cpu, struct kvm_sregs *sregs)
{
	if (!cpu->runs)
		return;
	const struct kvm_sregs *from = &cpu->sregs;
	sregs->cs = from->cs;
	sregs->ds = from->ds;
	sregs->es = from->es;
	sregs->fs = from->fs;
	sregs->gs = from->gs;
	sregs->ss = from->ss;
	sregs->tr = from->tr;
	sregs->ldt = from->ldt;
	sregs->gdt = from->gdt;
	sregs->idt = from->idt;
	sregs->cr0 = from->cr0;
	sregs->cr2 = from->cr2;
	sregs->cr3 = from->cr3;
	sregs->cr4 = from->cr4;
	sregs->efer = from->efer;
}
