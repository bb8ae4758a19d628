/*
 * Sharing against a model that is too simple to be wrong: for each VM and gfn what stands there, a
 * frame, an alias (of a frame, or of a shared page that is out), a tomb or a page that is out, and a parent. Random operations from fixed seeds, every answer compared,
 * audits in between.
 */
#include "tests/unit/ipt_help.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define VMS  12
#define GFNS 192
#define NONE UINT32_MAX

#define OUTS 40 /* shared pages that are out, at most: like frames, numbered behind them */

#define FILES 2
#define PAGES 64

enum what { NOTHING, FRAME, ALIAS, TOMB, AWAY };

struct vm {
	bool used, template, dying;
	vmid_t id;
	int parent; /* -1 for none */
	unsigned nregions;
	struct {
		uint32_t first, count, file, page;
	} region[IPT_MAX_REGIONS];
	struct {
		enum what what;
		uint32_t f; /* frame; of what is away the sum */
		uint32_t where, bytes;
	} at[GFNS];
};

struct share {
	struct ipt *t;
	struct help_random r;
	uint32_t frames;
	struct vm vm[VMS];
	struct {
		vmid_t id;
		uint32_t at[PAGES]; /* frame, or NONE */
	} file[FILES];
	struct {
		enum ipt_state state;
		int vm;
		uint32_t aliases, pins;
		struct ipt_out out;
	} * f;
	uint32_t packed_pages, blocks;
	uint8_t *granule, *block; /* in use */
	uint32_t sum;             /* of the page that goes out next */
	unsigned serial;
	unsigned did[24];
};

/* ---- the model's answers --------------------------------------------------------------------- */

/* Where v's own region has g's page, or NULL. */
static const uint32_t *page_of(const struct share *m, int v, uint32_t g)
{
	for (unsigned i = 0; i < m->vm[v].nregions; i++) {
		uint32_t off = g - m->vm[v].region[i].first;

		if (off < m->vm[v].region[i].count)
			return &m->file[m->vm[v].region[i].file].at[m->vm[v].region[i].page + off];
	}
	return NULL;
}

static struct ipt_place resolve(const struct share *m, int v, uint32_t g)
{
	struct ipt_place p = {IPT_VOID, INVALID_VMID, INVALID_FRAME};

	for (int at = v; at >= 0; at = m->vm[at].parent) {
		enum what what = m->vm[at].at[g].what;

		if (what == NOTHING) {
			const uint32_t *page = page_of(m, at, g);

			if (page && *page != NONE)
				return (struct ipt_place){IPT_FILE_PAGE, m->vm[at].id,
							  frame(*page)};
			if (page)
				return p;
			continue;
		}
		if (what == TOMB)
			return p;
		bool shared = what == ALIAS && m->vm[at].at[g].f >= m->frames;
		p.at = shared ? INVALID_VMID : m->vm[at].id;
		if (what == AWAY || shared) {
			p.kind = IPT_AWAY;
			return p;
		}
		p.frame = frame(m->vm[at].at[g].f);
		p.kind = at != v ? IPT_INHERITED : what == FRAME ? IPT_OWN : IPT_MERGED;
		return p;
	}
	return p;
}

/* Is there something beneath v's entries at g, or may there be once a file is read? */
static bool beneath(const struct share *m, int v, uint32_t g)
{
	for (int at = v; at >= 0; at = m->vm[at].parent) {
		if (at != v && m->vm[at].at[g].what != NOTHING)
			return m->vm[at].at[g].what != TOMB;
		if (page_of(m, at, g))
			return true;
	}
	return false;
}

static int children(const struct share *m, int v)
{
	int n = 0;

	for (int i = 0; i < VMS; i++)
		n += m->vm[i].used && m->vm[i].parent == v;
	return n;
}

/* There are as many slots as frames, or four times as many. */
static bool slots_left(const struct share *m, uint32_t more)
{
	uint32_t used = more, slots = m->frames * (m->packed_pages || m->blocks ? 4 : 1);

	for (int v = 0; v < VMS; v++) {
		for (uint32_t g = 0; m->vm[v].used && g < GFNS; g++)
			used += m->vm[v].at[g].what >= ALIAS;
	}
	for (uint32_t i = m->frames; i < m->frames + OUTS; i++)
		used += m->f[i].aliases > 0;
	return used < slots;
}

/* ---- the model's space ----------------------------------------------------------------------- */

static uint32_t granules_of(uint32_t bytes)
{
	return (bytes + IPT_GRANULE - 1) / IPT_GRANULE;
}

/* Is there space for so many bytes, be it that kind? */
static bool space_left(const struct share *m, uint32_t where, uint32_t bytes)
{
	uint32_t n = granules_of(bytes), free = 0;

	if (!bytes)
		return true;
	for (uint32_t i = 0; where & IPT_IN_FILE && i < m->blocks; i++) {
		if (!m->block[i])
			return true;
	}
	for (uint32_t i = 0; !(where & IPT_IN_FILE) && i < m->packed_pages * IPT_GRANULES; i++) {
		free = m->granule[i] ? 0 : i % IPT_GRANULES ? free + 1 : 1;
		if (free == n)
			return true;
	}
	return false;
}

/* What the page takes is used or free from now on, and was the other before. */
static void space_is(struct share *m, uint32_t where, uint32_t bytes, bool used)
{
	uint32_t n = where & IPT_IN_FILE ? 1 : granules_of(bytes), at = where & ~IPT_IN_FILE;
	uint8_t *what = where & IPT_IN_FILE ? m->block : m->granule;

	if (!bytes) {
		cr_assert_eq(where, IPT_NOWHERE);
		return;
	}
	cr_assert_leq(at + n, where & IPT_IN_FILE ? m->blocks : m->packed_pages * IPT_GRANULES);
	cr_assert(where & IPT_IN_FILE || at % IPT_GRANULES + n <= IPT_GRANULES);
	for (uint32_t i = at; i < at + n; i++) {
		cr_assert_neq(what[i], used, "%#x", where);
		what[i] = used;
	}
}

