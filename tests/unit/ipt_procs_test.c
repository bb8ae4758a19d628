/* Several processes and threads at once, some of them killed. */
#include "tests/unit/ipt_help.h"
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PROCS_FRAMES (1 << 15)
#define WORKERS      4
#define WORKER_GFNS  4096
#define STOP         0
#define WRONG        7

struct shared {
	_Atomic int stop;
	_Atomic uint64_t operations;
};

static uint32_t mine[WORKER_GFNS]; /* in the worker: the frame at each of its gfns */

static void wrong(const char *what, unsigned worker, uint64_t g)
{
	fprintf(stderr, "worker %u: %s at gfn %lu\n", worker, what, (unsigned long)g);
	_exit(WRONG);
}

static uint64_t place(unsigned worker, uint32_t g)
{
	return worker % 2 ? g : (uint64_t)(g / 64) << 12 | g % 64;
}

static void worker_map(struct ipt *t, vmid_t vm, unsigned worker, struct help_random *r)
{
	const unsigned orders[] = {0, 0, 2, 4, 4, 5};
	unsigned order = orders[help_below(r, 6)];
	uint32_t g = help_below(r, WORKER_GFNS) & ~((1u << order) - 1);
	struct ipt_hint hint = {frame(help_below(r, PROCS_FRAMES)), 0, 0};
	bool taken = false;
	frame_t f;

	for (uint32_t i = g; i < g + (1u << order); i++)
		taken |= mine[i] != UINT32_MAX;
	if (ipt_alloc(t, vm, order, help_below(r, 2) ? &hint : NULL, &f))
		return;
	int err = ipt_map(t, vm, gfn(place(worker, g)), f, 1u << order);
	if (err != (taken ? -EEXIST : 0))
		wrong("map", worker, g);
	if (err && ipt_free(t, vm, f, 1u << order))
		wrong("free", worker, g);
	for (uint32_t i = 0; !err && i < 1u << order; i++)
		mine[g + i] = f.v + i;
}

static void worker_unmap(struct ipt *t, vmid_t vm, unsigned worker, struct help_random *r)
{
	uint32_t n = 1 + help_below(r, 16), g = help_below(r, WORKER_GFNS / 64) * 64;

	g += help_below(r, 64 - n);
	if (ipt_unmap(t, vm, gfn(place(worker, g)), n, NULL, NULL))
		wrong("unmap", worker, g);
	for (uint32_t i = g; i < g + n; i++) {
		if (mine[i] != UINT32_MAX && ipt_free(t, vm, frame(mine[i]), 1))
			wrong("free", worker, i);
		mine[i] = UINT32_MAX;
	}
}

static void worker_check(struct ipt *t, vmid_t vm, unsigned worker, uint32_t g)
{
	struct ipt_owner o;
	frame_t f = ipt_lookup(t, vm, gfn(place(worker, g)));

	if (f.v != mine[g])
		wrong("look-up", worker, g);
	if (!frame_valid(f))
		return;
	if (ipt_owner(t, f, &o) || o.vm.v != vm.v || o.gfn.v != place(worker, g))
		wrong("owner", worker, g);
	if (g % 8 == 0) {
		if (ipt_pin(t, vm, gfn(place(worker, g)), &f) || f.v != mine[g])
			wrong("pin", worker, g);
		ipt_unpin(t, f);
	}
}

/* A VM's process: changes its own mappings and knows what they are, and reads everybody's. */
static void work(struct ipt *t, struct shared *sh, vmid_t vm, unsigned worker, uint64_t seed)
{
	struct help_random r = {seed};

	memset(mine, 0xff, sizeof(mine));
	while (!atomic_load(&sh->stop)) {
		if (help_below(&r, 2))
			worker_map(t, vm, worker, &r);
		else
			worker_unmap(t, vm, worker, &r);
		for (int i = 0; i < 4; i++)
			worker_check(t, vm, worker, help_below(&r, WORKER_GFNS));
		ipt_lookup(t, vmid(1 + help_below(&r, WORKERS)), gfn(help_below(&r, WORKER_GFNS)));
		atomic_fetch_add(&sh->operations, 1);
	}
	for (uint32_t g = 0; g < WORKER_GFNS; g++)
		worker_check(t, vm, worker, g);
	_exit(0);
}

