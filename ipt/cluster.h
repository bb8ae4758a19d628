/*
 * A stripe's table of clusters: open-addressed lines of 64 bytes, five elements to a line.
 *
 *   key   vm:20 | group:32 | version:12    group = gfn >> 4; vm 0 marks an empty slot
 *   value FULL:1 | base frame >> 4 : 24
 *
 * An element says: those gfns of the group whose words carry the cluster flag are at base + (gfn & 15).
 * It carries its whole key, so FULL, which is set only while all sixteen words say so, is proof enough
 * and the array need not be read; without FULL the word decides. FULL is set after the sixteenth word
 * and cleared before the first, so this holds at every instant, whoever dies.
 *
 * An element lives in its home line or, when that is full, in the first line after it with room (around
 * the end); `over` of each line passed by counts it, so that a reader knows when to go on.
 */
#ifndef IPT_CLUSTER_H
#define IPT_CLUSTER_H

#include "ipt/table.h"

#define CLUSTER_SLOTS          5
#define CLUSTER_VERSION_BITS   12
#define CLUSTER_VERSION_MASK   ((UINT64_C(1) << CLUSTER_VERSION_BITS) - 1)
#define CLUSTER_FULL           (UINT32_C(1) << 31)
#define CLUSTER_BASE(value)    (((value) & ~CLUSTER_FULL) << IPT_CLUSTER_ORDER)
#define CLUSTER_KEY(vm, group) ((uint64_t)(vm) << 32 | (group))

struct cluster_line {
	_Atomic uint64_t key[CLUSTER_SLOTS];
	_Atomic uint32_t value[CLUSTER_SLOTS];
	_Atomic uint32_t over;
};

_Static_assert(sizeof(struct cluster_line) == TABLE_LINE, "one cache line");

static inline struct cluster_line *cluster_lines(const struct ipt *t, uint32_t s)
{
	return (struct cluster_line *)(t->forward + s * t->layout.stripe_bytes);
}

static inline uint64_t cluster_key_at(const struct cluster_line *l, unsigned i)
{
	return load_acquire64(&l->key[i]) >> CLUSTER_VERSION_BITS;
}

/* Bit i: slot i holds that key, whatever its version. Without branches, as any slot is as likely as the
 * others; written so that each slot is a load-xor, a compare and an add with carry. */
static inline unsigned cluster_match(const struct cluster_line *l, uint64_t key)
{
	uint64_t want = key << CLUSTER_VERSION_BITS;
	unsigned m = 0;

#pragma GCC unroll 5
	for (unsigned i = CLUSTER_SLOTS; i-- > 0;)
		m = m + m + ((load_acquire64(&l->key[i]) ^ want) <= CLUSTER_VERSION_MASK);
	return m;
}

/*
 * Readers, without the lock: the value of that key's element, or 0 with *found false. h is the group's
 * hash. A miss counts only if the stripe's seq was even and did not change meanwhile.
 */
static inline uint32_t cluster_read(const struct cluster_line *lines, uint32_t nlines, uint64_t h,
				    uint64_t key, bool *found)
{
	uint32_t at = hash_scale(h, nlines);

	for (uint32_t i = 0; i < nlines; i++) {
		const struct cluster_line *l = &lines[at];
		unsigned m = cluster_match(l, key);

		while (m) {
			unsigned slot = (unsigned)__builtin_ctz(m);
			uint64_t before = load_acquire64(&l->key[slot]);
			uint32_t value = load_acquire32(&l->value[slot]);

			/* The version in the key tells whether the slot went to another and back;
			 * the value's load is an acquire, so this one follows it. */
			if (before >> CLUSTER_VERSION_BITS == key &&
			    load_relaxed64(&l->key[slot]) == before) {
				*found = true;
				return value;
			}
			m = cluster_match(l, key);
		}
		if (!load_acquire32(&l->over))
			break;
		at = at + 1 == nlines ? 0 : at + 1;
	}
	*found = false;
	return 0;
}

/* ---- with the stripe locked ------------------------------------------------------------------ */

/* The value of that key's element, or NULL. */
_Atomic uint32_t *cluster_find(struct ipt *t, uint32_t s, uint64_t h, uint64_t key);
/* Make room for one more. False if there is none to be had (then nothing has changed). */
bool cluster_reserve(struct ipt *t, uint32_t s);
/* Put in an element that isn't there; cluster_reserve said there is room. */
_Atomic uint32_t *cluster_insert(struct ipt *t, uint32_t s, uint64_t h, uint64_t key,
				 uint32_t value);
/* Take an element out, if it is there. */
void cluster_remove(struct ipt *t, uint32_t s, uint64_t h, uint64_t key);
/* Empty the table; it keeps its size. */
void cluster_clear(struct ipt *t, uint32_t s);

#endif
