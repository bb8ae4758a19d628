/*
 * Process-shared robust locks, and their order.
 *
 *   level           protects
 *   LOCK_REGISTRY   the VM slots: names, parents, children, states
 *   LOCK_CHAIN      the chains of the SHARED frames and slots that fall to it, and with them these words and
 *                   the words of slots becoming and ceasing to be aliases of them
 *   LOCK_CHAIN_2    the same locks: where two chains are held at once, the one of the higher number
 *   LOCK_STRIPE     the forward elements whose keys hash to the stripe, and with them the words of
 *                   frames mapped at such keys (going to and from limbo)
 *   LOCK_STRIPE_2   the same locks: where two stripes are held at once, the one of the higher number
 *   LOCK_ZONE       a zone's free lists and mark, and with them words going to and from free
 *   LOCK_PAGES      radix only: the table pages' bitmap and every link from one page to the next
 *   LOCK_SPACE      an arena: its part of the bitmaps, and slots' claims of space there
 *
 * A thread may take a lock only while all that it holds are of lower levels. Checked with a
 * thread-local where NDEBUG is not defined.
 */
#ifndef IPT_LOCK_H
#define IPT_LOCK_H

#include <pthread.h>
#include <stdbool.h>

enum lock_level {
	LOCK_REGISTRY,
	LOCK_CHAIN,
	LOCK_CHAIN_2,
	LOCK_STRIPE,
	LOCK_STRIPE_2,
	LOCK_ZONE,
	LOCK_PAGES,
	LOCK_SPACE
};

struct lock {
	pthread_mutex_t mutex;
};

/* 0 or -errno. */
int lock_init(struct lock *l);
/* Take the lock; true if its last holder died in it. Then what it protects must be rebuilt, and
 * lock_mended called, before lock_drop. Aborts if the lock's own memory is broken. */
bool lock_take(struct lock *l, enum lock_level level);
void lock_mended(struct lock *l);
void lock_drop(struct lock *l, enum lock_level level);

#endif
