/* The runner behind plain/criterion/criterion.h: plain [SUITE[/NAME]]. */
#include "tests/unit/plain/criterion/criterion.h"
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum outcome { PASSED = 0, FAILED = 1, SKIPPED = 77 };

static struct plain_test *tests, **last = &tests;
static bool failed;

void plain_register(struct plain_test *test)
{
	*last = test;
	last = &test->next;
}

void plain_skip(const char *why)
{
	fprintf(stderr, "[----] %s\n", why);
	_exit(SKIPPED);
}

void plain_fail(bool fatal, const char *file, int line, const char *expression)
{
	if (file) {
		fprintf(stderr, "[----] %s:%d: Assertion Failed: %s\n", file, line, expression);
		return;
	}
	failed = true;
	if (fatal)
		exit(FAILED);
}

static const struct plain_options *suite_options(const char *suite)
{
	static const struct plain_options none;

	for (struct plain_test *t = tests; t; t = t->next) {
		if (!t->run && !strcmp(t->suite, suite))
			return &t->options;
	}
	return &none;
}

static int run(const struct plain_test *t)
{
	const struct plain_options *suite = suite_options(t->suite);
	double timeout = t->options.timeout > 0 ? t->options.timeout : suite->timeout;
	int status;

	fflush(NULL);
	pid_t pid = fork();
	if (pid == 0) {
		/* The sanitizer makes everything slower than the tests' authors had in mind. */
		alarm(timeout > 0 ? (unsigned)(timeout * 20) : 600);
		if (suite->init)
			suite->init();
		if (t->options.init)
			t->options.init();
		t->run();
		if (t->options.fini)
			t->options.fini();
		if (suite->fini)
			suite->fini();
		exit(failed ? FAILED : PASSED);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid) {
		perror("run");
		exit(2);
	}
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

int main(int argc, char **argv)
{
	unsigned n = 0, counts[3] = {0};

	for (struct plain_test *t = tests; t; t = t->next) {
		char name[256];

		snprintf(name, sizeof(name), "%s/%s", t->suite, t->name ? t->name : "");
		if (!t->run || t->options.disabled ||
		    (argc > 1 && strncmp(argv[argc - 1], name, strlen(argv[argc - 1])) &&
		     argv[argc - 1][0] != '-'))
			continue;
		int outcome = run(t);
		const char *word = outcome == PASSED    ? "PASS"
				   : outcome == SKIPPED ? "SKIP"
				   : outcome < 0        ? "CRASH"
							: "FAIL";
		printf("[%s] %s::%s\n", word, t->suite, t->name);
		n++;
		counts[outcome == PASSED || outcome == SKIPPED ? 0 : outcome < 0 ? 2 : 1]++;
	}
	printf("[====] Synthesis: Tested: %u | Passing: %u | Failing: %u | Crashing: %u\n", n,
	       counts[0], counts[1], counts[2]);
	return counts[1] + counts[2] > 0;
}
