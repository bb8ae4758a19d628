/* Space for what isn't in memory: how it is given out, when it is full, and what the audit says of it. */
#include "ipt/forward.h"
#include "ipt/space.h"
#include "tests/unit/ipt_help.h"
#include <string.h>
#include <unistd.h>

Test(ipt_space, config_out_of_range)
{
	const struct ipt_config good = {.kind = IPT_INDEX,
					.frames = 100,
					.max_vms = 4,
					.nodes = 1,
					.colours = 1,
					.packed_pages = 1,
					.blocks = 1};
	struct ipt_config bad[] = {good, good, good, good};
	struct ipt *t = NULL;

	bad[0].packed_pages = IPT_MAX_PACKED + 1;
	bad[1].blocks = IPT_MAX_BLOCKS + 1;
	bad[2].kind = bad[3].kind = IPT_RADIX;
	bad[2].blocks = 0;
	bad[3].packed_pages = 0;
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		cr_assert_eq(ipt_create(&t, &bad[i]), -EINVAL, "config %u", i);
	cr_assert_eq(ipt_create(&t, &good), 0);
	ipt_detach(t);
}

/* The most there can be: next to nothing until used, and another handle sees it. */
Test(ipt_space, largest_costs_nothing_until_used)
{
	struct ipt *a = help_table_space(1000, IPT_MAX_PACKED, IPT_MAX_BLOCKS), *b = NULL;
	vmid_t vm = help_vm(a, "vm");
	struct ipt_space_info info;
	struct ipt_bytes bytes;
	struct ipt_out out;

	cr_assert_eq(ipt_attach(&b, ipt_fd(a)), 0);
	cr_assert_eq(ipt_config(b)->packed_pages, IPT_MAX_PACKED);
	cr_assert_eq(ipt_config(b)->blocks, IPT_MAX_BLOCKS);
	ipt_space(b, &info);
	cr_assert_eq(info.granules, UINT64_C(64) * IPT_MAX_PACKED);
	cr_assert_eq(info.blocks, IPT_MAX_BLOCKS);
	cr_assert_eq(ipt_bytes(b, &bytes), 0);
	cr_assert_leq(bytes.slots, 8 * KiB, "the arenas: %lu", (unsigned long)bytes.slots);
	help_claim(a, vm, 0, 1000, &out);
	help_claim(a, vm, IPT_IN_FILE, 1000, &out);
	cr_assert_eq(ipt_bytes(b, &bytes), 0);
	/* Arenas, slots, links, and a page of each bitmap. */
	cr_assert_leq(bytes.slots, 32 * KiB, "%lu", (unsigned long)bytes.slots);
	help_space_used(b, 16, 1);
	help_audit(b);
	cr_assert_eq(ipt_bytes(b, &bytes), 0);
	cr_assert_leq(bytes.slots, 32 * KiB, "the audit populates nothing");
	help_reap(b, vm);
	help_space_used(a, 0, 0);
	help_audit(a);
	ipt_detach(b);
	ipt_detach(a);
}

/* ---- granules -------------------------------------------------------------------------------- */

/* Mark the granules of a claim; they must have been free, and in one page. */
static void mark(uint8_t *used, uint32_t pages, const struct ipt_out *out)
{
	uint32_t n = (out->bytes + IPT_GRANULE - 1) / IPT_GRANULE;

	cr_assert_lt(out->where, pages * IPT_GRANULES);
	cr_assert_leq(out->where % IPT_GRANULES + n, IPT_GRANULES, "%u bytes cross a page",
		      out->bytes);
	for (uint32_t i = out->where; i < out->where + n; i++) {
		cr_assert_not(used[i], "granule %u given out twice", i);
		used[i] = 1;
	}
}

static void unmark(uint8_t *used, const struct ipt_out *out)
{
	memset(used + out->where, 0, (out->bytes + IPT_GRANULE - 1) / IPT_GRANULE);
}

