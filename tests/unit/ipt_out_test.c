/* Pages that are not in memory: going out, coming back, and what becomes of them otherwise. */
#include "ipt/debug.h"
#include "tests/unit/ipt_help.h"
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

struct told {
	unsigned runs;
	uint32_t n;
	uint64_t g;
	uint32_t f; /* of the last run */
};

static void tell(void *ctx, gfn_t g, frame_t f, uint32_t count)
{
	struct told *told = ctx;

	told->runs++;
	told->n += count;
	told->g = g.v;
	told->f = f.v;
}

static uint32_t counted(struct ipt *t, vmid_t vm, enum ipt_state state)
{
	struct ipt_vm_info info;

	cr_assert_eq(ipt_vm_info(t, vm, &info), 0);
	return info.frames[state];
}

/* n gfns of vm are away, `at` has them, and their sums are their gfns. */
static void expect_away(struct ipt *t, vmid_t vm, uint64_t g, uint32_t n, vmid_t at)
{
	for (uint64_t i = g; i < g + n; i++) {
		struct ipt_place p;
		struct ipt_out out;
		vmid_t whose;
		frame_t f;

		cr_assert_eq(ipt_place(t, vm, gfn(i), 1, &p), 1);
		cr_assert_eq(p.kind, IPT_AWAY, "gfn %lu is %d", (unsigned long)i, p.kind);
		cr_assert_eq(p.at.v, at.v);
		cr_assert_not(frame_valid(p.frame));
		cr_assert_eq(ipt_out_read(t, vm, gfn(i), &out, &whose), 0);
		cr_assert_eq(whose.v, at.v);
		cr_assert_eq(out.sum, i);
		cr_assert_not(frame_valid(ipt_lookup(t, vm, gfn(i))));
		cr_assert_eq(ipt_lookup_run(t, vm, gfn(i), n, &f), 0);
		cr_assert_not(frame_valid(f));
		cr_assert_eq(ipt_pin(t, vm, gfn(i), &f), -ENOENT);
	}
}

static void expect_not_away(struct ipt *t, vmid_t vm, uint64_t g, enum ipt_place_kind kind)
{
	struct ipt_place p;
	struct ipt_out out;
	vmid_t at;

	ipt_place(t, vm, gfn(g), 1, &p);
	cr_assert_eq(p.kind, kind, "gfn %lu is %d", (unsigned long)g, p.kind);
	cr_assert_eq(ipt_out_read(t, vm, gfn(g), &out, &at), -ENOENT);
}

static void elements(struct ipt *t, uint64_t clusters, uint64_t singles)
{
	struct ipt_counts c;

	ipt_counts(t, &c);
	cr_assert(c.cluster_elements == clusters && c.single_elements == singles,
		  "%lu clusters, %lu singles", (unsigned long)c.cluster_elements,
		  (unsigned long)c.single_elements);
}

/* ---- out and back ---------------------------------------------------------------------------- */

Test(ipt_out, a_cluster_out_and_back)
{
	struct ipt *t = help_table_space(1000, 20, 20);
	vmid_t vm = help_vm(t, "vm");
	frame_t f = help_mapped(t, vm, 64, 4);
	struct ipt_out pages[16], out;
	uint32_t slots[16], done;
	struct told told = {0};
	struct ipt_counts c;
	struct ipt_place p;
	vmid_t at;

	for (uint32_t i = 0; i < 16; i++)
		pages[i] = (struct ipt_out){0, 1 + i * 200, 64 + i};
	cr_assert_eq(ipt_out_claim(t, vm, pages, 16, slots), 0);
	cr_assert_eq(counted(t, vm, IPT_SPARE), 16);
	help_audit(t);
	cr_assert_eq(ipt_lookup(t, vm, gfn(64)).v, f.v, "it is there until it is out");
	cr_assert_eq(ipt_out_commit(t, vm, gfn(64), slots, 16, &done, tell, &told), 0);
	cr_assert_eq(done, 16);
	cr_assert(told.runs == 1 && told.n == 16 && told.g == 64 && told.f == f.v);
	elements(t, 1, 0);
	expect_away(t, vm, 64, 16, vm);
	for (uint32_t i = 0; i < 16; i++) {
		cr_assert_eq(ipt_out_read(t, vm, gfn(64 + i), &out, &at), 0);
		cr_assert(!memcmp(&out, &pages[i], sizeof(out)));
	}
	cr_assert_eq(ipt_place(t, vm, gfn(60), 100, &p), 4);
	cr_assert_eq(ipt_place(t, vm, gfn(64), 100, &p), 16);
	cr_assert_eq(counted(t, vm, IPT_OUT), 16);
	cr_assert_eq(counted(t, vm, IPT_LIMBO), 16);
	cr_assert_eq(counted(t, vm, IPT_SPARE) + counted(t, vm, IPT_PRIVATE), 0);
	ipt_counts(t, &c);
	cr_assert_eq(c.frames[IPT_OUT], 16);
	help_audit(t);
	cr_assert_eq(ipt_free(t, vm, f, 16), 0);

	/* Nobody maps over it by mistake. */
	f = help_alloc(t, vm, 4);
	cr_assert_eq(ipt_map(t, vm, gfn(64), f, 16), -EEXIST);
	cr_assert_eq(ipt_map(t, vm, gfn(60), f, 5), -EEXIST);
	cr_assert_eq(ipt_map(t, vm, gfn(79), f, 2), -EEXIST);
	cr_assert_eq(counted(t, vm, IPT_LIMBO), 16);
	elements(t, 1, 0);
	expect_away(t, vm, 64, 16, vm);
	expect_not_away(t, vm, 60, IPT_VOID);
	help_audit(t);

	told = (struct told){0};
	cr_assert_eq(ipt_map_over(t, vm, gfn(64), f, 16, tell, &told), 0);
	cr_assert_eq(told.runs, 0);
	elements(t, 1, 0);
	cr_assert_eq(ipt_lookup_run(t, vm, gfn(64), 100, &f), 16);
	expect_not_away(t, vm, 70, IPT_OWN);
	cr_assert_eq(counted(t, vm, IPT_OUT) + counted(t, vm, IPT_SPARE), 0);
	help_space_used(t, 0, 0);
	help_audit(t);
	help_reap(t, vm);
	help_audit(t);
	ipt_detach(t);
}

