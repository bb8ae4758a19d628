/*
 * The pages that a memory workload works on: a run of guest memory, over the hole below 4 GiB if
 * need be, in address order or in a random order that needs no memory. And the words it writes
 * there.
 */
#ifndef BARE_REGION_H
#define BARE_REGION_H

#include "guest/bare/words.h"

#define REGION_PAGE       4096
#define REGION_PAGE_WORDS 512
#define REGION_PIECES     8

struct region {
	uint64_t pages;
	unsigned pieces;
	struct {
		uint64_t base, pages;
	} piece[REGION_PIECES];
	/* The order: index -> page number by a permutation of [0, 2^bits), walked until < pages. */
	bool random;
	unsigned half;
	uint64_t mask, add;
};

/* The region that base=, pages= (all there is if unset), order= and seed= describe. Ends the run if
 * memory has no such region. */
void region_make(struct region *r, const struct stage *s);

/* The order alone, for n things that are no pages. */
void region_order_make(struct region *r, const struct stage *s, uint64_t n);

/* Address of page n of the region. */
static inline uint64_t region_page(const struct region *r, uint64_t n)
{
	unsigned i = 0;
	for (; n >= r->piece[i].pages; i++)
		n -= r->piece[i].pages;
	return r->piece[i].base + n * REGION_PAGE;
}

/* Which page is the i-th in the region's order. */
static inline uint64_t region_order(const struct region *r, uint64_t i)
{
	if (!r->random)
		return i;
	do {
		i = (i * UINT64_C(0x9E3779B97F4A7C15) + r->add) & r->mask;
		i ^= i >> r->half;
		i = i * UINT64_C(0xD6E8FEB86659FD93) & r->mask;
		i ^= i >> r->half;
	} while (i >= r->pages);
	return i;
}

/* Address of the i-th page in the region's order. */
static inline uint64_t region_at(const struct region *r, uint64_t i)
{
	return region_page(r, region_order(r, i));
}

/* A word that depends on all of (seed, number), never 0. */
static inline uint64_t region_word(uint64_t seed, uint64_t number)
{
	uint64_t z = seed * UINT64_C(0xD1342543DE82EF95) + number * UINT64_C(0x9E3779B97F4A7C15);
	z = (z ^ z >> 29) * UINT64_C(0xBF58476D1CE4E5B9);
	return (z ^ z >> 32) | 1;
}

static inline volatile uint64_t *region_word_at(uint64_t address)
{
	return (volatile uint64_t *)(uintptr_t)address;
}

#endif
