/*
 * The VM's part of reclaim (vmm/evict.c, fetch.c, reclaim_vm.c), without KVM: a thread plays the guest, this one the VM's
 * loop, and the reclaimer too. Needs the right to userfaultfd's faults, and skips without.
 */
#include "tests/unit/ipt_help.h"
#include "vmm/error.h"
#include "vmm/evict.h"
#include "vmm/pool.h"
#include "vmm/reclaim_shared.h"
#include "vmm/store.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define POOL_FRAMES 4096
#define MEM         (32 * MiB)
#define FIRST       UINT64_C(512)
#define PACKED      (1 * MiB)
#define IN_FILE     (2 * MiB)

static struct pool pool;
static struct ipt *table;
static struct store store = {.mem_fd = -1, .file_fd = -1};
static struct reclaim_board *board;
static struct memory memory;
static struct machine machine;
static struct mailbox mailbox;
static struct fault_queue waiting;
static char path[] = "/tmp/invisor-reclaim-XXXXXX";

static void make(uint64_t packed, uint64_t in_file)
{
	char error[ERROR_MAX] = "";
	vmid_t id;
	if (in_file) {
		int fd = mkstemp(path);
		cr_assert_geq(fd, 0);
		close(fd);
		unlink(path);
	}
	int rc = store_create(&store, packed, in_file ? path : NULL, in_file, error);
	cr_assert_eq(rc, 0, "%s", error);
	cr_assert_eq(pool_create(&pool, POOL_FRAMES, error), 0, "%s", error);
	cr_assert_eq(pool_map(&pool, error), 0);
	table = help_table_space(POOL_FRAMES, store.mem_pages, store.file_blocks);
	board = reclaim_board_create(ipt_config(table)->max_vms, POOL_FRAMES, &(int){-1});
	cr_assert_not_null(board);
	snprintf(machine.name, sizeof machine.name, "vm");
	machine.cpus = 1;
	cr_assert_eq(machine_set_memory(&machine, MEM), 0);
	cr_assert_eq(ipt_vm_add(table, "vm", INVALID_VMID, &id), 0);
	rc = memory_create(&memory, table, id, &machine, &pool, &mailbox, error);
	if (rc == -EPERM || rc == -EACCES)
		cr_skip_test("%s", error);
	cr_assert_eq(rc, 0, "%s", error);
	memory.store = &store;
	memory.reclaim = board;
	reclaim_desk_clear(board, id, RECLAIM_SHARES, 0, 0);
}

static void space_is(uint64_t granules, uint32_t blocks)
{
	struct ipt_space_info info;
	ipt_space(table, &info);
	cr_expect_eq(info.granules_used, granules, "%lu granules", info.granules_used);
	cr_expect_eq(info.blocks_used, blocks, "%u blocks", info.blocks_used);
}

static void all_comes_back(void)
{
	help_audit(table);
	store_io_destroy(memory.io);
	cr_expect_eq(ipt_vm_reap(table, memory.vm, pool_clean, &pool), 0);
	help_audit(table);
	cr_expect_eq(ipt_free_frames(table), POOL_FRAMES);
	cr_expect_eq(pool_populated_bytes(&pool), 0);
	space_is(0, 0);
	store_destroy(&store);
	unlink(path);
}

/* ---- pages, and who reads them ------------------------------------------------------------- */

enum kind { ZERO, TEXT, NOISE };
typedef enum kind kinds_fn(uint64_t g);

static enum kind zero(uint64_t g)
{
	(void)g;
	return ZERO;
}

static enum kind text(uint64_t g)
{
	(void)g;
	return TEXT;
}

static enum kind noise(uint64_t g)
{
	(void)g;
	return NOISE;
}

static enum kind mixed(uint64_t g)
{
	return (enum kind)(g * 5 / 2 % 3);
}

static uint64_t word_of(uint64_t g, unsigned word, enum kind kind)
{
	uint64_t z = (g * 512 + word + 1) * UINT64_C(0x9e3779b97f4a7c15);
	z = (z ^ z >> 29) * UINT64_C(0xff51afd7ed558ccd);
	return kind == ZERO ? 0 : kind == TEXT ? g * 1000 + word / 64 : z ^ z >> 32;
}

static void fill(uint64_t g, enum kind kind)
{
	uint64_t page[PAGE_SIZE / 8];
	for (unsigned i = 0; i < PAGE_SIZE / 8; i++)
		page[i] = word_of(g, i, kind);
	cr_assert_eq(gmem_write(&memory.gmem, gfn_gpa(gfn(g)), page, sizeof page), 0);
}

static void fill_all(uint64_t first, uint32_t n, kinds_fn *kinds)
{
	for (uint64_t g = first; g < first + n; g++)
		fill(g, kinds(g));
}

static bool is_right(const volatile uint64_t *page, uint64_t g, enum kind kind)
{
	bool right = true;
	for (unsigned i = 0; i < PAGE_SIZE / 8; i++)
		right &= page[i] == word_of(g, i, kind);
	return right;
}

/* A guest's reading, or a write that changes nothing, of n pages by the window. */
struct guest {
	uint64_t first;
	uint32_t n;
	kinds_fn *kinds;
	bool write;
	uint32_t wrong;
	_Atomic bool done;
};

static void *be_guest(void *arg)
{
	struct guest *u = arg;
	for (uint64_t g = u->first; g < u->first + u->n; g++) {
		volatile uint64_t *at = (volatile uint64_t *)window_at(&memory.window, gfn(g));
		if (u->write)
			at[7] = word_of(g, 7, u->kinds(g));
		u->wrong += !is_right(at, g, u->kinds(g));
	}
	atomic_store(&u->done, true);
	return NULL;
}

static uint32_t guest_finds_wrong(uint64_t first, uint32_t n, kinds_fn *kinds, bool write)
{
	struct guest u = {.first = first, .n = n, .kinds = kinds, .write = write};
	pthread_t t;
	cr_assert_eq(pthread_create(&t, NULL, be_guest, &u), 0);
	while (!atomic_load(&u.done)) {
		cr_assert_eq(fault_service(&memory, &waiting), 0);
		sched_yield();
	}
	pthread_join(t, NULL);
	return u.wrong;
}

