/*
 * What the boot files share among themselves and nobody else needs.
 *
 * Failure policy: images, command lines and memory sizes come from users and files, so every fault
 * in them is an -errno with one line of words in `error`. Assertions are for our own arithmetic.
 */
#ifndef VMM_BOOT_PARTS_H
#define VMM_BOOT_PARTS_H

#include "vmm/boot.h"
#include "vmm/error.h"

_Static_assert(BOOT_ERROR_MAX == ERROR_MAX, "errorf writes both");

/* boot_bzimage.c, boot_elf.c: is it one (by its magic number), and is it sound? */
bool boot_bzimage_is(const struct boot_image *image);
int boot_bzimage_check(struct boot_image *image, char error[BOOT_ERROR_MAX]);
bool boot_elf_is(const struct boot_image *image);
int boot_elf_check(struct boot_image *image, char error[BOOT_ERROR_MAX]);

/* Where things go in one VM. */
struct boot_layout {
	gpa_t initrd;
	uint64_t initrd_bytes;
};
int boot_layout(const struct boot_image *image, const struct machine *m, struct boot_layout *out,
		char error[BOOT_ERROR_MAX]);

/* The memory map as e820 types (ACPI 6.4, 15.1): used for e820 and for PVH's memmap. */
#define BOOT_RANGE_RAM      1
#define BOOT_RANGE_RESERVED 2
#define BOOT_MAX_RANGES     4
struct boot_range {
	uint64_t base, bytes;
	uint32_t type;
};
unsigned boot_memory_map(const struct machine *m, struct boot_range out[BOOT_MAX_RANGES]);

/* gmem_load with words: `what` is "the kernel", "the command line"... */
int boot_write(struct gmem *mem, gpa_t to, const void *from, uint64_t len, const char *what,
	       char error[BOOT_ERROR_MAX]);

/* The three entries' own parts of boot_load; kernel, initrd, command line and FDT are in place. */
int boot_bzimage_load(const struct boot_image *image, const struct machine *m,
		      const struct boot_layout *layout, struct gmem *mem, struct boot_plan *plan,
		      char error[BOOT_ERROR_MAX]);
int boot_pvh_load(const struct boot_image *image, const struct machine *m,
		  const struct boot_layout *layout, struct gmem *mem, struct boot_plan *plan,
		  char error[BOOT_ERROR_MAX]);
int boot_bare_load(const struct boot_image *image, const struct machine *m, struct gmem *mem,
		   struct boot_plan *plan, char error[BOOT_ERROR_MAX]);
/* -E2BIG with words if the bare guest's page tables have no room for so much memory. */
int boot_bare_fits(const struct machine *m, char error[BOOT_ERROR_MAX]);

/* boot_cpu.c: segment registers, each with the GDT entry that matches it. The selectors are
 * boot.rst's __BOOT_CS and __BOOT_DS, and for CPL 3 those of Linux's user code. */
#define BOOT_CS      0x10
#define BOOT_DS      0x18
#define BOOT_USER_DS 0x2b
#define BOOT_USER_CS 0x33
enum boot_mode { BOOT_MODE_FLAT32, BOOT_MODE_LONG, BOOT_MODE_LONG_USER };
/* Segments, GDTR, IDTR (empty but for LONG_USER), TSS, control registers, EFER and RFLAGS for a mode. cr3: page tables,
 * unused for FLAT32. */
void boot_cpu_state(struct boot_cpu *cpu, enum boot_mode mode, uint64_t cr3);
int boot_write_gdt(struct gmem *mem, enum boot_mode mode, char error[BOOT_ERROR_MAX]);

/* Bits of x86-64 page table entries (AMD64 APM vol. 2, 5.3). */
#define PTE_PRESENT  UINT64_C(1)
#define PTE_WRITE    (UINT64_C(1) << 1)
#define PTE_USER     (UINT64_C(1) << 2)
#define PTE_NO_CACHE (UINT64_C(1) << 4)
#define PTE_LARGE    (UINT64_C(1) << 7)

static inline uint64_t boot_round_up(uint64_t v, uint64_t to)
{
	return (v + to - 1) / to * to;
}

#endif
