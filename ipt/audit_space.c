/* The checker of I8: what slots have claimed is in use, by one slot each, and nothing else is. */
#include "ipt/audit.h"
#include "ipt/space.h"
#include "ipt/zone.h"
#include <stdlib.h>

/* What was claimed so far: copies of the bitmaps, of which only what is touched has memory. */
struct claims {
	uint64_t *packed, *blocks;
	uint64_t ngranules, nblocks;
};

static void check_claim(struct audit *a, uint32_t slot, struct claims *c)
{
	struct ipt *t = a->t;
	struct ipt_out page = space_of(t, slot);
	bool file = page.where & IPT_IN_FILE;
	uint32_t at = page.where & ~IPT_IN_FILE;
	uint64_t bits;

	if (!page.bytes && page.where == IPT_NOWHERE)
		return;
	if (space_used(t, &page) != 1) {
		audit_fail(a, "I8: slot %u has claimed %u bytes at %#x, which are not in use", slot,
			   page.bytes, page.where);
		return;
	}
	space_bits(t, &page, &bits);
	uint64_t *had = file ? &c->blocks[at / 64] : &c->packed[at / 64];
	if (*had & bits)
		audit_fail(a, "I8: slot %u has claimed %u bytes at %#x, and so has another", slot,
			   page.bytes, page.where);
	*had |= bits;
	*(file ? &c->nblocks : &c->ngranules) += (unsigned)__builtin_popcountll(bits);
}

static bool may_claim(enum ipt_state state)
{
	return state == IPT_OUT || state == IPT_SHARED || state == IPT_SPARE;
}

/* What is neither out nor spare has no claim. Where links have no memory there is none, and none is to come. */
static void check_others(struct audit *a)
{
	struct ipt *t = a->t;
	const uint64_t from = t->layout.links, size = sizeof(struct slot_link);
	const uint64_t next = offsetof(struct slot_link, next);
	uint32_t first = t->layout.slot_first, mark = zone_mark(t, t->config.nodes);
	uint64_t to = from + (mark - first) * size, start, end;

	for (uint64_t at = from; table_populated(t, at, to, &start, &end); at = end) {
		uint32_t slot = first + (uint32_t)((start - from + size - 1 - next) / size);
		uint32_t stop = first + (uint32_t)((end - from + size - 1 - next) / size);

		for (; slot < stop && slot < mark; slot++) {
			enum ipt_state state = word_state(load_acquire64(&t->words[slot]));

			if (!may_claim(state) && space_claimed(t, slot))
				audit_fail(a, "I8: slot %u is in state %d and has a claim", slot,
					   state);
		}
	}
}

static void check_slots(struct audit *a, struct claims *c)
{
	struct ipt *t = a->t;
	unsigned z = t->config.nodes;

	for (uint32_t slot = zone_start(t, z); slot < zone_mark(t, z); slot++) {
		enum ipt_state state = word_state(load_acquire64(&t->words[slot]));

		if ((state == IPT_OUT || state == IPT_SHARED) && !space_claimed(t, slot))
			audit_fail(a, "I8: slot %u is out and has claimed nothing", slot);
		if (may_claim(state) && space_claimed(t, slot))
			check_claim(a, slot, c);
	}
}

static uint64_t bits_set(const _Atomic uint64_t *words, uint64_t from, uint64_t to)
{
	uint64_t n = 0;

	for (uint64_t i = from; i < to; i++)
		n += (unsigned)__builtin_popcountll(load_relaxed64(&words[i]));
	return n;
}

/* In the populated part of a bitmap; the rest is zero, and is to stay without memory. */
static uint64_t bits_in(const struct ipt *t, const _Atomic uint64_t *words, uint64_t from,
			uint64_t to)
{
	uint64_t n = 0, start, end;

	for (uint64_t at = from; table_populated(t, at, to, &start, &end); at = end)
		n += bits_set(words, (start - from) / 8, (end - from) / 8);
	return n;
}

/* Each claim's bits are set, no two overlap, and no others are set. */
static void check_sums(struct audit *a, const struct claims *c)
{
	struct ipt *t = a->t;
	const struct table_layout *l = &t->layout;
	struct ipt_space_info info;

	ipt_space(t, &info);
	uint64_t used = bits_in(t, t->packed, l->packed, l->blocks);
	if (used != c->ngranules || info.granules_used != c->ngranules)
		audit_fail(a, "I8: %lu granules are claimed, %lu in use, %lu counted",
			   (unsigned long)c->ngranules, (unsigned long)used,
			   (unsigned long)info.granules_used);
	used = bits_in(t, t->blocks, l->blocks, l->bad);
	if (used != c->nblocks || info.blocks_used != c->nblocks)
		audit_fail(a, "I8: %lu blocks are claimed, %lu in use, %u counted",
			   (unsigned long)c->nblocks, (unsigned long)used, info.blocks_used);
}

void audit_space(struct audit *a)
{
	struct ipt *t = a->t;

	if (t->kind != IPT_INDEX)
		return;
	struct claims c = {.packed = calloc(t->config.packed_pages + 1, sizeof(*c.packed)),
			   .blocks = calloc(t->config.blocks / 64 + 1, sizeof(*c.blocks))};
	if (c.packed && c.blocks) {
		check_slots(a, &c);
		check_others(a);
		check_sums(a, &c);
	} else {
		audit_fail(a, "I8: no memory to check it");
	}
	free(c.packed);
	free(c.blocks);
}
