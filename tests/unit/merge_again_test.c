/* Pages that come back: vmm/merge_again.h. */
#include "vmm/merge_again.h"
#include <criterion/criterion.h>

/* In how many passes from `pass` on it is no longer too soon. */
static uint32_t wait(const struct merge_again *a, uint32_t vm, uint64_t gfn, uint32_t pass)
{
	uint32_t n = 0;
	while (merge_again_is_soon(a, vm, gfn, pass + n))
		n++;
	return n;
}

Test(merge_again, waits_twice_as_long_each_time)
{
	struct merge_again a;
	uint32_t pass = 5;
	cr_assert_eq(merge_again_create(&a), 0);
	cr_expect(!merge_again_is_soon(&a, 3, 100, pass));
	for (unsigned times = 1; times < 2 * MERGE_AGAIN_MOST; times++) {
		merge_again_note(&a, 3, 100, pass);
		uint32_t n = wait(&a, 3, 100, pass);
		cr_expect_eq(n, 1u << (times < MERGE_AGAIN_MOST ? times : MERGE_AGAIN_MOST));
		cr_expect(!merge_again_is_soon(&a, 3, 101, pass), "another page");
		cr_expect(!merge_again_is_soon(&a, 4, 100, pass), "another VM");
		pass += n;
	}
	/* One that stayed away for long begins anew. */
	pass += 4u << MERGE_AGAIN_MOST;
	merge_again_note(&a, 3, 100, pass);
	cr_expect_eq(wait(&a, 3, 100, pass), 2);
	merge_again_destroy(&a);
}

Test(merge_again, counts_on_where_passes_wrap)
{
	struct merge_again a;
	cr_assert_eq(merge_again_create(&a), 0);
	for (uint32_t pass = (1u << 28) - 3; pass < (1u << 28) + 1; pass += 2)
		merge_again_note(&a, 1, 1, pass);
	cr_expect_eq(wait(&a, 1, 1, (1u << 28) - 1), 4);
	merge_again_destroy(&a);
}

/* Of two that are kept at one place the later is known; none is taken for the other. */
Test(merge_again, forgets_rather_than_being_wrong)
{
	struct merge_again a;
	unsigned known = 0;
	cr_assert_eq(merge_again_create(&a), 0);
	for (uint64_t g = 0; g < 2000000; g++)
		merge_again_note(&a, 1, g, 7);
	for (uint64_t g = 0; g < 2000000; g++)
		known += merge_again_is_soon(&a, 1, g, 7);
	cr_expect(known > 200000 && known <= 1 << 18, "%u known", known);
	for (uint64_t g = 0; g < 400000; g++)
		cr_assert(!merge_again_is_soon(&a, 2, g, 7));
	merge_again_destroy(&a);
}