static uint32_t device_finds_wrong(uint64_t first, uint32_t n, kinds_fn *kinds)
{
	uint64_t page[PAGE_SIZE / 8];
	uint32_t wrong = 0;
	for (uint64_t g = first; g < first + n; g++) {
		cr_assert_eq(gmem_read(&memory.gmem, gfn_gpa(gfn(g)), page, sizeof page), 0);
		wrong += !is_right(page, g, kinds(g));
	}
	return wrong;
}

static enum ipt_place_kind place(uint64_t g)
{
	struct ipt_place p;
	ipt_place(table, memory.vm, gfn(g), 1, &p);
	return p.kind;
}

static uint32_t count(uint64_t first, uint32_t n, enum ipt_place_kind kind)
{
	uint32_t is = 0;
	for (uint64_t g = first; g < first + n; g++)
		is += place(g) == kind;
	return is;
}

static struct evict_count evict(uint64_t first, uint32_t n)
{
	struct evict_count c = {0};
	pthread_mutex_lock(&memory.lock);
	for (uint64_t g = first; g < first + n;) {
		uint32_t room = (uint32_t)(16 - g % 16), left = (uint32_t)(first + n - g);
		room = room < left ? room : left;
		cr_assert_eq(memory_evict(&memory, gfn(g), room, &c), 0);
		g += room;
	}
	pthread_mutex_unlock(&memory.lock);
	return c;
}

/* The window shows the frames that the table has, and nobody watches: without a fault being served. */
static bool is_mapped_privately(uint64_t first, uint32_t n)
{
	bool is = true;
	for (uint64_t g = first; g < first + n; g++) {
		frame_t f = ipt_lookup(table, memory.vm, gfn(g));
		volatile uint64_t *at = (volatile uint64_t *)window_at(&memory.window, gfn(g));
		volatile uint64_t *in_pool = frame_valid(f) ? pool_at(&pool, f) : NULL;
		if (!in_pool)
			return false;
		uint64_t was = *at;
		*at = ~was;
		is &= *in_pool == ~was;
		*at = was;
	}
	return is;
}

/* ---- out and in ---------------------------------------------------------------------------- */

static void go_out_and_come_back(kinds_fn *kinds, uint64_t first, uint32_t n)
{
	bool packed = store.mem_pages, file = store.file_blocks;
	uint32_t zeroes = 0, stay = 0;
	for (int by = 0; by < 3; by++) {
		fill_all(first, n, kinds);
		zeroes = stay = 0;
		for (uint64_t g = first; g < first + n; g++) {
			zeroes += kinds(g) == ZERO;
			stay += kinds(g) == NOISE && !file;
		}
		uint32_t free = ipt_free_frames(table);
		struct evict_count c = evict(first, n);
		cr_expect_eq(c.freed, n - stay);
		cr_expect_eq(c.refused, stay);
		cr_expect_eq(c.zero, zeroes);
		cr_expect_eq(c.errors + c.full, 0);
		cr_expect_eq(c.packed_bytes > 0, packed && zeroes + stay < n && kinds != noise);
		cr_expect_eq(ipt_free_frames(table), free + n - stay);
		cr_expect_eq(count(first, n, IPT_OWN), stay);
		uint32_t wrong = by == 0 ? device_finds_wrong(first, n, kinds)
					 : guest_finds_wrong(first, n, kinds, by == 2);
		cr_expect_eq(wrong, 0, "%u of %u pages are wrong", wrong, n);
		cr_expect_eq(count(first, n, IPT_AWAY), 0);
		/* What a device reads of void pages stays void to the window. */
		guest_finds_wrong(first, n, kinds, true);
		cr_expect_eq(count(first, n, IPT_OWN), n);
		cr_expect(is_mapped_privately(first, n));
		space_is(0, 0);
	}
}

static void all_sorts(void)
{
	static kinds_fn *const kinds[] = {zero, text, noise, mixed};
	for (int i = 0; i < 4; i++) {
		go_out_and_come_back(kinds[i], FIRST + (uint64_t)i * 64, 16);
		go_out_and_come_back(kinds[i], FIRST + (uint64_t)i * 64 + 21, 1);
		go_out_and_come_back(kinds[i], FIRST + (uint64_t)i * 64 + 35, 7);
		go_out_and_come_back(kinds[i], FIRST + (uint64_t)i * 64, 60);
	}
	all_comes_back();
}

Test(reclaim_vm, bytes_come_back_from_packed_memory)
{
	make(PACKED, 0);
	all_sorts();
}

Test(reclaim_vm, bytes_come_back_from_the_file)
{
	make(0, IN_FILE);
	all_sorts();
}

Test(reclaim_vm, bytes_come_back_from_both)
{
	make(PACKED, IN_FILE);
	all_sorts();
}

Test(reclaim_vm, neighbours_come_back_once_they_are_wanted)
{
	make(PACKED, 0);
	fill_all(FIRST, 64, text);
	evict(FIRST, 64);
	cr_expect_eq(device_finds_wrong(FIRST + 5, 1, text), 0);
	cr_expect_eq(count(FIRST, 64, IPT_AWAY), 63, "nothing says that they are wanted");
	cr_expect_eq(device_finds_wrong(FIRST + 8, 1, text), 0);
	cr_expect_eq(count(FIRST, 64, IPT_AWAY), 59, "four at a time, then");
	cr_expect_eq(device_finds_wrong(FIRST + 16, 1, text), 0);
	cr_expect_eq(count(FIRST + 16, 16, IPT_AWAY), 0);
	cr_expect_eq(mailbox.fetched_frames, 1 + 4 + 16);
	cr_expect_eq(mailbox.fetched_soon, mailbox.fetched_frames);
	/* Those around that are in memory hinder nobody. */
	cr_expect_eq(guest_finds_wrong(FIRST, 64, text, false), 0);
	cr_expect(is_mapped_privately(FIRST, 64));
	all_comes_back();
}

/* A page here and a page there, too far apart to be taken for neighbours. */
static void bring_every_second_back(uint64_t first, uint32_t n)
{
	for (uint32_t i = 0; i < n / 2; i++)
		cr_assert_eq(device_finds_wrong(first + 2 * (i * 37 % (n / 2)), 1, text), 0);
	cr_assert_eq(count(first, n, IPT_OWN), n / 2);
}

