/* The hash index. See index.h; the element tables are in cluster.c and single.c. */
#include "ipt/index.h"
#include "ipt/zone.h"
#include <assert.h>
#include <errno.h>
#include <sched.h>

/* From this many frames on, a piece of a group goes in as a cluster with holes: three singles cost as
 * much as one cluster element. */
#define INDEX_CLUSTER_MIN 3
#define INDEX_SPINS       200
#define INDEX_BATCH       16

uint32_t index_find_slow(struct ipt *t, uint32_t s, uint64_t h, uint32_t vm, uint64_t g)
{
	const struct stripe *st = &t->stripes[s];
	uint32_t f;

	for (unsigned i = 0; i < INDEX_SPINS; i++) {
		uint32_t seq = load_acquire32(&st->seq);

		f = index_probe(t, s, h, vm, g);
		if (f != NO_FRAME)
			return f;
		if (!(seq & 1) && load_relaxed32(&st->seq) == seq)
			return NO_FRAME;
		sched_yield();
	}
	/* Long at it, or dead in the middle of it: the lock waits for the one and mends the other. */
	stripe_lock(t, s);
	f = index_probe(t, s, h, vm, g);
	stripe_unlock(t, s);
	return f;
}

/* What a table without lines looks like. Its own line 0 must not be read: that would populate it. */
static const struct cluster_line no_line;

/* Bring what index_find will read of singles: first the lines, then the words their tags point at. */
static void prefetch_singles(const struct ipt *t, const struct ipt_key *keys, const frame_t *out,
			     unsigned n)
{
	const struct single_line *lines[INDEX_BATCH];
	uint64_t hash[INDEX_BATCH];

	for (unsigned i = 0; i < n; i++) {
		uint64_t g = keys[i].gfn.v;
		uint64_t h = hash_group(&t->keys, keys[i].vm.v, g >> IPT_CLUSTER_ORDER);
		uint32_t s = stripe_of(t, h), nlines = load_acquire32(&t->stripes[s].single_lines);

		lines[i] = NULL;
		hash[i] = hash_gfn(&t->keys, h, g);
		if (frame_valid(out[i]) || !nlines)
			continue;
		lines[i] = &single_lines(t, s)[hash_scale(hash[i], nlines)];
		__builtin_prefetch(lines[i]);
	}
	for (unsigned i = 0; i < n; i++) {
		unsigned m = lines[i] ? single_match(lines[i], single_tag(hash[i])) : 0;

		for (; m; m &= m - 1) {
			uint32_t slot = load_relaxed32(&lines[i]->slot[__builtin_ctz(m)]);

			if ((slot & ~SINGLE_FRAME_MASK) == single_tag4(hash[i]))
				__builtin_prefetch(
					(const void *)&t->words[slot & SINGLE_FRAME_MASK]);
		}
	}
}

static void find_chunk(struct ipt *t, const struct ipt_key *keys, frame_t *out, unsigned n)
{
	const struct cluster_line *lines[INDEX_BATCH];
	const struct hash_keys seeds = t->keys;
	const struct stripe *stripes = t->stripes;
	uint32_t singles = 0, missed = 0;

	for (unsigned i = 0; i < n; i++) {
		uint32_t vm = keys[i].vm.v;
		uint64_t g = keys[i].gfn.v, h = hash_group(&seeds, vm, g >> IPT_CLUSTER_ORDER);
		uint32_t s = stripe_of(t, h);
		uint32_t nlines = load_acquire32(&stripes[s].cluster_lines);

		singles |= load_acquire32(&stripes[s].singles);
		lines[i] = &cluster_lines(t, s)[hash_scale(h, nlines)];
		/* A key out of range would be another's once it is packed. */
		if (!nlines || vm - 1 >= t->max_vms || g >= IPT_MAX_GFN)
			lines[i] = &no_line;
		__builtin_prefetch(lines[i]);
	}
	for (unsigned i = 0; i < n; i++) {
		uint64_t g = keys[i].gfn.v, key = CLUSTER_KEY(keys[i].vm.v, g >> IPT_CLUSTER_ORDER);
		uint32_t over, base;
		bool whole = cluster_try(lines[i], key, &over, &base) == CLUSTER_WHOLE;

		out[i] = whole ? frame(base + (uint32_t)(g & 15)) : INVALID_FRAME;
		missed |= !whole;
	}
	if (missed && singles)
		prefetch_singles(t, keys, out, n);
}

