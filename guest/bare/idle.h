/*
 * Doing nothing, at no cost to the host: CPL 3 has no HLT, so a vCPU reads a port whose read the
 * host keeps for a while.
 */
#ifndef BARE_IDLE_H
#define BARE_IDLE_H

#include "guest/bare/cpu.h"
#include "vmm/machine.h"

/* At most some 50 ms; ends when a virtio device's interrupt stands, or input comes. */
static inline void idle_wait(void)
{
	(void)cpu_in8(MACHINE_IDLE_PORT);
}

#endif
