/* Shared pages that go out and come back (ipt/shared.c): who sees what, what can go wrong, and death at every step. */
#include "tests/unit/ipt_help.h"
#include <string.h>
#include <unistd.h>

#define FRAMES 300
#define PACKED 4
#define BYTES  200 /* of a page that is kept: 4 granules */
#define SUM    77

/* One page seen by two VMs and by a template's clone; another by the first two. */
struct scene {
	struct ipt *t;
	vmid_t a, b, template, clone;
	frame_t page, other, fresh; /* fresh: limbo of b, for what comes back */
	struct ipt_out out;
};

#define AT_A 5
#define AT_B 70
#define AT_T 9 /* the template's, and so the clone's */

static const struct {
	size_t vm;
	uint64_t g;
} viewers[] = {{offsetof(struct scene, a), AT_A},
	       {offsetof(struct scene, b), AT_B},
	       {offsetof(struct scene, template), AT_T},
	       {offsetof(struct scene, clone), AT_T}};

#define VIEWERS (sizeof(viewers) / sizeof(*viewers))

static vmid_t viewer(const struct scene *s, size_t i)
{
	return *(const vmid_t *)((const char *)s + viewers[i].vm);
}

static void merge(struct scene *s, vmid_t vm, uint64_t g, frame_t with)
{
	uint32_t done;
	frame_t own = help_mapped(s->t, vm, g, 0);

	cr_assert_eq(ipt_merge(s->t, vm, gfn(g), with, 1, &done, NULL, NULL), 0);
	cr_assert_eq(ipt_free(s->t, vm, own, 1), 0);
}

static void open_scene(struct scene *s)
{
	uint32_t done;

	*s = (struct scene){.t = help_table_space(FRAMES, PACKED, 0)};
	cr_assert_eq(ipt_holder_add(s->t, "holder"), 0);
	s->a = help_vm(s->t, "a");
	s->b = help_vm(s->t, "b");
	s->template = help_vm(s->t, "t");
	s->page = help_mapped(s->t, s->a, AT_A, 0);
	s->other = help_mapped(s->t, s->a, AT_A + 1, 0);
	cr_assert_eq(ipt_publish(s->t, s->a, gfn(AT_A), 2, &done), 0);
	merge(s, s->b, AT_B, s->page);
	merge(s, s->b, AT_B + 1, s->other);
	merge(s, s->template, AT_T, s->page);
	cr_assert_eq(ipt_vm_freeze(s->t, s->template, "t@1", &s->clone), 0);
	s->fresh = help_alloc(s->t, s->b, 0);
}

/* All end; nothing may be left. */
static void close_scene(struct scene *s)
{
	if (s->a.v)
		help_reap(s->t, s->a);
	help_reap(s->t, s->b);
	help_reap(s->t, s->clone);
	help_reap(s->t, s->template);
	help_audit(s->t);
	help_space_used(s->t, 0, 0);
	cr_assert_eq(ipt_free_frames(s->t), FRAMES);
	ipt_detach(s->t);
}

/* Is it one page to all, out or at one frame? That frame, or INVALID_FRAME. */
static frame_t all_see(struct scene *s)
{
	frame_t f = INVALID_FRAME;

	for (size_t i = 0; i < VIEWERS; i++) {
		struct ipt_place p;
		struct ipt_out out;
		vmid_t at;

		if (!viewer(s, i).v)
			continue;
		cr_assert_eq(ipt_place(s->t, viewer(s, i), gfn(viewers[i].g), 1, &p), 1);
		if (p.kind == IPT_AWAY) {
			cr_assert_eq(ipt_out_read(s->t, viewer(s, i), gfn(viewers[i].g), &out, &at),
				     0);
			cr_assert(!at.v && !p.at.v && out.sum == SUM && out.bytes == BYTES);
			continue;
		}
		cr_assert_eq(p.kind, viewer(s, i).v == s->clone.v ? IPT_INHERITED : IPT_MERGED);
		cr_assert(!frame_valid(f) || f.v == p.frame.v);
		f = p.frame;
	}
	return f;
}

/* ---- out and in ------------------------------------------------------------------------------ */

struct doing {
	struct scene *s;
	int keep, settle, clean; /* what they come to */
	bool drop;               /* all let the page go while it settles */
	bool change;             /* b alone does */
	unsigned kept, cleaned;
};