static pid_t start(struct ipt *t, struct shared *sh, unsigned worker, vmid_t *vm, uint64_t seed)
{
	char name[IPT_NAME_LEN];

	snprintf(name, sizeof(name), "worker%u", worker);
	*vm = help_vm(t, name);
	pid_t pid = help_fork();
	if (pid == 0)
		work(t, sh, *vm, worker, seed);
	cr_assert_gt(pid, 0);
	return pid;
}

static int wait_for(pid_t pid)
{
	int status = 0;

	cr_assert_eq(waitpid(pid, &status, 0), pid);
	return status;
}

/* Rounds of: all work, one after another is killed and reaped while the others go on, all stop, audit. */
static void rounds(enum ipt_kind kind, unsigned nrounds, unsigned kills)
{
	struct shared *sh =
		mmap(NULL, sizeof(*sh), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct help_random r = {99};

	for (unsigned round = 0; round < nrounds; round++) {
		struct ipt *t = help_table_of(kind, PROCS_FRAMES, 1 + round % 2, 1);
		vmid_t vm[WORKERS];
		pid_t pid[WORKERS];

		atomic_store(&sh->stop, 0);
		for (unsigned i = 0; i < WORKERS; i++)
			pid[i] = start(t, sh, i, &vm[i], help_next(&r));
		for (unsigned k = 0; k < kills; k++) {
			struct timespec pause = {0, 500000 + help_below(&r, 4000000)};
			unsigned i = help_below(&r, WORKERS);

			nanosleep(&pause, NULL);
			kill(pid[i], SIGKILL);
			int status = wait_for(pid[i]);
			cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL,
				  "worker %u found something wrong: %x", i, status);
			help_reap(t, vm[i]);
			pid[i] = start(t, sh, i, &vm[i], help_next(&r));
		}
		atomic_store(&sh->stop, 1);
		for (unsigned i = 0; i < WORKERS; i++)
			cr_assert_eq(wait_for(pid[i]), 0, "worker %u found something wrong", i);
		help_audit(t);
		for (unsigned i = 0; i < WORKERS; i++)
			help_reap(t, vm[i]);
		help_audit(t);
		cr_assert_eq(ipt_free_frames(t), PROCS_FRAMES);
		ipt_detach(t);
	}
	cr_assert_gt(atomic_load(&sh->operations), 1000);
}

BOTH_KINDS(ipt_procs, one_is_killed_the_others_go_on)
{
	if (UNDER_TSAN)
		cr_skip_test("killed processes are beyond the thread sanitizer");
	rounds(kind, UNDER_SLOW ? 4 : 15, 20);
}

/* ---- threads: readers while elements move ---------------------------------------------------- */

#define FIXED 512

struct reading {
	struct ipt *t;
	vmid_t vm;
	const frame_t *fixed;
	_Atomic int stop;
	_Atomic unsigned wrong, reads;
};

static uint64_t fixed_gfn(unsigned i)
{
	return i * UINT64_C(4099) + (i % 3 ? i : 0);
}

static void *read_fixed(void *arg)
{
	struct reading *r = arg;
	struct ipt_key keys[16];
	frame_t out[16];
	unsigned n = 0;

	while (!atomic_load(&r->stop)) {
		for (unsigned i = 0; i < 16; i++, n++)
			keys[i] = (struct ipt_key){r->vm, gfn(fixed_gfn(n % FIXED))};
		ipt_lookup_batch(r->t, keys, out, 16);
		for (unsigned i = 0; i < 16; i++) {
			unsigned at = (n - 16 + i) % FIXED;
			frame_t f = ipt_lookup(r->t, r->vm, keys[i].gfn), pinned;

			if (f.v != r->fixed[at].v || out[i].v != f.v)
				atomic_fetch_add(&r->wrong, 1);
			if (frame_valid(ipt_lookup(r->t, r->vm, gfn(UINT64_C(1) << 35 | at))))
				atomic_fetch_add(&r->wrong, 1);
			if (ipt_pin(r->t, r->vm, keys[i].gfn, &pinned) || pinned.v != f.v)
				atomic_fetch_add(&r->wrong, 1);
			else
				ipt_unpin(r->t, pinned);
		}
		atomic_fetch_add(&r->reads, 16);
	}
	return NULL;
}

