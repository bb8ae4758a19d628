/*
 * The VM's part of merging (vmm/merge_vm.c), without KVM: threads play the guests and write to the windows, this one
 * plays both VMs' loops, and the merger too. Needs the right to userfaultfd's faults, and skips without.
 */
#include "ipt/fail.h"
#include "tests/unit/ipt_help.h"
#include "vmm/error.h"
#include "vmm/merge.h"
#include "vmm/pool.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define POOL_FRAMES 8192
#define FIRST       UINT64_C(256) /* gfn of the pages that are merged */
#define PAGES       64
#define WRITERS     3
#define DOMAIN      1

struct side {
	struct memory memory;
	struct machine machine;
	struct mailbox mailbox;
	struct fault_queue waiting;
	pthread_t writer[WRITERS];
	vmid_t template;
};

static struct pool pool;
static struct ipt *table;
static struct merge_board *board;
static struct side side[2];
static _Atomic bool stop;
static bool still; /* the guests stand still while they are asked */

static void make_side(struct side *s, const char *name)
{
	char error[ERROR_MAX] = "";
	vmid_t id;
	snprintf(s->machine.name, sizeof s->machine.name, "%s", name);
	s->machine.cpus = 1;
	cr_assert_eq(machine_set_memory(&s->machine, 16 * MiB), 0);
	cr_assert_eq(ipt_vm_add(table, name, INVALID_VMID, &id), 0);
	int rc = memory_create(&s->memory, table, id, &s->machine, &pool, &s->mailbox, error);
	if (rc == -EPERM || rc == -EACCES)
		cr_skip_test("%s", error);
	cr_assert_eq(rc, 0, "%s", error);
	merge_set_domain(board, id, DOMAIN);
}

static void make_both(void)
{
	char error[ERROR_MAX] = "";
	cr_assert_eq(pool_create(&pool, POOL_FRAMES, error), 0, "%s", error);
	cr_assert_eq(pool_map(&pool, error), 0);
	table = help_table(IPT_INDEX, POOL_FRAMES);
	board = merge_board_create(ipt_config(table)->max_vms, &(int){-1});
	cr_assert_not_null(board);
	make_side(&side[0], "a");
	make_side(&side[1], "b");
}

static struct merge_answer ask(struct side *s, uint32_t op, uint64_t g, uint32_t count, frame_t f)
{
	board->request =
		(struct merge_request){.vm = s->memory.vm.v, .domain = DOMAIN, .pieces = 1};
	board->request.piece[0] =
		(struct merge_piece){.op = op, .gfn = g, .count = count, .frame = f.v};
	atomic_store(&board->state, MERGE_ASKED);
	cr_assert_eq(merge_take(&s->memory, board, still), 0);
	cr_assert_eq(atomic_load(&board->state), MERGE_DONE);
	return board->answer;
}

static uint64_t word_of(uint64_t g, unsigned word)
{
	return g * 1000003 + word * 17 + 1;
}

/* As a loader does. */
static void fill(struct side *s, uint64_t g, uint64_t seed)
{
	uint64_t page[PAGE_SIZE / 8];
	for (unsigned i = 0; i < PAGE_SIZE / 8; i++)
		page[i] = seed ? word_of(g + seed, i) : 0;
	int rc = gmem_write(&s->memory.gmem, gfn_gpa(gfn(g)), page, sizeof page);
	cr_assert_eq(rc, 0);
}

static bool holds(struct side *s, uint64_t g, uint64_t seed)
{
	uint64_t page[PAGE_SIZE / 8];
	cr_assert_eq(gmem_read(&s->memory.gmem, gfn_gpa(gfn(g)), page, sizeof page), 0);
	for (unsigned i = 0; i < PAGE_SIZE / 8; i++)
		if (page[i] != (seed ? word_of(g + seed, i) : 0))
			return false;
	return true;
}

static enum ipt_place_kind kind_of(struct side *s, uint64_t g, frame_t *f)
{
	struct ipt_place p;
	ipt_place(table, s->memory.vm, gfn(g), 1, &p);
	*f = p.frame;
	return p.kind;
}