static int some_vm(struct share *m, bool template)
{
	int from = (int)help_below(&m->r, VMS);

	for (int i = 0; i < VMS; i++) {
		struct vm *v = &m->vm[(from + i) % VMS];

		if (v->used && v->template == template)
			return (from + i) % VMS;
	}
	return -1;
}

static int unused_vm(const struct share *m)
{
	for (int i = 0; i < VMS; i++) {
		if (!m->vm[i].used)
			return i;
	}
	return -1;
}

static uint32_t some_gfns(struct share *m, uint32_t *count)
{
	uint32_t g = help_below(&m->r, GFNS);

	if (help_below(&m->r, 3) == 0) {
		g &= ~15u;
		*count = help_below(&m->r, 2) ? 16 : 32;
	} else {
		*count = 1 + help_below(&m->r, help_below(&m->r, 4) ? 4 : 40);
	}
	if (*count > GFNS - g)
		*count = GFNS - g;
	return g;
}

/* ---- operations ------------------------------------------------------------------------------ */

/* Is what v has at g a frame that goes to its limbo, if that goes? */
static bool loses(const struct share *m, int v, uint32_t g)
{
	uint32_t f = m->vm[v].at[g].f;
	enum what what = m->vm[v].at[g].what;

	return what == FRAME || (what == ALIAS && f < m->frames && m->f[f].aliases == 1);
}

/* What v has at g goes; a frame to its limbo. */
static void lose(struct share *m, int v, uint32_t g)
{
	uint32_t f = m->vm[v].at[g].f;
	enum what what = m->vm[v].at[g].what;

	m->vm[v].at[g].what = NOTHING;
	if (what == AWAY)
		space_is(m, m->vm[v].at[g].where, m->vm[v].at[g].bytes, false);
	if (what == ALIAS && --m->f[f].aliases)
		return;
	if (what == ALIAS && f >= m->frames) {
		space_is(m, m->f[f].out.where, m->f[f].out.bytes, false);
	} else if (what == FRAME || what == ALIAS) {
		m->f[f].state = IPT_LIMBO;
		m->f[f].vm = v;
	}
}

struct told {
	struct share *m;
	uint32_t f[GFNS]; /* at each gfn, or NONE */
};

static void tell(void *ctx, gfn_t g, frame_t f, uint32_t count)
{
	struct told *told = ctx;

	for (uint32_t i = 0; i < count; i++) {
		cr_assert_eq(told->f[g.v + i], NONE, "told twice");
		told->f[g.v + i] = f.v + i;
	}
}

/* What v's [g, g + n) becomes `what`; `told` must say which frames went to limbo by that. */
static void becomes(struct share *m, int v, uint32_t g, uint32_t n, enum what what, uint32_t f,
		    const struct told *told)
{
	for (uint32_t i = 0; i < GFNS; i++) {
		uint32_t old = NONE;

		if (i >= g && i < g + n) {
			old = loses(m, v, i) ? m->vm[v].at[i].f : NONE;
			lose(m, v, i);
			m->vm[v].at[i].what = what;
			m->vm[v].at[i].f = f + (i - g);
			if (what == FRAME) {
				m->f[f + (i - g)].state = IPT_PRIVATE;
				m->f[f + (i - g)].vm = v;
			}
		}
		if (told)
			cr_assert_eq(told->f[i], old, "gfn %u: told %d, not %d", i, (int)told->f[i],
				     (int)old);
	}
}

/* The first gfn from g on, or else any, at which n of v's are that, aligned. */
static uint32_t find(const struct share *m, int v, uint32_t g, uint32_t n, enum what what)
{
	for (uint32_t i = 0; i < GFNS; i += n) {
		uint32_t at = (g / n * n + i) % GFNS, k = 0;

		while (k < n && m->vm[v].at[at + k].what == what)
			k++;
		if (k == n)
			return at;
	}
	return g;
}

static void do_map(struct share *m, int v, bool over)
{
	static const unsigned orders[] = {0, 0, 1, 3, 4, 4, 5};
	unsigned order = orders[help_below(&m->r, 7)];
	uint32_t g = help_below(&m->r, GFNS >> order) << order, n = 1u << order;
	struct ipt_hint hint = {frame(help_below(&m->r, m->frames)), 0, 0};
	struct told told = {.m = m};
	bool back = false;
	int want = 0;
	frame_t f;

	memset(told.f, 0xff, sizeof(told.f));
	if (over && help_below(&m->r, 2))
		g = find(m, v, g, 1, AWAY) >> order << order;
	if (help_below(&m->r, 4) == 0 && g + n < GFNS)
		g++; /* not congruent */
	if (ipt_alloc(m->t, m->vm[v].id, order, help_below(&m->r, 2) ? &hint : NULL, &f))
		return;
	for (uint32_t i = 0; i < n; i++) {
		enum what what = m->vm[v].at[g + i].what;

		if (what == FRAME || ((what == ALIAS || what == AWAY) && !over))
			want = -EEXIST;
		back |= what == AWAY;
		cr_assert_eq(m->f[f.v + i].state, IPT_FREE);
		m->f[f.v + i].state = IPT_LIMBO;
		m->f[f.v + i].vm = v;
	}
	if (over)
		cr_assert_eq(ipt_map_over(m->t, m->vm[v].id, gfn(g), f, n, tell, &told), want);
	else
		cr_assert_eq(ipt_map(m->t, m->vm[v].id, gfn(g), f, n), want);
	if (!want)
		becomes(m, v, g, n, FRAME, f.v, &told);
	m->did[over] += !want;
	m->did[14] += !want && back;
}

