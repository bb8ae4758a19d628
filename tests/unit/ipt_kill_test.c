/*
 * Death at every step. A child does one thing to the table and is killed (SIGKILL, by itself) at its k-th
 * step, for every k until it gets through. Then somebody else uses the table at once, the dead child's VM
 * is reaped, and the audit must be clean, the frames all there, and another VM's memory as it was.
 */
#include "ipt/debug.h"
#include "tests/unit/ipt_help.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#define KILL_FRAMES 8192

struct scene {
	struct ipt *t;
	vmid_t vm, other;
	bool share; /* the table can */
	frame_t f;  /* what prepare left for act */
};

struct scenario {
	void (*prepare)(struct scene *s);
	void (*act)(struct scene *s);
	unsigned stride; /* try every k up to 300, then every stride-th */
};

/* Reap what may have died in the middle of being unregistered: then it is found to be gone already. */
static void reap_rest(struct ipt *t, vmid_t vm)
{
	int err = ipt_vm_reap(t, vm, NULL, NULL);

	cr_assert(err == 0 || err == -ENOENT, "reap: %d", err);
}

static void reap_others(struct scene *s)
{
	struct ipt_vm_info info;
	bool left = true;

	while (left) { /* children before their parents */
		left = false;
		for (vmid_t vm = ipt_vm_next(s->t, INVALID_VMID); vm.v;
		     vm = ipt_vm_next(s->t, vm)) {
			if (vm.v == s->other.v || ipt_vm_info(s->t, vm, &info))
				continue;
			left = true;
			if (!info.children)
				reap_rest(s->t, vm);
		}
	}
}

#define OTHER_GFN 9000

static void open_scene(struct scene *s, enum ipt_kind kind)
{
	s->t = help_table_of(kind, KILL_FRAMES, 2, 4);
	s->share = kind == IPT_INDEX;
	s->vm = help_vm(s->t, "vm");
	s->other = help_vm(s->t, "other");
	/* The other VM: a cluster, a cluster with holes, singles. */
	help_mapped(s->t, s->other, OTHER_GFN & ~511u, 9);
	cr_assert_eq(ipt_unmap(s->t, s->other, gfn(OTHER_GFN + 3), 5, NULL, NULL), 0);
	for (uint64_t i = 0; i < 20; i++)
		help_mapped(s->t, s->other, i * 33, 0);
}

/* What the other VM has, in one number. */
static uint64_t fingerprint(struct scene *s)
{
	uint64_t sum = 0;

	for (uint64_t g = 0; g < 10000; g++)
		sum = sum * 31 + ipt_lookup(s->t, s->other, gfn(g)).v;
	return sum;
}

/* The table must work for others while the dead one's parts are still as they were left. */
static void others_go_on(struct scene *s)
{
	static bool mend;
	frame_t f;

	mend = !mend;
	if (mend) /* what a new host does first; else each lock is mended when it is taken */
		ipt_mend(s->t);

	for (uint64_t i = 0; i < 64; i++) {
		uint64_t g = 100000 + i * 16;
		unsigned order = i % 2 ? 4 : 0;

		cr_assert_eq(ipt_alloc(s->t, s->other, order, NULL, &f), 0);
		cr_assert_eq(ipt_map(s->t, s->other, gfn(g), f, 1u << order), 0);
		cr_assert_eq(ipt_lookup(s->t, s->other, gfn(g)).v, f.v);
		cr_assert_eq(ipt_unmap(s->t, s->other, gfn(g), 16, NULL, NULL), 0);
		cr_assert_eq(ipt_free(s->t, s->other, f, 1u << order), 0);
	}
	for (uint64_t i = 0; s->share && i < 128; i++) { /* every chain lock */
		uint32_t done;
		frame_t g;

		cr_assert_eq(ipt_alloc(s->t, s->other, 1, NULL, &f), 0);
		cr_assert_eq(ipt_map(s->t, s->other, gfn(200000), f, 2), 0);
		cr_assert_eq(ipt_publish(s->t, s->other, gfn(200000), 1, &done), 0);
		cr_assert_eq(ipt_merge(s->t, s->other, gfn(200001), f, 1, &done, NULL, NULL), 0);
		cr_assert_eq(ipt_free(s->t, s->other, frame_add(f, 1), 1), 0);
		cr_assert_eq(ipt_unmap(s->t, s->other, gfn(200000), 1, NULL, NULL), 0);
		g = ipt_lookup(s->t, s->other, gfn(200001));
		cr_assert_eq(g.v, f.v);
		cr_assert_eq(ipt_unmap(s->t, s->other, gfn(200001), 1, NULL, NULL), 0);
		cr_assert_eq(ipt_free(s->t, s->other, f, 1), 0);
	}
}

