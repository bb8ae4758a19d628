/*
 * Kernel images: one that is sound (ELF with PVH's note, the same with wide notes, bare, bzImage), or nothing but
 * the input's bytes, with patches; checked, and loaded into a machine if the check lets it pass. What passes must
 * load where it may and start inside what was loaded (boot_try).
 */
#include "tests/fuzz/fuzz.h"
#include "tests/unit/boot_fake.h"
#include <string.h>

#define GUEST (48 * MiB)

static struct boot_memory memory;

static struct boot_buffer whole[4];

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	boot_memory_init(&memory, GUEST, 3, 2, "quiet");
	boot_tiny_elf(&whole[0], false, 4);
	boot_tiny_elf(&whole[1], false, 8);
	boot_tiny_elf(&whole[2], true, 4);
	boot_tiny_bzimage(&whole[3]);
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_in in = {data, size};
	struct boot_buffer b;
	unsigned kind = fuzz_below(&in, 5);
	const uint8_t *from = kind < 4 ? whole[kind].bytes : in.at, *bytes;
	size_t n, length = kind < 4 ? whole[kind].size : in.left;
	if (kind == 4) {
		in.left = 0;
	} else {
		unsigned cut = fuzz_u8(&in);
		if (cut & 1)
			length = 1 + ((size_t)cut << 4 | fuzz_u8(&in)) % length;
	}
	if (!length)
		return 0;
	boot_buffer_init(&b, length);
	memcpy(b.bytes, from, length);
	while (in.left) {
		size_t at = fuzz_u16(&in) % length;
		bytes = fuzz_bytes(&in, 64, &n);
		if (n > length - at)
			n = length - at;
		memcpy(b.bytes + at, bytes, n);
	}
	boot_try(&b, &memory);
	boot_buffer_free(&b);
	return 0;
}
