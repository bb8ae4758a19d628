/*
 * What a guest's agent may say to the host (vmm/agent.c): lines of any kind, in pieces, while commands come and go. A
 * byte 0xff stands for the nonce of the command under way, which a guest knows.
 */
#include "vmm/agent.h"
#include "tests/fuzz/fuzz.h"
#include "vmm/error.h"
#include "vmm/host_private.h"
#include <sys/socket.h>
#include <unistd.h>

#define NONCE 16

static struct host host;
static struct host_vm vm;
static int guest;
static char nonce[NONCE + 1];
static struct {
	bool under_way, cancels;
} command;

static void output(void *ctx, const void *bytes, size_t n)
{
	static volatile uint8_t seen;
	(void)ctx;
	cr_assert(command.under_way && n && n <= AGENT_LINE_MAX);
	for (size_t i = 0; i < n; i++)
		seen = ((const uint8_t *)bytes)[i];
	(void)seen;
	if (command.cancels) {
		command.under_way = false;
		agent_cancel(&vm);
	}
}

static void done(void *ctx, unsigned status)
{
	(void)ctx;
	cr_assert(command.under_way && status <= 255);
	command.under_way = false;
}

static void failed(void *ctx, const char *words)
{
	(void)ctx;
	cr_assert(command.under_way && *words);
	command.under_way = false;
}

static void turn(void)
{
	struct epoll_event e;
	for (unsigned i = 0; i < 1000 && epoll_wait(host.epoll, &e, 1, 0) == 1; i++) {
		struct host_source *s = e.data.ptr;
		s->ready(s, e.events);
	}
}

/* What the guest hears; the nonce is its first word. */
static void hear(void)
{
	static char bytes[1 << 16];
	ssize_t n = recv(guest, bytes, sizeof bytes, MSG_DONTWAIT);
	if (n > NONCE && bytes[0] == '\n')
		memcpy(nonce, bytes + 1, NONCE);
}

static void ask(unsigned how)
{
	static const struct agent_events events = {output, done, failed};
	static const char text[AGENT_COMMAND_MAX] = {[0 ... AGENT_COMMAND_MAX - 1] = 'x'};
	char error[ERROR_MAX];
	int rc = agent_exec(&vm, text, how & 4 ? sizeof text : 5, &events, NULL, error);
	cr_assert_eq(rc, command.under_way ? -EBUSY : 0, "%s", rc ? error : "");
	if (rc)
		return;
	command.under_way = true;
	command.cancels = how & 1;
	turn();
	hear();
}

static void say(const uint8_t *bytes, size_t n)
{
	char text[600 + NONCE * 600];
	size_t len = 0;
	for (size_t i = 0; i < n; i++) {
		if (bytes[i] != 0xff) {
			text[len++] = (char)bytes[i];
			continue;
		}
		memcpy(text + len, nonce, NONCE);
		len += NONCE;
	}
	if (len)
		send(guest, text, len, MSG_NOSIGNAL | MSG_DONTWAIT);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	host.epoll = epoll_create1(0);
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const uint8_t filler[500] = {[0 ... 499] = 'A'};
	struct fuzz_in in = {data, size};
	const uint8_t *bytes;
	size_t n;
	int fd[2];
	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fd), 0);
	vm = (struct host_vm){.host = &host,
			      .phase = HOST_VM_ALIVE,
			      .agent_fd = fd[0],
			      .config.machine.name = "vm"};
	guest = fd[1];
	memset(&command, 0, sizeof command);
	memset(nonce, '0', NONCE);
	for (unsigned ops = 0; in.left && ops < 200; ops++) {
		unsigned what = fuzz_u8(&in);
		switch (what % 8) {
		case 0:
			ask(what >> 3);
			break;
		case 1:
		case 2:
		case 3:
			bytes = fuzz_bytes(&in, 255, &n);
			say(bytes, n);
			break;
		case 4:
			say(filler, (size_t)fuzz_number(&in) % sizeof filler);
			break;
		case 5:
			command.under_way = false;
			agent_cancel(&vm);
			break;
		case 6:
		case 7:
			break;
		}
		if (what & 0x40)
			turn();
	}
	turn();
	close(guest);
	turn();
	agent_vm_ended(&vm);
	cr_assert(!command.under_way && !vm.agent);
	return 0;
}
