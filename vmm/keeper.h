/*
 * The keeper: a process that holds what a host must not lose by its death, so that the VMs outlive it and the next host
 * of the run directory can go on with them (docs/ARCHITECTURE.md, "A host's death"). It does nothing else: its host puts
 * records into it, each with descriptors, and takes them out again. What is in a record is its host's business; but the
 * keeper knows which of the descriptors are a VM's link, console, ring and process.
 *
 * The descriptors alone keep VMs alive: the other end of a VM's link is open as long as the keeper has it. When its host is
 * gone it
 *   - hangs up on VMs that were being made (no process is known of them): they end
 *   - reads the consoles, so that no guest has to wait for a reader; what is over RING_BYTES is lost
 *   - ends when no VM is left, unless one that is dead has written to files that it shared (docs/PMEM.md)
 *   - waits at its socket for the next host, of the same user, and gives it copies of everything
 * It is killed: its host starts another and fills it anew. Both are killed: the VMs end.
 */
#ifndef VMM_KEEPER_H
#define VMM_KEEPER_H

#include "vmm/link.h"
#include <stdbool.h>
#include <stdint.h>

#define KEEPER_SOCKET      "keeper.sock" /* in the run directory */
#define KEEPER_RECORD_MAX  6144          /* bytes */
#define KEEPER_PATIENCE_MS 5000          /* for the other side to send or to take something */

enum keeper_op {
	KEEPER_READY, /* from it, to the host that started it: it listens */
	KEEPER_PUT, /* a record, new or in place of the one of that key; to the next host: what there is */
	KEEPER_DROP,
	KEEPER_TAKE, /* from the next host: it wants everything */
	KEEPER_DONE, /* that was everything; and the answer to COUNT: key is how many VMs there are */
	KEEPER_COUNT, /* from anyone */
	KEEPER_END,   /* from its host, or from anyone while it has none: kill the VMs, and end */
};

enum keeper_kind { KEEPER_HOST, KEEPER_FILE, KEEPER_VM, KEEPER_DOMAIN };

struct keeper_head {
	uint32_t op, kind;
	uint64_t key;
	uint32_t bytes, fds;               /* of the record; descriptors */
	int8_t link, console, ring, pidfd; /* a VM's: which of the descriptors; -1: not there */
	bool writes;                       /* a VM's: to files */
};

struct keeper_message {
	struct keeper_head head;
	uint8_t record[KEEPER_RECORD_MAX];
};

/* Send with head.fds descriptors, waiting at most KEEPER_PATIENCE_MS for room. -errno; -ETIME. */
int keeper_send(int fd, const struct keeper_message *m, const int *fds);
/* Receive, waiting at most `ms`. 1: a message, with as many descriptors as it says; 0: the other end is gone; -ETIME;
 * -EPROTO: it makes no sense, or descriptors are missing; -errno. */
int keeper_receive(int fd, struct keeper_message *m, int fds[LINK_FDS_MAX], int ms);
/* The process at the other end, if the same user's: its pid, or -EPERM, -errno. */
int keeper_peer(int fd);

/* A connection to the keeper at that socket. -errno; -ENOENT: there is none. */
int keeper_dial(const char *path);
/* COUNT or END, asked of the keeper at that socket: 0, and how many VMs it said there are; -ENOENT: there is none; -EBUSY:
 * it has a host, and doesn't end for anyone else. */
int keeper_ask(const char *path, enum keeper_op op, uint64_t *vms);

/* The keeper's process: never returns. `listening` is bound to `path`, `link` leads to its host. */
_Noreturn void keeper_process(int listening, int link, const char *path);

#endif
