/*
 * Sharing domains: guests of one domain may see each other's frames (merging), and their bytes are in one file of the
 * pool (pool.h), and what of them is packed in one of the packed memory, which the processes of these guests have, and no
 * other VM's. In both, places are given out for all domains together, and a place is used in its owner's file only. A guest
 * of --share-domain none is a domain of its own together with its templates and clones. A domain comes with its first
 * guest and goes with the last.
 *
 * Who has which file: a VM's process its own; the merger those in which frames are merged, for reading; the reclaimer,
 * the host and the keeper all.
 */
#ifndef VMM_HOST_DOMAIN_H
#define VMM_HOST_DOMAIN_H

#include "vmm/domain_fds.h"
#include "vmm/host_worker.h"

struct domain {
	struct domain *next;
	uint32_t number;         /* as in domain_fds.h */
	char name[IPT_NAME_LEN]; /* HOST_DOMAIN_NONE: one guest's, which no other joins */
	struct pool pool;
	int packed_fd; /* its part of the packed memory (store.h), as large as the whole; -1: there is none */
	unsigned users; /* host_vms that have it, and the host itself the default one */
};

#define DOMAIN_DEFAULT 1 /* its number */

/* The first domain, the default one, which stays. -errno with words. */
int host_domain_create(struct host *h, uint32_t frames, char *error);
/* One that a host before us had; takes fd, the pool's file and the packed memory's or -1. -errno. Then, when it is known
 * who goes on: let go of those that nobody has. */
int host_domain_add_kept(struct host *h, uint32_t number, const char *name, const int fd[2],
			 uint32_t frames);
void host_domain_let_go_unused(struct host *h);
/* NULL: there is none of that number. */
struct domain *host_domain_by_number(const struct host *h, uint32_t number);
void host_domain_destroy(struct host *h);

/* A VM that has none gets the domain of its config, a new one if need be. -ENOSPC and others with words. */
int host_domain_join(struct host_vm *vm, char *error);
/* It gets one that there is: a template, a clone, one that is adopted. */
void host_domain_follow(struct host_vm *vm, struct domain *d);
/* Nothing of it is left in the pool. */
void host_domain_leave(struct host_vm *vm);

/* By what number its frames are merged; 0: they aren't. */
uint32_t host_domain_merged_as(const struct domain *d);

/* An ipt_clean_fn with the host_vm as its context; of one whose domain isn't known any more the frames are punched out of
 * all files. The latter, with the host. */
int host_domain_clean_vm(void *vm, frame_t first, uint32_t count);
int host_domain_clean_all(void *host, frame_t first, uint32_t count);
/* Has the frame memory, whosever it is? */
bool host_domain_has(const struct host *h, frame_t f);

/* Bytes of packed memory that have host memory behind them. */
uint64_t host_domain_packed_bytes(const struct host *h);
/* A worker has just begun: all files. It is killed if it doesn't take them. */
void host_domain_tell_all(struct host_worker *w);

#endif
