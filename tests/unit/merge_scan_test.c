/* What the merger asks for, with a pool and a table but without VMs: vmm/merge_scan.h. */
#include "tests/unit/ipt_help.h"
#include "vmm/error.h"
#include "vmm/merge_scan.h"
#include "vmm/pool.h"
#include <criterion/criterion.h>
#include <string.h>
#include <unistd.h>

#define FRAMES 1024
#define ASKED  64

#define DOMAINS 3
static struct pool pool[DOMAINS + 1]; /* by number; that of 0 the merger doesn't have */
static struct ipt *table;
static struct merge_scan scan;
static struct {
	uint32_t op, vm, count, frame, domain;
	uint64_t gfn;
} asked[ASKED]; /* pieces of requests */
static unsigned n_asked, requests;
static bool refuses; /* VMs do nothing */

/* Publishing is done, so that the scan finds shared frames; the rest only counted. */
static uint64_t take(void *ctx, const struct merge_request *r)
{
	uint64_t all = 0;
	uint32_t pages = 0;
	(void)ctx;
	requests++;
	for (uint32_t i = 0; i < r->pieces; i++) {
		const struct merge_piece *p = &r->piece[i];
		uint32_t done = p->count;
		cr_assert_lt(n_asked, ASKED);
		asked[n_asked++] =
			(typeof(asked[0])){p->op, r->vm, p->count, p->frame, r->domain, p->gfn};
		if (p->op == MERGE_PUBLISH)
			ipt_publish(table, vmid(r->vm), gfn(p->gfn), p->count, &done);
		all |= done < 64 ? ((UINT64_C(1) << done) - 1) << pages : UINT64_MAX;
		pages += p->count;
	}
	cr_assert_leq(pages, MERGE_RUN);
	return refuses ? 0 : all;
}

static void begin(struct merge_board *board)
{
	cr_assert_not_null(board);
	scan = (struct merge_scan){.table = table, .board = board, .ask = take};
	cr_assert_eq(merge_scan_create(&scan), 0);
	for (uint32_t i = 1; i <= DOMAINS; i++)
		domain_fds_put(&scan.files, i, dup(pool[i].fd), -1);
}

static void make(void)
{
	char error[ERROR_MAX] = "";
	for (unsigned i = 0; i <= DOMAINS; i++) {
		cr_assert_eq(pool_create(&pool[i], FRAMES, error), 0, "%s", error);
		cr_assert_eq(pool_map(&pool[i], error), 0);
	}
	table = help_table(IPT_INDEX, FRAMES);
	begin(merge_board_create(ipt_config(table)->max_vms, &(int){-1}));
}

static vmid_t clone_of(vmid_t parent, const char *name, uint32_t domain)
{
	vmid_t id;
	cr_assert_eq(ipt_vm_add(table, name, parent, &id), 0);
	merge_set_domain(scan.board, id, domain);
	return id;
}

static vmid_t vm(const char *name, uint32_t domain)
{
	return clone_of(INVALID_VMID, name, domain);
}

/* 16 pages at g, with contents that follow from seed; seed 0: zeroes, which are there. */
static frame_t pages(vmid_t id, uint64_t g, uint64_t seed)
{
	frame_t f;
	cr_assert_eq(ipt_alloc(table, id, 4, NULL, &f), 0);
	cr_assert_eq(ipt_map(table, id, gfn(g), f, 16), 0);
	for (uint32_t i = 0; i < 16; i++) {
		uint64_t *page = pool_at(&pool[merge_domain(scan.board, id)], frame_add(f, i));
		memset(page, 0, PAGE_SIZE);
		page[17] = seed ? seed * 1000 + i : 0;
	}
	return f;
}

static void pass(void)
{
	n_asked = requests = 0;
	merge_scan_begin(&scan);
	for (uint32_t f = 0; f != UINT32_MAX;)
		f = merge_scan_step(&scan, f);
}

static void expect_asked(unsigned i, uint32_t op, vmid_t id, uint64_t g, uint32_t count)
{
	cr_assert_lt(i, n_asked);
	cr_expect_eq(asked[i].op, op, "request %u: op %u", i, asked[i].op);
	cr_expect_eq(asked[i].vm, id.v);
	cr_expect_eq(asked[i].gfn, g, "request %u: gfn %lu", i, (unsigned long)asked[i].gfn);
	cr_expect_eq(asked[i].count, count, "request %u: count %u", i, asked[i].count);
}

