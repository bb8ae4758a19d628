/*
 * `invisor balloon`: how much memory a guest shall have left. The host tells the VM, whose device tells the guest's
 * driver (balloon.c, virtio/balloon.c); what the driver says it did comes back by the mailbox.
 */
#ifndef VMM_BALLOON_H
#define VMM_BALLOON_H

#include "vmm/control.h"

#define BALLOON_LEAST (1u << 20) /* bytes that a guest may be left with */

/* The request (requests.h). */
void take_balloon(struct control_request *r, const json_t *o);
/* There is news of a VM, or it ended: answer who waits for its balloon. */
void balloon_news(struct host_vm *vm);
/* Its part of the statistics (docs/STATS.md): the balloon, and the guest's own numbers. Asks the guest for newer ones
 * if they are old. */
void balloon_stats(struct host_vm *vm, json_t *o);

#endif
