/*
 * The host: makes the pool and the table, forks a process for every VM, and never runs a guest
 * itself. It hears of a VM through its pidfd, its console socket and the news eventfd, gives back
 * what a dead VM owned, and wakes those that wait for frames. One thread, one epoll; callers add
 * their own sources (signals, terminal, control socket, timers).
 */
#ifndef VMM_HOST_H
#define VMM_HOST_H

#include "ipt/ipt.h"
#include "vmm/sandbox.h"
#include "vmm/vm.h"
#include <sys/epoll.h>
#include <sys/types.h>

struct host;

/* A descriptor in the host's loop. */
struct host_source {
	int fd;
	void (*ready)(struct host_source *s, uint32_t events); /* EPOLLIN ... */
};

enum host_vm_phase {
	HOST_VM_UNUSED,
	HOST_VM_FORKING, /* a clone that its template was asked for */
	HOST_VM_ALIVE,
	HOST_VM_REAPING, /* the process is gone, its frames aren't all free yet; a template's stay while others see them */
	HOST_VM_GONE, /* its numbers can still be read */
};

struct domain;
struct host_vm;
typedef void host_told_fn(void *ctx, struct host_vm *vm, int rc);

struct host_vm {
	struct host *host;
	enum host_vm_phase phase;
	vmid_t id;
	pid_t pid;
	struct vm_config config;
	struct domain *domain; /* whose file of the pool it has; NULL: not known (any more) */
	struct mailbox *mailbox;
	int pidfd, link_fd, console_fd, agent_fd;
	/* Of a host that has a keeper, else -1: the mailbox, and the memory for the console's last bytes (ring.h). */
	int mailbox_fd, ring_fd;
	uint64_t key;        /* of its record; 0: it has none */
	bool adopted;        /* it was another host's; its process is no child of ours */
	struct agent *agent; /* the command under way in the guest, or NULL: agent.h */
	struct host_source on_exit, on_console, on_link;
	uint64_t forked_ns, ready_ns, ended_ns; /* CLOCK_MONOTONIC, 0: not yet */
	bool is_template;
	bool link_ended;          /* FORKING: there is no process at the other end any more */
	struct host_vm *pristine; /* the template made of it, as long as it hasn't run since */
	struct clone_job *
		job; /* a clone or template: what it is being made for; a VM: what it is frozen for */
	uint64_t asked_ns;  /* a clone: when it was asked for, CLOCK_MONOTONIC */
	uint32_t number;    /* a clone's; 0: booted */
	host_told_fn *told; /* someone waits until it is paused, or runs again */
	void *told_ctx;
	bool told_pause;
	uint32_t told_refusals;             /* mailbox.pause_refused before */
	struct balloon_wait *balloon_waits; /* balloon_requests.c */
	struct inject_wait *injecting;      /* host_inject.c */
	uint64_t
		pinned_ns; /* a template that is to go: since when somebody has had pinned what it had; 0: nobody */
	bool said_starved;
	bool draining; /* the process is gone, its last console bytes aren't out yet */
	enum vm_end end;
	int wait_status; /* -1: unknown, its process was no child of ours */
	uint32_t frames_at_end[IPT_NSTATES];
	struct pmem_view
		*pmem[VM_MAX_PMEM]; /* of config.pmem; NULL where there is none (any more) */
	bool unclean;               /* host_drop.c: it is to be told */
	void *user;                 /* the caller's */
};

struct host_config {
	uint64_t pool_bytes;
	enum ipt_kind kind;
	uint32_t max_vms;
	unsigned nodes, colours;
	unsigned merge_percent; /* of a CPU, for merging equal frames (docs/MERGE.md); 0: off */
	/* Where pages go when the pool is short (docs/RECLAIM.md); with neither, none do. */
	uint64_t pack_bytes;   /* of packed memory */
	const char *swap_file; /* NULL: none */
	uint64_t swap_bytes;
	enum sandbox_mode sandbox; /* of all processes but the host's */
	uid_t first_id;            /* 0: SANDBOX_FIRST_ID */
	/* VMs outlive this host's death, and those of one that died are adopted (docs/ARCHITECTURE.md). */
	bool keeps;
};

/* Sharing domains (host_domain.h): the one that guests are in unless they are told, and that of guests which are in none. */
#define HOST_DOMAIN_DEFAULT "default"
#define HOST_DOMAIN_NONE    "none"

struct host_events {
	/* Console bytes of a VM. Returns how many were taken; if fewer than n, the rest is offered
	 * again after host_console_resume. */
	size_t (*console)(void *ctx, struct host_vm *vm, const char *bytes, size_t n);
	void (*starved)(void *ctx, struct host_vm *vm, bool now); /* waits for frames / goes on */
	void (*ended)(void *ctx, struct host_vm *vm);             /* its frames are free again */
	/* A VM or template came to be without host_start_vm: `of` is what it was made from. May be NULL.
	 * -errno: it isn't to be. */
	int (*cloned)(void *ctx, struct host_vm *vm, struct host_vm *of);
	void (*news)(void *ctx, struct host_vm *vm); /* its mailbox may have changed */
	/* A guest of a host that died; its ready_ns is as it was known then. May be NULL. */
	void (*adopted)(void *ctx, struct host_vm *vm);
	/* One line for the user. May be NULL. */
	void (*said)(void *ctx, const char *words);
	void *ctx;
};

/* Pool, table and KVM. -errno with words. */
int host_create(struct host **out, const struct host_config *config,
		const struct host_events *events, char *error);
