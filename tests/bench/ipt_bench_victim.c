/*
 * Reclaim's questions to the table, against per-VM radix tables without a reverse map:
 *
 * reclaim-victim-*: whose is this frame, and who sees it? By the table one read, and a look-up for each that there is;
 * with per-VM tables every VM's is searched for the frame. What grows with the pool is told as a ratio: 4 Mi frames
 * over 64 Ki.
 *
 * reclaim-shootdown-*: a shared page leaves memory and has to go out of all page tables that have it. Processes, each
 * with some threads, map a page of a memfd; whom it concerns is asked (the table: ipt_viewers; per-VM tables: a walk of
 * each VM's), then a hole is punched at the page, which takes it out of everyone's page tables. The unmapping is the
 * same for both, so the ratio of the wholes should come near to 1.
 */
#include "ipt/radix.h"
#include "tests/bench/ipt_bench.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define VMS       64
#define SIZES     4
#define ASKED     4096 /* frames asked for in a round */
#define SOUGHT    16   /* of them, by searching */
#define ROUNDS    9
#define SHARERS   64 /* processes, at most */
#define THREADS   4
#define SHOOTINGS 40

static const uint32_t sizes[SIZES] = {1u << 16, 1u << 18, 1u << 20, 1u << 22};
static const char *const names[SIZES] = {"64ki", "256ki", "1mi", "4mi"};

/* VMs that fill the pool, a 64 KiB cluster of each in turn. */
static struct ipt *world(enum ipt_kind kind, uint32_t frames)
{
	struct ipt *t = bench_make(kind, VMS + 8, frames);
	vmid_t vm[VMS];

	for (unsigned i = 0; i < VMS; i++)
		vm[i] = bench_add_vm(t, "vm", i, INVALID_VMID);
	for (uint64_t g = 0; g < frames / VMS; g += IPT_CLUSTER_FRAMES) {
		for (unsigned i = 0; i < VMS; i++) {
			bench_map(t, vm[i], g, IPT_CLUSTER_ORDER);
		}
	}
	return t;
}

static bool count_viewer(void *ctx, vmid_t vm, gfn_t g, enum ipt_place_kind how)
{
	(void)vm, (void)g, (void)how;
	++*(unsigned *)ctx;
	return true;
}

/* ---- victims ------------------------------------------------------------------------------- */

static double owners(struct ipt *t, uint32_t frames)
{
	uint64_t start = bench_ns(), last = 0;

	for (unsigned i = 0; i < ASKED; i++) {
		struct ipt_owner o;
		/* Each waits for the one before it. */
		uint32_t f = (uint32_t)((bench_random() >> 16) + (last >> 63)) % frames;

		bench_check(ipt_owner(t, frame(f), &o), "owner");
		last = o.gfn.v + o.vm.v;
	}
	return (double)(bench_ns() - start) / ASKED;
}

/* One random read of an array of as many words: what memory alone costs, the more the larger it is. */
static double reads(const uint64_t *array, uint32_t frames)
{
	uint64_t start = bench_ns(), last = 0;

	for (unsigned i = 0; i < ASKED; i++)
		last = array[((uint32_t)(bench_random() >> 16) + (last >> 63)) % frames];
	if (last)
		abort();
	return (double)(bench_ns() - start) / ASKED;
}

