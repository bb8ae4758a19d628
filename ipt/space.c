/* Space for what isn't in memory. See space.h. */
#include "ipt/space.h"
#include "ipt/debug.h"
#include "ipt/zone.h"
#include <errno.h>

/* ---- where things are ------------------------------------------------------------------------ */

static unsigned granules_of(uint32_t bytes)
{
	return (bytes + IPT_GRANULE - 1) / IPT_GRANULE;
}

static uint32_t words_of(uint32_t blocks)
{
	return (blocks + 63) / 64;
}

/* An arena's part of n pages or words: from there up to the next one's. */
static uint32_t part(uint32_t n, unsigned arena)
{
	return (uint32_t)((uint64_t)n * arena / TABLE_ARENAS);
}

static unsigned part_of(uint32_t n, uint32_t at)
{
	unsigned arena = (unsigned)((uint64_t)at * TABLE_ARENAS / n);

	while (arena + 1 < TABLE_ARENAS && part(n, arena + 1) <= at)
		arena++;
	return arena;
}

unsigned space_arena_of(const struct ipt *t, const struct ipt_out *page)
{
	uint32_t at = page->where & ~IPT_IN_FILE;

	return page->where & IPT_IN_FILE ? part_of(words_of(t->config.blocks), at / 64)
					 : part_of(t->config.packed_pages, at / IPT_GRANULES);
}

_Atomic uint64_t *space_bits(const struct ipt *t, const struct ipt_out *page, uint64_t *bits)
{
	uint32_t at = page->where & ~IPT_IN_FILE;
	unsigned n = page->where & IPT_IN_FILE ? 1 : granules_of(page->bytes);

	*bits = (n < 64 ? (UINT64_C(1) << n) - 1 : UINT64_MAX) << at % 64;
	return page->where & IPT_IN_FILE ? &t->blocks[at / 64] : &t->packed[at / 64];
}

static bool is_somewhere(const struct ipt *t, const struct ipt_out *page)
{
	uint32_t at = page->where & ~IPT_IN_FILE;

	if (!page->bytes || page->bytes > PAGE_SIZE || page->where == IPT_NOWHERE)
		return false;
	if (page->where & IPT_IN_FILE)
		return at < t->config.blocks;
	return at / IPT_GRANULES < t->config.packed_pages &&
	       at % IPT_GRANULES + granules_of(page->bytes) <= IPT_GRANULES;
}

int space_used(const struct ipt *t, const struct ipt_out *page)
{
	uint64_t bits;

	if (!is_somewhere(t, page))
		return -1;
	uint64_t w = load_relaxed64(space_bits(t, page, &bits)) & bits;
	return w == bits ? 1 : w ? -1 : 0;
}

/* ---- finding it: the arena is locked --------------------------------------------------------- */

/* The lowest of n zeroes in a row, or 64. */
static unsigned gap(uint64_t w, unsigned n)
{
	uint64_t x = ~w;

	for (unsigned left = n - 1, step = 1; left && x; left -= step, step *= 2) {
		if (step > left)
			step = left;
		x &= x >> step;
	}
	return x ? (unsigned)__builtin_ctzll(x) : 64;
}

static bool find_granules(struct ipt *t, unsigned arena, unsigned n, uint32_t *where)
{
	struct arena *a = &t->arenas[arena];
	uint32_t pages = t->config.packed_pages, end = part(pages, arena + 1);
	uint32_t start = part(pages, arena);
	uint32_t p = start + load_relaxed32(&a->room[n - 1]);
	unsigned at = 64;

	while (p < end && (at = gap(load_relaxed64(&t->packed[p]), n)) == 64)
		p++;
	store_relaxed32(&a->room[n - 1], p - start);
	if (p < end)
		*where = p * IPT_GRANULES + at;
	return p < end;
}