/* Map everything else, singly and in clusters, so that the tables grow again and again; unmap it. */
static void churn(struct ipt *t, vmid_t vm, unsigned round)
{
	uint64_t base = UINT64_C(1) << 30;
	frame_t f;

	for (uint64_t i = 0; !ipt_alloc(t, vm, round % 2 ? 4 : 0, NULL, &f); i++)
		cr_assert_eq(ipt_map(t, vm, gfn(base + i * 16), f, round % 2 ? 16 : 1), 0);
	for (uint64_t i = 0; i < PROCS_FRAMES; i++) {
		f = ipt_lookup(t, vm, gfn(base + i * 16));
		if (!frame_valid(f))
			break;
		cr_assert_eq(ipt_unmap(t, vm, gfn(base + i * 16), 16, NULL, NULL), 0);
		cr_assert_eq(ipt_free(t, vm, f, round % 2 ? 16 : 1), 0);
	}
}

BOTH_KINDS(ipt_procs, readers_find_everything_while_tables_grow)
{
	static frame_t fixed[FIXED];

	for (unsigned round = 0; round < (UNDER_SLOW ? 2 : 10); round++) {
		struct ipt *t = help_table(kind, PROCS_FRAMES / (UNDER_SLOW ? 4 : 1));
		vmid_t still = help_vm(t, "still"), moving = help_vm(t, "moving");
		struct reading r = {.t = t, .vm = still, .fixed = fixed};
		pthread_t readers[2];

		for (unsigned i = 0; i < FIXED; i++)
			fixed[i] = help_mapped(t, still, fixed_gfn(i), 0);
		for (int i = 0; i < 2; i++)
			cr_assert_eq(pthread_create(&readers[i], NULL, read_fixed, &r), 0);
		churn(t, moving, round);
		while (atomic_load(&r.reads) < 1000)
			usleep(100);
		atomic_store(&r.stop, 1);
		for (int i = 0; i < 2; i++)
			pthread_join(readers[i], NULL);
		cr_assert_eq(atomic_load(&r.wrong), 0);
		help_audit(t);
		ipt_detach(t);
	}
}

/* ---- threads of several VMs change things in the same stripes and zones ----------------------- */

struct changing {
	struct ipt *t;
	vmid_t vm;
	uint64_t seed;
	unsigned wrong;
};

static void *change(void *arg)
{
	struct changing *c = arg;
	struct help_random r = {c->seed};
	uint32_t have[256];
	frame_t f;

	memset(have, 0xff, sizeof(have));
	for (unsigned i = 0; i < (UNDER_SLOW ? 4000 : 100000); i++) {
		uint32_t at = help_below(&r, 256);

		if (have[at] == UINT32_MAX) {
			if (ipt_alloc(c->t, c->vm, 4, NULL, &f))
				continue;
			c->wrong += ipt_map(c->t, c->vm, gfn(at * 16), f, 16) != 0;
			have[at] = f.v;
		} else {
			c->wrong += ipt_lookup(c->t, c->vm, gfn(at * 16 + 5)).v != have[at] + 5;
			c->wrong += ipt_unmap(c->t, c->vm, gfn(at * 16), 16, NULL, NULL) != 0;
			c->wrong += ipt_free(c->t, c->vm, frame(have[at]), 16) != 0;
			have[at] = UINT32_MAX;
		}
	}
	return NULL;
}

BOTH_KINDS(ipt_procs, many_writers)
{
	struct ipt *t = help_table(kind, 4096);
	struct changing c[4];
	pthread_t threads[4];

	for (unsigned i = 0; i < 4; i++) {
		c[i] = (struct changing){t, help_vm(t, (char[]){(char)('a' + i), 0}), i + 1, 0};
		cr_assert_eq(pthread_create(&threads[i], NULL, change, &c[i]), 0);
	}
	for (unsigned i = 0; i < 4; i++) {
		pthread_join(threads[i], NULL);
		cr_assert_eq(c[i].wrong, 0);
	}
	help_audit(t);
	ipt_detach(t);
}
