/* The host's half of the agent's protocol, with a guest that says what it likes; base64; the idle port. */
#include "vmm/agent.h"
#include "vmm/base64.h"
#include "vmm/error.h"
#include "vmm/host_private.h"
#include "vmm/idle.h"
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* A host with nothing but its loop, a VM with nothing but its agent's socket. */
static struct host host;
static struct host_vm vm;
static int guest;
static char error[ERROR_MAX];

static struct heard {
	char output[1 << 16], words[256];
	size_t bytes;
	unsigned status, ends;
	bool cancel; /* after a piece */
} heard;

static void output(void *ctx, const void *bytes, size_t n)
{
	cr_assert_eq(ctx, &heard);
	cr_assert_leq(heard.bytes + n, sizeof heard.output);
	memcpy(heard.output + heard.bytes, bytes, n);
	heard.bytes += n;
	if (heard.cancel)
		agent_cancel(&vm);
}

static void done(void *ctx, unsigned status)
{
	(void)ctx;
	heard.status = status;
	heard.ends++;
}

static void failed(void *ctx, const char *words)
{
	(void)ctx;
	snprintf(heard.words, sizeof heard.words, "%s", words);
	heard.ends++;
}

static const struct agent_events events = {output, done, failed};

static void set_up(void)
{
	int fd[2];
	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fd), 0);
	host = (struct host){.epoll = epoll_create1(0)};
	vm = (struct host_vm){.host = &host,
			      .phase = HOST_VM_ALIVE,
			      .agent_fd = fd[0],
			      .config.machine.name = "vm"};
	guest = fd[1];
	heard = (struct heard){0};
}

static void tear_down(void)
{
	agent_close(&vm);
	cr_assert_null(vm.agent);
	close(guest);
	close(host.epoll);
}

/* Handle what is there. */
static void turn(void)
{
	struct epoll_event e;
	for (unsigned i = 0; i < 1000 && epoll_wait(host.epoll, &e, 1, 0) == 1; i++) {
		struct host_source *s = e.data.ptr;
		s->ready(s, e.events);
	}
}

static int command(const char *text)
{
	return agent_exec(&vm, text, strlen(text), &events, &heard, error);
}

static char nonce[17], asked[8192]; /* of the last request, and its text */

/* What the guest hears: the request is checked, and put together. Returns whether it was whole. */
static bool hear(void)
{
	char bytes[16384];
	turn();
	ssize_t n = recv(guest, bytes, sizeof bytes - 1, 0);
	cr_assert_gt(n, 0);
	bytes[n] = 0;
	size_t len = 0;
	for (char *rest = bytes, *line; (line = strsep(&rest, "\n"));) {
		char first[64], verb[16], part[1100], again[64];
		if (sscanf(line, "%63s %15s %1099s %63s", first, verb, part, again) != 4)
			continue;
		cr_assert_leq(strlen(line), AGENT_LINE_MAX);
		cr_assert_str_eq(first, again);
		cr_assert_eq(strlen(first), 16);
		memcpy(nonce, first, 17);
		long got = base64_decode(asked + len, part, strlen(part));
		if (!strcmp(verb, "cancel"))
			return false;
		cr_assert_geq(got, 0);
		len += (size_t)got;
		asked[len] = 0;
		if (!strcmp(verb, "exec"))
			return true;
		cr_assert_str_eq(verb, "more");
	}
	return false;
}

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
	char text[8192];
	va_list args;
	va_start(args, format);
	int n = vsnprintf(text, sizeof text, format, args);
	va_end(args);
	for (int i = 0; i < n;
	     i++) { /* a byte at a time: pieces are the socket's, not the line's */
		cr_assert_eq(send(guest, text + i, 1, 0), 1);
		turn();
	}
}

TestSuite(vmm_agent, .init = set_up, .fini = tear_down);

Test(vmm_agent, a_command_and_its_answer)
{
	cr_assert_eq(command("echo hello"), 0);
	cr_assert_eq(command("another"), -EBUSY);
	cr_assert_not_null(strstr(error, "busy"));
	cr_assert(hear());
	cr_assert_str_eq(asked, "echo hello");
	say("%s out aGVsbG8=\n%s out AAEC/w==\n", nonce, nonce);
	cr_assert_eq(heard.bytes, 9);
	cr_assert_eq(memcmp(heard.output, "hello\0\1\2\377", 9), 0);
	cr_assert_eq(heard.ends, 0);
	say("%s status 255\n", nonce);
	cr_assert_eq(heard.ends, 1);
	cr_assert_eq(heard.status, 255);
	cr_assert_null(vm.agent);
	/* The next has a nonce of its own. */
	char before[17];
	memcpy(before, nonce, 17);
	cr_assert_eq(command("x"), 0);
	cr_assert(hear());
	cr_assert_str_neq(nonce, before);
	say("%s status 1\n%s status 0\n", before, nonce);
	cr_assert_eq(heard.ends, 2);
	cr_assert_eq(heard.status, 0);
}

