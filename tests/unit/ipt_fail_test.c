/* Failpoints: the grammar, what programs do, and that the same seed decides alike. */
#include "ipt/fail.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char words[FAIL_WORDS_MAX];

static void set(enum fail_id id, const char *program)
{
	cr_assert_eq(fail_set(id, program, words), 0, "%s", words);
}

/* The next n decisions, a letter each: . nothing, E something returned. */
static void decisions(enum fail_id id, unsigned n, char *out)
{
	for (unsigned i = 0; i < n; i++)
		out[i] = fail_point(id) ? 'E' : '.';
	out[n] = 0;
}

Test(ipt_fail, names_and_sentences_are_there_once)
{
	cr_assert_geq(FAIL_IDS, 40);
	for (unsigned i = 0; i < FAIL_IDS; i++) {
		const struct fail_about *a = fail_about((enum fail_id)i);
		enum fail_id found = FAIL_IDS;
		cr_assert_not_null(strchr(a->name, '.'));
		cr_assert_lt(strlen(a->name), FAIL_NAME_MAX);
		cr_assert_gt(strlen(a->what), 10);
		cr_assert_eq(fail_find(a->name, &found, words), 0);
		cr_assert_eq(found, i, "%s is there twice", a->name);
		if (a->kind == FAIL_ERROR || a->kind == FAIL_RESULT)
			cr_assert_not_null(strerrorname_np(a->usual), "%s", a->name);
	}
}

Test(ipt_fail, off_is_nothing_and_counts_nothing)
{
	struct fail_state s;
	for (unsigned i = 0; i < FAIL_IDS; i++) {
		cr_assert_not(fail_armed((enum fail_id)i));
		cr_assert_eq(fail_point((enum fail_id)i), 0);
	}
	fail_read(FAIL_KVM_RUN, &s);
	cr_assert_str_eq(s.program, "off");
	cr_assert_eq(s.hits, 0);
}

Test(ipt_fail, counts_and_chains)
{
	char got[32];
	struct fail_state s;
	set(FAIL_WINDOW_MAP, "2*off->3*return(EIO)->1*off->return(12)");
	decisions(FAIL_WINDOW_MAP, 9, got);
	cr_assert_str_eq(got, "..EEE.EEE");
	cr_assert_eq(fail_point(FAIL_WINDOW_MAP), ENOMEM);
	fail_read(FAIL_WINDOW_MAP, &s);
	cr_assert_eq(s.hits, 10);
	cr_assert_eq(s.fired, 7);
	set(FAIL_WINDOW_MAP, "off");
	cr_assert_not(fail_armed(FAIL_WINDOW_MAP));
	fail_read(FAIL_WINDOW_MAP, &s);
	cr_assert_eq(s.hits, 10, "what was counted can be read after it is off");
	set(FAIL_WINDOW_MAP, "0%return");
	fail_read(FAIL_WINDOW_MAP, &s);
	cr_assert_eq(s.hits, 0);
	decisions(FAIL_WINDOW_MAP, 5, got);
	cr_assert_str_eq(got, ".....");
	fail_read(FAIL_WINDOW_MAP, &s);
	cr_assert_eq(s.hits, 5);
	cr_assert_eq(s.fired, 0);
}

Test(ipt_fail, only_what_is_set_is_armed)
{
	set(FAIL_KVM_RUN, "return");
	for (unsigned i = 0; i < FAIL_IDS; i++)
		cr_assert_eq(fail_armed((enum fail_id)i), i == FAIL_KVM_RUN);
	cr_assert_eq(fail_point(FAIL_KVM_RUN), fail_about(FAIL_KVM_RUN)->usual);
	fail_clear();
	cr_assert_not(fail_armed(FAIL_KVM_RUN));
}