Test(merge_scan, equal_runs_are_published_then_merged)
{
	make();
	vmid_t a = vm("a", 1), b = vm("b", 1), c = vm("c", 1);
	frame_t f = pages(a, 32, 5);
	pages(b, 64, 5);
	pages(c, 96, 5);
	pages(c, 128, 6);
	pass();
	cr_expect_eq(n_asked, 0, "nothing is known to be stable yet");
	pass();
	cr_assert_eq(n_asked, 3);
	expect_asked(0, MERGE_PUBLISH, a, 32, 16);
	expect_asked(1, MERGE_MERGE, b, 64, 16);
	expect_asked(2, MERGE_MERGE, c, 96, 16);
	for (unsigned i = 1; i < 3; i++) {
		cr_expect_eq(asked[i].frame, f.v);
		cr_expect_eq(asked[i].domain, 1);
	}
}

Test(merge_scan, what_changes_is_left_alone)
{
	make();
	vmid_t a = vm("a", 1), b = vm("b", 1);
	pages(a, 32, 5);
	frame_t f = pages(b, 64, 5);
	pass();
	((uint64_t *)pool_at(&pool[1], frame_add(f, 8)))[0] = 1;
	pass();
	cr_assert_eq(n_asked, 4);
	cr_expect_eq(requests, 2, "each VM is asked once: %u", requests);
	expect_asked(0, MERGE_PUBLISH, a, 32, 8);
	expect_asked(1, MERGE_PUBLISH, a, 41, 7);
	expect_asked(2, MERGE_MERGE, b, 64, 8);
	expect_asked(3, MERGE_MERGE, b, 73, 7);
}

/* What a template has at its gfn comes first, whether zero or not, and whoever else holds the same. */
Test(merge_scan, what_is_the_templates_again_goes_back_to_it)
{
	make();
	vmid_t a = vm("a", 1), b = vm("b", 1), template = a;
	pages(a, 32, 5);
	pages(a, 64, 0);
	pages(b, 32, 5);
	cr_assert_eq(ipt_vm_freeze(table, template, "a@1", &a), 0);
	merge_set_domain(scan.board, a, 1);
	vmid_t c = clone_of(template, "c", 1);
	frame_t f = pages(c, 32, 5);
	((uint64_t *)pool_at(&pool[1], frame_add(f, 8)))[0] = 1;
	pages(c, 64, 0);
	pages(c, 96, 0);
	pages(c, 128, 5); /* not there */
	pass();
	cr_assert_eq(n_asked, 3, "of the rest nothing is known to be stable yet: %u", n_asked);
	expect_asked(0, MERGE_RETURN, c, 32, 8);
	expect_asked(1, MERGE_RETURN, c, 41, 7);
	expect_asked(2, MERGE_RETURN, c, 64, 16);
	pass();
	cr_assert_eq(n_asked, 3, "what was given back waits: %u", n_asked);
	expect_asked(0, MERGE_PUBLISH, b, 32, 16); /* for c's page 128 */
	expect_asked(1, MERGE_ZERO, c, 96, 16);
	expect_asked(2, MERGE_MERGE, c, 128, 16);
	/* What differed before is found at once. */
	((uint64_t *)pool_at(&pool[1], frame_add(f, 8)))[0] = 0;
	pass();
	expect_asked(0, MERGE_RETURN, c, 32, 16);
}

/* Frames of two VMs that lie between each other's. */
Test(merge_scan, what_is_found_for_a_vm_is_asked_for_together)
{
	make();
	vmid_t a = vm("a", 1), b = vm("b", 1);
	for (uint64_t g = 32; g < 32 + 3 * 32; g += 32) {
		pages(a, g, 0);
		pages(b, g, 0);
	}
	pass();
	pass();
	cr_expect_eq(n_asked, 6);
	cr_expect_eq(requests, 2, "%u requests", requests);
}

Test(merge_scan, a_young_clone_keeps_what_was_copied_for_it)
{
	make();
	vmid_t a = vm("a", 1), template = a;
	pages(a, 32, 5);
	cr_assert_eq(ipt_vm_freeze(table, template, "a@1", &a), 0);
	vmid_t c = clone_of(template, "c", 1);
	pages(c, 32, 5);
	scan.young_ns = 10;
	for (scan.now_ns = 1000; scan.now_ns < 1010; scan.now_ns += 3) {
		pass();
		cr_expect_eq(n_asked, 0, "at %lu", (unsigned long)scan.now_ns);
	}
	pass();
	expect_asked(0, MERGE_RETURN, c, 32, 16);
}