/* One death. False once the child got through. */
static bool die_once(const struct scenario *sc, enum ipt_kind kind, unsigned k, uint32_t *repairs)
{
	struct scene s = {0};
	struct ipt_counts c;

	open_scene(&s, kind);
	if (sc->prepare)
		sc->prepare(&s);
	uint64_t before = fingerprint(&s);
	uint32_t others = KILL_FRAMES - 512 - 20;

	pid_t pid = help_fork();
	if (pid == 0) {
		help_die_at(k);
		sc->act(&s);
		_exit(0);
	}
	bool died = help_died(pid, k);

	cr_assert_eq(fingerprint(&s), before, "step %u: the other VM's memory", k);
	others_go_on(&s);
	help_audit_unreaped(s.t);
	reap_others(&s);
	help_audit(s.t);
	cr_assert_eq(ipt_free_frames(s.t), others, "step %u: %u free frames", k,
		     ipt_free_frames(s.t));
	cr_assert_eq(fingerprint(&s), before, "step %u: the other VM's memory, after the reaping",
		     k);
	others_go_on(&s);
	ipt_counts(s.t, &c);
	*repairs += c.repairs;
	help_reap(s.t, s.other);
	cr_assert_eq(ipt_largest_order(s.t), IPT_MAX_ORDER);
	help_audit(s.t);
	ipt_detach(s.t);
	return died;
}

static void die_everywhere(const struct scenario *sc, enum ipt_kind kind)
{
	unsigned deaths = 0, stride = UNDER_SLOW ? 5 : 1;
	uint32_t repairs = 0;

	if (UNDER_TSAN)
		cr_skip_test("killed processes are beyond the thread sanitizer");
	for (unsigned k = 0; die_once(sc, kind, k, &repairs); deaths++)
		k += k < 300 ? stride : sc->stride * stride;
	cr_assert_gt(deaths, 3);
	cr_assert_gt(repairs, 0, "no death fell into a critical section");
	cr_log_info("%u deaths, %u repairs", deaths, repairs);
}

#define SCENARIO(name, kind, ...)                                \
	Test(ipt_kill, name)                                     \
	{                                                        \
		static const struct scenario sc = {__VA_ARGS__}; \
		die_everywhere(&sc, kind);                       \
	}

/* ---- what is being done ---------------------------------------------------------------------- */

static void act_alloc(struct scene *s)
{
	struct ipt_hint hint = {frame(3 * 512 + 37), 0, 0};
	frame_t f;

	ipt_alloc(s->t, s->vm, 0, &hint, &f); /* carves, splits */
	ipt_alloc(s->t, s->vm, 2, NULL, &f);
	hint = (struct ipt_hint){INVALID_FRAME, 1, 3};
	ipt_alloc(s->t, s->vm, 0, &hint, &f);
}

SCENARIO(alloc, IPT_INDEX, NULL, act_alloc, 1)

static void prepare_free(struct scene *s)
{
	s->f = help_alloc(s->t, s->vm, 6);
}

static void act_free(struct scene *s)
{
	ipt_free(s->t, s->vm, frame_add(s->f, 5), 1);
	ipt_free(s->t, s->vm, frame_add(s->f, 7), 30);
	ipt_free(s->t, s->vm, frame_add(s->f, 6), 1);
	ipt_free(s->t, s->vm, s->f, 5);
}

SCENARIO(free, IPT_INDEX, prepare_free, act_free, 1)

static void prepare_map(struct scene *s)
{
	s->f = help_alloc(s->t, s->vm, 6);
}

static void act_map(struct scene *s)
{
	ipt_map(s->t, s->vm, gfn(64), s->f, 32);
	ipt_map(s->t, s->vm, gfn(1000), frame_add(s->f, 32), 19);
	ipt_map(s->t, s->vm, gfn(1019), frame_add(s->f, 51), 1);
}

SCENARIO(map_index, IPT_INDEX, prepare_map, act_map, 1)
SCENARIO(map_radix, IPT_RADIX, prepare_map, act_map, 1)

static void prepare_unmap(struct scene *s)
{
	prepare_map(s);
	act_map(s);
}

