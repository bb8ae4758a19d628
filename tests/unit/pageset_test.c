/* pageset.c against a plain array of flags. */
#include "virtio_fake.h"
#include "vmm/pageset.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static struct pageset make(uint64_t pages)
{
	void *m = mmap(NULL, pageset_bytes(pages), PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	cr_assert_neq(m, MAP_FAILED);
	return pageset_at(m, pages);
}

/* Every run, as the array has them. */
static void compare(const struct pageset *s, const bool *has, uint64_t max)
{
	uint64_t at = 0, n, expect = 0;
	while ((n = pageset_next(s, &at, max))) {
		cr_assert_leq(n, max);
		for (; expect < at; expect++)
			cr_assert(!has[expect], "%lu", expect);
		for (; expect < at + n; expect++)
			cr_assert(has[expect], "%lu", expect);
		cr_assert(n == max || at + n == s->pages || !has[at + n], "the run goes on");
		at += n;
	}
	for (; expect < s->pages; expect++)
		cr_assert(!has[expect], "%lu", expect);
}

Test(pageset, as_an_array)
{
	static const uint64_t sizes[] = {1, 63, 64, 65, 4095, 4096, 4097, 20000, 300000};
	struct rnd rnd = {11};
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		uint64_t pages = sizes[i];
		struct pageset s = make(pages);
		bool *has = calloc(pages, 1);
		compare(&s, has, 7);
		for (int step = 0; step < 60; step++) {
			uint64_t first = rnd64(&rnd) % pages;
			uint64_t most =
				rnd_one_in(&rnd, 4) ? pages - first : 1 + rnd_below(&rnd, 200);
			uint64_t n = rnd64(&rnd) % (most + 1);
			n = n < pages - first ? n : pages - first;
			bool add = rnd_one_in(&rnd, 2);
			(add ? pageset_add : pageset_remove)(&s, first, n);
			memset(has + first, add, n);
			if (step % 6 == 0)
				compare(&s, has, 1 + rnd_below(&rnd, 400));
		}
		pageset_add(&s, 0, pages);
		memset(has, 1, pages);
		compare(&s, has, pages);
		pageset_remove(&s, 0, pages);
		memset(has, 0, pages);
		compare(&s, has, pages);
		free(has);
	}
}

Test(pageset, largest_and_nearly_empty)
{
	struct pageset s = make(PAGESET_MAX);
	uint64_t at = 0;
	pageset_add(&s, PAGESET_MAX - 1, 1);
	cr_assert_eq(pageset_next(&s, &at, 16), 1);
	cr_assert_eq(at, PAGESET_MAX - 1);
	pageset_remove(&s, PAGESET_MAX - 1, 1);
	at = 0;
	cr_assert_eq(pageset_next(&s, &at, 16), 0);
	at = PAGESET_MAX;
	cr_assert_eq(pageset_next(&s, &at, 16), 0);
}

struct adder {
	struct pageset *s;
	uint64_t from;
};

#define ADDS 20000u

static void *add(void *arg)
{
	struct adder *a = arg;
	for (uint64_t i = 0; i < ADDS; i++)
		pageset_add(a->s, a->from + i * 3, 1);
	return NULL;
}

/* Nothing that is added while another removes is lost. */
Test(pageset, added_while_taken)
{
	struct pageset s = make(ADDS * 3);
	struct adder a[2] = {{&s, 0}, {&s, 1}};
	pthread_t t[2];
	for (int i = 0; i < 2; i++)
		cr_assert_eq(pthread_create(&t[i], NULL, add, &a[i]), 0);
	uint64_t taken = 0;
	for (bool last = false;; last = true) {
		for (int pass = 0; pass < 200; pass++) {
			uint64_t at = 0, n;
			while ((n = pageset_next(&s, &at, 1))) {
				pageset_remove(&s, at, n);
				taken += n;
			}
		}
		if (last)
			break;
		for (int i = 0; i < 2; i++)
			pthread_join(t[i], NULL);
	}
	cr_assert_eq(taken, 2 * ADDS);
}
