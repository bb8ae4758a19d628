/* The checker of I5: every forward element leads to a word that confirms it, and readers find it. */
#include "ipt/audit.h"
#include "ipt/index.h"
#include "ipt/radix.h"
#include <stdlib.h>

/* Count one more overflow in each line from home up to, not including, `at`. */
static void count_over(uint32_t *over, uint32_t home, uint32_t at, uint32_t nlines)
{
	for (; home != at; home = home + 1 == nlines ? 0 : home + 1)
		over[home]++;
}

static void audit_cluster(struct audit *a, uint32_t s, uint32_t at, unsigned slot, uint32_t *over)
{
	struct ipt *t = a->t;
	struct cluster_line *l = &cluster_lines(t, s)[at];
	uint64_t key = cluster_key_at(l, slot), group = key & UINT32_MAX;
	struct cluster_slot here = {l, slot};
	uint32_t vm = (uint32_t)(key >> 32), base = cluster_base(here);
	uint32_t nlines = load_relaxed32(&t->stripes[s].cluster_lines);
	uint64_t h = hash_group(&t->keys, vm, group);
	unsigned confirmed = 0;

	if (stripe_of(t, h) != s || base >= t->layout.slot_end) {
		audit_fail(a, "I5: stripe %u has the cluster of VM %u, group %#lx, base %u", s, vm,
			   (unsigned long)group, base);
		return;
	}
	for (uint32_t i = 0; i < IPT_CLUSTER_FRAMES; i++) {
		uint64_t w = load_relaxed64(&t->words[base + i]);

		confirmed += word_maps(w, vm, group << IPT_CLUSTER_ORDER | i) && w & WORD_FLAG;
	}
	if (!confirmed)
		audit_fail(a, "I5: no word confirms the cluster of VM %u, group %#lx, base %u", vm,
			   (unsigned long)group, base);
	if (cluster_is_full(here) && confirmed != IPT_CLUSTER_FRAMES)
		audit_fail(a, "I5: VM %u, group %#lx is FULL with %u frames", vm,
			   (unsigned long)group, confirmed);
	struct cluster_slot found = cluster_find(t, s, h, key);
	if (found.line != l || found.i != slot)
		audit_fail(a, "I5: VM %u, group %#lx stands twice or can't be found", vm,
			   (unsigned long)group);
	count_over(over, hash_scale(h, nlines), at, nlines);
}

static void audit_clusters(struct audit *a, uint32_t s)
{
	struct ipt *t = a->t;
	struct cluster_line *lines = cluster_lines(t, s);
	uint32_t n = load_relaxed32(&t->stripes[s].cluster_lines), found = 0;
	uint32_t *over = calloc(n + 1, sizeof(*over));

	for (uint32_t at = 0; over && at < n; at++) {
		for (unsigned slot = 0; slot < CLUSTER_SLOTS; slot++) {
			if (!cluster_key_at(&lines[at], slot))
				continue;
			found++;
			audit_cluster(a, s, at, slot, over);
		}
	}
	for (uint32_t at = 0; over && at < n; at++) {
		uint32_t said = load_relaxed32(&lines[at].over) & CLUSTER_OVER_MASK;

		if (over[at] != said)
			audit_fail(a, "I5: stripe %u, cluster line %u: %u overflowed, counts %u", s,
				   at, over[at], said);
	}
	if (found != load_relaxed32(&t->stripes[s].clusters))
		audit_fail(a, "I5: stripe %u has %u clusters and counts %u", s, found,
			   load_relaxed32(&t->stripes[s].clusters));
	free(over);
}

static void audit_single(struct audit *a, uint32_t s, uint32_t at, unsigned slot, uint32_t *over,
			 uint8_t *seen)
{
	struct ipt *t = a->t;
	struct single_line *l = &single_lines(t, s)[at];
	uint32_t word = load_relaxed32(&l->slot[slot]), f = word & SINGLE_FRAME_MASK;
	uint32_t nlines = load_relaxed32(&t->stripes[s].single_lines);

	if (f >= t->layout.slot_end) {
		audit_fail(a, "I5: stripe %u has a single of frame %u", s, f);
		return;
	}
	if (seen[f / 8] & 1u << f % 8)
		audit_fail(a, "I5: frame %u stands twice", f);
	seen[f / 8] |= (uint8_t)(1u << f % 8);
	uint64_t w = load_relaxed64(&t->words[f]), g = word_gfn(w);
	uint64_t h = hash_group(&t->keys, word_vm(w), g >> IPT_CLUSTER_ORDER);
	uint64_t hs = hash_gfn(&t->keys, h, g);
	if (!word_is_mapped(w) || w & WORD_FLAG || stripe_of(t, h) != s ||
	    single_tag4(hs) != (word & ~SINGLE_FRAME_MASK) ||
	    single_tag(hs) != atomic_load_explicit(&l->tag[slot], memory_order_relaxed))
		audit_fail(a, "I5: the single of frame %u in stripe %u is not confirmed by %#lx", f,
			   s, (unsigned long)w);
	else
		count_over(over, hash_scale(hs, nlines), at, nlines);
}