/* What doesn't fit in one request is left to the next. */
Test(merge_scan, requests_have_room_for_64_pages_in_16_runs)
{
	make();
	vmid_t a = vm("a", 1), b = vm("b", 1);
	for (uint64_t g = 32; g < 32 + 9 * 32; g += 32) {
		frame_t f = pages(a, g, 0);
		((uint64_t *)pool_at(&pool[1], frame_add(f, 5)))[0] = g;
	}
	for (uint64_t g = 32; g < 32 + 5 * 32; g += 32) {
		frame_t f = pages(b, g, 0);
		for (uint32_t i = 0; i < 16; i += 4)
			((uint64_t *)pool_at(&pool[1], frame_add(f, i)))[0] = g + i;
	}
	pass();
	pass();
	cr_expect_eq(n_asked, 18 + 20, "%u pieces", n_asked);
	cr_expect_eq(requests, 3 + 2, "%u requests", requests);
}

Test(merge_scan, zeroes_are_given_back_without_an_equal)
{
	make();
	vmid_t a = vm("a", 1);
	pages(a, 32, 0);
	frame_t hole;
	cr_assert_eq(ipt_alloc(table, a, 4, NULL, &hole), 0);
	cr_assert_eq(ipt_map(table, a, gfn(48), hole, 16), 0);
	pass();
	pass();
	cr_assert_eq(n_asked, 1, "what has no memory isn't looked at");
	expect_asked(0, MERGE_ZERO, a, 32, 16);
}

Test(merge_scan, domains_are_apart)
{
	make();
	vmid_t a = vm("a", 1), b = vm("b", 2), none = vm("none", 0);
	pages(a, 32, 5);
	pages(b, 32, 5);
	pages(none, 32, 5);
	pages(none, 64, 5);
	pages(none, 96, 0);
	for (int i = 0; i < 5; i++) {
		pass();
		cr_expect_eq(n_asked, 0);
	}
	/* A VM of another domain gets the id of one that was looked at in this pass. */
	vmid_t c = vm("c", 1);
	pages(c, 32, 5);
	pass();
	merge_scan_begin(&scan);
	uint32_t f = merge_scan_step(&scan, 0);
	n_asked = 0;
	merge_set_domain(scan.board, a, 3);
	while (f != UINT32_MAX)
		f = merge_scan_step(&scan, f);
	for (unsigned i = 0; i < n_asked; i++)
		cr_expect_eq(asked[i].domain, 1, "asked for domain %u", asked[i].domain);
}

Test(merge_scan, a_shared_frame_of_another_domain_is_no_match)
{
	make();
	vmid_t a = vm("a", 1), b = vm("b", 1), c = vm("c", 2);
	pages(a, 32, 5);
	pages(b, 32, 5);
	pass();
	pass();
	expect_asked(0, MERGE_PUBLISH, a, 32, 16);
	pages(c, 32, 5);
	pages(c, 64, 5);
	pass();
	pass();
	/* Among its own, c's pages are the first of their kind. */
	for (unsigned i = 0; i < n_asked; i++)
		if (asked[i].vm == c.v && asked[i].op == MERGE_MERGE) {
			struct ipt_owner o;
			ipt_owner(table, frame(asked[i].frame), &o);
			cr_expect_eq(scan.domain[asked[i].frame], 2);
		}
	/* The same for a merger that comes later, and knows nothing. */
	merge_scan_destroy(&scan);
	begin(scan.board);
	pass();
	vmid_t d = vm("d", 1);
	pages(d, 32, 5);
	pass();
	pass();
	unsigned of_d = 0;
	for (unsigned i = 0; i < n_asked; i++) {
		of_d += asked[i].vm == d.v && asked[i].op == MERGE_MERGE;
		if (asked[i].op == MERGE_MERGE)
			cr_expect_eq(scan.domain[asked[i].frame], asked[i].domain);
	}
	cr_expect_eq(of_d, 1, "what an earlier merger published is found again");
}

/* Frames of two domains in turns, so that none of their runs is longer than a cluster: each is read where it is, whatever
 * the other file has there. */
