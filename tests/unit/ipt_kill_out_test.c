/*
 * Death at every step (of long ones, every third from the 200th on) of what is done to pages that are out. As ipt_kill_test.c, with a table that has space,
 * all of which others claim as soon as somebody has died.
 */
#include "ipt/debug.h"
#include "tests/unit/ipt_help.h"
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define FRAMES 600
#define PACKED 20  /* pages: an arena has one or two */
#define BLOCKS 200 /* three arenas with 64 each, one with the rest */

/* In the child: this gfn is pinned at its first step, when it has been seen not to be. */
static struct {
	struct ipt *t;
	vmid_t vm;
	uint64_t g;
} pin_first;

static void pin_or_die(void)
{
	frame_t f;

	if (pin_first.t && ipt_pin(pin_first.t, pin_first.vm, gfn(pin_first.g), &f))
		_exit(1);
	pin_first.t = NULL;
	help_die_step();
}

struct scene {
	struct ipt *t;
	vmid_t vm, other, template; /* vm acts; the template is its parent, if there is one */
	frame_t f;
	struct ipt_out out[16];
	uint32_t slots[16]; /* what prepare left for act */
};

struct scenario {
	void (*prepare)(struct scene *s);
	void (*act)(struct scene *s);
	bool same; /* what vm sees must not change */
};

#define SEEN 128

/* What a VM has, in one number. */
static uint64_t fingerprint(struct scene *s, vmid_t vm)
{
	uint64_t sum = 0;

	for (uint64_t g = 0; g < SEEN; g++) {
		struct ipt_out out = {0};
		struct ipt_place p;
		vmid_t at;

		ipt_place(s->t, vm, gfn(g), 1, &p);
		if (p.kind == IPT_AWAY)
			cr_assert_eq(ipt_out_read(s->t, vm, gfn(g), &out, &at), 0);
		sum = sum * 31 + (p.kind == IPT_AWAY) + p.frame.v;
		sum = (sum * 31 + out.where) * 31 + out.bytes + out.sum;
	}
	return sum;
}

#define OTHER_GRANULES (16 * 2)
#define OTHER_BLOCKS   3

static void open_scene(struct scene *s)
{
	s->t = help_table_space(FRAMES, PACKED, BLOCKS);
	s->vm = help_vm(s->t, "vm");
	s->other = help_vm(s->t, "other");
	frame_t f = help_mapped(s->t, s->other, 0, 5);
	help_out(s->t, s->other, 0, 16, 0, 100);
	help_out(s->t, s->other, 20, 3, IPT_IN_FILE, 1000);
	help_out(s->t, s->other, 24, 2, 0, 0);
	cr_assert_eq(ipt_free(s->t, s->other, f, 16), 0);
}

/* Claim all there is of one kind, which locks every arena; it is free again afterwards. */
static void claim_all(struct scene *s, uint32_t where, uint32_t least)
{
	static struct ipt_out out[BLOCKS + PACKED];
	static uint32_t slots[BLOCKS + PACKED];
	static uint8_t used[BLOCKS + PACKED];
	uint32_t n = 0;

	memset(used, 0, sizeof(used));
	for (;; n++) {
		out[n] = (struct ipt_out){where, PAGE_SIZE, 0};
		if (ipt_out_claim(s->t, s->other, &out[n], 1, &slots[n]))
			break;
		uint32_t at = out[n].where & ~IPT_IN_FILE;
		at /= where ? 1 : IPT_GRANULES;
		cr_assert(at < (where ? BLOCKS : PACKED) && !used[at]);
		used[at] = 1;
	}
	cr_assert_geq(n, least, "space for %u, not %u", n, least);
	ipt_out_cancel(s->t, s->other, slots, n);
}

/* The table must work for others while the dead one's parts are still as they were left. */
static void others_go_on(struct scene *s, uint32_t pages, uint32_t blocks)
{
	frame_t f;

	cr_assert_eq(ipt_alloc(s->t, s->other, 4, NULL, &f), 0);
	for (unsigned i = 0; i < 2; i++) {
		cr_assert_eq(ipt_map(s->t, s->other, gfn(256), f, 16), 0);
		help_out(s->t, s->other, 256, i ? 3 : 16, i ? IPT_IN_FILE : 0, 64);
		cr_assert_eq(ipt_map_over(s->t, s->other, gfn(256), f, i ? 3 : 16, NULL, NULL), 0);
		cr_assert_eq(ipt_unmap(s->t, s->other, gfn(256), 16, NULL, NULL), 0);
	}
	cr_assert_eq(ipt_free(s->t, s->other, f, 16), 0);
	claim_all(s, 0, pages);
	claim_all(s, IPT_IN_FILE, blocks);
}