static void audit_singles(struct audit *a, uint32_t s, uint8_t *seen)
{
	struct ipt *t = a->t;
	struct single_line *lines = single_lines(t, s);
	uint32_t n = load_relaxed32(&t->stripes[s].single_lines), found = 0;
	uint32_t *over = calloc(n + 1, sizeof(*over));

	for (uint32_t at = 0; over && at < n; at++) {
		unsigned m = SINGLE_ALL & ~single_match(&lines[at], 0);

		for (; m; m &= m - 1, found++)
			audit_single(a, s, at, (unsigned)__builtin_ctz(m), over, seen);
	}
	for (uint32_t at = 0; over && at < n; at++) {
		if (over[at] != load_relaxed32(&lines[at].over))
			audit_fail(a, "I5: stripe %u, single line %u: %u overflowed, counts %u", s,
				   at, over[at], load_relaxed32(&lines[at].over));
	}
	if (found != load_relaxed32(&t->stripes[s].singles))
		audit_fail(a, "I5: stripe %u has %u singles and counts %u", s, found,
			   load_relaxed32(&t->stripes[s].singles));
	free(over);
}

void audit_index(struct audit *a)
{
	uint8_t *seen = calloc(a->t->layout.slot_end / 8 + 1, 1);

	if (!seen) {
		audit_fail(a, "I5: no memory to check it");
		return;
	}
	for (uint32_t s = 0; s < a->t->layout.nstripes; s++) {
		stripe_lock(a->t, s);
		if (load_relaxed32(&a->t->stripes[s].seq) & 1)
			audit_fail(a, "I5: stripe %u is in flux", s);
		audit_clusters(a, s);
		audit_singles(a, s, seen);
		stripe_unlock(a->t, s);
	}
	free(seen);
}

/* ---- radix ----------------------------------------------------------------------------------- */

struct tables {
	struct audit *a;
	uint32_t vm;
	uint32_t pages;
	uint8_t *seen;
};

static void audit_entry(void *ctx, uint32_t page, unsigned level, uint64_t g, radix_entry *entry)
{
	struct tables *r = ctx;
	struct ipt *t = r->a->t;

	if (!entry) {
		r->pages++;
		if (!radix_page_used(t, page))
			audit_fail(r->a, "I5: VM %u uses free table page %u", r->vm, page);
		if (r->seen[page / 8] & 1u << page % 8)
			audit_fail(r->a, "I5: table page %u stands twice (VM %u, level %u)", page,
				   r->vm, level);
		r->seen[page / 8] |= (uint8_t)(1u << page % 8);
		return;
	}
	uint32_t f = (uint32_t)(load_relaxed64(entry) >> RADIX_SHIFT);
	if (f >= t->frames || !word_maps(load_relaxed64(&t->words[f]), r->vm, g))
		audit_fail(r->a, "I5: VM %u's gfn %#lx leads to frame %u, which doesn't confirm it",
			   r->vm, (unsigned long)g, f);
}

void audit_radix(struct audit *a)
{
	struct ipt *t = a->t;
	uint32_t high = load_relaxed32(&t->header->vm_high), used = 0;
	struct tables r = {a, 0, 0, calloc(t->layout.page_cap / 8 + 1, 1)};

	if (!r.seen) {
		audit_fail(a, "I5: no memory to check it");
		return;
	}
	for (uint32_t s = 0; s < t->layout.nstripes; s++) {
		stripe_lock(t, s);
		stripe_unlock(t, s);
	}
	radix_pages_lock(t);
	for (r.vm = 1; r.vm <= high; r.vm++)
		radix_walk(t, r.vm, audit_entry, &r);
	for (uint32_t p = 0; p < load_relaxed32(&t->header->page_high); p++)
		used += radix_page_used(t, p);
	if (used != r.pages || used != load_relaxed32(&t->header->pages_used))
		audit_fail(a, "I5: %u table pages lead somewhere, %u are marked used, %u counted",
			   r.pages, used, load_relaxed32(&t->header->pages_used));
	radix_pages_unlock(t);
	free(r.seen);
}
