/*
 * Hostile images: thousands of mutations of sound ones, with fixed seeds. An image ends at an
 * inaccessible page, guest memory is exactly the machine's: what reads or writes outside dies.
 * Whatever passes the check must load, and start inside what was loaded.
 */
#include "tests/unit/boot_fake.h"

#include <criterion/criterion.h>
#include <elf.h>
#include <errno.h>
#include <string.h>

#define ROUNDS 8000
#define GUEST  (48 * MiB)

struct outcome {
	unsigned refused, unfit, loaded;
};

static void try_image(const struct boot_buffer *b, struct boot_memory *memory, struct outcome *out)
{
	switch (boot_try(b, memory)) {
	case BOOT_REFUSED:
		out->refused++;
		break;
	case BOOT_UNFIT:
		out->unfit++;
		break;
	case BOOT_LOADED:
		out->loaded++;
	}
}

static const uint64_t nasty[] = {
	0,        1,          3,          0x7f,       0xff,           0x7fff,
	0xffff,   0x7fffffff, 0x80000000, 0xffffffff, 0x100000000,    0xc0000000,
	0x100000, 0xfff00000, INT64_MAX,  UINT64_MAX, UINT64_MAX - 7, 0x1000,
	0x200000};

static void mutate(struct boot_buffer *b, size_t from, size_t to, uint64_t *seed)
{
	for (unsigned n = 1 + boot_random(seed) % 4; n; n--) {
		size_t at = from + boot_random(seed) % (to - from);
		uint64_t v = nasty[boot_random(seed) % (sizeof(nasty) / sizeof(nasty[0]))];
		size_t size = 1u << boot_random(seed) % 4;
		if (boot_random(seed) % 2)
			v = boot_random(seed);
		if (boot_random(seed) % 2)
			at &= ~(size - 1);
		if (at + size > b->size)
			size = b->size - at;
		memcpy(b->bytes + at, &v, size);
	}
}

/* Mutate bytes [from, to) of the image, and now and then cut the file short. */
static struct outcome rounds(void (*make)(struct boot_buffer *b), size_t from, size_t to,
			     uint64_t seed)
{
	struct boot_memory memory;
	struct boot_buffer whole, b;
	struct outcome out = {0};
	boot_memory_init(&memory, GUEST, 3, 2, "quiet");
	make(&whole);
	for (unsigned i = 0; i < ROUNDS; i++) {
		bool cut = boot_random(&seed) % 16 == 0;
		boot_buffer_init(&b, cut ? 1 + boot_random(&seed) % whole.size : whole.size);
		memcpy(b.bytes, whole.bytes, b.size);
		mutate(&b, from < b.size ? from : 0, to < b.size ? to : b.size, &seed);
		try_image(&b, &memory, &out);
		boot_buffer_free(&b);
	}
	boot_buffer_free(&whole);
	boot_memory_free(&memory);
	return out;
}

/* Mutations that never load, or always do, would test nothing. */
static void check_mixed(struct outcome o)
{
	cr_assert_gt(o.refused, ROUNDS / 20, "%u refused", o.refused);
	cr_assert_gt(o.loaded, ROUNDS / 20, "%u loaded", o.loaded);
}

static void make_pvh(struct boot_buffer *b)
{
	boot_tiny_elf(b, false, 4);
}

static void make_pvh8(struct boot_buffer *b)
{
	boot_tiny_elf(b, false, 8);
}

static void make_bare(struct boot_buffer *b)
{
	boot_tiny_elf(b, true, 4);
}

#define HEADERS (sizeof(Elf64_Ehdr) + 3 * sizeof(Elf64_Phdr))

Test(boot_mutation, bzimage_header)
{
	check_mixed(rounds(boot_tiny_bzimage, 0x1f1, 0x270, 1));
}

Test(boot_mutation, pvh_headers)
{
	check_mixed(rounds(make_pvh, 0, HEADERS, 2));
}

Test(boot_mutation, bare_headers)
{
	check_mixed(rounds(make_bare, 0, HEADERS, 3));
}

Test(boot_mutation, notes)
{
	check_mixed(rounds(make_pvh, 0x200, 0x240, 4));
	check_mixed(rounds(make_pvh8, 0x200, 0x240, 5));
	check_mixed(rounds(make_bare, 0x200, 0x240, 6));
}

/* No image at all: random bytes behind each magic number. */
Test(boot_mutation, noise)
{
	struct boot_memory memory;
	struct outcome out = {0};
	uint64_t seed = 7;
	boot_memory_init(&memory, GUEST, 1, 0, "");
	for (unsigned i = 0; i < ROUNDS; i++) {
		struct boot_buffer b;
		boot_buffer_init(&b, 1 + boot_random(&seed) % 2000);
		for (size_t j = 0; j < b.size; j++)
			b.bytes[j] = (uint8_t)boot_random(&seed);
		if (i % 3 == 0 && b.size >= 20)
			memcpy(b.bytes,
			       "\x7f"
			       "ELF\2\1\1\0\0\0\0\0\0\0\0\0\2\0\x3e\0",
			       20);
		if (i % 3 == 1 && b.size >= 0x210)
			memcpy(b.bytes + 0x1fe, "\x55\xaa\xeb\x66HdrS\x0f\x02", 10);
		try_image(&b, &memory, &out);
		boot_buffer_free(&b);
	}
	cr_assert_gt(out.refused, ROUNDS / 2);
	boot_memory_free(&memory);
}
