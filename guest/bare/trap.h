/*
 * Machine checks (SDM vol. 3B chapter 16, APM vol. 2 chapter 9): memory that is lost. Without this the processor shuts down
 * at one, since no gate is there for it.
 */
#ifndef BARE_TRAP_H
#define BARE_TRAP_H

#include <stdbool.h>
#include <stdint.h>

extern void *trap_back[5];    /* __builtin_setjmp: where a caught one goes */
extern uint64_t trap_address; /* of the last one, or of the last notice */
/* How often something was said about memory that nobody had touched. */
extern volatile uint32_t trap_notices;

/* Catch them from now on; with one vCPU only, since all have the same stack for it. */
void trap_open(void);
/* Are there notices that came without a machine check? */
void trap_look(void);
/* While that is on, a machine check goes to trap_back, with trap_address of what is lost; else it ends the run (end_fail). */
void trap_catch(bool on);

#endif
