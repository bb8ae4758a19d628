/*
 * The table against a model that is too simple to be wrong: two plain arrays, who has each frame and what
 * each VM has at each gfn. Random operations from fixed seeds, every answer compared, audits in between.
 */
#include "tests/unit/ipt_help.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MODEL_VMS  5
#define MODEL_GFNS 2048

struct world {
	enum ipt_kind kind;
	uint32_t frames;
	unsigned nodes, colours;
	unsigned ops;
	unsigned big;    /* 1 in so many allocations is of any order, the others are small */
	uint64_t spread; /* gfns of the model's are so far apart beyond each 64 */
};

struct model {
	struct ipt *t;
	const struct world *w;
	struct help_random r;
	vmid_t vm[MODEL_VMS];
	uint32_t *at[MODEL_VMS]; /* frame at each gfn, or UINT32_MAX */
	struct {
		enum ipt_state state;
		unsigned vm;
		uint32_t gfn;
		uint32_t pins;
	} * f;
	unsigned done[8];
};

/* The model's gfns are small numbers; the table's lie `spread` apart in pieces of 64. */
static uint64_t real_gfn(const struct model *m, uint32_t g)
{
	return (g / 64) * m->w->spread + g;
}

static bool run_of(const struct model *m, uint32_t f, uint32_t n, enum ipt_state state, unsigned vm)
{
	for (uint32_t i = f; i < f + n; i++) {
		if (i >= m->w->frames || m->f[i].state != state ||
		    (state != IPT_FREE && m->f[i].vm != vm))
			return false;
	}
	return true;
}

/* Is there a free aligned block of that order? Zones are multiples of 512 in these worlds. */
static bool block_exists(const struct model *m, unsigned order)
{
	for (uint32_t f = 0; f < m->w->frames; f += 1u << order) {
		if (run_of(m, f, 1u << order, IPT_FREE, 0))
			return true;
	}
	return false;
}

static void do_alloc(struct model *m, unsigned v)
{
	unsigned order =
		help_below(&m->r, m->w->big) ? help_below(&m->r, 6) : help_below(&m->r, 10);
	struct ipt_hint hint = {INVALID_FRAME, help_below(&m->r, m->w->nodes),
				help_below(&m->r, m->w->colours)};
	bool hinted = help_below(&m->r, 4), goal = help_below(&m->r, 2);
	frame_t f;

	if (goal)
		hint.goal = frame(help_below(&m->r, m->w->frames));
	int err = ipt_alloc(m->t, m->vm[v], order, hinted ? &hint : NULL, &f);
	if (err) {
		cr_assert_eq(err, -ENOMEM);
		cr_assert_not(block_exists(m, order), "order %u", order);
		return;
	}
	cr_assert_eq(f.v % (1u << order), 0);
	cr_assert(run_of(m, f.v, 1u << order, IPT_FREE, 0));
	uint32_t wanted = hint.goal.v & ~((1u << order) - 1);
	if (hinted && goal && run_of(m, wanted, 1u << order, IPT_FREE, 0))
		cr_assert_eq(f.v, wanted, "the goal was free");
	for (uint32_t i = 0; i < 1u << order; i++) {
		m->f[f.v + i].state = IPT_LIMBO;
		m->f[f.v + i].vm = v;
	}
}

/* A frame that is probably in that state and v's. */
static uint32_t some_frame(struct model *m, enum ipt_state state, unsigned v)
{
	uint32_t f = help_below(&m->r, m->w->frames);

	for (uint32_t i = 0; i < 200 && i < m->w->frames; i++) {
		uint32_t at = (f + i) % m->w->frames;

		if (m->f[at].state == state && m->f[at].vm == v)
			return at;
	}
	return f;
}

static uint32_t some_count(struct model *m)
{
	return 1 + (help_below(&m->r, 3) ? help_below(&m->r, 4) : help_below(&m->r, 40));
}

static void do_free(struct model *m, unsigned v)
{
	uint32_t f = some_frame(m, IPT_LIMBO, v), n = some_count(m);
	int want = 0;

	while (n > 1 && help_below(&m->r, 8) && !run_of(m, f, n, IPT_LIMBO, v))
		n--;
	for (uint32_t i = f; i < f + n && i < m->w->frames; i++) {
		if (m->f[i].pins)
			want = -EBUSY;
	}
	if (!run_of(m, f, n, IPT_LIMBO, v))
		want = -EPERM;
	if (f + n > m->w->frames)
		want = -EINVAL;
	cr_assert_eq(ipt_free(m->t, m->vm[v], frame(f), n), want);
	for (uint32_t i = f; !want && i < f + n; i++)
		m->f[i].state = IPT_FREE;
}

