/*
 * What a host has its keeper keep (keeper.h), and how the next host goes on with it (host_adopt.c).
 *
 * Invariants
 *   K1  a process that may work for an id of the table has a record: it comes before the process, with which the VM is
 *       *born*, and goes after the process's end. So an id whose name is in no record is nobody's, and is reaped
 *   K2  of a VM that is not born the host and the keeper have the only copies of its link's other end, so that hanging up
 *       ends its process, and the link's end tells that it ended
 *   K3  a sharing domain has a record from before the first record of a VM in it to after the last VM's frames are free
 *   K4  every record can be put again at any time; one that is put twice is there once
 * VMs are found in the table by their names, since a VM that is frozen while there is no host goes on under another id.
 */
#ifndef VMM_HOST_KEEP_H
#define VMM_HOST_KEEP_H

#include "vmm/host_private.h"
#include "vmm/keeper.h"
#include "vmm/store.h"

#define KEPT_VERSION 4
#define KEPT_SIZES   5
#define KEPT_PATH    200 /* bytes; of longer paths the beginning */

/* Numbers that go on. Every host of the pool maps it. */
struct kept_ledger {
	_Atomic uint64_t keys;                       /* of records, given out */
	_Atomic uint32_t clones, templates, domains; /* given out */
	_Atomic uint32_t hosts;                      /* that the pool had */
	_Atomic uint32_t ids;                        /* of processes in the sandbox, given out */
};

/* The host's; descriptors in this order, as far as they are there: */
enum kept_host_fd {
	KEPT_TABLE,
	KEPT_NEWS,
	KEPT_LEDGER,
	KEPT_MERGE,
	KEPT_RECLAIM,
	KEPT_STORE_FILE,
	KEPT_FAIL,
	KEPT_HOST_FDS
};
struct kept_host {
	uint32_t version;
	/* of what processes share: a host of another build can't go on with it */
	uint32_t bytes[KEPT_SIZES];
	struct host_config config; /* without pointers */
	char swap_file[KEPT_PATH];
	struct store store;
	int8_t fd[KEPT_HOST_FDS]; /* which of the descriptors; -1: not there */
};

/* A sharing domain; the key is its number. Descriptors: its file of the pool, and of the packed memory if there is one. */
struct kept_domain {
	char name[IPT_NAME_LEN];
};

/* A file that guests have as persistent memory; the key is its id. Descriptors: reading, and perhaps writing. */
struct kept_file {
	char path[KEPT_PATH];
	uint32_t domain; /* number */
	uint64_t device, inode, bytes;
};

/* A VM's. Descriptors: link, mailbox, those of its kind, its process, sets of its views. */
struct kept_vm {
	pid_t pid;
	uint32_t number, domain, kind; /* domain: number; kind: enum boot_kind */
	bool is_template, born;
	int8_t mailbox, agent, sets[VM_MAX_PMEM];
	uint64_t forked_ns, ready_ns;
	struct vm_config config; /* without pointers */
	char disk[VM_MAX_DISKS][KEPT_PATH];
	struct {
		uint32_t file; /* id */
		uint64_t first, pages;
	} pmem[VM_MAX_PMEM];
};

/* A record as it came. */
struct kept_record {
	struct keeper_head head;
	int fd[LINK_FDS_MAX]; /* -1 where somebody took it */
	uint8_t *bytes;
};

struct host_keeper {
	struct host *host;
	int link, pidfd;
	struct host_source on_link;
	unsigned failed; /* starts in a row that came to nothing */
	uint64_t started_ns;
	char path[256]; /* of its socket */
	struct kept_ledger *ledger;
	int ledger_fd;
	/* What another host left, until it is adopted. */
	struct kept_record *record;
	unsigned records;
};

/* ---- host_keep.c --------------------------------------------------------------------------- */

/* Is there a keeper without a host? 0: all that it had is in `record`, and it is ours; -ENOENT: there is none; -errno
 * with words. */
int host_keep_find(struct host *h, char *error);
/* Start one. -errno with words. */
int host_keep_start(struct host *h, char *error);
/* Go on hearing of its end; on the host's loop. -errno with words. */
int host_keep_watch(struct host *h, char *error);
/* A VM's record is done with. */
void host_keep_drop_key(struct host *h, uint64_t key);
/* Put the host's record; all of them, domains before the VMs in them. */
void host_keep_host(struct host *h);
void host_keep_all(struct host *h);
/* The records that came are done with: close what nobody took. */
void host_keep_forget(struct host_keeper *k);
/* What processes share, for kept_host.bytes. */
void host_keep_sizes(uint32_t bytes[KEPT_SIZES]);
/* End it, if `for_good`; else let go of it, and it stays without a host. */
void host_keep_destroy(struct host *h, bool for_good);

/* ---- host_adopt.c -------------------------------------------------------------------------- */

/* The pool, the table and the store from the records. -errno with words. */
int host_adopt_pool(struct host *h, char *error);
/* A descriptor of the host's record, which becomes the caller's; -1: not there. */
int host_adopt_fd(struct host *h, enum kept_host_fd which);
/* The store of the host's record; false: none is adopted. */
bool host_adopt_store(struct host *h, struct store *s);
/* Half-made VMs: hear of the end of its link. */
void host_adopt_link_ended(struct host_vm *vm);
/* An answer that nobody waits for, since the host that asked is gone. */
void host_adopt_answer(struct host_vm *vm, const struct link_answer *a);

#endif
