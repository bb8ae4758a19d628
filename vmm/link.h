/*
 * The link between the host and a VM's process, or a template's: a SEQPACKET socket, a message a packet. The host
 * sends orders' bell and requests, descriptors with them; the process answers requests. An end of file says that
 * the other is gone, and that nobody keeps its end for another (keeper.h): then the VM ends.
 */
#ifndef VMM_LINK_H
#define VMM_LINK_H

#include "ipt/ipt.h"
#include "vmm/machine.h"
#include <stddef.h>
#include <sys/types.h>

#define LINK_FDS     4 /* descriptors that a VM's process gets: link, mailbox, console, agent */
#define LINK_FDS_MAX (LINK_FDS + MACHINE_MAX_PMEM + 2) /* with a message, at most */

enum link_op {
	LINK_ORDERS, /* the mailbox has orders */
	LINK_FREEZE, /* to a VM; fds: the template's end of a link of its own */
	LINK_CLONE,  /* to a template; fds: the clone's link, mailbox (memfd), console, agent, and
			* the sets (memfd) of each of its views of files that is shared, and, if there is
			* a swap file, a description of it */
	LINK_SELF,   /* to a clone; fds: its /proc/PID/maps, and pagemap if that may be needed */
};

struct link_request {
	uint32_t op;
	uint32_t id;      /* CLONE: registered for it by the host */
	uint32_t number;  /* CLONE: which clone of the host it is, from 1 */
	uint32_t predict; /* CLONE: may it be given the pages that its siblings broke at once? */
	char name[IPT_NAME_LEN]; /* FREEZE: the template's; CLONE: the clone's */
	uint64_t key;            /* comes back with the answer, which may be to a host that died */
};

/* A template's or VM's answer; fds: a pidfd of the process that was made. */
struct link_answer {
	int32_t status; /* 0 or -errno; then `words` say why */
	int32_t pid;
	uint32_t
		template_id; /* FREEZE: the VM's old id, the template's now; 0: nothing was frozen */
	uint32_t id;         /* FREEZE: the VM's new one; CLONE: the request's */
	uint64_t key;        /* the request's */
	char words[200];
};

/* Both ends, non-blocking. -errno. */
int link_pair(int fd[2]);
/* Send one message with n descriptors (copies of them; the caller's stay open). -errno; -EAGAIN: the socket is full. */
int link_send(int fd, const void *message, size_t bytes, const int *fds, unsigned n);
/* The same, and wait until there is room or memory for it. For answers, which must not get lost. */
int link_send_surely(int fd, const void *message, size_t bytes, const int *fds, unsigned n);
/* Receive one message of at most `bytes` bytes, the rest of it set to 0. Its size; 0: the other end is gone; -EAGAIN:
 * none is there; -errno. Descriptors come close-on-exec, -1 where there are fewer. */
ssize_t link_receive(int fd, void *message, size_t bytes, int fds[LINK_FDS_MAX]);
/* Close those that came. */
void link_close(int fds[LINK_FDS_MAX]);

#endif
