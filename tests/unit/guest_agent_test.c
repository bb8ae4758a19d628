/* The Linux guest's agent, in a process of its own at the far end of a pseudo-terminal, with hosts of all kinds. */
#include "guest/linux/agent.h"
#include "vmm/base64.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LINE_MAX    1024
#define COMMAND_MAX 3500

static int host; /* our end of the terminal */
static pid_t agent;
static char heard[1 << 21]; /* what hasn't been looked at */
static size_t heard_n;

/* One answer, put together. */
static char output[1 << 20];
static size_t output_n;

static void pause_ms(long ms)
{
	nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
}

static uint64_t now_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static bool hear(int ms)
{
	struct pollfd p = {host, POLLIN, 0};
	if (poll(&p, 1, ms) <= 0)
		return false;
	cr_assert_lt(heard_n, sizeof heard);
	ssize_t n = read(host, heard + heard_n, sizeof heard - heard_n);
	cr_assert_gt(n, 0);
	heard_n += (size_t)n;
	return true;
}

/* The next line without its newline. */
static void next_line(char line[LINE_MAX])
{
	char *end;
	while (!(end = memchr(heard, '\n', heard_n)))
		cr_assert(hear(20000), "the agent says nothing");
	size_t n = (size_t)(end - heard);
	cr_assert_lt(n, LINE_MAX);
	memcpy(line, heard, n);
	line[n] = 0;
	heard_n -= n + 1;
	memmove(heard, end + 1, heard_n);
}

static void set_up(void)
{
	host = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
	cr_assert_geq(host, 0);
	cr_assert_eq(grantpt(host) | unlockpt(host), 0);
	char name[64];
	cr_assert_eq(ptsname_r(host, name, sizeof name), 0);
	agent = fork();
	if (!agent) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(host);
		_exit(guest_agent(name, environ));
	}
	char line[LINE_MAX];
	heard_n = 0;
	next_line(line);
	cr_assert_str_eq(line, "", "it begins with a newline");
}

static void tear_down(void)
{
	int status;
	cr_assert_eq(waitpid(agent, &status, WNOHANG), 0, "the agent is there to the end");
	kill(agent, SIGKILL);
	waitpid(agent, &status, 0);
	close(host);
}

static void say_bytes(const char *bytes, size_t n)
{
	while (n) {
		ssize_t did = write(host, bytes, n);
		cr_assert_gt(did, 0);
		bytes += did;
		n -= (size_t)did;
	}
}

static void say(const char *text)
{
	say_bytes(text, strlen(text));
}

/* Bytes as a request of `more` lines and an `exec` line, as the host makes them. */
static void ask_bytes(const char *nonce, const char *bytes, size_t n)
{
	char line[LINE_MAX + 1], part[800];
	say("\n");
	for (size_t at = 0, step; at < n || !at; at += step) {
		step = n - at < 576 ? n - at : 576;
		part[base64_encode(part, bytes + at, step)] = 0;
		snprintf(line, sizeof line, "%s %s %s %s\n", nonce,
			 at + step == n ? "exec" : "more", part, nonce);
		say(line);
	}
}

static void ask(const char *nonce, const char *command)
{
	ask_bytes(nonce, command, strlen(command));
}

/* The answer, whose output is in `output` then. Lines of others are passed over. Returns the status. */
static unsigned answer(const char *nonce)
{
	size_t n = strlen(nonce);
	output_n = 0;
	for (;;) {
		char line[LINE_MAX];
		next_line(line);
		if (strncmp(line, nonce, n) || line[n] != ' ')
			continue;
		unsigned status;
		if (sscanf(line + n, " status %u", &status) == 1)
			return output[output_n] = 0, status;
		cr_assert_eq(strncmp(line + n, " out ", 5), 0, "%s", line);
		char *text = line + n + 5;
		long got = base64_decode(output + output_n, text, strlen(text));
		cr_assert_gt(got, 0, "%s", line);
		output_n += (size_t)got;
		cr_assert_lt(output_n, sizeof output - LINE_MAX);
	}
}

static unsigned run(const char *nonce, const char *command)
{
	ask(nonce, command);
	return answer(nonce);
}

static bool gone(pid_t pid)
{
	for (unsigned i = 0; i < 200; i++) {
		if (kill(pid, 0) < 0 && errno == ESRCH)
			return true;
		pause_ms(10);
	}
	return false;
}

/* A command that prints its process's id first: that. */
static pid_t pid_said(const char *nonce)
{
	char line[LINE_MAX], text[LINE_MAX];
	size_t n = strlen(nonce);
	do
		next_line(line);
	while (strncmp(line, nonce, n));
	long got = base64_decode(text, line + n + 5, strlen(line + n + 5));
	cr_assert_gt(got, 0, "%s", line);
	text[got] = 0;
	return (pid_t)atol(text);
}

