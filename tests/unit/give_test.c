/*
 * Giving memory back (vmm/give.c), without KVM: a guest's thread that owns its pages and gives some of them, one that
 * touches what it doesn't own, as no driver should, and this one, which plays the VM's loop. Needs the right to
 * userfaultfd's faults, and skips without.
 */
#include "tests/unit/ipt_help.h"
#include "vmm/error.h"
#include "vmm/memory.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define POOL_FRAMES 16384
#define MEM         (40 * MiB)
#define FIRST       UINT64_C(512)

static struct pool pool;
static struct ipt *table;
static struct memory memory;
static struct machine machine;
static struct mailbox mailbox;
static struct fault_queue waiting;

static void make(void)
{
	char error[ERROR_MAX] = "";
	vmid_t id;
	cr_assert_eq(pool_create(&pool, POOL_FRAMES, error), 0, "%s", error);
	cr_assert_eq(pool_map(&pool, error), 0);
	table = help_table(IPT_INDEX, POOL_FRAMES);
	snprintf(machine.name, sizeof machine.name, "giver");
	machine.cpus = 1;
	cr_assert_eq(machine_set_memory(&machine, MEM), 0);
	cr_assert_eq(machine_add_pmem(&machine, 2 * MiB), 0);
	cr_assert_eq(ipt_vm_add(table, "giver", INVALID_VMID, &id), 0);
	int rc = memory_create(&memory, table, id, &machine, &pool, &mailbox, error);
	if (rc == -EPERM || rc == -EACCES)
		cr_skip_test("%s", error);
	cr_assert_eq(rc, 0, "%s", error);
}

static void all_comes_back(void)
{
	help_audit(table);
	cr_expect_eq(ipt_vm_reap(table, memory.vm, pool_clean, &pool), 0);
	help_audit(table);
	cr_expect_eq(ipt_free_frames(table), POOL_FRAMES);
	cr_expect_eq(pool_populated_bytes(&pool), 0);
}

/* As a device does. */
static void put(uint64_t g, uint64_t value)
{
	cr_assert_eq(gmem_write(&memory.gmem, gpa((g << PAGE_SHIFT) + 8), &value, 8), 0);
}

static uint64_t get(uint64_t g)
{
	uint64_t value;
	cr_assert_eq(gmem_read(&memory.gmem, gpa((g << PAGE_SHIFT) + 8), &value, 8), 0);
	return value;
}

static bool is_void(uint64_t g)
{
	return !frame_valid(ipt_lookup(table, memory.vm, gfn(g)));
}

static unsigned mappings(void)
{
	char line[512];
	unsigned n = 0;
	FILE *f = fopen("/proc/self/maps", "re");
	while (f && fgets(line, sizeof line, f))
		n++;
	if (f)
		fclose(f);
	return n;
}

Test(give, frames_come_back_and_nothing_else_goes)
{
	make();
	unsigned before = mappings();
	for (uint64_t g = FIRST; g < FIRST + 2048; g++)
		put(g, g);
	/* At odd places: parts of clusters, of 2 MiB, and what was given already. */
	static const uint64_t part[][2] = {{3, 5},     {10, 1},  {16, 16},
					   {100, 700}, {90, 50}, {2047, 1}};
	for (unsigned i = 0; i < 6; i++)
		cr_expect_eq(memory_give(&memory, gfn(FIRST + part[i][0]), part[i][1]), 0);
	for (uint64_t g = 0; g < 2048; g++) {
		bool given = false;
		for (unsigned i = 0; i < 6; i++)
			given = given || (g >= part[i][0] && g < part[i][0] + part[i][1]);
		cr_expect_eq(is_void(FIRST + g), given, "page %zu", (size_t)g);
		if (!given)
			cr_expect_eq(get(FIRST + g), FIRST + g, "page %zu", (size_t)g);
	}
	cr_expect_eq(memory_give(&memory, gfn(FIRST), 2048), 0);
	cr_expect_eq(mailbox.given_frames, 2048);
	cr_expect_eq(ipt_free_frames(table), POOL_FRAMES);
	cr_expect_eq(pool_populated_bytes(&pool), 0);
	cr_expect_leq(mappings(), before, "the void is in one piece again");
	for (uint64_t g = FIRST; g < FIRST + 2048; g++)
		cr_expect(!memory_touched(&memory, g / IPT_CLUSTER_FRAMES));
	for (uint64_t g = FIRST; g < FIRST + 2048; g++)
		cr_expect_eq(get(g), 0);
	all_comes_back();
}