void index_find_batch(struct ipt *t, const struct ipt_key *keys, frame_t *out, unsigned n)
{
	for (unsigned i = 0; i < n; i += INDEX_BATCH)
		find_chunk(t, keys + i, out + i, n - i < INDEX_BATCH ? n - i : INDEX_BATCH);
}

/* ---- changes: the stripe is locked ----------------------------------------------------------- */

struct piece {
	uint32_t vm, s;
	uint64_t hash, group;
	struct cluster_slot element; /* of the group's cluster */
};

static struct piece piece_of(const struct ipt *t, uint32_t vm, uint64_t g)
{
	struct piece p = {.vm = vm, .group = g >> IPT_CLUSTER_ORDER};

	p.hash = hash_group(&t->keys, vm, p.group);
	p.s = stripe_of(t, p.hash);
	return p;
}

static void piece_find(struct ipt *t, struct piece *p)
{
	p->element = cluster_find(t, p->s, p->hash, CLUSTER_KEY(p->vm, p->group));
}

static struct piece piece_lock(struct ipt *t, uint32_t vm, uint64_t g)
{
	struct piece p = piece_of(t, vm, g);

	stripe_lock(t, p.s);
	piece_find(t, &p);
	return p;
}

static uint32_t find_single(struct ipt *t, const struct piece *p, uint64_t g)
{
	const struct stripe *st = &t->stripes[p->s];

	if (!load_relaxed32(&st->singles))
		return NO_FRAME;
	return single_read(t, single_lines(t, p->s), load_relaxed32(&st->single_lines),
			   hash_gfn(&t->keys, p->hash, g), p->vm, g);
}

/* The frame that the group's cluster element has for g, or NO_FRAME. */
static uint32_t find_clustered(struct ipt *t, const struct piece *p, uint64_t g)
{
	if (!p->element.line)
		return NO_FRAME;
	uint32_t f = cluster_base(p->element) + (uint32_t)(g & 15);
	uint64_t w = load_relaxed64(&t->words[f]);

	return w & WORD_FLAG && word_maps(w, p->vm, g) ? f : NO_FRAME;
}

/* How many of the 16 words from base on map the group's gfns: by whatever element, or flagged only. */
static unsigned count_words(struct ipt *t, const struct piece *p, uint32_t base, bool flagged)
{
	unsigned n = 0;

	for (uint32_t i = 0; i < IPT_CLUSTER_FRAMES; i++) {
		uint64_t w = load_relaxed64(&t->words[base + i]);

		n += word_maps(w, p->vm, (p->group << IPT_CLUSTER_ORDER) + i) &&
		     (!flagged || w & WORD_FLAG);
	}
	return n;
}

/* The group's element takes over the singles that stand where it would have them, and becomes FULL if
 * all sixteen are its. A reader finds them by the one, then by both, then by the other. */
static void absorb(struct ipt *t, struct piece *p, uint32_t base)
{
	unsigned n = 0;

	for (uint32_t i = 0; i < IPT_CLUSTER_FRAMES; i++) {
		uint64_t g = (p->group << IPT_CLUSTER_ORDER) + i;
		uint64_t w = load_relaxed64(&t->words[base + i]);

		if (!word_maps(w, p->vm, g))
			continue;
		n++;
		if (w & WORD_FLAG)
			continue;
		store_release64(&t->words[base + i], w | WORD_FLAG);
		ipt_step();
		single_remove(t, p->s, hash_gfn(&t->keys, p->hash, g), base + i);
	}
	if (n == IPT_CLUSTER_FRAMES)
		cluster_set_full(p->element, true);
}

static bool insert_cluster(struct ipt *t, struct piece *p, uint32_t base)
{
	/* Growing moves elements, but there is none of this group. */
	if (!cluster_reserve(t, p->s))
		return false;
	p->element = cluster_insert(t, p->s, p->hash, CLUSTER_KEY(p->vm, p->group), base, false);
	ipt_step();
	return true;
}

