/*
 * The control socket: connections that send what they like in pieces of any size, up to the requests' handlers and
 * their answers, at once or later. The host has a table and a VM without a process, which hears orders, says what the
 * input says (its mailbox has any contents) and never dies; it can't be cloned. It belongs to an `invisor run`, so
 * that it starts no others (what it would be asked for is the target options).
 */
#include "tests/fuzz/fuzz.h"
#include "tests/unit/ipt_help.h"
#include "vmm/balloon.h"
#include "vmm/fleet.h"
#include "vmm/host_domain.h"
#include "vmm/host_private.h"
#include "vmm/requests.h"
#include "vmm/rundir.h"
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define CLIENTS 4
#define FRAMES  1024u

static struct host host;
static struct host_vm vm, *vms[] = {&vm};
static int orders, guest; /* the other ends of its link, and of its agent's channel */
static struct run_setup setup;
static struct fleet fleet;
static struct control *control;
static char dir[] = "/tmp/invisor-fuzz-XXXXXX", path[64];

static void leave(void)
{
	control_destroy(control);
	rmdir(dir);
}

static int channel(int type, int *other)
{
	int fd[2];
	cr_assert_eq(socketpair(AF_UNIX, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fd), 0);
	*other = fd[1];
	return fd[0];
}

static void make_vm(void)
{
	vm = (struct host_vm){.host = &host,
			      .phase = HOST_VM_ALIVE,
			      .id = help_vm(host.table, "vm"),
			      .pid = getpid(), /* looked at, and never killed: it has no guest */
			      .mailbox = calloc(1, sizeof(struct mailbox)),
			      .config.machine.name = "vm",
			      .pidfd = -1,
			      .console_fd = -1,
			      .link_fd = channel(SOCK_SEQPACKET, &orders),
			      .agent_fd = channel(SOCK_STREAM, &guest)};
	cr_assert(vm.mailbox != NULL);
	cr_assert_eq(machine_set_memory(&vm.config.machine, 16 * MiB), 0);
	vm.config.machine.cpus = 1;
	vm.config.disks = 1; /* writable */
	frame_t f = help_alloc(host.table, vm.id, 4);
	cr_assert_eq(ipt_map(host.table, vm.id, gfn(16), f, 16), 0);
	host.vm = vms;
	host.vms = host.alive = 1;
}

/* The VM says something. */
static void news(struct fuzz_in *in)
{
	struct mailbox *m = vm.mailbox;
	char bytes[64];
	ssize_t n;
	switch (fuzz_below(in, 6)) {
	case 0:
		m->state = fuzz_below(in, 8);
		break;
	case 1:
		m->pause_refused++;
		break;
	case 2:
		m->balloon.driver = fuzz_u8(in);
		break;
	case 3:
		m->balloon.actual = fuzz_u8(in) & 1 ? m->balloon_wanted : (uint32_t)fuzz_number(in);
		break;
	case 4: /* the agent: with the nonce that it was told */
		n = recv(guest, bytes, sizeof bytes, MSG_PEEK | MSG_DONTWAIT);
		if (n > 17) {
			memcpy(bytes + 17, fuzz_u8(in) & 1 ? " out QUJD\n" : " status 0\n", 10);
			send(guest, bytes + 1, 26, MSG_NOSIGNAL | MSG_DONTWAIT);
		}
		break;
	case 5:
		while (recv(guest, bytes, sizeof bytes, MSG_DONTWAIT) > 0)
			;
	}
	balloon_news(&vm);
	host_vm_told(&vm, false);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	char error[ERROR_MAX] = "";
	(void)argc;
	(void)argv;
	stderr = fopen("/dev/null",
		       "w"); /* the fleet talks; the fuzzer and plain_fail have ways of their own */
	cr_assert(stderr != NULL && mkdtemp(dir) != NULL);
	setenv("INVISOR_RUN_DIR", dir, 1);
	host.epoll = epoll_create1(0);
	host.table = help_table(IPT_INDEX, FRAMES);
	cr_assert_eq(host_domain_create(&host, FRAMES, error), 0);
	make_vm();
	cr_assert_eq(host_domain_join(&vm, error), 0);
	fleet.host = &host;
	fleet.config.setup = &setup;
	fleet.config.host = (struct host_config){.pool_bytes = FRAMES * PAGE_SIZE, .max_vms = 4};
	fleet.on_grace.fd = -1;
	const struct control_config config = {
		.host = &host, .file = RUNDIR_HOST, .handler = requests_handle, .ctx = &fleet};
	cr_assert_eq(control_create(&control, &config, error), 0, "%s", error);
	fleet.control = control;
	snprintf(path, sizeof path, "%s/%s", dir, RUNDIR_HOST);
	atexit(leave);
	return 0;
}

