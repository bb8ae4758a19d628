/*
 * What a process of the host's gives up before it has to do with guests: a VM's after its set-up and before the guest's
 * first instruction, a worker's before its first round. Descriptors, namespaces, ids, capabilities, limits, and then
 * system calls (seccomp.h). Templates and clones are forks of VMs and have all of it from them. docs/SECURITY.md says
 * what is left to one that was taken over.
 */
#ifndef VMM_SANDBOX_H
#define VMM_SANDBOX_H

#include "vmm/seccomp.h"
#include <stdint.h>
#include <sys/types.h>

enum sandbox_mode {
	SANDBOX_ON,  /* the default: what is forbidden ends the process */
	SANDBOX_LOG, /* the same, but forbidden system calls are only written to the kernel's log */
	SANDBOX_OFF,
};

#define SANDBOX_NAMESPACES 5 /* user (where the host isn't root), mount, net, ipc, uts */
#define SANDBOX_FDS        (SANDBOX_NAMESPACES + 1)
/* Ids that no distribution gives out (systemd, docs/UIDS-GIDS.md: 1879048192 to 2147483647 are unused). */
#define SANDBOX_FIRST_ID 1879048192u
#define SANDBOX_IDS      65536u

struct sandbox {
	enum sandbox_mode mode;
	bool sanitized;             /* the sanitizer's runtime couldn't live in it, so it is off */
	bool root;                  /* has ids and capabilities to give up */
	uid_t first_id;             /* processes get ids from here on, one each */
	uint32_t given;             /* ids, so far */
	int ns[SANDBOX_NAMESPACES]; /* -1: this host may not make them */
	int null_fd;
	struct seccomp_filters filters;
};

/* One that isn't made yet. */
#define SANDBOX_NONE \
	((struct sandbox){.mode = SANDBOX_OFF, .ns = {-1, -1, -1, -1, -1}, .null_fd = -1})

struct sandbox_limits {
	uint64_t data_bytes; /* private memory (RLIMIT_DATA), at most */
	uint64_t lock_bytes; /* pinned by io_uring (RLIMIT_MEMLOCK), of all processes with its id */
	uint64_t files;      /* descriptors */
	uint64_t tasks;      /* threads and processes with its id: a VM's and those of its clones */
};

/* "on", "log", "off"; -EINVAL. */
int sandbox_parse(const char *word, enum sandbox_mode *mode);
/* What can be prepared once, in the host. first_id 0: SANDBOX_FIRST_ID. -errno with words. */
int sandbox_create(struct sandbox *s, enum sandbox_mode mode, uid_t first_id, char *error);
void sandbox_destroy(struct sandbox *s);
/* What of it can't be had here, in words for the user; NULL: nothing. */
const char *sandbox_notice(const struct sandbox *s);

/* In the host, for the process that is to be forked: an id for it. */
uid_t sandbox_next_id(struct sandbox *s);
/* In the child: standard input and output lead nowhere, and a terminal as standard error can't be read any more. */
void sandbox_streams(const struct sandbox *s);
/* Descriptors that sandbox_enter needs, and closes: how many. */
unsigned sandbox_fds(const struct sandbox *s, int fds[SANDBOX_FDS]);
/* Give up everything, for ever. The process has one thread. Limits of 0 stay as they are. -errno with words: the process
 * must end then. */
int sandbox_enter(const struct sandbox *s, enum seccomp_kind kind, uid_t id,
		  const struct sandbox_limits *limits, char *error);
/* Narrow the calling thread to a kind that is within the process's. 0 where there is no sandbox; -errno. */
int sandbox_narrow(enum seccomp_kind kind);
/* Is this process in it? Then it opens no files any more. */
bool sandbox_confined(void);
/* Bytes of private memory that this process has now, as RLIMIT_DATA counts them; 0: unknown. */
uint64_t sandbox_data_bytes(void);

#endif
