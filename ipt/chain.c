/* Chains of aliases. See chain.h. */
#include "ipt/chain.h"
#include "ipt/debug.h"
#include "ipt/zone.h"

static struct chain *chain_of(struct ipt *t, uint32_t f)
{
	return &t->chains[f % TABLE_CHAINS];
}

static uint32_t head_of(uint64_t w)
{
	return (uint32_t)word_gfn(w);
}

bool chain_is(const struct ipt *t, uint32_t f)
{
	return word_state(load_relaxed64(&t->words[f])) == IPT_SHARED;
}

/* Put slot before `head`, which may be 0. */
static void link_before(struct ipt *t, uint32_t f, uint32_t slot, uint32_t head)
{
	struct slot_link *l = slot_link(t, slot);

	store_release32(&l->target, f);
	store_relaxed32(&l->next, head);
	store_relaxed32(&l->prev, 0);
	ipt_step();
	if (head)
		store_relaxed32(&slot_link(t, head)->prev, slot);
	ipt_step();
}

void chain_push(struct ipt *t, uint32_t f, uint32_t slot)
{
	struct chain *c = chain_of(t, f);
	uint64_t w = load_relaxed64(&t->words[f]);
	bool shared = word_state(w) == IPT_SHARED;

	link_before(t, f, slot, shared ? head_of(w) : 0);
	store_release64(&t->words[f], word_shared(slot));
	ipt_step();
	if (!shared)
		store_relaxed32(&c->frames, load_relaxed32(&c->frames) + 1);
}

bool chain_remove(struct ipt *t, uint32_t f, uint32_t slot, vmid_t vm)
{
	struct chain *c = chain_of(t, f);
	struct slot_link *l = slot_link(t, slot);
	uint32_t next = load_relaxed32(&l->next), prev = load_relaxed32(&l->prev);

	if (!next && !prev) {
		store_release64(&t->words[f], word_limbo(vm.v));
		ipt_step();
		store_relaxed32(&c->frames, load_relaxed32(&c->frames) - 1);
		return true;
	}
	if (prev)
		store_relaxed32(&slot_link(t, prev)->next, next);
	else
		store_release64(&t->words[f], word_shared(next));
	ipt_step();
	if (next)
		store_relaxed32(&slot_link(t, next)->prev, prev);
	return false;
}

/* ---- repair ---------------------------------------------------------------------------------- */

/* Call `visit` for every word of zones [from, to) whose frame or slot may be of chain c. */
typedef void visit_fn(struct ipt *t, struct chain *c, uint32_t f, uint64_t w);

static void visit_words(struct ipt *t, struct chain *c, unsigned from, unsigned to, visit_fn *visit)
{
	for (unsigned z = from; z < to; z++) {
		for (uint32_t f = zone_start(t, z), mark = zone_mark(t, z); f < mark; f++)
			visit(t, c, f, load_relaxed64(&t->words[f]));
	}
}

static void clear_flag(struct ipt *t, struct chain *c, uint32_t f, uint64_t w)
{
	if (chain_of(t, f) == c && word_state(w) == IPT_SHARED)
		store_release64(&t->words[f], w & ~WORD_FLAG);
}

/* The flag says that the chain in the frame's word is a new one. A frame in limbo is about to be
 * SHARED. */
static void push_again(struct ipt *t, struct chain *c, uint32_t slot, uint64_t w)
{
	uint32_t f =
		slot_is(t, slot) && word_state(w) == IPT_ALIAS ? slot_target(t, slot) : UINT32_MAX;

	if (f >= t->frames || chain_of(t, f) != c)
		return;
	uint64_t old = load_relaxed64(&t->words[f]);
	bool renewed = word_state(old) == IPT_SHARED && old & WORD_FLAG;
	if (word_state(old) != IPT_SHARED && old != word_limbo(word_vm(w)))
		return; /* not ours to mend; the audit tells of it */
	link_before(t, f, slot, renewed ? head_of(old) : 0);
	store_release64(&t->words[f], word_shared(slot) | WORD_FLAG);
}

/* Without the flag it has no alias: the head, which is still its last alias's slot, says who let it go. */
static void settle(struct ipt *t, struct chain *c, uint32_t f, uint64_t w)
{
	if (chain_of(t, f) != c || word_state(w) != IPT_SHARED)
		return;
	if (w & WORD_FLAG) {
		store_release64(&t->words[f], w & ~WORD_FLAG);
		store_relaxed32(&c->frames, load_relaxed32(&c->frames) + 1);
	} else {
		uint32_t vm = word_vm(load_relaxed64(&t->words[head_of(w)]));

		store_release64(&t->words[f], word_limbo(vm));
	}
}

static void chain_rebuild(struct ipt *t, struct chain *c)
{
	unsigned nodes = t->config.nodes;

	visit_words(t, c, 0, nodes, clear_flag);
	visit_words(t, c, nodes, nodes + 1, push_again);
	store_relaxed32(&c->frames, 0);
	visit_words(t, c, 0, nodes, settle);
	add_relaxed32(&t->header->repairs, 1);
}

void chain_lock(struct ipt *t, uint32_t f)
{
	struct chain *c = chain_of(t, f);

	if (lock_take(&c->lock, LOCK_CHAIN)) {
		chain_rebuild(t, c);
		lock_mended(&c->lock);
	}
}

void chain_unlock(struct ipt *t, uint32_t f)
{
	lock_drop(&chain_of(t, f)->lock, LOCK_CHAIN);
}