static uint32_t find_own(struct ipt *t, const struct piece *p, uint64_t g)
{
	uint32_t f = find_clustered(t, p, g);

	return f != NO_FRAME ? f : find_single(t, p, g);
}

/* Put in what will lead to the frames f + i at gfns g + i, for each bit i of which; their words don't
 * say so yet. *clustered: by the group's cluster, else by singles. */
static int insert_elements(struct ipt *t, struct piece *p, uint64_t g, uint32_t f, unsigned which,
			   bool *clustered)
{
	uint32_t base = f & ~(IPT_CLUSTER_FRAMES - 1);
	unsigned n = (unsigned)__builtin_popcount(which);
	bool congruent = ((f ^ g) & (IPT_CLUSTER_FRAMES - 1)) == 0;

	*clustered = false;
	if (congruent && p->element.line)
		*clustered = cluster_base(p->element) == base;
	else if (congruent && n >= INDEX_CLUSTER_MIN)
		*clustered = insert_cluster(t, p, base);
	if (*clustered)
		return 0;
	int err = single_reserve(t, p->s, n);
	if (err)
		return err;
	for (; which; which &= which - 1) {
		unsigned i = (unsigned)__builtin_ctz(which);

		single_insert(t, p->s, hash_gfn(&t->keys, p->hash, g + i), f + i);
	}
	return 0;
}

/* Frames at g and after have come to the group, at f and after: let a cluster have them if it can. */
static void gather_cluster(struct ipt *t, struct piece *p, uint64_t g, uint32_t f, bool clustered)
{
	uint32_t base = f & ~(IPT_CLUSTER_FRAMES - 1);
	bool congruent = ((f ^ g) & (IPT_CLUSTER_FRAMES - 1)) == 0;

	if (clustered)
		absorb(t, p, base);
	else if (congruent && !p->element.line &&
		 count_words(t, p, base, false) == IPT_CLUSTER_FRAMES && insert_cluster(t, p, base))
		absorb(t, p, base);
}

/* What a frame's or slot's word is when no gfn leads to it any more. */
static uint64_t unmapped(const struct ipt *t, uint32_t vm, uint32_t f)
{
	return f < t->frames ? word_limbo(vm) : word_spare(vm);
}

static unsigned unmap_locked(struct ipt *t, struct piece *p, uint64_t g, unsigned n,
			     uint32_t *frames)
{
	uint32_t base = p->element.line ? cluster_base(p->element) : 0;
	unsigned gone = 0;
	bool touched = false;

	for (unsigned i = 0; i < n; i++) {
		uint32_t f = find_clustered(t, p, g + i);

		if (f != NO_FRAME && !touched) {
			/* Before the first word goes the element is no proof any more. */
			cluster_set_full(p->element, false);
			touched = true;
			ipt_step();
		}
		if (f != NO_FRAME) {
			store_release64(&t->words[f], unmapped(t, p->vm, f));
		} else if ((f = find_single(t, p, g + i)) != NO_FRAME) {
			store_release64(&t->words[f], unmapped(t, p->vm, f));
			ipt_step();
			single_remove(t, p->s, hash_gfn(&t->keys, p->hash, g + i), f);
		}
		ipt_step();
		frames[i] = f;
		gone += f != NO_FRAME;
	}
	if (touched && count_words(t, p, base, true) == 0)
		cluster_remove(t, p->s, p->hash, CLUSTER_KEY(p->vm, p->group));
	return gone;
}

unsigned index_unmap(struct ipt *t, uint32_t vm, uint64_t g, unsigned n, uint32_t *frames)
{
	struct piece p = piece_lock(t, vm, g);
	unsigned gone = unmap_locked(t, &p, g, n, frames);

	stripe_unlock(t, p.s);
	return gone;
}

static int map_locked(struct ipt *t, struct piece *p, uint64_t g, uint32_t f, unsigned n,
		      enum ipt_state state)
{
	bool clustered;
	int err = insert_elements(t, p, g, f, (1u << n) - 1, &clustered);