Test(give, what_is_in_use_or_no_memory)
{
	struct iovec iov;
	make();
	for (uint64_t g = FIRST; g < FIRST + 64; g++)
		put(g, g);
	cr_assert_eq(gmem_map(&memory.gmem, gfn_gpa(gfn(FIRST + 20)), PAGE_SIZE, true, &iov, 1), 1);
	cr_expect_eq(memory_give(&memory, gfn(FIRST), 64), 0);
	for (uint64_t g = 0; g < 64; g++)
		cr_expect_eq(is_void(FIRST + g), g != 20);
	gmem_unmap(&memory.gmem, &iov, 1);
	cr_expect_eq(get(FIRST + 20), FIRST + 20);
	cr_expect_eq(memory_give(&memory, gfn(FIRST + 20), 1), 0);
	cr_expect(is_void(FIRST + 20));
	uint64_t end = MEM >> PAGE_SHIFT;
	put(end - 1, 7);
	cr_expect_eq(memory_give(&memory, gfn(end - 1), 1), 0, "the last page");
	cr_expect(is_void(end - 1));
	cr_expect_eq(memory_give(&memory, gfn(end - 1), 2), -EFAULT);
	cr_expect_eq(memory_give(&memory, gfn(end), 1), -EFAULT);
	cr_expect_eq(memory_give(&memory, gfn(0), 0), -EFAULT);
	cr_expect_eq(memory_give(&memory, gfn(0), UINT64_MAX), -EFAULT);
	cr_expect_eq(memory_give(&memory, gfn(UINT64_MAX), 2), -EFAULT);
	cr_expect_eq(memory_give(&memory, gfn(UINT64_MAX >> PAGE_SHIFT), 1), -EFAULT);
	/* Persistent memory is memory, but isn't given. */
	cr_expect_eq(memory_give(&memory, gpa_gfn(machine.bank[1].base), 512), 0);
	all_comes_back();
}

/* ---- while the guest goes on --------------------------------------------------------------- */

#define PAGES 1024u

static _Atomic bool stop;
static _Atomic uint64_t asked, answered; /* first << 16 | count, and a number above */
static uint64_t held[PAGES];             /* what the owner wrote to each page last; 0: nothing */

/* The window is closed for a moment: as KVM_RUN's EFAULT, try again. */
static void try_again(int signal)
{
	(void)signal;
	sched_yield();
}

static volatile uint64_t *word(uint64_t page, unsigned i)
{
	return (volatile uint64_t *)window_at(&memory.window, gfn(FIRST + page)) + i;
}

static void *owner(void *arg)
{
	uint64_t random = 1, wrong = 0, round = 0;
	(void)arg;
	while (!atomic_load(&stop)) {
		random = random * 6364136223846793005u + 1442695040888963407u;
		uint64_t first = (random >> 30) % PAGES,
			 n = 1 + (random >> 50) % (round % 8 ? 40 : 600);
		n = n < PAGES - first ? n : PAGES - first;
		uint64_t ask = ++round << 32 | first << 16 | n;
		atomic_store(&asked, ask);
		while (atomic_load(&answered) != ask && !atomic_load(&stop))
			sched_yield();
		if (atomic_load(&stop))
			break;
		/* They are its own again; what it writes now must stay. */
		for (uint64_t p = first; p < first + n; p++) {
			uint64_t has = *word(p, 1);
			wrong += has && has != held[p];
			held[p] = round << 16 | p;
			*word(p, 1) = held[p];
		}
		for (uint64_t p = 0; p < PAGES; p++)
			wrong += *word(p, 1) != held[p];
	}
	return (void *)(uintptr_t)wrong;
}

/* Reads and writes all over the place, in words of its own. */
static void *vandal(void *arg)
{
	uint64_t random = 5, sum = 0;
	(void)arg;
	while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
		random = random * 6364136223846793005u + 1442695040888963407u;
		volatile uint64_t *at = word((random >> 30) % PAGES, 100);
		if (random >> 62)
			sum += *at;
		else
			*at = random;
	}
	return (void *)(uintptr_t)(sum & 1);
}

Test(give, what_the_guest_writes_after_it_gave_stays, .timeout = 60)
{
	pthread_t thread[2];
	make();
	signal(SIGSEGV, try_again);
	struct timespec t0, t;
	clock_gettime(CLOCK_MONOTONIC, &t0);
	pthread_create(&thread[0], NULL, owner, NULL);
	pthread_create(&thread[1], NULL, vandal, NULL);
	uint64_t gifts = 0;
	do {
		uint64_t ask = atomic_load(&asked);
		cr_assert_eq(fault_service(&memory, &waiting), 0);
		if (ask != atomic_load(&answered)) {
			uint64_t first = ask >> 16 & 0xffff, n = ask & 0xffff;
			cr_assert_eq(memory_give(&memory, gfn(FIRST + first), n), 0);
			gifts++;
			atomic_store(&answered, ask);
		}
		clock_gettime(CLOCK_MONOTONIC, &t);
	} while ((t.tv_sec - t0.tv_sec) * 1000 + (t.tv_nsec - t0.tv_nsec) / 1000000 < 1000 ||
		 gifts < 20);
	atomic_store(&stop, true);
	for (int i = 0; i < 2; i++) {
		void *wrong;
		while (pthread_tryjoin_np(thread[i], &wrong))
			cr_assert_eq(fault_service(&memory, &waiting), 0);
		cr_expect(i || !wrong, "%zu words wrong", (size_t)wrong);
	}
	/* Devices see what the guest does. */
	for (uint64_t p = 0; p < PAGES; p++)
		if (!is_void(FIRST + p)) {
			cr_expect_eq(get(FIRST + p), *word(p, 1), "page %zu", (size_t)p);
			put(FIRST + p, 77);
			cr_expect_eq(*word(p, 1), 77);
		}
	cr_expect_eq(memory_give(&memory, gfn(FIRST), PAGES), 0);
	cr_expect_eq(ipt_free_frames(table), POOL_FRAMES);
	all_comes_back();
}