Test(reclaim_vm, what_is_a_mapping_of_its_own_goes_out_of_a_crowded_window)
{
	make(PACKED, 0);
	fill_all(FIRST, 512, text);
	evict(FIRST, 512);
	bring_every_second_back(FIRST, 512);
	fill_all(FIRST + 1024, 64, text);
	memory.mappings.most = memory_count_mappings(&memory);
	cr_expect_eq(evict(FIRST + 1024 + 16, 16).refused, 16, "from the midst of a mapping");
	cr_expect(memory_is_crowded(&memory));
	uint32_t before = memory_count_mappings(&memory);
	for (uint64_t g = FIRST; g < FIRST + 512; g += 2)
		cr_expect_eq(evict(g, 1).freed, 1);
	cr_expect_leq(memory_count_mappings(&memory), before);
	/* And what comes back then comes back in one piece. */
	cr_expect_eq(device_finds_wrong(FIRST + 5, 1, text), 0);
	cr_expect_eq(count(FIRST, 16, IPT_OWN), 16);
	cr_expect_leq(memory_count_mappings(&memory), before - 14);
	cr_expect_eq(guest_finds_wrong(FIRST, 512, text, false), 0);
	memory.mappings = (struct memory_mappings){0}; /* counted anew */
	cr_expect_eq(evict(FIRST + 1024 + 16, 16).freed, 16);
	cr_expect_eq(guest_finds_wrong(FIRST + 1024, 64, text, true), 0);
	all_comes_back();
}

Test(reclaim_vm, pinned_pages_stay_and_nonsense_is_refused)
{
	struct iovec iov;
	make(PACKED, 0);
	fill_all(FIRST, 32, text);
	cr_assert_eq(gmem_map(&memory.gmem, gfn_gpa(gfn(FIRST + 3)), PAGE_SIZE, true, &iov, 1), 1);
	struct evict_count c = evict(FIRST, 32);
	cr_expect_eq(c.freed, 16);
	cr_expect_eq(c.refused, 16);
	cr_expect_eq(count(FIRST, 16, IPT_OWN), 16);
	cr_expect(is_mapped_privately(FIRST, 16));
	gmem_unmap(&memory.gmem, &iov, 1);
	cr_expect_eq(evict(FIRST, 16).freed, 16);
	cr_expect_eq(evict(FIRST, 16).freed, 0, "they are out");
	cr_expect_eq(evict(FIRST + 1024, 16).freed, 0, "void");
	memory.store = NULL;
	fill_all(FIRST + 64, 16, text);
	cr_expect_eq(evict(FIRST + 64, 16).freed, 0, "no store");
	memory.store = &store;
	cr_expect_eq(guest_finds_wrong(FIRST, 32, text, true), 0);
	all_comes_back();
}

Test(reclaim_vm, a_full_store_leaves_everything_as_it_was)
{
	struct evict_count c = {0};
	make(4 * PAGE_SIZE, 0);
	fill_all(FIRST, 512, text);
	uint32_t n = 0;
	for (; n < 512 && !c.full; n += 16)
		c = evict(FIRST + n, 16);
	n -= 16;
	struct ipt_space_info before, after;
	ipt_space(table, &before);
	cr_assert(c.full);
	cr_expect_eq(c.freed, 0);
	cr_expect_eq(c.refused, 16);
	cr_expect_eq(count(FIRST + n, 16, IPT_OWN), 16);
	cr_expect(is_mapped_privately(FIRST + n, 16));
	uint32_t free = ipt_free_frames(table);
	cr_expect_eq(evict(FIRST + n, 16).full, 1);
	ipt_space(table, &after);
	cr_expect_eq(memcmp(&before, &after, sizeof before), 0);
	cr_expect_eq(ipt_free_frames(table), free);
	cr_expect_eq(guest_finds_wrong(FIRST, 512, text, false), 0);
	all_comes_back();
}

Test(reclaim_vm, a_failing_write_keeps_the_page)
{
	make(0, IN_FILE);
	fill_all(FIRST, 32, noise);
	evict(FIRST, 16);
	signal(SIGXFSZ, SIG_IGN);
	struct rlimit is, none;
	getrlimit(RLIMIT_FSIZE, &is);
	none = is;
	none.rlim_cur = PAGE_SIZE;
	setrlimit(RLIMIT_FSIZE, &none);
	struct evict_count c = evict(FIRST + 16, 16);
	setrlimit(RLIMIT_FSIZE, &is);
	cr_expect_eq(c.freed, 0);
	cr_expect_eq(c.refused, 16);
	cr_expect_eq(c.errors, 1);
	cr_expect_eq(count(FIRST + 16, 16, IPT_OWN), 16);
	cr_expect(is_mapped_privately(FIRST + 16, 16));
	space_is(0, 16);
	cr_expect_eq(guest_finds_wrong(FIRST, 32, noise, false), 0);
	cr_expect_eq(evict(FIRST + 16, 16).freed, 16);
	cr_expect_eq(guest_finds_wrong(FIRST, 32, noise, false), 0);
	all_comes_back();
}

/* Where page g's bytes are. */
static off_t offset_of(uint64_t g)
{
	struct ipt_out out;
	vmid_t at;
	cr_assert_eq(ipt_out_read(table, memory.vm, gfn(g), &out, &at), 0);
	return out.where & IPT_IN_FILE ? ((off_t)(out.where & ~IPT_IN_FILE) + 1) * PAGE_SIZE
				       : (off_t)out.where * STORE_GRANULE;
}

static void damage(int fd, off_t at)
{
	void *p = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
		       at & ~(off_t)PAGE_MASK);
	cr_assert_neq(p, MAP_FAILED);
	((uint8_t *)p)[(at & PAGE_MASK) + 20] ^= 1;
	munmap(p, PAGE_SIZE);
}

static int read_one(uint64_t g)
{
	uint64_t word;
	return gmem_read(&memory.gmem, gfn_gpa(gfn(g)), &word, sizeof word);
}

