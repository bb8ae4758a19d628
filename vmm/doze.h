/*
 * vCPUs without a thread. One that has rested at MACHINE_IDLE_PORT (idle.h) for IDLE_MS lets its thread end, whose stacks,
 * task and filter are a sixth of what an idle clone takes, and has a new one as soon as something ends the rest. Only where
 * nothing else could wake it: in a bare guest, which takes no interrupts, and while there is no input in its UART, which it
 * may poll. For who waits until vCPUs stand still it is one that has gone: out of the guest, with no access to complete.
 */
#ifndef VMM_DOZE_H
#define VMM_DOZE_H

#include <stdbool.h>
#include <stdint.h>

struct vm;

/* Before vCPUs run; in a clone again, where all have threads. */
void doze_init(struct vm *vm, bool able);
/* Does the guest do without threads for vCPUs that rest? */
bool doze_able(const struct vm *vm);
/* vCPU's thread, with no access to complete, after a rest that began when idle_wakes() was `wakes`. True: it is to end now,
 * and touches nothing of the VM's any more. */
bool doze_off(struct vm *vm, unsigned cpu, uint32_t wakes);
/* Something ended a rest: those that sleep get threads, on the loop's, unless the VM is to stand still, or ends; after standing
 * still it is to be called again. If there is no thread for a second, the VM ends. Any thread. */
void doze_rouse(struct vm *vm);
/* Loop's thread: when this returns, threads that let go have ended, and hold no lock of the C library's. */
void doze_settle(struct vm *vm);

#endif
