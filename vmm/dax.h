/*
 * Banks of persistent memory in a VM's window: see dax.c. With memory.lock held unless said otherwise.
 */
#ifndef VMM_DAX_H
#define VMM_DAX_H

#include "vmm/pmem.h"

struct memory;

struct dax {
	struct pmem_view *view;
	struct pageset mapped; /* pages of the view whose frames the window has, registered */
	/* A shared view: where the last pages made writable end, and how many they were. */
	uint64_t wrote_to;
	uint32_t wrote_pages;
};

/* The VM's banks of persistent memory have these views. Before the guest runs, no lock. -ENOMEM. */
int dax_attach(struct memory *m, struct pmem_view *const *views, unsigned n);
/* In a clone's process, whose window was inherited: register what it has of files. No lock; -errno. */
int dax_adopt(struct memory *m);

/* Whose page of a file the gfn is; NULL for other memory, such as the rest of a private bank behind the file's
 * end. No lock. */
struct dax *dax_of(const struct memory *m, gfn_t g);
/* With memory.lock held: the window shows these pages now (memory_remap). */
void dax_note_mapped(struct dax *d, gfn_t first, uint32_t n);
/* Have the page in the pool: as pmem_fetch. */
int dax_fetch(struct memory *m, struct dax *d, gfn_t g);
/* Map what of the gfns [from, to) are pages of the file that the window hasn't. */
int dax_map(struct memory *m, struct dax *d, uint64_t from, uint64_t to);
/* Let the guest write to a page that is mapped, of a shared view, and to some behind it if it goes on from page to
 * page. With memory.lock held, since before they were looked up (memory_enter). */
int dax_write(struct memory *m, struct dax *d, gfn_t g);

/* May a device write to the frame that others see too, which is pinned? If so it is noted. No lock. */
bool dax_note_device(struct memory *m, gfn_t g);
/* Write-protect what the window has of these pages of one view. Takes the lock. */
int dax_protect(struct memory *m, gfn_t first, uint64_t count);

/* A vCPU's access was refused (EFAULT): was a piece remapped since *seen, which becomes now? Waits for one that is
 * under way. No lock. */
bool dax_was_remapping(const struct memory *m, uint64_t *seen);

#endif
