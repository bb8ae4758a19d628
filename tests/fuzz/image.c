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

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	boot_memory_init(&memory, GUEST, 3, 2, "quiet");
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_in in = {data, size};
	struct boot_buffer whole, b;
	unsigned kind = fuzz_below(&in, 5);
	const uint8_t *bytes;
	size_t n, length;
	switch (kind) {
	case 0:
	case 1:
		boot_tiny_elf(&whole, false, kind ? 8 : 4);
		break;
	case 2:
		boot_tiny_elf(&whole, true, 4);
		break;
	case 3:
		boot_tiny_bzimage(&whole);
		break;
	default:
		if (!in.left)
			return 0;
		boot_buffer_init(&whole, in.left);
		memcpy(whole.bytes, in.at, in.left);
		in.left = 0;
	}
	length = fuzz_u8(&in);
	length = length & 1 ? 1 + (length << 4 | fuzz_u8(&in)) % whole.size : whole.size;
	boot_buffer_init(&b, length);
	memcpy(b.bytes, whole.bytes, length);
	boot_buffer_free(&whole);
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