static void act_unmap(struct scene *s)
{
	ipt_unmap(s->t, s->vm, gfn(70), 5, NULL, NULL);
	ipt_unmap(s->t, s->vm, gfn(60), 40, NULL, NULL);
	ipt_unmap(s->t, s->vm, gfn(1000), 20, NULL, NULL);
}

SCENARIO(unmap_index, IPT_INDEX, prepare_unmap, act_unmap, 1)
SCENARIO(unmap_radix, IPT_RADIX, prepare_unmap, act_unmap, 1)

/* Singles that become a cluster; a hole that is filled again. */
static void act_promote(struct scene *s)
{
	for (uint32_t i = 0; i < 16; i++)
		ipt_map(s->t, s->vm, gfn(64 + i), frame_add(s->f, i), 1);
	ipt_unmap(s->t, s->vm, gfn(67), 2, NULL, NULL);
	ipt_map(s->t, s->vm, gfn(67), frame_add(s->f, 3), 2);
}

SCENARIO(promote, IPT_INDEX, prepare_map, act_promote, 1)

/* As many singles as fit without growing, and then those that don't. 630 is 82% of 64 lines. */
static void prepare_singles(struct scene *s)
{
	for (uint64_t i = 0; i < 600; i++)
		help_mapped(s->t, s->vm, i * 17 + 20000, 0);
	s->f = help_alloc(s->t, s->vm, 5);
}

static void act_singles(struct scene *s)
{
	ipt_map(s->t, s->vm, gfn(70001), s->f, 32);
}

SCENARIO(grow_singles, IPT_INDEX, prepare_singles, act_singles, 13)

/* The same with clusters: 230 is 72% of 64 lines; the other VM has 32. */
static void prepare_clusters(struct scene *s)
{
	for (uint64_t i = 0; i < 196; i++)
		help_mapped(s->t, s->vm, i * 48 + 20000, 4);
	s->f = help_alloc(s->t, s->vm, 6);
}

static void act_clusters(struct scene *s)
{
	ipt_map(s->t, s->vm, gfn(64), s->f, 64);
}

SCENARIO(grow_clusters, IPT_INDEX, prepare_clusters, act_clusters, 7)

static void act_register(struct scene *s)
{
	vmid_t vm;

	ipt_vm_add(s->t, "child", INVALID_VMID, &vm);
	ipt_vm_add(s->t, "another", INVALID_VMID, &vm);
	ipt_vm_reap(s->t, vm, NULL, NULL);
}

/* The VM has a parent with a cluster, and another in which it has an alias of its own; two frames that the
 * other VM publishes. */
static void prepare_share(struct scene *s)
{
	uint32_t done;

	help_mapped(s->t, s->vm, 64, 6);
	cr_assert_eq(ipt_vm_freeze(s->t, s->vm, "vm@1", &s->vm), 0);
	cr_assert_eq(ipt_publish(s->t, s->other, gfn(33), 1, &done), 0);
	cr_assert_eq(ipt_publish(s->t, s->other, gfn(66), 1, &done), 0);
	help_mapped(s->t, s->vm, 80, 2);
	help_mapped(s->t, s->vm, 96, 4);
	help_mapped(s->t, s->vm, 200, 2);
	s->f = help_alloc(s->t, s->vm, 4);
}

static void act_share(struct scene *s)
{
	uint32_t done, at[2];

	for (int i = 0; i < 2; i++)
		at[i] = ipt_lookup(s->t, s->other, gfn(33 * ((uint64_t)i + 1))).v;
	if (ipt_publish(s->t, s->vm, gfn(80), 2, &done) ||
	    ipt_publish(s->t, s->vm, gfn(100), 2, &done) ||
	    ipt_merge(s->t, s->vm, gfn(82), frame(at[0]), 1, &done, NULL, NULL) ||
	    ipt_merge(s->t, s->vm, gfn(200), frame(at[1]), 1, &done, NULL, NULL) ||
	    ipt_merge(s->t, s->vm, gfn(201), ipt_lookup(s->t, s->vm, gfn(81)), 1, &done, NULL,
		      NULL))
		_exit(1);
}

SCENARIO(publish_and_merge, IPT_INDEX, prepare_share, act_share, 1)

static void prepare_unshare(struct scene *s)
{
	prepare_share(s);
	act_share(s);
}