Test(ipt_space, pages_of_every_size)
{
	enum { PAGES = 3000 };
	static uint8_t used[PAGES * IPT_GRANULES];
	static struct ipt_out out[PAGE_SIZE + 1];
	static uint32_t slots[PAGE_SIZE + 1];
	struct ipt *t = help_table_space(1100, PAGES, 0);
	vmid_t vm = help_vm(t, "vm");
	uint64_t all = 0;

	for (uint32_t bytes = 1; bytes <= PAGE_SIZE; bytes++) {
		uint32_t b = bytes * 1021 % PAGE_SIZE + 1; /* each once */

		slots[b] = help_claim(t, vm, 0, b, &out[b]);
		mark(used, PAGES, &out[b]);
		all += (b + 63) / 64;
	}
	help_space_used(t, all, 0);
	help_audit(t);
	for (unsigned round = 1; round < 4; round++) { /* others in the place of those that go */
		for (uint32_t b = round; b <= PAGE_SIZE; b += 3) {
			ipt_out_cancel(t, vm, &slots[b], 1);
			unmark(used, &out[b]);
		}
		for (uint32_t b = round; b <= PAGE_SIZE; b += 3) {
			slots[b] = help_claim(t, vm, 0, b, &out[b]);
			mark(used, PAGES, &out[b]);
		}
		help_space_used(t, all, 0);
		help_audit(t);
	}
	help_reap(t, vm);
	help_space_used(t, 0, 0);
	help_audit(t);
	ipt_detach(t);
}

static uint32_t spare(struct ipt *t, vmid_t vm)
{
	struct ipt_vm_info info;

	cr_assert_eq(ipt_vm_info(t, vm, &info), 0);
	return info.frames[IPT_SPARE];
}

/* How many pages of that many bytes there is space for. */
static uint32_t fill(struct ipt *t, vmid_t vm, uint32_t where, uint32_t bytes, struct ipt_out *out,
		     uint32_t *slots)
{
	for (uint32_t n = 0;; n++) {
		uint32_t had = spare(t, vm);

		out[n] = (struct ipt_out){where, bytes, n};
		int err = ipt_out_claim(t, vm, &out[n], 1, &slots[n]);
		if (err) {
			cr_assert_eq(err, -ENOSPC);
			cr_assert_eq(spare(t, vm), had, "the slot went back");
			return n;
		}
	}
}

Test(ipt_space, packed_memory_is_full)
{
	static const uint32_t sizes[] = {1, 2, 15, 16, 17, 40};
	static struct ipt_out out[100], more[100];
	static uint32_t slots[100], others[100];

	for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		uint32_t pages = sizes[i];
		struct ipt *t = help_table_space(1000, pages, 0);
		vmid_t vm = help_vm(t, "vm"), other = help_vm(t, "other");

		/* Every page by every VM, wherever it begins to look. */
		cr_assert_eq(fill(t, vm, 0, PAGE_SIZE, out, slots), pages);
		help_audit(t);
		cr_assert_eq(fill(t, other, 0, 1, more, others), 0);
		help_space_used(t, pages * 64, 0);
		/* A page that went is room for as many as fit, and no more. */
		ipt_out_cancel(t, vm, &slots[pages / 2], 1);
		cr_assert_eq(fill(t, other, 0, 11 * 64, more, others), 5);
		cr_assert_eq(fill(t, other, 0, 10 * 64, more, others), 0);
		cr_assert_eq(fill(t, other, 0, 9 * 64, more, others), 1);
		cr_assert_eq(fill(t, other, 0, 64, more, others), 0);
		help_space_used(t, pages * 64, 0);
		help_audit(t);
		help_reap(t, vm);
		help_reap(t, other);
		help_space_used(t, 0, 0);
		help_audit(t);
		ipt_detach(t);
	}
}

