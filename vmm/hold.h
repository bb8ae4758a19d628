/*
 * Having a guest that idles stand still for less than a millisecond: all vCPUs are out of KVM_RUN, so neither the guest nor
 * KVM for it touches the window. Devices go on; they don't use the window, but pin frames under memory.lock. For
 * longer, and with devices, see pause.c.
 */
#ifndef VMM_HOLD_H
#define VMM_HOLD_H

#include <stdbool.h>

struct vm;

/* Loop's thread. False, and nothing is held: the guest has used more than a quarter of a CPU since the last call (then
 * standing still would cost it more than it is worth), or a vCPU didn't leave within 20 ms, or waits for a page, which is
 * this thread's to bring. */
bool hold_still(struct vm *vm);
/* After hold_still said true. */
void hold_end(struct vm *vm);

/* vCPU's thread, which doesn't hold memory.lock: is it to stand still? Then wait as long as that is so. */
bool hold_wanted(const struct vm *vm);
void hold_wait(struct vm *vm, unsigned cpu);

#endif
