/*
 * Where vCPUs rest that can't execute HLT: a guest in CPL 3 reads MACHINE_IDLE_PORT when it has
 * nothing to do, and the read comes back when a virtio interrupt line is high (so nothing that came
 * between the guest's last look and the read is missed), when it is woken, or after IDLE_MS.
 */
#ifndef VMM_IDLE_H
#define VMM_IDLE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define IDLE_MS 1000

struct idle {
	_Atomic uint32_t lines; /* virtio interrupt lines that are high */
	_Atomic uint32_t wakes; /* counts what ends a rest; a futex */
	_Atomic uint32_t rests; /* vCPUs that rest */
};

void idle_init(struct idle *i);
/* A line went high or low. Any thread. */
void idle_line(struct idle *i, bool high);
/* Whoever rests now goes on. Any thread. */
void idle_wake(struct idle *i);
/* All lines are low, until told again. While no vCPU rests. */
void idle_forget(struct idle *i);
/* Rest. Returns at once while *stop or *pause is true. A vCPU's thread. */
void idle_rest(struct idle *i, const _Atomic bool *stop, const _Atomic bool *pause);

#endif
