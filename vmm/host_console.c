/* A VM's console as the host has it: its bytes to whoever takes them, and what is typed. */
#include "ipt/fail.h"
#include "vmm/host_private.h"
#include <errno.h>
#include <limits.h>
#include <sys/socket.h>

#define ROUNDS \
	16 /* of 4 KiB each: who always has something to say isn't to keep the host from others */

enum pumped { DRY, REFUSED, MORE };

static enum pumped pump(struct host_vm *vm, unsigned rounds)
{
	char bytes[4096];
	while (rounds--) {
		/* Peek, give, then take what was taken: what the caller refuses stays in the
		 * socket. */
		ssize_t n = fail_call(CONSOLE_RECEIVE, recv(vm->console_fd, bytes, sizeof bytes,
							    MSG_PEEK | MSG_DONTWAIT));
		if (n <= 0)
			return DRY;
		size_t took = vm->host->events.console(vm->host->events.ctx, vm, bytes, (size_t)n);
		if (took && recv(vm->console_fd, bytes, took, MSG_DONTWAIT) < 0)
			return DRY;
		if (took < (size_t)n)
			return REFUSED;
	}
	return MORE;
}

bool host_console_drain(struct host_vm *vm)
{
	/* Its process is gone: there is no more than its socket holds. */
	return pump(vm, UINT_MAX) == DRY;
}

void host_console_ready(struct host_source *s, uint32_t events)
{
	struct host_vm *vm = container(struct host_vm, on_console, s);
	enum pumped what = pump(vm, ROUNDS);
	if (what == MORE) /* it is ready again at once */
		return;
	if (vm->draining && what == DRY)
		host_end_finish(vm);
	else if (what == REFUSED || (events & (EPOLLHUP | EPOLLRDHUP)))
		/* Quiet until resumed, or for good: the pidfd tells of the end. */
		host_remove_source(vm->host, s);
}

void host_console_resume(struct host *h)
{
	h->resume_due = false;
	for (unsigned i = 0; i < h->vms; i++) {
		struct host_vm *vm = h->vm[i];
		if (vm->console_fd < 0 || !(vm->phase == HOST_VM_ALIVE || vm->draining))
			continue;
		int rc = host_add_source(h, &vm->on_console, EPOLLIN | EPOLLRDHUP);
		h->resume_due = h->resume_due || (rc && rc != -EEXIST);
	}
	if (h->resume_due)
		host_want_tick(h);
}

size_t host_console_input(struct host_vm *vm, const char *bytes, size_t n)
{
	if (vm->phase != HOST_VM_ALIVE)
		return n;
	ssize_t sent = send(vm->console_fd, bytes, n, MSG_DONTWAIT | MSG_NOSIGNAL);
	return sent > 0 ? (size_t)sent : 0;
}
