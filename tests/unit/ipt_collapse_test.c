/* Templates that are done away with, and who sees a frame. */
#include "tests/unit/ipt_help.h"
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define GFNS       400
#define OVERRIDDEN (1 + 16 + 1 + 1 + 16 + 1 + 3) /* the last were limbo */

/*
 * Oldest to youngest: root, a template below it, its only child (a template too), a VM that went on and a
 * clone. The middle one goes; the child has overrides of clusters, parts of clusters and singles of its.
 */
struct family {
	struct ipt *t;
	vmid_t root, middle, child, on, clone;
};

static struct family family_make(enum ipt_kind kind)
{
	struct family m = {.t = help_table_of(kind, 4096, 2, 1)};

	m.root = help_vm(m.t, "vm");
	help_mapped(m.t, m.root, 0, 8); /* 0..255 */
	cr_assert_eq(ipt_vm_freeze(m.t, m.root, "vm@1", &m.middle), 0);
	help_mapped(m.t, m.middle, 0, 4);
	help_mapped(m.t, m.middle, 32, 5);
	help_mapped(m.t, m.middle, 80, 2);
	for (uint64_t g = 100; g < 140; g += 3)
		help_mapped(m.t, m.middle, g, 0);
	help_mapped(m.t, m.middle, 256, 6);
	help_mapped(m.t, m.middle, 339, 0);
	frame_t f = help_alloc(m.t, m.middle, 3);
	cr_assert_eq(ipt_map(m.t, m.middle, gfn(353), f, 8), 0); /* not congruent */
	cr_assert_eq(ipt_unmap(m.t, m.middle, gfn(37), 3, NULL, NULL), 0);
	if (kind == IPT_INDEX) { /* aliases and tombs; some of either will be overridden */
		uint32_t done;

		cr_assert_eq(ipt_publish(m.t, m.middle, gfn(1), 6, &done), 0);
		cr_assert_eq(ipt_publish(m.t, m.middle, gfn(106), 1, &done), 0);
		cr_assert_eq(ipt_publish(m.t, m.middle, gfn(357), 3, &done), 0);
		cr_assert_eq(ipt_drop(m.t, m.middle, gfn(160), 3, &done, NULL, NULL), 0);
		cr_assert_eq(ipt_drop(m.t, m.middle, gfn(192), 35, &done, NULL, NULL), 0);
	}
	cr_assert_eq(ipt_vm_freeze(m.t, m.middle, "vm@2", &m.child), 0);
	help_mapped(m.t, m.child, 5, 0);
	help_mapped(m.t, m.child, 48, 4);
	help_mapped(m.t, m.child, 161, 0);
	help_mapped(m.t, m.child, 210, 0);
	help_mapped(m.t, m.child, 82, 0);
	help_mapped(m.t, m.child, 106, 0);
	help_mapped(m.t, m.child, 288, 4);
	help_mapped(m.t, m.child, 359, 0);
	help_mapped(m.t, m.child, 380, 0);
	cr_assert_eq(ipt_vm_freeze(m.t, m.child, "vm@3", &m.on), 0);
	cr_assert_eq(ipt_vm_add(m.t, "clone", m.child, &m.clone), 0);
	help_mapped(m.t, m.clone, 257, 0);
	help_mapped(m.t, m.on, 1, 0);
	return m;
}

struct seen {
	frame_t at[4][GFNS];
};

static void see(const struct family *m, struct seen *s)
{
	const vmid_t vm[4] = {m->root, m->child, m->on, m->clone};

	for (int i = 0; i < 4; i++) {
		for (uint64_t g = 0; g < GFNS; g++)
			s->at[i][g] = ipt_lookup(m->t, vm[i], gfn(g));
	}
}

static void expect_same(const struct family *m, const struct seen *before)
{
	static struct seen now;

	see(m, &now);
	for (int i = 0; i < 4; i++) {
		for (uint64_t g = 0; g < GFNS; g++)
			cr_assert_eq(now.at[i][g].v, before->at[i][g].v,
				     "VM %d gfn %lu: %d, was %d", i, (unsigned long)g,
				     (int)now.at[i][g].v, (int)before->at[i][g].v);
	}
}