/* A claim of several pages is all or nothing. */
Test(ipt_space, all_or_nothing)
{
	struct ipt *t = help_table_space(16, 3, 3);
	vmid_t vm = help_vm(t, "vm");
	struct ipt_out out[17];
	uint32_t slots[80];

	for (unsigned i = 0; i < 17; i++)
		out[i] = (struct ipt_out){i % 2 ? IPT_IN_FILE : 0, i < 7 ? PAGE_SIZE : 0, i};
	cr_assert_eq(ipt_out_claim(t, vm, out, 0, slots), -EINVAL);
	cr_assert_eq(ipt_out_claim(t, vm, out, 17, slots), -EINVAL);
	cr_assert_eq(ipt_out_claim(t, vm, out, 16, slots), -ENOSPC, "four packed, three blocks");
	cr_assert_eq(spare(t, vm), 0);
	help_space_used(t, 0, 0);
	help_audit(t);
	/* The same pages again, as they are after that: `where` says what kind of space is wanted still. */
	out[6].bytes = 0;
	cr_assert_eq(ipt_out_claim(t, vm, out, 16, slots), 0);
	help_space_used(t, 3 * 64, 3);
	cr_assert_eq(spare(t, vm), 16);
	for (unsigned i = 0; i < 6; i++)
		cr_assert_eq((out[i].where & IPT_IN_FILE) != 0, i % 2);
	for (unsigned i = 6; i < 16; i++)
		cr_assert_eq(out[i].where, IPT_NOWHERE);
	help_audit(t);
	ipt_out_cancel(t, vm, slots, 16);
	help_space_used(t, 0, 0);
	/* One too large. */
	out[0] = (struct ipt_out){0, 100, 0};
	out[1] = (struct ipt_out){0, PAGE_SIZE + 1, 0};
	cr_assert_eq(ipt_out_claim(t, vm, out, 2, slots), -EINVAL);
	cr_assert_eq(spare(t, vm), 0);
	help_space_used(t, 0, 0);
	/* Slots run out: four for each frame. */
	for (unsigned i = 0; i < 16; i++)
		out[i] = (struct ipt_out){0, 0, i};
	for (unsigned i = 0; i < 4; i++)
		cr_assert_eq(ipt_out_claim(t, vm, out, 15, slots + i * 16), 0);
	cr_assert_eq(ipt_out_claim(t, vm, out, 5, slots + 75), -ENOSPC);
	cr_assert_eq(spare(t, vm), 60);
	cr_assert_eq(ipt_out_claim(t, vm, out, 4, slots + 75), 0);
	help_audit(t);
	help_reap(t, vm);
	help_audit(t);
	ipt_detach(t);
}

/* ---- blocks ---------------------------------------------------------------------------------- */

Test(ipt_space, every_block_once_and_none_beyond)
{
	static const uint32_t sizes[] = {1, 63, 64, 65, 100, 1023, 1024, 1025, 1100};
	static struct ipt_out out[1200];
	static uint32_t slots[1200];

	for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		uint32_t blocks = sizes[i];
		struct ipt *t = help_table_space(500, 0, blocks);
		vmid_t vm = help_vm(t, "vm"), other = help_vm(t, "other");
		static uint8_t used[1200];
		struct ipt_out again;

		memset(used, 0, sizeof(used));
		cr_assert_eq(fill(t, i % 2 ? vm : other, IPT_IN_FILE, 1 + i * 500, out, slots),
			     blocks);
		for (uint32_t k = 0; k < blocks; k++) {
			uint32_t at = out[k].where & ~IPT_IN_FILE;

			cr_assert(out[k].where & IPT_IN_FILE);
			cr_assert(at < blocks && !used[at], "%u of %u", at, blocks);
			used[at] = 1;
		}
		help_space_used(t, 0, blocks);
		help_audit(t);
		cr_assert_eq(fill(t, i % 2 ? other : vm, IPT_IN_FILE, 1, &again, slots + blocks),
			     0);
		for (uint32_t k = 0; k < blocks; k += 7) { /* just that one is free */
			ipt_out_cancel(t, i % 2 ? vm : other, &slots[k], 1);
			slots[k] =
				help_claim(t, i % 2 ? vm : other, IPT_IN_FILE, PAGE_SIZE, &again);
			cr_assert_eq(again.where, out[k].where);
		}
		help_audit(t);
		help_reap(t, vm);
		help_reap(t, other);
		help_space_used(t, 0, 0);
		help_audit(t);
		ipt_detach(t);
	}
}