static void all_comes_back(void)
{
	help_audit(table);
	for (int i = 0; i < 2; i++) {
		cr_expect_eq(ipt_vm_reap(table, side[i].memory.vm, pool_clean, &pool), 0);
		if (side[i].template.v)
			cr_expect_eq(ipt_vm_reap(table, side[i].template, pool_clean, &pool), 0);
	}
	help_audit(table);
	cr_expect_eq(ipt_free_frames(table), POOL_FRAMES);
	cr_expect_eq(pool_populated_bytes(&pool), 0);
}

static void equal_pages(bool stands)
{
	frame_t f, g;
	make_both();
	still = stands;
	for (uint64_t i = 0; i < 16; i++) {
		fill(&side[0], FIRST + i, 1);
		fill(&side[1], FIRST + i, i == 7 || i >= 12 ? 2 : 1); /* some differ */
	}
	cr_expect_eq(ask(&side[0], MERGE_PUBLISH, FIRST, 16, INVALID_FRAME).done, 0xFFFF);
	cr_expect_eq(kind_of(&side[0], FIRST, &f), IPT_MERGED);
	struct merge_answer a = ask(&side[1], MERGE_MERGE, FIRST, 16, f);
	cr_expect_eq(a.status, 0);
	cr_expect_eq(a.done, UINT64_C(0xF7F), "done: %lx", a.done);
	for (uint64_t i = 0; i < 16; i++) {
		bool differs = i == 7 || i >= 12;
		cr_expect_eq(kind_of(&side[1], FIRST + i, &g), differs ? IPT_OWN : IPT_MERGED);
		cr_expect(differs ? g.v != f.v + i : g.v == f.v + i);
		cr_expect(holds(&side[0], FIRST + i, 1));
		cr_expect(holds(&side[1], FIRST + i, differs ? 2 : 1));
	}
	/* A device's write copies. */
	fill(&side[1], FIRST + 3, 9);
	cr_expect(holds(&side[0], FIRST + 3, 1));
	cr_expect(holds(&side[1], FIRST + 3, 9));
	all_comes_back();
}

Test(merge_vm, equal_pages_become_one_frame_and_others_stay)
{
	equal_pages(false);
}

Test(merge_vm, equal_pages_become_one_frame_and_others_stay_while_it_stands_still)
{
	equal_pages(true);
}

Test(merge_vm, zero_pages_become_void_and_others_stay)
{
	frame_t f;
	make_both();
	for (uint64_t i = 0; i < 16; i++)
		fill(&side[0], FIRST + i, i % 5 ? 0 : 1);
	uint32_t before = ipt_free_frames(table);
	cr_expect_eq(ask(&side[0], MERGE_ZERO, FIRST, 16, INVALID_FRAME).done, UINT64_C(0x7BDE));
	cr_expect_eq(ipt_free_frames(table), before + 12);
	for (uint64_t i = 0; i < 16; i++) {
		cr_expect_eq(kind_of(&side[0], FIRST + i, &f), i % 5 ? IPT_VOID : IPT_OWN);
		cr_expect(holds(&side[0], FIRST + i, i % 5 ? 0 : 1));
	}
	all_comes_back();
}

Test(merge_vm, pages_in_use_by_a_device_are_left_alone)
{
	struct iovec iov;
	frame_t f;
	make_both();
	for (uint64_t i = 0; i < 8; i++)
		fill(&side[0], FIRST + i, 0);
	struct gmem *gm = &side[0].memory.gmem;
	cr_assert_eq(gmem_map(gm, gfn_gpa(gfn(FIRST + 2)), PAGE_SIZE, true, &iov, 1), 1);
	cr_expect_eq(ask(&side[0], MERGE_ZERO, FIRST, 8, INVALID_FRAME).done, 0xFB);
	fill(&side[0], FIRST, 1);
	fill(&side[0], FIRST + 1, 1);
	cr_expect_eq(ask(&side[0], MERGE_PUBLISH, FIRST + 2, 1, INVALID_FRAME).done, 0);
	memset(iov.iov_base, 1, PAGE_SIZE);
	gmem_unmap(gm, &iov, 1);
	cr_expect_eq(kind_of(&side[0], FIRST + 2, &f), IPT_OWN);
	cr_expect_eq(ask(&side[0], MERGE_PUBLISH, FIRST + 2, 1, INVALID_FRAME).done, 1);
	all_comes_back();
}