Test(ipt_fail, the_same_seed_decides_alike)
{
	char first[1001], again[1001], other[1001], point[1001];
	unsigned n = 0;
	fail_seed(7);
	set(FAIL_POOL_READ, "10%return");
	set(FAIL_POOL_WRITE, "10%return");
	decisions(FAIL_POOL_READ, 1000, first);
	decisions(FAIL_POOL_WRITE, 1000, point);
	cr_assert_str_neq(first, point, "failpoints decide apart");
	fail_seed(7);
	decisions(FAIL_POOL_READ, 1000, again);
	cr_assert_str_eq(first, again);
	fail_seed(8);
	decisions(FAIL_POOL_READ, 1000, other);
	cr_assert_str_neq(first, other);
	for (unsigned i = 0; i < 1000; i++)
		n += first[i] == 'E';
	/* 100 expected, with a standard deviation of 9.5. */
	cr_assert(n > 55 && n < 145, "%u of 1000 at 10 %%", n);
}

Test(ipt_fail, per_cents_are_exact_to_a_billionth)
{
	unsigned n = 0;
	set(FAIL_POOL_READ, "0.0000001%return");
	for (unsigned i = 0; i < 200000; i++)
		n += fail_point(FAIL_POOL_READ) != 0;
	cr_assert_leq(n, 1);
	set(FAIL_POOL_READ, "99.9999999%3*return");
	for (unsigned i = 0; i < 100; i++)
		n += fail_point(FAIL_POOL_READ) != 0;
	cr_assert(n == 3 || n == 4);
}

Test(ipt_fail, results_are_changed)
{
	set(FAIL_STORE_READ, "1*off->1*return(ENOSPC)");
	set(FAIL_STORE_SHORT, "1*return(100)->1*return->1*return(5000)");
	cr_assert_eq(fail_result(FAIL_STORE_READ, FAIL_STORE_SHORT, 4096), 100);
	cr_assert_eq(fail_result(FAIL_STORE_READ, FAIL_STORE_SHORT, 4096), -ENOSPC);
	cr_assert_eq(fail_result(FAIL_STORE_READ, FAIL_STORE_SHORT, 4096), 0);
	cr_assert_eq(fail_result(FAIL_STORE_READ, FAIL_STORE_SHORT, 4096), 4096, "never more");
	cr_assert_eq(fail_result(FAIL_STORE_READ, FAIL_STORE_SHORT, -EIO), -EIO);
	cr_assert_eq(fail_result(FAIL_IDS, FAIL_IDS, 17), 17);
}

Test(ipt_fail, calls_are_not_made)
{
	int made = 0;
	set(FAIL_KVM_RUN, "1*return(EBUSY)");
	set(FAIL_WINDOW_MAP, "1*return(EINTR)");
	set(FAIL_VM_MEMORY, "1*return");
	errno = 0;
	cr_assert_eq(fail_call(KVM_RUN, ++made), -1);
	cr_assert_eq(errno, EBUSY);
	cr_assert_eq(fail_call(WINDOW_MAP, (void *)&made), MAP_FAILED);
	cr_assert_eq(fail_null(VM_MEMORY, (void *)&made), NULL);
	cr_assert_eq(errno, ENOMEM);
	cr_assert_eq(made, 0);
	cr_assert_eq(fail_call(KVM_RUN, ++made), 1);
	cr_assert_eq(fail_rc(KVM_RUN, -7), -7);
}

Test(ipt_fail, errno_stays_where_nothing_is_returned)
{
	set(FAIL_KVM_RUN, "1*sleep(1)->1*delay(1)->yield");
	for (int i = 0; i < 3; i++) {
		errno = 1234;
		cr_assert_eq(fail_point(FAIL_KVM_RUN), 0);
		cr_assert_eq(errno, 1234);
	}
}

Test(ipt_fail, who)
{
	char own[64];
	fail_be(FAIL_VM, "vm-1");
	set(FAIL_KVM_RUN, "return(1)[host]->return(2)[vm vm-2]->return(3)[pid 1]->return(4)[vm]");
	cr_assert_eq(fail_point(FAIL_KVM_RUN), 4);
	fail_be(FAIL_VM, "vm-2");
	cr_assert_eq(fail_point(FAIL_KVM_RUN), 2);
	fail_be(FAIL_HOST, NULL);
	cr_assert_eq(fail_point(FAIL_KVM_RUN), 1);
	fail_be(FAIL_MERGER, NULL);
	cr_assert_eq(fail_point(FAIL_KVM_RUN), 0);
	snprintf(own, sizeof own, "return(5)[reclaimer]->return(6)[pid %d]", (int)getpid());
	set(FAIL_KVM_RUN, own);
	cr_assert_eq(fail_point(FAIL_KVM_RUN), 6);
}

