/*
 * The guest's agent: runs the host's commands that come in at /dev/hvc1 (docs/AGENT.md). One at a time: the next
 * request ends the command before, which may be somebody's who is gone, or be left over from before a clone.
 *
 * A clone copies every page that is written to, so what a command costs is what this program and the kernel write to
 * for it. Hence no C library, no allocation, all its variables in two pages, and a child that has our memory until
 * it executes the shell (CLONE_VM), instead of a copy of our page tables.
 */
#include "guest/linux/agent.h"
#include "guest/linux/sys.h"
#include "vmm/base64.h"
#include <asm/ioctls.h>
#include <asm/poll.h>
#include <asm/signal.h>
#include <asm/termbits.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/sched.h>
#include <linux/time_types.h>
#include <linux/wait.h>
#include <stdbool.h>
#include <string.h>

#define LINE_MAX    1024 /* bytes of a line, with its newline */
#define NONCE_MAX   32
#define COMMAND_MAX 3500
#define PIECE_MAX   738 /* bytes of output in one line: all of it in base64 are 984 characters */
#define CANT_RUN    255 /* status of a command that couldn't be run */
#define SIGNALS     64  /* of the kernel's; a set of them is 64 bits */
#define SFD_FLAGS   (O_CLOEXEC | O_NONBLOCK)
#define CHILD_STACK 1024

_Static_assert(NONCE_MAX + 5 + BASE64_CHARS(PIECE_MAX) + 1 <= LINE_MAX, "an output line fits");

/* What is written to for each command comes first: the beginning of one page. */
static struct agent {
	int tty, signals; /* descriptors; signals: readable when a child has ended */
	char **environment;

	/* The command under way: there is one while pid isn't 0. */
	int pid;    /* its shell, leader of a session and a process group */
	int output; /* what it writes comes out here; -1: all that could have written have closed it */
	bool exited; /* the shell has ended, but isn't reaped: its id stays ours while we may kill its group */
	unsigned status; /* once it has exited, 0 to 255 */

	/* The request: its nonce, and the command as far as it has come. */
	char nonce[NONCE_MAX];
	unsigned nonce_n, command_n;
	bool spoilt; /* a part of it is no base64, has a NUL, or is too much */

	/* The line that comes in. */
	unsigned line_n;
	bool too_long; /* it is: dropped up to its end */

	/* What goes out and isn't out yet: said[sent .. said_n - 1]. */
	unsigned said_n, sent;
	char said[LINE_MAX];
	char line[LINE_MAX];
	char command[COMMAND_MAX + 1];
} agent __attribute__((aligned(4096)));

/* ---- saying -------------------------------------------------------------------------------- */

static void say(const char *bytes, size_t n)
{
	memcpy(agent.said + agent.said_n, bytes, n);
	agent.said_n += (unsigned)n;
}

/* What isn't out yet is dropped, a line amid it too: the newline ends that. */
static void begin_answer(void)
{
	agent.sent = agent.said_n = 0;
	say("\n", 1);
}

static void say_output(const char *bytes, size_t n)
{
	say(agent.nonce, agent.nonce_n);
	say(" out ", 5);
	agent.said_n += (unsigned)base64_encode(agent.said + agent.said_n, bytes, n);
	say("\n", 1);
}

static void say_status(unsigned status)
{
	char digits[3];
	unsigned n = 0;
	do
		digits[sizeof digits - ++n] = (char)('0' + status % 10);
	while ((status /= 10) && n < sizeof digits);
	say(agent.nonce, agent.nonce_n);
	say(" status ", 8);
	say(digits + sizeof digits - n, n);
	say("\n", 1);
}

static bool all_said(void)
{
	return agent.sent == agent.said_n;
}

/* As much as the host takes now. Returns 0, or -errno if the terminal is gone. */
static int send_said(void)
{
	while (!all_said()) {
		long n = sys3(__NR_write, agent.tty, (long)(agent.said + agent.sent),
			      agent.said_n - agent.sent);
		if (n == -EAGAIN || n == 0)
			return 0;
		if (n < 0 && n != -EINTR)
			return (int)n;
		if (n > 0)
			agent.sent += (unsigned)n;
	}
	agent.sent = agent.said_n = 0;
	return 0;
}

/* ---- the command under way ----------------------------------------------------------------- */

/* The kernel's siginfo_t as waitid(2) fills it in. */
union ended {
	struct {
		int signo, error, code, pad, pid, uid, status;
	} child;
	char bytes[128];
};
#define CODE_EXITED 1 /* CLD_EXITED; others: by a signal, which is the status then */

/* Reap what has ended, but only look at the command's shell. While that is looked at, others wait. */
static void reap(void)
{
	for (;;) {
		union ended e = {0};
		long rc = sys5(__NR_waitid, P_ALL, 0, (long)&e, WEXITED | WNOHANG | WNOWAIT, 0);
		if (rc < 0 || !e.child.pid)
			return;
		if (e.child.pid == agent.pid) {
			agent.exited = true;
			agent.status = (unsigned)e.child.status & 255;
			if (e.child.code != CODE_EXITED)
				agent.status = (agent.status + 128) & 255;
			return;
		}
		sys5(__NR_waitid, P_PID, e.child.pid, 0, WEXITED | WNOHANG, 0);
	}
}