static int keep(void *ctx, uint32_t i, const struct ipt_out *where)
{
	struct doing *d = ctx;

	d->kept++;
	cr_assert(i == 0 && where->bytes == BYTES && where->where < PACKED * IPT_GRANULES);
	return d->keep;
}

static void drop(struct scene *s, vmid_t vm, uint64_t g)
{
	uint32_t done;

	cr_assert_eq(ipt_drop(s->t, vm, gfn(g), 1, &done, NULL, NULL), 0);
}

static int settle(void *ctx)
{
	struct doing *d = ctx;

	if (d->drop)
		drop(d->s, d->s->a, AT_A);
	if (d->drop || d->change)
		drop(d->s, d->s->b, AT_B);
	return d->settle;
}

static int clean(void *ctx, frame_t first, uint32_t n)
{
	struct doing *d = ctx;

	(void)first;
	d->cleaned += n;
	return d->clean;
}

static const struct ipt_out_ops ops = {keep, settle, clean};

static int go_out(struct scene *s, struct doing *d)
{
	struct ipt_sharer sharer;

	d->s = s;
	s->out = (struct ipt_out){.bytes = BYTES, .sum = SUM};
	if (ipt_sharer(s->t, s->page, &sharer))
		return -ENOENT;
	return ipt_shared_out(s->t, s->page, sharer.stamp, &s->out, &ops, d);
}

Test(ipt_shared_out, goes_and_comes_back_for_all)
{
	struct scene s;
	struct doing d = {0};

	open_scene(&s);
	uint32_t free = ipt_free_frames(s.t);
	cr_assert_eq(all_see(&s).v, s.page.v);
	cr_assert_eq(go_out(&s, &d), 0);
	cr_expect(d.kept == 1 && d.cleaned == 1);
	cr_expect_eq(ipt_free_frames(s.t), free + 1);
	cr_expect_eq(all_see(&s).v, INVALID_FRAME.v);
	help_space_used(s.t, 4, 0);
	help_audit(s.t);
	/* By a clone that sees its template's, into a frame of its own. */
	frame_t f = help_alloc(s.t, s.clone, 0);
	cr_expect_eq(ipt_shared_in(s.t, s.clone, gfn(AT_T + 1), f), -ESTALE);
	cr_expect_eq(ipt_shared_in(s.t, s.clone, gfn(AT_T), s.fresh), -EPERM, "another's");
	cr_expect_eq(ipt_shared_in(s.t, s.clone, gfn(AT_T), f), 0);
	cr_expect_eq(all_see(&s).v, f.v);
	cr_expect(ipt_moved(s.t, f));
	help_space_used(s.t, 0, 0);
	help_audit(s.t);
	/* Again, and from there it is merged with and copied as any. */
	s.page = f;
	cr_expect_eq(go_out(&s, &d), 0);
	cr_expect_eq(ipt_shared_in(s.t, s.b, gfn(AT_B), s.fresh), 0);
	merge(&s, s.a, 100, s.fresh);
	help_audit(s.t);
	close_scene(&s);
}

Test(ipt_shared_out, who_lets_it_go_last_frees_its_space)
{
	struct scene s;
	struct doing d = {0};

	open_scene(&s);
	cr_assert_eq(go_out(&s, &d), 0);
	drop(&s, s.a, AT_A);
	cr_assert_eq(ipt_map_over(s.t, s.b, gfn(AT_B), s.fresh, 1, NULL, NULL), 0);
	help_space_used(s.t, 4, 0);
	help_audit(s.t);
	/* The clone's tomb hides it, and then the template goes. */
	drop(&s, s.clone, AT_T);
	help_space_used(s.t, 4, 0);
	cr_assert_eq(ipt_vm_collapse(s.t, s.template, NULL, NULL), 0);
	help_space_used(s.t, 0, 0);
	help_audit(s.t);
	help_reap(s.t, s.a);
	help_reap(s.t, s.b);
	help_reap(s.t, s.clone);
	cr_expect_eq(ipt_free_frames(s.t), FRAMES);
	ipt_detach(s.t);
}