static void lose_one(kinds_fn *kinds, int fd)
{
	fill_all(FIRST, 16, kinds);
	cr_assert_eq(evict(FIRST, 16).freed, 16);
	damage(fd, offset_of(FIRST + 6));
	cr_expect_eq(device_finds_wrong(FIRST + 1, 1, kinds), 0);
	uint32_t free = ipt_free_frames(table);
	/* This one would bring others along by now. */
	cr_expect_eq(read_one(FIRST + 6), -EBADMSG);
	cr_expect_eq(place(FIRST + 6), IPT_AWAY);
	cr_expect_eq(ipt_free_frames(table), free);
	cr_expect_eq(device_finds_wrong(FIRST + 7, 1, kinds), 0, "its neighbours are well");
	cr_expect_eq(device_finds_wrong(FIRST, 6, kinds), 0);
	cr_expect_eq(device_finds_wrong(FIRST + 8, 8, kinds), 0);
	cr_expect_eq(read_one(FIRST + 6), -EBADMSG);
	/* A fault says it too; what is written whole, no. */
	cr_expect_eq(memory_own(&memory, gfn(FIRST + 6)), -EBADMSG);
	cr_expect_eq(memory_give(&memory, gfn(FIRST + 6), 1), 0);
	cr_expect_eq(guest_finds_wrong(FIRST + 6, 1, zero, false), 0);
}

Test(reclaim_vm, a_damaged_item_is_told_and_stays_out)
{
	make(PACKED, 0);
	lose_one(text, store.mem_fd);
	/* A zero page beside one that is damaged comes back as zeroes. */
	fill_all(FIRST + 64, 4, text);
	fill(FIRST + 66, ZERO);
	cr_assert_eq(evict(FIRST + 64, 4).freed, 4);
	damage(store.mem_fd, offset_of(FIRST + 67));
	for (uint64_t g = FIRST + 65; g >= FIRST + 64; g--)
		cr_expect_eq(device_finds_wrong(g, 1, text), 0);
	cr_expect_eq(read_one(FIRST + 67), -EBADMSG);
	cr_expect_eq(device_finds_wrong(FIRST + 66, 1, zero), 0);
	all_comes_back();
}

Test(reclaim_vm, a_damaged_file_is_told_and_its_pages_stay_out)
{
	make(0, IN_FILE);
	lose_one(noise, store.file_fd);
	fill_all(FIRST + 64, 16, noise);
	cr_assert_eq(evict(FIRST + 64, 16).freed, 16);
	cr_assert_eq(ftruncate(store.file_fd, PAGE_SIZE), 0);
	cr_expect_eq(read_one(FIRST + 64), -EIO);
	cr_expect_eq(memory_own(&memory, gfn(FIRST + 70)), -EIO);
	cr_expect_eq(count(FIRST + 64, 16, IPT_AWAY), 16);
	all_comes_back();
}

/* ---- looking --------------------------------------------------------------------------------- */

static struct reclaim_answer ask(const struct reclaim_run *run, uint32_t runs, uint32_t most)
{
	struct reclaim_desk *d = &board->desk[memory.vm.v];
	memcpy(d->run, run, runs * sizeof *run);
	d->runs = runs;
	d->most = most;
	atomic_store(&d->state, RECLAIM_ASKED);
	int rc = 1, tries = 0;
	for (; rc == 1 && tries < 10000; tries++)
		rc = reclaim_take(&memory, board);
	cr_assert_eq(rc, 0);
	cr_assert_eq(atomic_load(&d->state), RECLAIM_DONE);
	atomic_store(&d->state, RECLAIM_FREE);
	cr_assert_eq(reclaim_take(&memory, board), 0);
	return d->answer;
}

static struct reclaim_answer look(uint64_t first, uint32_t n, uint32_t age, uint32_t most)
{
	const struct reclaim_run r = {first, n, age};
	return ask(&r, 1, most);
}

static void touch(uint64_t g)
{
	volatile uint8_t *at = window_at(&memory.window, gfn(g));
	(void)*at;
}

static uint8_t age_of(uint64_t g)
{
	return ipt_age(table, ipt_lookup(table, memory.vm, gfn(g)));
}

Test(reclaim_vm, what_is_used_stays_and_ages_grow)
{
	make(PACKED, 0);
	fill_all(FIRST, 64, text);
	uint32_t bell = board->bell;
	struct reclaim_answer a = look(FIRST, 64, RECLAIM_LOOK, 1000);
	cr_expect_eq(a.looked, 64);
	cr_expect_eq(a.touched, 0);
	cr_expect_eq(a.evicted.freed, 0);
	cr_expect_eq(age_of(FIRST), 1);
	cr_expect_gt(board->bell, bell);
	touch(FIRST + 20); /* with its cluster */
	a = look(FIRST, 64, 3, 1000);
	cr_expect_eq(a.touched, 16);
	cr_expect_eq(a.evicted.freed, 0);
	cr_expect_eq(age_of(FIRST), 2);
	cr_expect_eq(age_of(FIRST + 31), 0);
	cr_expect(is_mapped_privately(FIRST, 1), "looking costs no userfault");
	look(FIRST, 1, RECLAIM_LOOK, 0); /* which that touched */
	a = look(FIRST + 16, 48, 3, 1000);
	cr_expect_eq(a.touched, 0, "once looked at they begin anew");
	cr_expect_eq(a.evicted.freed, 32);
	cr_expect_eq(count(FIRST + 32, 32, IPT_AWAY), 32);
	cr_expect_eq(age_of(FIRST + 16), 1);
	/* Used or not. */
	touch(FIRST + 16);
	a = look(FIRST + 16, 48, 0, 1000);
	cr_expect_eq(a.touched, 16);
	cr_expect_eq(a.looked, 16, "what is out isn't looked at");
	cr_expect_eq(a.evicted.freed, 16);
	cr_expect_eq(guest_finds_wrong(FIRST, 64, text, false), 0);
	cr_expect_eq(age_of(FIRST + 40), 0, "fresh frames begin anew");
	all_comes_back();
}

