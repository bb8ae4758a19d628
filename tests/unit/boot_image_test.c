/* boot_image_*: files and images, sound and broken. */
#include "tests/unit/boot_fake.h"

#include <asm/bootparam.h>
#include <criterion/criterion.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char dir[64];

static void make_dir(void)
{
	strcpy(dir, "/tmp/boot-test-XXXXXX");
	cr_assert_not_null(mkdtemp(dir));
}

static void drop_dir(void)
{
	char command[128];
	snprintf(command, sizeof(command), "rm -rf %s", dir);
	cr_assert_eq(system(command), 0);
}

TestSuite(boot_files, .init = make_dir, .fini = drop_dir);

static const char *in_dir(char out[128], const char *name)
{
	snprintf(out, 128, "%s/%s", dir, name);
	return out;
}

static void write_file(const char *path, const void *bytes, size_t n)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	cr_assert(fd >= 0);
	cr_assert_eq(write(fd, bytes, n), (ssize_t)n);
	close(fd);
}

/* Opening must fail with `err`, and say the file's name and `word`. */
static void refuse(const char *kernel, const char *initrd, int err, const char *word)
{
	struct boot_image image;
	char error[BOOT_ERROR_MAX] = "";
	cr_assert_eq(boot_image_open(&image, kernel, initrd, error), err, "%s", error);
	const char *name = strrchr(initrd ? initrd : kernel, '/');
	cr_assert_not_null(strstr(error, name), "no name in: %s", error);
	cr_assert_not_null(strstr(error, word), "no '%s' in: %s", word, error);
	cr_assert_null(strchr(error, '\n'));
	cr_assert_null(image.kernel);
	cr_assert_null(image.initrd);
}

Test(boot_files, refused)
{
	char path[128];
	refuse(in_dir(path, "missing"), NULL, -ENOENT, "--kernel");
	refuse(dir, NULL, -EISDIR, "directory");
	in_dir(path, "fifo");
	cr_assert_eq(mkfifo(path, 0600), 0);
	refuse(path, NULL, -EINVAL, "pipe");
	refuse("/dev/null", NULL, -EINVAL, "device");
	write_file(in_dir(path, "empty"), "", 0);
	refuse(path, NULL, -ENOEXEC, "empty");
	write_file(in_dir(path, "text"), "hello\n", 6);
	refuse(path, NULL, -ENOEXEC, "bzImage");
	write_file(in_dir(path, "gzip"), "\x1f\x8b\x08\x00", 4);
	refuse(path, NULL, -ENOEXEC, "gzip");
	write_file(in_dir(path, "elf32"),
		   "\x7f"
		   "ELF\x01\x01\x01",
		   7);
	refuse(path, NULL, -ENOEXEC, "32-bit");
	write_file(in_dir(path, "elf64"),
		   "\x7f"
		   "ELF\x02\x01\x01",
		   7);
	refuse(path, NULL, -ENOEXEC, "truncated");
	refuse("/bin/true", NULL, -ENOEXEC, "ET_EXEC");
	if (geteuid()) {
		write_file(in_dir(path, "secret"), "x", 1);
		chmod(path, 0);
		refuse(path, NULL, -EACCES, "--kernel");
	}
}

Test(boot_files, opened_with_initrd)
{
	char kernel[128], initrd[128], error[BOOT_ERROR_MAX];
	struct boot_buffer b;
	struct boot_image image;
	boot_tiny_bzimage(&b);
	write_file(in_dir(kernel, "kernel"), b.bytes, b.size);
	write_file(in_dir(initrd, "initrd"), "0123456789", 10);
	cr_assert_eq(boot_image_open(&image, kernel, initrd, error), 0, "%s", error);
	cr_assert_eq(image.kind, BOOT_BZIMAGE);
	cr_assert_eq(image.kernel_bytes, b.size);
	cr_assert_eq(image.initrd_bytes, 10);
	cr_assert_eq(memcmp(image.initrd, "0123456789", 10), 0);
	cr_assert_eq(image.min_bytes, 0x1000000 + 0x300000 + 0x1000);
	boot_image_close(&image);

	refuse(kernel, in_dir(initrd, "none"), -ENOENT, "--initrd");
	write_file(in_dir(initrd, "void"), "", 0);
	refuse(kernel, initrd, -ENOEXEC, "empty");
	refuse(kernel, dir, -EISDIR, "--initrd");
	/* Sparse, so it costs nothing: larger than any guest's low memory. */
	cr_assert_eq(truncate(initrd, INT64_C(3) << 30), 0);
	refuse(kernel, initrd, -EFBIG, "initrd");
}