Test(ipt_out, singles_and_parts_of_clusters)
{
	struct ipt *t = help_table_space(1000, 20, 20);
	vmid_t vm = help_vm(t, "vm");
	struct told told = {0};
	struct ipt_counts c;
	struct ipt_place p;
	uint32_t done, slots[3];
	struct ipt_out out[3] = {{0, 64, 70}, {IPT_IN_FILE, 65, 71}, {0, 0, 72}};

	frame_t f = help_mapped(t, vm, 64, 4);
	frame_t one = help_mapped(t, vm, 100, 0);
	help_out(t, vm, 100, 1, IPT_IN_FILE, 77);
	/* Three in the middle of a cluster, as slots come: not congruent, or not in a row. */
	cr_assert_eq(ipt_out_claim(t, vm, out, 3, slots), 0);
	cr_assert(!(out[0].where & IPT_IN_FILE) && out[1].where & IPT_IN_FILE);
	cr_assert_eq(out[2].where, IPT_NOWHERE);
	cr_assert_eq(ipt_out_commit(t, vm, gfn(70), slots, 3, &done, tell, &told), 0);
	cr_assert(done == 3 && told.n == 3 && told.f == f.v + 6);
	expect_away(t, vm, 70, 3, vm);
	expect_away(t, vm, 100, 1, vm);
	cr_assert_eq(ipt_place(t, vm, gfn(64), 100, &p), 6);
	cr_assert_eq(ipt_place(t, vm, gfn(73), 100, &p), 7);
	help_space_used(t, 1, 2);
	help_audit(t);
	/* All the rest, then it comes back in other pieces than it went. */
	help_out(t, vm, 64, 6, 0, 4000);
	help_out(t, vm, 73, 7, 0, 4000);
	help_audit(t);
	cr_assert_eq(ipt_map_over(t, vm, gfn(64), f, 7, NULL, NULL), 0);
	expect_away(t, vm, 71, 9, vm);
	help_audit(t);
	cr_assert_eq(ipt_map_over(t, vm, gfn(71), frame_add(f, 7), 9, NULL, NULL), 0);
	cr_assert_eq(ipt_map_over(t, vm, gfn(100), one, 1, NULL, NULL), 0);
	cr_assert_eq(ipt_place(t, vm, gfn(64), 100, &p), 16);
	ipt_counts(t, &c);
	cr_assert_eq(c.cluster_elements, 1);
	help_space_used(t, 0, 0);
	help_audit(t);
	/* A cluster that is all out comes back page by page, and is one again at the end. */
	help_out(t, vm, 64, 16, 0, 100);
	for (uint32_t i = 0; i < 16; i++)
		cr_assert_eq(ipt_map_over(t, vm, gfn(64 + i), frame_add(f, i), 1, NULL, NULL), 0);
	elements(t, 1, 1);
	help_space_used(t, 0, 0);
	help_audit(t);
	ipt_detach(t);
}