TestSuite(guest_agent, .init = set_up, .fini = tear_down, .timeout = 120);

Test(guest_agent, answers)
{
	char line[LINE_MAX];
	ask("0123456789abcdef", "echo hello");
	next_line(line);
	cr_assert_str_eq(line, "", "an empty line ends what others began");
	cr_assert_eq(answer("0123456789abcdef"), 0);
	cr_assert_str_eq(output, "hello\n");
	cr_assert_eq(run("a", "echo out; echo err >&2; cat; exit 3"), 3);
	cr_assert_str_eq(output, "out\nerr\n", "both kinds, and nothing to read");
	cr_assert_eq(run("b", "tty"), 1);
	cr_assert_eq(run("c", "kill -9 $$"), 128 + SIGKILL);
	cr_assert_eq(run("d", "no-such-program 2>/dev/null"), 127);
	cr_assert_eq(run("e", "-x 2>/dev/null"), 127, "a command isn't an option");
	cr_assert_eq(run("f", "ls -l /proc/self/fd | grep -e pts -e ptmx -e signalfd"), 1,
		     "nothing of the agent's");
	cr_assert_eq(run("g", "grep -E '^Sig(Blk|Ign):.*[1-9a-f]' /proc/self/status"), 1);
	cr_assert_eq(run("h", "exec >&- 2>&-; sleep 0.2; exit 5"), 5, "its end isn't its output's");
	cr_assert_eq(run("i", "true"), 0);
	cr_assert_eq(output_n, 0);
}

Test(guest_agent, takes_commands_up_to_their_limit)
{
	char command[COMMAND_MAX + 2];
	for (size_t n = COMMAND_MAX - 3; n <= COMMAND_MAX + 1; n++) {
		int head = snprintf(command, sizeof command, "echo $((6 * 7)) #");
		memset(command + head, 'x', n - (size_t)head);
		ask_bytes("n", command, n);
		bool fits = n <= COMMAND_MAX;
		cr_assert_eq(answer("n"), fits ? 0 : 255, "%zu bytes", n);
		cr_assert_str_eq(output, fits ? "42\n" : "");
	}
	ask_bytes("nul", "echo a\0b", 8);
	cr_assert_eq(answer("nul"), 255);
	/* A part that is lost isn't run around. */
	say("p more ZWNobyA= p\np more !!!! p\np exec aGk= p\n");
	cr_assert_eq(answer("p"), 255);
	say("p more ZWNobyA= p\np exec aGk= p\n"); /* the same nonce again */
	cr_assert_eq(answer("p"), 0);
	cr_assert_str_eq(output, "hi\n");
	/* A request that was begun isn't part of the next. */
	say("q more ZXhpdCAxOw== q\nr more ZWNobyA= r\nr exec aGk= r\n");
	cr_assert_eq(answer("r"), 0);
	cr_assert_str_eq(output, "hi\n");
}

Test(guest_agent, drops_what_is_no_request)
{
	static const char *const nonsense[] = {
		"n exec ZWNobyBoaQ==\n",
		"n exec ZWNobyBoaQ== m\n",
		"n exec ZWNobyBoaQ== n \n",
		" n exec ZWNobyBoaQ== n\n",
		"n  exec ZWNobyBoaQ== n\n",
		"n exec  n\n",
		"n exec ZWNobyBoaQ== n n\n",
		"n EXEC ZWNobyBoaQ== n\n",
		"n exe ZWNobyBoaQ== n\n",
		"n execute ZWNobyBoaQ== n\n",
		"n status 0 n\n",
		"xec ZWNobyBoaQ== n\n",
		"   \n",
		"\n\n\n",
		"\r\n",
		"012345678901234567890123456789012 exec ZWNobyBoaQ== "
		"012345678901234567890123456789012\n",
	};
	char line[LINE_MAX * 5];
	for (size_t i = 0; i < sizeof nonsense / sizeof *nonsense; i++)
		say(nonsense[i]);
	/* Lines that are too long by one byte or by much, whatever they begin and end with. */
	for (size_t n = LINE_MAX; n < sizeof line; n += LINE_MAX - 7) {
		memset(line, 'A', n);
		memcpy(line, "n exec ", 7);
		memcpy(line + n - 2, " n", 2);
		say_bytes(line, n);
		say("\n");
	}
	for (unsigned i = 0; i < 256; i++)
		line[i] = (char)i;
	say_bytes(line, 256);
	cr_assert(!hear(300), "%.*s", (int)heard_n, heard);
	/* The longest line and the longest nonce that are good, in the smallest pieces. */
	ask("n", "echo hi");
	cr_assert_eq(answer("n"), 0);
	const char *nonce = "01234567890123456789012345678901";
	snprintf(line, sizeof line, "\n%s exec ZWNobyBoaQ== %s\n", nonce, nonce);
	for (size_t i = 0; line[i]; i++)
		say_bytes(line + i, 1);
	cr_assert_eq(answer(nonce), 0);
	cr_assert_str_eq(output, "hi\n");
}