Test(ipt_shared_out, collapsing_hands_it_down)
{
	struct scene s;
	struct doing d = {0};

	open_scene(&s);
	cr_assert_eq(go_out(&s, &d), 0);
	cr_assert_eq(ipt_vm_collapse(s.t, s.template, NULL, NULL), 0);
	s.template = INVALID_VMID;
	help_audit(s.t);
	frame_t f = help_alloc(s.t, s.clone, 0);
	cr_expect_eq(ipt_shared_in(s.t, s.clone, gfn(AT_T), f), 0);
	cr_expect_eq(ipt_lookup(s.t, s.a, gfn(AT_A)).v, f.v);
	cr_expect_eq(ipt_lookup(s.t, s.clone, gfn(AT_T)).v, f.v);
	help_reap(s.t, s.a);
	help_reap(s.t, s.b);
	help_reap(s.t, s.clone);
	help_audit(s.t);
	cr_expect_eq(ipt_free_frames(s.t), FRAMES);
	ipt_detach(s.t);
}

Test(ipt_shared_out, what_goes_wrong_leaves_all_as_it_was)
{
	static const struct doing wrong[] = {
		{.keep = -EIO}, {.settle = -EBUSY}, {.clean = -ENOMEM}};
	struct ipt_sharer sharer;
	struct scene s;
	frame_t f;

	open_scene(&s);
	uint32_t free = ipt_free_frames(s.t);
	for (unsigned i = 0; i < 3; i++) {
		struct doing d = wrong[i];
		cr_expect_eq(go_out(&s, &d), d.keep + d.settle + d.clean);
		cr_expect_eq(all_see(&s).v, s.page.v);
		cr_expect_eq(ipt_free_frames(s.t), free);
		help_space_used(s.t, 0, 0);
		help_audit(s.t);
	}
	struct doing d = {.change = true, .settle = -EBUSY};
	cr_expect_eq(go_out(&s, &d), -EBUSY);
	cr_expect_eq(ipt_lookup(s.t, s.b, gfn(AT_B)).v, INVALID_FRAME.v, "b's is gone");
	cr_expect_eq(ipt_lookup(s.t, s.a, gfn(AT_A)).v, s.page.v);
	help_audit(s.t);
	/* Pinned; damaged; not shared; a frame that isn't; freed since. */
	d = (struct doing){0};
	cr_assert_eq(ipt_pin(s.t, s.a, gfn(AT_A), &f), 0);
	cr_expect_eq(go_out(&s, &d), -EBUSY);
	ipt_unpin(s.t, f);
	cr_expect_eq(ipt_sharer(s.t, s.fresh, &sharer), -ENOENT);
	cr_expect_eq(ipt_sharer(s.t, frame(FRAMES), &sharer), -EINVAL);
	cr_expect_eq(ipt_shared_out(s.t, frame(FRAMES), 0, &s.out, &ops, &d), -EINVAL);
	cr_assert_eq(ipt_sharer(s.t, s.page, &sharer), 0);
	cr_expect_eq(ipt_shared_out(s.t, s.page, sharer.stamp + 1, &s.out, &ops, &d), -ESTALE);
	cr_assert_eq(ipt_spoil(s.t, s.page, IPT_LOST), 0);
	cr_expect_eq(go_out(&s, &d), -EBUSY);
	help_audit(s.t);
	help_reap(s.t, s.a);
	help_reap(s.t, s.b);
	help_reap(s.t, s.clone);
	help_reap(s.t, s.template);
	help_audit(s.t);
	ipt_detach(s.t);
}

/* While somebody was at the frame the last ones let the page go: it can't be freed then, and isn't anybody's. */
Test(ipt_shared_out, what_cant_be_freed_at_once_is_swept_up)
{
	struct scene s;
	struct doing d = {.drop = true, .settle = -EBUSY};

	open_scene(&s);
	help_reap(s.t, s.clone);
	help_reap(s.t, s.template);
	uint32_t free = ipt_free_frames(s.t);
	cr_expect_eq(go_out(&s, &d), -EBUSY);
	cr_expect_eq(d.cleaned, 0);
	help_audit(s.t);
	cr_expect_eq(ipt_free_frames(s.t), free);
	help_space_used(s.t, 0, 0);
	d = (struct doing){.settle = -EBUSY, .s = &s};
	cr_expect_eq(ipt_holder_sweep(s.t, &ops, &d), -EBUSY);
	cr_expect_eq(ipt_free_frames(s.t), free);
	d.settle = 0;
	cr_expect_eq(ipt_holder_sweep(s.t, &ops, &d), 0);
	cr_expect_eq(d.cleaned, 1);
	cr_expect_eq(ipt_free_frames(s.t), free + 1);
	help_audit(s.t);
	help_reap(s.t, s.a);
	help_reap(s.t, s.b);
	cr_expect_eq(ipt_free_frames(s.t), FRAMES);
	ipt_detach(s.t);
}