/* VMs begin to look for space in different arenas. */
Test(ipt_space, vms_keep_apart)
{
	struct ipt *t = help_table_space(1000, 64, 64 * 64);
	uint32_t pages[8], words[8];

	for (uint32_t i = 0; i < 8; i++) {
		vmid_t vm = help_vm(t, (char[]){(char)('a' + i), 0});
		struct ipt_out out;

		help_claim(t, vm, 0, 64, &out);
		pages[i] = out.where / IPT_GRANULES;
		help_claim(t, vm, IPT_IN_FILE, 64, &out);
		words[i] = (out.where & ~IPT_IN_FILE) / 64;
		for (uint32_t k = 0; k < i; k++)
			cr_assert(pages[k] != pages[i] && words[k] != words[i]);
	}
	help_space_used(t, 8, 8);
	help_audit(t);
	ipt_detach(t);
}

/* ---- only one kind of space, or none --------------------------------------------------------- */

Test(ipt_space, what_there_is_none_of)
{
	for (unsigned have = 0; have < 3; have++) {
		struct ipt *t = help_table_space(100, have == 1 ? 4 : 0, have == 2 ? 4 : 0);
		vmid_t vm = help_vm(t, "vm");
		struct ipt_bytes before, after;
		struct ipt_out out[2] = {{0, 100, 1}, {IPT_IN_FILE, 100, 2}};
		struct ipt_out zero;
		uint32_t slot;

		help_claim(t, vm, 0, 0, &zero); /* a page of zeroes needs none */
		cr_assert_eq(ipt_bytes(t, &before), 0);
		cr_assert_eq(ipt_out_claim(t, vm, &out[0], 1, &slot), have == 1 ? 0 : -ENOSPC);
		cr_assert_eq(ipt_out_claim(t, vm, &out[1], 1, &slot), have == 2 ? 0 : -ENOSPC);
		cr_assert_eq(ipt_bytes(t, &after), 0);
		if (!have)
			cr_assert_eq(after.slots, before.slots, "no arena is locked");
		help_space_used(t, have == 1 ? 2 : 0, have == 2 ? 1 : 0);
		if (have != 1)
			cr_assert_eq(ipt_packed_trim(t, 0, 100, NULL, NULL), 0);
		help_audit(t);
		help_reap(t, vm);
		help_audit(t);
		ipt_detach(t);
	}
}

/* ---- trimming -------------------------------------------------------------------------------- */

struct trimmed {
	uint8_t told[64];
	unsigned runs, stop_after;
};

static int note_trim(void *ctx, uint32_t first, uint32_t n)
{
	struct trimmed *tr = ctx;

	cr_assert(n && first + n <= 64);
	for (uint32_t p = first; p < first + n; p++) {
		cr_assert_not(tr->told[p], "page %u told twice", p);
		tr->told[p] = 1;
	}
	return ++tr->runs == tr->stop_after ? -EIO : 0;
}

