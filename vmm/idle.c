#include "vmm/idle.h"
#include <time.h>

void idle_init(struct idle *i)
{
	pthread_condattr_t attr;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	*i = (struct idle){.lock = PTHREAD_MUTEX_INITIALIZER};
	pthread_cond_init(&i->change, &attr);
	pthread_condattr_destroy(&attr);
}

void idle_line(struct idle *i, bool high)
{
	pthread_mutex_lock(&i->lock);
	i->lines += high ? 1 : -1u;
	if (high)
		pthread_cond_broadcast(&i->change);
	pthread_mutex_unlock(&i->lock);
}

void idle_wake(struct idle *i)
{
	pthread_mutex_lock(&i->lock);
	i->wakes++;
	pthread_cond_broadcast(&i->change);
	pthread_mutex_unlock(&i->lock);
}

void idle_forget(struct idle *i)
{
	pthread_mutex_lock(&i->lock);
	i->lines = 0;
	pthread_mutex_unlock(&i->lock);
}

void idle_rest(struct idle *i, const _Atomic bool *stop, const _Atomic bool *pause)
{
	struct timespec until;
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_nsec += IDLE_MS * 1000000;
	until.tv_sec += until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	pthread_mutex_lock(&i->lock);
	uint32_t wakes = i->wakes;
	while (!i->lines && i->wakes == wakes &&
	       !atomic_load_explicit(stop, memory_order_acquire) &&
	       !atomic_load_explicit(pause, memory_order_acquire) &&
	       pthread_cond_timedwait(&i->change, &i->lock, &until) == 0)
		;
	pthread_mutex_unlock(&i->lock);
}