/* Sixteen slots that are not in a row go in as singles. */
Test(ipt_out, slots_in_pieces)
{
	struct ipt *t = help_table_space(32, 20, 20);
	vmid_t vm = help_vm(t, "vm");
	uint32_t slots[128], kept = 0, mine[16], done;
	struct ipt_out out[16];

	help_mapped(t, vm, 64, 4);
	for (uint32_t i = 0; i < 128; i++)
		slots[i] = help_claim(t, vm, 0, 0, &out[0]);
	for (uint32_t i = 0; i < 128; i += 3)
		ipt_out_cancel(t, vm, &slots[i], 1);
	for (uint32_t i = 0; i < 16; i++)
		out[i] = (struct ipt_out){0, 10, 64 + i};
	cr_assert_eq(ipt_out_claim(t, vm, out, 16, mine), 0);
	cr_assert_eq(ipt_out_commit(t, vm, gfn(64), mine, 16, &done, NULL, NULL), 0);
	cr_assert_eq(done, 16);
	elements(t, 0, 16);
	expect_away(t, vm, 64, 16, vm);
	help_audit(t);
	for (uint32_t i = 0; i < 128; i++) {
		if (i % 3)
			slots[kept++] = slots[i];
	}
	ipt_out_cancel(t, vm, slots, kept);
	cr_assert_eq(ipt_unmap(t, vm, gfn(0), 100, NULL, NULL), 0);
	cr_assert_eq(counted(t, vm, IPT_SPARE) + counted(t, vm, IPT_OUT), 0);
	help_space_used(t, 0, 0);
	help_audit(t);
	ipt_detach(t);
}

/* ---- what is refused ------------------------------------------------------------------------- */

Test(ipt_out, refused)
{
	struct ipt *t = help_table_space(1000, 20, 20);
	vmid_t vm = help_vm(t, "vm"), on, none = vmid(9), at;
	struct ipt_out out[17] = {{0, 100, 1}}, got;
	uint32_t slots[17], done = 5;

	help_mapped(t, vm, 64, 4);
	cr_assert_eq(ipt_publish(t, vm, gfn(70), 1, &done), 0);
	uint32_t slot = help_claim(t, vm, 0, 100, &out[0]);
	for (uint32_t i = 0; i < 17; i++)
		slots[i] = slot;
	cr_assert_eq(ipt_out_claim(t, none, out, 1, slots + 1), -ENOENT);
	cr_assert_eq(ipt_out_commit(t, none, gfn(64), slots, 1, &done, NULL, NULL), -ENOENT);
	cr_assert_eq(done, 0);
	cr_assert_eq(ipt_out_commit(t, vm, gfn(64), slots, 0, &done, NULL, NULL), -EINVAL);
	cr_assert_eq(ipt_out_commit(t, vm, gfn(64), slots, 17, &done, NULL, NULL), -EINVAL);
	cr_assert_eq(ipt_out_commit(t, vm, gfn(79), slots, 2, &done, NULL, NULL), -EINVAL,
		     "two groups");
	cr_assert_eq(ipt_out_commit(t, vm, gfn(IPT_MAX_GFN), slots, 1, &done, NULL, NULL), -EINVAL);
	cr_assert_eq(ipt_out_commit(t, vm, gfn(63), slots, 1, &done, NULL, NULL), -ENOENT, "void");
	cr_assert_eq(ipt_out_commit(t, vm, gfn(70), slots, 1, &done, NULL, NULL), -ENOENT,
		     "an alias");
	help_out(t, vm, 71, 1, 0, 5);
	cr_assert_eq(ipt_out_commit(t, vm, gfn(71), slots, 1, &done, NULL, NULL), -ENOENT, "out");
	cr_assert_eq(ipt_publish(t, vm, gfn(71), 1, &done), -ENOENT);
	cr_assert_eq(ipt_merge(t, vm, gfn(71), ipt_lookup(t, vm, gfn(70)), 1, &done, NULL, NULL),
		     -ENOENT);
	cr_assert_eq(ipt_out_read(t, vm, gfn(70), &got, &at), -ENOENT);
	cr_assert_eq(ipt_out_read(t, vm, gfn(63), &got, &at), -ENOENT);
	cr_assert_eq(ipt_out_read(t, none, gfn(71), &got, &at), -ENOENT);
	cr_assert_eq(ipt_out_read(t, vm, gfn(IPT_MAX_GFN), &got, &at), -ENOENT);
	help_audit(t);
	ipt_out_cancel(t, vm, slots, 1);

	cr_assert_eq(ipt_vm_freeze(t, vm, "vm@1", &on), 0);
	cr_assert_eq(ipt_out_claim(t, vm, out, 1, slots), -EPERM);
	cr_assert_eq(ipt_out_commit(t, vm, gfn(64), slots, 1, &done, NULL, NULL), -EPERM);
	/* What is the template's is not the clone's to send out. */
	slot = help_claim(t, on, 0, 100, &out[0]);
	cr_assert_eq(ipt_out_commit(t, on, gfn(64), &slot, 1, &done, NULL, NULL), -ENOENT);
	cr_assert_eq(ipt_drop(t, on, gfn(64), 1, &done, NULL, NULL), 0);
	cr_assert_eq(ipt_out_commit(t, on, gfn(64), &slot, 1, &done, NULL, NULL), -ENOENT,
		     "a tomb");
	ipt_out_cancel(t, on, &slot, 1);
	help_audit(t);
	ipt_detach(t);

	t = help_table(IPT_RADIX, 100);
	vm = help_vm(t, "vm");
	help_mapped(t, vm, 0, 0);
	cr_assert_eq(ipt_out_claim(t, vm, out, 1, slots), -EOPNOTSUPP);
	cr_assert_eq(ipt_out_commit(t, vm, gfn(0), slots, 1, &done, NULL, NULL), -EOPNOTSUPP);
	cr_assert_eq(ipt_out_read(t, vm, gfn(0), &got, &at), -ENOENT);
	help_space_used(t, 0, 0);
	help_audit(t);
	ipt_detach(t);
}

