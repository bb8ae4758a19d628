/*
 * A stripe's table of clusters: open-addressed lines of 64 bytes, six elements to a line.
 *
 *   key   vm:20 | group:32 | base, low 12 bits      group = gfn >> 4; vm 0 marks an empty slot
 *   rest  FULL:1 | 0:3 | base, high 12 bits         base frame >> 4
 *   over  version:12 | over:20                      of the line
 *
 * An element says: those gfns of the group whose words carry the cluster flag are at base + (gfn & 15).
 * It carries its whole key, so FULL, which is set only while all sixteen words say so, is proof enough
 * and the array need not be read; without FULL the word decides. FULL is set after the sixteenth word
 * and cleared before the first, so this holds at every instant, whoever dies.
 *
 * An element lives in its home line or, when that is full, in the first line after it with room (around
 * the end); `over` of each line passed by counts it, so that a reader knows when to go on. The version
 * changes with every element that comes or goes, so that a reader knows whether the two parts that he
 * read are of the same one.
 */
#ifndef IPT_CLUSTER_H
#define IPT_CLUSTER_H

#include "ipt/table.h"

#define CLUSTER_SLOTS          6
#define CLUSTER_BASE_BITS      12 /* of the base in the key's word */
#define CLUSTER_BASE_MASK      ((1u << CLUSTER_BASE_BITS) - 1)
#define CLUSTER_FULL           (1u << 15)
#define CLUSTER_OVER_BITS      20
#define CLUSTER_OVER_MASK      ((UINT32_C(1) << CLUSTER_OVER_BITS) - 1)
#define CLUSTER_KEY(vm, group) ((uint64_t)(vm) << 32 | (group))

struct cluster_line {
	_Atomic uint64_t key[CLUSTER_SLOTS];
	_Atomic uint16_t rest[CLUSTER_SLOTS];
	_Atomic uint32_t over;
};

_Static_assert(sizeof(struct cluster_line) == TABLE_LINE, "one cache line");

/* An element's place; line is NULL for none. */
struct cluster_slot {
	struct cluster_line *line;
	unsigned i;
};

static inline struct cluster_line *cluster_lines(const struct ipt *t, uint32_t s)
{
	return (struct cluster_line *)(t->forward + s * t->layout.stripe_bytes);
}

static inline uint64_t cluster_key_at(const struct cluster_line *l, unsigned i)
{
	return load_acquire64(&l->key[i]) >> CLUSTER_BASE_BITS;
}

/* Bit i: slot i holds that key, whatever its base. Without branches, as any slot is as likely as the
 * others; written so that each slot is a load-xor, a compare and an add with carry. */
static inline unsigned cluster_match(const struct cluster_line *l, uint64_t key)
{
	uint64_t want = key << CLUSTER_BASE_BITS;
	unsigned m = 0;

#pragma GCC unroll 6
	for (unsigned i = CLUSTER_SLOTS; i-- > 0;)
		m = m + m + ((load_acquire64(&l->key[i]) ^ want) <= CLUSTER_BASE_MASK);
	return m;
}

/* The first frame of a cluster, from the two parts of its element. */
static inline uint32_t cluster_base_of(uint64_t key, uint16_t rest)
{
	uint32_t high = rest & CLUSTER_BASE_MASK;

	return (high << CLUSTER_BASE_BITS | ((uint32_t)key & CLUSTER_BASE_MASK))
	       << IPT_CLUSTER_ORDER;
}

enum cluster_answer { CLUSTER_NONE, CLUSTER_WHOLE, CLUSTER_MAYBE };

/* Try one line, without the lock: *base is where the cluster's frames are, surely (WHOLE) or if their
 * words say so (MAYBE). NONE also if the line was changing: `over`, read before and after, tells. */
static inline enum cluster_answer cluster_try(const struct cluster_line *l, uint64_t key,
					      uint32_t *over, uint32_t *base)
{
	*over = load_acquire32(&l->over);
	unsigned m = cluster_match(l, key);

	if (!m)
		return CLUSTER_NONE;
	unsigned i = (unsigned)__builtin_ctz(m);
	uint64_t k = load_acquire64(&l->key[i]);
	uint16_t rest = atomic_load_explicit(&l->rest[i], memory_order_acquire);

	*base = cluster_base_of(k, rest);
	/* The loads above are acquires, so this one follows them. */
	if (k >> CLUSTER_BASE_BITS != key || load_relaxed32(&l->over) != *over)
		return CLUSTER_NONE;
	return rest & CLUSTER_FULL ? CLUSTER_WHOLE : CLUSTER_MAYBE;
}

/*
 * Readers, without the lock: look for that key's element, whose group's hash is h. NONE counts only if
 * the stripe's seq was even and did not change meanwhile.
 */
static inline enum cluster_answer cluster_read(const struct cluster_line *lines, uint32_t nlines,
					       uint64_t h, uint64_t key, uint32_t *base)
{
	uint32_t at = hash_scale(h, nlines);

	for (uint32_t i = 0; i < nlines; i++) {
		const struct cluster_line *l = &lines[at];
		enum cluster_answer answer;
		uint32_t over;

		do
			answer = cluster_try(l, key, &over, base);
		while (answer == CLUSTER_NONE && over != load_acquire32(&l->over));
		if (answer != CLUSTER_NONE)
			return answer;
		if (!(over & CLUSTER_OVER_MASK))
			break;
		at = at + 1 == nlines ? 0 : at + 1;
	}
	return CLUSTER_NONE;
}

static inline uint32_t cluster_base(struct cluster_slot slot)
{
	return cluster_base_of(
		load_acquire64(&slot.line->key[slot.i]),
		atomic_load_explicit(&slot.line->rest[slot.i], memory_order_acquire));
}

static inline bool cluster_is_full(struct cluster_slot slot)
{
	return atomic_load_explicit(&slot.line->rest[slot.i], memory_order_acquire) & CLUSTER_FULL;
}

/* ---- with the stripe locked ------------------------------------------------------------------ */

struct cluster_slot cluster_find(struct ipt *t, uint32_t s, uint64_t h, uint64_t key);
/* Make room for one more. False if there is none to be had (then nothing has changed). */
bool cluster_reserve(struct ipt *t, uint32_t s);
/* Put in an element that isn't there; cluster_reserve said there is room. */
struct cluster_slot cluster_insert(struct ipt *t, uint32_t s, uint64_t h, uint64_t key,
				   uint32_t base, bool full);
void cluster_set_full(struct cluster_slot slot, bool full);
/* Take an element out, if it is there. */
void cluster_remove(struct ipt *t, uint32_t s, uint64_t h, uint64_t key);
/* Empty the table; it keeps its size. */
void cluster_clear(struct ipt *t, uint32_t s);

#endif