Test(ipt_fail, bad_programs_say_where)
{
	static const struct {
		enum fail_id id;
		const char *program;
		int at;
		const char *what;
	} cases[] = {
		{FAIL_KVM_RUN, "", 1, "an action is missing"},
		{FAIL_KVM_RUN, "5*retrun(ENOMEM)", 3, "'retrun' is no action"},
		{FAIL_KVM_RUN, "5return", 2, "'*' or '%' is missing"},
		{FAIL_KVM_RUN, "5*", 3, "an action is missing"},
		{FAIL_KVM_RUN, "*return", 1, "an action is missing"},
		{FAIL_KVM_RUN, "101%return", 1, "more than 100"},
		{FAIL_KVM_RUN, "100.1%return", 1, "more than 100"},
		{FAIL_KVM_RUN, "1.2.3%return", 4, "'%' is missing"},
		{FAIL_KVM_RUN, "1.5*return", 2, "'*' or '%' is missing"},
		{FAIL_KVM_RUN, "5000000000*off", 1, "more than"},
		{FAIL_KVM_RUN, "-1*off", 1, "an action is missing"},
		{FAIL_KVM_RUN, "return(EFOO)", 8, "'EFOO' is no errno"},
		{FAIL_KVM_RUN, "return(0)", 8, "from 1 on"},
		{FAIL_KVM_RUN, "return(4096)", 8, "more than 4095"},
		{FAIL_KVM_RUN, "return(-5)", 8, "is no errno"},
		{FAIL_KVM_RUN, "return(EIO", 11, "')' is missing"},
		{FAIL_KVM_RUN, "return(EIO)off", 12, "'->' or the end"},
		{FAIL_KVM_RUN, "off->", 6, "an action is missing"},
		{FAIL_KVM_RUN, "off ->off", 4, "'->' or the end"},
		{FAIL_KVM_RUN, "sleep", 6, "(milliseconds)"},
		{FAIL_KVM_RUN, "sleep(99999999)", 7, "more than 60000"},
		{FAIL_KVM_RUN, "panic(3)", 7, "takes no argument"},
		{FAIL_KVM_RUN, "off[nobody]", 5, "none of [host]"},
		{FAIL_KVM_RUN, "off[vm ]", 8, "no name"},
		{FAIL_KVM_RUN, "off[vm 0123456789012345678901234567890123]", 8, "no name"},
		{FAIL_KVM_RUN, "off[pid x]", 9, "a number is missing"},
		{FAIL_KVM_RUN, "off[host", 9, "']' is missing"},
		{FAIL_KVM_RUN, "off->off->off->off->off->off->off->off->off", 41,
		 "more than 8 terms"},
		{FAIL_IPT_STEP, "return", 7, "nothing is returned"},
		{FAIL_IPT_LOCK, "return(EIO)", 8, "no argument"},
		{FAIL_STORE_SHORT, "return(EIO)", 8, "a number is missing"},
	};
	set(FAIL_KVM_RUN, "7*return(EIO)");
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		char where[64];
		snprintf(where, sizeof where, "at character %d: ", cases[i].at);
		*words = 0;
		cr_assert_eq(fail_set(cases[i].id, cases[i].program, words), -EINVAL, "%s",
			     cases[i].program);
		cr_assert_not_null(strstr(words, where), "%s, not: %s", where, words);
		cr_assert_not_null(strstr(words, cases[i].what), "%s, not: %s", cases[i].what,
				   words);
	}
	cr_assert_eq(fail_point(FAIL_KVM_RUN), EIO, "a wrong program changes nothing");
}

