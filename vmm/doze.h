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
/* vCPU's thread, where vm->doze.able, with no access to complete, after a rest that began when idle_wakes() was `wakes`.
 * True: it is to end now, as one that has gone. What ends the rest (idle_wake) gets it another, on the loop's thread, unless
 * the VM is to stand still, or ends; who lets it go on wakes it again. If there is no thread for a second, the VM ends. */
bool doze_off(struct vm *vm, unsigned cpu, uint32_t wakes);
/* Loop's thread: when this returns, threads that let go have ended, and hold no lock of the C library's. */
void doze_settle(struct vm *vm);

#endif