/* ---- what is a template's again ---------------------------------------------------------------- */

/* What it has is a template's from now on. */
static void freeze(struct side *s)
{
	char error[ERROR_MAX] = "", name[2 * sizeof s->machine.name];
	vmid_t id;
	s->template = s->memory.vm;
	snprintf(name, sizeof name, "%.8s@1", s->machine.name);
	cr_assert_eq(memory_freeze(&s->memory, error), 0, "%s", error);
	cr_assert_eq(ipt_vm_freeze(table, s->template, name, &id), 0);
	memory_go_on(&s->memory, id, NULL);
	merge_set_domain(board, id, DOMAIN);
}

static frame_t frame_of_template(struct side *s, uint64_t g)
{
	return ipt_lookup(table, s->template, gfn(g));
}

static void pages_return(bool stands)
{
	frame_t f;
	make_both();
	still = stands;
	for (uint64_t i = 0; i < 32; i++)
		fill(&side[0], FIRST + i, i == 9 ? 0 : 1);
	freeze(&side[0]);
	for (uint64_t i = 0; i < 32; i++) /* in an order that makes some frames follow each other */
		fill(&side[0], FIRST + i, i == 7 || i > 28 ? 2 : i == 9 ? 0 : 1);
	fill(&side[0], FIRST + 40, 1); /* which the template doesn't have */
	uint32_t before = ipt_free_frames(table);
	board->request = (struct merge_request){.vm = side[0].memory.vm.v,
						.domain = DOMAIN,
						.pieces = 4,
						.piece = {{FIRST, MERGE_RETURN, 12, 0},
							  {FIRST + 40, MERGE_RETURN, 1, 0},
							  {FIRST + 16, MERGE_RETURN, 16, 0},
							  {FIRST + 50, MERGE_RETURN, 1, 0}}};
	atomic_store(&board->state, MERGE_ASKED);
	cr_assert_eq(merge_take(&side[0].memory, board, still), 0);
	/* A piece ends where frames don't follow each other; but what is done is right. */
	cr_expect_eq(board->answer.done & ~UINT64_C(0x3FFEF7F), 0, "%lx", board->answer.done);
	for (uint64_t i = 0; i < 32; i++)
		ask(&side[0], MERGE_RETURN, FIRST + i, 1, INVALID_FRAME);
	cr_expect_eq(ipt_free_frames(table), before + 28);
	for (uint64_t i = 0; i < 32; i++) {
		bool differs = i == 7 || i > 28;
		cr_expect_eq(kind_of(&side[0], FIRST + i, &f), differs ? IPT_OWN : IPT_INHERITED);
		cr_expect_eq(f.v == frame_of_template(&side[0], FIRST + i).v, !differs);
		cr_expect(holds(&side[0], FIRST + i, differs ? 2 : i == 9 ? 0 : 1), "page %lu", i);
	}
	cr_expect_eq(kind_of(&side[0], FIRST + 40, &f), IPT_OWN);
	cr_expect_eq(side[0].mailbox.returned_frames, 28);
	/* A later write copies, and the template keeps what it has. */
	fill(&side[0], FIRST + 3, 9);
	cr_expect(holds(&side[0], FIRST + 3, 9));
	cr_expect_eq(kind_of(&side[0], FIRST + 3, &f), IPT_OWN);
	cr_expect_eq(*((uint64_t *)pool_at(&pool, frame_of_template(&side[0], FIRST + 3))),
		     word_of(FIRST + 3 + 1, 0));
	all_comes_back();
}

Test(merge_vm, pages_as_the_template_has_them_are_its_again)
{
	pages_return(false);
}