static void do_unmap(struct share *m, int v)
{
	uint32_t n, g = some_gfns(m, &n);
	struct told told = {.m = m};

	memset(told.f, 0xff, sizeof(told.f));
	cr_assert_eq(ipt_unmap(m->t, m->vm[v].id, gfn(g), n, tell, &told), 0);
	becomes(m, v, g, n, NOTHING, 0, &told);
}

static void do_drop(struct share *m, int v)
{
	uint32_t n, g = some_gfns(m, &n), done;
	struct told told = {.m = m};

	memset(told.f, 0xff, sizeof(told.f));
	int err = ipt_drop(m->t, m->vm[v].id, gfn(g), n, &done, tell, &told);
	cr_assert(err == 0 ? done == n : err == -ENOSPC && done < n);
	for (uint32_t i = 0; i < GFNS; i++) {
		uint32_t f = m->vm[v].at[i].f;
		enum what what = m->vm[v].at[i].what;
		bool in = i >= g && i < g + done;

		cr_assert_eq(told.f[i], in && loses(m, v, i) ? f : NONE);
		if (!in)
			continue;
		lose(m, v, i);
		/* What was a tomb stays one, but in a VM that has nobody to see anything of. */
		bool stays = what == TOMB && (m->vm[v].parent >= 0 || m->vm[v].nregions);
		m->vm[v].at[i].what = stays || beneath(m, v, i) ? TOMB : NOTHING;
		m->did[2]++;
	}
	if (err) {
		cr_assert_not(slots_left(m, 0));
		m->did[10]++;
	}
}

static void do_publish(struct share *m, int v)
{
	uint32_t n, g = some_gfns(m, &n), done, want = 0;
	int err = 0;

	for (; want < n && !err; want += !err) {
		uint32_t f = m->vm[v].at[g + want].f;

		if (m->vm[v].at[g + want].what != FRAME)
			err = -ENOENT;
		else if (m->f[f].pins)
			err = -EBUSY;
		else if (!slots_left(m, want))
			err = -ENOSPC;
	}
	cr_assert_eq(ipt_publish(m->t, m->vm[v].id, gfn(g), n, &done), err);
	cr_assert_eq(done, want);
	for (uint32_t i = g; i < g + done; i++) {
		m->vm[v].at[i].what = ALIAS;
		m->f[m->vm[v].at[i].f].state = IPT_SHARED;
		m->f[m->vm[v].at[i].f].aliases = 1;
	}
	m->did[3] += done;
}

static void do_merge(struct share *m, int v)
{
	uint32_t n, g = some_gfns(m, &n), done, want = 0, f = help_below(&m->r, m->frames);
	struct told told = {.m = m};
	int err = 0;

	memset(told.f, 0xff, sizeof(told.f));
	for (uint32_t i = 0; i < m->frames && m->f[f].state != IPT_SHARED; i++)
		f = (f + 1) % m->frames;
	if (n > m->frames - f)
		n = m->frames - f;
	for (; want < n && !err; want += !err) {
		uint32_t old = m->vm[v].at[g + want].f;

		if (m->vm[v].at[g + want].what != FRAME)
			err = -ENOENT;
		else if (f + want == old)
			err = -ESTALE;
		else if (m->f[old].pins)
			err = -EBUSY;
		else if (!slots_left(m, want))
			err = -ENOSPC;
		else if (m->f[f + want].state != IPT_SHARED)
			err = -ESTALE;
	}
	cr_assert_eq(ipt_merge(m->t, m->vm[v].id, gfn(g), frame(f), n, &done, tell, &told), err);
	cr_assert_eq(done, want);
	for (uint32_t i = 0; i < done; i++)
		m->f[f + i].aliases++;
	becomes(m, v, g, done, ALIAS, f, &told);
	m->did[4] += done;
}

/* ---- pages that go out ----------------------------------------------------------------------- */

/* Claim one page, or see that it can't be. */
static bool claim_one(struct share *m, int v, struct ipt_out *out, uint32_t *slot, uint32_t spare)
{
	bool can = slots_left(m, spare) && space_left(m, out->where, out->bytes);

	cr_assert_eq(ipt_out_claim(m->t, m->vm[v].id, out, 1, slot), can ? 0 : -ENOSPC);
	if (can)
		space_is(m, out->where, out->bytes, true);
	m->did[17] += !can;
	return can;
}

/* Claim n pages at once, or as many as go one by one. How many they are. */
static uint32_t claim(struct share *m, int v, struct ipt_out *out, uint32_t n, uint32_t *slots)
{
	struct ipt_out wanted[IPT_CLUSTER_FRAMES];
	uint32_t got = 0;

	memcpy(wanted, out, n * sizeof(*out));
	int err = ipt_out_claim(m->t, m->vm[v].id, out, n, slots);
	if (!err) {
		cr_assert(slots_left(m, n - 1));
		for (uint32_t i = 0; i < n; i++) {
			cr_assert(out[i].bytes == wanted[i].bytes && out[i].sum == wanted[i].sum);
			if (out[i].bytes)
				cr_assert(!((out[i].where ^ wanted[i].where) & IPT_IN_FILE));
			space_is(m, out[i].where, out[i].bytes, true);
		}
		return n;
	}
	cr_assert_eq(err, -ENOSPC);
	memcpy(out, wanted, n * sizeof(*out));
	while (got < n && claim_one(m, v, &out[got], &slots[got], got))
		got++;
	m->did[18]++;
	return got;
}

