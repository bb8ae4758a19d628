/* Freeing what a VM owned: what ipt_vm_reap and ipt_vm_collapse share. */
#ifndef IPT_REAP_H
#define IPT_REAP_H

#include "ipt/table.h"

/* Take every lock once: whoever died holding one left it to be mended. */
void reap_mend(struct ipt *t);
/* Free all slots of a dying vm; frames that lose their last alias become its limbo. */
void reap_slots(struct ipt *t, vmid_t vm);
/*
 * Clean and free all limbo frames of a dying vm. Pins are taken off if nobody can be left who would
 * (`orphaned`), else pinned frames stay. *kept counts what stays; the first error, -EBUSY for a pin.
 */
int reap_limbo(struct ipt *t, vmid_t vm, bool orphaned, ipt_clean_fn *clean, void *ctx,
	       uint32_t *kept);

/* A dying vm has nothing any more but `kept` limbo frames, whatever it counted. */
void reap_count(struct ipt *t, vmid_t vm, uint32_t kept);

#endif