/* What a VM counts as its own is what the array says. */
static void expect_counted(struct ipt *t, vmid_t vm)
{
	struct ipt_vm_info info;
	struct ipt_owner o;
	uint32_t n = 0;

	for (uint32_t f = 0; f < ipt_config(t)->frames; f++) {
		cr_assert_eq(ipt_owner(t, frame(f), &o), 0);
		n += o.state == IPT_PRIVATE && o.vm.v == vm.v;
	}
	cr_assert_eq(ipt_vm_info(t, vm, &info), 0);
	cr_assert_eq(info.frames[IPT_PRIVATE], n, "VM %u has %u, counts %u", vm.v, n,
		     info.frames[IPT_PRIVATE]);
}

static void family_end(struct family *m)
{
	help_audit(m->t);
	help_reap(m->t, m->clone);
	help_reap(m->t, m->on);
	help_reap(m->t, m->child);
	help_reap(m->t, m->root);
	help_audit(m->t);
	cr_assert_eq(ipt_free_frames(m->t), 4096);
	ipt_detach(m->t);
}

static int count_clean(void *ctx, frame_t first, uint32_t count)
{
	(void)first;
	*(uint32_t *)ctx += count;
	return 0;
}

BOTH_KINDS(ipt_collapse, heirs_and_overrides)
{
	struct family m = family_make(kind);
	uint32_t nfree = ipt_free_frames(m.t), cleaned = 0;
	const uint32_t overridden = OVERRIDDEN;
	static struct seen before;
	struct ipt_vm_info info;

	see(&m, &before);
	cr_assert_eq(ipt_vm_collapse(m.t, m.clone, NULL, NULL), -EPERM);
	cr_assert_eq(ipt_vm_collapse(m.t, vmid(60), NULL, NULL), -ENOENT);
	cr_assert_eq(ipt_vm_collapse(m.t, m.child, NULL, NULL), -EBUSY, "it has two children");
	cr_assert_eq(ipt_vm_collapse(m.t, m.middle, count_clean, &cleaned), 0);
	cr_assert_eq(cleaned, overridden);
	cr_assert_eq(ipt_free_frames(m.t), nfree + overridden);
	cr_assert_eq(ipt_vm_info(m.t, m.middle, &info), -ENOENT);
	cr_assert_eq(ipt_vm_info(m.t, m.child, &info), 0);
	cr_assert_eq(info.parent.v, m.root.v);
	cr_assert_eq(info.children, 2);
	cr_assert_eq(ipt_vm_info(m.t, m.root, &info), 0);
	cr_assert_eq(info.children, 1);
	expect_same(&m, &before);
	expect_counted(m.t, m.child);
	/* What moved is the child's like any other: once it is a VM it could be unmapped. */
	frame_t f;
	cr_assert_eq(ipt_pin(m.t, m.clone, gfn(40), &f), 0);
	ipt_unpin(m.t, f);
	family_end(&m);
}

/* The child is a VM, which goes on with what moved into it. */
BOTH_KINDS(ipt_collapse, into_a_vm)
{
	struct ipt *t = help_table(kind, 2000);
	vmid_t vm = help_vm(t, "vm"), on;
	frame_t a = help_mapped(t, vm, 64, 6), f, pinned;

	cr_assert_eq(ipt_vm_freeze(t, vm, "vm@1", &on), 0);
	help_mapped(t, on, 70, 0);
	/* Somebody's I/O still reads what will be freed. */
	cr_assert_eq(ipt_pin(t, vm, gfn(70), &pinned), 0);
	cr_assert_eq(ipt_vm_collapse(t, vm, NULL, NULL), -EBUSY);
	cr_assert_eq(ipt_lookup(t, on, gfn(71)).v, a.v + 7);
	help_audit(t);
	ipt_unpin(t, pinned);
	cr_assert_eq(ipt_vm_collapse(t, vm, NULL, NULL), 0);
	help_audit(t);
	cr_assert_eq(ipt_lookup_run(t, on, gfn(71), 100, &f), 57);
	cr_assert_eq(f.v, a.v + 7);
	f = help_alloc(t, on, 0);
	cr_assert_eq(ipt_map(t, on, gfn(65), f, 1), -EEXIST);
	cr_assert_eq(ipt_unmap(t, on, gfn(0), 1000, NULL, NULL), 0);
	expect_counted(t, on);
	cr_assert_not(frame_valid(ipt_lookup(t, on, gfn(65))));
	help_audit(t);
	/* A template without children is reaped. */
	cr_assert_eq(ipt_vm_freeze(t, on, "vm@2", &vm), 0);
	help_reap(t, vm);
	cr_assert_eq(ipt_vm_collapse(t, on, NULL, NULL), 0);
	cr_assert_eq(ipt_free_frames(t), 2000);
	help_audit(t);
	ipt_detach(t);
}

