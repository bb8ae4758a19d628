/*
 * Packing of pages: LZ4. See store.h.
 *
 * A guest's fault waits for the unpacking: of a Linux guest's memory a page takes 1.7 us, with zstd at level 1 6 to
 * 8 us, with LZO1X-1 4 to 5 us; packing takes 6, 14 to 18 and 5 us. zstd would store those pages in 1736 bytes each
 * where LZ4 takes 2180, but with 166 KiB of memory in every process that packs and unpacks; LZ4 takes 16 KiB of the
 * stack. docs/RECLAIM.md has the figures, and how they were measured.
 */
#include "vmm/store.h"
#include <errno.h>
#include <lz4.h>
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

int store_pack(const void *page, void *out, uint32_t *bytes)
{
	int n = LZ4_compress_default(page, out, PAGE_SIZE, STORE_PACKED_MOST);
	if (n <= 0)
		return -E2BIG;
	*bytes = (uint32_t)n;
	return 0;
}

int store_unpack(const void *packed, uint32_t bytes, void *page)
{
	if (bytes > STORE_PACKED_MOST)
		return -EBADMSG;
	int n = LZ4_decompress_safe(packed, page, (int)bytes, PAGE_SIZE);
	return n == (int)PAGE_SIZE ? 0 : -EBADMSG;
}

bool store_is_zero(const void *page)
{
	const uint8_t *at = page;
	/* Most pages that aren't zero show it in their first words. */
	for (unsigned i = 0; i < 16; i++) {
		if (at[i])
			return false;
	}
	return !memcmp(at, at + 16, PAGE_SIZE - 16);
}

uint32_t store_sum(const void *bytes, uint32_t n)
{
	return (uint32_t)XXH3_64bits(bytes, n);
}
