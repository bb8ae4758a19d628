/* Shared frames, aliases and tombs: what is refused, what it costs, and several at once. */
#include "tests/unit/ipt_help.h"
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

Test(ipt_share, publish_and_merge)
{
	struct ipt *t = help_table(IPT_INDEX, 1000);
	vmid_t a = help_vm(t, "a"), b = help_vm(t, "b");
	frame_t fa = help_mapped(t, a, 64, 4), fb = help_mapped(t, b, 164, 3), f;
	struct ipt_place p;
	struct ipt_owner o;
	uint32_t done;

	cr_assert_eq(ipt_publish(t, a, gfn(60), 8, &done), -ENOENT);
	cr_assert_eq(done, 0);
	cr_assert_eq(ipt_publish(t, a, gfn(78), 8, &done), -ENOENT);
	cr_assert_eq(done, 2);
	cr_assert_eq(ipt_publish(t, a, gfn(64), 14, &done), 0);
	cr_assert_eq(ipt_publish(t, a, gfn(64), 1, &done), -ENOENT,
		     "it is no frame of its own now");
	cr_assert_eq(ipt_owner(t, fa, &o), 0);
	cr_assert(o.state == IPT_SHARED && !o.vm.v && o.gfn.v == INVALID_GFN.v);
	cr_assert_eq(ipt_place(t, a, gfn(64), 100, &p), 16);
	cr_assert(p.kind == IPT_MERGED && p.at.v == a.v && p.frame.v == fa.v);

	cr_assert_eq(ipt_merge(t, b, gfn(164), frame_add(fa, 12), 8, &done, NULL, NULL), -ESTALE);
	cr_assert_eq(done, 4);
	cr_assert_eq(ipt_lookup(t, b, gfn(167)).v, fa.v + 15);
	cr_assert_eq(ipt_lookup(t, b, gfn(168)).v, fb.v + 4);
	cr_assert_eq(ipt_merge(t, b, gfn(168), frame(999), 1, &done, NULL, NULL), -ESTALE);
	cr_assert_eq(ipt_merge(t, b, gfn(168), frame_add(fb, 4), 1, &done, NULL, NULL), -ESTALE);
	cr_assert_eq(ipt_merge(t, b, gfn(168), frame(999), 2, &done, NULL, NULL), -EINVAL);
	cr_assert_eq(ipt_merge(t, b, gfn(160), fa, 1, &done, NULL, NULL), -ENOENT);
	cr_assert_eq(ipt_free(t, b, fb, 4), 0);
	help_audit(t);

	/* Pins: by alias, and in the way. */
	cr_assert_eq(ipt_pin(t, b, gfn(165), &f), 0);
	cr_assert_eq(f.v, fa.v + 13);
	cr_assert_eq(ipt_pin(t, b, gfn(169), &f), 0);
	cr_assert_eq(ipt_publish(t, b, gfn(168), 4, &done), -EBUSY);
	cr_assert_eq(done, 1);
	cr_assert_eq(ipt_merge(t, b, gfn(169), fa, 1, &done, NULL, NULL), -EBUSY);
	ipt_unpin(t, f);
	cr_assert_eq(ipt_merge(t, b, gfn(169), fa, 1, &done, NULL, NULL), 0);

	/* The last alias takes the frame along, but not from under the pin. */
	help_reap(t, a);
	cr_assert_eq(ipt_lookup(t, b, gfn(165)).v, fa.v + 13);
	cr_assert_eq(ipt_unmap(t, b, gfn(164), 8, NULL, NULL), 0);
	cr_assert_eq(ipt_owner(t, frame_add(fa, 13), &o), 0);
	cr_assert(o.state == IPT_LIMBO && o.vm.v == b.v);
	cr_assert_eq(ipt_free(t, b, frame_add(fa, 13), 1), -EBUSY);
	ipt_unpin(t, frame_add(fa, 13));
	cr_assert_eq(ipt_free(t, b, frame_add(fa, 13), 1), 0);
	help_reap(t, b);
	cr_assert_eq(ipt_free_frames(t), 1000);
	help_audit(t);
	ipt_detach(t);
}

