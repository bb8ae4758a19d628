/*
 * One VM's memory: the table's entries for it, its window, and what brings the two together. This
 * is where a second-stage fault goes:
 *
 *   guest or KVM touches a void gfn -> userfaultfd -> fault_service (fault.c) -> memory_populate:
 *   choose an extent, take frames (ipt_alloc), commit (ipt_map), map (window_map) -> wake
 *
 * Devices come in by the gmem interface (gmem.c) and end at the same memory_populate.
 * The array is changed before the window: a process that dies in between leaves frames which the
 * table knows it owned.
 */
#ifndef VMM_MEMORY_H
#define VMM_MEMORY_H

#include "ipt/ipt.h"
#include "virtio/gmem.h"
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
};

/* Window, userfaultfd and bitmap for a registered VM. -errno with words. */
int memory_create(struct memory *m, struct ipt *table, vmid_t vm, const struct machine *machine,
		  const struct pool *pool, struct mailbox *mailbox, char *error);

/* Give the gfn a frame, with as many neighbours as the policy says, unless it has one. 0; -EAGAIN
 * if the pool has no free frame; -EFAULT if no bank has the gfn; -ENOMEM if the host refuses a
 * mapping. Any thread of the VM's process but one that waits for a userfault of the window. */
int memory_populate(struct memory *m, gfn_t g);

/* ---- fault.c: userfaultfd ------------------------------------------------------------------ */

/* A userfaultfd that can report faults of the kernel too (KVM's). -errno with words that say which
 * permission is missing. */
int fault_open(char *error);
/* Register [base, base+bytes) for missing faults. */
int fault_register(int uffd, void *base, uint64_t bytes);
/* Serve what the userfaultfd has to say, without blocking: 0, or the -errno of the first fault that
 * could not be served for another reason than an empty pool. Those that wait for frames are kept
 * and served by fault_retry; fault_waiting says how many there are. */
struct fault_queue {
	uint64_t hva[64];
	unsigned n;
};
int fault_service(struct memory *m, struct fault_queue *waiting);
int fault_retry(struct memory *m, struct fault_queue *waiting);

/* ---- gmem.c -------------------------------------------------------------------------------- */

extern const struct gmem_ops memory_gmem_ops;

#endif
