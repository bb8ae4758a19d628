/* Mapping and looking up, for both kinds of forward map. */
#include "ipt/forward.h"
#include "tests/unit/ipt_help.h"

struct runs {
	unsigned n;
	uint64_t g[8];
	uint32_t f[8], len[8];
};

static void note_run(void *ctx, gfn_t g, frame_t f, uint32_t count)
{
	struct runs *r = ctx;

	cr_assert_lt(r->n, 8);
	r->g[r->n] = g.v;
	r->f[r->n] = f.v;
	r->len[r->n++] = count;
}

BOTH_KINDS(ipt_map, there_and_back)
{
	struct ipt *t = help_table(kind, 4096);
	vmid_t a = help_vm(t, "a"), b = help_vm(t, "b");
	frame_t fa = help_mapped(t, a, 1024, 9), fb = help_mapped(t, b, 1024, 9), got;
	struct ipt_owner o;

	for (uint64_t i = 0; i < 512; i++) {
		cr_assert_eq(ipt_lookup(t, a, gfn(1024 + i)).v, fa.v + i);
		cr_assert_eq(ipt_lookup(t, b, gfn(1024 + i)).v, fb.v + i);
	}
	cr_assert_not(frame_valid(ipt_lookup(t, a, gfn(1023))));
	cr_assert_not(frame_valid(ipt_lookup(t, a, gfn(1536))));
	cr_assert_eq(ipt_lookup_run(t, a, gfn(1030), 1000, &got), 506);
	cr_assert_eq(got.v, fa.v + 6);
	cr_assert_eq(ipt_lookup_run(t, a, gfn(1030), 7, &got), 7);
	cr_assert_eq(ipt_lookup_run(t, a, gfn(1030), 0, &got), 0);
	cr_assert_eq(ipt_lookup_run(t, a, gfn(1536), 7, &got), 0);
	cr_assert_eq(ipt_owner(t, frame_add(fb, 5), &o), 0);
	cr_assert_eq(o.state, IPT_PRIVATE);
	cr_assert_eq(o.vm.v, b.v);
	cr_assert_eq(o.gfn.v, 1029);
	cr_assert_eq(ipt_owner(t, frame(4096), &o), -EINVAL);

	struct runs r = {0};
	cr_assert_eq(ipt_unmap(t, a, gfn(1000), 100, note_run, &r), 0);
	cr_assert_eq(r.n, 1);
	cr_assert(r.g[0] == 1024 && r.f[0] == fa.v && r.len[0] == 76);
	cr_assert_not(frame_valid(ipt_lookup(t, a, gfn(1099))));
	cr_assert_eq(ipt_lookup(t, a, gfn(1100)).v, fa.v + 76);
	cr_assert_eq(ipt_lookup(t, b, gfn(1099)).v, fb.v + 75);
	help_audit(t);
	cr_assert_eq(ipt_free(t, a, fa, 76), 0);
	cr_assert_eq(ipt_owner(t, fa, &o), 0);
	cr_assert(o.state == IPT_FREE && o.vm.v == 0 && o.gfn.v == INVALID_GFN.v);
	help_audit(t);
	ipt_detach(t);
}

BOTH_KINDS(ipt_map, errors_change_nothing)
{
	struct ipt *t = help_table(kind, 4096);
	vmid_t vm = help_vm(t, "vm"), other = help_vm(t, "other");
	frame_t f = help_alloc(t, vm, 6), at5 = help_mapped(t, vm, 100, 0);

	cr_assert_eq(ipt_map(t, vm, gfn(0), f, 0), -EINVAL);
	cr_assert_eq(ipt_map(t, vm, gfn(IPT_MAX_GFN), f, 1), -EINVAL);
	cr_assert_eq(ipt_map(t, vm, gfn(IPT_MAX_GFN - 1), f, 2), -EINVAL);
	cr_assert_eq(ipt_map(t, vm, gfn(UINT64_MAX), f, 2), -EINVAL);
	cr_assert_eq(ipt_map(t, vm, gfn(0), frame(4095), 2), -EINVAL);
	cr_assert_eq(ipt_map(t, vm, gfn(0), f, 65), -EPERM);
	cr_assert_eq(ipt_map(t, other, gfn(0), f, 1), -EPERM);
	cr_assert_eq(ipt_map(t, vm, gfn(0), frame(4000), 1), -EPERM);
	cr_assert_eq(ipt_map(t, vm, gfn(60), f, 64), -EEXIST, "gfn 100 is mapped");
	for (uint64_t g = 0; g < 200; g++)
		cr_assert_eq(ipt_lookup(t, vm, gfn(g)).v, g == 100 ? at5.v : UINT32_MAX);
	cr_assert_eq(ipt_unmap(t, vm, gfn(0), 0, NULL, NULL), -EINVAL);
	cr_assert_eq(ipt_unmap(t, vm, gfn(IPT_MAX_GFN - 1), 2, NULL, NULL), -EINVAL);
	help_audit(t);
	cr_assert_eq(ipt_map(t, vm, gfn(IPT_MAX_GFN - 64), f, 64), 0);
	cr_assert_eq(ipt_lookup(t, vm, gfn(IPT_MAX_GFN - 1)).v, f.v + 63);
	help_audit(t);
	ipt_detach(t);
}