BOTH_KINDS(ipt_share, what_is_refused)
{
	struct ipt *t = help_table(kind, 100);
	vmid_t vm = help_vm(t, "vm"), on, none = vmid(9);
	frame_t f = help_mapped(t, vm, 0, 4), g;
	int without = kind == IPT_INDEX ? 0 : -EOPNOTSUPP;
	uint32_t done;

	cr_assert_eq(ipt_publish(t, none, gfn(0), 1, &done), -ENOENT);
	cr_assert_eq(ipt_merge(t, none, gfn(0), f, 1, &done, NULL, NULL), -ENOENT);
	cr_assert_eq(ipt_drop(t, none, gfn(0), 1, &done, NULL, NULL), -ENOENT);
	cr_assert_eq(ipt_map_over(t, none, gfn(0), f, 1, NULL, NULL), -ENOENT);
	cr_assert_eq(ipt_publish(t, vm, gfn(0), 0, &done), -EINVAL);
	cr_assert_eq(ipt_publish(t, vm, gfn(IPT_MAX_GFN), 1, &done), -EINVAL);
	cr_assert_eq(ipt_merge(t, vm, gfn(IPT_MAX_GFN - 1), f, 2, &done, NULL, NULL), -EINVAL);
	cr_assert_eq(ipt_merge(t, vm, gfn(0), frame(100), 1, &done, NULL, NULL), -EINVAL);
	cr_assert_eq(ipt_drop(t, vm, gfn(IPT_MAX_GFN - 1), 2, &done, NULL, NULL), -EINVAL);
	cr_assert_eq(ipt_map_over(t, vm, gfn(0), frame(99), 2, NULL, NULL), -EINVAL);
	cr_assert_eq(ipt_map_over(t, vm, gfn(0), frame(50), 2, NULL, NULL), -EPERM);
	g = help_alloc(t, vm, 0);
	cr_assert_eq(ipt_map_over(t, vm, gfn(0), g, 1, NULL, NULL), -EEXIST);
	cr_assert_eq(ipt_map_over(t, vm, gfn(77), g, 1, NULL, NULL), 0);
	cr_assert_eq(ipt_drop(t, vm, gfn(77), 1, &done, NULL, NULL), 0, "no tomb is needed");
	cr_assert_eq(ipt_publish(t, vm, gfn(3), 1, &done), without);

	cr_assert_eq(ipt_vm_freeze(t, vm, "vm@1", &on), 0);
	cr_assert_eq(ipt_publish(t, vm, gfn(0), 1, &done), -EPERM);
	cr_assert_eq(ipt_merge(t, vm, gfn(0), f, 1, &done, NULL, NULL), -EPERM);
	cr_assert_eq(ipt_drop(t, vm, gfn(0), 1, &done, NULL, NULL), -EPERM);
	cr_assert_eq(ipt_map_over(t, vm, gfn(0), g, 1, NULL, NULL), -EPERM);
	cr_assert_eq(ipt_drop(t, on, gfn(0), 1, &done, NULL, NULL), without);
	cr_assert_eq(frame_valid(ipt_lookup(t, on, gfn(0))), kind == IPT_RADIX);
	help_audit(t);
	ipt_detach(t);
}

Test(ipt_share, slots_cost_nothing_until_used)
{
	struct ipt *t = help_table(IPT_INDEX, 1 << 18);
	vmid_t vm = help_vm(t, "vm"), on;
	struct ipt_bytes b;
	struct ipt_counts c;
	uint32_t done;

	for (uint64_t g = 0; g < 1 << 15; g += 512)
		help_mapped(t, vm, g, 9);
	cr_assert_eq(ipt_vm_freeze(t, vm, "vm@1", &on), 0);
	cr_assert_eq(ipt_bytes(t, &b), 0);
	cr_assert_eq(b.slots, 0);
	uint64_t before = b.array + b.forward;
	cr_assert_eq(ipt_drop(t, on, gfn(4096), 8192, &done, NULL, NULL), 0);
	cr_assert_eq(ipt_bytes(t, &b), 0);
	ipt_counts(t, &c);
	cr_assert_eq(c.frames[IPT_TOMB], 8192);
	cr_assert_eq(c.cluster_elements, (1 << 11) + 512, "tombs in clusters");
	cr_assert_leq(b.slots, 8192 * 8 + 4096, "no links for tombs");
	cr_assert_leq(b.array + b.forward - before, 8192);
	help_audit(t);
	ipt_detach(t);
}

/* ---- look-ups while what stands at a gfn is replaced ----------------------------------------- */

#define GFNS 64

