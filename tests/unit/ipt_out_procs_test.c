/*
 * Several processes, some of which are killed, or threads, send pages out and fetch them back at once. Each
 * writes into the space that it claims, and finds what it wrote there: nobody else was given it.
 */
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

#define FRAMES  4096
#define PACKED  300
#define BLOCKS  1000
#define WORKERS 4
#define GFNS    1024
#define WRONG   7

enum what { NOTHING, MAPPED, AWAY };

struct shared {
	_Atomic int stop;
	_Atomic uint64_t outs;
	_Atomic uint32_t granule[PACKED * IPT_GRANULES], block[BLOCKS];
};

struct worker {
	struct ipt *t;
	struct shared *sh;
	vmid_t vm;
	unsigned number;
	struct help_random r;
	uint32_t serial;
	uint64_t outs;
	const char *wrong; /* what was found, NULL for nothing */
	struct {
		enum what what;
		uint32_t f;
		struct ipt_out out;
	} at[GFNS];
};

static void wrong(struct worker *w, const char *what)
{
	if (!w->wrong)
		fprintf(stderr, "worker %u: %s\n", w->number, what);
	w->wrong = what;
}

/* What is kept there: written, or found to be as it was written. */
static void keep(struct worker *w, const struct ipt_out *out, bool write)
{
	uint32_t at = out->where & ~IPT_IN_FILE, n = (out->bytes + 63) / 64;
	_Atomic uint32_t *p = &w->sh->granule[at];

	if (!out->bytes)
		return;
	if (out->where & IPT_IN_FILE) {
		p = &w->sh->block[at];
		n = 1;
	}
	for (uint32_t i = 0; i < n; i++) {
		if (write)
			atomic_store(&p[i], out->sum + i);
		else if (atomic_load(&p[i]) != out->sum + i)
			wrong(w, "somebody wrote here");
	}
}

static void worker_map(struct worker *w, uint32_t g, uint32_t n)
{
	bool taken = false;
	frame_t f;

	for (uint32_t i = g; i < g + n; i++)
		taken |= w->at[i].what != NOTHING;
	if (ipt_alloc(w->t, w->vm, n == 16 ? 4 : 0, NULL, &f))
		return;
	if (ipt_map(w->t, w->vm, gfn(g), f, n) != (taken ? -EEXIST : 0))
		wrong(w, "map");
	if (taken && ipt_free(w->t, w->vm, f, n))
		wrong(w, "free");
	for (uint32_t i = 0; !taken && i < n; i++) {
		w->at[g + i].what = MAPPED;
		w->at[g + i].f = f.v + i;
	}
}

static void worker_out(struct worker *w, uint32_t g, uint32_t n)
{
	uint32_t slots[16], done, want = 0, where = help_below(&w->r, 3) ? 0 : IPT_IN_FILE;
	uint32_t most = help_below(&w->r, 2) ? PAGE_SIZE : 500;
	struct ipt_out out[16];

	for (uint32_t i = 0; i < n; i++) {
		out[i] = (struct ipt_out){where, help_below(&w->r, most + 1),
					  w->number << 28 | w->serial};
		w->serial = (w->serial + 64) & ((1u << 28) - 1);
	}
	int err = ipt_out_claim(w->t, w->vm, out, n, slots);
	if (err) {
		if (err != -ENOSPC)
			wrong(w, "claim");
		return;
	}
	for (uint32_t i = 0; i < n; i++)
		keep(w, &out[i], true);
	while (want < n && w->at[g + want].what == MAPPED)
		want++;
	err = ipt_out_commit(w->t, w->vm, gfn(g), slots, n, &done, NULL, NULL);
	if (done != want || err != (want < n ? -ENOENT : 0))
		wrong(w, "commit");
	for (uint32_t i = 0; i < done; i++) {
		if (ipt_free(w->t, w->vm, frame(w->at[g + i].f), 1))
			wrong(w, "free");
		w->at[g + i].what = AWAY;
		w->at[g + i].out = out[i];
	}
	ipt_out_cancel(w->t, w->vm, slots + done, n - done);
	w->outs += done;
}

static void worker_back(struct worker *w, uint32_t g, uint32_t n)
{
	bool taken = false;
	frame_t f;

	for (uint32_t i = g; i < g + n; i++) {
		taken |= w->at[i].what == MAPPED;
		if (w->at[i].what == AWAY)
			keep(w, &w->at[i].out, false);
	}
	if (ipt_alloc(w->t, w->vm, n == 16 ? 4 : 0, NULL, &f))
		return;
	if (ipt_map_over(w->t, w->vm, gfn(g), f, n, NULL, NULL) != (taken ? -EEXIST : 0))
		wrong(w, "map over");
	if (taken && ipt_free(w->t, w->vm, f, n))
		wrong(w, "free");
	for (uint32_t i = 0; !taken && i < n; i++) {
		w->at[g + i].what = MAPPED;
		w->at[g + i].f = f.v + i;
	}
}

static void worker_drop(struct worker *w, uint32_t g, uint32_t n)
{
	uint32_t done;

	if (help_below(&w->r, 2) ? ipt_unmap(w->t, w->vm, gfn(g), n, NULL, NULL)
				 : ipt_drop(w->t, w->vm, gfn(g), n, &done, NULL, NULL))
		wrong(w, "drop");
	for (uint32_t i = g; i < g + n; i++) {
		if (w->at[i].what == MAPPED && ipt_free(w->t, w->vm, frame(w->at[i].f), 1))
			wrong(w, "free");
		w->at[i].what = NOTHING;
	}
}