/* *done of them are out, the others as they were, and their slots the caller's. */
Test(ipt_out, as_far_as_it_goes)
{
	struct ipt *t = help_table_space(1000, 20, 20);
	vmid_t vm = help_vm(t, "vm");
	frame_t f = help_mapped(t, vm, 64, 4), pinned;
	struct ipt_out pages[16];
	uint32_t slots[16], done;
	struct told told = {0};

	for (uint32_t i = 0; i < 16; i++)
		pages[i] = (struct ipt_out){0, 1000, 64 + i};
	cr_assert_eq(ipt_pin(t, vm, gfn(69), &pinned), 0);
	cr_assert_eq(ipt_out_claim(t, vm, pages, 16, slots), 0);
	cr_assert_eq(ipt_out_commit(t, vm, gfn(64), slots, 16, &done, tell, &told), -EBUSY);
	cr_assert_eq(done, 5);
	cr_assert(told.n == 5 && told.g == 64);
	expect_away(t, vm, 64, 5, vm);
	for (uint64_t g = 69; g < 80; g++)
		cr_assert_eq(ipt_lookup(t, vm, gfn(g)).v, f.v + g - 64);
	cr_assert_eq(counted(t, vm, IPT_SPARE), 11);
	help_audit(t);
	ipt_unpin(t, pinned);
	cr_assert_eq(ipt_unmap(t, vm, gfn(75), 1, NULL, NULL), 0);
	cr_assert_eq(ipt_out_commit(t, vm, gfn(69), slots + 5, 11, &done, NULL, NULL), -ENOENT);
	cr_assert_eq(done, 6);
	expect_away(t, vm, 64, 11, vm);
	expect_not_away(t, vm, 75, IPT_VOID);
	expect_not_away(t, vm, 76, IPT_OWN);
	cr_assert_eq(counted(t, vm, IPT_SPARE), 5);
	help_audit(t);
	ipt_out_cancel(t, vm, slots + 11, 5);
	help_space_used(t, 11 * 16, 0);
	help_audit(t);
	ipt_detach(t);
}

/* Somebody pins a frame when we have looked whether anybody did. */
static struct {
	struct ipt *t;
	vmid_t vm;
	uint64_t g;
	frame_t f;
	bool pinned;
} pinner;

static void pin_now(void)
{
	if (!pinner.pinned) {
		pinner.pinned = true;
		cr_assert_eq(ipt_pin(pinner.t, pinner.vm, gfn(pinner.g), &pinner.f), 0);
	}
}

Test(ipt_out, pinned_at_the_last_moment)
{
	for (unsigned n = 1; n <= 16; n += 5) {
		struct ipt *t = help_table_space(1000, 20, 20);
		vmid_t vm = help_vm(t, "vm");
		frame_t f = help_mapped(t, vm, 64, 4);
		uint32_t slots[16], done;
		struct ipt_out pages[16] = {{0}};
		struct told told = {0};

		cr_assert_eq(ipt_out_claim(t, vm, pages, n, slots), 0);
		pinner.t = t;
		pinner.vm = vm;
		pinner.g = 64 + n - 1;
		pinner.pinned = false;
		ipt_step_do(pin_now);
		int err = ipt_out_commit(t, vm, gfn(64), slots, n, &done, tell, &told);
		ipt_step_do(NULL);
		cr_assert_eq(err, -EBUSY);
		cr_assert_eq(done, n - 1);
		cr_assert_eq(told.n, n - 1);
		for (uint32_t i = 0; i < 16; i++)
			cr_assert_eq(ipt_lookup(t, vm, gfn(64 + i)).v,
				     i < done ? INVALID_FRAME.v : f.v + i);
		cr_assert_eq(counted(t, vm, IPT_SPARE), 1);
		cr_assert_eq(counted(t, vm, IPT_OUT), done);
		help_audit(t);
		ipt_unpin(t, pinner.f);
		cr_assert_eq(
			ipt_out_commit(t, vm, gfn(64 + done), slots + done, 1, &done, NULL, NULL),
			0);
		help_audit(t);
		help_reap(t, vm);
		help_audit(t);
		ipt_detach(t);
	}
}