struct watching {
	struct ipt *t;
	vmid_t vm;
	frame_t parents; /* what the parent has at gfn 0, and so on */
	_Atomic unsigned stop, wrong, rounds;
};

/* Every gfn is the VM's own or merged at all times: never void, never the parent's. */
static void *watch(void *arg)
{
	struct watching *w = arg;

	while (!atomic_load(&w->stop)) {
		for (uint32_t g = 0; g < GFNS; g++) {
			struct ipt_place p;
			frame_t f = ipt_lookup(w->t, w->vm, gfn(g)), pinned;

			ipt_place(w->t, w->vm, gfn(g), 3, &p);
			if (!frame_valid(f) || f.v == w->parents.v + g ||
			    (p.kind != IPT_OWN && p.kind != IPT_MERGED))
				atomic_fetch_add(&w->wrong, 1);
			if (ipt_pin(w->t, w->vm, gfn(g), &pinned) || pinned.v == w->parents.v + g)
				atomic_fetch_add(&w->wrong, 1);
			else
				ipt_unpin(w->t, pinned);
		}
		atomic_fetch_add(&w->rounds, 1);
	}
	return NULL;
}

Test(ipt_share, nobody_sees_what_is_beneath)
{
	struct ipt *t = help_table(IPT_INDEX, 4096);
	vmid_t vm = help_vm(t, "vm"), on;
	frame_t parents = help_mapped(t, vm, 0, 6), f;
	struct help_random r = {5};
	pthread_t thread;
	uint32_t done;

	cr_assert_eq(ipt_vm_freeze(t, vm, "vm@1", &on), 0);
	help_mapped(t, on, 0, 6);
	help_mapped(t, on, 1000, 0);
	cr_assert_eq(ipt_publish(t, on, gfn(1000), 1, &done), 0);
	frame_t shared = ipt_lookup(t, on, gfn(1000));
	struct watching w = {.t = t, .vm = on, .parents = parents};
	cr_assert_eq(pthread_create(&thread, NULL, watch, &w), 0);
	for (unsigned i = 0; i < (UNDER_SLOW ? 2000 : 40000) || !atomic_load(&w.rounds); i++) {
		uint64_t g = help_below(&r, GFNS);
		uint32_t n = 1 + help_below(&r, (uint32_t)(GFNS - g));
		struct ipt_place p;

		switch (help_below(&r, 4)) {
		case 0:
			ipt_publish(t, on, gfn(g), n < 4 ? n : 4, &done);
			break;
		case 1:
			ipt_merge(t, on, gfn(g), shared, 1, &done, NULL, NULL);
			break;
		default:
			n = ipt_place(t, on, gfn(g), n, &p);
			n = n < 16 ? n : 16;
			if (p.kind != IPT_MERGED || ipt_alloc(t, on, 4, NULL, &f))
				break;
			cr_assert_eq(ipt_map_over(t, on, gfn(g), f, n, NULL, NULL), 0);
		}
		for (uint32_t at = 0; i % 64 == 0 && at < 4096; at++)
			ipt_free(t, on, frame(at), 1);
	}
	atomic_store(&w.stop, 1);
	pthread_join(thread, NULL);
	cr_assert_eq(atomic_load(&w.wrong), 0, "%u", atomic_load(&w.wrong));
	help_audit(t);
	help_reap(t, on);
	help_reap(t, vm);
	cr_assert_eq(ipt_free_frames(t), 4096);
	help_audit(t);
	ipt_detach(t);
}

/* ---- processes that share with each other, and are killed ------------------------------------ */

#define WORKERS 4
#define FRAMES  8192
#define BOARD   64

struct board {
	_Atomic int stop;
	_Atomic uint32_t frame[BOARD]; /* somebody published it once */
	_Atomic uint64_t merged;
};

static void must(bool ok, const char *what, uint64_t g)
{
	if (ok)
		return;
	fprintf(stderr, "%s at gfn %lu\n", what, (unsigned long)g);
	_exit(7);
}