/* Reap what may have died in the middle of being unregistered. */
static void reap_rest(struct ipt *t, vmid_t vm)
{
	int err = ipt_vm_reap(t, vm, NULL, NULL);

	cr_assert(err == 0 || err == -ENOENT, "reap: %d", err);
}

/* One death. False once the child got through. */
static bool die_once(const struct scenario *sc, unsigned k, uint32_t *repairs)
{
	struct scene s = {0};
	struct ipt_counts c;

	open_scene(&s);
	sc->prepare(&s);
	uint64_t before = fingerprint(&s, s.other), mine = fingerprint(&s, s.vm);

	pid_t pid = help_fork();
	if (pid == 0) {
		help_die_at(k);
		ipt_step_do(pin_or_die);
		sc->act(&s);
		_exit(0);
	}
	bool died = help_died(pid, k);

	others_go_on(&s, 0, 100);
	cr_assert_eq(fingerprint(&s, s.other), before, "step %u: the other VM's memory", k);
	if (sc->same)
		cr_assert_eq(fingerprint(&s, s.vm), mine, "step %u: what the VM sees", k);
	help_audit_unreaped(s.t);
	reap_rest(s.t, s.vm);
	if (s.template.v) {
		int err = ipt_vm_collapse(s.t, s.template, NULL, NULL);
		cr_assert(err == 0 || err == -ENOENT, "collapse: %d", err);
	}
	help_audit(s.t);
	help_space_used(s.t, OTHER_GRANULES, OTHER_BLOCKS);
	cr_assert_eq(ipt_free_frames(s.t), FRAMES - 16, "step %u: %u free frames", k,
		     ipt_free_frames(s.t));
	others_go_on(&s, PACKED - 1, BLOCKS - OTHER_BLOCKS);
	cr_assert_eq(fingerprint(&s, s.other), before, "step %u: after the reaping", k);
	ipt_counts(s.t, &c);
	cr_assert_eq(c.frames[IPT_SPARE], 0);
	*repairs += c.repairs;
	help_reap(s.t, s.other);
	help_space_used(s.t, 0, 0);
	help_audit(s.t);
	ipt_detach(s.t);
	return died;
}

static void die_everywhere(const struct scenario *sc)
{
	unsigned deaths = 0;
	uint32_t repairs = 0;

	if (UNDER_TSAN)
		cr_skip_test("killed processes are beyond the thread sanitizer");
	for (unsigned k = 0; die_once(sc, k, &repairs); deaths++)
		k += UNDER_SLOW ? 5 : k < 200 ? 1 : 3;
	cr_assert_gt(deaths, 3);
	cr_assert_gt(repairs, 0, "no death fell into a critical section");
	cr_log_info("%u deaths, %u repairs", deaths, repairs);
}

#define SCENARIO(name, ...)                                      \
	Test(ipt_kill_out, name)                                 \
	{                                                        \
		static const struct scenario sc = {__VA_ARGS__}; \
		die_everywhere(&sc);                             \
	}

/* ---- what is being done ---------------------------------------------------------------------- */

static void prepare_mapped(struct scene *s)
{
	s->f = help_mapped(s->t, s->vm, 32, 5);
	help_mapped(s->t, s->vm, 100, 0);
}

static void set_pages(struct scene *s, uint32_t n, uint32_t where, uint32_t bytes)
{
	for (uint32_t i = 0; i < n; i++)
		s->out[i] = (struct ipt_out){where, i % 8 == 7 ? 0 : bytes, i};
}

static void act_claim(struct scene *s)
{
	set_pages(s, 16, 0, 4000);
	if (ipt_out_claim(s->t, s->vm, s->out, 16, s->slots))
		_exit(1);
	set_pages(s, 3, IPT_IN_FILE, 4000);
	if (ipt_out_claim(s->t, s->vm, s->out, 3, s->slots))
		_exit(1);
	set_pages(s, 7, 0, 4000); /* too many */
	if (ipt_out_claim(s->t, s->vm, s->out, 7, s->slots) != -ENOSPC)
		_exit(1);
}

SCENARIO(claim, prepare_mapped, act_claim, true)

static void prepare_cancel(struct scene *s)
{
	prepare_mapped(s);
	set_pages(s, 9, 0, 1000);
	s->out[1].where = s->out[2].where = IPT_IN_FILE;
	cr_assert_eq(ipt_out_claim(s->t, s->vm, s->out, 9, s->slots), 0);
}

static int see_trim(void *ctx, uint32_t first, uint32_t n)
{
	(void)ctx;
	(void)first;
	(void)n;
	return 0;
}

static void act_cancel(struct scene *s)
{
	ipt_out_cancel(s->t, s->vm, s->slots, 8);
	ipt_packed_trim(s->t, 0, PACKED, see_trim, NULL);
}

SCENARIO(cancel, prepare_cancel, act_cancel, true)