static void do_map(struct model *m, unsigned v)
{
	uint32_t f = some_frame(m, IPT_LIMBO, v), n = some_count(m), g;
	int want = 0;

	while (n > 1 && help_below(&m->r, 8) && !run_of(m, f, n, IPT_LIMBO, v))
		n--;
	g = help_below(&m->r, MODEL_GFNS - 64);
	if (help_below(&m->r, 4)) /* congruent with its frame, mostly */
		g = (g & ~63u) | (f & 63);
	if (g / 64 != (g + n - 1) / 64) /* the model's gfns are consecutive within 64 */
		n = 64 - g % 64;
	for (uint32_t i = g; i < g + n; i++) {
		if (m->at[v][i] != UINT32_MAX)
			want = -EEXIST;
	}
	if (!run_of(m, f, n, IPT_LIMBO, v))
		want = -EPERM;
	if (f + n > m->w->frames)
		want = -EINVAL;
	cr_assert_eq(ipt_map(m->t, m->vm[v], gfn(real_gfn(m, g)), frame(f), n), want);
	for (uint32_t i = 0; !want && i < n; i++) {
		m->at[v][g + i] = f + i;
		m->f[f + i].state = IPT_PRIVATE;
		m->f[f + i].gfn = g + i;
	}
}

struct unmapping {
	struct model *m;
	unsigned v;
	uint32_t frames;
};

static void unmapped(void *ctx, gfn_t g, frame_t f, uint32_t count)
{
	struct unmapping *u = ctx;

	for (uint32_t i = 0; i < count; i++) {
		uint32_t mine = u->m->f[f.v + i].gfn;

		cr_assert_eq(u->m->f[f.v + i].state, IPT_PRIVATE);
		cr_assert_eq(u->m->f[f.v + i].vm, u->v);
		cr_assert_eq(real_gfn(u->m, mine), g.v + i);
		cr_assert_eq(u->m->at[u->v][mine], f.v + i);
		u->m->at[u->v][mine] = UINT32_MAX;
		u->m->f[f.v + i].state = IPT_LIMBO;
	}
	u->frames += count;
}

static void do_unmap(struct model *m, unsigned v)
{
	uint32_t g = help_below(&m->r, MODEL_GFNS), n = some_count(m), want = 0;
	struct unmapping u = {m, v, 0};

	if (g / 64 != (g + n - 1) / 64)
		n = 64 - g % 64;
	for (uint32_t i = g; i < g + n; i++)
		want += m->at[v][i] != UINT32_MAX;
	cr_assert_eq(ipt_unmap(m->t, m->vm[v], gfn(real_gfn(m, g)), n, unmapped, &u), 0);
	cr_assert_eq(u.frames, want);
}

static void do_lookups(struct model *m)
{
	struct ipt_key keys[40];
	uint32_t want[40];
	frame_t out[40];
	unsigned n = 1 + help_below(&m->r, 40);

	for (unsigned i = 0; i < n; i++) {
		unsigned v = help_below(&m->r, MODEL_VMS);
		uint32_t g = help_below(&m->r, MODEL_GFNS);

		keys[i] = (struct ipt_key){m->vm[v], gfn(real_gfn(m, g))};
		want[i] = m->at[v][g];
	}
	ipt_lookup_batch(m->t, keys, out, n);
	for (unsigned i = 0; i < n; i++)
		cr_assert_eq(out[i].v, want[i]);
	for (unsigned i = 0; i < n; i += 3)
		cr_assert_eq(ipt_lookup(m->t, keys[i].vm, keys[i].gfn).v, want[i]);
}

static void do_run(struct model *m, unsigned v)
{
	uint32_t g = help_below(&m->r, MODEL_GFNS), max = help_below(&m->r, 64), n = 0;
	frame_t f;

	if (max > 64 - g % 64)
		max = 64 - g % 64;
	while (n < max && m->at[v][g] != UINT32_MAX && m->at[v][g + n] == m->at[v][g] + n)
		n++;
	cr_assert_eq(ipt_lookup_run(m->t, m->vm[v], gfn(real_gfn(m, g)), max, &f), n);
	cr_assert_eq(f.v, n ? m->at[v][g] : UINT32_MAX);
}

static void do_owner(struct model *m)
{
	uint32_t f = help_below(&m->r, m->w->frames);
	struct ipt_owner o;

	cr_assert_eq(ipt_owner(m->t, frame(f), &o), 0);
	cr_assert_eq(o.state, m->f[f].state);
	cr_assert_eq(o.vm.v, o.state == IPT_FREE ? 0 : m->vm[m->f[f].vm].v);
	cr_assert_eq(o.gfn.v, o.state == IPT_PRIVATE ? real_gfn(m, m->f[f].gfn) : UINT64_MAX);
	cr_assert_eq(o.pins, m->f[f].pins);
}

static void do_pin(struct model *m, unsigned v)
{
	uint32_t g = help_below(&m->r, MODEL_GFNS), want = m->at[v][g];
	frame_t f;

	if (help_below(&m->r, 2)) {
		int err = ipt_pin(m->t, m->vm[v], gfn(real_gfn(m, g)), &f);

		cr_assert_eq(err, want == UINT32_MAX ? -ENOENT : 0);
		cr_assert_eq(f.v, want);
		if (!err)
			m->f[f.v].pins++;
		return;
	}
	for (uint32_t i = help_below(&m->r, m->w->frames), n = 0; n < 300; n++, i++) {
		if (m->f[i % m->w->frames].pins) {
			m->f[i % m->w->frames].pins--;
			ipt_unpin(m->t, frame(i % m->w->frames));
			return;
		}
	}
}