Test(ipt_shared_out, needs_a_holder_who_stays)
{
	struct ipt *t = help_table_space(FRAMES, PACKED, 0);
	struct ipt_out out = {.bytes = 1};
	vmid_t a = help_vm(t, "a");
	frame_t f = help_alloc(t, a, 0);

	cr_expect_eq(ipt_holder(t).v, 0);
	cr_expect_eq(ipt_shared_out(t, f, 0, &out, &ops, NULL), -EOPNOTSUPP);
	cr_expect_eq(ipt_shared_in(t, a, gfn(1), f), -EOPNOTSUPP);
	cr_expect_eq(ipt_holder_add(t, "a"), -EEXIST);
	cr_expect_eq(ipt_holder_add(t, "holder"), 0);
	vmid_t holder = ipt_holder(t);
	cr_expect_eq(ipt_holder_add(t, "holder"), 0, "there is one");
	cr_expect_eq(ipt_holder(t).v, holder.v);
	cr_expect_eq(ipt_vm_reap(t, holder, NULL, NULL), -EBUSY);
	ipt_detach(t);
	t = help_table(IPT_RADIX, FRAMES);
	cr_expect_eq(ipt_holder_add(t, "holder"), -EOPNOTSUPP);
	ipt_detach(t);
}

/* ---- death at every step --------------------------------------------------------------------- */

/* What others do at once when somebody has died: they take the locks of both chains, and see what they saw. */
static void others_go_on(struct scene *s)
{
	uint32_t done;
	frame_t own = help_mapped(s->t, s->b, 120, 0);

	cr_assert_eq(ipt_publish(s->t, s->b, gfn(120), 1, &done), 0);
	drop(s, s->b, 120);
	cr_assert_eq(ipt_free(s->t, s->b, own, 1), 0);
	drop(s, s->b, AT_B + 1);
	merge(s, s->b, AT_B + 1, s->other);
}

/* One death while the page goes out, or comes back by b. False once the child got through. */
static bool die_once(bool in, unsigned k, unsigned *in_between)
{
	struct scene s;
	struct doing d = {0};

	open_scene(&s);
	if (in)
		cr_assert_eq(go_out(&s, &d), 0);
	pid_t pid = help_fork();
	if (pid == 0) {
		help_die_at(k);
		int err = in ? ipt_shared_in(s.t, s.a, gfn(AT_A), help_alloc(s.t, s.a, 0))
			     : go_out(&s, &d);
		_exit(err != 0);
	}
	bool died = help_died(pid, k);
	frame_t f = all_see(&s);
	unsigned away = 0;
	for (size_t i = 0; i < VIEWERS; i++)
		away += !frame_valid(ipt_lookup(s.t, viewer(&s, i), gfn(viewers[i].g)));
	*in_between += away && away < VIEWERS;
	others_go_on(&s);
	cr_assert_eq(all_see(&s).v, f.v, "step %u", k);
	if (in) { /* a died */
		help_audit_unreaped(s.t);
		help_reap(s.t, s.a);
		s.a = INVALID_VMID;
		all_see(&s);
	}
	ipt_mend(s.t);
	help_audit(s.t);
	cr_assert_eq(ipt_holder_sweep(s.t, &ops, &d), 0);
	help_audit(s.t);
	/* For whom it is away it comes back. */
	if (ipt_shared_in(s.t, s.b, gfn(AT_B), s.fresh) == 0)
		cr_assert_eq(ipt_lookup(s.t, s.b, gfn(AT_B)).v, s.fresh.v);
	help_audit(s.t);
	close_scene(&s);
	return died;
}

static void die_everywhere(bool in)
{
	unsigned deaths = 0, in_between = 0;

	if (UNDER_TSAN)
		cr_skip_test("killed processes are beyond the thread sanitizer");
	for (unsigned k = 0; die_once(in, k, &in_between); deaths++)
		k += UNDER_SLOW ? 5 : 1;
	cr_expect_gt(deaths, UNDER_SLOW ? 3 : 20);
	cr_expect_gt(in_between, 0, "no death left some with the page and others without");
}

Test(ipt_shared_out, death_while_it_goes)
{
	die_everywhere(false);
}

Test(ipt_shared_out, death_while_it_comes_back)
{
	die_everywhere(true);
}
