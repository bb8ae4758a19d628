/* The small parts of vmm/: sizes and numbers from the command line, quantiles, the terminal's escapes. */
#include "vmm/histogram.h"
#include "vmm/size.h"
#include "vmm/terminal.h"
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

Test(vmm_size, what_people_write)
{
	static const struct {
		const char *text;
		uint64_t bytes;
	} good[] = {
		{"0", 0},
		{"4096", 4096},
		{"4096B", 4096},
		{"64K", 64 << 10},
		{"64k", 64 << 10},
		{"256M", 256 << 20},
		{"1MiB", 1 << 20},
		{"8GB", UINT64_C(8) << 30},
		{"1T", UINT64_C(1) << 40},
		{"16777215T", UINT64_C(16777215) << 40},
		{"18446744073709551615", UINT64_MAX},
	};
	for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
		uint64_t got = 1;
		cr_expect(size_parse(good[i].text, &got), "%s", good[i].text);
		cr_expect_eq(got, good[i].bytes, "%s", good[i].text);
	}
}

Test(vmm_size, what_is_no_size)
{
	static const char *const bad[] = {
		"",    "M",   "-1",  "+1",    " 1",        "1 ",
		"1X",  "1KK", "1Mi", "0x10",  "1.5G",      "1e3",
		"ten", "1M,", "abc", "1KiBB", "16777216T", "18446744073709551616"};
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		uint64_t got = 7;
		cr_expect_not(size_parse(bad[i], &got), "'%s' gave %lu", bad[i], got);
	}
}

Test(vmm_size, numbers_within_bounds)
{
	uint64_t n;
	cr_expect(number_parse("8", 1, 8, &n) && n == 8);
	cr_expect(number_parse("0x1f", 0, 100, &n) && n == 31);
	cr_expect_not(number_parse("9", 1, 8, &n));
	cr_expect_not(number_parse("0", 1, 8, &n));
	cr_expect_not(number_parse("-1", 0, UINT64_MAX, &n));
	cr_expect_not(number_parse("1f", 0, 100, &n));
	cr_expect_not(number_parse("", 0, 100, &n));
	cr_expect_not(number_parse("0x", 0, 100, &n));
	cr_expect_not(number_parse("99999999999999999999", 0, UINT64_MAX, &n));
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return x < y ? -1 : x > y;
}

/* Against sorting all samples: never below the true quantile, and above by an eighth at most. */
Test(vmm_histogram, quantiles_are_within_an_eighth)
{
	static struct histogram h;
	static uint64_t sample[20000];
	const size_t n = sizeof sample / sizeof *sample;
	static const double q[] = {0.001, 0.1, 0.5, 0.9, 0.99, 1.0};
	uint64_t state = 88172645463325252u;
	for (size_t i = 0; i < n; i++) {
		state ^= state << 13;
		state ^= state >> 7;
		state ^= state << 17;
		sample[i] = (state >> 20) >> (state % 43); /* all magnitudes, 0 among them */
		if (sample[i] >> 40)
			sample[i] >>= 5;
		histogram_add(&h, sample[i]);
	}
	qsort(sample, n, sizeof *sample, compare);
	cr_assert_eq(h.max, sample[n - 1]);
	for (size_t i = 0; i < sizeof q / sizeof *q; i++) {
		uint64_t truth = sample[(size_t)(q[i] * (double)n) - 1];
		uint64_t got = histogram_quantile(&h, q[i]);
		cr_expect_geq(got, truth, "q %g", q[i]);
		cr_expect_leq(got, truth + truth / 8 + 1, "q %g: %lu for %lu", q[i], got, truth);
	}
}

Test(vmm_histogram, empty_single_huge_and_merged)
{
	static struct histogram a, b;
	cr_expect_eq(histogram_quantile(&a, 0.5), 0);
	histogram_add(&a, 1000);
	cr_expect_eq(histogram_quantile(&a, 0.5), 1000); /* never above the maximum */
	histogram_add(&b, UINT64_MAX);
	cr_expect_leq(histogram_quantile(&b, 0.99), UINT64_MAX);
	histogram_merge(&a, &b);
	cr_expect_eq(a.n, 2);
	cr_expect_eq(a.max, UINT64_MAX);
}

Test(vmm_terminal, escapes_are_taken_out)
{
	char keys[] = "ab\001\001c\001cd\001xe\003f\001";
	size_t n = sizeof keys - 1;
	cr_expect_eq(terminal_keys(keys, &n), 2); /* Ctrl-A x and Ctrl-C */
	cr_expect_eq(n, 8);
	cr_expect_eq(memcmp(keys, "ab\001c\003def", 8), 0);
	/* The prefix at the end waits for its key in the next piece. */
	char more[] = "\003g";
	n = 2;
	cr_expect_eq(terminal_keys(more, &n), 0);
	cr_expect_eq(n, 2);
	cr_expect_eq(more[0], 3);
}
