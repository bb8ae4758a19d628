/* The small parts of vmm/: sizes and numbers from the command line, quantiles, the terminal's escapes, the
 * ring of console bytes, what top shows. */
#include "vmm/error.h"
#include "vmm/histogram.h"
#include "vmm/options.h"
#include "vmm/ring.h"
#include "vmm/size.h"
#include "vmm/terminal.h"
#include "vmm/top.h"
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

Test(vmm_error, words_of_others_stay_on_their_line)
{
	char words[16];
	memcpy(words, "a\nb\033[2J\177 \303\244", 12);
	words[12] = 0;
	error_plain(words, sizeof words);
	cr_assert_str_eq(words, "a?b?[2J? \303\244");
	memset(words, 'x', sizeof words);
	error_plain(words, sizeof words);
	cr_assert_eq(strlen(words), sizeof words - 1);
}

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

Test(vmm_histogram, empty_single_and_huge)
{
	static struct histogram a, b;
	cr_expect_eq(histogram_quantile(&a, 0.5), 0);
	histogram_add(&a, 1000);
	cr_expect_eq(histogram_quantile(&a, 0.5), 1000); /* never above the maximum */
	histogram_add(&b, UINT64_MAX);
	cr_expect_leq(histogram_quantile(&b, 0.99), UINT64_MAX);
	cr_expect_eq(b.n, 1);
	cr_expect_eq(b.max, UINT64_MAX);
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

Test(vmm_terminal, a_lent_terminal_comes_back_by_one_escape)
{
	char keys[] = "a\003\001\001\001cb\001xlost";
	size_t n = sizeof keys - 1;
	cr_expect(terminal_detach(keys, &n));
	cr_expect_eq(n, 5);
	cr_expect_eq(memcmp(keys, "a\003\001\003b", 5), 0); /* Ctrl-C is the guest's here */
	char more[] = "x\001";
	n = 2;
	cr_expect_not(terminal_detach(more, &n));
	cr_expect_eq(n, 1);
	char last[] = "x";
	n = 1;
	cr_expect(terminal_detach(last, &n));
	cr_expect_eq(n, 0);
}

/* Against a string that has everything. */
Test(vmm_ring, keeps_the_last_bytes_whatever_the_pieces)
{
	static char all[1 << 20];
	struct ring r = {.bytes = NULL};
	size_t written = 0;
	uint32_t state = 1;
	const char *piece;
	cr_expect_eq(ring_piece(&r, 0, &piece), 0);
	cr_expect_eq(ring_first(&r), 0);
	for (size_t i = 0; i < sizeof all; i++)
		all[i] = (char)((state = state * 1103515245 + 12345) >> 16);
	for (size_t n = 0; written < sizeof all; written += n) {
		state = state * 1103515245 + 12345;
		n = (state >> 16) % 7 ? (state >> 8) % 300 : (state >> 8) % 100000;
		if (n > sizeof all - written)
			n = sizeof all - written;
		ring_put(&r, all + written, n);
		cr_assert_eq(r.written, written + n);
		cr_assert_leq(r.room, RING_BYTES);
		uint64_t first = ring_first(&r), at = first;
		cr_assert(first == 0 || r.written - first == RING_BYTES, "kept less than it could");
		for (size_t got; (got = ring_piece(&r, at, &piece)); at += got)
			cr_assert_eq(memcmp(piece, all + at, got), 0, "at %lu", at);
		cr_assert_eq(at, r.written);
	}
	ring_free(&r);
}

static json_t *top_stats(int faults_of_a)
{
	return json_pack("{s:{s:i, s:i, s:i, s:I}, s:{s:s, s:i}, s:[{s:s, s:i, s:s, s:n, s:i, "
			 "s:{s:i}}, {s:s, "
			 "s:i, s:s, s:s, s:i}]}",
			 "pool", "frames_total", 1000, "frames_free", 250, "frames_shared", 10,
			 "total_bytes", (json_int_t)4096000, "table", "kind", "ipt", "total_bytes",
			 1500, "vms", "name", "vm-10", "id", 10, "state", "running", "parent",
			 "frames_private", 256, "second_stage_faults", "guest_read", faults_of_a,
			 "name", "vm-9", "id", 9, "state", "paused", "parent", "base",
			 "frames_private", 512);
}

Test(vmm_top, rates_sorts_and_lines)
{
	struct top t = {.column = TOP_OWN};
	json_t *status = json_pack("{s:i, s:i}", "pid", 7, "uptime_seconds", 3661);
	json_t *before = top_stats(100), *after = top_stats(150), *nothing = json_object();
	char line[TOP_LINE];
	cr_assert(top_update(&t, status, before, 1000000000));
	cr_expect_not(t.rates);
	cr_expect_eq(t.vms, 2);
	cr_expect_str_eq(t.vm[0].name, "vm-9"); /* the largest first */
	cr_assert(top_update(&t, status, after, 3000000000));
	cr_expect(t.rates);
	cr_expect(strstr(t.header[0], "up 1:01:01, 2 of"), "%s", t.header[0]);
	cr_expect_str_eq(t.header[1], "frames 1000  free 250 (25.0%)  shared 10 (1.0%)");
	cr_expect(strstr(t.header[2], "2.0 bytes a used frame; 25.0 faults/s"), "%s", t.header[2]);
	t.column = TOP_FAULTS;
	top_sort(&t);
	cr_expect_str_eq(t.vm[0].name, "vm-10");
	cr_expect_float_eq(t.vm[0].value[TOP_FAULTS], 25, 0.001);
	t.column = TOP_NAME; /* numbers in names count as such */
	top_sort(&t);
	cr_expect_str_eq(t.vm[0].name, "vm-9");
	t.reverse = true;
	top_sort(&t);
	cr_expect_str_eq(t.vm[0].name, "vm-10");
	top_titles(&t, line);
	cr_expect_eq(strncmp(line, "NAME^ ", 6), 0);
	size_t width = strlen(line);
	top_line(&t, 1, line);
	cr_expect_eq(strlen(line), width);
	cr_expect(strstr(line, "vm-9 ") && strstr(line, " paused ") && strstr(line, " base "));
	/* Whatever a host answers. */
	cr_assert(top_update(&t, nothing, nothing, 3000000000));
	cr_expect_eq(t.vms, 0);
	top_free(&t);
	json_decref(status);
	json_decref(before);
	json_decref(after);
	json_decref(nothing);
}

Test(vmm_top, what_reclaim_says)
{
	struct top t = {.column = TOP_OWN};
	json_t *status = json_object();
	json_t *stats = json_pack(
		"{s:{s:i}, s:{s:b, s:b, s:i, s:i, s:I, s:I, s:I, s:I}, s:[{s:s, s:{s:f}}, {s:s, "
		"s:{s:f}}]}",
		"pool", "frames_free", 512, "reclaim", "running", 1, "nothing_left", 0,
		"low_frames", 128, "pages_out", 1280, "packed_memory_used_bytes",
		(json_int_t)1 << 20, "packed_memory_total_bytes", (json_int_t)1 << 30,
		"swap_used_bytes", (json_int_t)3 << 19, "swap_total_bytes", (json_int_t)1 << 34,
		"vms", "name", "a", "reclaim", "stall_avg10", 0.0125, "name", "b", "reclaim",
		"stall_avg10", 0.25);
	json_t *reclaim = json_object_get(stats, "reclaim");
	cr_assert(top_update(&t, status, stats, 1000000000));
	cr_expect_str_eq(t.header[3], "reclaim free 2.0 MiB (low 0.5), out 5.0; packed 1.0 of "
				      "1024.0, swap 1.5 of 16384.0; stall 25.0%");
	json_object_set_new(reclaim, "nothing_left", json_true());
	cr_assert(top_update(&t, status, stats, 2000000000));
	cr_expect(strstr(t.header[3], "stall 25.0%; no more can go out"), "%s", t.header[3]);
	json_object_set_new(reclaim, "running", json_false());
	cr_assert(top_update(&t, status, stats, 3000000000));
	cr_expect(strstr(t.header[3], "; the reclaimer failed"), "%s", t.header[3]);
	json_object_set_new(stats, "reclaim", json_null());
	cr_assert(top_update(&t, status, stats, 4000000000));
	cr_expect_str_eq(t.header[3], "reclaim off");
	top_free(&t);
	json_decref(status);
	json_decref(stats);
}

Test(vmm_options, names)
{
	static const char *const good[] = {"vm", "a-b_c.9", "ALL", "all-1",
					   "abcdefghijklmnopqrstuvwxyz"};
	static const char *const bad[] = {
		"", "all", "a b", "a/b", "a@1", "é", "abcdefghijklmnopqrstuvwxyz0"};
	for (size_t i = 0; i < sizeof good / sizeof *good; i++)
		cr_expect(options_name_is_good(good[i]), "%s", good[i]);
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
		cr_expect_not(options_name_is_good(bad[i]), "%s", bad[i]);
}