Test(merge_scan, each_frame_is_read_in_its_domains_file)
{
	make();
	vmid_t a = vm("a", 1), b = vm("b", 2), a2 = vm("a2", 1), b2 = vm("b2", 2);
	for (uint64_t i = 0; i < 6; i++) {
		frame_t f = pages(a, 32 + 32 * i, 5 + i), g = pages(b, 32 + 32 * i, 5 + i);
		cr_expect_eq(g.v, f.v + 16, "the test wants them one behind the other");
		memset(pool_at(&pool[2], f), 9, 16 * PAGE_SIZE); /* which isn't a's */
		memset(pool_at(&pool[1], g), 9, 16 * PAGE_SIZE);
	}
	for (uint64_t i = 0; i < 6; i++) {
		pages(a2, 32 + 32 * i, 5 + i);
		pages(b2, 32 + 32 * i, 5 + i);
	}
	unsigned of[DOMAINS + 1] = {0};
	for (int i = 0; i < 2; i++) {
		pass();
		for (unsigned k = 0; k < n_asked; k++)
			if (asked[k].op == MERGE_MERGE) {
				struct ipt_owner o;
				of[asked[k].domain] += asked[k].count;
				cr_expect(asked[k].domain == 1 ? asked[k].vm == a2.v
							       : asked[k].vm == b2.v);
				ipt_owner(table, frame(asked[k].frame), &o);
				cr_expect_eq(o.state, IPT_SHARED);
			}
	}
	cr_expect_eq(of[1], 96);
	cr_expect_eq(of[2], 96);
}

/* The frames of a domain whose file the merger doesn't have yet wait, others' don't. */
Test(merge_scan, a_domain_that_was_not_heard_of_waits)
{
	make();
	vmid_t a = vm("a", 1), b = vm("b", 2), b2 = vm("b2", 2);
	int late = dup(domain_fd(&scan.files, 2));
	domain_fds_put(&scan.files, 2, -1, -1);
	cr_expect_eq(domain_fd(&scan.files, 2), -1);
	pages(b, 32, 5);
	pages(a, 32, 0);
	pages(b2, 32, 5);
	pass();
	pass();
	cr_expect_eq(n_asked, 1);
	expect_asked(0, MERGE_ZERO, a, 32, 16);
	domain_fds_put(&scan.files, 2, late, -1);
	pass();
	pass();
	expect_asked(1, MERGE_PUBLISH, b, 32, 16);
	expect_asked(2, MERGE_MERGE, b2, 32, 16);
}

Test(merge_scan, short_runs_come_last)
{
	make();
	vmid_t a = vm("a", 1), b = vm("b", 1);
	pages(a, 32, 5);
	frame_t f = pages(b, 64, 5);
	for (uint32_t i = 0; i < 16; i += 3) /* two equal ones, one that isn't ... */
		((uint64_t *)pool_at(&pool[1], frame_add(f, i)))[0] = 1;
	unsigned when[6] = {0};
	for (unsigned i = 1; i < 6; i++) {
		pass();
		when[i] = n_asked;
	}
	cr_expect_eq(when[2] + when[3], 0);
	cr_expect_gt(when[4], 0);
}

Test(merge_scan, vms_that_do_not_hear_are_left_alone_for_the_pass)
{
	make();
	vmid_t a = vm("a", 1);
	for (uint64_t g = 32; g < 32 + 4 * 32; g += 32)
		pages(a, g, 0);
	pass();
	refuses = true;
	n_asked = 0;
	merge_scan_begin(&scan);
	merge_scan_leave(&scan, a.v);
	for (uint32_t f = 0; f != UINT32_MAX;)
		f = merge_scan_step(&scan, f);
	cr_expect_eq(n_asked, 0);
	/* Nor is it asked for what was found before. */
	merge_scan_begin(&scan);
	uint32_t f = merge_scan_step(&scan, 0);
	merge_scan_leave(&scan, a.v);
	while (f != UINT32_MAX)
		f = merge_scan_step(&scan, f);
	cr_expect_eq(n_asked, 0);
	pass();
	cr_expect_gt(n_asked, 0);
}

/* What hasn't changed for long is read in one pass of 16, and yet found by what comes to be equal to it. */
Test(merge_scan, calm_frames_are_not_read)
{
	make();
	vmid_t a = vm("a", 1);
	pages(a, 32, 5);
	for (unsigned i = 0; i < 40; i++)
		pass();
	uint64_t before = scan.scanned_bytes;
	for (unsigned i = 0; i < 16; i++)
		pass();
	cr_expect_eq(scan.scanned_bytes - before, 16 * PAGE_SIZE, "%lu",
		     (unsigned long)(scan.scanned_bytes - before));
	cr_expect_eq(n_asked, 0);
	vmid_t b = vm("b", 1);
	pages(b, 32, 5);
	pass();
	pass();
	expect_asked(0, MERGE_PUBLISH, a, 32, 16);
	expect_asked(1, MERGE_MERGE, b, 32, 16);
}