static void close_output(void)
{
	if (agent.output >= 0)
		sys1(__NR_close, agent.output);
	agent.output = -1;
}

/* It is over; nothing of it is killed. */
static void forget_command(void)
{
	close_output();
	agent.pid = 0;
	agent.exited = false;
	reap();
}

static void end_command(void)
{
	if (!agent.pid)
		return;
	sys2(__NR_kill, -agent.pid, SIGKILL);
	forget_command();
}

/* In the child, with our memory. It never returns, and a sanitizer would keep book of its stack as if it did. */
__attribute__((no_sanitize("address", "thread", "undefined"))) static void run_shell(void *output)
{
	char *argv[] = {"sh", "-c", "--", agent.command, NULL};
	unsigned long none = 0;
	sys1(__NR_setsid, 0);
	sys3(__NR_dup3, (long)output, 1, 0);
	sys3(__NR_dup3, (long)output, 2, 0);
	sys4(__NR_rt_sigprocmask, SIG_SETMASK, (long)&none, 0, sizeof none);
	sys3(__NR_execve, (long)"/bin/sh", (long)argv, (long)agent.environment);
	for (;;)
		sys1(__NR_exit_group, CANT_RUN);
}

/* Run agent.command. Returns 0, or -errno. */
static int start_command(void)
{
	char stack[CHILD_STACK] __attribute__((aligned(16)));
	int ends[2];
	long rc = sys2(__NR_pipe2, (long)ends, O_CLOEXEC);
	if (rc < 0)
		return (int)rc;
	/* Ours doesn't wait; the command's does: that is another open file. */
	sys3(__NR_fcntl, ends[0], F_SETFL, O_NONBLOCK);
	rc = sys_clone(CLONE_VM | CLONE_VFORK | SIGCHLD, stack + sizeof stack, run_shell,
		       (void *)(long)ends[1]);
	sys1(__NR_close, ends[1]);
	if (rc < 0) {
		sys1(__NR_close, ends[0]);
		return (int)rc;
	}
	agent.pid = (int)rc;
	agent.output = ends[0];
	agent.exited = false;
	return 0;
}

/* A piece of output; what comes after it waits until that is out. */
static void take_output(void)
{
	char piece[PIECE_MAX];
	long n = sys3(__NR_read, agent.output, (long)piece, sizeof piece);
	if (n > 0)
		say_output(piece, (size_t)n);
	else if (n != -EAGAIN && n != -EINTR)
		close_output();
}

/* ---- requests ------------------------------------------------------------------------------ */

struct word {
	char *at;
	size_t n;
};

static bool is(struct word w, const char *text)
{
	return w.n == strlen(text) && !memcmp(w.at, text, w.n);
}

/* A line of exactly four words, parted by one space each, the first of which is the last again. */
static bool split(char *line, size_t n, struct word w[4])
{
	for (unsigned i = 0; i < 4; i++) {
		char *space = memchr(line, ' ', n);
		if (!space != (i == 3))
			return false;
		w[i] = (struct word){line, space ? (size_t)(space - line) : n};
		if (!w[i].n)
			return false;
		line += w[i].n + 1;
		n -= i < 3 ? w[i].n + 1 : 0;
	}
	return w[0].n <= NONCE_MAX && w[0].n == w[3].n && !memcmp(w[0].at, w[3].at, w[0].n);
}

static void take_part(struct word part)
{
	long n = base64_decode(part.at, part.at, part.n);
	if (n < 0 || (unsigned long)n > COMMAND_MAX - agent.command_n ||
	    memchr(part.at, 0, (size_t)n)) {
		agent.spoilt = true;
		return;
	}
	memcpy(agent.command + agent.command_n, part.at, (size_t)n);
	agent.command_n += (unsigned)n;
}

static void run_request(void)
{
	end_command();
	begin_answer();
	agent.command[agent.command_n] = 0;
	if (agent.spoilt || start_command() < 0)
		say_status(CANT_RUN);
	agent.command_n = 0;
	agent.spoilt = false;
}

static void on_line(char *line, size_t n)
{
	struct word w[4];
	if (!split(line, n, w))
		return;
	bool exec = is(w[1], "exec"), cancel = is(w[1], "cancel");
	if (!exec && !cancel && !is(w[1], "more"))
		return;
	if (w[0].n != agent.nonce_n || memcmp(w[0].at, agent.nonce, w[0].n)) {
		end_command();
		agent.sent = agent.said_n = 0; /* the next answer's newline ends what is cut here */
		memcpy(agent.nonce, w[0].at, w[0].n);
		agent.nonce_n = (unsigned)w[0].n;
		agent.command_n = 0;
		agent.spoilt = false;
	}
	if (cancel) {
		end_command();
		agent.sent = agent.said_n = 0;
		return;
	}
	take_part(w[2]);
	if (exec)
		run_request();
}

