#include "tests/unit/boot_fake.h"

#include <asm/bootparam.h>
#include <criterion/criterion.h>
#include <elf.h>
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

static uint8_t *find(struct boot_memory *b, uint64_t at, uint64_t len)
{
	if (!machine_is_ram(&b->machine, gpa(at), len))
		return NULL;
	unsigned i = b->machine.banks > 1 && at >= b->machine.bank[1].base.v;
	return b->bank[i] + (at - b->machine.bank[i].base.v);
}

/* One piece a page, so that code which believes in contiguous memory shows itself. */
static int fake_map(struct gmem *m, gpa_t at, uint64_t len, bool write, struct iovec *iov, int max)
{
	struct boot_memory *b =
		(struct boot_memory *)((char *)m - offsetof(struct boot_memory, gmem));
	(void)write;
	b->maps++;
	if (b->fails && b->maps > b->fails)
		return -EAGAIN;
	uint8_t *p = len ? find(b, at.v, len) : NULL;
	if (!p)
		return -EFAULT;
	int n = 0;
	while (len) {
		uint64_t step = PAGE_SIZE - (at.v & PAGE_MASK);
		step = step < len ? step : len;
		if (n == max)
			return -ENOBUFS;
		iov[n++] = (struct iovec){.iov_base = p, .iov_len = step};
		p += step;
		at.v += step;
		len -= step;
	}
	return n;
}

static void fake_unmap(struct gmem *m, const struct iovec *iov, int n)
{
	(void)m;
	(void)iov;
	(void)n;
}

