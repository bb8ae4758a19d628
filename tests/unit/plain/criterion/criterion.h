/*
 * As much of Criterion as these tests use, for builds with the thread sanitizer, under which Criterion
 * itself can't start ("Could not initialize inheritable arena", Criterion issue 274). Same tests, same
 * lines of output; each test runs in a child.
 */
#ifndef TESTS_UNIT_PLAIN_CRITERION_H
#define TESTS_UNIT_PLAIN_CRITERION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

struct plain_options {
	void (*init)(void);
	void (*fini)(void);
	double timeout; /* seconds */
	const char *description;
	bool disabled;
};

struct plain_test {
	const char *suite, *name;
	void (*run)(void); /* NULL for a suite's options */
	struct plain_options options;
	struct plain_test *next;
};

void plain_register(struct plain_test *test);
_Noreturn void plain_skip(const char *why);
/* Say what failed; `fatal` ends the test. */
void plain_fail(bool fatal, const char *file, int line, const char *expression);

#define Test(suite_, name_, ...)                                                   \
	static void suite_##_##name_##_run(void);                                  \
	static struct plain_test suite_##_##name_##_test = {                       \
		#suite_, #name_, suite_##_##name_##_run, {__VA_ARGS__}, NULL};     \
	__attribute__((constructor)) static void suite_##_##name_##_register(void) \
	{                                                                          \
		plain_register(&suite_##_##name_##_test);                          \
	}                                                                          \
	static void suite_##_##name_##_run(void)

#define TestSuite(suite_, ...)                                                                \
	static struct plain_test suite_##_suite = {#suite_, NULL, NULL, {__VA_ARGS__}, NULL}; \
	__attribute__((constructor)) static void suite_##_suite_register(void)                \
	{                                                                                     \
		plain_register(&suite_##_suite);                                              \
	}

/* The message is what Criterion prints; here its arguments are only kept in use. */
#define PLAIN_CHECK(fatal, ok, text, ...)                                                          \
	do {                                                                                       \
		if (!(ok)) {                                                                       \
			plain_fail(fatal, __FILE__, __LINE__, text);                               \
			__VA_OPT__(fprintf(stderr, "[----]   " __VA_ARGS__); fputc('\n', stderr);) \
			plain_fail(fatal, NULL, 0, NULL);                                          \
		}                                                                                  \
	} while (0)
#define PLAIN_OP(fatal, a, op, b, ...) \
	PLAIN_CHECK(fatal, (a)op(b), #a " " #op " " #b __VA_OPT__(, ) __VA_ARGS__)

#define cr_assert(x, ...)          PLAIN_CHECK(true, x, #x __VA_OPT__(, ) __VA_ARGS__)
#define cr_assert_not(x, ...)      PLAIN_CHECK(true, !(x), "not " #x __VA_OPT__(, ) __VA_ARGS__)
#define cr_assert_null(x, ...)     PLAIN_CHECK(true, !(x), #x " is null" __VA_OPT__(, ) __VA_ARGS__)
#define cr_assert_not_null(x, ...) PLAIN_CHECK(true, (x) != NULL, #x __VA_OPT__(, ) __VA_ARGS__)
#define cr_assert_eq(a, b, ...)    PLAIN_OP(true, a, ==, b __VA_OPT__(, ) __VA_ARGS__)
#define cr_assert_neq(a, b, ...)   PLAIN_OP(true, a, !=, b __VA_OPT__(, ) __VA_ARGS__)
#define cr_assert_lt(a, b, ...)    PLAIN_OP(true, a, <, b __VA_OPT__(, ) __VA_ARGS__)
#define cr_assert_leq(a, b, ...)   PLAIN_OP(true, a, <=, b __VA_OPT__(, ) __VA_ARGS__)
#define cr_assert_gt(a, b, ...)    PLAIN_OP(true, a, >, b __VA_OPT__(, ) __VA_ARGS__)
#define cr_assert_geq(a, b, ...)   PLAIN_OP(true, a, >=, b __VA_OPT__(, ) __VA_ARGS__)
#define cr_assert_str_eq(a, b, ...) \
	PLAIN_CHECK(true, !strcmp(a, b), #a " is " #b __VA_OPT__(, ) __VA_ARGS__)
#define cr_assert_str_neq(a, b, ...) \
	PLAIN_CHECK(true, strcmp(a, b), #a " is not " #b __VA_OPT__(, ) __VA_ARGS__)
#define cr_assert_fail(...) PLAIN_CHECK(true, false, "fail" __VA_OPT__(, ) __VA_ARGS__)

#define cr_expect(x, ...)          PLAIN_CHECK(false, x, #x __VA_OPT__(, ) __VA_ARGS__)
#define cr_expect_not(x, ...)      PLAIN_CHECK(false, !(x), "not " #x __VA_OPT__(, ) __VA_ARGS__)
#define cr_expect_not_null(x, ...) PLAIN_CHECK(false, (x) != NULL, #x __VA_OPT__(, ) __VA_ARGS__)
#define cr_expect_eq(a, b, ...)    PLAIN_OP(false, a, ==, b __VA_OPT__(, ) __VA_ARGS__)
#define cr_expect_neq(a, b, ...)   PLAIN_OP(false, a, !=, b __VA_OPT__(, ) __VA_ARGS__)
#define cr_expect_leq(a, b, ...)   PLAIN_OP(false, a, <=, b __VA_OPT__(, ) __VA_ARGS__)
#define cr_expect_geq(a, b, ...)   PLAIN_OP(false, a, >=, b __VA_OPT__(, ) __VA_ARGS__)
#define cr_expect_str_eq(a, b, ...) \
	PLAIN_CHECK(false, !strcmp(a, b), #a " is " #b __VA_OPT__(, ) __VA_ARGS__)

#define cr_skip_test(...)      plain_skip("" __VA_ARGS__)
#define cr_skip(...)           plain_skip("" __VA_ARGS__)
#define cr_log_info(fmt, ...)  fprintf(stderr, "[----] " fmt "\n" __VA_OPT__(, ) __VA_ARGS__)
#define cr_log_warn(fmt, ...)  fprintf(stderr, "[WARN] " fmt "\n" __VA_OPT__(, ) __VA_ARGS__)
#define cr_log_error(fmt, ...) fprintf(stderr, "[ERR ] " fmt "\n" __VA_OPT__(, ) __VA_ARGS__)

#endif