Test(merge_vm, pages_as_the_template_has_them_are_its_again_while_it_stands_still)
{
	pages_return(true);
}

static void pages_in_use(bool stands)
{
	struct iovec iov;
	frame_t f;
	make_both();
	still = stands;
	fill(&side[0], FIRST, 1);
	cr_expect_eq(ask(&side[0], MERGE_RETURN, FIRST, 1, INVALID_FRAME).done, 0, "no template");
	freeze(&side[0]);
	fill(&side[0], FIRST, 1);
	struct gmem *gm = &side[0].memory.gmem;
	cr_assert_eq(gmem_map(gm, gfn_gpa(gfn(FIRST)), PAGE_SIZE, true, &iov, 1), 1);
	cr_expect_eq(ask(&side[0], MERGE_RETURN, FIRST, 1, INVALID_FRAME).done, 0);
	gmem_unmap(gm, &iov, 1);
	cr_expect_eq(kind_of(&side[0], FIRST, &f), IPT_OWN);
	/* The template's frame is somebody's, too: it can be returned to, and the pin is the other's still. */
	cr_assert_eq(ipt_pin(table, side[0].template, gfn(FIRST), &f), 0);
	cr_expect_eq(ask(&side[0], MERGE_RETURN, FIRST, 1, INVALID_FRAME).done, 1);
	struct ipt_owner o;
	ipt_owner(table, f, &o);
	cr_expect_eq(o.pins, 1);
	ipt_unpin(table, f);
	all_comes_back();
}

Test(merge_vm, pages_in_use_by_a_device_do_not_return)
{
	pages_in_use(false);
}

Test(merge_vm, pages_in_use_by_a_device_do_not_return_while_it_stands_still)
{
	pages_in_use(true);
}

/* 0 to 15 in one run; 18, 20 and 22 alone. */
static bool is_merged(uint64_t i)
{
	return i < 16 || i == 18 || i == 20 || i == 22;
}

static void merge_in_pieces(void)
{
	frame_t f;
	for (uint64_t i = 0; i < 32; i++) {
		fill(&side[0], FIRST + i, 1);
		fill(&side[1], FIRST + i, is_merged(i) ? 1 : 2);
	}
	for (uint64_t i = 0; i < 32; i += 16) {
		cr_expect_eq(ask(&side[0], MERGE_PUBLISH, FIRST + i, 16, INVALID_FRAME).done,
			     0xFFFF);
		cr_expect_eq(kind_of(&side[0], FIRST + i, &f), IPT_MERGED);
		cr_expect_eq(ask(&side[1], MERGE_MERGE, FIRST + i, 16, f).done, i ? 0x54 : 0xFFFF);
	}
}

static void pieces_hold(bool alone)
{
	frame_t f;
	for (uint64_t i = 0; i < 32; i++) {
		cr_expect_eq(kind_of(&side[1], FIRST + i, &f) == IPT_MERGED,
			     is_merged(i) && (i < 16 || alone), "page %lu", i);
		cr_expect(holds(&side[1], FIRST + i, is_merged(i) ? 1 : 2), "page %lu", i);
		cr_expect(holds(&side[0], FIRST + i, 1), "page %lu", i);
	}
}

/* The frame that the window has a mapping of there, whether a page is in or not. */
static uint64_t mapped_frame(struct side *s, uint64_t g)
{
	uint64_t at = (uintptr_t)window_at(&s->memory.window, gfn(g)), from, to, offset,
		 found = UINT64_MAX;
	char line[512];
	FILE *f = fopen("/proc/self/maps", "r");
	cr_assert_not_null(f);
	while (fgets(line, sizeof line, f))
		if (sscanf(line, "%lx-%lx %*s %lx", &from, &to, &offset) == 3 && from <= at &&
		    at < to)
			found = (offset + (at - from)) >> PAGE_SHIFT;
	fclose(f);
	return found;
}

static bool is_shown(struct side *s, uint64_t g)
{
	uint64_t entry = 0;
	off_t at = (off_t)((uintptr_t)window_at(&s->memory.window, gfn(g)) >> PAGE_SHIFT) * 8;
	cr_assert_eq(pread(memory_pagemap(&s->memory), &entry, sizeof entry, at),
		     (ssize_t)sizeof entry);
	return entry >> 63;
}