static void do_reap(struct model *m, unsigned v)
{
	char name[IPT_NAME_LEN];

	help_reap(m->t, m->vm[v]);
	for (uint32_t f = 0; f < m->w->frames; f++) {
		if (m->f[f].state != IPT_FREE && m->f[f].vm == v) {
			m->f[f].state = IPT_FREE;
			m->f[f].pins = 0;
		}
	}
	memset(m->at[v], 0xff, MODEL_GFNS * sizeof(uint32_t));
	snprintf(name, sizeof(name), "vm%u", v);
	m->vm[v] = help_vm(m->t, name);
}

static void check_counts(struct model *m)
{
	uint32_t have[MODEL_VMS][IPT_NSTATES] = {0}, nfree = 0;
	struct ipt_vm_info info;

	for (uint32_t f = 0; f < m->w->frames; f++) {
		if (m->f[f].state == IPT_FREE)
			nfree++;
		else
			have[m->f[f].vm][m->f[f].state]++;
	}
	cr_assert_eq(ipt_free_frames(m->t), nfree);
	for (unsigned v = 0; v < MODEL_VMS; v++) {
		cr_assert_eq(ipt_vm_info(m->t, m->vm[v], &info), 0);
		cr_assert_eq(info.frames[IPT_LIMBO], have[v][IPT_LIMBO]);
		cr_assert_eq(info.frames[IPT_PRIVATE], have[v][IPT_PRIVATE]);
	}
	int largest = ipt_largest_order(m->t);
	cr_assert(largest < 0 || block_exists(m, (unsigned)largest));
	cr_assert(largest == 9 || !block_exists(m, (unsigned)(largest + 1)));
	help_audit(m->t);
}

static void step(struct model *m)
{
	unsigned v = help_below(&m->r, MODEL_VMS), what = help_below(&m->r, 100);

	if (what < 14)
		do_alloc(m, v);
	else if (what < 24)
		do_free(m, v);
	else if (what < 44)
		do_map(m, v);
	else if (what < 58)
		do_unmap(m, v);
	else if (what < 72)
		do_lookups(m);
	else if (what < 80)
		do_run(m, v);
	else if (what < 90)
		do_owner(m);
	else
		do_pin(m, v);
	if (help_below(&m->r, 20000) == 0)
		do_reap(m, v);
}

static void run_world(const struct world *w)
{
	struct model m = {.t = help_table_of(w->kind, w->frames, w->nodes, w->colours), .w = w};

	m.f = calloc(w->frames, sizeof(*m.f));
	cr_assert_not_null(m.f);
	m.r.s = w->frames * 31 + w->nodes * 7 + w->colours;
	for (unsigned v = 0; v < MODEL_VMS; v++) {
		char name[IPT_NAME_LEN];

		snprintf(name, sizeof(name), "vm%u", v);
		m.vm[v] = help_vm(m.t, name);
		m.at[v] = malloc(MODEL_GFNS * sizeof(uint32_t));
		memset(m.at[v], 0xff, MODEL_GFNS * sizeof(uint32_t));
	}
	unsigned ops = UNDER_SLOW ? w->ops / 10 : w->ops;
	for (unsigned i = 1; i <= ops; i++) {
		step(&m);
		if (i % (ops / 50) == 0)
			check_counts(&m);
	}
	for (unsigned v = 0; v < MODEL_VMS; v++) {
		help_reap(m.t, m.vm[v]);
		free(m.at[v]);
	}
	cr_assert_eq(ipt_free_frames(m.t), w->frames);
	help_audit(m.t);
	free(m.f);
	ipt_detach(m.t);
}

#define WORLD(name, ...)                                     \
	Test(ipt_model, name)                                \
	{                                                    \
		static const struct world w = {__VA_ARGS__}; \
		run_world(&w);                               \
	}

WORLD(small_index, IPT_INDEX, 600, 1, 1, 600000, 4, 0)
WORLD(small_radix, IPT_RADIX, 600, 1, 1, 300000, 4, 0)
WORLD(middling_index, IPT_INDEX, 5000, 1, 1, 800000, 3, 1 << 20)
WORLD(middling_radix, IPT_RADIX, 5000, 1, 1, 400000, 3, 1 << 12)
WORLD(nodes_index, IPT_INDEX, 6 * 512, 3, 1, 500000, 4, 1 << 16)
WORLD(colours_index, IPT_INDEX, 4096, 1, 16, 500000, 6, 1 << 16)
WORLD(nodes_and_colours_radix, IPT_RADIX, 8192, 4, 8, 300000, 4, 1 << 9)
WORLD(large_index, IPT_INDEX, 1 << 17, 2, 4, 300000, 2, 1 << 24)