Test(reclaim_vm, no_more_goes_than_was_asked_for)
{
	make(PACKED, 0);
	fill_all(FIRST, 256, text);
	cr_expect_eq(look(FIRST, 256, 1, 0).evicted.freed, 0);
	cr_expect_eq(look(FIRST, 256, 1, 1).evicted.freed, 16);
	cr_expect_eq(look(FIRST, 256, 1, 64).evicted.freed, 64);
	const struct reclaim_run odd[] = {
		{FIRST + 200, 1, 1},
		{FIRST + 201, RECLAIM_PAGES, 1},
		{(MEM >> PAGE_SHIFT) - 1, 100, 0},
		{MEM >> PAGE_SHIFT, 1, 0},
		{UINT64_MAX, 512, 0},
		{IPT_MAX_GFN - 1, 2, 0},
		{FIRST, 0, 0},
		{FIRST, UINT32_MAX, RECLAIM_LOOK},
	};
	struct reclaim_answer a = ask(odd, 8, 20);
	cr_expect_geq(a.evicted.freed, 20);
	cr_expect_leq(a.evicted.freed, 35);
	board->desk[memory.vm.v].run[0] = (struct reclaim_run){FIRST, 16, 0};
	board->desk[memory.vm.v].runs = UINT32_MAX;
	atomic_store(&board->desk[memory.vm.v].state, RECLAIM_ASKED);
	int rc;
	while ((rc = reclaim_take(&memory, board)) == 1)
		;
	cr_expect_eq(rc, 0);
	cr_expect_eq(reclaim_take(&memory, NULL), 0);
	cr_expect_eq(guest_finds_wrong(FIRST, 256, text, true), 0);
	all_comes_back();
}

Test(reclaim_vm, what_does_not_pack_is_remembered)
{
	make(PACKED, 0);
	fill_all(FIRST, 32, noise);
	fill_all(FIRST + 4, 8, text);
	struct reclaim_answer a = look(FIRST, 32, 1, 1000);
	cr_expect_eq(a.evicted.freed, 8);
	cr_expect_eq(a.evicted.refused, 24);
	cr_expect_eq(age_of(FIRST), RECLAIM_STUBBORN);
	for (int i = 0; i < 10; i++) {
		a = look(FIRST, 32, i < 5, 1000);
		cr_expect_eq(a.looked, 24);
		cr_expect_eq(a.evicted.refused, 0, "tried again");
	}
	/* What was touched may be something else. */
	fill(FIRST, TEXT);
	touch(FIRST);
	a = look(FIRST, 32, 1, 1000);
	cr_expect_eq(a.evicted.refused, 0);
	a = look(FIRST, 32, 1, 1000);
	cr_expect_eq(a.evicted.freed, 1);
	cr_expect_eq(a.evicted.refused, 3);
	/* And at long last all is. */
	uint32_t looks = 0;
	for (; looks < 200; looks++)
		if (look(FIRST + 16, 16, 1, 1000).evicted.refused)
			break;
	cr_expect_gt(looks, 40);
	cr_expect_lt(looks, IPT_AGE_MOST);
	cr_expect_eq(device_finds_wrong(FIRST + 16, 16, noise), 0);
	all_comes_back();
}

/* ---- when the pool is empty ------------------------------------------------------------------ */

/* Somebody else takes all the frames there are. */
static vmid_t empty_the_pool(void)
{
	vmid_t other;
	frame_t f;
	cr_assert_eq(ipt_vm_add(table, "other", INVALID_VMID, &other), 0);
	for (unsigned order = IPT_MAX_ORDER + 1; order-- > 0;)
		while (ipt_alloc(table, other, order, NULL, &f) == 0)
			;
	cr_assert_eq(ipt_free_frames(table), 0);
	return other;
}

Test(reclaim_vm, our_own_idle_pages_make_room)
{
	make(PACKED, 0);
	fill_all(FIRST, 256, text);
	vmid_t other = empty_the_pool();
	board->desk[memory.vm.v].gives = 2;
	cr_expect_eq(memory_populate(&memory, gfn(FIRST + 1024)), -EAGAIN);
	cr_expect_eq(mailbox.hungry, 1);
	board->desk[memory.vm.v].gives = 1;
	board->full = 1;
	cr_expect_eq(memory_populate(&memory, gfn(FIRST + 1024)), -EAGAIN);
	board->full = 0;
	cr_expect_eq(memory_populate(&memory, gfn(FIRST + 1024)), 0);
	cr_expect_eq(count(FIRST, 256, IPT_AWAY), 128);
	cr_expect_eq(board->counters.freed, 128);
	/* It finds what it has used itself, too: at the second look. */
	cr_expect_eq(guest_finds_wrong(FIRST, 256, text, true), 0);
	pthread_mutex_lock(&memory.lock);
	int freed = reclaim_own(&memory);
	pthread_mutex_unlock(&memory.lock);
	cr_expect_geq(freed, 128);
	cr_expect_eq(guest_finds_wrong(FIRST, 256, text, false), 0);
	cr_expect_eq(ipt_vm_reap(table, other, pool_clean, &pool), 0);
	all_comes_back();
}

/* Nothing can be mapped any more, and so not put back where it was: that isn't a pool that is empty. */
Test(reclaim_vm, a_broken_window_is_told)
{
	const struct pool broken = {.fd = -1, .frames = POOL_FRAMES};
	make(PACKED, 0);
	fill_all(FIRST, 32, text);
	vmid_t other = empty_the_pool();
	memory.window.pool = memory.pool = &broken;
	cr_expect_eq(memory_populate(&memory, gfn(FIRST + 1024)), -EBADF);
	memory.own_hand = 0;
	cr_expect_eq(memory_own(&memory, gfn(FIRST + 1024)), -EBADF);
	memory.window.pool = memory.pool = &pool;
	cr_expect_eq(ipt_vm_reap(table, other, pool_clean, &pool), 0);
	all_comes_back();
}

/* The table has it that the pages are back, but they can't be mapped: their bytes stay. */
Test(reclaim_vm, pages_that_come_back_unmapped_keep_their_bytes)
{
	const struct pool broken = {.fd = -1, .frames = POOL_FRAMES};
	make(PACKED, 0);
	fill_all(FIRST, 16, text);
	evict(FIRST, 16);
	device_finds_wrong(FIRST, 1, text); /* the next takes more */
	memory.window.pool = &broken;
	cr_expect_eq(memory_populate(&memory, gfn(FIRST + 9)), -EBADF);
	memory.window.pool = &pool;
	cr_expect_eq(count(FIRST + 8, 4, IPT_OWN), 4);
	cr_expect_eq(device_finds_wrong(FIRST, 16, text), 0);
	cr_expect_eq(guest_finds_wrong(FIRST, 16, text, true), 0);
	all_comes_back();
}

