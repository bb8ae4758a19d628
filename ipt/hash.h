/*
 * Hashes of (vm, gfn), keyed with the table's seed: guests choose gfns, so without the key one could
 * choose those that collide.
 */
#ifndef IPT_HASH_H
#define IPT_HASH_H

#include <stdint.h>

struct hash_keys {
	uint64_t k[4];
};

__extension__ typedef unsigned __int128 hash_wide;

/* Multiply to 128 bits and fold the halves: every bit of a and b reaches every bit of the middle. */
static inline uint64_t hash_fold(uint64_t a, uint64_t b)
{
	hash_wide m = (hash_wide)a * b;

	return (uint64_t)m ^ (uint64_t)(m >> 64);
}

static inline void hash_init(struct hash_keys *keys, uint64_t seed)
{
	uint64_t x = seed ^ UINT64_C(0x6a09e667f3bcc908);

	for (int i = 0; i < 4; i++) {
		x += UINT64_C(0x9e3779b97f4a7c15);
		keys->k[i] = hash_fold(x, UINT64_C(0xbb67ae8584caa73b)) ^ x >> 32;
		keys->k[i] |= 1; /* a zero multiplier would hash everything to one place */
	}
}

/* Of a group of 16 gfns: group = gfn >> 4. Bits 0..31 choose the line, 40 and up the stripe. */
static inline uint64_t hash_group(const struct hash_keys *keys, uint32_t vm, uint64_t group)
{
	uint64_t h = hash_fold((((uint64_t)vm << 32) + group) ^ keys->k[0], keys->k[1]);

	return hash_fold(h ^ keys->k[0], keys->k[2]);
}

/* Of one gfn in a group whose hash is h. Bits 0..31 choose the line, 52 and up are the tags. */
static inline uint64_t hash_gfn(const struct hash_keys *keys, uint64_t h, uint64_t gfn)
{
	return hash_fold(h + (gfn & 15) * UINT64_C(0x3c6ef372fe94f82b), keys->k[3]);
}

/* Scale 32 bits of hash to 0..n-1. */
static inline uint32_t hash_scale(uint64_t h, uint32_t n)
{
	return (uint32_t)((h & UINT32_MAX) * n >> 32);
}

#endif