Test(vmm_agent, long_commands_come_in_parts)
{
	char text[AGENT_COMMAND_MAX + 2];
	for (size_t n = 1; n <= AGENT_COMMAND_MAX; n = n < 3000 ? n + 191 : n + 1) {
		for (size_t i = 0; i < n; i++)
			text[i] = (char)('a' + i % 26);
		text[n] = 0;
		cr_assert_eq(command(text), 0);
		cr_assert(hear());
		cr_assert_str_eq(asked, text, "%zu bytes", n);
		say("%s status 0\n", nonce);
	}
	memset(text, 'x', sizeof text);
	text[AGENT_COMMAND_MAX + 1] = 0;
	cr_assert_eq(command(text), -E2BIG);
	cr_assert_eq(command(""), -EINVAL);
	cr_assert_eq(agent_exec(&vm, "a\0b", 3, &events, &heard, error), -EINVAL);
	vm.phase = HOST_VM_REAPING;
	cr_assert_eq(command("x"), -ESRCH);
}

Test(vmm_agent, a_guest_that_doesnt_listen_gets_it_later)
{
	char text[AGENT_COMMAND_MAX + 1], bytes[1 << 16];
	memset(text, 'x', AGENT_COMMAND_MAX);
	text[AGENT_COMMAND_MAX] = 0;
	/* Left by others, up to the middle of one of our lines. */
	memset(bytes, 'y', sizeof bytes);
	while (send(vm.agent_fd, bytes, sizeof bytes, MSG_DONTWAIT) > 0)
		;
	cr_assert_eq(command(text), 0);
	turn();
	ssize_t n;
	while ((n = recv(guest, bytes, sizeof bytes, MSG_DONTWAIT)) > 0)
		cr_assert(bytes[0] == 'y' || bytes[0] == '\n');
	cr_assert(hear());
	cr_assert_str_eq(asked, text);
	say("%s status 0\n", nonce);
	cr_assert_eq(heard.ends, 1);
}

Test(vmm_agent, what_came_before_is_ignored)
{
	cr_assert_eq(command("x"), 0);
	cr_assert(hear());
	/* The end of a line of our parent's, lines of another command, rubbish longer than a line, and
	 * what looks like our nonce. */
	say("YWJj\n0123456789abcdef status 9\n\n \nstatus 4\n");
	for (unsigned i = 0; i < 50; i++)
		say("%0100d", i);
	say("\n%.15s status 3\n%sx status 3\n%s\n", nonce, nonce, nonce);
	cr_assert_eq(heard.ends, 0);
	say("%s status 7\n", nonce);
	cr_assert_eq(heard.ends, 1);
	cr_assert_eq(heard.status, 7);
	cr_assert_eq(heard.bytes, 0);
}

Test(vmm_agent, nonsense_fails_the_command)
{
	static const char *const nonsense[] = {
		" status 256\n",
		" status -1\n",
		" status \n",
		" status 1 \n",
		" status 0001\n",
		" out a\n",
		" out aGVsbG8\n",
		" out aGV=bG8=\n",
		" out ====\n",
		" exec eA== 1\n",
		" \n",
		" out aGVsbG9=\n",
	};
	for (size_t i = 0; i < sizeof nonsense / sizeof *nonsense; i++) {
		heard = (struct heard){0};
		cr_assert_eq(command("x"), 0);
		cr_assert(hear());
		say("%s%s", nonce, nonsense[i]);
		cr_assert_eq(heard.ends, 1, "%s", nonsense[i]);
		cr_assert_not_null(strstr(heard.words, "agent"), "%s", nonsense[i]);
		cr_assert_null(vm.agent);
	}
	heard = (struct heard){0};
	cr_assert_eq(command("x"), 0);
	cr_assert(hear());
	say("%s out %01100d", nonce, 0);
	cr_assert_eq(heard.ends, 1);
	cr_assert_not_null(strstr(heard.words, "too long"));
}

Test(vmm_agent, cancelled_from_outside_and_from_inside)
{
	cr_assert_eq(command("x"), 0);
	cr_assert(hear());
	agent_cancel(&vm);
	agent_cancel(&vm);
	cr_assert_null(vm.agent);
	cr_assert(!hear(), "the guest is told");
	cr_assert_eq(command("y"), 0);
	cr_assert(hear());
	heard.cancel = true;
	say("%s out YWJj\n%s out YWJj\n%s status 0\n", nonce, nonce, nonce);
	cr_assert_eq(heard.bytes, 3);
	cr_assert_eq(heard.ends, 0);
	cr_assert_null(vm.agent);
}

Test(vmm_agent, the_vm_ends)
{
	cr_assert_eq(command("x"), 0);
	cr_assert(hear());
	/* Its last words count, even those that nobody has read yet. */
	char text[256];
	int n = snprintf(text, sizeof text, "%s out YWJj\n%s out ZGVm\n%s status 3\n", nonce, nonce,
			 nonce);
	cr_assert_eq(send(guest, text, (size_t)n, 0), n);
	agent_vm_ended(&vm);
	cr_assert_eq(heard.bytes, 6);
	cr_assert_eq(heard.ends, 1);
	cr_assert_eq(heard.status, 3);
	cr_assert_eq(vm.agent_fd, -1);
}