static void worker_check(struct worker *w, uint32_t g)
{
	bool away = w->at[g].what == AWAY;
	struct ipt_out out;
	vmid_t at;

	if (ipt_lookup(w->t, w->vm, gfn(g)).v !=
	    (w->at[g].what == MAPPED ? w->at[g].f : INVALID_FRAME.v))
		wrong(w, "look-up");
	if (ipt_out_read(w->t, w->vm, gfn(g), &out, &at) != (away ? 0 : -ENOENT))
		wrong(w, "read");
	else if (away && (memcmp(&out, &w->at[g].out, sizeof(out)) || at.v != w->vm.v))
		wrong(w, "what was read");
	if (away)
		keep(w, &w->at[g].out, false);
}

static int see_trim(void *ctx, uint32_t first, uint32_t n)
{
	(void)ctx;
	return first + n > PACKED ? -EIO : 0;
}

static void worker_step(struct worker *w)
{
	bool cluster = help_below(&w->r, 3) == 0;
	uint32_t g = help_below(&w->r, GFNS), n = 1;

	if (cluster) {
		g &= ~15u;
		n = 16;
	}
	switch (help_below(&w->r, 4)) {
	case 0:
		worker_map(w, g, n);
		break;
	case 1:
		n = cluster ? n : 1 + help_below(&w->r, 16 - g % 16);
		worker_out(w, g, n);
		break;
	case 2:
		worker_back(w, g, n);
		break;
	default:
		if (help_below(&w->r, 2))
			worker_drop(w, g, n);
		else if (help_below(&w->r, 20) == 0 &&
			 ipt_packed_trim(w->t, 0, PACKED, see_trim, NULL))
			wrong(w, "trim");
	}
	worker_check(w, help_below(&w->r, GFNS));
}

static struct shared *shared_make(void)
{
	struct shared *sh =
		mmap(NULL, sizeof(*sh), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	cr_assert_neq(sh, MAP_FAILED);
	return sh;
}

static void worker_init(struct worker *w, struct ipt *t, struct shared *sh, unsigned number,
			uint64_t seed)
{
	char name[IPT_NAME_LEN];

	memset(w, 0, sizeof(*w));
	snprintf(name, sizeof(name), "worker%u", number);
	w->t = t;
	w->sh = sh;
	w->number = number;
	w->r.s = seed;
	w->vm = help_vm(t, name);
}

/* ---- processes ------------------------------------------------------------------------------- */

static pid_t start(struct ipt *t, struct shared *sh, unsigned number, vmid_t *vm, uint64_t seed)
{
	static struct worker w;

	worker_init(&w, t, sh, number, seed);
	*vm = w.vm;
	pid_t pid = help_fork();
	if (pid == 0) {
		while (!atomic_load(&sh->stop) && !w.wrong)
			worker_step(&w);
		for (uint32_t g = 0; g < GFNS; g++)
			worker_check(&w, g);
		atomic_fetch_add(&sh->outs, w.outs);
		_exit(w.wrong ? WRONG : 0);
	}
	cr_assert_gt(pid, 0);
	return pid;
}

static int wait_for(pid_t pid)
{
	int status = 0;

	cr_assert_eq(waitpid(pid, &status, 0), pid);
	return status;
}

static void end(struct ipt *t, const vmid_t *vm)
{
	help_audit(t);
	for (unsigned i = 0; i < WORKERS; i++)
		help_reap(t, vm[i]);
	help_audit(t);
	help_space_used(t, 0, 0);
	cr_assert_eq(ipt_free_frames(t), FRAMES);
	ipt_detach(t);
}

Test(ipt_out_procs, one_is_killed_the_others_go_on)
{
	struct shared *sh = shared_make();
	struct help_random r = {77};

	if (UNDER_TSAN)
		cr_skip_test("killed processes are beyond the thread sanitizer");
	for (unsigned round = 0; round < (UNDER_SLOW ? 2 : 6); round++) {
		struct ipt *t = help_table_space(FRAMES, PACKED, BLOCKS);
		vmid_t vm[WORKERS];
		pid_t pid[WORKERS];

		atomic_store(&sh->stop, 0);
		for (unsigned i = 0; i < WORKERS; i++)
			pid[i] = start(t, sh, i, &vm[i], help_next(&r));
		for (unsigned k = 0; k < 20; k++) {
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
		end(t, vm);
	}
	cr_assert_gt(atomic_load(&sh->outs), 1000);
}

/* ---- threads --------------------------------------------------------------------------------- */

static void *work(void *arg)
{
	struct worker *w = arg;

	for (unsigned i = 0; i < (UNDER_SLOW ? 5000 : 60000) && !w->wrong; i++)
		worker_step(w);
	for (uint32_t g = 0; g < GFNS; g++)
		worker_check(w, g);
	return NULL;
}

Test(ipt_out_procs, many_threads)
{
	static struct worker w[WORKERS];
	struct ipt *t = help_table_space(FRAMES, PACKED, BLOCKS);
	struct shared *sh = shared_make();
	pthread_t threads[WORKERS];
	vmid_t vm[WORKERS];

	for (unsigned i = 0; i < WORKERS; i++) {
		worker_init(&w[i], t, sh, i, 1000 + i);
		vm[i] = w[i].vm;
	}
	for (unsigned i = 0; i < WORKERS; i++)
		cr_assert_eq(pthread_create(&threads[i], NULL, work, &w[i]), 0);
	for (unsigned i = 0; i < WORKERS; i++) {
		pthread_join(threads[i], NULL);
		cr_assert_null(w[i].wrong, "worker %u: %s", i, w[i].wrong);
		cr_assert_gt(w[i].outs, 100);
	}
	end(t, vm);
}