static uint64_t *array_of(uint32_t frames)
{
	void *a = mmap(NULL, frames * sizeof(uint64_t), PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	bench_check(a == MAP_FAILED ? -ENOMEM : 0, "array");
	return a;
}

static double viewers(struct ipt *t, uint32_t frames)
{
	uint64_t start = bench_ns();
	unsigned seen = 0;

	for (unsigned i = 0; i < ASKED; i++)
		bench_check(ipt_viewers(t, frame((uint32_t)(bench_random() >> 16) % frames),
					count_viewer, &seen),
			    "viewers");
	if (seen != ASKED)
		bench_check(-EPROTO, "a frame of one VM has another number of viewers");
	return (double)(bench_ns() - start) / ASKED;
}

/* Who maps it? All tables are searched until it is found; for all viewers, to the end. */
static double searches(struct ipt *t, uint32_t frames, bool all)
{
	uint64_t start = bench_ns();

	for (unsigned i = 0; i < SOUGHT; i++) {
		uint32_t f = (uint32_t)(bench_random() >> 16) % frames;

		for (uint32_t vm = 1; vm <= VMS; vm++) {
			uint32_t root = load_acquire32(&t->vms[vm].radix_root);

			if (root && bench_search(t, root - 1, RADIX_LEVELS - 1, f) && !all)
				break;
		}
	}
	return (double)(bench_ns() - start) / SOUGHT;
}

static void tell_growth(const char *id, struct bench_samples *large, struct bench_samples *small,
			double bound)
{
	struct bench_samples ratio = {.n = 0};

	for (unsigned i = 0; i < ROUNDS; i++)
		bench_add(&ratio, large->v[i] / small->v[i]);
	bench_tell(id, &ratio, "ratio", bound);
}

static void victims(void)
{
	static struct bench_samples owner[SIZES], viewer[SIZES], sought[SIZES], all[SIZES],
		read[SIZES];
	uint64_t *array[SIZES];
	struct ipt *ours[SIZES], *radix[SIZES];

	for (unsigned s = 0; s < SIZES; s++) {
		ours[s] = world(IPT_INDEX, sizes[s]);
		radix[s] = world(IPT_RADIX, sizes[s]);
		array[s] = array_of(sizes[s]);
		owners(ours[s], sizes[s]);
	}
	for (unsigned r = 0; r < ROUNDS; r++) {
		for (unsigned k = 0; k < SIZES; k++) {
			unsigned s = r % 2 ? SIZES - 1 - k : k;

			bench_add(&owner[s], owners(ours[s], sizes[s]));
			bench_add(&read[s], reads(array[s], sizes[s]));
			bench_add(&viewer[s], viewers(ours[s], sizes[s]));
			bench_add(&sought[s], searches(radix[s], sizes[s], false));
			bench_add(&all[s], searches(radix[s], sizes[s], true));
		}
	}
	tell_growth("reclaim-victim-owner-growth", &owner[3], &owner[0], 4);
	tell_growth("reclaim-victim-read-growth", &read[3], &read[0], -1);
	tell_growth("reclaim-victim-viewers-growth", &viewer[3], &viewer[0], 4);
	tell_growth("reclaim-victim-radix-growth", &sought[3], &sought[0], -1);
	for (unsigned s = 0; s < SIZES; s++) {
		char id[64];

		snprintf(id, sizeof(id), "reclaim-victim-owner-ns-%s", names[s]);
		bench_tell(id, &owner[s], "ns", -1);
		snprintf(id, sizeof(id), "reclaim-victim-viewers-ns-%s", names[s]);
		bench_tell(id, &viewer[s], "ns", -1);
		snprintf(id, sizeof(id), "reclaim-victim-radix-owner-ns-%s", names[s]);
		bench_tell(id, &sought[s], "ns", -1);
		snprintf(id, sizeof(id), "reclaim-victim-radix-viewers-ns-%s", names[s]);
		bench_tell(id, &all[s], "ns", -1);
		munmap(array[s], sizes[s] * sizeof(uint64_t));
		ipt_detach(ours[s]);
		ipt_detach(radix[s]);
	}
}

/* ---- shootdown ----------------------------------------------------------------------------- */

/* What the sharers have in common with who shoots: how often they are to touch the page, and have. */
static struct shared {
	_Atomic uint32_t wanted, touched;
	_Atomic bool over;
} * shared;
static int memfd;

static void *toucher(void *arg)
{
	volatile uint8_t *page = arg;
	uint32_t done = 0;

	while (!atomic_load(&shared->over)) {
		if (atomic_load(&shared->wanted) == done) {
			syscall(SYS_futex, &shared->wanted, FUTEX_WAIT, done, NULL, NULL, 0);
			continue;
		}
		(void)*page;
		done++;
		atomic_fetch_add(&shared->touched, 1);
	}
	return NULL;
}

/* A process as a VM's is: `threads` of them have the page in their CPU's reach. */
static void sharer(unsigned threads)
{
	pthread_t t[THREADS];
	void *page = mmap(NULL, PAGE_SIZE, PROT_READ, MAP_SHARED, memfd, 0);

	if (page == MAP_FAILED)
		_exit(1);
	for (unsigned i = 0; i < threads; i++)
		if (pthread_create(&t[i], NULL, toucher, page))
			_exit(1);
	for (unsigned i = 0; i < threads; i++)
		pthread_join(t[i], NULL);
	_exit(0);
}

static void call_all(void)
{
	atomic_fetch_add(&shared->wanted, 1);
	syscall(SYS_futex, &shared->wanted, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

static double wall_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

/* All have it again, as a guest that goes on has. */
static void touch_all(unsigned n)
{
	struct timespec little = {0, 100000};

	if (pwrite(memfd, "x", 1, 0) != 1)
		abort();
	atomic_store(&shared->touched, 0);
	call_all();
	while (atomic_load(&shared->touched) != n)
		nanosleep(&little, NULL);
	nanosleep(&little, NULL); /* until they sleep again */
}

static double unmap(void)
{
	double start = wall_ns();

	if (fallocate(memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE_SIZE) < 0)
		abort();
	return wall_ns() - start;
}

/* The frame that all sharers see: a template's; with per-VM tables, the same gfn of each. */
struct question {
	struct ipt *ours, *radix;
	frame_t frame;
	unsigned sharers;
};

static double ask_ours(const struct question *q)
{
	double start = wall_ns();
	unsigned seen = 0;

	bench_check(ipt_viewers(q->ours, q->frame, count_viewer, &seen), "viewers");
	double ns = wall_ns() - start;
	if (seen < q->sharers)
		bench_check(-EPROTO, "too few viewers");
	return ns;
}

/* They are where the first one has them, or it would take a search: the best case. */
static double ask_radix(const struct question *q)
{
	double start = wall_ns();
	unsigned seen = 0;

	for (uint32_t vm = 1; vm <= q->sharers; vm++)
		seen += frame_valid(ipt_lookup(q->radix, vmid(vm), gfn(77)));
	double ns = wall_ns() - start;
	if (seen != q->sharers)
		bench_check(-EPROTO, "too few that map it");
	return ns;
}

static struct question question(unsigned sharers)
{
	struct question q = {.ours = bench_make(IPT_INDEX, VMS + 8, 4096),
			     .radix = bench_make(IPT_RADIX, VMS + 8, SHARERS * 512),
			     .sharers = sharers};
	vmid_t vm = bench_add_vm(q.ours, "vm", 0, INVALID_VMID), template;

	bench_check(ipt_alloc(q.ours, vm, 9, NULL, &q.frame), "allocate");
	bench_check(ipt_map(q.ours, vm, gfn(0), q.frame, 512), "map");
	bench_check(ipt_vm_freeze(q.ours, vm, "vm@1", &template), "freeze");
	for (unsigned i = 1; i < sharers; i++)
		bench_add_vm(q.ours, "clone", i, vm);
	q.frame = frame_add(q.frame, 77);
	for (unsigned i = 0; i < sharers; i++) {
		frame_t f;

		vm = bench_add_vm(q.radix, "vm", i, INVALID_VMID);
		bench_check(ipt_alloc(q.radix, vm, 9, NULL, &f), "allocate");
		bench_check(ipt_map(q.radix, vm, gfn(0), f, 512), "map");
	}
	return q;
}

static void shoot(unsigned sharers, unsigned threads)
{
	static struct bench_samples ratio, whole, asked, asked_radix;
	struct question q = question(sharers);
	pid_t pid[SHARERS];
	char id[64];

	ratio.n = whole.n = asked.n = asked_radix.n = 0;
	*shared = (struct shared){.over = false};
	fflush(stdout);
	for (unsigned i = 0; i < sharers; i++) {
		pid[i] = fork();
		if (pid[i] == 0)
			sharer(threads);
	}
	for (unsigned i = 0; i < SHOOTINGS; i++) {
		double ns[2], ask[2];

		for (unsigned k = 0; k < 2; k++) {
			unsigned side = (i + k) % 2;

			touch_all(sharers * threads);
			ask[side] = side ? ask_radix(&q) : ask_ours(&q);
			ns[side] = ask[side] + unmap();
		}
		bench_add(&ratio, ns[0] / ns[1]);
		bench_add(&whole, ns[0]);
		bench_add(&asked, ask[0]);
		bench_add(&asked_radix, ask[1]);
	}
	atomic_store(&shared->over, true);
	call_all();
	for (unsigned i = 0; i < sharers; i++)
		waitpid(pid[i], NULL, 0);
	ipt_detach(q.ours);
	ipt_detach(q.radix);
	snprintf(id, sizeof(id), "reclaim-shootdown-ratio-%u-sharers-%u-vcpus", sharers, threads);
	bench_tell(id, &ratio, "ratio", -1);
	snprintf(id, sizeof(id), "reclaim-shootdown-ns-%u-sharers-%u-vcpus", sharers, threads);
	bench_tell(id, &whole, "ns", -1);
	if (threads > 1)
		return;
	snprintf(id, sizeof(id), "reclaim-shootdown-ask-ns-%u-sharers", sharers);
	bench_tell(id, &asked, "ns", -1);
	snprintf(id, sizeof(id), "reclaim-shootdown-ask-radix-ns-%u-sharers", sharers);
	bench_tell(id, &asked_radix, "ns", -1);
}

static void shootdowns(void)
{
	memfd = memfd_create("shootdown", MFD_CLOEXEC);
	shared = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (memfd < 0 || ftruncate(memfd, PAGE_SIZE) < 0 || shared == MAP_FAILED)
		abort();
	for (unsigned sharers = 1; sharers <= SHARERS; sharers *= 2)
		for (unsigned threads = 1; threads <= THREADS; threads *= 2)
			shoot(sharers, threads);
	munmap(shared, PAGE_SIZE);
	close(memfd);
}

void bench_victim(void)
{
	if (bench_wanted_under("reclaim-victim-"))
		victims();
	if (bench_wanted_under("reclaim-shootdown-"))
		shootdowns();
}
