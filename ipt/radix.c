/* Per-VM radix tables. See radix.h. */
#include "ipt/radix.h"
#include "ipt/debug.h"
#include "ipt/stripe.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define RADIX_BATCH 16

static uint32_t stripe_of_vm(const struct ipt *t, uint32_t vm)
{
	return vm & t->stripe_mask;
}

/* ---- table pages: the pages lock is held ----------------------------------------------------- */

static _Atomic uint64_t *bitmap(const struct ipt *t)
{
	return (_Atomic uint64_t *)t->forward;
}

bool radix_page_used(struct ipt *t, uint32_t page)
{
	return load_relaxed64(&bitmap(t)[page / 64]) >> page % 64 & 1;
}

static int page_alloc(struct ipt *t, uint32_t *out)
{
	struct table_header *h = t->header;
	uint32_t words = t->layout.page_cap / 64;

	for (uint32_t i = load_relaxed32(&h->page_low) / 64; i < words; i++) {
		uint64_t map = load_relaxed64(&bitmap(t)[i]);

		if (!~map)
			continue;
		uint32_t page = i * 64 + (uint32_t)__builtin_ctzll(~map);
		if (page >= load_relaxed32(&h->page_high))
			store_relaxed32(&h->page_high, page + 1);
		ipt_step();
		store_relaxed64(&bitmap(t)[i], map | UINT64_C(1) << page % 64);
		ipt_step();
		store_relaxed32(&h->page_low, page + 1);
		add_relaxed32(&h->pages_used, 1);
		*out = page;
		return 0;
	}
	return -ENOSPC;
}

static void page_free(struct ipt *t, uint32_t page)
{
	struct table_header *h = t->header;
	uint64_t at = t->layout.page_base + ((uint64_t)page << PAGE_SHIFT);

	/* A page must read as zero when it is used again. */
	if (table_punch(t, at, at + PAGE_SIZE))
		memset((void *)radix_page(t, page), 0, PAGE_SIZE);
	ipt_step();
	store_relaxed64(&bitmap(t)[page / 64],
			load_relaxed64(&bitmap(t)[page / 64]) & ~(UINT64_C(1) << page % 64));
	if (page < load_relaxed32(&h->page_low))
		store_relaxed32(&h->page_low, page);
	add_relaxed32(&h->pages_used, UINT32_MAX); /* minus one */
}

static void mark_used(void *ctx, uint32_t page, unsigned level, uint64_t g, radix_entry *entry)
{
	struct ipt *t = ctx;

	(void)level;
	(void)g;
	if (entry || page >= t->layout.page_cap)
		return;
	store_relaxed64(&bitmap(t)[page / 64],
			load_relaxed64(&bitmap(t)[page / 64]) | UINT64_C(1) << page % 64);
	add_relaxed32(&t->header->pages_used, 1);
}

/* A dead process left pages that no table leads to, or freed some without saying so: a page is in use
 * if a VM's table leads to it. Links are made under this lock, so the tables stand still. */
static void pages_rebuild(struct ipt *t)
{
	struct table_header *h = t->header;
	uint32_t high = load_relaxed32(&h->page_high);

	for (uint32_t i = 0; i < (high + 63) / 64; i++)
		store_relaxed64(&bitmap(t)[i], 0);
	store_relaxed32(&h->pages_used, 0);
	for (uint32_t vm = 1; vm <= load_relaxed32(&h->vm_high); vm++)
		radix_walk(t, vm, mark_used, t);
	for (uint32_t p = 0; p < high;) {
		uint32_t run = p;
		uint64_t base = t->layout.page_base;

		while (p < high && !radix_page_used(t, p))
			p++;
		table_punch(t, base + ((uint64_t)run << PAGE_SHIFT),
			    base + ((uint64_t)p << PAGE_SHIFT));
		p += p == run;
	}
	store_relaxed32(&h->page_low, 0);
	add_relaxed32(&h->repairs, 1);
}

void radix_pages_lock(struct ipt *t)
{
	if (lock_take(&t->header->pages, LOCK_PAGES)) {
		pages_rebuild(t);
		lock_mended(&t->header->pages);
	}
}

void radix_pages_unlock(struct ipt *t)
{
	lock_drop(&t->header->pages, LOCK_PAGES);
}

/* The root, made if there is none. */
static int root_page(struct ipt *t, uint32_t vm, uint32_t *out)
{
	_Atomic uint32_t *root = &t->vms[vm].radix_root;
	int err = 0;

	if (!load_acquire32(root)) {
		radix_pages_lock(t);
		err = page_alloc(t, out);
		if (!err)
			store_release32(root, *out + 1);
		radix_pages_unlock(t);
		return err;
	}
	*out = load_acquire32(root) - 1;
	return 0;
}

