/*
 * One VM's memory: the table's entries for it, its window, and what brings the two together. This
 * is where a second-stage fault goes:
 *
 *   guest or KVM touches a gfn -> userfaultfd -> fault_service (fault.c) -> by what the table says it is:
 *     void    memory_populate: choose an extent, take frames (ipt_alloc), commit (ipt_map), map (window_map)
 *     away    memory_fetch (fetch.c): take frames, read what was taken out of memory, commit, map
 *     shared, read   memory_show (share.c): put the frames' pages in, write-protected
 *     shared, write  memory_own (share.c): take a frame, copy, commit, map
 *   (a page of a file that nobody has touched yet is read into the pool first, and a guest that shares the file
 *   writes to the common frame: dax.c)
 *   -> wake
 *
 * Devices come in by the gmem interface (gmem.c) and end at the same functions; they pin what they use, which is
 * done under the lock, so that what isn't pinned there stays so for as long as the lock is held.
 * The array is changed before the window: a process that dies in between leaves frames which the
 * table knows it owned.
 */
#ifndef VMM_MEMORY_H
#define VMM_MEMORY_H

#include "ipt/ipt.h"
#include "virtio/gmem.h"
#include "vmm/dax.h"
#include "vmm/learn.h"
#include "vmm/mailbox.h"
#include "vmm/window.h"
#include <pthread.h>

struct memory {
	struct gmem gmem; /* what devices and loaders get */
	struct ipt *table;
	vmid_t vm;
	const struct machine *machine;
	const struct pool *pool;
	struct mailbox *mailbox;
	struct window window;
	int uffd; /* -1: nothing registered */

	/* Serialises populate, and with it every change of the window and of the bitmap. Taken
	 * before any lock of the table. */
	pthread_mutex_t lock;
	/* A bit a cluster of the window (in window order): has it any frame? A cache of the table
	 * that makes choosing an extent cheap. */
	uint64_t *touched;
	uint64_t clusters;

	/* Banks of persistent memory (dax.c). remaps counts the beginnings and ends of changes of the window
	 * during which a guest's write may be refused: odd while one is under way. */
	struct dax dax[MACHINE_MAX_PMEM];
	unsigned daxes;
	_Atomic uint64_t remaps;

	/* Sharing (share.c): has the window pieces that are registered for write protection? */
	bool shares;
	/* Giving back (merge_vm.c, give.c): are there clusters without frames that are marked as touched? */
	bool gave_back;
	gfn_t unshown; /* a page of ours for which the window has another mapping (memory_unmerge); INVALID_GFN: none */
	bool watched_voids; /* are there void pages whose piece of the window isn't plain void (window.h)? */
	struct memory_mappings {  /* mappings.c */
		uint32_t count;   /* the last time */
		uint32_t changes; /* since, that may have made more of them */
		uint32_t most;    /* of a window; 0: the usual */
	} mappings;
	/* Reclaim (evict.c, fetch.c, reclaim_vm.c); NULL where there is none. */
	const struct store *store;
	struct store_io *io; /* this process's way to the swap file, when it has needed it */
	struct reclaim_board *reclaim;
	int pagemap, maps;                 /* /proc/self/pagemap and maps; -1: not open yet */
	uint32_t reclaim_at, reclaim_page; /* the run of the batch that is next, and where in it */
	uint64_t own_hand;                 /* the cluster that is next, when the pool is empty */
	uint64_t stalled_ns;               /* since then a fault waits for memory; 0: none does */
	unsigned in_vain; /* faults in a row whose page became something else as they were served */
	struct learn *learn; /* as `learner`, if that is not negative */
	int learner;
	/* Devices (gmem.c): the host's errors in a row, less than a second apart. What is done about one: the host is
	 * to have us try again soon, or (final) the VM can't go on. NULL while the VM is being set up. */
	_Atomic uint64_t device_error_ns;
	_Atomic unsigned device_errors;
	void (*on_device_error)(struct memory *m, int rc, bool final);
};

/* Window, userfaultfd and bitmap for a registered VM. -errno with words. */
int memory_create(struct memory *m, struct ipt *table, vmid_t vm, const struct machine *machine,
		  const struct pool *pool, struct mailbox *mailbox, char *error);

/* Give the gfn a frame, with as many neighbours as the policy says, unless it has one. 0; -EAGAIN
 * if the pool has no free frame; -EFAULT if no bank has the gfn; -ENOMEM if the host refuses a
 * mapping. Any thread of the VM's process but one that waits for a userfault of the window. */
int memory_populate(struct memory *m, gfn_t g);

/* Where memory.c and share.c look: has the cluster (in window order) any frame? The bank of a gfn, or NULL. With
 * memory.lock held: as memory_populate, for a gfn that is void and in a bank. */
