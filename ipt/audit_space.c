/* The checker of I8: what slots have claimed is in use, by one slot each, and nothing else is. */
#include "ipt/audit.h"
#include "ipt/space.h"
#include "ipt/zone.h"

/* Take a claim's bits out of the bitmap (a copy), which must have them. */
static void check_claim(struct audit *a, uint32_t slot, uint64_t *granules, uint64_t *blocks)
{
	struct ipt *t = a->t;
	struct ipt_out page = space_of(t, slot);

	if (!page.bytes && page.where == IPT_NOWHERE)
		return;
	if (space_used(t, &page) != 1) {
		audit_fail(a, "I8: slot %u has claimed %u bytes at %#x, which are not in use", slot,
			   page.bytes, page.where);
		return;
	}
	if (page.where & IPT_IN_FILE)
		*blocks += 1;
	else
		*granules += (page.bytes + IPT_GRANULE - 1) / IPT_GRANULE;
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

void audit_space(struct audit *a)
{
	struct ipt *t = a->t;
	const struct table_layout *l = &t->layout;
	struct ipt_space_info info;
	uint64_t granules = 0, blocks = 0;
	unsigned z = t->config.nodes;

	if (!t->config.packed_pages && !t->config.blocks)
		return;
	for (uint32_t slot = zone_start(t, z); slot < zone_mark(t, z); slot++) {
		enum ipt_state state = word_state(load_acquire64(&t->words[slot]));

		if (state == IPT_OUT && !space_claimed(t, slot))
			audit_fail(a, "I8: slot %u is out and has claimed nothing", slot);
		if ((state == IPT_OUT || state == IPT_SPARE) && space_claimed(t, slot))
			check_claim(a, slot, &granules, &blocks);
	}
	ipt_space(t, &info);
	/* Each claim's bits are there, and there are as many: no two overlap. */
	uint64_t used = bits_in(t, t->packed, l->packed, l->blocks);
	if (used != granules || info.granules_used != granules)
		audit_fail(a, "I8: %lu granules are claimed, %lu in use, %lu counted",
			   (unsigned long)granules, (unsigned long)used,
			   (unsigned long)info.granules_used);
	used = bits_in(t, t->blocks, l->blocks, l->forward);
	if (used != blocks || info.blocks_used != blocks)
		audit_fail(a, "I8: %lu blocks are claimed, %lu in use, %u counted",
			   (unsigned long)blocks, (unsigned long)used, info.blocks_used);
}