/* A key is packed into fewer bits than its types have: what doesn't fit must not be another's. */
BOTH_KINDS(ipt_map, keys_out_of_range_are_nobodys)
{
	struct ipt *t = help_table(kind, 4096);
	vmid_t vm = vmid(0);
	frame_t out[4];

	for (int i = 0; i < 4; i++)
		vm = help_vm(t, (char[]){(char)('a' + i), 0});
	help_mapped(t, vm, 0, 9);
	help_mapped(t, vmid(2), 7, 0);
	const struct ipt_key keys[4] = {{vmid(vm.v + (1 << 20)), gfn(3)},
					{vmid(vm.v - 1), gfn(IPT_MAX_GFN + 3)},
					{vmid(0), gfn((IPT_MAX_GFN << 2) + 3)},
					{vmid(1), gfn(IPT_MAX_GFN + 7)}};
	ipt_lookup_batch(t, keys, out, 4);
	for (int i = 0; i < 4; i++) {
		cr_assert_not(frame_valid(out[i]));
		cr_assert_not(frame_valid(ipt_lookup(t, keys[i].vm, keys[i].gfn)));
	}
	ipt_detach(t);
}

static struct ipt_counts counts(struct ipt *t)
{
	struct ipt_counts c;

	ipt_counts(t, &c);
	return c;
}

Test(ipt_index, clusters_with_holes)
{
	struct ipt *t = help_table(IPT_INDEX, 4096);
	vmid_t vm = help_vm(t, "vm");
	frame_t f = help_mapped(t, vm, 160, 4);

	cr_assert_eq(counts(t).cluster_elements, 1);
	cr_assert_eq(ipt_unmap(t, vm, gfn(165), 3, NULL, NULL), 0);
	cr_assert_eq(counts(t).cluster_elements, 1);
	cr_assert_not(frame_valid(ipt_lookup(t, vm, gfn(166))));
	cr_assert_eq(ipt_lookup(t, vm, gfn(168)).v, f.v + 8);
	help_audit(t);
	/* Other frames in the hole are singles, the same ones are the cluster's again. */
	frame_t other = help_mapped(t, vm, 166, 0);
	cr_assert_eq(counts(t).single_elements, 1);
	cr_assert_eq(ipt_lookup(t, vm, gfn(166)).v, other.v);
	cr_assert_eq(ipt_map(t, vm, gfn(165), frame_add(f, 5), 1), 0);
	cr_assert_eq(counts(t).single_elements, 1);
	help_audit(t);
	cr_assert_eq(ipt_unmap(t, vm, gfn(166), 1, NULL, NULL), 0);
	cr_assert_eq(ipt_map(t, vm, gfn(166), frame_add(f, 6), 2), 0);
	cr_assert_eq(counts(t).single_elements, 0);
	help_audit(t);
	cr_assert_eq(ipt_unmap(t, vm, gfn(160), 16, NULL, NULL), 0);
	cr_assert_eq(counts(t).cluster_elements, 0);
	help_audit(t);
	ipt_detach(t);
}

Test(ipt_index, singles_that_fill_a_cluster_become_one)
{
	struct ipt *t = help_table(IPT_INDEX, 4096);
	vmid_t vm = help_vm(t, "vm");
	frame_t f = help_alloc(t, vm, 4);

	for (uint32_t i = 0; i < 16; i++) {
		uint32_t at = i * 7 % 16;

		cr_assert_eq(ipt_map(t, vm, gfn(800 + at), frame_add(f, at), 1), 0);
		cr_assert_eq(counts(t).single_elements, i < 15 ? i + 1 : 0);
		help_audit(t);
	}
	cr_assert_eq(counts(t).cluster_elements, 1);
	for (uint32_t i = 0; i < 16; i++)
		cr_assert_eq(ipt_lookup(t, vm, gfn(800 + i)).v, f.v + i);
	/* Five of sixteen, then a run of six that makes an element and takes the five over. */
	f = help_alloc(t, vm, 4);
	for (uint32_t i = 0; i < 10; i += 2)
		cr_assert_eq(ipt_map(t, vm, gfn(1600 + i), frame_add(f, i), 1), 0);
	cr_assert_eq(counts(t).single_elements, 5);
	cr_assert_eq(ipt_map(t, vm, gfn(1610), frame_add(f, 10), 6), 0);
	cr_assert_eq(counts(t).single_elements, 0);
	cr_assert_eq(counts(t).cluster_elements, 2);
	help_audit(t);
	ipt_detach(t);
}

