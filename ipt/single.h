/*
 * A stripe's table of single frames: open-addressed lines of 64 bytes, twelve elements to a line.
 *
 *   slot  tag:4 | frame:28      tag  8 bits, 0 for an empty slot
 *
 * The twelve bits of tag are hash; the word of the frame is what confirms a candidate. Twelve tags and
 * `over` are the line's last 16 bytes, compared at once. Overflow as in cluster.h.
 */
#ifndef IPT_SINGLE_H
#define IPT_SINGLE_H

#include "ipt/debug.h"
#include "ipt/table.h"
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define SINGLE_SLOTS      12
#define SINGLE_ALL        ((1u << SINGLE_SLOTS) - 1)
#define SINGLE_FRAME_MASK ((UINT32_C(1) << 28) - 1)

#if IPT_TSAN || !defined(__SSE2__)
#define SINGLE_BY_BYTE
#endif

struct single_line {
	_Atomic uint32_t slot[SINGLE_SLOTS];
	_Atomic uint8_t tag[SINGLE_SLOTS];
	_Atomic uint32_t over;
};

_Static_assert(sizeof(struct single_line) == TABLE_LINE, "one cache line");

static inline struct single_line *single_lines(const struct ipt *t, uint32_t s)
{
	return (struct single_line *)(t->forward + s * t->layout.stripe_bytes +
				      (uint64_t)t->layout.cluster_cap * TABLE_LINE);
}

static inline uint8_t single_tag(uint64_t h)
{
	uint8_t tag = (uint8_t)(h >> 56);

	return tag + (tag == 0);
}

static inline uint32_t single_tag4(uint64_t h)
{
	return (uint32_t)(h >> 52 & 15) << 28;
}

/* Bit i: slot i has that tag. */
static inline unsigned single_match(const struct single_line *l, uint8_t tag)
{
#ifdef SINGLE_BY_BYTE
	unsigned m = 0;

	for (unsigned i = 0; i < SINGLE_SLOTS; i++) {
		uint8_t is = atomic_load_explicit(&l->tag[i], memory_order_acquire);

		m |= (unsigned)(is == tag) << i;
	}
	return m;
#else
	/* Not an atomic load to the compiler, but bytes don't tear, x86 keeps loads in order, and the
	 * fence keeps the compiler from moving it: each tag is as good as an acquire load of it. */
	__m128i tags = _mm_load_si128((const __m128i *)(const void *)l->tag);

	atomic_signal_fence(memory_order_acquire);
	return (unsigned)_mm_movemask_epi8(_mm_cmpeq_epi8(tags, _mm_set1_epi8((char)tag))) &
	       SINGLE_ALL;
#endif
}

/*
 * Readers and writers: the frame mapped at (vm, gfn) by a single element, UINT32_MAX if none. h is the
 * gfn's hash. A reader's miss counts only if the stripe's seq was even and did not change meanwhile.
 */
static inline uint32_t single_read(const struct ipt *t, const struct single_line *lines,
				   uint32_t nlines, uint64_t h, uint32_t vm, uint64_t gfn)
{
	uint32_t at = hash_scale(h, nlines), tag4 = single_tag4(h);
	uint8_t tag = single_tag(h);

	for (uint32_t i = 0; i < nlines; i++) {
		const struct single_line *l = &lines[at];

		for (unsigned m = single_match(l, tag); m; m &= m - 1) {
			uint32_t slot = load_acquire32(&l->slot[__builtin_ctz(m)]);
			uint32_t f = slot & SINGLE_FRAME_MASK;

			if ((slot & ~SINGLE_FRAME_MASK) == tag4 &&
			    word_maps(load_acquire64(&t->words[f]), vm, gfn))
				return f;
		}
		if (!load_acquire32(&l->over))
			break;
		at = at + 1 == nlines ? 0 : at + 1;
	}
	return UINT32_MAX;
}

/* ---- with the stripe locked ------------------------------------------------------------------ */

/* Make room for n more: 0, -ENOSPC if the stripe is as large as it gets, -ENOMEM. */
int single_reserve(struct ipt *t, uint32_t s, unsigned n);
/* Put in an element, whose word need not say so yet; single_reserve said there is room. */
void single_insert(struct ipt *t, uint32_t s, uint64_t h, uint32_t f);
/* Take the element of frame f out, if it is there. */
void single_remove(struct ipt *t, uint32_t s, uint64_t h, uint32_t f);
void single_clear(struct ipt *t, uint32_t s);

#endif