static bool find_block(struct ipt *t, unsigned arena, uint32_t *where)
{
	struct arena *a = &t->arenas[arena];
	uint32_t words = words_of(t->config.blocks), start = part(words, arena);
	uint32_t n = part(words, arena + 1) - start;

	for (uint32_t i = 0; i < n; i++) {
		uint32_t w = start + (load_relaxed32(&a->block_at) + i) % n;
		uint64_t used = load_relaxed64(&t->blocks[w]);

		if (w == words - 1 && t->config.blocks % 64)
			used |= UINT64_MAX << t->config.blocks % 64;
		if (used == UINT64_MAX)
			continue;
		store_relaxed32(&a->block_at, w - start);
		*where = IPT_IN_FILE | (w * 64 + (uint32_t)__builtin_ctzll(~used));
		return true;
	}
	return false;
}

/* Count and mark what `page` takes. */
static void use(struct ipt *t, struct arena *a, const struct ipt_out *page)
{
	uint64_t bits;
	_Atomic uint64_t *w = space_bits(t, page, &bits);

	store_relaxed64(w, load_relaxed64(w) | bits);
	if (page->where & IPT_IN_FILE)
		add_relaxed32(&a->blocks, 1);
	else
		add_relaxed32(&a->granules, granules_of(page->bytes));
}

static void unuse(struct ipt *t, unsigned arena, const struct ipt_out *page)
{
	struct arena *a = &t->arenas[arena];
	uint64_t bits;
	_Atomic uint64_t *w = space_bits(t, page, &bits);
	uint64_t now = load_relaxed64(w) & ~bits;

	store_relaxed64(w, now);
	if (page->where & IPT_IN_FILE) {
		add_relaxed32(&a->blocks, UINT32_MAX); /* minus one */
		return;
	}
	add_relaxed32(&a->granules, -granules_of(page->bytes));
	uint32_t p = page->where / IPT_GRANULES - part(t->config.packed_pages, arena);
	for (unsigned n = 1; n <= IPT_GRANULES && gap(now, n) < 64; n++) {
		if (load_relaxed32(&a->room[n - 1]) > p)
			store_relaxed32(&a->room[n - 1], p);
	}
}

/* ---- claims ---------------------------------------------------------------------------------- */

/* From here on the slot has the space, whoever dies. */
static void note_claim(struct ipt *t, uint32_t slot, const struct ipt_out *page)
{
	struct slot_link *l = slot_link(t, slot);

	store_relaxed32(&l->target, page->where);
	store_relaxed32(&l->prev, page->sum);
	ipt_step();
	store_release32(&l->next, SLOT_CLAIM | page->bytes);
	ipt_step();
}

static bool claim_in(struct ipt *t, unsigned arena, uint32_t slot, struct ipt_out *page, bool file)
{
	space_lock(t, arena);
	bool found = file ? find_block(t, arena, &page->where)
			  : find_granules(t, arena, granules_of(page->bytes), &page->where);
	if (found) {
		note_claim(t, slot, page);
		use(t, &t->arenas[arena], page);
		ipt_step();
	}
	space_unlock(t, arena);
	return found;
}

int space_claim(struct ipt *t, vmid_t vm, uint32_t slot, struct ipt_out *page)
{
	bool file = page->where & IPT_IN_FILE;

	if (page->bytes > PAGE_SIZE)
		return -EINVAL;
	if (!page->bytes) {
		page->where = IPT_NOWHERE;
		note_claim(t, slot, page);
		return 0;
	}
	if (file ? !t->config.blocks : !t->config.packed_pages)
		return -ENOSPC; /* without space of either kind the arenas have no locks */
	for (unsigned i = 0; i < TABLE_ARENAS; i++) {
		if (claim_in(t, (vm.v + i) % TABLE_ARENAS, slot, page, file))
			return 0;
	}
	return -ENOSPC;
}

void space_release(struct ipt *t, uint32_t slot)
{
	struct ipt_out page = space_of(t, slot);

	if (!page.bytes) {
		store_release32(&slot_link(t, slot)->next, 0);
		return;
	}
	unsigned arena = space_arena_of(t, &page);
	space_lock(t, arena);
	store_release32(&slot_link(t, slot)->next, 0);
	ipt_step();
	unuse(t, arena, &page);
	ipt_step();
	space_unlock(t, arena);
}

