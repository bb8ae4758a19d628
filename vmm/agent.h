/*
 * Commands for a guest's agent, which listens at the VM's second virtio console: the host's half of
 * the protocol (docs/AGENT.md). All on the host's one thread, asynchronously on its loop.
 */
#ifndef VMM_AGENT_H
#define VMM_AGENT_H

#include "vmm/host.h"

#define AGENT_COMMAND_MAX 3500 /* bytes */
#define AGENT_LINE_MAX    1024 /* bytes of a line either way, without its newline */

/* How a command goes. Either done or failed is the last. */
struct agent_events {
	/* What it wrote, a piece at a time, at most AGENT_LINE_MAX bytes. */
	void (*output)(void *ctx, const void *bytes, size_t n);
	void (*done)(void *ctx, unsigned status); /* exit status, 0 to 255 */
	void (*failed)(void *ctx, const char *words);
};

/* Have the guest run a command. No callback comes before this returned. *e stays the caller's. -EBUSY
 * while another is under way, -E2BIG, -EINVAL (empty or with a NUL), -ESRCH (the VM is gone),
 * -ENOMEM, with words. There is no timeout: see agent_cancel. */
int agent_exec(struct host_vm *vm, const char *command, size_t bytes, const struct agent_events *e,
	       void *ctx, char *error);
/* Forget the command under way, if there is one: no callback comes any more. The guest is told to end
 * it. May be called from a callback. */
void agent_cancel(struct host_vm *vm);

/* The VM's process is gone: take what it still said, and fail the command if it isn't done. Closes
 * agent_fd. */
void agent_vm_ended(struct host_vm *vm);
/* The same without a callback. */
void agent_close(struct host_vm *vm);

#endif
