/*
 * ELF kernels: the System V gABI's ELF-64 objects, checked against the file before anything is
 * believed. Which entry it is, PVH or bare, is said by its notes.
 */
#include "vmm/boot_parts.h"

#include <elf.h>
#include <errno.h>
#include <string.h>

#define MAX_HEADERS 128
#define NOTE_XEN    "Xen" /* its names and types: xen/include/public/elfnote.h */
#define NOTE_PHYS32 18    /* XEN_ELFNOTE_PHYS32_ENTRY */
#define NOTE_BARE   "invisor"
#define NOTE_ENTER  1

bool boot_elf_is(const struct boot_image *image)
{
	return image->kernel_bytes >= SELFMAG && !memcmp(image->kernel, ELFMAG, SELFMAG);
}

static int bad(const struct boot_image *image, char error[BOOT_ERROR_MAX], const char *words)
{
	return errorf(error, -ENOEXEC, "kernel %s %s", image->kernel_name, words);
}

static bool in_file(const struct boot_image *image, uint64_t offset, uint64_t bytes)
{
	return offset <= image->kernel_bytes && bytes <= image->kernel_bytes - offset;
}

static int check_header(const struct boot_image *image, Elf64_Ehdr *e, char error[BOOT_ERROR_MAX])
{
	if (image->kernel_bytes > EI_CLASS && image->kernel[EI_CLASS] == ELFCLASS32)
		return bad(image, error, "is a 32-bit ELF: give a 64-bit kernel");
	if (image->kernel_bytes < sizeof(*e))
		return bad(image, error, "is truncated: its ELF header is incomplete");
	memcpy(e, image->kernel, sizeof(*e));
	if (e->e_ident[EI_CLASS] != ELFCLASS64 || e->e_ident[EI_DATA] != ELFDATA2LSB ||
	    e->e_machine != EM_X86_64 || e->e_ident[EI_VERSION] != EV_CURRENT)
		return bad(image, error, "is an ELF for another machine: give an x86-64 kernel");
	if (e->e_type != ET_EXEC)
		return bad(image, error,
			   "isn't an executable at fixed addresses (ET_EXEC): link it statically, "
			   "without -pie");
	if (!e->e_phnum || e->e_phnum > MAX_HEADERS || e->e_phentsize != sizeof(Elf64_Phdr))
		return bad(image, error, "is damaged: bad number or size of program headers");
	if (!in_file(image, e->e_phoff, (uint64_t)e->e_phnum * sizeof(Elf64_Phdr)))
		return bad(image, error, "is truncated: its program headers lie outside the file");
	return 0;
}

static Elf64_Phdr program_header(const struct boot_image *image, const Elf64_Ehdr *e, unsigned i)
{
	Elf64_Phdr p;
	memcpy(&p, image->kernel + e->e_phoff + i * sizeof(p), sizeof(p));
	return p;
}

struct notes {
	bool pvh, bare;
	uint64_t pvh_entry;
};

/* One PT_NOTE segment: header, name and descriptor, the last two padded to the alignment. */
static void read_notes(const struct boot_image *image, const Elf64_Phdr *p, struct notes *out)
{
	const uint8_t *base = image->kernel + p->p_offset;
	uint64_t align = p->p_align == 8 ? 8 : 4, at = 0;
	Elf64_Nhdr n;
	while (at <= p->p_filesz && p->p_filesz - at >= sizeof(n)) {
		memcpy(&n, base + at, sizeof(n));
		/* 32-bit sizes in 64-bit sums: no overflow. */
		uint64_t desc = at + boot_round_up(sizeof(n) + n.n_namesz, align);
		if (desc > p->p_filesz || n.n_descsz > p->p_filesz - desc)
			return;
		const uint8_t *name = base + at + sizeof(n);
		if (n.n_namesz == sizeof(NOTE_BARE) && !memcmp(name, NOTE_BARE, n.n_namesz) &&
		    n.n_type == NOTE_ENTER)
			out->bare = true;
		if (n.n_namesz == sizeof(NOTE_XEN) && !memcmp(name, NOTE_XEN, n.n_namesz) &&
		    n.n_type == NOTE_PHYS32 && (n.n_descsz == 4 || n.n_descsz == 8)) {
			out->pvh = true;
			out->pvh_entry = 0;
			memcpy(&out->pvh_entry, base + desc, n.n_descsz); /* little-endian */
		}
		at = desc + boot_round_up(n.n_descsz, align);
	}
}

