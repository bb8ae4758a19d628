/*
 * The VM registry: a slot for each id, with the VM's name, its place in the lineage, and how many
 * frames it has in each state.
 */
#ifndef IPT_REGISTRY_H
#define IPT_REGISTRY_H

#include "ipt/table.h"

/* Take the registry lock; mends what a dead registrar left in flux. */
void registry_lock(struct ipt *t);
void registry_unlock(struct ipt *t);
/* The slot of a VM in the given state (VM_NONE: registered, whether live or dying), else NULL. */
struct vm_slot *registry_slot(struct ipt *t, vmid_t vm, enum vm_state state);
/* The slot of a VM to which something may be given: -ENOENT if there is no such VM or it is dying,
 * -EPERM if it is a template or a file. */
int registry_changes(struct ipt *t, vmid_t vm, struct vm_slot **out);
/* Mark a VM dying: -ENOENT, -EBUSY if it has children, or is a file of which one has a region. Takes
 * the registry lock. */
int registry_dying(struct ipt *t, vmid_t vm);
/* The only child of a template that is now marked dying. -ENOENT, -EPERM if vm is no template, -EBUSY
 * if it has more children or that one is dying. *child is 0 if there is none; then nothing was marked.
 * Takes the registry lock. */
int registry_heir(struct ipt *t, vmid_t vm, vmid_t *child);
/* Give the only child of vm, which is dying and owns nothing any more, vm's parent, and unregister vm.
 * Takes the registry lock. */
void registry_skip(struct ipt *t, vmid_t vm, vmid_t child);
/* Unregister a dying VM that owns nothing any more. Takes the registry lock. */
void registry_remove(struct ipt *t, vmid_t vm);
/* The hash that the names array is to hold for an id: 0 if it is not in use. */
uint32_t registry_hash(const struct ipt *t, uint32_t vm);
/*
 * A look-up whose answer is not the VM's own, which never moves, counts only if no lineage was in flux
 * meanwhile: lineage_still, with what lineage_read gave before it began.
 */
static inline uint32_t lineage_read(const struct ipt *t)
{
	return load_acquire32(&t->header->lineage);
}

static inline bool lineage_still(const struct ipt *t, uint32_t seq)
{
	/* All loads of a look-up are acquires, so this one follows them. */
	return !(seq & 1) && load_relaxed32(&t->header->lineage) == seq;
}

/* Between these two lineages are in flux. The registry is locked. */
void lineage_open(struct ipt *t);
void lineage_close(struct ipt *t);

/* How many frames in that state a VM has. */
static inline uint32_t registry_count(const struct ipt *t, uint32_t vm, enum ipt_state state)
{
	return load_relaxed32(vm_frames(&t->vms[vm], state)) +
	       load_relaxed32(vm_adopted(&t->vms[vm], state));
}

/* Does a VM have anything of its own that a gfn leads to? If not, its forward map needn't be asked. */
static inline bool registry_has_own(const struct ipt *t, uint32_t vm)
{
	return registry_count(t, vm, IPT_PRIVATE) || registry_count(t, vm, IPT_ALIAS) ||
	       registry_count(t, vm, IPT_TOMB) || registry_count(t, vm, IPT_OUT);
}

/* Where a look-up that missed in vm goes on: its parent, or 0. No lock. */
uint32_t registry_parent(const struct ipt *t, uint32_t vm);

#endif