void boot_memory_init(struct boot_memory *b, uint64_t bytes, unsigned cpus, unsigned slots,
		      const char *cmdline)
{
	static const struct gmem_ops ops = {.map = fake_map, .unmap = fake_unmap};
	memset(b, 0, sizeof(*b));
	b->gmem = (struct gmem){.ops = &ops, .bytes = bytes};
	b->machine = (struct machine){
		.name = "test", .cpus = cpus, .virtio_slots = slots, .cmdline = cmdline};
	for (unsigned i = 0; i < slots; i++)
		b->machine.virtio_id[i] = i + 1;
	cr_assert_eq(machine_set_memory(&b->machine, bytes), 0);
	for (unsigned i = 0; i < b->machine.banks; i++) {
		b->bank[i] = mmap(NULL, b->machine.bank[i].bytes, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		cr_assert_neq((void *)b->bank[i], MAP_FAILED, "no room for guest memory");
	}
}

void boot_memory_clear(struct boot_memory *b)
{
	for (unsigned i = 0; i < b->machine.banks; i++)
		madvise(b->bank[i], b->machine.bank[i].bytes, MADV_DONTNEED);
	b->maps = 0;
}

void boot_memory_free(struct boot_memory *b)
{
	for (unsigned i = 0; i < b->machine.banks; i++)
		munmap(b->bank[i], b->machine.bank[i].bytes);
}

uint8_t *boot_memory_at(struct boot_memory *b, uint64_t at, uint64_t len)
{
	uint8_t *p = find(b, at, len);
	cr_assert(p != NULL, "0x%" PRIx64 " + 0x%" PRIx64 " isn't RAM", at, len);
	return p;
}

void boot_buffer_init(struct boot_buffer *b, size_t size)
{
	size_t pages = (size + PAGE_MASK) & ~PAGE_MASK;
	b->map_size = pages + PAGE_SIZE;
	b->map =
		mmap(NULL, b->map_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	cr_assert_neq(b->map, MAP_FAILED);
	cr_assert_eq(mprotect((char *)b->map + pages, PAGE_SIZE, PROT_NONE), 0);
	b->bytes = (uint8_t *)b->map + pages - size;
	b->size = size;
}

void boot_buffer_free(struct boot_buffer *b)
{
	munmap(b->map, b->map_size);
}

void boot_tiny_bzimage(struct boot_buffer *b)
{
	enum { SETUP = 3 * 512, CODE = 16 * 300 };
	boot_buffer_init(b, SETUP + CODE);
	struct setup_header h = {
		.setup_sects = 2,
		.syssize = CODE / 16,
		.boot_flag = 0xAA55,
		.jump = 0xeb | (0x290 - 0x202 - 16) << 8, /* the header ends at 0x280 */
		.header = 0x53726448,
		.version = 0x020f,
		.loadflags = LOADED_HIGH,
		.initrd_addr_max = 0x7fffffff,
		.kernel_alignment = 2 << 20,
		.relocatable_kernel = 1,
		.xloadflags = XLF_KERNEL_64,
		.cmdline_size = 2047,
		.payload_offset = 0x210,
		.payload_length = 100,
		.pref_address = 0x1000000,
		.init_size = 0x300000,
	};
	memcpy(b->bytes + 0x1f1, &h, sizeof(h));
	for (unsigned i = 0; i < CODE; i++)
		b->bytes[SETUP + i] = (uint8_t)(i * 7 + 1);
}

/* File: header, 3 program headers, notes at 0x200, segment A (0x300 bytes) at 0x400, segment B
 * (0x123 bytes) at 0x800. */
void boot_tiny_elf(struct boot_buffer *b, bool bare, unsigned note_align)
{
	boot_buffer_init(b, 0x923);
	uint64_t to = bare ? 0 : UINT64_C(0xffffffff80000000);
	Elf64_Ehdr e = {
		.e_ident = {0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, EV_CURRENT},
		.e_type = ET_EXEC,
		.e_machine = EM_X86_64,
		.e_version = EV_CURRENT,
		.e_entry = to + BOOT_TINY_ENTRY,
		.e_phoff = sizeof(e),
		.e_ehsize = sizeof(e),
		.e_phentsize = sizeof(Elf64_Phdr),
		.e_phnum = 3,
	};
	/* Notes: a foreign one, then ours. */
	uint8_t notes[128] = {0};
	Elf64_Nhdr foreign = {.n_namesz = 4, .n_descsz = 3, .n_type = NT_GNU_BUILD_ID};
	Elf64_Nhdr ours = {.n_namesz = bare ? 8 : 4, .n_descsz = 8, .n_type = bare ? 1 : 18};
	uint64_t entry = BOOT_TINY_ENTRY;
	size_t at = 0;
	memcpy(notes, &foreign, sizeof(foreign));
	memcpy(notes + sizeof(foreign), "GNU", 4);
	at = 16 + (note_align == 8 ? 8 : 4);
	memcpy(notes + at, &ours, sizeof(ours));
	memcpy(notes + at + sizeof(ours), bare ? "invisor" : "Xen", ours.n_namesz);
	size_t desc = (sizeof(ours) + ours.n_namesz + note_align - 1) / note_align * note_align;
	memcpy(notes + at + desc, &entry, sizeof(entry));
	size_t notes_size = at + desc + sizeof(entry);

	Elf64_Phdr p[3] = {
		{.p_type = PT_LOAD,
		 .p_offset = 0x400,
		 .p_vaddr = to + 0x200000,
		 .p_paddr = 0x200000,
		 .p_filesz = 0x300,
		 .p_memsz = 0x300,
		 .p_align = 0x1000},
		{.p_type = PT_LOAD,
		 .p_offset = 0x800,
		 .p_vaddr = to + 0x201000,
		 .p_paddr = 0x201000,
		 .p_filesz = 0x123,
		 .p_memsz = 0x9123,
		 .p_align = 0x1000},
		{.p_type = PT_NOTE,
		 .p_offset = 0x200,
		 .p_filesz = notes_size,
		 .p_memsz = notes_size,
		 .p_align = note_align},
	};
	memcpy(b->bytes, &e, sizeof(e));
	memcpy(b->bytes + sizeof(e), p, sizeof(p));
	memcpy(b->bytes + 0x200, notes, notes_size);
	for (unsigned i = 0; i < 0x300; i++)
		b->bytes[0x400 + i] = (uint8_t)(i | 1);
	for (unsigned i = 0; i < 0x123; i++)
		b->bytes[0x800 + i] = (uint8_t)(i * 3 | 1);
}

int boot_buffer_check(const struct boot_buffer *b, struct boot_image *image,
		      char error[BOOT_ERROR_MAX])
{
	memset(image, 0, sizeof(*image));
	memset(error, 0, BOOT_ERROR_MAX);
	image->kernel = b->bytes;
	image->kernel_bytes = b->size;
	strcpy(image->kernel_name, "tiny");
	return boot_image_check(image, error);
}

static void check_sound(const struct boot_image *image)
{
	bool entry = false;
	for (unsigned i = 0; i < image->segments; i++) {
		const struct boot_segment *s = &image->segment[i];
		cr_assert_leq(s->offset, image->kernel_bytes);
		cr_assert_leq(s->bytes, image->kernel_bytes - s->offset);
		cr_assert_leq(s->bytes, s->mem_bytes);
		cr_assert_geq(s->at.v, BOOT_KERNEL_MIN);
		cr_assert_leq(s->at.v, MACHINE_LOW_END);
		cr_assert_leq(s->mem_bytes, MACHINE_LOW_END - s->at.v);
		cr_assert_leq(s->at.v + s->mem_bytes, image->end);
		entry |= image->entry >= s->at.v && image->entry < s->at.v + s->bytes;
		for (unsigned j = 0; j < i; j++) {
			const struct boot_segment *o = &image->segment[j];
			cr_assert(o->at.v + o->mem_bytes <= s->at.v ||
				  s->at.v + s->mem_bytes <= o->at.v);
		}
	}
	cr_assert(entry);
}

enum boot_outcome boot_try(const struct boot_buffer *b, struct boot_memory *memory)
{
	static const uint8_t initrd[6000] = {1};
	struct boot_image image = {.kernel = b->bytes,
				   .kernel_bytes = b->size,
				   .kernel_name = "mutant",
				   .initrd = initrd,
				   .initrd_bytes = sizeof(initrd),
				   .initrd_name = "rd"};
	struct boot_plan plan;
	char error[BOOT_ERROR_MAX] = "";
	int err = boot_image_check(&image, error);
	if (err) {
		cr_assert(err == -ENOEXEC || err == -EFBIG);
		cr_assert(strlen(error) && strlen(error) < BOOT_ERROR_MAX);
		return BOOT_REFUSED;
	}
	check_sound(&image);
	err = boot_image_fits(&image, &memory->machine, error);
	cr_assert(!err || err == -E2BIG);
	cr_assert_eq(boot_load(&image, &memory->machine, &memory->gmem, &plan, error), err, "%s",
		     error);
	if (err) {
		boot_memory_clear(memory);
		return BOOT_UNFIT;
	}
	for (unsigned i = 0; i < memory->machine.cpus; i++)
		if (plan.cpu[i].runs)
			cr_assert(machine_is_ram(&memory->machine, gpa(plan.cpu[i].regs.rip), 1));
	boot_memory_clear(memory);
	return BOOT_LOADED;
}