static void do_out(struct share *m, int v)
{
	uint32_t n, g = some_gfns(m, &n), done, want = 0, slots[IPT_CLUSTER_FRAMES];
	uint32_t most = help_below(&m->r, 2) ? PAGE_SIZE : 300, serial = m->sum;
	bool file = help_below(&m->r, 3) == 0, space = m->packed_pages || m->blocks;
	struct ipt_out out[IPT_CLUSTER_FRAMES];
	struct told told = {.m = m};
	int err = 0;

	memset(told.f, 0xff, sizeof(told.f));
	if (help_below(&m->r, 4) == 0) {
		n = 16;
		g = find(m, v, g, n, FRAME);
	}
	n = n < 16 - g % 16 ? n : 16 - g % 16;
	for (uint32_t i = 0; i < n; i++) {
		bool zero = help_below(&m->r, space ? 10 : 2000) < (space ? 1 : 1999);

		if (help_below(&m->r, 30) == 0)
			file = !file;
		out[i] = (struct ipt_out){file ? IPT_IN_FILE : 0,
					  zero ? 0 : 1 + help_below(&m->r, most), serial + i};
	}
	n = claim(m, v, out, n, slots);
	if (!n)
		return;
	if (help_below(&m->r, 30)) {
		for (; want < n && !err; want += !err) {
			uint32_t f = m->vm[v].at[g + want].f;

			if (m->vm[v].at[g + want].what != FRAME)
				err = -ENOENT;
			else if (m->f[f].pins)
				err = -EBUSY;
		}
		cr_assert_eq(
			ipt_out_commit(m->t, m->vm[v].id, gfn(g), slots, n, &done, tell, &told),
			err);
		cr_assert_eq(done, want);
	}
	becomes(m, v, g, want, AWAY, serial, &told);
	for (uint32_t i = 0; i < want; i++) {
		m->vm[v].at[g + i].where = out[i].where;
		m->vm[v].at[g + i].bytes = out[i].bytes;
	}
	m->sum += want;
	m->did[15] += want;
	m->did[16] += want == 16;
	ipt_out_cancel(m->t, m->vm[v].id, slots + want, n - want);
	for (uint32_t i = want; i < n; i++)
		space_is(m, out[i].where, out[i].bytes, false);
}

/* What was an alias of f is one of `to`. */
static void aliases_are(struct share *m, uint32_t f, uint32_t to)
{
	for (int v = 0; v < VMS; v++) {
		for (uint32_t g = 0; m->vm[v].used && g < GFNS; g++) {
			if (m->vm[v].at[g].what == ALIAS && m->vm[v].at[g].f == f)
				m->vm[v].at[g].f = to;
		}
	}
	m->f[to].aliases = m->f[f].aliases;
	m->f[f].aliases = 0;
}

/* What goes wrong with a page on its way out. */
struct trouble {
	bool keep, settle, clean;
};

static int keep(void *ctx, uint32_t i, const struct ipt_out *where)
{
	const struct trouble *t = ctx;

	cr_assert(i == 0 && where->bytes);
	return t->keep ? -EIO : 0;
}

static int settle(void *ctx)
{
	const struct trouble *t = ctx;

	return t->settle ? -EBUSY : 0;
}

static int clean(void *ctx, frame_t first, uint32_t n)
{
	const struct trouble *t = ctx;

	(void)first;
	cr_assert_eq(n, 1);
	return t->clean ? -ENOMEM : 0;
}

static const struct ipt_out_ops out_ops = {keep, settle, clean};

static void do_shared_out(struct share *m)
{
	uint32_t f = help_below(&m->r, m->frames), to = m->frames;
	uint32_t bytes = help_below(&m->r, 4) ? 1 + help_below(&m->r, 3000) : 0;
	struct trouble trouble = {bytes && help_below(&m->r, 8) == 0, help_below(&m->r, 8) == 0,
				  help_below(&m->r, 8) == 0};
	struct ipt_out out = {help_below(&m->r, 2) ? IPT_IN_FILE : 0, bytes, m->sum++};
	struct ipt_sharer s;

	for (uint32_t i = 0; i < m->frames && m->f[f].state != IPT_SHARED; i++)
		f = (f + 1) % m->frames;
	while (to < m->frames + OUTS && m->f[to].aliases)
		to++;
	if (to == m->frames + OUTS)
		return;
	cr_assert_eq(ipt_sharer(m->t, frame(f), &s), m->f[f].state == IPT_SHARED ? 0 : -ENOENT);
	if (m->f[f].state != IPT_SHARED)
		return;
	int want = !slots_left(m, 0) || !space_left(m, out.where, out.bytes) ? -ENOSPC
		   : trouble.keep                                            ? -EIO
		   : m->f[f].pins || trouble.settle                          ? -EBUSY
		   : trouble.clean                                           ? -ENOMEM
									     : 0;
	bool stale = want != -ENOSPC && want != -EIO && help_below(&m->r, 10) == 0;
	want = stale ? -ESTALE : want;
	cr_assert_eq(ipt_shared_out(m->t, frame(f), s.stamp + stale, &out, &out_ops, &trouble),
		     want);
	m->did[19] += want != 0;
	if (want)
		return;
	space_is(m, out.where, out.bytes, true);
	m->f[to].out = out;
	aliases_are(m, f, to);
	m->f[f].state = IPT_FREE;
	m->did[20]++;
}