Test(reclaim_vm, what_is_out_can_be_given_away)
{
	make(PACKED, IN_FILE);
	fill_all(FIRST, 64, mixed);
	cr_assert_eq(evict(FIRST, 64).freed, 64);
	cr_expect_eq(memory_give(&memory, gfn(FIRST + 3), 40), 0);
	cr_expect_eq(count(FIRST + 3, 40, IPT_VOID), 40);
	cr_expect_eq(guest_finds_wrong(FIRST + 3, 40, zero, false), 0);
	cr_expect_eq(guest_finds_wrong(FIRST, 3, mixed, false), 0);
	cr_expect_eq(device_finds_wrong(FIRST + 43, 21, mixed), 0);
	cr_expect_eq(memory_give(&memory, gfn(FIRST), 64), 0);
	cr_expect_eq(ipt_free_frames(table), POOL_FRAMES);
	space_is(0, 0);
	all_comes_back();
}

/* ---- guests that write meanwhile -------------------------------------------------------------- */

#define WRITERS 2
#define PAGES   64

static _Atomic bool stop;

/* Each has a word of its own in every page; what it wrote must be there until it puts back what was there. */
static void *writer(void *arg)
{
	unsigned word = 10 + (unsigned)(uintptr_t)arg * 100;
	uint64_t random = (uintptr_t)arg + 1, wrong = 0;
	while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
		random = random * 6364136223846793005u + 1442695040888963407u;
		uint64_t g = FIRST + (random >> 40) % PAGES, is = word_of(g, word, mixed(g));
		volatile uint64_t *at =
			(volatile uint64_t *)window_at(&memory.window, gfn(g)) + word;
		wrong += *at != is;
		if (random >> 62)
			continue; /* mostly read */
		*at = random;
		for (int i = 0; i < 50; i++)
			wrong += *at != random;
		*at = is;
	}
	return (void *)(uintptr_t)wrong;
}

static uint64_t now_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

Test(reclaim_vm, writes_amid_eviction_are_kept, .timeout = 60)
{
	pthread_t thread[WRITERS];
	struct evict_count c = {0};
	make(PACKED, IN_FILE);
	fill_all(FIRST, PAGES, mixed);
	for (uintptr_t w = 0; w < WRITERS; w++)
		pthread_create(&thread[w], NULL, writer, (void *)w);
	uint64_t until = now_ms() + 500;
	/* On a busy machine it takes longer until enough went out amid the writes. */
	for (uint64_t round = 0; now_ms() < until + (c.freed > 100 ? 0 : 20000); round++) {
		if (round % 8 == 7) {
			look(FIRST, PAGES, 0, 32);
		} else {
			pthread_mutex_lock(&memory.lock);
			cr_assert_eq(memory_evict(&memory, gfn(FIRST + round * 7 % PAGES),
						  1 + (uint32_t)round % 16, &c),
				     0);
			pthread_mutex_unlock(&memory.lock);
		}
		for (int i = 0; i < 10; i++)
			cr_assert_eq(fault_service(&memory, &waiting), 0);
	}
	atomic_store(&stop, true);
	for (int w = 0; w < WRITERS; w++) {
		void *wrong;
		while (pthread_tryjoin_np(thread[w], &wrong))
			cr_assert_eq(fault_service(&memory, &waiting), 0);
		cr_expect_eq((uintptr_t)wrong, 0, "writer %d: %zu wrong", w, (size_t)wrong);
	}
	cr_expect_gt(c.freed, 100);
	cr_expect_gt(c.zero, 0);
	cr_expect_gt(c.in_file, 0);
	cr_expect_gt(c.packed_bytes, 0);
	cr_expect_eq(c.errors, 0);
	cr_expect_eq(device_finds_wrong(FIRST, PAGES, mixed), 0);
	cr_expect_eq(guest_finds_wrong(FIRST, PAGES, mixed, true), 0);
	all_comes_back();
}

/* ---- templates --------------------------------------------------------------------------------- */

static struct mailbox clones_mailbox;

static int keep(void *ctx, uint32_t i, const struct ipt_out *where)
{
	uint8_t(*packed)[STORE_PACKED_MOST] = ctx;
	return store_mem_write(&store, where->where, packed[i], where->bytes);
}

static int settle(void *ctx)
{
	(void)ctx;
	return 0;
}

static int clean(void *ctx, frame_t f, uint32_t n)
{
	(void)ctx;
	return pool_clean(&pool, f, n);
}

/* As the reclaimer does (vmm/reclaim_shared.c): a template's page goes out. */
static void take_template_out(vmid_t template, uint64_t g)
{
	static const struct ipt_out_ops ops = {keep, settle, clean};
	uint8_t packed[1][STORE_PACKED_MOST];
	frame_t f = ipt_lookup(table, template, gfn(g));
	struct ipt_out out = {0};
	cr_assert(frame_valid(f));
	if (!store_is_zero(pool_at(&pool, f))) {
		cr_assert_eq(store_pack(pool_at(&pool, f), packed[0], &out.bytes), 0);
		out.sum = store_sum(packed[0], out.bytes);
	}
	cr_assert_eq(ipt_template_out(table, template, gfn(g), f, &out, 1, &ops, packed), 0);
}

static enum kind text_or_zero(uint64_t g)
{
	return g % 5 ? TEXT : ZERO;
}

/* Freeze the memory; the VM goes on as another. */
static vmid_t freeze(void)
{
	char error[ERROR_MAX] = "";
	vmid_t template = memory.vm, id;
	cr_assert_eq(memory_freeze(&memory, error), 0, "%s", error);
	cr_assert_eq(ipt_vm_freeze(table, template, "vm@1", &id), 0);
	reclaim_desk_clear(board, id, RECLAIM_SHARES, 0, 0);
	memory_go_on(&memory, id, NULL);
	return template;
}