Test(boot_files, long_names_keep_their_end)
{
	char path[512], error[BOOT_ERROR_MAX];
	struct boot_image image;
	snprintf(path, sizeof(path), "%s/%0300d/the-end", dir, 0);
	cr_assert_lt(boot_image_open(&image, path, NULL, error), 0);
	cr_assert_not_null(strstr(error, "/the-end"), "%s", error);
}

Test(boot_image, bzimage_fields)
{
	struct boot_buffer b;
	struct boot_image image;
	char error[BOOT_ERROR_MAX];
	boot_tiny_bzimage(&b);
	cr_assert_eq(boot_buffer_check(&b, &image, error), 0, "%s", error);
	cr_assert_eq(image.segments, 1);
	cr_assert_eq(image.segment[0].offset, 3 * 512);
	cr_assert_eq(image.segment[0].bytes, 4800);
	cr_assert_eq(image.segment[0].at.v, 0x1000000);
	cr_assert_eq(image.entry, 0x1000200);
	cr_assert_eq(image.end, 0x1300000);
	cr_assert_eq(image.initrd_end, 0x80000000);
	cr_assert_eq(image.cmdline_max, 2047);
	/* Without a preferred address: 1 MiB, aligned. */
	struct setup_header *h = (void *)(b.bytes + 0x1f1);
	h->pref_address = 0;
	cr_assert_eq(boot_buffer_check(&b, &image, error), 0);
	cr_assert_eq(image.segment[0].at.v, 0x200000);
	boot_buffer_free(&b);
}

/* One change each that makes the tiny bzImage unusable. */
Test(boot_image, bzimage_broken)
{
	static const struct {
		size_t offset;
		unsigned bytes;
		uint64_t value;
		const char *word;
	} cases[] = {
		{offsetof(struct setup_header, version), 2, 0x020b, "2.12"},
		{offsetof(struct setup_header, xloadflags), 2, 0, "32-bit"},
		{offsetof(struct setup_header, loadflags), 1, 0, "zImage"},
		{offsetof(struct setup_header, syssize), 4, 301, "truncated"},
		{offsetof(struct setup_header, syssize), 4, UINT32_MAX, "truncated"},
		{offsetof(struct setup_header, syssize), 4, 2, "no code"},
		{offsetof(struct setup_header, setup_sects), 1, 255, "truncated"},
		{offsetof(struct setup_header, payload_offset), 4, 4801, "payload"},
		{offsetof(struct setup_header, payload_length), 4, UINT32_MAX, "payload"},
		{offsetof(struct setup_header, jump), 2, 0xffeb, "header length"},
		{offsetof(struct setup_header, kernel_alignment), 4, 3, "placed"},
		{offsetof(struct setup_header, kernel_alignment), 4, 0, "placed"},
		{offsetof(struct setup_header, init_size), 4, UINT32_MAX, "placed"},
		{offsetof(struct setup_header, boot_flag), 2, 0, "no kernel"},
		{offsetof(struct setup_header, header), 4, 0, "no kernel"},
	};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct boot_buffer b;
		struct boot_image image;
		char error[BOOT_ERROR_MAX];
		boot_tiny_bzimage(&b);
		memcpy(b.bytes + 0x1f1 + cases[i].offset, &cases[i].value, cases[i].bytes);
		cr_expect_eq(boot_buffer_check(&b, &image, error), -ENOEXEC, "case %zu", i);
		cr_expect_not_null(strstr(error, cases[i].word), "case %zu: %s", i, error);
		boot_buffer_free(&b);
	}
}

/* Every shorter file is refused: its header says how long it is. */
static void truncations(void (*make)(struct boot_buffer *b))
{
	struct boot_buffer whole, cut;
	struct boot_image image;
	char error[BOOT_ERROR_MAX];
	make(&whole);
	for (size_t n = 1; n < whole.size; n++) {
		boot_buffer_init(&cut, n);
		memcpy(cut.bytes, whole.bytes, n);
		cr_assert_eq(boot_buffer_check(&cut, &image, error), -ENOEXEC, "%zu bytes", n);
		cr_assert_gt(strlen(error), 0);
		boot_buffer_free(&cut);
	}
	boot_buffer_free(&whole);
}

static void make_pvh(struct boot_buffer *b)
{
	boot_tiny_elf(b, false, 4);
}

static void make_bare(struct boot_buffer *b)
{
	boot_tiny_elf(b, true, 8);
}

Test(boot_image, truncated)
{
	truncations(boot_tiny_bzimage);
	truncations(make_pvh);
	truncations(make_bare);
}