/* What the sandbox lacks here, in words for the user; NULL: nothing. */
const char *host_notice(const struct host *h);
/* VMs of a host that died become this one's; how many, templates included. Before host_run, once the caller has nothing left
 * that can fail: from then on host_destroy ends them. */
unsigned host_adopt(struct host *h);
/* What its next host is to know of it has changed (ready_ns). */
void host_keep_vm(struct host_vm *vm);
/* Kill what still runs, free everything. VMs that could be adopted and weren't stay. */
void host_destroy(struct host *h);

/* Fork a VM's process. The config is copied; image and disk descriptors stay the caller's, the
 * latter until the VM ended. -errno with words. */
int host_start_vm(struct host *h, const struct vm_config *config, struct host_vm **out,
		  char *error);
void host_order(struct host_vm *vm, enum vm_order order);
/* Kill the process; of one that is gone already, drop the console bytes that nobody took. */
void host_kill(struct host_vm *vm);
/* Bytes for the guest's console; returns how many were taken (none if its socket is full). */
size_t host_console_input(struct host_vm *vm, const char *bytes, size_t n);
void host_console_resume(struct host *h);

/* Stop the guest in its tracks, or let it go on. `told` is called when it is so (0), or when it can't be: -EBUSY,
 * a vCPU doesn't stop; -ESRCH, the VM ended; -EINTR, the opposite was asked for. Not before this returns. */
void host_pause(struct host_vm *vm, bool pause, host_told_fn *told, void *ctx);
/* Nobody waits for that any more. */
void host_pause_forget(struct host_vm *vm);

/*
 * Clones (host_clone.c). A template makes them; a VM is frozen first, which makes a template of what it is now, and
 * goes on as another of its clones. They are called name-1, name-2 ... (one: name), or after the VM with the
 * clone's number. All of them come to be, or none: then the words say why.
 */
#define HOST_CLONE_FRAMES \
	32 /* free frames that each must find in the pool, for what it writes to at once */
struct host_clone_request {
	unsigned count;
	const char *name; /* NULL: after the VM */
	bool predict; /* give each the pages that others of the template wrote to at once, before it runs */
	void (*done)(void *ctx, struct host_vm **clones,
		     unsigned n); /* all run; the array is the host's */
	void (*failed)(void *ctx, const char *words);
	void *ctx;
};
/* -errno with words, or one of done and failed is called, perhaps before this returns. */
int host_clone(struct host_vm *vm, const struct host_clone_request *request, char *error);
/* Nobody waits for that answer any more. The clones stay. */
void host_clone_forget(struct host *h, void *ctx);

/* Merging now (host_merge.c). */
struct host_merge {
	unsigned percent; /* 0: off, and the rest says nothing */
	bool running;
	unsigned starts;
	const struct merge_counters *counters; /* vmm/merge.h */
};
void host_merge_info(struct host *h, struct host_merge *out);

/* Reclaim (host_reclaim.c). All are -EOPNOTSUPP where there is none. */
struct host_reclaim {
	bool on, running;
	unsigned starts;
	const struct reclaim_board *board; /* vmm/reclaim.h */
	struct ipt_space_info space;
	uint64_t packed_populated; /* bytes of host memory behind the packed memory */
};
void host_reclaim_info(struct host *h, struct host_reclaim *out);
/* The most frames that a VM may have in memory; 0: any number. */
int host_limit(struct host_vm *vm, uint32_t frames);
/* Have so many frames of a VM (NULL: of all) taken out, needed or not: `wished` is called, after this returns, with how
 * many were. -EBUSY: somebody else's wish is under way. */
typedef void host_wished_fn(void *ctx, uint32_t freed);
int host_wish(struct host *h, struct host_vm *vm, uint32_t frames, host_wished_fn *wished,
	      void *ctx);
/* Nobody waits for that any more. */
void host_wish_forget(struct host *h);

int host_add_source(struct host *h, struct host_source *s, uint32_t events);
/* Other events of a source that is there. Takes no memory, so it doesn't fail. */
void host_change_source(struct host *h, struct host_source *s, uint32_t events);
void host_remove_source(struct host *h, struct host_source *s);
/* Handle events until host_stop. 0 or -errno. */
int host_run(struct host *h);
void host_stop(struct host *h);

struct ipt *host_table(struct host *h);
/* What it is: as it was asked for, or as the host was whose VMs it adopts. */
const struct host_config *host_settings(const struct host *h);
/* Hosts that the pool had before this one. */
unsigned host_predecessors(const struct host *h);
/* Files that VMs have as persistent memory, a list; and the one whose id in the table that is, or NULL. */
const struct pmem_file *host_files(const struct host *h);
const struct pmem_file *host_file_by_id(const struct host *h, vmid_t id);
/* A list of sharing domains (host_domain.h). */
const struct domain *host_domains(const struct host *h);
/* Of the pool; bytes of it that have host memory behind them, of all sharing domains. */
uint32_t host_frames(const struct host *h);
uint64_t host_populated_bytes(const struct host *h);
unsigned host_alive(struct host *h); /* guests, without templates */
/* VMs by index, in order of start, the gone ones too; NULL past the last. */
struct host_vm *host_vm_at(struct host *h, unsigned index);
struct host_vm *host_vm_by_id(struct host *h, vmid_t id);
/* The one that is alive and has that name, or NULL. */
struct host_vm *host_vm_by_name(struct host *h, const char *name);
/* Free the records of VMs of which nothing is left, so that a host may start VMs for ever. Not while
 * somebody goes through them. */
void host_forget_gone(struct host *h);

#endif
