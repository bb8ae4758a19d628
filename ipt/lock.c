/* Robust process-shared locks with a checked order. See lock.h. */
#include "ipt/lock.h"
#include "ipt/debug.h"
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* A failpoint said that the last holder of the lock taken last died; it didn't. */
static _Thread_local bool pretended;

static void (*step_hook)(void);

void ipt_step_do(void (*hook)(void))
{
	char words[FAIL_WORDS_MAX];
	step_hook = hook;
	fail_set(FAIL_IPT_STEP, hook ? "0%print" : "off", words);
}

void ipt_step_slowly(void)
{
	if (step_hook)
		step_hook();
	else
		fail_hit(FAIL_IPT_STEP);
}

#ifndef NDEBUG
static _Thread_local unsigned held; /* bit per level */
#endif

int lock_init(struct lock *l)
{
	pthread_mutexattr_t attr;
	int err = pthread_mutexattr_init(&attr);

	if (err)
		return -err;
	err = pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
	if (!err)
		err = pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
	if (!err)
		err = pthread_mutex_init(&l->mutex, &attr);
	pthread_mutexattr_destroy(&attr);
	return -err;
}

/*
 * Wait for a lock that another holds, looking again every LOCK_PATIENCE_MS: a wake-up can get lost. An
 * unlocker clears the word, its waiters' mark with it, and wakes one waiter, who is to set the mark again
 * for those who still sleep. If that one is killed first, and a third takes the lock meanwhile, nobody
 * knows of the sleepers any more. (The kernel makes up for it only if the lock is free when the killed one
 * exits: handle_futex_death in its kernel/futex/core.c.) Seen in ipt_procs before this was here.
 */
#define LOCK_PATIENCE_MS 10

static int lock_wait(pthread_mutex_t *m)
{
	struct timespec until;
	int err;

	if (IPT_TSAN) /* which doesn't know clocklock, and isn't used where processes are killed */
		return pthread_mutex_lock(m);
	do {
		clock_gettime(CLOCK_MONOTONIC, &until);
		until.tv_nsec += LOCK_PATIENCE_MS * 1000000;
		until.tv_sec += until.tv_nsec / 1000000000;
		until.tv_nsec %= 1000000000;
		err = pthread_mutex_clocklock(m, CLOCK_MONOTONIC, &until);
	} while (err == ETIMEDOUT);
	return err;
}

bool lock_take(struct lock *l, enum lock_level level)
{
#ifndef NDEBUG
	assert(held < 1u << level && "lock order");
#endif
	(void)level;
	int err = pthread_mutex_trylock(&l->mutex);

	if (err == EBUSY)
		err = lock_wait(&l->mutex);
	if (err && err != EOWNERDEAD)
		abort(); /* not a mutex any more: somebody wrote over the table's memory */
#ifndef NDEBUG
	held |= 1u << level;
#endif
	ipt_step();
	pretended = err != EOWNERDEAD && fail_armed(FAIL_IPT_LOCK) && fail_hit(FAIL_IPT_LOCK);
	return err == EOWNERDEAD || pretended;
}

void lock_mended(struct lock *l)
{
	if (!pretended && pthread_mutex_consistent(&l->mutex))
		abort();
	pretended = false;
}

void lock_drop(struct lock *l, enum lock_level level)
{
	ipt_step();
#ifndef NDEBUG
	assert(held >> level == 1 && "dropping a lock that is not the last taken");
	held &= ~(1u << level);
#endif
	(void)level;
	if (pthread_mutex_unlock(&l->mutex))
		abort();
}