Test(ipt_space, trim)
{
	static struct ipt_out out[64];
	static uint32_t slots[64];
	struct ipt *t = help_table_space(100, 64, 0);
	vmid_t vm = help_vm(t, "vm");
	struct trimmed tr = {0};

	for (unsigned i = 0; i < 64; i++)
		slots[i] = help_claim(t, vm, 0, 50 * 64, &out[i]);
	cr_assert_eq(ipt_packed_trim(t, 0, 64, note_trim, &tr), 0);
	cr_assert_eq(tr.runs, 0);
	bool used[64];
	for (unsigned i = 0; i < 64; i++) {
		uint32_t p = out[i].where / IPT_GRANULES;

		used[p] = p % 7 == 0 || p == 63;
		if (!used[p])
			ipt_out_cancel(t, vm, &slots[i], 1);
	}
	cr_assert_eq(ipt_packed_trim(t, 0, 64, note_trim, &tr), 0);
	for (unsigned p = 0; p < 64; p++)
		cr_assert_neq(tr.told[p], used[p], "page %u", p);
	tr = (struct trimmed){.stop_after = 2};
	cr_assert_eq(ipt_packed_trim(t, 0, 64, note_trim, &tr), -EIO);
	cr_assert_eq(tr.runs, 2);
	/* A part; more than there is. */
	tr = (struct trimmed){0};
	cr_assert_eq(ipt_packed_trim(t, 8, 3, note_trim, &tr), 0);
	for (unsigned p = 0; p < 64; p++)
		cr_assert_eq(tr.told[p], p >= 8 && p < 11, "page %u", p);
	tr = (struct trimmed){0};
	cr_assert_eq(ipt_packed_trim(t, 60, UINT32_MAX, note_trim, &tr), 0);
	for (unsigned p = 0; p < 64; p++)
		cr_assert_eq(tr.told[p], p >= 60 && p < 63, "page %u", p);
	cr_assert_eq(ipt_packed_trim(t, 64, 1, note_trim, &tr), 0);
	cr_assert_eq(ipt_packed_trim(t, UINT32_MAX, UINT32_MAX, note_trim, &tr), 0);
	help_audit(t);
	ipt_detach(t);
}

/* ---- what the audit finds -------------------------------------------------------------------- */

static void found(void *ctx, const char *line)
{
	if (!strncmp(line, "I8", 2))
		++*(int *)ctx;
}

static void expect_found(struct ipt *t, const char *what)
{
	int lines = 0;

	cr_assert_gt(ipt_audit(t, found, &lines), 0, "%s", what);
	cr_assert_gt(lines, 0, "%s", what);
}

Test(ipt_space, audit_finds_broken_claims)
{
	struct ipt *t = help_table_space(100, 20, 200);
	vmid_t vm = help_vm(t, "vm"), on;
	struct ipt_out packed, block;
	uint32_t done;

	help_mapped(t, vm, 0, 4);
	help_out(t, vm, 0, 4, 0, 1000);
	help_out(t, vm, 4, 2, 0, 0);
	help_out(t, vm, 6, 2, IPT_IN_FILE, 1000);
	uint32_t slot = help_claim(t, vm, 0, 1000, &packed);
	uint32_t filed = help_claim(t, vm, IPT_IN_FILE, 1000, &block);
	struct slot_link *l = slot_link(t, slot), *zero = slot_link(t, forward_find(t, vm.v, 4));
	struct slot_link *out = slot_link(t, forward_find(t, vm.v, 0)), was = *l, was_zero = *zero;
	struct slot_link was_out = *out;
	_Atomic uint64_t *w = &t->packed[packed.where / 64];
	_Atomic uint64_t *b = &t->blocks[(block.where & ~IPT_IN_FILE) / 64];
	struct arena *a = &t->arenas[space_arena_of(t, &packed)];

	(void)filed;
	help_audit(t);
	uint64_t bits = *w;
	*w = bits & ~(UINT64_C(1) << packed.where % 64);
	expect_found(t, "a granule that is not in use");
	*w = bits | UINT64_C(1) << 63;
	expect_found(t, "a granule that nobody has claimed");
	*w = bits;
	bits = *b;
	*b = 0;
	expect_found(t, "blocks that are not in use");
	*b = bits | UINT64_C(1) << 60;
	expect_found(t, "a block that nobody has claimed");
	*b = bits;
	help_audit(t);

	l->target = out->target;
	expect_found(t, "two claims of the same granules");
	l->target = 20 * 64;
	expect_found(t, "a claim beyond the packed memory");
	l->target = IPT_IN_FILE | 200;
	expect_found(t, "a claim beyond the file");
	l->target = packed.where / 64 * 64 + 60;
	expect_found(t, "a claim that crosses a page");
	l->target = IPT_NOWHERE;
	expect_found(t, "bytes that are nowhere");
	*l = was;
	l->next = SLOT_CLAIM | (PAGE_SIZE + 1);
	expect_found(t, "more than a page");
	l->next = SLOT_CLAIM | 1100;
	expect_found(t, "a claim that is larger than what it got");
	l->next = 0;
	expect_found(t, "granules whose slot lost its claim");
	*l = was;
	help_audit(t);
	out->next = 0;
	expect_found(t, "a page that is out without a claim");
	*out = was_out;
	zero->next = 0;
	expect_found(t, "a page of zeroes without a claim");
	*zero = was_zero;
	a->granules++;
	expect_found(t, "a wrong count of granules");
	a->granules--;
	a = &t->arenas[space_arena_of(t, &block)];
	a->blocks--;
	expect_found(t, "a wrong count of blocks");
	a->blocks++;
	help_audit(t);

	/* A tomb has none. */
	cr_assert_eq(ipt_vm_freeze(t, vm, "vm@1", &on), 0);
	cr_assert_eq(ipt_drop(t, on, gfn(0), 1, &done, NULL, NULL), 0);
	help_audit(t);
	l = slot_link(t, forward_find(t, on.v, 0));
	l->next |= SLOT_CLAIM;
	expect_found(t, "a tomb with a claim");
	l->next &= ~SLOT_CLAIM;
	help_audit(t);
	ipt_detach(t);
}