static void do_shared_in(struct share *m, int v)
{
	uint32_t g = help_below(&m->r, GFNS), is = 0;
	frame_t f;

	for (uint32_t i = 0; i < GFNS && !is; i++, g = is ? g : (g + 1) % GFNS)
		for (int at = v; at >= 0 && !is; at = m->vm[at].parent) {
			bool decides = m->vm[at].at[g].what != NOTHING || page_of(m, at, g);

			if (m->vm[at].at[g].what == ALIAS && m->vm[at].at[g].f >= m->frames)
				is = m->vm[at].at[g].f;
			else if (decides)
				break;
		}
	if (ipt_alloc(m->t, m->vm[v].id, 0, NULL, &f))
		return;
	m->f[f.v].state = IPT_LIMBO;
	m->f[f.v].vm = v;
	cr_assert_eq(ipt_shared_in(m->t, m->vm[v].id, gfn(g), f), is ? 0 : -ESTALE);
	if (!is)
		return;
	space_is(m, m->f[is].out.where, m->f[is].out.bytes, false);
	aliases_are(m, is, f.v);
	m->f[f.v].state = IPT_SHARED;
	m->did[21]++;
}

static int see_trim(void *ctx, uint32_t first, uint32_t n)
{
	struct share *m = ctx;

	for (uint32_t i = first * IPT_GRANULES; i < (first + n) * IPT_GRANULES; i++) {
		cr_assert_eq(m->granule[i], 0);
		m->granule[i] = 2; /* told */
	}
	return 0;
}

/* Just those pages of which nothing is in use are told, once. */
static void do_trim(struct share *m)
{
	uint32_t first = help_below(&m->r, m->packed_pages + 2), n = help_below(&m->r, 20);

	cr_assert_eq(ipt_packed_trim(m->t, first, n, see_trim, m), 0);
	for (uint32_t p = 0; p < m->packed_pages; p++) {
		uint8_t *at = &m->granule[p * IPT_GRANULES], all = 0;

		for (uint32_t i = 0; i < IPT_GRANULES; i++)
			all |= at[i];
		if (p >= first && p - first < n)
			cr_assert_neq(all, 0, "page %u was not told", p);
		else
			cr_assert_lt(all, 2, "page %u was told", p);
		if (all == 2)
			memset(at, 0, IPT_GRANULES);
	}
}

static void do_free(struct share *m, int v)
{
	for (uint32_t f = 0; f < m->frames; f++) {
		if (m->f[f].state != IPT_LIMBO || m->f[f].vm != v)
			continue;
		cr_assert_eq(ipt_free(m->t, m->vm[v].id, frame(f), 1), m->f[f].pins ? -EBUSY : 0);
		if (!m->f[f].pins)
			m->f[f].state = IPT_FREE;
	}
}

static void do_pin(struct share *m, int v)
{
	uint32_t g = help_below(&m->r, GFNS);
	struct ipt_place want = resolve(m, v, g);
	frame_t f;

	cr_assert_eq(ipt_pin(m->t, m->vm[v].id, gfn(g), &f), frame_valid(want.frame) ? 0 : -ENOENT);
	cr_assert_eq(f.v, want.frame.v);
	if (frame_valid(want.frame))
		m->f[f.v].pins++;
}

static void do_unpin(struct share *m)
{
	for (uint32_t f = 0; f < m->frames; f++) {
		if (m->f[f].pins && help_below(&m->r, 3)) {
			m->f[f].pins--;
			ipt_unpin(m->t, frame(f));
		}
	}
}

static void name_next(struct share *m, char *name)
{
	snprintf(name, IPT_NAME_LEN, "vm-%u", m->serial++);
}

static void vm_new(struct share *m, int i, vmid_t id, int parent)
{
	m->vm[i] = (struct vm){.used = true, .id = id, .parent = parent};
}

static void do_freeze(struct share *m, int v)
{
	int i = unused_vm(m);
	char name[IPT_NAME_LEN];
	vmid_t on;

	if (i < 0)
		return;
	name_next(m, name);
	cr_assert_eq(ipt_vm_freeze(m->t, m->vm[v].id, name, &on), 0);
	m->vm[v].template = true;
	vm_new(m, i, on, v);
	m->did[5]++;
}

static void do_clone(struct share *m, int template)
{
	int i = unused_vm(m);
	char name[IPT_NAME_LEN];
	vmid_t id;

	if (i < 0)
		return;
	name_next(m, name);
	int err = ipt_vm_add(m->t, name, template <0 ? INVALID_VMID : m->vm[template].id, &id);
	if (template >= 0 && m->vm[template].dying) {
		cr_assert_eq(err, -ENOENT);
		return;
	}
	cr_assert_eq(err, 0);
	vm_new(m, i, id, template);
	m->did[6]++;
}

static void do_region(struct share *m, int v)
{
	uint32_t n, g = some_gfns(m, &n), file = help_below(&m->r, FILES);
	uint32_t page = help_below(&m->r, PAGES);
	int want = 0;

	n = n < PAGES - page ? n : PAGES - page;
	for (uint32_t i = 0; i < GFNS; i++) {
		if (m->vm[v].at[i].what != NOTHING)
			return; /* it is too late for that */
	}
	for (unsigned i = 0; i < m->vm[v].nregions; i++) {
		if (g < m->vm[v].region[i].first + m->vm[v].region[i].count &&
		    m->vm[v].region[i].first < g + n)
			want = -EEXIST;
	}
	if (!want && m->vm[v].nregions == IPT_MAX_REGIONS)
		want = -ENOSPC;
	cr_assert_eq(ipt_vm_region(m->t, m->vm[v].id, gfn(g), n, m->file[file].id, page), want);
	if (want)
		return;
	unsigned i = m->vm[v].nregions++;
	m->vm[v].region[i].first = g;
	m->vm[v].region[i].count = n;
	m->vm[v].region[i].file = file;
	m->vm[v].region[i].page = page;
	m->did[11]++;
}

