/*
 * The window: the host virtual range that a VM's memslots point at. Every piece of it is one of
 *   void     private anonymous memory that never gets a page, registered with userfaultfd, so that a touch by
 *            the guest or by KVM itself is a second-stage fault that comes to us with its address
 *   private  a mapping of pool frames, read-write, not registered: the kernel resolves touches alone
 *   shared   a mapping of pool frames that others see too, registered for missing, minor and write-protect
 *            faults. One whose frames were given back stays: the table says that it is void
 * Banks of guest memory lie one behind the other in it. Only the VM's own process changes it, under the memory lock
 * (vmm/memory.h).
 */
#ifndef VMM_WINDOW_H
#define VMM_WINDOW_H

#include "vmm/machine.h"
#include "vmm/pool.h"

struct window {
	uint8_t *base;
	uint64_t bytes;
	const struct pool *pool;
	const struct machine *machine;
};

/* Reserve and map a window for machine's banks, all void. -errno of mmap. */
int window_create(struct window *w, const struct machine *machine, const struct pool *pool);

/* Put frames first.. behind gfns first.., which must lie in one bank. -errno of mmap (-ENOMEM: too
 * many mappings, vm.max_map_count). */
int window_map(struct window *w, gfn_t first, frame_t frame, uint32_t count);

/* The same for a mapping that nobody may write by. */
int window_map_read_only(struct window *w, gfn_t first, frame_t frame, uint32_t count);
/* The same for frames of others: what is written before userfaultfd watches the piece goes to a copy, an
 * anonymous page of this process. */
int window_map_copied(struct window *w, gfn_t first, frame_t frame, uint32_t count);

/* Make these gfns void again, in two steps, between which userfaultfd is told to watch the piece: a page that it found
 * there while nobody watched would stay. From the first step on they have no page and nobody may touch them: who does
 * gets EFAULT. -errno of mmap or mprotect. */
int window_close(struct window *w, gfn_t first, uint64_t count);
int window_open(struct window *w, gfn_t first, uint64_t count);

/* Where a gfn is in the window; NULL if no bank has it. */
uint8_t *window_at(const struct window *w, gfn_t g);
/* The gfn at an address of the window, INVALID_GFN outside. */
gfn_t window_gfn(const struct window *w, uint64_t hva);

#endif