/* ---- mapping over, dropping, unmapping ------------------------------------------------------- */

Test(ipt_out, map_over_is_undone)
{
	struct ipt *t = help_table_space(1000, 60, 60);
	vmid_t vm = help_vm(t, "vm"), on;
	uint32_t done;

	help_mapped(t, vm, 0, 6);
	cr_assert_eq(ipt_vm_freeze(t, vm, "vm@1", &on), 0);
	help_mapped(t, on, 0, 5);
	help_out(t, on, 0, 16, 0, 3000);
	help_out(t, on, 16, 3, IPT_IN_FILE, 3000);
	cr_assert_eq(ipt_drop(t, on, gfn(19), 5, &done, NULL, NULL), 0);
	help_mapped(t, on, 40, 0); /* in the way */
	frame_t f = help_alloc(t, on, 6);
	cr_assert_eq(ipt_unmap(t, on, gfn(24), 8, NULL, NULL), 0);
	for (unsigned round = 0; round < 2; round++) {
		cr_assert_eq(ipt_map_over(t, on, gfn(0), f, 64, NULL, NULL), -EEXIST);
		expect_away(t, on, 0, 19, on);
		for (uint64_t g = 19; g < 24; g++)
			expect_not_away(t, on, g, IPT_VOID);
		expect_not_away(t, on, 24, IPT_INHERITED);
		cr_assert_eq(counted(t, on, IPT_OUT), 19);
		cr_assert_eq(counted(t, on, IPT_TOMB), 5);
		cr_assert_eq(counted(t, on, IPT_SPARE), 0);
		help_space_used(t, 16 * 47, 3);
		help_audit(t);
		/* ipt_map: tombs give way, what is out doesn't. */
		cr_assert_eq(ipt_map(t, on, gfn(18), f, 20), -EEXIST);
	}
	cr_assert_eq(ipt_map_over(t, on, gfn(0), f, 40, NULL, NULL), 0);
	cr_assert_eq(counted(t, on, IPT_OUT) + counted(t, on, IPT_TOMB), 0);
	help_space_used(t, 0, 0);
	help_audit(t);
	ipt_detach(t);
}

/* Aliases, tombs, what is out, and nothing, all at once. */
Test(ipt_out, map_over_everything)
{
	struct ipt *t = help_table_space(1000, 60, 60);
	vmid_t vm = help_vm(t, "vm"), on;
	struct told told = {0};
	struct ipt_place p;
	uint32_t done;

	help_mapped(t, vm, 0, 5);
	cr_assert_eq(ipt_vm_freeze(t, vm, "vm@1", &on), 0);
	help_mapped(t, on, 0, 4);
	help_out(t, on, 0, 5, 0, 100);
	cr_assert_eq(ipt_publish(t, on, gfn(5), 3, &done), 0);
	help_out(t, on, 8, 2, IPT_IN_FILE, 100);
	cr_assert_eq(ipt_drop(t, on, gfn(10), 6, &done, NULL, NULL), 0);
	frame_t f = help_alloc(t, on, 5);
	cr_assert_eq(ipt_map(t, on, gfn(0), f, 20), -EEXIST);
	help_audit(t);
	cr_assert_eq(ipt_map_over(t, on, gfn(0), f, 20, tell, &told), 0);
	cr_assert_eq(told.n, 3);
	cr_assert_eq(ipt_place(t, on, gfn(0), 64, &p), 20);
	cr_assert(p.kind == IPT_OWN && p.frame.v == f.v);
	help_space_used(t, 0, 0);
	help_audit(t);
	ipt_detach(t);
}

