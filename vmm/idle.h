/*
 * Where vCPUs rest that can't execute HLT: a guest in CPL 3 reads MACHINE_IDLE_PORT when it has
 * nothing to do, and the read comes back when a virtio interrupt line is high (so nothing that came
 * between the guest's last look and the read is missed), when it is woken, or after IDLE_MS. One that
 * nothing but that can wake may sleep on without a thread then: see doze.h.
 */
#ifndef VMM_IDLE_H
#define VMM_IDLE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define IDLE_MS 1000

struct idle {
	_Atomic uint32_t lines;  /* virtio interrupt lines that are high */
	_Atomic uint32_t wakes;  /* counts what ends a rest; a futex */
	_Atomic uint32_t rests;  /* vCPUs that rest */
	_Atomic uint32_t asleep; /* vCPUs that rest without a thread */
	void (*rouse)(
		struct
		idle *i); /* set before any sleeps: called when these are to go on, by any thread */
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
/* How often something has ended a rest. */
uint32_t idle_wakes(const struct idle *i);
/* A vCPU is about to lose its thread: true, and it is counted, unless there was something since `wakes`. */
bool idle_sleep(struct idle *i, uint32_t wakes);
/* One of these has a thread again. */
void idle_rise(struct idle *i);

#endif