Test(ipt_fail, every_short_program_ends_in_a_word)
{
	/* Programs of up to five pieces of the grammar, thrown together: none may do harm, and those that are
	 * taken must be taken when they are read back. */
	static const char *const piece[] = {"5",   "%",  "*",   "return", "(", ")", "EIO",  "->",
					    "off", ".1", "[vm", "]",      "",  " ", "sleep"};
	enum { PIECES = sizeof piece / sizeof *piece };
	char program[64];
	unsigned good = 0;
	for (unsigned k = 0; k < PIECES * PIECES * PIECES * PIECES * PIECES; k++) {
		unsigned n = k;
		*program = 0;
		for (int i = 0; i < 5; i++, n /= PIECES)
			strcat(program, piece[n % PIECES]);
		if (fail_check(FAIL_KVM_RUN, program, words) == 0) {
			good++;
			set(FAIL_KVM_RUN, program);
			fail_seed(k);
			struct fail_state s;
			fail_read(FAIL_KVM_RUN, &s);
			cr_assert_str_eq(s.program, program);
		}
	}
	cr_assert_gt(good, 50);
}

Test(ipt_fail, unknown_names_say_which_are_like_them)
{
	enum fail_id id = FAIL_IDS;
	cr_assert_eq(fail_find("kvm.rum", &id, words), -ENOENT);
	cr_assert_not_null(strstr(words, "like it: kvm.run,"), "%s", words);
	cr_assert_eq(fail_find("nonsense", &id, words), -ENOENT);
	cr_assert_null(strstr(words, "like it"), "%s", words);
	char lengthy[5000];
	memset(lengthy, 'x', sizeof lengthy - 1);
	lengthy[sizeof lengthy - 1] = 0;
	cr_assert_eq(fail_find(lengthy, &id, words), -ENOENT);
	cr_assert_eq(fail_find("", &id, words), -ENOENT);
	cr_assert_eq(fail_set_words(lengthy, words), -EINVAL);
	cr_assert_eq(fail_set_words("kvm.run", words), -EINVAL);
	cr_assert_eq(fail_set_words("kvm.run=off,x=off", words), -ENOENT);
	cr_assert_eq(fail_set_words("kvm.run=1*off,pool.read=return(EINTR)", words), 0);
	cr_assert_eq(fail_point(FAIL_POOL_READ), EINTR);
}

Test(ipt_fail, all_processes_share_it_and_count_together)
{
	enum { CHILDREN = 4, EACH = 500 };
	struct fail_state s;
	set(FAIL_POOL_READ, "1000*return(EIO)->off");
	cr_assert_eq(fail_share(), 0);
	cr_assert(fail_armed(FAIL_POOL_READ), "what was set before is kept");
	int failed[2], total = 0;
	cr_assert_eq(pipe(failed), 0);
	for (int i = 0; i < CHILDREN; i++)
		if (fork() == 0) {
			int n = 0;
			while (!fail_armed(FAIL_KVM_RUN)) /* set by the parent, later */
				usleep(100);
			for (int k = 0; k < EACH; k++)
				n += fail_point(FAIL_POOL_READ) != 0;
			_exit(write(failed[1], &n, sizeof n) != sizeof n);
		}
	set(FAIL_KVM_RUN, "return");
	for (int i = 0, n; i < CHILDREN; i++) {
		cr_assert_eq(read(failed[0], &n, sizeof n), sizeof n);
		total += n;
	}
	while (wait(NULL) > 0)
		;
	fail_read(FAIL_POOL_READ, &s);
	cr_assert_eq(s.hits, CHILDREN * EACH);
	cr_assert_eq(total, 1000, "%d", total);
}

static void *paused(void *done)
{
	fail_point(FAIL_KVM_RUN);
	__atomic_store_n((bool *)done, true, __ATOMIC_RELEASE);
	return NULL;
}

Test(ipt_fail, pause_lasts_until_something_else_is_set)
{
	bool done = false;
	pthread_t t;
	set(FAIL_KVM_RUN, "pause");
	cr_assert_eq(pthread_create(&t, NULL, paused, &done), 0);
	usleep(50000);
	cr_assert_not(__atomic_load_n(&done, __ATOMIC_ACQUIRE));
	set(FAIL_KVM_RUN, "off");
	pthread_join(t, NULL);
	cr_assert(done);
}

