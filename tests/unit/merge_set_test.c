/* What the merger remembers: vmm/merge_set.h. */
#include "vmm/merge_set.h"
#include <criterion/criterion.h>

Test(merge_set, finds_by_tag_and_domain)
{
	struct merge_set s = {.most = 0};
	cr_expect(!frame_valid(merge_set_find(&s, 7, 1, INVALID_FRAME)), "empty");
	merge_set_add(&s, 7, 1, frame(100));
	merge_set_add(&s, 7, 2, frame(200));
	merge_set_add(&s, 8, 1, frame(300));
	cr_expect_eq(merge_set_find(&s, 7, 1, INVALID_FRAME).v, 100);
	cr_expect_eq(merge_set_find(&s, 7, 2, INVALID_FRAME).v, 200);
	cr_expect_eq(merge_set_find(&s, 8, 1, INVALID_FRAME).v, 300);
	cr_expect(!frame_valid(merge_set_find(&s, 8, 2, INVALID_FRAME)), "another domain's");
	cr_expect(!frame_valid(merge_set_find(&s, 9, 1, INVALID_FRAME)));
	merge_set_free(&s);
}

Test(merge_set, domain_0_is_never_in_it)
{
	struct merge_set s = {.most = 0};
	merge_set_add(&s, 7, 0, frame(100));
	cr_expect(!frame_valid(merge_set_find(&s, 7, 0, frame(100))));
	merge_set_add(&s, 7, 1, frame(101));
	merge_set_remove(&s, 7, 1, frame(101));
	cr_expect(!frame_valid(merge_set_find(&s, 7, 0, frame(101))), "removed ones have domain 0");
	merge_set_free(&s);
}

Test(merge_set, prefers_and_keeps_a_few_of_the_same)
{
	struct merge_set s = {.most = 0};
	for (uint32_t f = 0; f < 10; f++)
		merge_set_add(&s, 7, 1, frame(f));
	merge_set_add(&s, 7, 1, frame(2)); /* twice */
	cr_expect_eq(s.used, MERGE_SET_SAME);
	cr_expect_eq(merge_set_find(&s, 7, 1, frame(2)).v, 2);
	cr_expect_eq(merge_set_find(&s, 7, 1, frame(9)).v, 0, "9 was one too many");
	merge_set_remove(&s, 7, 1, frame(2));
	cr_expect_neq(merge_set_find(&s, 7, 1, frame(2)).v, 2);
	merge_set_add(&s, 7, 1, frame(9));
	cr_expect_eq(merge_set_find(&s, 7, 1, frame(9)).v, 9, "there is room for one again");
	merge_set_free(&s);
}

Test(merge_set, grows_and_forgets)
{
	enum { N = 20000 };
	struct merge_set s = {.most = 0};
	for (uint32_t i = 1; i <= N; i++)
		merge_set_add(&s, i * 2654435761u, 1 + i % 3, frame(i));
	for (uint32_t i = 1; i <= N; i++)
		cr_assert_eq(merge_set_find(&s, i * 2654435761u, 1 + i % 3, INVALID_FRAME).v, i);
	/* Removed ones leave room, they don't make it grow for ever. */
	uint32_t room = s.room;
	for (uint32_t round = 0; round < 10; round++)
		for (uint32_t i = 1; i <= N; i++) {
			uint32_t tag = i * 2654435761u, domain = 1 + i % 3;
			merge_set_remove(&s, tag, domain, frame(i + round * N));
			merge_set_add(&s, tag, domain, frame(i + (round + 1) * N));
		}
	cr_expect_leq(s.room, 2 * room);
	for (uint32_t i = 1; i <= N; i++)
		cr_assert_eq(merge_set_find(&s, i * 2654435761u, 1 + i % 3, INVALID_FRAME).v,
			     i + 10 * N);
	merge_set_clear(&s);
	cr_expect(!frame_valid(merge_set_find(&s, 2654435761u, 2, INVALID_FRAME)));
	merge_set_free(&s);
}

Test(merge_set, has_a_limit)
{
	struct merge_set s = {.most = 2000};
	for (uint32_t i = 1; i <= 100000; i++)
		merge_set_add(&s, i, 1, frame(i));
	cr_expect_leq(s.room, 8192);
	cr_expect_eq(merge_set_find(&s, 1, 1, INVALID_FRAME).v, 1);
	cr_expect(!frame_valid(merge_set_find(&s, 100000, 1, INVALID_FRAME)));
	merge_set_free(&s);
}

static const struct merge_run page = {.count = 1,
				      .vm = 3,
				      .gfn = 100,
				      .frame = 500,
				      .target = 900,
				      .target_vm = 4,
				      .target_gfn = 70,
				      .domain = 1};

static struct merge_run nth(uint32_t n)
{
	struct merge_run p = page;
	p.gfn += n;
	p.frame += n;
	p.target += n;
	p.target_gfn += n;
	return p;
}

Test(merge_run, goes_on_as_long_as_all_follows)
{
	struct merge_run r = page, p;
	for (uint32_t i = 1; i < 64; i++) {
		p = nth(i);
		cr_expect_eq(merge_run_target(&r, p.vm, p.gfn, frame(p.frame)).v, p.target);
		cr_assert(merge_run_extend(&r, &p, 64));
	}
	p = nth(64);
	cr_expect(!merge_run_extend(&r, &p, 64), "long enough");
	cr_expect_eq(r.count, 64);
}

Test(merge_run, ends_where_something_doesnt_follow)
{
	const struct merge_run next = nth(1);
	struct merge_run none = {.count = 0};
	cr_expect(!merge_run_extend(&none, &next, 64));
	struct merge_run changed[] = {next, next, next, next, next, next, next};
	changed[0].vm++;
	changed[1].gfn++;
	changed[2].frame++;
	changed[3].target--;
	changed[4].target_vm = 0;
	changed[5].target_gfn++;
	changed[6].domain++;
	for (size_t i = 0; i < sizeof changed / sizeof *changed; i++) {
		struct merge_run r = page;
		cr_expect(!merge_run_extend(&r, &changed[i], 64), "change %zu", i);
		cr_expect_eq(r.count, 1);
	}
	struct merge_run zero = page, zero_next = next;
	zero.target = zero_next.target = UINT32_MAX;
	zero.target_vm = zero_next.target_vm = 0;
	cr_expect(!merge_run_extend(&zero, &next, 64), "zero and not");
	cr_expect(merge_run_extend(&zero, &zero_next, 64));
	cr_expect(!frame_valid(merge_run_target(&zero, 3, 102, frame(502))));
}