bool memory_touched(const struct memory *m, uint64_t cluster);
const struct machine_bank *memory_bank(const struct memory *m, gfn_t g);
int memory_populate_locked(struct memory *m, gfn_t g);
/* The cluster of a gfn that is ours has frames, if memory_populate didn't give them. */
void memory_note_own(struct memory *m, gfn_t g);
/* Are the bytes of what the VM sees at g lost (ipt_spoil)? */
bool memory_is_lost(const struct memory *m, gfn_t g);
/* Take memory.lock, and let it go again. In between frames that the table says are an ancestor's stay what they are
 * (reclaimer.c: settle). */
void memory_enter(struct memory *m);
void memory_leave(struct memory *m);
/* With memory.lock held: the pool has no frame. 1 if there is one again, since we took out some of our own, and the
 * caller is to try once more; 0: the host will say when there is one; -errno if the window isn't what the table says any
 * more, and the VM can't go on. */
int memory_make_room(struct memory *m);
/* The clusters that lie wholly in these gfns are void, in table and window. */
void memory_note_void(struct memory *m, gfn_t first, uint64_t count);
/* With memory.lock held: frames wanted for 2^order gfns, those that continue a neighbour's of our own. */
frame_t memory_goal(const struct memory *m, gfn_t first, uint32_t count);

/* Give back what the process can do without while its guest is idle: page tables of the table and of the pool's view,
 * room for pages on their way. Loop thread. */
void memory_rest(struct memory *m);

/* ---- self.c: what /proc says of this process ------------------------------------------------ */

/* Open what a process in a sandbox can't open any more; pagemap only if it will be needed. */
void memory_open_self(struct memory *m, bool pagemap);
/* The host has opened them for us. Takes them. */
void memory_take_self(struct memory *m, int pagemap, int maps);
/* /proc/self/pagemap, for as long as the process lives; -1: it can't be opened, or isn't there yet. */
int memory_pagemap(struct memory *m);
/* How many mappings this process has; UINT32_MAX: unknown. */
uint32_t memory_count_mappings(struct memory *m);
/* How many it may have (vm.max_map_count); 0: unknown. */
uint32_t memory_allowed_mappings(void);

/* ---- mappings.c, give.c: giving memory back -------------------------------------------------- */

/* With memory.lock held, as for those that follow: may the window get `growth` more mappings, 2 at the most, for the sake
 * of `count` pages? Always, if that is none. */
bool memory_has_room(struct memory *m, uint32_t count, unsigned growth);
/* By how many it grows, at most, when n pages of our own at frames from f on aren't mapped as those around them any
 * more. */
unsigned memory_splits(const struct memory *m, gfn_t first, uint32_t n, frame_t f);
/* Something was mapped that there had to be room for. */
void memory_note_mapped(struct memory *m);
/* Has the window as many as it may get? */
bool memory_is_crowded(const struct memory *m);
/* The guest wants nothing any more of what these gfns have: their frames are freed, and the window is void there again,
 * so that the next touch is a fault that finds nothing. RAM only; pages that a device uses, and what there is no room
 * for to split mappings, are left as they are. 0; -EFAULT if it isn't all memory of the VM's, and nothing was done;
 * another -errno if the window isn't what the table says any more, and the VM can't go on. Loop's thread. */
int memory_give(struct memory *m, gfn_t first, uint64_t count);

/* ---- share.c: frames that others see too ---------------------------------------------------- */

/* Is it a frame that others may see, too? */
static inline bool memory_is_shared(const struct ipt_place *p)
{
	return p->kind != IPT_VOID && p->kind != IPT_OWN && p->kind != IPT_AWAY;
}
/* Does a device use one of n frames from f on, or isn't there such a frame? */
bool memory_has_pins(const struct memory *m, frame_t f, uint32_t n);
/* A page of the pool's to another. -errno. */
int memory_copy_page(const struct pool *p, frame_t to, frame_t from);
/* With memory.lock held: clean and free limbo frames. */
void memory_free(struct memory *m, frame_t first, uint32_t n);
#define MEMORY_RUN 64 /* pages that are dealt with at once, at most */
/* Limbo frames that nobody of ours is to have any more. Where our window may show them until it is changed they are cleaned
 * only then; and those that follow each other at once. All zero: none. */
struct memory_lost {
	struct {
		frame_t first;
		uint32_t n;
	} run[MEMORY_RUN];
	unsigned runs;
};
void memory_lose(struct memory_lost *l, frame_t first, uint32_t n);
/* The same as what the table calls (ipt_run_fn), with a struct memory_lost. */
void memory_lose_run(void *lost, gfn_t g, frame_t first, uint32_t n);
/* With memory.lock held: clean and free them. */
void memory_free_lost(struct memory *m, const struct memory_lost *l);
/* With memory.lock held: limbo frames become what is at n gfns, at most MEMORY_RUN, in the table (over aliases) and in the window.
 * -errno as ipt_map_over, or of mmap. */