Test(merge_vm, a_freeze_makes_pages_that_stand_alone_the_vms_own_again)
{
	char error[ERROR_MAX] = "";
	make_both();
	merge_in_pieces();
	pieces_hold(true);
	memory_open_self(&side[1].memory, true);
	uint32_t before = memory_count_mappings(&side[1].memory);
	cr_expect_eq(memory_freeze(&side[1].memory, error), 0, "%s", error);
	pieces_hold(false);
	uint32_t after = memory_count_mappings(&side[1].memory);
	cr_expect_leq(after + 6, before, "%u mappings, %u before", after, before);
	all_comes_back();
}

Test(merge_vm, a_freeze_that_cant_show_what_it_took_back_is_refused)
{
	char error[ERROR_MAX] = "";
	make_both();
	merge_in_pieces();
	cr_assert_eq(fail_set(FAIL_WINDOW_MAP, "2*return(ENOMEM)", error), 0, "%s", error);
	for (int times = 0; times < 2; times++) {
		cr_expect_eq(memory_freeze(&side[1].memory, error), -ENOMEM);
		cr_expect_not(is_shown(&side[1], FIRST + 18));
	}
	cr_expect_eq(memory_freeze(&side[1].memory, error), 0, "%s", error);
	pieces_hold(false);
	frame_t f;
	kind_of(&side[1], FIRST + 18, &f);
	cr_expect_eq(mapped_frame(&side[1], FIRST + 18), f.v);
	all_comes_back();
}

Test(merge_vm, nonsense_is_refused)
{
	frame_t f;
	make_both();
	fill(&side[0], FIRST, 1);
	fill(&side[1], FIRST, 1);
	cr_expect_eq(ask(&side[0], MERGE_ZERO, FIRST, 0, INVALID_FRAME).status, -EINVAL);
	cr_expect_eq(ask(&side[0], MERGE_ZERO, FIRST, 65, INVALID_FRAME).status, -EINVAL);
	cr_expect_eq(ask(&side[0], 77, FIRST, 1, INVALID_FRAME).status, -EINVAL);
	cr_expect_eq(ask(&side[0], MERGE_ZERO, UINT64_MAX, 1, INVALID_FRAME).status, -EINVAL);
	cr_expect_eq(ask(&side[0], MERGE_ZERO, 1 << 30, 1, INVALID_FRAME).done, 0, "no RAM");
	cr_expect_eq(ask(&side[0], MERGE_ZERO, FIRST + 1000, 1, INVALID_FRAME).done, 0, "void");
	cr_expect_eq(ask(&side[0], MERGE_ZERO, FIRST, 1, INVALID_FRAME).done, 0, "not zero");
	/* With frames that aren't shared, or aren't there. */
	cr_expect_eq(kind_of(&side[0], FIRST, &f), IPT_OWN);
	cr_expect_eq(ask(&side[1], MERGE_MERGE, FIRST, 1, f).done, 0);
	cr_expect_eq(ask(&side[1], MERGE_MERGE, FIRST, 1, frame(POOL_FRAMES)).done, 0);
	cr_expect_eq(ask(&side[1], MERGE_MERGE, FIRST, 1, INVALID_FRAME).done, 0);
	/* In another domain, or none. */
	merge_set_domain(board, side[1].memory.vm, DOMAIN + 1);
	cr_expect_eq(ask(&side[1], MERGE_PUBLISH, FIRST, 1, INVALID_FRAME).status, -EPERM);
	merge_set_domain(board, side[1].memory.vm, 0);
	cr_expect_eq(ask(&side[1], MERGE_PUBLISH, FIRST, 1, INVALID_FRAME).status, -EPERM);
	/* Of somebody else. */
	board->request.vm = 5;
	atomic_store(&board->state, MERGE_ASKED);
	cr_expect_eq(merge_take(&side[0].memory, board, still), 0);
	cr_expect_eq(atomic_load(&board->state), MERGE_ASKED);
	for (int i = 0; i < 2; i++)
		cr_expect(holds(&side[i], FIRST, 1));
	all_comes_back();
}

