/*
 * What the host's files share, by file. All on the host's one thread.
 */
#ifndef VMM_HOST_PRIVATE_H
#define VMM_HOST_PRIVATE_H

#include "vmm/container.h"
#include "vmm/host.h"

struct host {
	struct host_config config;
	struct host_events events;
	struct kvm_host kvm;
	struct sandbox sandbox;
	struct domain *domains;  /* with the pool's files: host_domain.h */
	uint32_t domain_numbers; /* given out */
	struct ipt *table;
	struct pmem_file *pmem_files; /* that VMs have as persistent memory */
	int epoll;
	int news_fd;
	struct host_source on_news, on_tick;
	bool ticking;
	bool ring_due;   /* a VM's bell couldn't be rung: once more at the next tick */
	bool resume_due; /* a console couldn't be listened to again: once more at the next tick */
	struct host_vm **vm;
	unsigned vms, room, alive;
	uint32_t clones, templates; /* numbers given out */
	struct clone_job *jobs;     /* clones being made */
	uint32_t jobs_ended;
	struct host_merger *merger;       /* NULL: nothing is merged */
	struct host_reclaimer *reclaimer; /* NULL: pages stay in memory */
	struct host_left *left;     /* NULL: nothing that dead guests wrote is being written */
	struct host_keeper *keeper; /* NULL: VMs end with this host */
	bool unadopted;             /* another host's VMs aren't ours yet: leave them be */
	bool stop;
};

/* ---- host.c: the loop, the pool, who is hungry --------------------------------------------- */

/* Frames came free: tell the VMs that found none. Returns whether anyone still waits. */
bool host_feed_the_hungry(struct host *h);
/* VMs that began or ceased to wait for memory: say so. */
void host_tell_starved(struct host *h);
/* Look after what waits (frames to be freed, VMs that starve) every now and then, until nothing does. */
void host_want_tick(struct host *h);

/* ---- host_vm.c: a VM's start, and its files ------------------------------------------------- */

/* A host_vm without anything but these; -1 for descriptors. NULL without memory. */
struct host_vm *host_vm_bare(struct host *h, const struct vm_config *config, bool is_template);
/* A host_vm with mailbox and link, and of a guest console and agent channel; the ends that its process gets are in `ends` (link,
 * mailbox's memfd, console, agent), for the caller to close. -errno with words. */
int host_vm_make(struct host *h, const struct vm_config *config, bool is_template,
		 struct host_vm **out, int ends[LINK_FDS], char *error);
/* Which id it goes by in the table, by its name: a freeze changes it, and what it was is its template's then.
 * INVALID_VMID: it isn't there. */
void host_vm_find_id(struct host_vm *vm);
/* Its process is there: supervise it. -errno. */
int host_vm_supervise(struct host_vm *vm);
/* It never was, or is given up, and nobody works for it: all of it goes, as if it had ended, but nobody is told. What
 * it may have written to files goes there, its registration and frames are freed. Don't use vm any more. */
void host_vm_unmake(struct host_vm *vm);
/* There is news of it, or it ended: tell who waits for a pause. */
void host_vm_told(struct host_vm *vm, bool ended);
/* A template, or a clone of one, has views of what `of` has. -errno with words. */
int host_vm_share_pmem(struct host_vm *vm, const struct host_vm *of, char *error);
/* The sets of those that are shared, for its process: how many. */
unsigned host_vm_pmem_fds(const struct host_vm *vm, int fds[VM_MAX_PMEM]);
/* The process is gone: write back what the guest left in files that it shares. -errno, and words in
 * `error` of the first that could not be written. */
int host_vm_finish_pmem(struct host_vm *vm, char *error);
/* The VM is gone from the table: let go of its files. */
void host_vm_leave_pmem(struct host_vm *vm);

/* ---- host_console.c ------------------------------------------------------------------------- */

/* Of on_console: there are bytes, or it was closed. */
void host_console_ready(struct host_source *s, uint32_t events);
/* The process is gone: read it dry; false if the caller took no more for now. */
bool host_console_drain(struct host_vm *vm);

/* ---- host_end.c ----------------------------------------------------------------------------- */

/* Of on_exit: its process ended. */
void host_end_ready(struct host_source *s, uint32_t events);
/* Its process is gone, or it never had one. */
void host_end_lost(struct host_vm *vm);
/* Of one that has a process but can't be supervised, or is nobody's: end it, wait for that (it is killed), and go on as
 * if it had ended. */
