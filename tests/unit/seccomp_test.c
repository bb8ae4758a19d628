/* The filters, each loaded in a child that then makes a call: it goes through, is refused, or ends the child. */
#include "vmm/seccomp.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef __SANITIZE_THREAD__ /* its runtime makes calls of its own */

enum fate { PASSES, DIES, NO_SUCH };

/* A call by number and arguments, in the kinds named. "Passes" says that the filter let it through, whatever came of
 * it. */
struct call {
	const char *name;
	long number, arg[4];
	enum fate fate[SECCOMP_KINDS]; /* vm, vcpu within vm, merger, reclaimer */
};

#define ALL(fate)                      \
	{                              \
		fate, fate, fate, fate \
	}
#define ONLY_VM                          \
	{                                \
		PASSES, DIES, DIES, DIES \
	}
#define TERMINAL_INPUT 0x5412 /* TIOCSTI */
#define NOWHERE        (-1)

static const struct call calls[] = {
	{"getpid", SYS_getpid, {0}, ALL(PASSES)},
	{"write", SYS_write, {NOWHERE, 0, 0}, ALL(PASSES)},
	{"mmap",
	 SYS_mmap,
	 {0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS},
	 ALL(PASSES)},
	{"munmap", SYS_munmap, {0, 4096}, ALL(PASSES)},
	{"futex", SYS_futex, {0, 1, 0}, ALL(PASSES)},
	{"KVM_RUN", SYS_ioctl, {NOWHERE, KVM_RUN}, {PASSES, PASSES, DIES, DIES}},
	{"KVM_IRQ_LINE", SYS_ioctl, {NOWHERE, KVM_IRQ_LINE}, {PASSES, PASSES, DIES, DIES}},
	{"KVM_CREATE_VM", SYS_ioctl, {NOWHERE, KVM_CREATE_VM}, ONLY_VM},
	{"pread", SYS_pread64, {NOWHERE, 0, 0, 0}, {PASSES, DIES, PASSES, PASSES}},
	{"pwrite", SYS_pwrite64, {NOWHERE, 0, 0, 0}, {PASSES, DIES, DIES, PASSES}},
	{"recvmsg", SYS_recvmsg, {NOWHERE}, {PASSES, DIES, PASSES, PASSES}},
	{"sendmsg", SYS_sendmsg, {NOWHERE}, {PASSES, DIES, PASSES, PASSES}},
	{"io_uring_setup", SYS_io_uring_setup, {0, 0}, ONLY_VM},
	{"io_uring_enter", SYS_io_uring_enter, {NOWHERE}, ONLY_VM},
	{"PR_SET_NAME", SYS_prctl, {PR_SET_NAME, (long)"x"}, ONLY_VM},
	{"hole punched", SYS_fallocate, {NOWHERE, 3}, {PASSES, DIES, DIES, PASSES}},
	{"clone3", SYS_clone3, {0, 0}, {NO_SUCH, DIES, DIES, DIES}},
	/* What nobody may do. */
	{"openat", SYS_openat, {AT_FDCWD, (long)"/etc/passwd", O_RDONLY}, ALL(DIES)},
	{"open", SYS_open, {(long)"/etc/passwd", O_RDONLY}, ALL(DIES)},
	{"execve", SYS_execve, {(long)"/bin/true"}, ALL(DIES)},
	{"socket", SYS_socket, {1, 1, 0}, ALL(DIES)},
	{"connect", SYS_connect, {NOWHERE}, ALL(DIES)},
	{"ptrace", SYS_ptrace, {0}, ALL(DIES)},
	{"process_vm_writev", SYS_process_vm_writev, {1}, ALL(DIES)},
	{"kill by TERM", SYS_kill, {NOWHERE, SIGTERM}, ALL(DIES)},
	{"pidfd_send_signal", SYS_pidfd_send_signal, {NOWHERE, SIGKILL}, ALL(DIES)},
	{"pidfd_getfd", SYS_pidfd_getfd, {NOWHERE}, ALL(DIES)},
	{"tgkill by KILL", SYS_tgkill, {NOWHERE, NOWHERE, SIGKILL}, ALL(DIES)},
	{"mmap to execute",
	 SYS_mmap,
	 {0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS},
	 ALL(DIES)},
	{"mprotect to execute", SYS_mprotect, {0, 4096, PROT_EXEC}, ALL(DIES)},
	{"ftruncate", SYS_ftruncate, {NOWHERE, 0}, ALL(DIES)},
	{"memfd_create", SYS_memfd_create, {(long)"x", 0}, ALL(DIES)},
	{"F_ADD_SEALS", SYS_fcntl, {NOWHERE, F_ADD_SEALS, 1}, ALL(DIES)},
	{"unshare", SYS_unshare, {CLONE_NEWUSER}, ALL(DIES)},
	{"clone to a namespace", SYS_clone, {CLONE_NEWUSER | SIGCHLD}, ALL(DIES)},
	{"setns", SYS_setns, {NOWHERE}, ALL(DIES)},
	{"chroot", SYS_chroot, {(long)"/"}, ALL(DIES)},
	{"mount", SYS_mount, {0}, ALL(DIES)},
	{"setresuid", SYS_setresuid, {0, 0, 0}, ALL(DIES)},
	{"bpf", SYS_bpf, {0}, ALL(DIES)},
	{"prctl dumpable", SYS_prctl, {PR_SET_DUMPABLE, 1}, ALL(DIES)},
	{"TIOCSTI", SYS_ioctl, {2, TERMINAL_INPUT, (long)"x"}, ALL(DIES)},
	{"ioctl with more bits", SYS_ioctl, {NOWHERE, KVM_RUN | 1L << 32}, ALL(DIES)},
	{"prlimit64", SYS_prlimit64, {0}, ALL(DIES)},
	{"a number that is none", 4095, {0}, ALL(DIES)},
};