	if (err)
		return err;
	for (unsigned i = 0; i < n; i++) {
		/* The commit point. */
		store_release64(&t->words[f + i],
				word_mapped(state, p->vm, g + i) | (clustered ? WORD_FLAG : 0));
		ipt_step();
	}
	gather_cluster(t, p, g, f, clustered);
	return 0;
}

int index_map(struct ipt *t, uint32_t vm, uint64_t g, uint32_t f, unsigned n, enum ipt_state state)
{
	struct piece p = piece_lock(t, vm, g);
	int err = 0;

	for (unsigned i = 0; !err && i < n; i++)
		err = find_own(t, &p, g + i) != NO_FRAME ? -EEXIST : 0;
	if (!err)
		err = map_locked(t, &p, g, f, n, state);
	stripe_unlock(t, p.s);
	return err;
}

/*
 * A swap takes the old words' marks away before it sets the new ones. Where vm's own process does it, nobody misses
 * them if it dies. But a template's pages others see: these are written down first, and its frames stand, be they
 * those that were there or those that are to come.
 */
static void stand_begin(struct ipt *t, const struct piece *p, uint64_t g, uint32_t f, unsigned n,
			enum ipt_state state)
{
	struct table_stand *swap = &t->header->swap;

	if (load_relaxed32(&t->header->recount) != p->vm)
		return;
	store_release64(&swap->gfn, g);
	store_relaxed32(&swap->first, state == IPT_PRIVATE ? f : find_own(t, p, g));
	store_release32(&swap->count, n);
	ipt_step();
}

static void stand_end(struct ipt *t, const struct piece *p)
{
	if (load_relaxed32(&t->header->recount) != p->vm)
		return;
	ipt_step();
	store_release32(&t->header->swap.count, 0);
}

static int swap_locked(struct ipt *t, struct piece *p, uint64_t g, uint32_t f, unsigned n,
		       enum ipt_state state, unsigned replaces, uint32_t *old)
{
	for (unsigned i = 0; i < n; i++) {
		uint32_t is = find_own(t, p, g + i);

		if (is != NO_FRAME && !(replaces & 1u << word_state(load_relaxed64(&t->words[is]))))
			return -EEXIST;
	}
	/* Room as singles is room enough, however they will go in. */
	int err = single_reserve(t, p->s, n);
	if (err)
		return err;
	bool opened = stripe_open(&t->stripes[p->s]);
	stand_begin(t, p, g, f, n, state);
	unmap_locked(t, p, g, n, old);
	piece_find(t, p); /* its cluster may be gone */
	err = map_locked(t, p, g, f, n, state);
	stand_end(t, p);
	if (opened)
		stripe_close(&t->stripes[p->s]);
	return err;
}

int index_swap(struct ipt *t, uint32_t vm, uint64_t g, uint32_t f, unsigned n, enum ipt_state state,
	       unsigned replaces, uint32_t *old)
{
	struct piece p = piece_lock(t, vm, g);
	int err = swap_locked(t, &p, g, f, n, state, replaces, old);

	stripe_unlock(t, p.s);
	return err;
}

/*
 * A single's element goes before the new one comes: with both in one stripe, and tags that happen to be the
 * same, they could not be told apart. So a reader's miss there doesn't count until the words are moved.
 */