/* The page that an entry leads to, made if there is none. */
static int next_page(struct ipt *t, radix_entry *entry, uint32_t *out)
{
	uint64_t e = load_acquire64(entry);
	int err;

	if (e & RADIX_PRESENT) {
		*out = (uint32_t)(e >> RADIX_SHIFT);
		return 0;
	}
	radix_pages_lock(t);
	err = page_alloc(t, out);
	if (!err)
		store_release64(entry, (uint64_t)*out << RADIX_SHIFT | RADIX_PRESENT);
	radix_pages_unlock(t);
	return err;
}

/* ---- walking --------------------------------------------------------------------------------- */

static void walk_page(struct ipt *t, uint32_t page, unsigned level, uint64_t g, radix_visit *visit,
		      void *ctx)
{
	radix_entry *entries = radix_page(t, page);

	visit(ctx, page, level, g, NULL);
	for (unsigned i = 0; i < RADIX_ENTRIES; i++) {
		uint64_t e = load_acquire64(&entries[i]),
			 at = g | (uint64_t)i << (level * RADIX_BITS);

		if (!(e & RADIX_PRESENT))
			continue;
		if (level == 0)
			visit(ctx, page, level, at, &entries[i]);
		else
			walk_page(t, (uint32_t)(e >> RADIX_SHIFT), level - 1, at, visit, ctx);
	}
}

void radix_walk(struct ipt *t, uint32_t vm, radix_visit *visit, void *ctx)
{
	uint32_t root = load_acquire32(&t->vms[vm].radix_root);

	if (root)
		walk_page(t, root - 1, RADIX_LEVELS - 1, 0, visit, ctx);
}

/* ---- look-up --------------------------------------------------------------------------------- */

static void find_chunk(struct ipt *t, const struct ipt_key *keys, frame_t *out, unsigned n)
{
	const radix_entry *at[RADIX_BATCH];

	for (unsigned i = 0; i < n; i++) {
		uint32_t vm = keys[i].vm.v, root = 0;
		uint64_t g = keys[i].gfn.v;

		/* The VMs' slots are few lines and near; their pages are not. */
		if (vm - 1 < t->max_vms && g < IPT_MAX_GFN)
			root = load_acquire32(&t->vms[vm].radix_root);
		at[i] = root ? &radix_page(t, root - 1)[radix_slot(g, RADIX_LEVELS - 1)] : NULL;
		__builtin_prefetch((const void *)at[i]);
	}
	for (unsigned level = RADIX_LEVELS - 1; level > 0; level--) {
		for (unsigned i = 0; i < n; i++) {
			uint64_t e = at[i] ? load_acquire64(at[i]) : 0;

			at[i] = e & RADIX_PRESENT
					? &radix_page(t, (uint32_t)(e >> RADIX_SHIFT))[radix_slot(
						  keys[i].gfn.v, level - 1)]
					: NULL;
			__builtin_prefetch((const void *)at[i]);
		}
	}
	for (unsigned i = 0; i < n; i++) {
		uint64_t e = at[i] ? load_acquire64(at[i]) : 0;

		out[i] = e & RADIX_PRESENT ? frame((uint32_t)(e >> RADIX_SHIFT)) : INVALID_FRAME;
	}
}

void radix_find_batch(struct ipt *t, const struct ipt_key *keys, frame_t *out, unsigned n)
{
	for (unsigned i = 0; i < n; i += RADIX_BATCH)
		find_chunk(t, keys + i, out + i, n - i < RADIX_BATCH ? n - i : RADIX_BATCH);
}

/* ---- changes --------------------------------------------------------------------------------- */

/* The level 0 entry of g: NULL if a page on the way is missing and not to be made, or can't. */
static int leaf(struct ipt *t, uint32_t vm, uint64_t g, radix_entry **out)
{
	uint32_t page;
	int err = root_page(t, vm, &page);

	for (unsigned level = RADIX_LEVELS - 1; !err && level > 0; level--)
		err = next_page(t, &radix_page(t, page)[radix_slot(g, level)], &page);
	if (!err)
		*out = &radix_page(t, page)[radix_slot(g, 0)];
	return err;
}

int radix_map(struct ipt *t, uint32_t vm, uint64_t g, uint32_t f, unsigned n)
{
	uint32_t s = stripe_of_vm(t, vm);
	radix_entry *entries;

	stripe_lock(t, s);
	int err = leaf(t, vm, g, &entries);
	for (unsigned i = 0; !err && i < n; i++) {
		if (load_relaxed64(&entries[i]) & RADIX_PRESENT)
			err = -EEXIST;
	}
	for (unsigned i = 0; !err && i < n; i++) {
		store_release64(&entries[i], (uint64_t)(f + i) << RADIX_SHIFT | RADIX_PRESENT);
		ipt_step();
		store_release64(&t->words[f + i], word_mapped(IPT_PRIVATE, vm, g + i));
		ipt_step();
	}
	stripe_unlock(t, s);
	return err;
}