void host_end_abandon(struct host_vm *vm);
/* The process is gone and its last console bytes are out (or given up): tell, and let go of the rest. */
void host_end_finish(struct host_vm *vm);
/* Free what a dead VM owned: 0, or -errno and the tick tries again. */
int host_end_reap(struct host_vm *vm);
/* Of all that are dead; whether something is left that time will bring. */
bool host_end_reap_all(struct host *h);
/* The VM is gone from the table, for good: let go of its files and of its sharing domain. */
void host_end_gone(struct host_vm *vm);
/* Templates that waited for the end of their clones, and then perhaps those that they were made from. */
void host_end_reap_templates(struct host *h);
/* Processes that became our children since whoever forked them died, and ended. Others' handles stay what they are. */
void host_end_reap_strays(struct host *h);

/* ---- host_clone.c, host_clone_link.c -------------------------------------------------------- */

/* What its link says. */
void host_clone_link(struct host_vm *vm);
/* Its process ended. */
void host_clone_ended(struct host_vm *vm);
/* There is news of any VM. */
void host_clone_news(struct host *h);
void host_clone_destroy(struct host *h);

/* ---- host_merge.c --------------------------------------------------------------------------- */

struct host_worker;
/* The merger, if one is wanted. -errno with words. */
int host_merge_create(struct host *h, char *error);
void host_merge_destroy(struct host *h);
/* Its board, or NULL; the board's descriptor, or -1. */
struct merge_board *host_merge_board(struct host *h);
int host_merge_board_fd(struct host *h);
/* The process, also while none runs; NULL where there is none. */
struct host_worker *host_merge_worker(struct host *h);
/* A VM was registered: say which sharing domain it is in. */
void host_merge_admit(struct host_vm *vm);
/* At a tick: start the worker that couldn't be started before. True if another tick is wanted. */
bool host_merge_tick(struct host *h);

/* ---- host_reclaim.c ------------------------------------------------------------------------- */

/* The store, if one is wanted, and the space in it that the table is to account for; then the reclaimer. -errno with
 * words. */
int host_reclaim_open(struct host *h, struct ipt_config *c, char *error);
int host_reclaim_start(struct host *h, char *error);
void host_reclaim_destroy(struct host *h);
/* As the merger's. */
struct reclaim_board *host_reclaim_board(struct host *h);
int host_reclaim_board_fd(struct host *h);
struct host_worker *host_reclaim_worker(struct host *h);
bool host_reclaim_tick(struct host *h);
const struct store *host_store(const struct host *h);
/* A new domain's packed memory: -1 in *fd where there is none. -errno with words. */
int host_reclaim_packed(const struct host *h, int *fd, char *error);
/* In a VM's process, just forked: the store, with its domain's packed memory; NULL: none. */
const struct store *host_reclaim_store(struct host *h, const struct domain *d);
/* A VM was registered: its desk says what it may have. */
void host_reclaim_admit(struct host_vm *vm);
/* A VM of that domain has joined a file: may its pages be dropped? Before the VM's process is there. */
void host_reclaim_file(struct host *h, const struct pmem_file *f, uint32_t domain);
/* Can nothing more be taken out of memory, or is there no reclaim at all? */
bool host_reclaim_is_full(struct host *h);
/* May the space that a dead VM has in the store be given to others? 0, or -EAGAIN: its writes are still under way. */
int host_reclaim_may_reap(const struct host_vm *vm);

/* ---- host_drop.c ---------------------------------------------------------------------------- */

/* Drop what the reclaimer asks for on the board, of files that guests share. */
void host_drop(struct host *h, struct reclaim_board *b);

/* ---- host_left.c ---------------------------------------------------------------------------- */

/* These pages of the file are wanted clean: n, if guests that are gone have left one of them. Then have it done. */
uint32_t host_left_want(const struct pmem_file *f, uint64_t page, uint32_t n);
void host_left_clean(struct host *h);
/* Give back what that needs, unless it is under way. */
void host_left_rest(struct host *h);

/* ---- host_keep.c: what the keeper is told (host_keep.h has the rest) ------------------------ */

/* There is no process for it any more, or never was one. */
void host_keep_drop(struct host_vm *vm);
/* A file is nobody's any more. */
void host_keep_drop_file(struct host *h, vmid_t id);
/* A sharing domain has come, or has gone. */
void host_keep_domain(struct host *h, const struct domain *d);
void host_keep_drop_domain(struct host *h, uint32_t number);
/* A new record's key, 0 without a keeper. */
uint64_t host_keep_key(struct host *h);
/* Numbers of clones, templates, domains, ids were given out. */
void host_keep_numbers(struct host *h);

#endif