static int move_locked(struct ipt *t, struct piece *from, struct piece *to, uint64_t g, uint32_t f,
		       unsigned n)
{
	uint32_t base = f & ~(IPT_CLUSTER_FRAMES - 1);
	unsigned which = 0, flagged = 0;
	bool clustered;

	for (unsigned i = 0; i < n; i++) {
		uint64_t w = load_relaxed64(&t->words[f + i]);

		if (!word_maps(w, from->vm, g + i) || find_own(t, to, g + i) != NO_FRAME)
			continue;
		which |= 1u << i;
		flagged |= w & WORD_FLAG ? 1u << i : 0;
	}
	/* Room as singles is room enough, however they will go in. */
	int err = single_reserve(t, to->s, (unsigned)__builtin_popcount(which));
	if (err || !which)
		return err;
	bool opened = stripe_open(&t->stripes[from->s]);
	for (unsigned m = which & ~flagged; m; m &= m - 1) {
		unsigned i = (unsigned)__builtin_ctz(m);

		single_remove(t, from->s, hash_gfn(&t->keys, from->hash, g + i), f + i);
		ipt_step();
	}
	err = insert_elements(t, to, g, f, which, &clustered);
	assert(!err && "room was reserved");
	piece_find(t, from); /* both may be in one stripe, whose clusters may have moved */
	if (flagged)
		cluster_set_full(from->element, false);
	ipt_step();
	for (unsigned i = 0; i < n; i++) {
		if (!(which & 1u << i))
			continue;
		enum ipt_state state = word_state(load_relaxed64(&t->words[f + i]));
		/* The commit point. */
		store_release64(&t->words[f + i],
				word_mapped(state, to->vm, g + i) | (clustered ? WORD_FLAG : 0));
		ipt_step();
	}
	if (flagged && count_words(t, from, base, true) == 0)
		cluster_remove(t, from->s, from->hash, CLUSTER_KEY(from->vm, from->group));
	gather_cluster(t, to, g, f, clustered);
	if (opened)
		stripe_close(&t->stripes[from->s]);
	return err;
}

int index_move(struct ipt *t, uint32_t from, uint32_t to, uint64_t g, uint32_t f, unsigned n)
{
	struct piece a = piece_of(t, from, g), b = piece_of(t, to, g);

	stripe_lock_two(t, a.s, b.s);
	piece_find(t, &a);
	piece_find(t, &b);
	int err = move_locked(t, &a, &b, g, f, n);
	stripe_unlock_two(t, a.s, b.s);
	return err;
}

/* ---- repair ---------------------------------------------------------------------------------- */

/* Put in what a mapped frame's word calls for: a cluster at the first of its words. */
static void rebuild_frame(struct ipt *t, struct piece *p, uint32_t f, uint64_t w)
{
	uint32_t base = f & ~(IPT_CLUSTER_FRAMES - 1);

	if (!(w & WORD_FLAG)) {
		single_insert(t, p->s, hash_gfn(&t->keys, p->hash, word_gfn(w)), f);
		return;
	}
	for (uint32_t i = base; i < f; i++) {
		if (word_in_cluster(load_relaxed64(&t->words[i]), p->vm, p->group))
			return;
	}
	cluster_insert(t, p->s, p->hash, CLUSTER_KEY(p->vm, p->group), base,
		       count_words(t, p, base, true) == IPT_CLUSTER_FRAMES);
}

/* Whoever died here was swapping a template's pages: see stand_begin. There was room for as many singles. */
static void mend_swap(struct ipt *t, uint32_t s)
{
	struct table_stand *swap = &t->header->swap;
	uint32_t n = load_acquire32(&swap->count), f = load_relaxed32(&swap->first);
	uint32_t vm = load_relaxed32(&t->header->recount);
	uint64_t g = load_relaxed64(&swap->gfn);

	if (!n || piece_of(t, vm, g).s != s)
		return;
	for (uint32_t i = 0; i < n; i++)
		store_release64(&t->words[f + i], word_mapped(IPT_PRIVATE, vm, g + i));
	unsigned z = t->config.nodes;
	for (uint32_t slot = zone_start(t, z), mark = zone_mark(t, z); slot < mark; slot++) {
		uint64_t w = load_acquire64(&t->words[slot]);

		if (word_is_mapped(w) && word_vm(w) == vm && word_gfn(w) - g < n)
			store_release64(&t->words[slot], word_spare(vm));
	}
	store_release32(&swap->count, 0);
}

void index_rebuild(struct ipt *t, uint32_t s)
{
	stripe_open(&t->stripes[s]);
	mend_swap(t, s);
	cluster_clear(t, s);
	single_clear(t, s);
	for (unsigned z = 0; z < zone_count(t); z++) {
		uint32_t mark = zone_mark(t, z);

		for (uint32_t f = zone_start(t, z); f < mark; f++) {
			uint64_t w = load_acquire64(&t->words[f]);
			if (!word_is_mapped(w))
				continue;
			struct piece p = piece_of(t, word_vm(w), word_gfn(w));
			if (p.s == s)
				rebuild_frame(t, &p, f, w);
		}
	}
	stripe_close(&t->stripes[s]);
}