/* Frames of v's become pages, whole pieces of 16 pages. */
static void do_file_map(struct share *m, int v)
{
	unsigned order = help_below(&m->r, 6), i = help_below(&m->r, FILES);
	uint32_t page = help_below(&m->r, PAGES), n = 1u << order, done, want = 0;
	int err = 0;
	frame_t f;

	if (ipt_alloc(m->t, m->vm[v].id, order, NULL, &f))
		return;
	n = n < PAGES - page ? n : PAGES - page;
	while (want < n && !err) {
		uint32_t piece = 16 - (page + want) % 16;

		piece = piece < n - want ? piece : n - want;
		for (uint32_t k = 0; k < piece; k++) {
			if (m->file[i].at[page + want + k] != NONE)
				err = -EEXIST;
		}
		want += err ? 0 : piece;
	}
	cr_assert_eq(ipt_file_map(m->t, m->vm[v].id, m->file[i].id, page, f, n, &done), err);
	cr_assert_eq(done, want);
	for (uint32_t k = 0; k < 1u << order; k++) {
		m->f[f.v + k].state = k < done ? IPT_PRIVATE : IPT_LIMBO;
		m->f[f.v + k].vm = k < done ? -1 - (int)i : v;
		if (k < done)
			m->file[i].at[page + k] = f.v + k;
	}
	m->did[12] += done;
}

/* The file begins anew, if nobody has a region of it. */
static void do_file_reap(struct share *m)
{
	uint32_t i = help_below(&m->r, FILES);
	char name[IPT_NAME_LEN];
	bool used = false;

	for (int v = 0; v < VMS; v++) {
		for (unsigned k = 0; m->vm[v].used && k < m->vm[v].nregions; k++)
			used |= m->vm[v].region[k].file == i;
	}
	cr_assert_eq(ipt_vm_reap(m->t, m->file[i].id, NULL, NULL), used ? -EBUSY : 0);
	if (used)
		return;
	for (uint32_t page = 0; page < PAGES; page++) {
		uint32_t f = m->file[i].at[page];

		if (f == NONE)
			continue;
		m->f[f].state = IPT_FREE;
		m->f[f].pins = 0;
		m->file[i].at[page] = NONE;
	}
	name_next(m, name);
	cr_assert_eq(ipt_file_add(m->t, name, &m->file[i].id), 0);
	m->did[13]++;
}

static void gone_frames(struct share *m, int v, bool pinned_too)
{
	for (uint32_t f = 0; f < m->frames; f++) {
		if (m->f[f].state == IPT_LIMBO && m->f[f].vm == v &&
		    (pinned_too || !m->f[f].pins)) {
			m->f[f].state = IPT_FREE;
			m->f[f].pins = 0;
		}
	}
}

static void do_reap(struct share *m, int v)
{
	if (children(m, v)) {
		cr_assert_eq(ipt_vm_reap(m->t, m->vm[v].id, NULL, NULL), -EBUSY);
		return;
	}
	help_reap(m->t, m->vm[v].id);
	for (uint32_t g = 0; g < GFNS; g++)
		lose(m, v, g);
	gone_frames(m, v, true);
	m->vm[v].used = false;
	m->did[7]++;
}

static void collapse_into(struct share *m, int v, int child)
{
	for (uint32_t g = 0; g < GFNS; g++) {
		if (m->vm[v].at[g].what != NOTHING && m->vm[child].at[g].what == NOTHING &&
		    !page_of(m, child, g)) {
			m->vm[child].at[g] = m->vm[v].at[g];
			m->vm[v].at[g].what = NOTHING;
			if (m->vm[child].at[g].what == FRAME)
				m->f[m->vm[child].at[g].f].vm = child;
		}
		lose(m, v, g);
	}
	gone_frames(m, v, false);
}

static void do_collapse(struct share *m, int v)
{
	int child = -1, want = 0;

	if (children(m, v) > 1) {
		cr_assert_eq(ipt_vm_collapse(m->t, m->vm[v].id, NULL, NULL), -EBUSY);
		return;
	}
	for (int i = 0; i < VMS; i++) {
		if (m->vm[i].used && m->vm[i].parent == v)
			child = i;
	}
	if (child < 0) {
		do_reap(m, v);
		return;
	}
	if (m->vm[child].dying) {
		cr_assert_eq(ipt_vm_collapse(m->t, m->vm[v].id, NULL, NULL), -EBUSY);
		return;
	}
	if (m->vm[v].nregions + m->vm[child].nregions > IPT_MAX_REGIONS)
		want = -ENOSPC;
	if (want) {
		cr_assert_eq(ipt_vm_collapse(m->t, m->vm[v].id, NULL, NULL), want);
		return;
	}
	collapse_into(m, v, child);
	for (uint32_t f = 0; f < m->frames; f++) {
		if (m->f[f].state == IPT_LIMBO && m->f[f].vm == v)
			want = -EBUSY;
	}
	cr_assert_eq(ipt_vm_collapse(m->t, m->vm[v].id, NULL, NULL), want);
	m->vm[v].dying = true;
	m->did[8]++;
	if (want)
		return;
	for (unsigned i = 0; i < m->vm[v].nregions; i++)
		m->vm[child].region[m->vm[child].nregions++] = m->vm[v].region[i];
	m->vm[child].parent = m->vm[v].parent;
	m->vm[v].used = false;
	m->did[9]++;
}

/* ---- comparing ------------------------------------------------------------------------------- */