/* ---- guests that write meanwhile -------------------------------------------------------------- */

/* Each writer has a word of its own in every page; what it wrote must be there until it puts back what was there. */
static void *writer(void *arg)
{
	struct side *s = (struct side *)((uintptr_t)arg & ~UINT64_C(7));
	unsigned word = 10 + ((uintptr_t)arg & 7) * 100;
	uint64_t random = (uintptr_t)arg, wrong = 0;
	while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
		random = random * 6364136223846793005u + 1442695040888963407u;
		uint64_t g = FIRST + (random >> 40) % PAGES, is = word_of(g + 1, word);
		volatile uint64_t *at =
			(volatile uint64_t *)window_at(&s->memory.window, gfn(g)) + word;
		wrong += *at != is;
		if (random >> 60)
			continue; /* mostly read */
		*at = random;
		for (int i = 0; i < 50; i++)
			wrong += *at != random;
		*at = is;
	}
	/* Devices must see what is written last, also where a page of this process's own would hide it. */
	for (uint64_t g = FIRST; g < FIRST + PAGES; g++)
		*((volatile uint64_t *)window_at(&s->memory.window, gfn(g)) + word) =
			~word_of(g, word);
	return (void *)(uintptr_t)wrong;
}

static bool holds_last_words(struct side *s, uint64_t g)
{
	uint64_t page[PAGE_SIZE / 8];
	cr_assert_eq(gmem_read(&s->memory.gmem, gfn_gpa(gfn(g)), page, sizeof page), 0);
	for (unsigned i = 0; i < PAGE_SIZE / 8; i++) {
		bool written = i >= 10 && (i - 10) % 100 == 0 && (i - 10) / 100 < WRITERS;
		if (page[i] != (written ? ~word_of(g, i) : word_of(g + 1, i)))
			return false;
	}
	return true;
}

static void serve_faults(void)
{
	for (int i = 0; i < 2; i++)
		cr_assert_eq(fault_service(&side[i].memory, &side[i].waiting), 0);
}

static uint64_t merge_some(unsigned round)
{
	struct side *from = &side[round & 1], *to = &side[~round & 1];
	uint64_t g = FIRST + round * 8 % PAGES, merged = 0;
	frame_t f;
	ask(from, MERGE_PUBLISH, g, 8, INVALID_FRAME);
	for (uint64_t i = g; i < g + 8; i++)
		if (kind_of(from, i, &f) == IPT_MERGED)
			merged += ask(to, MERGE_MERGE, i, (uint32_t)(g + 8 - i), f).done != 0;
	return merged;
}

static uint64_t return_some(unsigned round)
{
	uint64_t returned = 0, g = FIRST + round * 8 % PAGES;
	for (uint64_t i = g; i < g + 8; i++)
		returned +=
			ask(&side[round & 1], MERGE_RETURN, i, (uint32_t)(g + 8 - i), INVALID_FRAME)
				.done != 0;
	return returned;
}

static void writes_are_kept(bool frozen, uint64_t (*merge)(unsigned round))
{
	uint64_t merged = 0, began = (uint64_t)time(NULL);
	make_both();
	for (uint64_t i = 0; i < PAGES; i++)
		for (int k = 0; k < 2; k++)
			fill(&side[k], FIRST + i, 1);
	for (int k = 0; k < 2 && frozen; k++)
		freeze(&side[k]);
	for (int k = 0; k < 2; k++)
		for (uintptr_t w = 0; w < WRITERS; w++)
			pthread_create(&side[k].writer[w], NULL, writer,
				       (void *)((uintptr_t)&side[k] | w));
	for (unsigned round = 0; (uint64_t)time(NULL) < began + 5; round++) {
		merged += merge(round);
		for (int i = 0; i < 20; i++)
			serve_faults();
	}
	atomic_store(&stop, true);
	/* They may wait for a fault that nobody has served yet. */
	for (int k = 0; k < 2; k++)
		for (int w = 0; w < WRITERS; w++) {
			void *wrong;
			while (pthread_tryjoin_np(side[k].writer[w], &wrong))
				serve_faults();
			cr_expect_eq((uintptr_t)wrong, 0, "VM %d, writer %d: %zu wrong", k, w,
				     (size_t)wrong);
		}
	cr_expect_gt(merged, 10);
	for (uint64_t i = 0; i < PAGES; i++)
		for (int k = 0; k < 2; k++)
			cr_expect(holds_last_words(&side[k], FIRST + i), "VM %d, page %zu", k,
				  (size_t)i);
	all_comes_back();
}