Test(vmm_agent, the_vm_ends_amid_a_command)
{
	cr_assert_eq(command("x"), 0);
	shutdown(guest, SHUT_RDWR);
	turn();
	cr_assert_eq(heard.ends, 0, "its end is told by who knows of it");
	agent_vm_ended(&vm);
	cr_assert_eq(heard.ends, 1);
	cr_assert_not_null(strstr(heard.words, "ended before"));
}

Test(vmm_base64, both_ways)
{
	static const struct {
		const char *bytes, *chars;
	} known[] = {/* RFC 4648, section 10 */
		     {"", ""},
		     {"f", "Zg=="},
		     {"fo", "Zm8="},
		     {"foo", "Zm9v"},
		     {"foob", "Zm9vYg=="},
		     {"fooba", "Zm9vYmE="},
		     {"foobar", "Zm9vYmFy"}};
	char chars[2000], bytes[2000], back[2000];
	for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
		size_t n = base64_encode(chars, known[i].bytes, strlen(known[i].bytes));
		cr_assert_eq(n, strlen(known[i].chars));
		cr_assert_eq(memcmp(chars, known[i].chars, n), 0);
	}
	srandom(1);
	for (size_t n = 0; n < 1000; n++) {
		for (size_t i = 0; i < n; i++)
			bytes[i] = (char)random();
		size_t c = base64_encode(chars, bytes, n);
		cr_assert_eq(c, BASE64_CHARS(n));
		cr_assert_eq(base64_decode(back, chars, c), (long)n);
		cr_assert_eq(memcmp(back, bytes, n), 0);
		cr_assert_eq(base64_decode(chars, chars, c), (long)n, "in place");
	}
	static const char *const bad[] = {
		"Z",     "Zg",   "Zg=",  "Zh==", "Zm9=",     "=g==",   "Zg=a",
		"Zm9v ", "Zm 9", "Zm-9", "====", "Zg==Zg==", "\xffm9v"};
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
		cr_assert_eq(base64_decode(back, bad[i], strlen(bad[i])), -1, "%s", bad[i]);
}

static _Atomic bool stop, pause_wanted;

static void *wake_later(void *arg)
{
	nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	idle_wake(arg);
	return NULL;
}

static bool rests_long(struct idle *i)
{
	struct timespec from, to;
	clock_gettime(CLOCK_MONOTONIC, &from);
	idle_rest(i, &stop, &pause_wanted);
	clock_gettime(CLOCK_MONOTONIC, &to);
	return (to.tv_sec - from.tv_sec) * 1000 + (to.tv_nsec - from.tv_nsec) / 1000000 >=
	       IDLE_MS - 1;
}

Test(vmm_idle, rests_unless_there_is_something)
{
	struct idle i;
	idle_init(&i);
	cr_assert(rests_long(&i));
	idle_line(&i, true);
	idle_line(&i, true);
	idle_line(&i, false);
	for (unsigned n = 0; n < 100; n++) /* a hundred at once, or it would be five seconds */
		idle_rest(&i, &stop, &pause_wanted);
	idle_line(&i, false);
	cr_assert(rests_long(&i));
	stop = true;
	for (unsigned n = 0; n < 100; n++)
		idle_rest(&i, &stop, &pause_wanted);
	stop = false;
	pause_wanted = true;
	for (unsigned n = 0; n < 100; n++)
		idle_rest(&i, &stop, &pause_wanted);
	pause_wanted = false;
	idle_line(&i, true);
	idle_forget(&i);
	cr_assert(rests_long(&i));
	/* Woken: at least one of twenty comes back early, however busy the machine is. */
	bool early = false;
	for (unsigned n = 0; n < 20 && !early; n++) {
		pthread_t t;
		cr_assert_eq(pthread_create(&t, NULL, wake_later, &i), 0);
		early = !rests_long(&i);
		pthread_join(t, NULL);
	}
	cr_assert(early);
}

static unsigned roused;

static void rouse(struct idle *i)
{
	(void)i;
	roused++;
}

Test(vmm_idle, who_sleeps_is_roused_by_what_comes_before_or_after)
{
	struct idle i;
	idle_init(&i);
	i.rouse = rouse;
	uint32_t wakes = idle_wakes(&i);
	idle_wake(&i);
	cr_assert_eq(roused, 0, "nobody sleeps");
	cr_assert_not(idle_sleep(&i, wakes), "something came before");
	idle_wake(&i);
	cr_assert_eq(roused, 0, "it doesn't sleep");
	cr_assert(idle_sleep(&i, idle_wakes(&i)));
	idle_line(&i, true);
	cr_assert_eq(roused, 1);
	cr_assert_not(idle_sleep(&i, idle_wakes(&i)), "a line is high");
	idle_line(&i, false);
	cr_assert(idle_sleep(&i, idle_wakes(&i)), "a second one");
	idle_rise(&i);
	idle_wake(&i);
	cr_assert_eq(roused, 2, "one still sleeps");
	idle_rise(&i);
	idle_wake(&i);
	cr_assert_eq(roused, 2);
}