/* The level 0 entry of g, or NULL if no page leads there. */
static radix_entry *leaf_find(struct ipt *t, uint32_t vm, uint64_t g)
{
	uint32_t page = load_acquire32(&t->vms[vm].radix_root);
	radix_entry *entries = page ? radix_page(t, page - 1) : NULL;

	for (unsigned level = RADIX_LEVELS - 1; entries && level > 0; level--) {
		uint64_t e = load_acquire64(&entries[radix_slot(g, level)]);

		entries = e & RADIX_PRESENT ? radix_page(t, (uint32_t)(e >> RADIX_SHIFT)) : NULL;
	}
	return entries ? &entries[radix_slot(g, 0)] : NULL;
}

unsigned radix_unmap(struct ipt *t, uint32_t vm, uint64_t g, unsigned n, uint32_t *frames)
{
	uint32_t s = stripe_of_vm(t, vm);
	unsigned gone = 0;

	stripe_lock(t, s);
	radix_entry *entries = leaf_find(t, vm, g);
	for (unsigned i = 0; i < n; i++) {
		uint64_t e = entries ? load_relaxed64(&entries[i]) : 0;

		frames[i] = UINT32_MAX;
		if (!(e & RADIX_PRESENT))
			continue;
		frames[i] = (uint32_t)(e >> RADIX_SHIFT);
		store_release64(&t->words[frames[i]], word_limbo(vm));
		ipt_step();
		store_release64(&entries[i], 0);
		ipt_step();
		gone++;
	}
	stripe_unlock(t, s);
	return gone;
}

int radix_move(struct ipt *t, uint32_t from, uint32_t to, uint64_t g, uint32_t f, unsigned n)
{
	uint32_t a = stripe_of_vm(t, from), b = stripe_of_vm(t, to);
	radix_entry *old, *new;

	stripe_lock_two(t, a, b);
	int err = leaf(t, to, g, &new);
	old = leaf_find(t, from, g);
	for (unsigned i = 0; !err && old && i < n; i++) {
		if (load_relaxed64(&new[i]) & RADIX_PRESENT ||
		    !word_maps(load_relaxed64(&t->words[f + i]), from, g + i))
			continue;
		store_release64(&new[i], (uint64_t)(f + i) << RADIX_SHIFT | RADIX_PRESENT);
		ipt_step();
		store_release64(&t->words[f + i], word_mapped(IPT_PRIVATE, to, g + i));
		ipt_step();
		store_release64(&old[i], 0);
		ipt_step();
	}
	stripe_unlock_two(t, a, b);
	return err;
}

static void free_page(void *ctx, uint32_t page, unsigned level, uint64_t g, radix_entry *entry)
{
	uint32_t **next = ctx;

	(void)level;
	(void)g;
	if (!entry)
		*(*next)++ = page;
}

static void count_page(void *ctx, uint32_t page, unsigned level, uint64_t g, radix_entry *entry)
{
	(void)page;
	(void)level;
	(void)g;
	*(uint32_t *)ctx += !entry;
}

void radix_drop(struct ipt *t, uint32_t vm)
{
	uint32_t n = 0, *pages = NULL, *next;

	radix_pages_lock(t);
	radix_walk(t, vm, count_page, &n);
	if (n)
		pages = next = malloc(n * sizeof(*pages));
	if (pages)
		radix_walk(t, vm, free_page, &next);
	/* Unlinked first: what a dead process doesn't come to free, pages_rebuild finds. */
	store_release32(&t->vms[vm].radix_root, 0);
	ipt_step();
	for (uint32_t i = 0; pages && i < n; i++)
		page_free(t, pages[i]);
	if (n && !pages)
		pages_rebuild(t); /* no memory for the list: the long way */
	radix_pages_unlock(t);
	free(pages);
}

struct confirm {
	struct ipt *t;
	uint32_t vm;
};

static void drop_unconfirmed(void *ctx, uint32_t page, unsigned level, uint64_t g,
			     radix_entry *entry)
{
	struct confirm *c = ctx;

	(void)page;
	(void)level;
	if (!entry)
		return;
	uint32_t f = (uint32_t)(load_relaxed64(entry) >> RADIX_SHIFT);
	if (f >= c->t->frames || !word_maps(load_acquire64(&c->t->words[f]), c->vm, g))
		store_release64(entry, 0);
}

/* An entry is made before the word is, and goes after it: so none is missing, but some may be too many. */
void radix_rebuild(struct ipt *t, uint32_t s)
{
	for (uint32_t vm = s; vm <= load_acquire32(&t->header->vm_high); vm += t->stripe_mask + 1) {
		struct confirm c = {t, vm};

		if (vm)
			radix_walk(t, vm, drop_unconfirmed, &c);
	}
}