static int add_segment(struct boot_image *image, const Elf64_Phdr *p, char error[BOOT_ERROR_MAX])
{
	if (p->p_filesz > p->p_memsz)
		return bad(image, error,
			   "is damaged: a segment is larger in the file than in memory");
	if (!in_file(image, p->p_offset, p->p_filesz))
		return bad(image, error, "is truncated: a segment lies outside the file");
	if (!p->p_memsz)
		return 0;
	if (p->p_paddr < BOOT_KERNEL_MIN || p->p_paddr >= MACHINE_LOW_END ||
	    p->p_memsz > MACHINE_LOW_END - p->p_paddr)
		return errorf(error, -ENOEXEC,
			      "kernel %s wants a segment at physical address 0x%llx: only 1 MiB "
			      "to 3 GiB can be loaded",
			      image->kernel_name, (unsigned long long)p->p_paddr);
	for (unsigned i = 0; i < image->segments; i++) {
		const struct boot_segment *s = &image->segment[i];
		if (p->p_paddr < s->at.v + s->mem_bytes && s->at.v < p->p_paddr + p->p_memsz)
			return bad(image, error, "is damaged: two segments overlap in memory");
	}
	if (image->segments == BOOT_MAX_SEGMENTS)
		return bad(image, error, "has too many segments");
	image->segment[image->segments++] = (struct boot_segment){
		.offset = p->p_offset,
		.bytes = p->p_filesz,
		.at = gpa(p->p_paddr),
		.mem_bytes = p->p_memsz,
	};
	if (p->p_paddr + p->p_memsz > image->end)
		image->end = p->p_paddr + p->p_memsz;
	return 0;
}

/* Is there file content at the entry? (An entry in .bss would run zeros.) */
static bool entry_loaded(const struct boot_image *image, uint64_t entry)
{
	for (unsigned i = 0; i < image->segments; i++) {
		const struct boot_segment *s = &image->segment[i];
		if (entry >= s->at.v && entry - s->at.v < s->bytes)
			return true;
	}
	return false;
}

int boot_elf_check(struct boot_image *image, char error[BOOT_ERROR_MAX])
{
	Elf64_Ehdr e;
	int err = check_header(image, &e, error);
	if (err)
		return err;
	struct notes notes = {0};
	bool moved = false; /* a virtual address other than the physical one */
	image->end = 0;
	for (unsigned i = 0; i < e.e_phnum; i++) {
		const Elf64_Phdr p = program_header(image, &e, i);
		if (p.p_type == PT_INTERP || p.p_type == PT_DYNAMIC)
			return bad(image, error, "is a dynamically linked program, not a kernel");
		if (p.p_type == PT_NOTE) {
			if (!in_file(image, p.p_offset, p.p_filesz))
				return bad(image, error,
					   "is truncated: its notes lie outside the file");
			read_notes(image, &p, &notes);
		}
		if (p.p_type == PT_LOAD) {
			err = add_segment(image, &p, error);
			if (err)
				return err;
			moved |= p.p_memsz && p.p_vaddr != p.p_paddr;
		}
	}
	if (!image->segments)
		return bad(image, error, "is damaged: it has nothing to load");
	if (!notes.bare && !notes.pvh)
		return bad(image, error,
			   "has no PVH entry note: build Linux with CONFIG_PVH=y, or give its "
			   "bzImage");
	image->kind = notes.bare ? BOOT_BARE : BOOT_PVH;
	image->entry = notes.bare ? e.e_entry : notes.pvh_entry;
	if (notes.bare && moved)
		return bad(image, error,
			   "is a bare guest whose virtual addresses differ from its physical ones: "
			   "link it at its load address");
	if (!entry_loaded(image, image->entry))
		return bad(image, error, "is damaged: its entry point isn't in a loaded segment");
	if (notes.pvh && !notes.bare)
		image->initrd_end = 2 * GiB; /* as bzImages say by initrd_addr_max */
	return 0;
}
