#include "vmm/first_stack.h"
#include "ipt/addr.h"
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <ucontext.h>
#include <unistd.h>

#define GROWTH MiB /* that the first stack may grow by once it was looked at */

/* What follows the name in /proc/self/stat (proc(5)), by its field's number there. */
enum {
	START_CODE = 26,
	END_CODE = 27,
	START_STACK = 28,
	START_DATA = 45,
	END_DATA = 46,
	START_BRK = 47,
	ARG_START = 48,
	ARG_END = 49,
	ENV_START = 50,
	ENV_END = 51,
	FIELDS
};

static bool read_stat(uint64_t field[FIELDS])
{
	char line[2048];
	FILE *f = fopen("/proc/self/stat", "re");
	size_t n = f ? fread(line, 1, sizeof line - 1, f) : 0;
	if (f)
		fclose(f);
	line[n] = '\0';
	char *at = strrchr(line, ')'), *end;
	if (!at || at[1] != ' ' || !at[2])
		return false;
	at += 3; /* field 3 is a letter */
	for (int i = 4; i < FIELDS; i++, at = end) {
		field[i] = strtoull(at, &end, 10);
		if (end == at)
			return false;
	}
	return true;
}

static bool find_first(uintptr_t *from, uintptr_t *to)
{
	char line[512];
	bool found = false;
	FILE *f = fopen("/proc/self/maps", "re");
	while (f && !found && fgets(line, sizeof line, f))
		found = strstr(line, "[stack]") && sscanf(line, "%lx-%lx", from, to) == 2;
	if (f)
		fclose(f);
	return found;
}

/* The words, with what points to them: argc and NULL, all of the environment and NULL. */
struct words {
	char **argv, **env;
};

static size_t count(char *const *words)
{
	size_t n = 0;
	while (words[n])
		n++;
	return n;
}

/* Into `to`, what points to words in [from, from + bytes), which are at `now` now. False: one isn't there. */
static bool point(char **to, char *const *words, const char *from, size_t bytes, char *now)
{
	for (; *words; words++) {
		uintptr_t at = (uintptr_t)*words - (uintptr_t)from;
		if (at >= bytes)
			return false;
		*to++ = now + at;
	}
	*to = NULL;
	return true;
}

/* The kernel is told where the words are now (prctl(2), PR_SET_MM_MAP). */
static bool move_words(char **argv, struct words *w)
{
	uint64_t field[FIELDS];
	if (!read_stat(field) || field[ARG_START] >= field[ARG_END] ||
	    field[ENV_START] < field[ARG_END] || field[ENV_END] < field[ENV_START])
		return false;
	const char *from = (const char *)(uintptr_t)field[ARG_START];
	const size_t bytes = field[ENV_END] - field[ARG_START];
	const size_t argc = count(argv), envc = count(environ);
	/* For as long as the process lives. Whole pages: what comes behind them lies the same, however many words there are. */
	const size_t all = (argc + envc + 2) * sizeof(char *) + bytes;
	char **pointers = aligned_alloc(PAGE_SIZE, (all + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1));
	if (!pointers)
		return false;
	*w = (struct words){pointers, pointers + argc + 1};
	char *now = (char *)(pointers + argc + envc + 2);
	memcpy(now, from, bytes);
	const struct prctl_mm_map map = {
		.start_code = field[START_CODE],
		.end_code = field[END_CODE],
		.start_data = field[START_DATA],
		.end_data = field[END_DATA],
		.start_brk = field[START_BRK],
		.brk = (uintptr_t)sbrk(0),
		.start_stack = field[START_STACK],
		.arg_start = (uintptr_t)now,
		.arg_end = (uintptr_t)now + (field[ARG_END] - field[ARG_START]),
		.env_start = (uintptr_t)now + (field[ENV_START] - field[ARG_START]),
		.env_end = (uintptr_t)now + bytes,
		.exe_fd = (uint32_t)-1,
	};
	if (!point(w->argv, argv, from, bytes, now) || !point(w->env, environ, from, bytes, now) ||
	    prctl(PR_SET_MM, PR_SET_MM_MAP, &map, sizeof map, 0) < 0) {
		free(pointers);
		return false;
	}
	return true;
}

static struct {
	first_stack_main_fn *main;
	int argc;
	char **argv;
} next;

static void go_on(void)
{
	exit(next.main(next.argc, next.argv));
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) /* which know one stack */
static const bool may_leave = false;
#else
static const bool may_leave = true;
#endif

_Noreturn void first_stack_leave(int argc, char **argv, first_stack_main_fn *main)
{
	static uint8_t stack[FIRST_STACK_OTHER_BYTES] __attribute__((aligned(PAGE_SIZE)));
	static char name[] = "invisor";
	static ucontext_t context;
	uintptr_t from, to;
	struct words w;
	next.main = main;
	next.argc = argc;
	next.argv = argv;
	if (may_leave && getcontext(&context) == 0 && mprotect(stack, PAGE_SIZE, PROT_NONE) == 0 &&
	    find_first(&from, &to) && move_words(argv, &w)) {
		next.argv = w.argv;
		environ = w.env;
		program_invocation_name = program_invocation_short_name = name;
		/* Where nothing is mapped it fails, and has been done for the rest. */
		madvise((void *)(from - GROWTH), to - from + GROWTH, MADV_DONTFORK);
		context.uc_stack.ss_sp = stack;
		context.uc_stack.ss_size = sizeof stack;
		makecontext(&context, go_on, 0);
		setcontext(&context);
	}
	go_on();
	abort();
}
