/* The checker of I7: every alias is in the chain of its SHARED frame or slot, once, and nothing else is in a
 * chain. */
#include "ipt/audit.h"
#include "ipt/chain.h"
#include "ipt/zone.h"
#include <stdlib.h>

static bool in_slots(const struct ipt *t, uint32_t slot)
{
	return slot >= t->layout.slot_first && slot < zone_mark(t, t->config.nodes);
}

/* Follow the chain of frame f; each slot's bit is set in seen. */
static void audit_chain(struct audit *a, uint32_t f, uint64_t w, uint8_t *seen)
{
	struct ipt *t = a->t;
	uint32_t slot = (uint32_t)word_gfn(w), prev = 0;

	if (w != word_shared(slot) || !slot)
		audit_fail(a, "I7: shared frame %u has word %#lx", f, (unsigned long)w);
	for (; slot; prev = slot, slot = slot_next(t, slot)) {
		if (!in_slots(t, slot) ||
		    word_state(load_relaxed64(&t->words[slot])) != IPT_ALIAS ||
		    slot_target(t, slot) != f) {
			audit_fail(a, "I7: slot %u in the chain of frame %u is no alias of it",
				   slot, f);
			return;
		}
		if (load_relaxed32(&slot_link(t, slot)->prev) != prev)
			audit_fail(a, "I7: slot %u comes behind %u and says %u", slot, prev,
				   load_relaxed32(&slot_link(t, slot)->prev));
		uint32_t bit = slot - t->layout.slot_first;
		if (seen[bit / 8] & 1u << bit % 8) {
			audit_fail(a, "I7: slot %u stands twice (frame %u)", slot, f);
			return;
		}
		seen[bit / 8] |= (uint8_t)(1u << bit % 8);
	}
}

static void audit_chain_lock(struct audit *a, uint32_t c, uint8_t *seen)
{
	struct ipt *t = a->t;
	uint32_t frames = 0, slots = 0;

	chain_lock(t, c);
	for (unsigned z = 0; z <= t->config.nodes; z++) {
		uint32_t start = zone_start(t, z);
		uint32_t first = start + (c - start) % TABLE_CHAINS;
		uint32_t *n = z < t->config.nodes ? &frames : &slots;

		for (uint32_t f = first; f < zone_mark(t, z); f += TABLE_CHAINS) {
			uint64_t w = load_relaxed64(&t->words[f]);

			if (word_state(w) != IPT_SHARED)
				continue;
			++*n;
			audit_chain(a, f, w, seen);
		}
	}
	if (frames != load_relaxed32(&t->chains[c].frames) ||
	    slots != load_relaxed32(&t->chains[c].slots))
		audit_fail(a,
			   "I7: chains %u have %u shared frames and %u slots, and count %u and %u",
			   c, frames, slots, load_relaxed32(&t->chains[c].frames),
			   load_relaxed32(&t->chains[c].slots));
	chain_unlock(t, c);
}

void audit_chains(struct audit *a)
{
	struct ipt *t = a->t;
	uint32_t first = t->layout.slot_first;
	uint8_t *seen = calloc((t->layout.slot_end - first) / 8 + 1, 1);

	if (!seen) {
		audit_fail(a, "I7: no memory to check it");
		return;
	}
	for (uint32_t c = 0; c < TABLE_CHAINS; c++)
		audit_chain_lock(a, c, seen);
	for (uint32_t slot = first; slot < zone_mark(t, t->config.nodes); slot++) {
		uint32_t bit = slot - first;
		bool chained = seen[bit / 8] & 1u << bit % 8;

		if (!chained && word_state(load_relaxed64(&t->words[slot])) == IPT_ALIAS)
			audit_fail(a, "I7: slot %u is an alias of frame %u and not in its chain",
				   slot, slot_target(t, slot));
	}
	free(seen);
}