/* In a child: a clone, which finds everything right although pages go out under it. How much was wrong. */
static uint32_t be_clone(vmid_t template, vmid_t clone)
{
	char error[ERROR_MAX] = "";
	uint32_t wrong = 0;
	if (memory_adopt(&memory, error))
		return 1000;
	memory_become(&memory, clone, &clones_mailbox, NULL);
	reclaim_desk_clear(board, clone, RECLAIM_SHARES, 0, 0);
	wrong += guest_finds_wrong(FIRST, 32, text_or_zero, false);
	wrong += count(FIRST, 32, IPT_AWAY) || count(FIRST, 32, IPT_OWN);
	for (int i = 0; i < 3; i++) { /* each time into other frames */
		frame_t was = ipt_lookup(table, clone, gfn(FIRST + 3));
		for (uint64_t g = FIRST; g < FIRST + 48; g++)
			if (place(g) == IPT_INHERITED)
				take_template_out(template, g);
		vmid_t taker; /* so that they are */
		frame_t f;
		cr_assert_eq(ipt_vm_add(table, "taker", INVALID_VMID, &taker), 0);
		cr_assert_eq(ipt_alloc(table, taker, IPT_MAX_ORDER, NULL, &f), 0);
		while (ipt_lookup(table, template, gfn(0)).v == INVALID_FRAME.v &&
		       ipt_alloc(table, taker, 4, NULL, &f) == 0 && f.v < was.v)
			pwrite(pool.fd, "x", 1, (off_t)f.v << PAGE_SHIFT);
		wrong += count(FIRST, 48, IPT_AWAY) < 16;
		wrong += guest_finds_wrong(FIRST, 48, text_or_zero, false);
		wrong += device_finds_wrong(FIRST, 48, text_or_zero);
		frame_t is = ipt_lookup(table, clone, gfn(FIRST + 3));
		wrong += !ipt_moved(table, is);
		wrong += guest_finds_wrong(FIRST + 32, 6 + 4 * (uint32_t)i, text_or_zero, true);
		wrong += count(FIRST + 32, 6, IPT_OWN) != 6;
		wrong += ipt_vm_reap(table, taker, pool_clean, &pool) != 0;
	}
	/* A page that is out and written to. */
	take_template_out(template, FIRST + 1);
	wrong += guest_finds_wrong(FIRST + 1, 1, text_or_zero, true);
	wrong += place(FIRST + 1) != IPT_OWN;
	/* It goes out again, as the clone's own. */
	wrong += evict(FIRST + 1, 1).freed != 1;
	wrong += guest_finds_wrong(FIRST, 64, text_or_zero, false);
	wrong += guest_finds_wrong(FIRST, 64, text_or_zero, true);
	wrong += count(FIRST, 64, IPT_OWN) != 64;
	return wrong;
}

Test(reclaim_vm, templates_pages_come_back_for_all, .timeout = 30)
{
	int status;
	vmid_t clone;
	make(PACKED, 0);
	fill_all(FIRST, 64, text_or_zero);
	evict(FIRST + 8, 24);
	uint32_t zeroes = count(FIRST + 8, 24, IPT_VOID);
	cr_expect_eq(count(FIRST + 8, 24, IPT_AWAY), 24 - zeroes);
	vmid_t template = freeze();
	cr_assert_eq(ipt_vm_add(table, "vm.1", template, &clone), 0);
	pid_t pid = fork();
	if (pid == 0)
		_exit((int)be_clone(template, clone));
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	cr_expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %x", status);
	help_audit(table);
	cr_expect_eq(ipt_vm_reap(table, clone, pool_clean, &pool), 0);
	/* The one that was frozen goes on, and its template ends meanwhile. */
	for (uint64_t g = FIRST; g < FIRST + 64; g++)
		if (place(g) == IPT_INHERITED && g % 3)
			take_template_out(template, g);
	cr_expect_eq(guest_finds_wrong(FIRST, 20, text_or_zero, false), 0);
	cr_expect_eq(ipt_vm_collapse(table, template, pool_clean, &pool), 0);
	cr_expect_gt(count(FIRST, 64, IPT_AWAY), 10);
	cr_expect_eq(guest_finds_wrong(FIRST, 32, text_or_zero, false), 0);
	cr_expect_eq(guest_finds_wrong(FIRST, 64, text_or_zero, true), 0);
	all_comes_back();
}

/* A template that has begun to end, which takes long, gets nothing any more. */
Test(reclaim_vm, an_ending_templates_pages_become_ours)
{
	int status;
	struct ipt_vm_info info;
	make(PACKED, 0);
	fill_all(FIRST, 32, text);
	vmid_t template = freeze();
	for (uint64_t g = FIRST; g < FIRST + 16; g++)
		take_template_out(template, g);
	pid_t pid = fork();
	if (pid == 0) {
		help_die_at(60);
		ipt_vm_collapse(table, template, pool_clean, &pool);
		_exit(0);
	}
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	cr_assert(WIFSIGNALED(status));
	cr_assert_eq(ipt_vm_info(table, template, &info), 0);
	cr_assert(info.dying);
	cr_expect_eq(guest_finds_wrong(FIRST, 32, text, false), 0);
	cr_expect_eq(device_finds_wrong(FIRST, 32, text), 0);
	cr_expect_eq(count(FIRST, 16, IPT_OWN), 16);
	cr_expect_eq(ipt_vm_collapse(table, template, pool_clean, &pool), 0);
	cr_expect_eq(guest_finds_wrong(FIRST, 32, text, true), 0);
	all_comes_back();
}

/* What the reclaimer does itself (vmm/reclaim_shared.c); it doesn't know any domain's files yet. */
static struct reclaim_shared reclaimers_part(void)
{
	static struct reclaimer_links links;
	links = (struct reclaimer_links){
		.table = table, .board = board, .store = &store, .link = -1};
	return (struct reclaim_shared){.links = &links};
}