static bool same_place(struct ipt_place a, struct ipt_place b)
{
	return a.kind == b.kind && a.frame.v == b.frame.v &&
	       (a.kind == IPT_VOID || a.at.v == b.at.v);
}

static void check_out(struct share *m, int v, uint32_t g, struct ipt_place want)
{
	struct ipt_out out;
	vmid_t at;

	cr_assert_eq(ipt_out_read(m->t, m->vm[v].id, gfn(g), &out, &at),
		     want.kind == IPT_AWAY ? 0 : -ENOENT);
	if (want.kind != IPT_AWAY)
		return;
	cr_assert_eq(at.v, want.at.v);
	while (at.v ? m->vm[v].id.v != at.v : m->vm[v].at[g].what != ALIAS)
		v = m->vm[v].parent;
	if (!at.v) {
		const struct ipt_out *is = &m->f[m->vm[v].at[g].f].out;

		cr_assert(out.sum == is->sum && out.bytes == is->bytes && out.where == is->where);
		return;
	}
	cr_assert(out.sum == m->vm[v].at[g].f && out.bytes == m->vm[v].at[g].bytes &&
		  out.where == m->vm[v].at[g].where);
}

static void check_place(struct share *m, int v, uint32_t g)
{
	uint32_t max = 1 + help_below(&m->r, 40);
	struct ipt_place is, want = resolve(m, v, g);
	frame_t f;

	if (max > GFNS - g)
		max = GFNS - g;
	uint32_t n = ipt_place(m->t, m->vm[v].id, gfn(g), max, &is);
	cr_assert(same_place(is, want), "VM %d gfn %u: %d/%u/%d, not %d/%u/%d", v, g, is.kind,
		  is.at.v, (int)is.frame.v, want.kind, want.at.v, (int)want.frame.v);
	cr_assert(n >= 1 && n <= max);
	for (uint32_t i = 1; i <= n && i < max; i++) {
		struct ipt_place next = want, then = resolve(m, v, g + i);

		next.frame.v += frame_valid(want.frame) ? i : 0;
		cr_assert_eq(same_place(next, then), i < n, "run of %u, gfn %u", n, g + i);
	}
	cr_assert_eq(ipt_lookup(m->t, m->vm[v].id, gfn(g)).v, want.frame.v);
	n = ipt_lookup_run(m->t, m->vm[v].id, gfn(g), max, &f);
	cr_assert_eq(n != 0, frame_valid(want.frame));
	cr_assert_eq(f.v, want.frame.v);
	check_out(m, v, g, want);
}

static void check_batch(struct share *m, int v)
{
	struct ipt_key keys[24];
	frame_t out[24];

	for (unsigned i = 0; i < 24; i++)
		keys[i] = (struct ipt_key){m->vm[v].id, gfn(help_below(&m->r, GFNS))};
	ipt_lookup_batch(m->t, keys, out, 24);
	for (unsigned i = 0; i < 24; i++)
		cr_assert_eq(out[i].v, resolve(m, v, (uint32_t)keys[i].gfn.v).frame.v);
}

struct views {
	struct share *m;
	uint32_t f;
	unsigned n;
};

static bool view(void *ctx, vmid_t id, gfn_t g, enum ipt_place_kind how)
{
	struct views *w = ctx;

	for (int v = 0; v < VMS; v++) {
		if (w->m->vm[v].used && w->m->vm[v].id.v == id.v) {
			struct ipt_place p = resolve(w->m, v, (uint32_t)g.v);

			cr_assert_eq(p.frame.v, w->f);
			cr_assert_eq(p.kind, how);
			w->n++;
		}
	}
	return true;
}

static void check_frame(struct share *m, uint32_t f)
{
	struct views w = {m, f, 0};
	unsigned want = 0;
	struct ipt_owner o;

	cr_assert_eq(ipt_owner(m->t, frame(f), &o), 0);
	cr_assert_eq(o.state, m->f[f].state, "frame %u: %d, not %d", f, o.state, m->f[f].state);
	cr_assert_eq(o.pins, m->f[f].pins);
	bool owned = o.state == IPT_LIMBO || o.state == IPT_PRIVATE;
	int owner = m->f[f].vm;
	uint32_t id = owner < 0 ? m->file[-1 - owner].id.v : m->vm[owner].id.v;
	cr_assert_eq(o.vm.v, owned ? id : 0);
	for (int v = 0; v < VMS; v++) {
		for (uint32_t g = 0; m->vm[v].used && g < GFNS; g++)
			want += resolve(m, v, g).frame.v == f;
	}
	cr_assert_eq(ipt_viewers(m->t, frame(f), view, &w), 0);
	cr_assert_eq(w.n, want, "frame %u has %u viewers, %u told", f, want, w.n);
}