/* Who held the pin was killed, and nobody takes it off. */
BOTH_KINDS(ipt_collapse, with_a_pin_of_the_dead)
{
	struct ipt *t = help_table(kind, 2000);
	vmid_t vm = help_vm(t, "vm"), on, last;
	struct ipt_vm_info info;
	struct ipt_owner o;
	frame_t pinned;

	help_mapped(t, vm, 64, 6);
	cr_assert_eq(ipt_vm_freeze(t, vm, "vm@1", &on), 0);
	help_mapped(t, on, 70, 0);
	help_mapped(t, on, 90, 0);
	cr_assert_eq(ipt_pin(t, vm, gfn(70), &pinned), 0);
	cr_assert_eq(ipt_vm_collapse(t, vm, NULL, NULL), -EBUSY);
	cr_assert_eq(ipt_vm_collapse_pinned(t, vm, NULL, NULL), 0);
	help_audit(t);
	cr_assert_eq(ipt_vm_info(t, vm, &info), -ENOENT);
	cr_assert_eq(ipt_owner(t, pinned, &o), 0);
	cr_assert_eq(o.state, IPT_LIMBO);
	cr_assert_eq(o.vm.v, on.v);
	cr_assert_eq(ipt_vm_info(t, on, &info), 0);
	cr_assert_eq(info.frames[IPT_LIMBO], 1);
	cr_assert_eq(ipt_free_frames(t), 2000 - 64 - 1 - 2 + 1 + 1);
	/* From template to template, and then it goes with the last. */
	cr_assert_eq(ipt_vm_freeze(t, on, "vm@2", &last), 0);
	cr_assert_eq(ipt_vm_collapse(t, on, NULL, NULL), -EBUSY);
	cr_assert_eq(ipt_vm_collapse_pinned(t, on, NULL, NULL), 0);
	help_audit(t);
	help_reap(t, last);
	cr_assert_eq(ipt_free_frames(t), 2000);
	help_audit(t);
	ipt_detach(t);
}

/* ---- death at every step --------------------------------------------------------------------- */

/* With a pin that nobody takes off, or without. */
static void die_at_every_step(enum ipt_kind kind, bool pin)
{
	static struct seen before;
	unsigned deaths = 0;

	if (UNDER_TSAN)
		cr_skip_test("killed processes are beyond the thread sanitizer");
	for (unsigned k = 0;; k += UNDER_SLOW ? 7 : 1, deaths++) {
		struct family m = family_make(kind);
		uint32_t nfree = ipt_free_frames(m.t);
		frame_t pinned = INVALID_FRAME;
		int status;

		if (pin)
			cr_assert_eq(ipt_pin(m.t, m.middle, gfn(50), &pinned), 0);
		see(&m, &before);
		pid_t pid = help_fork();
		if (pid == 0) {
			help_die_at(k);
			_exit(ipt_vm_collapse_pinned(m.t, m.middle, NULL, NULL) != 0);
		}
		cr_assert_eq(waitpid(pid, &status, 0), pid);
		expect_same(&m, &before);
		help_audit_but(m.t, m.middle);
		expect_counted(m.t, m.child);
		int err = ipt_vm_collapse_pinned(m.t, m.middle, NULL, NULL);
		cr_assert(err == 0 || err == -ENOENT, "step %u: %d", k, err);
		cr_assert_eq(ipt_free_frames(m.t), nfree + OVERRIDDEN - pin);
		expect_same(&m, &before);
		if (pin)
			ipt_unpin(m.t, pinned);
		family_end(&m);
		if (WIFEXITED(status)) {
			cr_assert_eq(WEXITSTATUS(status), 0);
			break;
		}
	}
	cr_assert_gt(deaths, 50);
}