Test(guest_agent, survives_a_mad_host)
{
	srandom(1);
	for (unsigned i = 0; i < 3000; i++) {
		/* A good request with some of it changed, cut or doubled; its command is harmless in every form. */
		char line[256];
		int n = snprintf(line, sizeof line, "n%u %s %s n%u\n", i % 3,
				 random() % 3 ? "more" : "cancel",
				 random() % 2 ? "Ojo6Ojo6" : "Og==", i % 3);
		size_t cut = random() % 3 ? (size_t)n : (size_t)(random() % n);
		for (long k = random() % 4; k > 0; k--)
			line[random() % n] = (char)random();
		say_bytes(line, cut);
		if (!(i % 64))
			hear(0);
	}
	cr_assert_eq(run("sane", "echo hi"), 0);
	cr_assert_str_eq(output, "hi\n");
}

Test(guest_agent, output_waits_for_a_slow_reader)
{
	ask("n", "seq 1 100000; echo $? >&2");
	pause_ms(250); /* nothing is taken: all that holds output is full by now */
	cr_assert_eq(answer("n"), 0);
	char *at = output;
	for (long i = 1; i <= 100000; i++, at++)
		cr_assert_eq(strtol(at, &at, 10), i);
	cr_assert_str_eq(at, "0\n");
	cr_assert_eq(run("m", "head -c 700000 /dev/zero"), 0);
	cr_assert_eq(output_n, 700000);
	for (size_t i = 0; i < output_n; i++)
		cr_assert_eq(output[i], 0);
}

Test(guest_agent, cancel_ends_a_command_whose_output_waits)
{
	for (unsigned i = 0; i < 4; i++) {
		ask("n", "echo $$; exec yes");
		pid_t pid = pid_said("n");
		pause_ms(100); /* both buffers are full, and a line is out by half */
		cr_assert_eq(kill(pid, 0), 0);
		if (i % 2)
			say("\nn cancel - n\n");
		else
			ask("m", "echo hi"); /* another's request does it too */
		cr_assert(gone(pid), "killed and reaped");
		if (i % 2)
			ask("m", "echo hi");
		cr_assert_eq(answer("m"), 0);
		cr_assert_str_eq(output, "hi\n");
	}
	say("m cancel - m\nm cancel - m\nnobody cancel - nobody\n");
	cr_assert(!hear(100));
}

Test(guest_agent, cancel_ends_what_a_command_has_begun)
{
	/* The shell has gone, what it began holds its output: the command isn't over. */
	ask("n", "sleep 1000 & echo $!");
	pid_t pid = pid_said("n");
	cr_assert(!hear(200));
	cr_assert_eq(kill(pid, 0), 0);
	say("n cancel - n\n");
	/* Its parent is gone; who reaps it is for the machine's process 1, a zombie is gone for us. */
	char path[64], stat[256] = "";
	snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
	for (unsigned i = 0; i < 200; i++) {
		FILE *f = fopen(path, "re");
		if (!f)
			break;
		bool zombie = fgets(stat, sizeof stat, f) && strstr(stat, ") Z ");
		fclose(f);
		cr_assert_lt(i, 199, "%s", stat);
		if (zombie)
			break;
		pause_ms(10);
	}
	cr_assert_eq(run("m", "true"), 0);
}

Test(guest_agent, what_is_left_in_the_background_stays)
{
	cr_assert_eq(run("n", "sleep 1000 >/dev/null 2>&1 & echo $!"), 0);
	pid_t pid = (pid_t)atol(output);
	cr_assert_gt(pid, 1);
	say("n cancel - n\n");
	cr_assert_eq(run("m", "true"), 0);
	say("m cancel - m\n");
	pause_ms(50);
	cr_assert_eq(kill(pid, SIGKILL), 0, "it is there");
	uint64_t began = now_ms();
	cr_assert_eq(run("o", "(sleep 0.5; echo late) & echo now; exit 4"), 4);
	cr_assert_str_eq(output, "now\nlate\n");
	cr_assert_geq(now_ms() - began, 450, "it holds its output, so the answer waits for it");
}

Test(guest_agent, survives_the_hosts_end)
{
	ask("n", "echo $$; exec sleep 1000");
	pid_t pid = pid_said("n");
	close(host);
	cr_assert(gone(pid), "nobody waits for it");
	pause_ms(100);
	host = open("/dev/null",
		    O_RDWR | O_CLOEXEC); /* tear_down looks whether the agent is there */
}