Test(ipt_out, unmap_and_drop)
{
	struct ipt *t = help_table_space(1000, 60, 60);
	vmid_t vm = help_vm(t, "vm");
	struct told told = {0};
	uint32_t done;

	help_mapped(t, vm, 0, 6);
	help_out(t, vm, 0, 16, 0, 64);
	help_out(t, vm, 16, 4, IPT_IN_FILE, 100);
	help_out(t, vm, 20, 4, 0, 0);
	help_out(t, vm, 32, 16, 0, 65);
	help_space_used(t, 48, 4);
	/* A VM without ancestors drops into the void. */
	cr_assert_eq(ipt_drop(t, vm, gfn(8), 14, &done, tell, &told), 0);
	cr_assert(done == 14 && !told.n);
	help_space_used(t, 40, 0);
	cr_assert_eq(counted(t, vm, IPT_OUT), 26);
	expect_away(t, vm, 0, 8, vm);
	expect_not_away(t, vm, 8, IPT_VOID);
	expect_away(t, vm, 22, 2, vm);
	help_audit(t);
	cr_assert_eq(ipt_unmap(t, vm, gfn(23), 26, tell, &told), 0);
	cr_assert_eq(told.n, 8 + 1, "24 to 31, and 48");
	help_space_used(t, 8, 0);
	expect_away(t, vm, 22, 1, vm);
	expect_not_away(t, vm, 40, IPT_VOID);
	help_audit(t);
	cr_assert_eq(ipt_drop(t, vm, gfn(0), 64, &done, NULL, NULL), 0);
	help_space_used(t, 0, 0);
	cr_assert_eq(counted(t, vm, IPT_OUT) + counted(t, vm, IPT_TOMB), 0);
	help_audit(t);
	ipt_detach(t);
}

/* ---- inherited ------------------------------------------------------------------------------- */

Test(ipt_out, inherited)
{
	struct ipt *t = help_table_space(1000, 60, 60);
	vmid_t vm = help_vm(t, "vm"), on, clone;
	struct ipt_place p;
	uint32_t done;

	help_mapped(t, vm, 0, 6);
	help_out(t, vm, 0, 16, 0, 64);
	help_out(t, vm, 20, 4, IPT_IN_FILE, 100);
	cr_assert_eq(ipt_vm_freeze(t, vm, "vm@1", &on), 0);
	cr_assert_eq(ipt_vm_add(t, "clone", vm, &clone), 0);
	expect_away(t, on, 0, 16, vm);
	expect_away(t, clone, 20, 4, vm);
	expect_away(t, vm, 0, 16, vm);
	cr_assert_eq(ipt_place(t, clone, gfn(0), 64, &p), 16);
	/* It is nothing of the clone's own: ipt_map puts a frame over it, which may go out in turn. */
	help_mapped(t, clone, 5, 0);
	expect_not_away(t, clone, 5, IPT_OWN);
	expect_away(t, clone, 4, 1, vm);
	expect_away(t, on, 5, 1, vm);
	cr_assert_eq(ipt_place(t, clone, gfn(0), 64, &p), 5);
	help_out(t, clone, 5, 1, 0, 4096);
	expect_away(t, clone, 5, 1, clone);
	cr_assert_eq(ipt_place(t, clone, gfn(0), 64, &p), 5, "another's follows");
	help_audit(t);
	cr_assert_eq(ipt_unmap(t, clone, gfn(5), 1, NULL, NULL), 0);
	expect_away(t, clone, 5, 1, vm);
	frame_t f = help_alloc(t, on, 4);
	cr_assert_eq(ipt_map_over(t, on, gfn(0), f, 16, NULL, NULL), 0);
	expect_not_away(t, on, 0, IPT_OWN);
	help_space_used(t, 16, 4);
	/* Dropped: a tomb over what is the template's, and in the place of what is the clone's. */
	cr_assert_eq(ipt_drop(t, clone, gfn(0), 4, &done, NULL, NULL), 0);
	cr_assert_eq(counted(t, clone, IPT_TOMB), 4);
	help_mapped(t, clone, 20, 0);
	help_out(t, clone, 20, 1, 0, 70);
	help_space_used(t, 18, 4);
	cr_assert_eq(ipt_drop(t, clone, gfn(20), 2, &done, NULL, NULL), 0);
	cr_assert_eq(counted(t, clone, IPT_TOMB), 6);
	expect_not_away(t, clone, 20, IPT_VOID);
	expect_not_away(t, clone, 0, IPT_VOID);
	expect_away(t, on, 20, 4, vm);
	help_space_used(t, 16, 4);
	help_audit(t);
	cr_assert_eq(ipt_unmap(t, vm, gfn(0), 1, NULL, NULL), -EPERM);
	help_reap(t, clone);
	help_reap(t, on);
	help_space_used(t, 16, 4);
	help_reap(t, vm);
	help_space_used(t, 0, 0);
	help_audit(t);
	ipt_detach(t);
}