BOTH_KINDS(ipt_collapse, death_at_every_step)
{
	die_at_every_step(kind, false);
}

BOTH_KINDS(ipt_collapse, death_at_every_step_beside_a_pin)
{
	die_at_every_step(kind, true);
}

/* The collapser dies, then the child's process, and all is reaped from the youngest to the oldest. */
Test(ipt_collapse, death_of_both)
{
	if (UNDER_TSAN)
		cr_skip_test("killed processes are beyond the thread sanitizer");
	for (unsigned k = 0;; k += 5) {
		struct ipt *t = help_table(IPT_INDEX, 1000);
		vmid_t vm = help_vm(t, "vm"), on;
		int status;

		help_mapped(t, vm, 64, 6);
		help_mapped(t, vm, 200, 0);
		cr_assert_eq(ipt_vm_freeze(t, vm, "vm@1", &on), 0);
		help_mapped(t, on, 70, 0);
		pid_t pid = help_fork();
		if (pid == 0) {
			help_die_at(k);
			_exit(ipt_vm_collapse(t, vm, NULL, NULL) != 0);
		}
		cr_assert_eq(waitpid(pid, &status, 0), pid);
		help_reap(t, on);
		help_audit_unreaped(t);
		int err = ipt_vm_collapse(t, vm, NULL, NULL);
		cr_assert(err == 0 || err == -ENOENT);
		cr_assert_eq(ipt_free_frames(t), 1000);
		help_audit(t);
		ipt_detach(t);
		if (WIFEXITED(status))
			break;
	}
}

/* ---- look-ups meanwhile ---------------------------------------------------------------------- */

struct reading {
	struct ipt *t;
	vmid_t vm;
	const frame_t *want;
	unsigned n;
	_Atomic unsigned stop, wrong, rounds;
};

static void *read_on(void *arg)
{
	struct reading *r = arg;
	struct ipt_place p;
	frame_t f;

	while (!atomic_load(&r->stop)) {
		for (unsigned g = 0; g < r->n; g++) {
			bool void_here = !frame_valid(r->want[g]);

			if (ipt_lookup(r->t, r->vm, gfn(g)).v != r->want[g].v)
				atomic_fetch_add(&r->wrong, 1);
			ipt_place(r->t, r->vm, gfn(g), 4, &p);
			if (p.frame.v != r->want[g].v || (p.kind == IPT_VOID) != void_here)
				atomic_fetch_add(&r->wrong, 1);
			int err = ipt_pin(r->t, r->vm, gfn(g), &f);
			if (err != (void_here ? -ENOENT : 0) || f.v != r->want[g].v)
				atomic_fetch_add(&r->wrong, 1);
			if (!err)
				ipt_unpin(r->t, f);
		}
		atomic_fetch_add(&r->rounds, 1);
	}
	return NULL;
}

/* Templates come and go above a VM whose memory must stay as it is, each with a newer frame for every third
 * gfn. Void gfns are void all the time. */