Test(merge_vm, writes_amid_merging_are_kept, .timeout = 120)
{
	writes_are_kept(false, merge_some);
}

Test(merge_vm, writes_amid_returning_are_kept, .timeout = 120)
{
	writes_are_kept(true, return_some);
}

/* ---- guests that stand still ------------------------------------------------------------------- */

/* Pages here and there of what is the template's otherwise, with what it has. */
static void write_the_same(void)
{
	for (uint64_t i = 3; i < PAGES; i += 7)
		fill(&side[0], FIRST + i, 1);
}

Test(merge_vm, what_returns_while_the_guest_stands_still_is_one_mapping_again)
{
	make_both();
	for (uint64_t i = 0; i < PAGES; i++)
		fill(&side[0], FIRST + i, 1);
	freeze(&side[0]);
	uint32_t before = memory_count_mappings(&side[0].memory);
	write_the_same();
	uint32_t apart = memory_count_mappings(&side[0].memory);
	cr_expect_geq(apart, before + 2 * (PAGES / 7));
	still = true;
	for (uint64_t i = 3; i < PAGES; i += 7)
		cr_expect_eq(ask(&side[0], MERGE_RETURN, FIRST + i, 1, INVALID_FRAME).done, 1);
	cr_expect_eq(memory_count_mappings(&side[0].memory), before);
	/* A guest that moves has one for each, and each neighbour. */
	write_the_same();
	still = false;
	for (uint64_t i = 3; i < PAGES; i += 7)
		cr_expect_eq(ask(&side[0], MERGE_RETURN, FIRST + i, 1, INVALID_FRAME).done, 1);
	cr_expect_geq(memory_count_mappings(&side[0].memory), apart);
	all_comes_back();
}

static void *write_by_window(void *arg)
{
	for (uint64_t i = 0; i < PAGES; i++)
		*((volatile uint64_t *)window_at(arg, gfn(FIRST + i)) + 5) = ~i;
	return NULL;
}

Test(merge_vm, writes_after_standing_still_are_the_guests_alone, .timeout = 60)
{
	pthread_t guest;
	make_both();
	for (uint64_t i = 0; i < PAGES; i++)
		fill(&side[0], FIRST + i, 1);
	freeze(&side[0]);
	for (uint64_t i = 0; i < PAGES; i++)
		fill(&side[0], FIRST + i, 1);
	still = true;
	for (uint64_t i = 0; i < PAGES; i++)
		ask(&side[0], MERGE_RETURN, FIRST + i, 1, INVALID_FRAME);
	cr_expect_eq(side[0].mailbox.returned_frames, PAGES);
	cr_assert_eq(pthread_create(&guest, NULL, write_by_window, &side[0].memory.window), 0);
	while (pthread_tryjoin_np(guest, NULL))
		serve_faults();
	for (uint64_t i = 0; i < PAGES; i++) {
		const uint64_t *has = pool_at(&pool, frame_of_template(&side[0], FIRST + i));
		uint64_t word = 0;
		cr_expect_eq(has[5], word_of(FIRST + i + 1, 5));
		cr_assert_eq(gmem_read(&side[0].memory.gmem, gpa(gfn_gpa(gfn(FIRST + i)).v + 40),
				       &word, sizeof word),
			     0);
		cr_expect_eq(word, ~i);
	}
	all_comes_back();
}