/* One gfn of a clone's, whose template has every gfn: whatever is done, the place says that it is so. */
static void share_once(struct ipt *t, struct board *b, vmid_t vm, struct help_random *r)
{
	uint64_t g = help_below(r, GFNS);
	uint32_t at = help_below(r, BOARD), done;
	struct ipt_place p;
	frame_t f;
	int err;

	ipt_place(t, vm, gfn(g), 1, &p);
	switch (help_below(r, 4)) {
	case 0:
		if (p.kind == IPT_OWN || ipt_alloc(t, vm, 0, NULL, &f))
			return;
		must(!ipt_map_over(t, vm, gfn(g), f, 1, NULL, NULL), "map over", g);
		must(ipt_lookup(t, vm, gfn(g)).v == f.v, "mapped", g);
		break;
	case 1:
		err = ipt_publish(t, vm, gfn(g), 1, &done);
		must(err == (p.kind == IPT_OWN ? 0 : -ENOENT), "publish", g);
		if (!err)
			atomic_store(&b->frame[at], p.frame.v);
		break;
	case 2:
		f = frame(atomic_load(&b->frame[at]));
		err = ipt_merge(t, vm, gfn(g), f, 1, &done, NULL, NULL);
		must(err == 0 || err == (p.kind == IPT_OWN ? -ESTALE : -ENOENT), "merge", g);
		if (!err)
			must(ipt_lookup(t, vm, gfn(g)).v == f.v, "merged", g);
		atomic_fetch_add(&b->merged, !err);
		break;
	default:
		if (help_below(r, 2))
			ipt_drop(t, vm, gfn(g), 3, &done, NULL, NULL);
		else
			ipt_unmap(t, vm, gfn(g), 1, NULL, NULL);
		ipt_place(t, vm, gfn(g), 1, &p);
		must(p.kind == IPT_VOID || (g < 48 && p.kind == IPT_INHERITED), "drop", g);
	}
}

static void share_on(struct ipt *t, struct board *b, vmid_t vm, uint64_t seed)
{
	struct help_random r = {seed};

	for (unsigned i = 1; !atomic_load(&b->stop); i++) {
		share_once(t, b, vm, &r);
		for (uint32_t f = 0; i % 200 == 0 && f < FRAMES; f++)
			ipt_free(t, vm, frame(f), 1);
	}
	_exit(0);
}

static pid_t start(struct ipt *t, struct board *b, vmid_t template, unsigned i, vmid_t *vm,
		   uint64_t seed)
{
	char name[IPT_NAME_LEN];

	snprintf(name, sizeof(name), "clone%u", i);
	cr_assert_eq(ipt_vm_add(t, name, template, vm), 0);
	pid_t pid = help_fork();
	if (pid == 0)
		share_on(t, b, *vm, seed);
	cr_assert_gt(pid, 0);
	return pid;
}

Test(ipt_share, one_is_killed_the_others_go_on)
{
	struct board *b =
		mmap(NULL, sizeof(*b), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct help_random r = {17};
	vmid_t vm[WORKERS];
	pid_t pid[WORKERS];
	int status;

	if (UNDER_TSAN)
		cr_skip_test("killed processes are beyond the thread sanitizer");
	struct ipt *t = help_table(IPT_INDEX, FRAMES);
	vmid_t template = help_vm(t, "template");
	help_mapped(t, template, 0, 5);
	help_mapped(t, template, 32, 4);
	for (unsigned i = 0; i < WORKERS; i++)
		pid[i] = start(t, b, template, i, &vm[i], help_next(&r));
	for (unsigned k = 0; k < (UNDER_SLOW ? 50 : 300); k++) {
		struct timespec pause = {0, 500000 + help_below(&r, 3000000)};
		unsigned i = help_below(&r, WORKERS);

		nanosleep(&pause, NULL);
		kill(pid[i], SIGKILL);
		cr_assert_eq(waitpid(pid[i], &status, 0), pid[i]);
		cr_assert(WIFSIGNALED(status), "worker %u found something wrong", i);
		help_reap(t, vm[i]);
		pid[i] = start(t, b, template, i, &vm[i], help_next(&r));
	}
	atomic_store(&b->stop, 1);
	for (unsigned i = 0; i < WORKERS; i++) {
		cr_assert_eq(waitpid(pid[i], &status, 0), pid[i]);
		cr_assert_eq(status, 0, "worker %u found something wrong", i);
	}
	cr_assert_gt(atomic_load(&b->merged), 1000);
	help_audit(t);
	for (unsigned i = 0; i < WORKERS; i++)
		help_reap(t, vm[i]);
	help_reap(t, template);
	cr_assert_eq(ipt_free_frames(t), FRAMES);
	help_audit(t);
	ipt_detach(t);
}