/* gfns that are not congruent with their frames go in as singles. */
BOTH_KINDS(ipt_map, shifted_runs)
{
	struct ipt *t = help_table(kind, 8192);
	vmid_t vm = help_vm(t, "vm");

	for (unsigned i = 0; i < 12; i++) {
		frame_t f = help_alloc(t, vm, 9), got;
		uint64_t g = (uint64_t)i * 1000 + i * 3 + 1;

		cr_assert_eq(ipt_map(t, vm, gfn(g), f, 512), 0);
		cr_assert_eq(ipt_lookup_run(t, vm, gfn(g), 600, &got), 512);
		cr_assert_eq(ipt_lookup(t, vm, gfn(g + 77)).v, f.v + 77);
	}
	help_audit(t);
	help_reap(t, vm);
	help_audit(t);
	ipt_detach(t);
}

/* A guest that knew the seed could choose gfns of one stripe only: it gets -ENOSPC, others don't. */
Test(ipt_index, full_stripe)
{
	const uint32_t frames = 1 << 17; /* 8 stripes */
	struct ipt *t = help_table(IPT_INDEX, frames);
	vmid_t vm = help_vm(t, "vm"), other = help_vm(t, "other");
	uint64_t g = 0;
	int err = 0;
	uint32_t n = 0;
	frame_t f = INVALID_FRAME;

	for (; !err; n++) {
		do
			g += 16;
		while (stripe_of(t, hash_group(&t->keys, vm.v, g >> 4)) != 3);
		f = help_alloc(t, vm, 0);
		err = ipt_map(t, vm, gfn(g), f, 1);
	}
	cr_assert_eq(err, -ENOSPC);
	cr_assert_gt(n, frames / 8 * 2 - 100, "twice a stripe's share went in: %u", n);
	cr_assert_not(frame_valid(ipt_lookup(t, vm, gfn(g))));
	help_audit(t);
	/* A map over many stripes that fails in that one leaves nothing behind. */
	frame_t run = help_alloc(t, vm, 9);
	uint32_t before = counts(t).frames[IPT_PRIVATE];
	cr_assert_eq(ipt_map(t, vm, gfn(IPT_MAX_GFN - 601), run, 512), -ENOSPC);
	cr_assert_eq(counts(t).frames[IPT_PRIVATE], before);
	cr_assert_not(frame_valid(ipt_lookup(t, vm, gfn(IPT_MAX_GFN - 601))));
	help_audit(t);
	cr_assert_eq(ipt_map(t, vm, gfn(IPT_MAX_GFN - 512 * 3), run, 512), 0, "clusters still fit");
	help_mapped(t, other, (g & ~UINT64_C(511)) + 512, 9);
	help_audit(t);
	help_reap(t, vm);
	help_audit(t);
	ipt_detach(t);
}

Test(ipt_radix, pages_come_back)
{
	struct ipt *t = help_table(IPT_RADIX, 4096);
	vmid_t a = help_vm(t, "a"), b = help_vm(t, "b");
	struct ipt_bytes before, after;

	help_mapped(t, b, 0, 0);
	cr_assert_eq(counts(t).radix_pages, 4);
	ipt_bytes(t, &before);
	for (uint64_t i = 0; i < 100; i++)
		help_mapped(t, a, i << 27 | i, 0);
	cr_assert_gt(counts(t).radix_pages, 300);
	help_audit(t);
	help_reap(t, a);
	cr_assert_eq(counts(t).radix_pages, 4);
	ipt_bytes(t, &after);
	cr_assert_eq(after.forward, before.forward, "and their memory with them");
	help_audit(t);
	a = help_vm(t, "a");
	help_mapped(t, a, 5, 0);
	cr_assert_not(frame_valid(ipt_lookup(t, a, gfn(0))), "pages are zero when used again");
	help_audit(t);
	ipt_detach(t);
}