static void check_all(struct share *m)
{
	uint32_t shared = 0, granules = 0, blocks = 0;
	struct ipt_counts c;

	for (int v = 0; v < VMS; v++) {
		struct ipt_vm_info info;
		uint32_t have[5] = {0};

		if (!m->vm[v].used)
			continue;
		cr_assert_eq(ipt_vm_info(m->t, m->vm[v].id, &info), 0);
		for (uint32_t g = 0; g < GFNS; g++) {
			have[m->vm[v].at[g].what]++;
			check_place(m, v, g);
		}
		cr_assert_eq(info.frames[IPT_PRIVATE], have[FRAME], "VM %d: %u, not %u", v,
			     info.frames[IPT_PRIVATE], have[FRAME]);
		cr_assert_eq(info.frames[IPT_ALIAS], have[ALIAS]);
		cr_assert_eq(info.frames[IPT_TOMB], have[TOMB]);
		cr_assert_eq(info.frames[IPT_OUT], have[AWAY]);
		cr_assert_eq(info.frames[IPT_SPARE], 0);
		cr_assert_eq(info.children, (uint32_t)children(m, v));
		cr_assert_eq(info.kind, m->vm[v].template ? IPT_TEMPLATE : IPT_VM);
	}
	for (uint32_t f = 0; f < m->frames; f++)
		shared += m->f[f].state == IPT_SHARED;
	ipt_counts(m->t, &c);
	cr_assert_eq(c.frames[IPT_SHARED], shared);
	for (uint32_t i = 0; i < m->packed_pages * IPT_GRANULES; i++)
		granules += m->granule[i];
	for (uint32_t i = 0; i < m->blocks; i++)
		blocks += m->block[i];
	help_space_used(m->t, granules, blocks);
	help_audit(m->t);
}

static void step(struct share *m)
{
	int v = some_vm(m, false), template = some_vm(m, true);
	unsigned what = help_below(&m->r, 1000);

	if (v < 0) {
		do_clone(m, -1);
		return;
	}
	if (help_below(&m->r, 20) == 0)
		do_region(m, (int)some_vm(m, false));
	if (help_below(&m->r, m->packed_pages ? 4 : 12) == 0)
		do_out(m, some_vm(m, false));
	if (m->packed_pages && help_below(&m->r, 100) == 0)
		do_trim(m);
	if (m->packed_pages && help_below(&m->r, 8) == 0)
		do_shared_out(m);
	if (m->packed_pages && help_below(&m->r, 12) == 0)
		do_shared_in(m, v);
	if (what < 150)
		do_map(m, v, false);
	else if (what < 300)
		do_map(m, v, true);
	else if (what < 380)
		do_unmap(m, v);
	else if (what < 480)
		do_drop(m, v);
	else if (what < 580)
		do_publish(m, v);
	else if (what < 700)
		do_merge(m, v);
	else if (what < 710)
		do_file_map(m, v);
	else if (what < 740)
		do_free(m, help_below(&m->r, 3) || template <0 ? v : template);
	else if (what < 780)
		do_pin(m, v);
	else if (what < 800)
		do_unpin(m);
	else if (what < 820)
		do_freeze(m, v);
	else if (what < 840)
		do_clone(m, help_below(&m->r, 8) ? template : -1);
	else if (what < 843)
		do_file_reap(m);
	else if (what < 850)
		do_reap(m, template <0 || help_below(&m->r, 2) ? v : template);
	else if (what < 870 && template >= 0)
		do_collapse(m, template);
	else if (what < 900)
		check_frame(m, help_below(&m->r, m->frames));
	else if (what < 950)
		check_batch(m, v);
	else
		check_place(m, v, help_below(&m->r, GFNS));
}

static void run(uint32_t frames, uint32_t packed_pages, uint32_t blocks, unsigned ops,
		uint64_t seed)
{
	static struct share m;

	m = (struct share){.t = help_table_space(frames, packed_pages, blocks),
			   .r = {seed},
			   .frames = frames,
			   .packed_pages = packed_pages,
			   .blocks = blocks};
	m.f = calloc(frames + OUTS, sizeof(*m.f));
	m.granule = calloc(packed_pages + 1, IPT_GRANULES);
	m.block = calloc(blocks + 1, 1);
	cr_assert(m.f && m.granule && m.block);
	cr_assert_eq(ipt_holder_add(m.t, "holder"), 0);
	for (unsigned i = 0; i < FILES; i++) {
		char name[IPT_NAME_LEN];

		name_next(&m, name);
		cr_assert_eq(ipt_file_add(m.t, name, &m.file[i].id), 0);
		memset(m.file[i].at, 0xff, sizeof(m.file[i].at));
	}
	ops /= UNDER_SLOW ? 10 : 1;
	for (unsigned i = 1; i <= ops; i++) {
		step(&m);
		if (i % (ops / 100) == 0)
			check_all(&m);
	}
	for (int i = 0; i < 17 && !UNDER_SLOW; i++) {
		/* Slots ran out; whole clusters went out. */
		if (i != 10 && (i != 16 || frames > 300))
			cr_assert_gt(m.did[i], 20, "%d: %u", i, m.did[i]);
	}
	if (packed_pages && !UNDER_SLOW)
		cr_assert_gt(m.did[17], 20, "space ran out");
	for (int i = 19; i < 22 && packed_pages && !UNDER_SLOW; i++)
		cr_assert_gt(m.did[i], 100, "%d: %u", i, m.did[i]);
	cr_log_info("%u out, %u clusters, back %u times; %u claims failed", m.did[15], m.did[16],
		    m.did[14], m.did[17]);
	for (int left = VMS; left--;) {
		for (int v = 0; v < VMS; v++) {
			if (m.vm[v].used && !children(&m, v))
				do_reap(&m, v);
		}
	}
	for (unsigned i = 0; i < FILES; i++)
		help_reap(m.t, m.file[i].id);
	cr_assert_eq(ipt_free_frames(m.t), frames);
	help_space_used(m.t, 0, 0);
	help_audit(m.t);
	free(m.f);
	free(m.granule);
	free(m.block);
	ipt_detach(m.t);
}

Test(ipt_share_model, small)
{
	run(1000, 0, 0, 600000, 1);
}

Test(ipt_share_model, larger)
{
	run(4096, 0, 0, 200000, 2);
}

Test(ipt_share_model, scarce)
{
	run(300, 0, 0, 200000, 5);
}

Test(ipt_share_model, with_space)
{
	run(1000, 17, 70, 200000, 4);
}