/* A region's page is beneath what is out, too. */
Test(ipt_out, over_a_file)
{
	struct ipt *t = help_table_space(1000, 60, 60);
	vmid_t vm = help_vm(t, "vm"), file;
	uint32_t done;

	cr_assert_eq(ipt_file_add(t, "file", &file), 0);
	cr_assert_eq(ipt_vm_region(t, vm, gfn(0), 32, file, 0), 0);
	frame_t f = help_alloc(t, vm, 5);
	cr_assert_eq(ipt_file_map(t, vm, file, 0, f, 32, &done), 0);
	help_mapped(t, vm, 0, 4);
	help_out(t, vm, 0, 16, 0, 64);
	expect_away(t, vm, 0, 16, vm);
	cr_assert_eq(ipt_unmap(t, vm, gfn(3), 1, NULL, NULL), 0);
	expect_not_away(t, vm, 3, IPT_FILE_PAGE);
	cr_assert_eq(ipt_drop(t, vm, gfn(4), 1, &done, NULL, NULL), 0);
	expect_not_away(t, vm, 4, IPT_VOID);
	help_space_used(t, 14, 0);
	help_audit(t);
	help_reap(t, vm);
	help_space_used(t, 0, 0);
	help_audit(t);
	ipt_detach(t);
}

/* ---- reaping, collapsing --------------------------------------------------------------------- */

static void make_claims(struct ipt *t, vmid_t vm)
{
	struct ipt_out out[3] = {{0, 1000, 0}, {IPT_IN_FILE, 1, 0}, {0, 0, 0}};
	uint32_t slots[3];

	cr_assert_eq(ipt_out_claim(t, vm, out, 3, slots), 0);
}

Test(ipt_out, reaping)
{
	struct ipt *t = help_table_space(1000, 60, 60);
	vmid_t vm = help_vm(t, "vm"), other = help_vm(t, "other");
	struct ipt_out out;
	vmid_t at;

	help_mapped(t, other, 0, 4);
	help_out(t, other, 3, 3, 0, 2000);
	help_mapped(t, vm, 0, 5);
	help_out(t, vm, 0, 16, 0, 64);
	help_out(t, vm, 20, 4, IPT_IN_FILE, 100);
	help_out(t, vm, 25, 4, 0, 0);
	make_claims(t, vm);
	help_space_used(t, 96 + 32, 5);
	help_audit(t);
	help_reap(t, vm);
	help_space_used(t, 96, 0);
	help_audit(t);
	expect_away(t, other, 3, 3, other);
	cr_assert_eq(ipt_out_read(t, vm, gfn(0), &out, &at), -ENOENT);
	cr_assert_eq(ipt_free_frames(t), 1000 - 16);
	help_reap(t, other);
	help_audit(t);
	ipt_detach(t);
}

struct family {
	struct ipt *t;
	vmid_t root, child, on;
};

/* A template with pages that are out, some of which its only child overrides in every way there is. */
static struct family family_make(void)
{
	struct family m = {.t = help_table_space(1000, 60, 60)};
	uint32_t done;

	m.root = help_vm(m.t, "vm");
	help_mapped(m.t, m.root, 0, 6);
	help_out(m.t, m.root, 0, 16, 0, 100);
	help_out(m.t, m.root, 16, 5, IPT_IN_FILE, 100);
	help_out(m.t, m.root, 32, 16, 0, 100);
	help_out(m.t, m.root, 48, 2, 0, 0);
	make_claims(m.t, m.root);
	cr_assert_eq(ipt_vm_freeze(m.t, m.root, "vm@1", &m.child), 0);
	help_mapped(m.t, m.child, 3, 0);
	help_mapped(m.t, m.child, 5, 0);
	help_out(m.t, m.child, 5, 1, 0, 200);
	cr_assert_eq(ipt_drop(m.t, m.child, gfn(16), 2, &done, NULL, NULL), 0);
	help_mapped(m.t, m.child, 32, 4);
	cr_assert_eq(ipt_publish(m.t, m.child, gfn(33), 1, &done), 0);
	help_out(m.t, m.child, 34, 2, IPT_IN_FILE, 10);
	help_mapped(m.t, m.child, 60, 0);
	help_out(m.t, m.child, 60, 1, 0, 10);
	return m;
}

static void expect_family(const struct family *m, vmid_t vm, vmid_t root, vmid_t child)
{
	expect_away(m->t, vm, 0, 3, root);
	expect_not_away(m->t, vm, 3, vm.v == child.v ? IPT_OWN : IPT_INHERITED);
	expect_away(m->t, vm, 4, 1, root);
	expect_away(m->t, vm, 5, 1, child);
	expect_away(m->t, vm, 6, 10, root);
	expect_not_away(m->t, vm, 16, IPT_VOID);
	expect_away(m->t, vm, 18, 3, root);
	expect_not_away(m->t, vm, 33, vm.v == child.v ? IPT_MERGED : IPT_INHERITED);
	expect_away(m->t, vm, 34, 2, child);
	expect_away(m->t, vm, 48, 2, root);
	expect_away(m->t, vm, 60, 1, child);
}

