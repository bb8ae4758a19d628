/*
 * Processes that work for the host beside the VMs: the merger, the reclaimer. Each hears of nothing but its link's
 * end; over the link it has the host ring VMs. One that dies is started again, unless it keeps failing.
 */
#ifndef VMM_HOST_WORKER_H
#define VMM_HOST_WORKER_H

#include "vmm/host.h"

#define WORKER_KEEP 5

struct host_worker {
	struct host *host;
	void (*run)(struct host_worker *w, int link); /* in its process: never returns */
	void (*heard)(struct host_worker *w, uint32_t id);
	void (*failed_for_good)(struct host_worker *w); /* it isn't started again; may be NULL */
	/* So that it hears what its link has; NULL: that wakes it by itself. */
	void (*wake)(struct host_worker *w);
	bool reads_only; /* of the pool: what is merged, for reading; else all. By its link (domain_fds.h) */
	int keep[WORKER_KEEP]; /* other descriptors that it needs, besides the link */
	unsigned keeps;
	/* From host_worker_start on: */
	pid_t pid;
	int pidfd, link_fd;
	struct host_source on_exit, on_link;
	bool due;                /* it couldn't be started, and is to be at the host's next tick */
	unsigned starts, failed; /* failed: in a row */
	uint64_t started_ns;
	uid_t user; /* in its process: who it is to be in the sandbox */
};

/* Before anything else: it doesn't run. */
void host_worker_init(struct host_worker *w, struct host *h);
/* In its process, once it has all it needs: into the sandbox, or the process ends with words. */
void host_worker_confine(const struct host_worker *w, enum seccomp_kind kind);
/* -errno. */
int host_worker_start(struct host_worker *w);
void host_worker_stop(struct host_worker *w);
/* At a tick: start one that is due. True if another tick is wanted. */
bool host_worker_tick(struct host_worker *w);
static inline bool host_worker_runs(const struct host_worker *w)
{
	return w->pidfd >= 0;
}

#endif
