/*
 * A place for a VM's small mappings: its mailbox, rings, vCPUs and their threads' stacks. They would lie wherever the
 * host's large ones leave room, each with page tables of its own; here they share those of what the kernel maps into
 * every process (the vDSO), as the kernel gives the highest room that is large enough.
 */
#ifndef VMM_NOOK_H
#define VMM_NOOK_H

/* The first thing that a process does which may become a host: take the room. Without it all works as well. */
void nook_take(void);
/* In a VM's process: give it to whom maps next. */
void nook_open(void);

#endif