static struct seccomp_filters filters;

static void make(void)
{
	cr_assert_eq(seccomp_make(&filters, false), 0);
}

static void unmake(void)
{
	seccomp_free(&filters);
}

TestSuite(seccomp, .init = make, .fini = unmake);

/* As a process and thread of that kind has them. */
static void load(enum seccomp_kind kind)
{
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	    (kind == SECCOMP_VCPU && seccomp_enter(&filters, SECCOMP_VM)) ||
	    seccomp_enter(&filters, kind))
		_exit(99);
}

static int ended(pid_t pid)
{
	int status;
	cr_assert_gt(pid, 0);
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	return status;
}

/* The wait status of a child that loads the filter and makes the call: exit 0, or 1 for ENOSYS. */
static int make_call(enum seccomp_kind kind, const struct call *c)
{
	pid_t pid = fork();
	if (pid == 0) {
		load(kind);
		long rc = syscall(c->number, c->arg[0], c->arg[1], c->arg[2], c->arg[3], -1, 0);
		_exit(rc < 0 && errno == ENOSYS);
	}
	return ended(pid);
}

Test(seccomp, calls_have_the_fate_that_tables_say)
{
	for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
		for (unsigned k = 0; k < SECCOMP_KINDS; k++) {
			const struct call *c = &calls[i];
			int status = make_call((enum seccomp_kind)k, c);
			const char *kind = seccomp_kind_name((enum seccomp_kind)k);
			if (c->fate[k] == DIES)
				cr_expect(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS,
					  "%s in %s: status %x instead of SIGSYS", c->name, kind,
					  status);
			else
				cr_expect(WIFEXITED(status) &&
						  WEXITSTATUS(status) == (c->fate[k] == NO_SUCH),
					  "%s in %s: status %x", c->name, kind, status);
		}
}

static void *thread(void *arg)
{
	return arg;
}

/* What templates do: fork, and there a thread. */
Test(seccomp, vm_may_fork_and_make_threads)
{
	pid_t pid = fork();
	if (pid == 0) {
		pthread_t t;
		void *got = NULL;
		int status = 1;
		load(SECCOMP_VM);
		pid_t child = fork();
		if (child == 0) {
			int rc = pthread_create(&t, NULL, thread, &status);
			_exit(rc || pthread_join(t, &got) || got != &status);
		}
		_exit(child < 0 || waitpid(child, &status, 0) != child || status);
	}
	cr_expect_eq(ended(pid), 0);
}

/* A vCPU's filter is its thread's alone, and what it does ends the process. */
static void *forbidden(void *arg)
{
	if (seccomp_enter(&filters, SECCOMP_VCPU))
		_exit(97);
	syscall(SYS_pread64, -1, NULL, 0, 0);
	return arg;
}

