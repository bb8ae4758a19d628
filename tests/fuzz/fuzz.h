/*
 * What the fuzz targets share. Each is one file with libFuzzer's two entries, or a struct fuzz_device and
 * the program of device.c. An input is a program: bytes that are decoded into operations until they run out, so
 * that every input means something and mutations stay near. See docs/FUZZING.md.
 *
 * Assertions are Criterion's words (tests/unit/plain/criterion/criterion.h); one that doesn't hold aborts, and
 * libFuzzer keeps the input.
 */
#ifndef TESTS_FUZZ_FUZZ_H
#define TESTS_FUZZ_FUZZ_H

#include "tests/unit/virtio_fake.h"
#include <criterion/criterion.h>
#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* ---- the input ----------------------------------------------------------------------------- */

struct fuzz_in {
	const uint8_t *at;
	size_t left;
};
/* The next bytes, little-endian; 0 when there are none. */
uint64_t fuzz_take(struct fuzz_in *in, unsigned bytes);
static inline uint8_t fuzz_u8(struct fuzz_in *in)
{
	return (uint8_t)fuzz_take(in, 1);
}
static inline uint16_t fuzz_u16(struct fuzz_in *in)
{
	return (uint16_t)fuzz_take(in, 2);
}
/* Below n, from one byte. */
static inline unsigned fuzz_below(struct fuzz_in *in, unsigned n)
{
	return fuzz_u8(in) % n;
}
/* A number of any size, in few bytes; small ones, powers of two and those about an end are the shortest. */
uint64_t fuzz_number(struct fuzz_in *in);
/* At most `most` bytes, their number from one byte (two if `most` is above 255); their address. */
const uint8_t *fuzz_bytes(struct fuzz_in *in, size_t most, size_t *n);

/* ---- a device ------------------------------------------------------------------------------ */

struct fuzz_device {
	unsigned queues;
	/* Make t->dev with t->env. */
	int (*create)(struct drv *t);
	/* An operation of the device's own, from outside or as a request of its driver; may be NULL. */
	void (*own)(struct drv *t, struct fuzz_in *in);
	/* Before a register is written, before the device ends; may be NULL. */
	void (*before)(struct drv *t);
	/* It was reset, with memory as it should be: it must work. */
	void (*works)(struct drv *t);
};
extern const struct fuzz_device fuzz_device;

/* An address, mostly one of the guest's pages that hold no rings. */
uint64_t fuzz_address(struct fuzz_in *in);

#endif
