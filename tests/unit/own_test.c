/* Memory that belongs together, and what happens when there is no more of it. */
#include "ipt/own.h"
#include <criterion/criterion.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

Test(own, pieces_are_zeroed_apart_and_aligned_and_the_heap_has_the_rest)
{
	enum { N = 200, BYTES = 100 };
	unsigned char *p[N];
	for (unsigned i = 0; i < N; i++) {
		p[i] = own_alloc(BYTES);
		cr_assert_not_null(p[i]);
		cr_assert_eq((uintptr_t)p[i] % _Alignof(max_align_t), 0);
		for (unsigned at = 0; at < BYTES; at++)
			cr_assert_eq(p[i][at], 0);
		memset(p[i], (int)i + 1, BYTES);
	}
	for (unsigned i = 0; i < N; i++)
		for (unsigned at = 0; at < BYTES; at++)
			cr_assert_eq(p[i][at], (unsigned char)(i + 1));
	for (unsigned i = 0; i < N; i++)
		own_free(p[i]);
	own_free(NULL);
}

Test(own, sizes_that_there_cant_be)
{
	cr_assert_null(own_alloc(SIZE_MAX));
	cr_assert_null(own_alloc(SIZE_MAX - 64));
	void *p = own_alloc(0);
	own_free(p);
	p = own_alloc(64);
	cr_assert_not_null(p);
	own_free(p);
}
