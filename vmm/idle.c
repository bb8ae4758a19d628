#include "vmm/idle.h"
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

void idle_init(struct idle *i)
{
	*i = (struct idle){0};
}

void idle_line(struct idle *i, bool high)
{
	atomic_fetch_add_explicit(&i->lines, high ? 1 : -1u, memory_order_relaxed);
	if (high)
		idle_wake(i);
}

void idle_wake(struct idle *i)
{
	/* In one order with idle_rest's: who isn't seen to rest sees the count, and with it what the caller set. */
	atomic_fetch_add_explicit(&i->wakes, 1, memory_order_seq_cst);
	if (atomic_load_explicit(&i->rests, memory_order_seq_cst))
		syscall(SYS_futex, &i->wakes, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
	if (atomic_load_explicit(&i->asleep, memory_order_seq_cst))
		i->rouse(i);
}

void idle_forget(struct idle *i)
{
	atomic_store_explicit(&i->lines, 0, memory_order_relaxed);
	/* In a clone: who rested did so in another process. */
	atomic_store_explicit(&i->rests, 0, memory_order_relaxed);
}

/* By the futex itself: what waits for a condition has more of the stack than an idle vCPU's page has room for. */
void idle_rest(struct idle *i, const _Atomic bool *stop, const _Atomic bool *pause)
{
	struct timespec until;
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_nsec += IDLE_MS * 1000000;
	until.tv_sec += until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	atomic_fetch_add_explicit(&i->rests, 1, memory_order_seq_cst);
	uint32_t wakes = atomic_load_explicit(&i->wakes, memory_order_seq_cst);
	while (!atomic_load_explicit(&i->lines, memory_order_relaxed) &&
	       !atomic_load_explicit(stop, memory_order_acquire) &&
	       !atomic_load_explicit(pause, memory_order_acquire) &&
	       (syscall(SYS_futex, &i->wakes, FUTEX_WAIT_BITSET_PRIVATE, wakes, &until, NULL,
			FUTEX_BITSET_MATCH_ANY) == 0 ||
		errno == EINTR) &&
	       atomic_load_explicit(&i->wakes, memory_order_acquire) == wakes)
		;
	atomic_fetch_sub_explicit(&i->rests, 1, memory_order_relaxed);
}

uint32_t idle_wakes(const struct idle *i)
{
	return atomic_load_explicit(&i->wakes, memory_order_acquire);
}

bool idle_sleep(struct idle *i, uint32_t wakes)
{
	/* As in idle_rest: who isn't seen to sleep sees the count. */
	atomic_fetch_add_explicit(&i->asleep, 1, memory_order_seq_cst);
	if (!atomic_load_explicit(&i->lines, memory_order_relaxed) &&
	    atomic_load_explicit(&i->wakes, memory_order_seq_cst) == wakes)
		return true;
	idle_rise(i);
	return false;
}

void idle_rise(struct idle *i)
{
	atomic_fetch_sub_explicit(&i->asleep, 1, memory_order_relaxed);
}
