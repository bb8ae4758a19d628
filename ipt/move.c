/* Frames that one VM gives another. See move.h. */
#include "ipt/move.h"
#include "ipt/debug.h"

static bool is_of(const struct ipt *t, uint32_t f, uint32_t vm)
{
	uint64_t w = load_acquire64(&t->words[f]);

	return word_state(w) != IPT_FREE && word_state(w) != IPT_SHARED && word_vm(w) == vm;
}

void move_begin(struct ipt *t, uint32_t from, uint32_t to, uint32_t f, uint32_t n,
		enum ipt_state state)
{
	struct table_header *h = t->header;
	_Atomic uint32_t *adopted = vm_adopted(&t->vms[to], state);

	store_relaxed32(&h->move.to, to);
	store_relaxed32(&h->move.first, f);
	store_relaxed32(&h->move.count, n);
	store_relaxed32(&h->move.state, state);
	store_relaxed32(&h->move.base, load_relaxed32(adopted));
	ipt_step();
	store_release32(&h->move.from, from);
	/* Too many rather than too few: who counts none isn't asked. */
	add_relaxed32(adopted, n);
	ipt_step();
}

uint32_t move_end(struct ipt *t)
{
	struct table_header *h = t->header;
	uint32_t from = load_relaxed32(&h->move.from), to = load_relaxed32(&h->move.to);
	uint32_t f = load_relaxed32(&h->move.first), gone = 0;

	/* Nothing comes to the giver meanwhile: what is not its any more went, whatever became of it there
	 * since. */
	for (uint32_t i = 0; i < load_relaxed32(&h->move.count); i++)
		gone += !is_of(t, f + i, from);
	store_relaxed32(vm_adopted(&t->vms[to], (enum ipt_state)load_relaxed32(&h->move.state)),
			load_relaxed32(&h->move.base) + gone);
	ipt_step();
	store_release32(&h->move.from, 0);
	return gone;
}

void move_mend(struct ipt *t)
{
	if (load_relaxed32(&t->header->move.from))
		move_end(t);
}
