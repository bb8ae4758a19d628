/* The input's reader, and what stands in for Criterion. */
#include "tests/fuzz/fuzz.h"
#include <stdlib.h>

uint64_t fuzz_take(struct fuzz_in *in, unsigned bytes)
{
	uint64_t v = 0;
	for (unsigned i = 0; i < bytes && in->left; i++, in->left--)
		v |= (uint64_t)*in->at++ << 8 * i;
	return v;
}

uint64_t fuzz_number(struct fuzz_in *in)
{
	unsigned kind = fuzz_u8(in);
	if (kind < 0x80)
		return kind;
	if (kind < 0xc0)
		return 1ull << (kind & 63);
	switch (kind & 7) {
	case 0:
		return fuzz_take(in, 2);
	case 1:
		return fuzz_take(in, 4);
	case 2:
		return fuzz_take(in, 8);
	case 3:
		return UINT64_MAX - fuzz_u8(in);
	case 4:
		return UINT32_MAX - (uint64_t)fuzz_u8(in);
	case 5:
		return FAKE_BYTES - (uint64_t)fuzz_u8(in);
	case 6:
		return (1ull << fuzz_below(in, 64)) - 1;
	default:
		return (uint64_t)fuzz_u16(in) * PAGE_SIZE;
	}
}

const uint8_t *fuzz_bytes(struct fuzz_in *in, size_t most, size_t *n)
{
	const uint8_t *at;
	*n = fuzz_take(in, most > 255 ? 2 : 1) % (most + 1);
	if (*n > in->left)
		*n = in->left;
	at = in->at;
	in->at += *n;
	in->left -= *n;
	return at;
}

void plain_register(struct plain_test *test)
{
	(void)test;
}

void plain_skip(const char *why)
{
	(void)why;
	abort();
}

void plain_fail(bool fatal, const char *file, int line, const char *expression)
{
	if (file)
		dprintf(2, "%s:%d: Assertion Failed: %s\n", file, line, expression);
	else if (fatal)
		abort();
}