Test(ipt_fail, panic_kills_the_process_and_says_so)
{
	int says[2];
	char line[200] = "";
	cr_assert_eq(pipe(says), 0);
	pid_t pid = fork();
	if (pid == 0) {
		dup2(says[1], STDERR_FILENO);
		fail_set(FAIL_IPT_STEP, "2*print->panic", words);
		for (int i = 0; i < 3; i++)
			fail_point(FAIL_IPT_STEP);
		_exit(0);
	}
	close(says[1]);
	int status;
	waitpid(pid, &status, 0);
	cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	size_t n = 0;
	ssize_t got;
	while ((got = read(says[0], line + n, sizeof line - 1 - n)) > 0)
		n += (size_t)got;
	cr_assert_not_null(strstr(line, "failpoint ipt.step: print at hit 2"), "%s", line);
	cr_assert_not_null(strstr(line, "failpoint ipt.step: panic at hit 3"), "%s", line);
}

static void *hits(void *stop)
{
	while (!__atomic_load_n((bool *)stop, __ATOMIC_ACQUIRE)) {
		int e = fail_point(FAIL_POOL_READ);
		/* Either program, never a mixture. */
		if (e && e != 11 && e != 22)
			return (void *)1;
	}
	return NULL;
}

Test(ipt_fail, programs_change_under_readers)
{
	bool stop = false;
	pthread_t t[2];
	void *bad;
	for (int i = 0; i < 2; i++)
		cr_assert_eq(pthread_create(&t[i], NULL, hits, &stop), 0);
	for (int i = 0; i < 20000; i++)
		set(FAIL_POOL_READ,
		    i % 2 ? "50%return(11)->2*off->return(11)" : "return(22)[vm]->return(22)");
	__atomic_store_n(&stop, true, __ATOMIC_RELEASE);
	for (int i = 0; i < 2; i++) {
		pthread_join(t[i], &bad);
		cr_assert_null(bad);
	}
}

/* A host that dies, with a process of its; and how the next one gets to it. */
static pid_t mortal_host(int told, int answer)
{
	pid_t pid = fork();
	if (pid)
		return pid;
	if (fail_share())
		_exit(1);
	set(FAIL_POOL_READ, "return(EIO)");
	if (fork() == 0) {
		while (!fail_armed(FAIL_KVM_RUN))
			usleep(100);
		int got[] = {fail_point(FAIL_KVM_RUN), fail_point(FAIL_POOL_READ)};
		_exit(write(answer, got, sizeof got) != sizeof got);
	}
	int fd = fail_fd();
	_exit(write(told, &fd, sizeof fd) != sizeof fd || pause());
}

Test(ipt_fail, processes_of_a_host_that_died_hear_the_next)
{
	int told[2], answer[2], fd, got[2];
	char path[64];
	struct fail_state s;
	cr_assert_eq(pipe(told), 0);
	cr_assert_eq(pipe(answer), 0);
	pid_t host = mortal_host(told[1], answer[1]);
	cr_assert_eq(read(told[0], &fd, sizeof fd), sizeof fd);
	snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)host, fd);
	fd = open(path, O_RDWR | O_CLOEXEC);
	cr_assert_geq(fd, 0);
	kill(host, SIGKILL);
	cr_assert_eq(waitpid(host, NULL, 0), host);
	cr_assert_eq(fail_share(), 0);
	fail_seed(11);
	set(FAIL_KVM_RUN, "return(EINTR)");
	cr_assert_eq(fail_take(fd), 0);
	cr_expect_eq(fail_fd(), fd);
	cr_expect_eq(fail_seed_now(), 11);
	cr_assert_eq(read(answer[0], got, sizeof got), sizeof got);
	cr_expect_eq(got[0], EINTR, "what is set here is set for it");
	cr_expect_eq(got[1], 0, "what its own host had set is off");
	fail_read(FAIL_KVM_RUN, &s);
	cr_expect_str_eq(s.program, "return(EINTR)");
	cr_expect_eq(s.hits, 1);
	fail_read(FAIL_POOL_READ, &s);
	cr_expect_str_eq(s.program, "off");
	/* Something else is refused, and all stays as it is. */
	cr_expect_eq(fail_take(told[0]), -EPROTO);
	cr_expect_eq(fail_take(-1), -EBADF);
	cr_expect_eq(fail_point(FAIL_KVM_RUN), EINTR);
}