Test(ipt_space, audit_finds_claims_without_space)
{
	struct ipt *t = help_table(IPT_INDEX, 100);
	vmid_t vm = help_vm(t, "vm");

	help_mapped(t, vm, 0, 0);
	help_out(t, vm, 0, 1, 0, 0);
	help_audit(t);
	struct slot_link *l = slot_link(t, forward_find(t, vm.v, 0)), was = *l;
	l->next = 0;
	expect_found(t, "a page of zeroes without a claim");
	*l = was;
	l->target = 0;
	l->next = SLOT_CLAIM | 100;
	expect_found(t, "a claim where there is no space");
	*l = was;
	help_audit(t);
	ipt_detach(t);
}

/* Tombs need no links, so they cost 8 bytes each whatever comes of them. */
Test(ipt_space, tombs_have_no_links)
{
	for (uint32_t packed = 0; packed < 2; packed++) {
		struct ipt *t = help_table_space(8192, packed, 0);
		vmid_t vm = help_vm(t, "vm"), on;
		struct ipt_bytes before, after;
		uint32_t done;

		help_mapped(t, vm, 0, 9);
		help_mapped(t, vm, 4096, 9);
		cr_assert_eq(ipt_vm_freeze(t, vm, "vm@1", &on), 0);
		cr_assert_eq(ipt_drop(t, on, gfn(0), 512, &done, NULL, NULL), 0);
		cr_assert_eq(ipt_drop(t, on, gfn(4096), 512, &done, NULL, NULL), 0);
		cr_assert_eq(ipt_bytes(t, &before), 0);
		cr_assert_eq(ipt_drop(t, on, gfn(100), 100, &done, NULL, NULL), 0, "once more");
		frame_t f = help_alloc(t, on, 9);
		cr_assert_eq(ipt_map(t, on, gfn(0), f, 512), 0);
		cr_assert_eq(ipt_unmap(t, on, gfn(4096), 512, NULL, NULL), 0);
		cr_assert_eq(ipt_bytes(t, &after), 0);
		cr_assert_eq(after.slots, before.slots, "%lu, were %lu", (unsigned long)after.slots,
			     (unsigned long)before.slots);
		help_audit(t);
		ipt_detach(t);
	}
}
