/*
 * Packing of pages: LZ4. See store.h, and docs/RECLAIM.md for how it was measured against zstd and LZO
 * (tests/bench/store_bench.c): of a Linux guest's memory PLACEHOLDER
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
