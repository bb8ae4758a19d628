/* Chains of aliases. See chain.h. */
#include "ipt/chain.h"
#include "ipt/debug.h"
#include "ipt/zone.h"

static struct chain *chain_of(struct ipt *t, uint32_t f)
{
	return &t->chains[f % TABLE_CHAINS];
}

/* Count a SHARED frame or slot more, or one less. */
static void count(struct ipt *t, struct chain *c, uint32_t f, uint32_t more)
{
	_Atomic uint32_t *n = f < t->frames ? &c->frames : &c->slots;

	store_relaxed32(n, load_relaxed32(n) + more);
}

static uint64_t word_left(const struct ipt *t, uint32_t f, uint32_t vm)
{
	return f < t->frames ? word_limbo(vm) : word_spare(vm);
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
	uint64_t w = load_relaxed64(&t->words[f]);
	bool shared = word_state(w) == IPT_SHARED;

	link_before(t, f, slot, shared ? head_of(w) : 0);
	store_release64(&t->words[f], word_shared(slot));
	ipt_step();
	if (!shared)
		count(t, chain_of(t, f), f, 1);
}

bool chain_remove(struct ipt *t, uint32_t f, uint32_t slot, vmid_t vm)
{
	struct slot_link *l = slot_link(t, slot);
	uint32_t next = load_relaxed32(&l->next), prev = load_relaxed32(&l->prev);

	if (!next && !prev) {
		store_release64(&t->words[f], word_left(t, f, vm.v));
		ipt_step();
		count(t, chain_of(t, f), f, UINT32_MAX); /* minus one */
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

void chain_move(struct ipt *t, uint32_t f, uint32_t g, vmid_t vm)
{
	uint32_t head = head_of(load_relaxed64(&t->words[f]));

	store_release64(&t->words[g], word_shared(head));
	ipt_step();
	for (uint32_t slot = head; slot; slot = slot_next(t, slot)) {
		store_release32(&slot_link(t, slot)->target, g);
		ipt_step();
	}
	store_release64(&t->words[f], word_left(t, f, vm.v));
	ipt_step();
	count(t, chain_of(t, g), g, 1);
	count(t, chain_of(t, f), f, UINT32_MAX); /* minus one */
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

	if (f >= t->layout.slot_end || chain_of(t, f) != c)
		return;
	uint64_t old = load_relaxed64(&t->words[f]);
	bool renewed = word_state(old) == IPT_SHARED && old & WORD_FLAG;
	if (word_state(old) != IPT_SHARED && old != word_limbo(word_vm(w)))
		return; /* not ours to mend; the audit tells of it */
	link_before(t, f, slot, renewed ? head_of(old) : 0);
	store_release64(&t->words[f], word_shared(slot) | WORD_FLAG);
}

/* Without the flag it has no alias: the head, which is still its last alias's slot, says who let it go; or they were on
 * their way from it, or to it. */
static void settle(struct ipt *t, struct chain *c, uint32_t f, uint64_t w)
{
	if (chain_of(t, f) != c || word_state(w) != IPT_SHARED)
		return;
	if (w & WORD_FLAG) {
		store_release64(&t->words[f], w & ~WORD_FLAG);
		count(t, c, f, 1);
	} else {
		const struct table_header *h = t->header;
		uint32_t vm = word_vm(load_relaxed64(&t->words[head_of(w)]));

		if (load_relaxed32(&h->leaving) == f + 1 || load_relaxed32(&h->reached) == f + 1)
			vm = load_relaxed32(&h->holder);
		store_release64(&t->words[f], word_left(t, f, vm));
	}
}

static void chain_rebuild(struct ipt *t, struct chain *c)
{
	unsigned nodes = t->config.nodes;

	visit_words(t, c, 0, nodes + 1, clear_flag);
	visit_words(t, c, nodes, nodes + 1, push_again);
	store_relaxed32(&c->frames, 0);
	store_relaxed32(&c->slots, 0);
	visit_words(t, c, 0, nodes + 1, settle);
	add_relaxed32(&t->header->repairs, 1);
}

static void take(struct ipt *t, struct chain *c, enum lock_level level)
{
	if (lock_take(&c->lock, level)) {
		chain_rebuild(t, c);
		lock_mended(&c->lock);
	}
}

void chain_lock(struct ipt *t, uint32_t f)
{
	take(t, chain_of(t, f), LOCK_CHAIN);
}

void chain_unlock(struct ipt *t, uint32_t f)
{
	lock_drop(&chain_of(t, f)->lock, LOCK_CHAIN);
}

uint32_t chain_lock_of(struct ipt *t, uint32_t slot)
{
	for (;;) {
		uint32_t f = slot_target(t, slot);

		chain_lock(t, f);
		if (slot_target(t, slot) == f)
			return f;
		chain_unlock(t, f);
	}
}

void chain_lock_two(struct ipt *t, uint32_t f, uint32_t g)
{
	struct chain *a = chain_of(t, f), *b = chain_of(t, g);

	take(t, a < b ? a : b, LOCK_CHAIN);
	if (a != b)
		take(t, a < b ? b : a, LOCK_CHAIN_2);
}

void chain_unlock_two(struct ipt *t, uint32_t f, uint32_t g)
{
	struct chain *a = chain_of(t, f), *b = chain_of(t, g);

	if (a != b)
		lock_drop(a < b ? &b->lock : &a->lock, LOCK_CHAIN_2);
	lock_drop(a < b ? &a->lock : &b->lock, LOCK_CHAIN);
}

void chain_mend(struct ipt *t)
{
	for (unsigned c = 0; c < TABLE_CHAINS; c++) {
		chain_lock(t, c);
		chain_unlock(t, c);
	}
}