static void act_unshare(struct scene *s)
{
	uint32_t done;

	if (ipt_drop(s->t, s->vm, gfn(76), 7, &done, NULL,
		     NULL) || /* an alias that is not the last */
	    ipt_drop(s->t, s->vm, gfn(96), 32, &done, NULL, NULL) || /* clusters of tombs */
	    ipt_map_over(s->t, s->vm, gfn(80), s->f, 3, NULL, NULL) ||
	    ipt_map(s->t, s->vm, gfn(104), frame_add(s->f, 4), 6) ||
	    ipt_unmap(s->t, s->vm, gfn(200), 4, NULL, NULL))
		_exit(1);
}

SCENARIO(unshare, IPT_INDEX, prepare_unshare, act_unshare, 1)

static void act_reap_sharer(struct scene *s)
{
	ipt_vm_reap(s->t, s->vm, NULL, NULL);
}

SCENARIO(reap_sharer, IPT_INDEX, prepare_unshare, act_reap_sharer, 1)

SCENARIO(registry, IPT_INDEX, NULL, act_register, 1)

/* The reaper dies too, and another goes on with it. */
static void act_reap(struct scene *s)
{
	ipt_vm_reap(s->t, s->vm, NULL, NULL);
}

SCENARIO(reap_index, IPT_INDEX, prepare_unmap, act_reap, 1)
SCENARIO(reap_radix, IPT_RADIX, prepare_unmap, act_reap, 1)

static void act_clone(struct scene *s)
{
	vmid_t vm;

	if (ipt_vm_add(s->t, "clone", s->vm, &vm))
		_exit(1);
	ipt_vm_reap(s->t, vm, NULL, NULL);
}

/* A clone's registration, cut short, must not keep its template from being reaped. */
Test(ipt_kill, clone)
{
	if (UNDER_TSAN)
		cr_skip_test("killed processes are beyond the thread sanitizer");
	for (unsigned k = 0;; k++) {
		struct ipt *t = help_table(IPT_INDEX, 1000);
		struct scene s = {.t = t, .vm = help_vm(t, "template")};
		vmid_t clone;
		int status;

		pid_t pid = help_fork();
		if (pid == 0) {
			help_die_at(k);
			act_clone(&s);
			_exit(0);
		}
		cr_assert_eq(waitpid(pid, &status, 0), pid);
		if (!ipt_vm_find(t, "clone", &clone))
			reap_rest(t, clone);
		help_reap(t, s.vm);
		help_audit(t);
		ipt_detach(t);
		if (WIFEXITED(status))
			break;
	}
}

/* A freeze cut short is done or not done, by what the registry says to the next who looks. */
Test(ipt_kill, freeze)
{
	unsigned done = 0, undone = 0;

	if (UNDER_TSAN)
		cr_skip_test("killed processes are beyond the thread sanitizer");
	for (unsigned k = 0;; k++) {
		struct ipt *t = help_table(IPT_INDEX, 1000);
		vmid_t vm = help_vm(t, "vm"), found, on;
		frame_t f = help_mapped(t, vm, 32, 4);
		struct ipt_vm_info info;
		int status;

		pid_t pid = help_fork();
		if (pid == 0) {
			help_die_at(k);
			_exit(ipt_vm_freeze(t, vm, "vm@1", &on) != 0);
		}
		cr_assert_eq(waitpid(pid, &status, 0), pid);
		cr_assert_eq(ipt_vm_find(t, "vm", &on), 0);
		cr_assert_eq(ipt_lookup(t, on, gfn(40)).v, f.v + 8);
		if (on.v == vm.v) {
			undone++;
			cr_assert_eq(ipt_vm_find(t, "vm@1", &found), -ENOENT);
			cr_assert_eq(ipt_vm_freeze(t, vm, "vm@1", &on), 0);
		} else {
			done++;
		}
		cr_assert_eq(ipt_vm_find(t, "vm@1", &found), 0);
		cr_assert_eq(found.v, vm.v);
		cr_assert_eq(ipt_vm_info(t, vm, &info), 0);
		cr_assert_eq(info.kind, IPT_TEMPLATE);
		cr_assert_eq(info.children, 1);
		cr_assert_eq(ipt_vm_info(t, on, &info), 0);
		cr_assert_eq(info.parent.v, vm.v);
		help_audit(t);
		help_reap(t, on);
		help_reap(t, vm);
		help_audit(t);
		ipt_detach(t);
		if (WIFEXITED(status))
			break;
	}
	cr_assert(done > 3 && undone > 3, "%u done, %u undone", done, undone);
}