/* ---- the lock, and its holder's death ---------------------------------------------------------- */

static void clear(_Atomic uint64_t *words, uint32_t from, uint32_t to)
{
	for (uint32_t i = from; i < to; i++) {
		if (load_relaxed64(&words[i]))
			store_relaxed64(&words[i], 0);
	}
}

static void rebuild(struct ipt *t, unsigned arena)
{
	struct arena *a = &t->arenas[arena];
	uint32_t pages = t->config.packed_pages, words = words_of(t->config.blocks);
	unsigned z = t->config.nodes;

	clear(t->packed, part(pages, arena), part(pages, arena + 1));
	clear(t->blocks, part(words, arena), part(words, arena + 1));
	store_relaxed32(&a->granules, 0);
	store_relaxed32(&a->blocks, 0);
	store_relaxed32(&a->block_at, 0);
	for (unsigned i = 0; i < IPT_GRANULES; i++)
		store_relaxed32(&a->room[i], 0);
	for (uint32_t slot = zone_start(t, z); slot < zone_mark(t, z); slot++) {
		enum ipt_state state = word_state(load_acquire64(&t->words[slot]));

		if ((state != IPT_OUT && state != IPT_SPARE && state != IPT_SHARED) ||
		    !space_claimed(t, slot))
			continue;
		/* A claim of space in this arena stays as it is, but others change meanwhile, and may
		 * look like one of these while they do. */
		struct ipt_out page = space_of(t, slot);
		atomic_thread_fence(memory_order_acquire);
		struct ipt_out again = space_of(t, slot);
		if (!space_claimed(t, slot) || page.where != again.where ||
		    page.bytes != again.bytes)
			continue;
		if (is_somewhere(t, &page) && space_arena_of(t, &page) == arena)
			use(t, a, &page);
	}
	add_relaxed32(&t->header->repairs, 1);
}

void space_lock(struct ipt *t, unsigned arena)
{
	struct arena *a = &t->arenas[arena];

	if (lock_take(&a->lock, LOCK_SPACE)) {
		rebuild(t, arena);
		lock_mended(&a->lock);
	}
}

void space_unlock(struct ipt *t, unsigned arena)
{
	lock_drop(&t->arenas[arena].lock, LOCK_SPACE);
}

void space_mend(struct ipt *t)
{
	for (unsigned i = 0; i < TABLE_ARENAS && (t->config.packed_pages || t->config.blocks);
	     i++) {
		space_lock(t, i);
		space_unlock(t, i);
	}
}

/* ---- for others ------------------------------------------------------------------------------ */

void ipt_space(struct ipt *t, struct ipt_space_info *out)
{
	*out = (struct ipt_space_info){.granules = (uint64_t)t->config.packed_pages * IPT_GRANULES,
				       .blocks = t->config.blocks};
	for (unsigned i = 0; i < TABLE_ARENAS; i++) {
		out->granules_used += load_relaxed32(&t->arenas[i].granules);
		out->blocks_used += load_relaxed32(&t->arenas[i].blocks);
	}
}

int ipt_packed_trim(struct ipt *t, uint32_t first, uint32_t n, ipt_trim_fn *trim, void *ctx)
{
	uint32_t pages = t->config.packed_pages;
	uint32_t stop = first < pages && n < pages - first ? first + n : pages;
	int err = 0;

	for (uint32_t p = first, run; !err && p < stop; p += run) {
		unsigned arena = part_of(pages, p);
		uint32_t end = part(pages, arena + 1);

		end = end < stop ? end : stop;
		space_lock(t, arena);
		for (run = 0; p + run < end && !load_relaxed64(&t->packed[p + run]); run++)
			;
		if (run)
			err = trim(ctx, p, run);
		space_unlock(t, arena);
		run = run ? run : 1;
	}
	return err;
}