/* A VM that is at work hinders it, but not one that died at it. */
Test(reclaim_vm, templates_pages_go_when_nobody_is_at_them)
{
	make(PACKED, 0);
	struct reclaim_shared shared = reclaimers_part();
	fill_all(FIRST, 16, text);
	fill_all(FIRST + 16, 16, noise);
	fill(FIRST + 20, TEXT);
	vmid_t template = freeze(), dead;
	frame_t f = ipt_lookup(table, template, gfn(FIRST));
	frame_t g = ipt_lookup(table, template, gfn(FIRST + 16));
	cr_assert_eq(ipt_vm_add(table, "dead", template, &dead), 0);
	board->desk[dead.v].at_work = 7;
	/* The file that they are in isn't known yet. */
	reclaim_set_domain(board, template, 3);
	reclaim_shared_out(&shared, template, gfn(FIRST), f, 16);
	cr_expect_eq(board->counters.unsettled, 0);
	domain_fds_put(&shared.files, 3, dup(pool.fd), dup(store.mem_fd));
	reclaim_shared_out(&shared, template, gfn(FIRST), f, 16);
	cr_expect_eq(board->counters.unsettled, 16);
	cr_expect_eq(count(FIRST, 16, IPT_INHERITED), 16);
	cr_assert_eq(ipt_vm_reap(table, dead, NULL, NULL), 0);
	/* Not at once again: others want the registry's lock. */
	reclaim_shared_out(&shared, template, gfn(FIRST), f, 16);
	cr_expect_eq(count(FIRST, 16, IPT_INHERITED), 16);
	cr_expect_gt(shared.later_ns, 0);
	shared.later_ns = 0;
	reclaim_shared_out(&shared, template, gfn(FIRST), f, 16);
	cr_expect_eq(board->counters.unsettled, 16);
	cr_expect_eq(count(FIRST, 16, IPT_AWAY), 16);
	cr_expect_eq(shared.freed, 16);
	/* What doesn't pack stays, for good; the others of its cluster go. */
	reclaim_shared_out(&shared, template, gfn(FIRST + 16), g, 16);
	cr_expect_eq(count(FIRST + 16, 16, IPT_AWAY), 1);
	cr_expect_eq(ipt_age(table, g), IPT_AGE_MOST);
	cr_expect_eq(ipt_age(table, frame_add(g, 15)), IPT_AGE_MOST);
	cr_expect_eq(guest_finds_wrong(FIRST, 16, text, false), 0);
	cr_expect_eq(guest_finds_wrong(FIRST + 21, 11, noise, true), 0);
	cr_assert_eq(ipt_vm_collapse(table, template, pool_clean, &pool), 0);
	cr_expect_eq(guest_finds_wrong(FIRST + 20, 1, text, true), 0);
	all_comes_back();
}

/* Ours that others would see by aliases; but nobody else does here. */
static void publish(uint64_t first, uint32_t n)
{
	uint32_t done;
	pthread_mutex_lock(&memory.lock);
	cr_assert_eq(memory_hide(&memory, gfn(first), n), 0);
	cr_assert_eq(ipt_publish(table, memory.vm, gfn(first), n, &done), 0);
	pthread_mutex_unlock(&memory.lock);
}

static void take_merged_out(struct reclaim_shared *s, uint64_t first, uint32_t n)
{
	for (uint64_t g = first; g < first + n; g++)
		reclaim_merged_out(s, ipt_lookup(table, memory.vm, gfn(g)));
}

Test(reclaim_vm, merged_pages_go_and_come_back)
{
	make(PACKED, 0);
	struct reclaim_shared shared = reclaimers_part();
	cr_assert_eq(ipt_holder_add(table, "holder"), 0);
	fill_all(FIRST, 48, text_or_zero);
	fill_all(FIRST + 48, 2, noise);
	publish(FIRST, 50);
	cr_expect_eq(guest_finds_wrong(FIRST, 48, text_or_zero, false), 0);
	/* The file that they are in isn't known yet; and then we are at work. */
	reclaim_set_domain(board, memory.vm, 3);
	take_merged_out(&shared, FIRST, 1);
	cr_expect_eq(board->counters.unsettled, 0);
	domain_fds_put(&shared.files, 3, dup(pool.fd), dup(store.mem_fd));
	memory_enter(&memory);
	take_merged_out(&shared, FIRST, 1);
	memory_leave(&memory);
	cr_expect_eq(board->counters.unsettled, 1);
	cr_expect_eq(count(FIRST, 50, IPT_MERGED), 50);
	shared.later_ns = 0;
	take_merged_out(&shared, FIRST, 50);
	cr_expect_eq(count(FIRST, 48, IPT_AWAY), 48);
	cr_expect_eq(count(FIRST + 48, 2, IPT_MERGED), 2, "they don't pack");
	cr_expect_eq(ipt_age(table, ipt_lookup(table, memory.vm, gfn(FIRST + 48))), IPT_AGE_MOST);
	cr_expect_eq(shared.freed, 48);
	help_audit(table);
	/* Read, they come into other frames, as merged ones; others' bytes are where they were. */
	frame_t f;
	vmid_t taker;
	cr_assert_eq(ipt_vm_add(table, "taker", INVALID_VMID, &taker), 0);
	while (ipt_alloc(table, taker, 0, NULL, &f) == 0 && f.v < 50)
		cr_assert_eq(pwrite(pool.fd, "x", 1, (off_t)f.v << PAGE_SHIFT), 1);
	cr_expect_eq(guest_finds_wrong(FIRST, 16, text_or_zero, false), 0);
	cr_expect_eq(device_finds_wrong(FIRST + 16, 8, text_or_zero), 0);
	cr_expect_eq(count(FIRST, 24, IPT_MERGED), 24);
	cr_expect(ipt_moved(table, ipt_lookup(table, memory.vm, gfn(FIRST + 3))));
	/* Written to while they are away, or since they are back. */
	cr_expect_eq(guest_finds_wrong(FIRST + 8, 24, text_or_zero, true), 0);
	cr_expect_eq(count(FIRST + 8, 24, IPT_OWN), 24);
	cr_expect(is_mapped_privately(FIRST + 8, 24));
	/* Given away by the guest, or taken by its end. */
	cr_expect_eq(memory_give(&memory, gfn(FIRST + 32), 8), 0);
	cr_expect_eq(count(FIRST + 32, 8, IPT_VOID), 8);
	cr_expect_eq(guest_finds_wrong(FIRST, 32, text_or_zero, false), 0);
	cr_expect_eq(guest_finds_wrong(FIRST + 48, 2, noise, false), 0);
	cr_expect_eq(ipt_vm_reap(table, taker, pool_clean, &pool), 0);
	cr_expect_eq(count(FIRST + 40, 8, IPT_AWAY), 8);
	all_comes_back();
}