/* Returns 0, or -errno if the terminal is gone. */
static int take_input(void)
{
	char bytes[256];
	long n = sys3(__NR_read, agent.tty, (long)bytes, sizeof bytes);
	if (n == -EAGAIN || n == -EINTR)
		return 0;
	if (n <= 0)
		return n ? (int)n : -EIO;
	for (long i = 0; i < n; i++)
		if (bytes[i] == '\n') {
			if (!agent.too_long)
				on_line(agent.line, agent.line_n);
			agent.line_n = 0;
			agent.too_long = false;
		} else if (agent.line_n < LINE_MAX - 1) {
			agent.line[agent.line_n++] = bytes[i];
		} else {
			agent.too_long = true;
		}
	return 0;
}

/* ---- life ---------------------------------------------------------------------------------- */

/* Returns -errno when the terminal is gone. */
static int serve(void)
{
	for (;;) {
		struct pollfd fds[3] = {
			{agent.tty, all_said() ? POLLIN : POLLIN | POLLOUT, 0},
			{agent.signals, POLLIN, 0},
			{all_said() ? agent.output : -1, POLLIN, 0},
		};
		char ended[128]; /* one struct signalfd_siginfo */
		int rc = 0;
		if (sys3(__NR_poll, (long)fds, 3, -1) < 0)
			continue;
		if (fds[1].revents) {
			while (sys3(__NR_read, agent.signals, (long)ended, sizeof ended) > 0)
				;
			reap();
		}
		/* Output first: requests may end the command and close its descriptor. */
		if (fds[2].revents)
			take_output();
		if (fds[0].revents & ~POLLOUT)
			rc = take_input();
		if (agent.pid && agent.exited && agent.output < 0 && all_said()) {
			say_status(agent.status);
			forget_command();
		}
		if (!rc)
			rc = send_said();
		if (rc)
			return rc;
	}
}

/* A raw terminal (termios(3), cfmakeraw); the newline says that we listen. Returns 0 or -errno. */
static int open_tty(const char *path)
{
	struct termios t;
	long fd = sys4(__NR_openat, AT_FDCWD, (long)path,
		       O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC, 0);
	if (fd < 0)
		return (int)fd;
	agent.tty = (int)fd;
	if (!sys3(__NR_ioctl, fd, TCGETS, (long)&t)) {
		t.c_iflag = 0;
		t.c_oflag &= ~(unsigned)OPOST;
		t.c_lflag = 0;
		t.c_cflag = (t.c_cflag & ~(unsigned)(CSIZE | PARENB)) | CS8;
		t.c_cc[VMIN] = 1;
		t.c_cc[VTIME] = 0;
		sys3(__NR_ioctl, fd, TCSETS, (long)&t);
	}
	agent.line_n = 0;
	agent.too_long = false;
	agent.nonce_n = 0;
	begin_answer();
	return send_said();
}

/* Every signal blocked here and at its default, as a command shall find it: a shell has ignored some for us. */
static int take_signals(void)
{
	unsigned long all = ~0ul, child = 1ul << (SIGCHLD - 1);
	struct {
		void *handler;
		unsigned long flags;
		void *restorer;
		unsigned long mask;
	} by_default = {0};
	sys4(__NR_rt_sigprocmask, SIG_SETMASK, (long)&all, 0, sizeof all);
	for (int s = 1; s <= SIGNALS; s++)
		sys4(__NR_rt_sigaction, s, (long)&by_default, 0, sizeof by_default.mask);
	agent.signals = (int)sys4(__NR_signalfd4, -1, (long)&child, sizeof child, SFD_FLAGS);
	return agent.signals < 0 ? agent.signals : 0;
}

/* Standard input, and for what the kernel may open meanwhile, output and error. */
static void take_null(void)
{
	long fd = sys4(__NR_openat, AT_FDCWD, (long)"/dev/null", O_RDWR, 0);
	for (int to = 0; fd >= 0 && to < 3; to++)
		if (fd != to)
			sys3(__NR_dup3, fd, to, 0);
	if (fd > 2)
		sys1(__NR_close, fd);
}

int guest_agent(const char *tty, char **environment)
{
	struct __kernel_timespec second = {1, 0};
	tty = tty ? tty : "/dev/hvc1";
	agent.environment = environment;
	agent.output = -1;
	take_null();
	if (take_signals() < 0 || open_tty(tty) < 0)
		return 1;
	for (;;) {
		serve();
		/* Hung up: nobody waits for the command any more. The terminal may come back. */
		end_command();
		do {
			if (agent.tty >= 0)
				sys1(__NR_close, agent.tty);
			agent.tty = -1;
			sys2(__NR_nanosleep, (long)&second, 0);
			reap();
		} while (open_tty(tty) < 0);
	}
}