static void prepare_cluster(struct scene *s)
{
	prepare_mapped(s);
	set_pages(s, 16, 0, 1000);
	cr_assert_eq(ipt_out_claim(s->t, s->vm, s->out, 16, s->slots), 0);
}

static void act_cluster(struct scene *s)
{
	uint32_t done;

	if (ipt_out_commit(s->t, s->vm, gfn(32), s->slots, 16, &done, NULL, NULL) || done != 16)
		_exit(1);
}

SCENARIO(commit_a_cluster, prepare_cluster, act_cluster, false)

/* Undone, because somebody pins one of them; then page by page, up to that one. */
static void act_pinned(struct scene *s)
{
	uint32_t done;

	pin_first.vm = s->vm;
	pin_first.g = 32 + 2;
	pin_first.t = s->t;
	if (ipt_out_commit(s->t, s->vm, gfn(32), s->slots, 16, &done, NULL, NULL) != -EBUSY ||
	    done != 2)
		_exit(1);
}

SCENARIO(commit_what_gets_pinned, prepare_cluster, act_pinned, false)

static void prepare_singles(struct scene *s)
{
	prepare_mapped(s);
	set_pages(s, 5, IPT_IN_FILE, 1000);
	s->out[1] = (struct ipt_out){0, 10, 1};
	s->out[2] = (struct ipt_out){0, 0, 1};
	cr_assert_eq(ipt_out_claim(s->t, s->vm, s->out, 5, s->slots), 0);
}

static void act_singles(struct scene *s)
{
	uint32_t done;

	if (ipt_out_commit(s->t, s->vm, gfn(32 + 6), s->slots, 3, &done, NULL, NULL) ||
	    ipt_out_commit(s->t, s->vm, gfn(100), s->slots + 3, 1, &done, NULL, NULL))
		_exit(1);
}

SCENARIO(commit_singles, prepare_singles, act_singles, false)

static void prepare_out(struct scene *s)
{
	prepare_mapped(s);
	help_out(s->t, s->vm, 32, 16, 0, 100);
	help_out(s->t, s->vm, 50, 3, IPT_IN_FILE, 100);
	help_out(s->t, s->vm, 54, 2, 0, 0);
	help_out(s->t, s->vm, 100, 1, 0, 100);
	help_claim(s->t, s->vm, IPT_IN_FILE, 100, &s->out[0]);
	help_claim(s->t, s->vm, 0, 100, &s->out[0]);
}

static void act_map_over(struct scene *s)
{
	if (ipt_map_over(s->t, s->vm, gfn(32), s->f, 16, NULL, NULL) ||
	    ipt_map_over(s->t, s->vm, gfn(50), frame_add(s->f, 18), 2, NULL, NULL))
		_exit(1);
}

SCENARIO(map_over, prepare_out, act_map_over, false)

/* Undone, because there is a frame in the way at the end. */
static void prepare_in_the_way(struct scene *s)
{
	prepare_out(s);
	s->f = help_alloc(s->t, s->vm, 5);
}

static void act_in_the_way(struct scene *s)
{
	if (ipt_map_over(s->t, s->vm, gfn(44), s->f, 5, NULL, NULL) != -EEXIST)
		_exit(1);
}

SCENARIO(map_over_undone, prepare_in_the_way, act_in_the_way, false)

static void act_unmap(struct scene *s)
{
	uint32_t done;

	if (ipt_unmap(s->t, s->vm, gfn(34), 10, NULL, NULL) ||
	    ipt_drop(s->t, s->vm, gfn(46), 9, &done, NULL, NULL))
		_exit(1);
}

SCENARIO(unmap_and_drop, prepare_out, act_unmap, false)

static void act_reap(struct scene *s)
{
	if (ipt_vm_reap(s->t, s->vm, NULL, NULL))
		_exit(1);
}

SCENARIO(reap, prepare_out, act_reap, false)

/* A template with pages that are out; its child has some of its own. */
static void prepare_child(struct scene *s)
{
	uint32_t done;

	prepare_out(s);
	s->template = s->vm;
	cr_assert_eq(ipt_vm_freeze(s->t, s->template, "vm@1", &s->vm), 0);
	help_mapped(s->t, s->vm, 33, 0);
	help_mapped(s->t, s->vm, 36, 1);
	help_out(s->t, s->vm, 36, 2, 0, 200);
	cr_assert_eq(ipt_drop(s->t, s->vm, gfn(50), 1, &done, NULL, NULL), 0);
}

static void act_tombs(struct scene *s)
{
	uint32_t done;

	if (ipt_drop(s->t, s->vm, gfn(35), 4, &done, NULL, NULL))
		_exit(1);
}

SCENARIO(drop_inherited, prepare_child, act_tombs, false)

static void act_collapse(struct scene *s)
{
	if (ipt_vm_collapse(s->t, s->template, NULL, NULL))
		_exit(1);
}

SCENARIO(collapse, prepare_child, act_collapse, true)
