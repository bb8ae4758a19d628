/*
 * What the boot tests stand on: guest memory that is a plain array (sparse, so that 64 GiB cost
 * nothing), machines, images made from scratch, and a random source with fixed seeds.
 */
#ifndef TESTS_UNIT_BOOT_FAKE_H
#define TESTS_UNIT_BOOT_FAKE_H

#include "virtio/gmem.h"
#include "vmm/boot.h"

/* Guest memory of a machine. Accesses outside its banks are -EFAULT, as in the product. */
struct boot_memory {
	struct gmem gmem;
	struct machine machine;
	uint8_t *bank[MACHINE_MAX_BANKS];
	uint64_t maps;  /* calls of map */
	uint64_t fails; /* after so many calls map gives -EAGAIN; 0: never */
};
void boot_memory_init(struct boot_memory *b, uint64_t bytes, unsigned cpus, unsigned slots,
		      const char *cmdline);
void boot_memory_clear(struct boot_memory *b); /* all zeros again */
void boot_memory_free(struct boot_memory *b);
/* The bytes at a gpa; the test fails if [at, at + len) isn't RAM. */
uint8_t *boot_memory_at(struct boot_memory *b, uint64_t at, uint64_t len);

/* An image in memory with an inaccessible page right behind its last byte. */
struct boot_buffer {
	uint8_t *bytes;
	size_t size;
	void *map;
	size_t map_size;
};
void boot_buffer_init(struct boot_buffer *b, size_t size);
void boot_buffer_free(struct boot_buffer *b);

/* Small images that load. */
#define BOOT_TINY_ENTRY 0x200100
void boot_tiny_bzimage(struct boot_buffer *b);
/* note_align: 4 or 8. Two PT_LOAD segments, one with .bss, and a PT_NOTE. */
void boot_tiny_elf(struct boot_buffer *b, bool bare, unsigned note_align);
/* Check it as boot_image_open would. */
int boot_buffer_check(const struct boot_buffer *b, struct boot_image *image,
		      char error[BOOT_ERROR_MAX]);

/* Check, fit and load an image that may be anything; whatever passes the check must lie where it may, load, and start
 * inside what was loaded, or the test fails. Clears the memory again. */
enum boot_outcome { BOOT_REFUSED, BOOT_UNFIT, BOOT_LOADED };
enum boot_outcome boot_try(const struct boot_buffer *b, struct boot_memory *memory);

/* xorshift64*: the same numbers everywhere for the same seed. */
static inline uint64_t boot_random(uint64_t *state)
{
	uint64_t x = *state;
	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	*state = x;
	return x * UINT64_C(2685821657736338717);
}

#endif