static void turn(void)
{
	struct epoll_event e;
	unsigned i = 0;
	for (; i < 1000 && epoll_wait(host.epoll, &e, 1, 0) == 1; i++) {
		struct host_source *s = e.data.ptr;
		s->ready(s, e.events);
	}
	cr_assert_lt(i, 1000, "the loop finds no rest");
}

struct client {
	int fd;
	bool asked;  /* a whole line was sent */
	size_t held; /* of what came back */
	char got[1 << 16];
};

/* What came back is one line of JSON, an object. */
static void hear(struct client *c)
{
	ssize_t n;
	while ((n = recv(c->fd, c->got + c->held, sizeof c->got - c->held, MSG_DONTWAIT)) > 0)
		c->held += (size_t)n;
	char *end = memchr(c->got, '\n', c->held);
	if (!end)
		return;
	json_t *o = json_loadb(c->got, (size_t)(end - c->got), 0, NULL);
	cr_assert(json_is_object(o), "an answer that is no object");
	cr_assert_eq((size_t)(end + 1 - c->got), c->held, "more than a line");
	json_decref(o);
	c->held = 0;
}

static void send_all(struct client *c, const void *bytes, size_t n)
{
	if (n && send(c->fd, bytes, n, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)n)
		c->asked = c->asked || memchr(bytes, '\n', n);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct client client[CLIENTS];
	static const char spaces[CONTROL_REQUEST_MAX] = {[0 ... CONTROL_REQUEST_MAX - 1] = ' '};
	struct fuzz_in in = {data, size};
	const uint8_t *bytes;
	size_t n;
	for (unsigned i = 0; i < CLIENTS; i++)
		client[i].fd = -1;
	while (in.left) {
		unsigned what = fuzz_u8(&in);
		struct client *c = &client[what % CLIENTS];
		if (c->fd < 0) {
			turn(); /* or those that the host hasn't looked at would fill its backlog */
			c->fd = rundir_dial(path);
			c->held = 0;
			c->asked = false;
			cr_assert_geq(c->fd, 0);
		}
		switch (what / CLIENTS % 10) {
		case 0:
		case 1:
		case 2:
			bytes = fuzz_bytes(&in, 500, &n);
			send_all(c, bytes, n);
			break;
		case 3: /* all that is left, in a line */
			send_all(c, in.at, in.left);
			send_all(c, "\n", 1);
			in.left = 0;
			break;
		case 4:
			send_all(c, spaces, (size_t)fuzz_number(&in) % sizeof spaces);
			break;
		case 5:
			shutdown(c->fd, SHUT_WR);
			break;
		case 6:
			turn();
			hear(c);
			break;
		case 7:
			close(c->fd);
			c->fd = -1;
			break;
		case 8:
		case 9:
			news(&in);
			break;
		}
		if (what & 0x80)
			turn();
	}
	turn();
	for (unsigned i = 0; i < CLIENTS; i++)
		if (client[i].fd >= 0) {
			hear(&client[i]);
			close(client[i].fd);
		}
	turn();
	cr_assert(!vm.told && !vm.balloon_waits && !vm.agent, "somebody waits who is gone");
	char heard[4096];
	while (recv(orders, heard, sizeof heard, MSG_DONTWAIT) > 0 ||
	       recv(guest, heard, sizeof heard, MSG_DONTWAIT) > 0)
		;
	memset(vm.mailbox, 0, sizeof *vm.mailbox);
	host.stop = false;
	fleet.stop = FLEET_RUNS;
	return 0;
}