Test(boot_image, elf_fields)
{
	for (unsigned i = 0; i < 4; i++) {
		bool bare = i & 1;
		struct boot_buffer b;
		struct boot_image image;
		char error[BOOT_ERROR_MAX];
		boot_tiny_elf(&b, bare, i & 2 ? 8 : 4);
		cr_assert_eq(boot_buffer_check(&b, &image, error), 0, "%s", error);
		cr_assert_eq(image.kind, bare ? BOOT_BARE : BOOT_PVH);
		cr_assert_eq(image.entry, BOOT_TINY_ENTRY);
		cr_assert_eq(image.segments, 2);
		cr_assert_eq(image.end, 0x201000 + 0x9123);
		cr_assert_eq(image.min_bytes, 0x20b000);
		boot_buffer_free(&b);
	}
}

#define EHDR(field)    offsetof(Elf64_Ehdr, field)
#define PHDR(i, field) (sizeof(Elf64_Ehdr) + (i) * sizeof(Elf64_Phdr) + offsetof(Elf64_Phdr, field))

Test(boot_image, elf_broken)
{
	static const struct {
		size_t offset;
		unsigned bytes;
		uint64_t value;
		const char *word;
	} cases[] = {
		{EI_CLASS, 1, ELFCLASS32, "32-bit"},
		{EI_DATA, 1, ELFDATA2MSB, "another machine"},
		{EHDR(e_machine), 2, EM_AARCH64, "another machine"},
		{EHDR(e_type), 2, ET_DYN, "ET_EXEC"},
		{EHDR(e_phnum), 2, 0, "program headers"},
		{EHDR(e_phnum), 2, 0xffff, "program headers"},
		{EHDR(e_phentsize), 2, 55, "program headers"},
		{EHDR(e_phoff), 8, UINT64_MAX - 8, "truncated"},
		{EHDR(e_phoff), 8, 0x900, "truncated"},
		{PHDR(0, p_filesz), 8, 0x301, "larger in the file"},
		{PHDR(0, p_offset), 8, UINT64_MAX, "truncated"},
		{PHDR(0, p_offset), 8, 0x800, "truncated"},
		{PHDR(0, p_paddr), 8, 0xff000, "1 MiB"},
		{PHDR(0, p_paddr), 8, UINT64_MAX - 0x100, "1 MiB"},
		{PHDR(1, p_memsz), 8, UINT64_MAX, "1 MiB"},
		{PHDR(1, p_memsz), 8, 3 * GiB, "1 MiB"},
		{PHDR(1, p_paddr), 8, 0x2002ff, "overlap"},
		{PHDR(0, p_type), 4, PT_INTERP, "dynamically"},
		{PHDR(2, p_type), 4, PT_NULL, "CONFIG_PVH"},
		{PHDR(2, p_offset), 8, 0x920, "notes"},
	};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct boot_buffer b;
		struct boot_image image;
		char error[BOOT_ERROR_MAX];
		boot_tiny_elf(&b, false, 4);
		memcpy(b.bytes + cases[i].offset, &cases[i].value, cases[i].bytes);
		cr_expect_eq(boot_buffer_check(&b, &image, error), -ENOEXEC, "case %zu", i);
		cr_expect_not_null(strstr(error, cases[i].word), "case %zu: %s", i, error);
		boot_buffer_free(&b);
	}
}

/* A note that reaches out of its segment isn't one, by a single byte of name or descriptor. */
Test(boot_image, notes_end_with_their_segment)
{
	for (unsigned align = 4; align <= 8; align += 4)
		for (unsigned bare = 0; bare < 2; bare++) {
			struct boot_buffer b;
			struct boot_image image;
			char error[BOOT_ERROR_MAX];
			uint64_t size;
			boot_tiny_elf(&b, bare, align);
			memcpy(&size, b.bytes + PHDR(2, p_filesz), 8);
			for (uint64_t n = size; n-- > 0;) {
				memcpy(b.bytes + PHDR(2, p_filesz), &n, 8);
				cr_assert_eq(boot_buffer_check(&b, &image, error), -ENOEXEC,
					     "%d of %d bytes", (int)n, (int)size);
			}
			boot_buffer_free(&b);
		}
}

Test(boot_image, bare_must_be_linked_where_it_loads)
{
	struct boot_buffer b;
	struct boot_image image;
	char error[BOOT_ERROR_MAX];
	boot_tiny_elf(&b, true, 4);
	uint64_t elsewhere = 0x400000;
	memcpy(b.bytes + PHDR(1, p_vaddr), &elsewhere, 8);
	cr_assert_eq(boot_buffer_check(&b, &image, error), -ENOEXEC);
	cr_assert_not_null(strstr(error, "virtual"), "%s", error);
	boot_buffer_free(&b);
	/* An entry in .bss or nowhere. */
	boot_tiny_elf(&b, true, 4);
	uint64_t entry = 0x201123;
	memcpy(b.bytes + EHDR(e_entry), &entry, 8);
	cr_assert_eq(boot_buffer_check(&b, &image, error), -ENOEXEC);
	cr_assert_not_null(strstr(error, "entry"), "%s", error);
	boot_buffer_free(&b);
}
