/* `invisor console`: a running guest's console, on the terminal or through pipes. */
#include "vmm/ask.h"
#include "vmm/cli.h"
#include "vmm/commands.h"
#include "vmm/error.h"
#include "vmm/run.h"
#include "vmm/rundir.h"
#include "vmm/terminal.h"
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

static bool write_all(int fd, const char *bytes, size_t n)
{
	while (n) {
		ssize_t w = write(fd, bytes, n);
		if (w < 0 && errno == EINTR)
			continue;
		if (w <= 0)
			return false;
		bytes += w;
		n -= (size_t)w;
	}
	return true;
}

/* From the terminal or pipe to the guest. False when the console is to be left. */
static bool type(int *in, int host, bool interactive)
{
	char bytes[1024];
	ssize_t got = read(*in, bytes, sizeof bytes);
	if (got < 0 && errno == EINTR)
		return true;
	if (got <= 0) { /* nothing more to type: go on listening */
		shutdown(host, SHUT_WR);
		*in = -1;
		return true;
	}
	size_t n = (size_t)got;
	bool leave = interactive && terminal_detach(bytes, &n);
	write_all(host, bytes, n); /* the host's end is seen by show() */
	return !leave;
}

/* From the guest. False at its end, or if nobody takes it here. */
static bool show(int host)
{
	char bytes[16384];
	ssize_t got = recv(host, bytes, sizeof bytes, 0);
	if (got < 0 && errno == EINTR)
		return true;
	return got > 0 && write_all(STDOUT_FILENO, bytes, (size_t)got);
}

/* Exit status. Signals end it like an escape, so that the terminal comes back. */
static int relay(int host, bool once)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	bool interactive = !once && terminal_raw();
	int in = once ? -1 : STDIN_FILENO, status = EXIT_CLEAN;
	int signals = signalfd(-1, &set, SFD_CLOEXEC);
	if (interactive)
		fputs("invisor: Ctrl-A x leaves the console, Ctrl-A Ctrl-A is the guest's Ctrl-A\n",
		      stderr);
	for (bool go = true; go;) {
		struct pollfd p[] = {{host, POLLIN, 0}, {in, POLLIN, 0}, {signals, POLLIN, 0}};
		if (poll(p, 3, -1) < 0 && errno != EINTR)
			go = false;
		if (go && p[2].revents) {
			status = EXIT_INTERRUPTED;
			go = false;
		}
		if (go && p[0].revents)
			go = show(host);
		if (go && p[1].revents && !type(&in, host, interactive)) {
			fputs("\ninvisor: left; the guest goes on\n", stderr);
			go = false;
		}
	}
	terminal_restore();
	close(signals);
	return status;
}

int command_console(int argc, char **argv)
{
	static const struct cli_spec spec = {
		.command = "console",
		.usage =
			"usage: invisor console [--once] [--host SOCKET] VM\n"
			"Show the last 64 KiB that a running guest wrote to its console, then what "
			"it writes, and\n"
			"type to it, until it ends. On a terminal Ctrl-A x leaves it. A reader "
			"that "
			"falls behind by\n"
			"more than 64 KiB misses some; the guest never waits.\n"
			"  --once   only what is there already\n"
			"Exit status: 0, 2 bad input or no such VM, 130 interrupted.\n",
		.flag = {"once"},
		.least = 1,
		.most = 1,
		.operands = "takes a VM's name"};
	struct cli c;
	char error[ERROR_MAX] = "";
	int status = cli_parse(&c, &spec, argc, argv);
	if (status >= 0)
		return status;
	bool once = c.value[0];
	json_t *request = json_pack("{s:s, s:s, s:b}", "do", "console", "vm", c.operand[0],
				    "follow", (int)!once);
	if (!request)
		return cli_fail("console: the VM's name is no UTF-8 text");
	int fd = rundir_connect(c.host, error);
	json_t *answer = fd >= 0 ? ask_on(fd, request, error) : NULL;
	json_decref(request);
	status = answer ? relay(fd, once) : cli_fail(error);
	if (fd >= 0)
		close(fd);
	json_decref(answer);
	return status;
}
