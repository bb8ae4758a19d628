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
/* The slot of a VM to which something may be given: -ENOENT if there is no such VM or it is dying, -EPERM if
 * it is a template. */
int registry_changes(struct ipt *t, vmid_t vm, struct vm_slot **out);
/* Mark a VM dying: -ENOENT, -EBUSY if it has children. Takes the registry lock. */
int registry_dying(struct ipt *t, vmid_t vm);
/* Unregister a dying VM that owns nothing any more. Takes the registry lock. */
void registry_remove(struct ipt *t, vmid_t vm);
/* The hash that the names array is to hold for an id: 0 if it is not in use. */
uint32_t registry_hash(const struct ipt *t, uint32_t vm);
/* Where a look-up that missed in vm goes on: its parent, or 0. No lock. */
uint32_t registry_parent(const struct ipt *t, uint32_t vm);

#endif
