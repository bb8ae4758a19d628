/*
 * The bare guest: every vCPU enters at once in CPL 3 with IOPL 3, on page tables that map all memory
 * and the devices one to one in user pages of 2 MiB. (Where a bank doesn't end at a multiple of
 * 2 MiB, the last page reaches beyond it: an access there is an MMIO exit.)
 */
#include "vmm/boot_parts.h"

#include <errno.h>

#define TABLE_PAGES ((BOOT_BARE_STACKS - BOOT_BARE_TABLES) / PAGE_SIZE)
#define DIRECTORIES (TABLE_PAGES - 2) /* one a GiB that has anything in it */
#define LARGE_PAGE  (2 * MiB)
#define MAX_SPANS   (MACHINE_MAX_BANKS + 3)
#define USER_PAGE   (PTE_PRESENT | PTE_WRITE | PTE_USER)

_Static_assert(BOOT_BARE_STACKS + MACHINE_MAX_CPUS * BOOT_STACK_BYTES <= BOOT_LOW_END,
	       "stacks end below 640 KiB");

/* What is mapped, in ascending order, with the bits each page of it gets. */
struct span {
	uint64_t base, bytes, bits;
};

static unsigned spans(const struct machine *m, struct span out[MAX_SPANS])
{
	unsigned n = 0;
	out[n++] = (struct span){0, m->bank[0].bytes, 0};
	out[n++] = (struct span){machine_mmio_base(m->bank[0].bytes),
				 MACHINE_MAX_VIRTIO * MACHINE_MMIO_STRIDE, PTE_NO_CACHE};
	out[n++] = (struct span){MACHINE_IOAPIC_BASE, PAGE_SIZE, PTE_NO_CACHE};
	out[n++] = (struct span){MACHINE_LAPIC_BASE, PAGE_SIZE, PTE_NO_CACHE};
	for (unsigned i = 1; i < m->banks; i++)
		out[n++] = (struct span){m->bank[i].base.v, m->bank[i].bytes, 0};
	return n;
}

/* The entry for the 2 MiB at gpa `at`, 0 if nothing is there. */
static uint64_t entry_for(const struct span *span, unsigned n, uint64_t at)
{
	for (unsigned i = 0; i < n; i++)
		if (at + LARGE_PAGE > span[i].base && at < span[i].base + span[i].bytes)
			return at | span[i].bits | USER_PAGE | PTE_LARGE;
	return 0;
}

int boot_bare_fits(const struct machine *m, char error[BOOT_ERROR_MAX])
{
	struct span span[MAX_SPANS];
	uint64_t used = 0, next = 0;
	unsigned n = spans(m, span);
	for (unsigned i = 0; i < n; i++) {
		uint64_t from = span[i].base / GiB;
		uint64_t to = (span[i].base + span[i].bytes - 1) / GiB + 1;
		from = from < next ? next : from;
		if (to > from)
			used += to - from;
		next = to > next ? to : next;
	}
	if (used > DIRECTORIES || next > 512)
		return errorf(error, -E2BIG,
			      "a bare guest can have at most %" PRIu64
			      " GiB of memory: give less with --mem",
			      DIRECTORIES - 1);
	return 0;
}

static int write_tables(const struct machine *m, struct gmem *mem, char error[BOOT_ERROR_MAX])
{
	struct span span[MAX_SPANS];
	unsigned n = spans(m, span);
	uint64_t pdpt[512] = {0}, pd[512];
	uint64_t table = BOOT_BARE_TABLES + 2 * PAGE_SIZE;
	for (uint64_t i = 0; i < 512; i++) {
		bool any = false;
		for (uint64_t j = 0; j < 512; j++) {
			pd[j] = entry_for(span, n, i * GiB + j * LARGE_PAGE);
			any |= pd[j] != 0;
		}
		if (!any)
			continue;
		int err = boot_write(mem, gpa(table), pd, sizeof(pd), "page tables", error);
		if (err)
			return err;
		pdpt[i] = table | USER_PAGE;
		table += PAGE_SIZE;
	}
	uint64_t pml4 = (BOOT_BARE_TABLES + PAGE_SIZE) | USER_PAGE;
	int err = boot_write(mem, gpa(BOOT_BARE_TABLES + PAGE_SIZE), pdpt, sizeof(pdpt),
			     "page tables", error);
	return err ? err
		   : boot_write(mem, gpa(BOOT_BARE_TABLES), &pml4, sizeof(pml4), "page tables",
				error);
}

int boot_bare_load(const struct boot_image *image, const struct machine *m, struct gmem *mem,
		   struct boot_plan *plan, char error[BOOT_ERROR_MAX])
{
	int err = write_tables(m, mem, error);
	if (!err)
		err = boot_write_gdt(mem, BOOT_MODE_LONG_USER, error);
	if (err)
		return err;
	for (unsigned i = 0; i < m->cpus; i++) {
		boot_cpu_state(&plan->cpu[i], BOOT_MODE_LONG_USER, BOOT_BARE_TABLES);
		struct kvm_regs *r = &plan->cpu[i].regs;
		r->rip = image->entry;
		r->rsp = BOOT_BARE_STACKS + (i + 1) * BOOT_STACK_BYTES;
		r->rdi = BOOT_FDT;
		r->rsi = i;
	}
	return 0;
}