Test(ipt_out, collapsing)
{
	for (unsigned template = 0; template <2; template ++) {
		struct family m = family_make();
		vmid_t vm = m.child;

		if (template)
			cr_assert_eq(ipt_vm_freeze(m.t, m.child, "vm@2", &vm), 0);
		expect_family(&m, vm, m.root, m.child);
		help_space_used(m.t, 32 + 32 + 16 + 4 + 1, 5 + 1 + 2);
		help_audit(m.t);
		cr_assert_eq(ipt_vm_collapse(m.t, m.root, NULL, NULL), 0);
		expect_family(&m, vm, m.child, m.child);
		/* 2 overridden in the first cluster, all of the second. */
		help_space_used(m.t, 28 + 4 + 1, 3 + 2);
		cr_assert_eq(counted(m.t, m.child, IPT_OUT), 14 + 1 + 3 + 2 + 2 + 1);
		help_audit(m.t);
		if (!template) { /* what it got it can do away with */
			frame_t f = help_alloc(m.t, vm, 0);
			cr_assert_eq(ipt_map(m.t, vm, gfn(0), f, 1), -EEXIST);
			cr_assert_eq(ipt_map_over(m.t, vm, gfn(0), f, 1, NULL, NULL), 0);
			cr_assert_eq(ipt_unmap(m.t, vm, gfn(1), 15, NULL, NULL), 0);
			help_space_used(m.t, 1, 3 + 2);
			help_audit(m.t);
		} else {
			help_reap(m.t, vm);
		}
		help_reap(m.t, m.child);
		help_space_used(m.t, 0, 0);
		cr_assert_eq(ipt_free_frames(m.t), 1000);
		help_audit(m.t);
		ipt_detach(m.t);
	}
}

/* ---- readers meanwhile ----------------------------------------------------------------------- */

struct reading {
	struct ipt *t;
	vmid_t vm;
	_Atomic unsigned stop, wrong, rounds;
};

/* Every gfn is away, whoever has it, and its sum and bytes go together. */
static void *read_on(void *arg)
{
	struct reading *r = arg;

	while (!atomic_load(&r->stop)) {
		for (uint64_t g = 0; g < 48; g++) {
			struct ipt_out out;
			vmid_t at;

			if (ipt_out_read(r->t, r->vm, gfn(g), &out, &at) || out.sum != g ||
			    out.bytes < 64 || out.bytes > 64 + 40)
				atomic_fetch_add(&r->wrong, 1);
		}
		atomic_fetch_add(&r->rounds, 1);
	}
	return NULL;
}

/* Templates come and go above a clone which sees pages that are out, of one or the other. */
Test(ipt_out, readers_while_templates_collapse)
{
	struct ipt *t = help_table_space(4096, 200, 1000);
	vmid_t vm = help_vm(t, "vm"), on, clone, old;
	char name[] = "vm@00";
	pthread_t thread;

	help_mapped(t, vm, 0, 4);
	help_mapped(t, vm, 16, 5);
	for (uint64_t g = 0; g < 48; g += 16)
		help_out(t, vm, g, 16, g == 16 ? IPT_IN_FILE : 0, 64);
	for (unsigned round = 0; round < (UNDER_SLOW ? 5 : 30); round++) {
		name[3] = (char)('0' + round / 10);
		name[4] = (char)('0' + round % 10);
		cr_assert_eq(ipt_vm_freeze(t, vm, name, &on), 0);
		for (uint64_t g = round % 3; g < 48; g += 7) {
			frame_t f = help_mapped(t, on, g, 0);

			help_out(t, on, g, 1, round % 2 ? IPT_IN_FILE : 0, 65 + round);
			cr_assert_eq(ipt_free(t, on, f, 1), 0);
		}
		old = vm;
		vm = on;
		cr_assert_eq(ipt_vm_add(t, "clone", vm, &clone), 0);
		struct reading r = {.t = t, .vm = clone};
		cr_assert_eq(pthread_create(&thread, NULL, read_on, &r), 0);
		while (!atomic_load(&r.rounds))
			usleep(10);
		cr_assert_eq(ipt_vm_collapse(t, old, NULL, NULL), 0);
		unsigned rounds = atomic_load(&r.rounds);
		while (atomic_load(&r.rounds) < rounds + 2)
			usleep(10);
		atomic_store(&r.stop, 1);
		pthread_join(thread, NULL);
		cr_assert_eq(atomic_load(&r.wrong), 0, "round %u: %u wrong", round,
			     atomic_load(&r.wrong));
		help_audit(t);
		help_reap(t, clone);
	}
	cr_assert_eq(counted(t, vm, IPT_OUT), 48);
	help_reap(t, vm);
	help_space_used(t, 0, 0);
	help_audit(t);
	ipt_detach(t);
}