BOTH_KINDS(ipt_collapse, readers_see_nothing_of_it)
{
	enum { N = 96 };
	struct ipt *t = help_table(kind, 4096);
	vmid_t vm = help_vm(t, "vm"), old, on, clone;
	static frame_t want[N];
	char name[] = "vm@00";
	pthread_t thread;

	for (unsigned round = 0; round < (UNDER_SLOW ? 10 : 60); round++) {
		name[3] = (char)('0' + round / 10);
		name[4] = (char)('0' + round % 10);
		for (unsigned g = 0; g < N; g++) {
			if (g % 16 != 15 && g % 3 == round % 3) {
				ipt_unmap(t, vm, gfn(g), 1, NULL, NULL);
				help_mapped(t, vm, g, 0);
			}
		}
		cr_assert_eq(ipt_vm_freeze(t, vm, name, &on), 0);
		for (unsigned g = 0; g < N; g++) {
			if (g % 16 != 15 && g % 7 == round % 7)
				help_mapped(t, on, g, 0);
		}
		old = vm;
		vm = on;
		cr_assert_eq(ipt_vm_add(t, "clone", vm, &clone), 0);
		for (unsigned g = 0; g < N; g++)
			want[g] = ipt_lookup(t, clone, gfn(g));
		struct reading r = {.t = t, .vm = clone, .want = want, .n = N};
		cr_assert_eq(pthread_create(&thread, NULL, read_on, &r), 0);
		while (!atomic_load(&r.rounds))
			usleep(10);
		int err;
		do /* the reader's pins may be in the way */
			err = ipt_vm_collapse(t, old, NULL, NULL);
		while (err == -EBUSY);
		cr_assert_eq(err, 0);
		unsigned rounds = atomic_load(&r.rounds);
		while (atomic_load(&r.rounds) < rounds + 2)
			usleep(10);
		atomic_store(&r.stop, 1);
		pthread_join(thread, NULL);
		cr_assert_eq(atomic_load(&r.wrong), 0, "round %u: %u wrong", round,
			     atomic_load(&r.wrong));
		help_audit(t);
		help_reap(t, clone);
		/* The limbo frames of unmapping go with it. */
		for (uint32_t f = 0; f < 4096; f++)
			ipt_free(t, vm, frame(f), 1);
	}
	help_reap(t, vm);
	cr_assert_eq(ipt_free_frames(t), 4096);
	ipt_detach(t);
}

/* ---- viewers --------------------------------------------------------------------------------- */

struct list {
	unsigned n, limit;
	struct {
		uint32_t vm;
		uint64_t g;
		enum ipt_place_kind how;
	} at[16];
};

static bool note(void *ctx, vmid_t vm, gfn_t g, enum ipt_place_kind how)
{
	struct list *l = ctx;

	l->at[l->n].vm = vm.v;
	l->at[l->n].g = g.v;
	l->at[l->n].how = how;
	return ++l->n < l->limit;
}

static void expect_viewer(const struct list *l, vmid_t vm, uint64_t g, enum ipt_place_kind how)
{
	for (unsigned i = 0; i < l->n; i++) {
		if (l->at[i].vm == vm.v && l->at[i].g == g && l->at[i].how == how)
			return;
	}
	cr_assert_fail("VM %u sees it at %lu and wasn't told", vm.v, (unsigned long)g);
}

BOTH_KINDS(ipt_collapse, viewers)
{
	struct family m = family_make(kind);
	struct list l = {.limit = 16};

	frame_t f = ipt_lookup(m.t, m.middle, gfn(257));
	cr_assert_eq(ipt_viewers(m.t, f, note, &l), 0);
	cr_assert_eq(l.n, 3);
	expect_viewer(&l, m.middle, 257, IPT_OWN);
	expect_viewer(&l, m.child, 257, IPT_INHERITED);
	expect_viewer(&l, m.on, 257, IPT_INHERITED);
	l.n = 0;
	cr_assert_eq(ipt_viewers(m.t, ipt_lookup(m.t, m.root, gfn(5)), note, &l), 0);
	cr_assert_eq(l.n, 1);
	expect_viewer(&l, m.root, 5, IPT_OWN);
	l = (struct list){.limit = 2};
	cr_assert_eq(ipt_viewers(m.t, f, note, &l), 0);
	cr_assert_eq(l.n, 2, "told to stop");
	l.n = 0;
	cr_assert_eq(ipt_viewers(m.t, frame(4000), note, &l), 0);
	cr_assert_eq(l.n, 0, "a free frame");
	cr_assert_eq(ipt_viewers(m.t, frame(4096), note, &l), -EINVAL);
	cr_assert_eq(ipt_vm_collapse(m.t, m.middle, NULL, NULL), 0);
	family_end(&m);
}
