/*
 * Doing nothing, at no cost to the host: CPL 3 has no HLT, so a vCPU reads a port whose read the
 * host keeps for a while.
 */
#ifndef BARE_IDLE_H
#define BARE_IDLE_H

#include "guest/bare/cpu.h"
#include "vmm/machine.h"

/* Ends when a virtio device's interrupt stands, or input comes; perhaps earlier. */
static inline void idle_wait(void)
{
	(void)cpu_in8(MACHINE_IDLE_PORT);
}

#endif