int memory_put_back(struct memory *m, gfn_t first, frame_t f, uint32_t n);
/* With memory.lock held: n gfns become a shared piece of the window that shows others' frames from f on, watched from
 * the first moment: a write in between is refused (remaps). -errno. */
int memory_remap(struct memory *m, gfn_t first, frame_t f, uint32_t n);
/* Give the gfn a frame of this VM's own, whose bytes are those that it had: populated if it is void, copied if it
 * is shared. 0 or as memory_populate. Same threads. */
int memory_own(struct memory *m, gfn_t g);
/* With memory.lock held, vCPUs stand still: merged pages that don't follow each other become the VM's own again, unless
 * frames are short. A template's clones have what it has mapped, each by a fork that copies every mapping: two of some 300 bytes
 * for a page that stands alone. -errno, if the window can't show what the table says; what isn't there is hidden. */
int memory_unmerge(struct memory *m);
/* Put a shared gfn's page, with its neighbours, into the window, write-protected. 0, or -errno. */
int memory_show(struct memory *m, gfn_t g);
/* The same for the pages around, if the pool has the page; else nothing is done. */
int memory_show_known(struct memory *m, gfn_t g);

/* ---- freeze.c: frozen, and cloned ------------------------------------------------------------ */

/* From now on every frame that is mapped may be seen by others: a write must fault. vCPUs stand still. -errno
 * with words; then the VM can go on as before. */
int memory_freeze(struct memory *m, char *error);
/* The table has given what was ours to a template; we go on as `vm`. */
void memory_go_on(struct memory *m, vmid_t vm, struct learn *learn);
/* In a clone's process: a userfaultfd of its own over the window that was inherited, all of it shared. -errno with
 * words. Then, when it is known which clone it is, that. */
int memory_adopt(struct memory *m, char *error);
void memory_become(struct memory *m, vmid_t vm, struct mailbox *mailbox, struct learn *learn);
/* Copy these shared pages in one go, into frames that follow each other where there are such. Pages that can't be
 * had stay shared. Before the guest runs. */
void memory_copy_ahead(struct memory *m, const gfn_t *pages, unsigned n);
/* Put in what the pool has of the shared pages in g's 2 MiB (share.c). What can't be had is left to a fault. */
void memory_show_ahead(struct memory *m, gfn_t g);

/* ---- fault.c: userfaultfd ------------------------------------------------------------------ */

/* A userfaultfd that can report faults of the kernel too (KVM's). -errno with words that say which
 * permission is missing. */
int fault_open(char *error);
/* Open /dev/userfaultfd once for all, in the host: processes in the sandbox can't, and clones need it. And that
 * descriptor; -1: there is no such device, or it isn't kept. */
void fault_keep_device(void);
int fault_device(void);
/* Can this kernel share frames: map them write-protected when they are read, so that a write faults? (Linux 6.4,
 * UFFDIO_CONTINUE_MODE_WP.) Tries it, the first time. 0, or -errno with words. */
int fault_can_share(char *error);
/* Can this kernel make a touch of a page a SIGBUS (Linux 6.6, UFFDIO_POISON)? 0, or -errno with words. */
int fault_can_poison(char *error);
/* Register [base, base+bytes) for missing faults; a shared piece of the pool for minor and write-protect faults
 * besides. -errno. */
int fault_register(int uffd, void *base, uint64_t bytes, bool shared);
/* Map pages that the pool has into a registered piece, write-protected. How many bytes from base on were dealt with
 * (up to a page that the pool doesn't have, or has to be tried alone); 0 if not even the first: -errno then is in
 * *error. */
uint64_t fault_continue(int uffd, void *base, uint64_t bytes, int *error);
/* Protect pages of a registered, shared piece from writing, or let them be written to. -errno. */
int fault_protect(int uffd, void *base, uint64_t bytes, bool protect);
/* Serve what the userfaultfd has to say, without blocking: 0, or the -errno of the first fault that
 * could not be served for another reason than an empty pool. Those that wait for frames are kept
 * and served by fault_retry: n of them. */
struct fault_queue {
	uint64_t hva[64];
	unsigned n;
};
int fault_service(struct memory *m, struct fault_queue *waiting);
int fault_retry(struct memory *m, struct fault_queue *waiting);

/* ---- gmem.c -------------------------------------------------------------------------------- */

extern const struct gmem_ops memory_gmem_ops;

#endif