static void *allowed(void *arg)
{
	if (seccomp_enter(&filters, SECCOMP_VCPU))
		_exit(97);
	return arg;
}

Test(seccomp, threads_have_filters_of_their_own)
{
	void *(*const mains[])(void *) = {allowed, forbidden};
	for (unsigned i = 0; i < 2; i++) {
		pid_t pid = fork();
		if (pid == 0) {
			pthread_t t;
			load(SECCOMP_VM);
			if (pthread_create(&t, NULL, mains[i], NULL) || pthread_join(t, NULL))
				_exit(98);
			syscall(SYS_pread64, -1, NULL, 0, 0); /* which is ours to do */
			_exit(0);
		}
		int status = ended(pid);
		if (i)
			cr_expect(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS, "%x", status);
		else
			cr_expect_eq(status, 0, "%x", status);
	}
}

/* An assertion that fails says so and aborts, in every kind. */
Test(seccomp, aborts_are_told_from_violations)
{
	for (unsigned k = 0; k < SECCOMP_KINDS; k++) {
		pid_t pid = fork();
		if (pid == 0) {
			signal(SIGABRT, SIG_DFL);
			load((enum seccomp_kind)k);
			abort();
		}
		int status = ended(pid);
		cr_expect(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, "%u: %x", k, status);
	}
}

Test(seccomp, log_lets_everything_through)
{
	struct seccomp_filters log;
	cr_assert_eq(seccomp_make(&log, true), 0);
	for (unsigned k = 0; k < SECCOMP_KINDS; k++) {
		pid_t pid = fork();
		if (pid == 0) {
			prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
			if (seccomp_enter(&log, (enum seccomp_kind)k))
				_exit(99);
			_exit(open("/dev/null", O_RDONLY) < 0);
		}
		cr_expect_eq(ended(pid), 0, "%u", k);
	}
	seccomp_free(&log);
}

#endif

/* The list in docs/SECURITY.md, which is found beside the program's directory. */
static char *document(void)
{
	char self[4096];
	ssize_t n = readlink("/proc/self/exe", self, sizeof self - 64);
	cr_assert_gt(n, 0);
	self[n] = 0;
	strcpy(strrchr(self, '/'), "/../docs/SECURITY.md");
	FILE *f = fopen(self, "r");
	cr_assert(f, "%s", self);
	char *text = calloc(1, 1 << 17);
	cr_assert(text);
	size_t got = fread(text, 1, (1 << 17) - 1, f);
	cr_assert(got > 0 && got < (1 << 17) - 1);
	fclose(f);
	return text;
}

/* Between "<!-- calls: KIND -->" and the next line that is empty, the names, in order and each once. */
Test(seccomp_document, lists_every_call_and_no_other)
{
	char *text = document();
	for (unsigned k = 0; k < SECCOMP_KINDS; k++) {
		char mark[64], want[4096] = "", have[4096] = "", one[128];
		const char *kind = seccomp_kind_name((enum seccomp_kind)k);
		for (unsigned i = 0; seccomp_describe((enum seccomp_kind)k, i, one, sizeof one);
		     i++) {
			size_t name = strcspn(one, ":");
			char padded[80];
			snprintf(padded, sizeof padded, " %.*s ", (int)name, one);
			if (!strstr(want, padded))
				snprintf(want + strlen(want), sizeof want - strlen(want), "%s%s",
					 *want ? "" : " ", padded + 1);
		}
		snprintf(mark, sizeof mark, "<!-- calls: %s -->\n", kind);
		char *at = strstr(text, mark);
		cr_assert(at, "no list for %s; it would be:%s", kind, want);
		at += strlen(mark);
		char *end = strstr(at, "\n\n");
		cr_assert(end);
		strcat(have, " ");
		for (char *p = at; p < end; p++)
			if (*p == '\n' || *p == ' ')
				strcat(have, have[strlen(have) - 1] == ' ' ? "" : " ");
			else if (*p != '`' && *p != ',')
				strncat(have, p, 1);
		strcat(have, " ");
		cr_expect_str_eq(have, want, "%s: docs/SECURITY.md has\n%s\ninstead of\n%s", kind,
				 have, want);
	}
	free(text);
}
