#include "vmm/learn.h"
#include "ipt/fail.h"
#include <stdlib.h>
#include <sys/mman.h>

struct learn *learn_create(void)
{
	struct learn *l = fail_call(TEMPLATE_LEARN, mmap(NULL, sizeof *l, PROT_READ | PROT_WRITE,
							 MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	return l == MAP_FAILED ? NULL : l;
}

int learn_join(struct learn *l, uint64_t now_ns)
{
	uint32_t me = atomic_load_explicit(&l->learners, memory_order_relaxed);
	do
		if (me >= LEARN_LEARNERS)
			return -1;
	while (!atomic_compare_exchange_weak_explicit(&l->learners, &me, me + 1,
						      memory_order_relaxed, memory_order_relaxed));
	atomic_store_explicit(&l->until_ns[me], now_ns + LEARN_MS * UINT64_C(1000000),
			      memory_order_relaxed);
	return (int)me;
}

void learn_note(struct learn *l, int learner, enum learn_kind kind, gfn_t g)
{
	uint32_t at = atomic_load_explicit(&l->n[learner], memory_order_relaxed);
	if (at >= LEARN_ENTRIES)
		return;
	atomic_store_explicit(&l->entry[learner][at], g.v << 2 | (uint64_t)(kind + 1),
			      memory_order_relaxed);
	atomic_store_explicit(&l->n[learner], at + 1, memory_order_release);
}

/* Another process may be out of order: never past the end. */
static uint32_t noted_by(const struct learn *l, unsigned learner)
{
	uint32_t n = atomic_load_explicit(&l->n[learner], memory_order_acquire);
	return n < LEARN_ENTRIES ? n : LEARN_ENTRIES;
}

bool learn_is_through(const struct learn *l, int learner, uint64_t now_ns)
{
	uint64_t until = atomic_load_explicit(&l->until_ns[learner], memory_order_relaxed);
	return until && now_ns >= until;
}

static unsigned through(const struct learn *l, uint64_t now_ns)
{
	unsigned n = 0;
	for (int i = 0; i < LEARN_LEARNERS; i++)
		n += learn_is_through(l, i, now_ns) && noted_by(l, (unsigned)i);
	return n;
}

uint32_t learn_noted(const struct learn *l, uint64_t now_ns)
{
	uint32_t sum = through(l, now_ns) << 24;
	for (unsigned i = 0; i < LEARN_LEARNERS; i++)
		sum += noted_by(l, i);
	return sum;
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return (x > y) - (x < y);
}

/* All notes of a kind as gfn << 8 | learner, in order; returns how many, and of how many. */
static uint32_t gather(const struct learn *l, uint64_t now_ns, enum learn_kind kind, uint64_t *seen,
		       unsigned *learners)
{
	uint32_t have = 0;
	bool some = through(l, now_ns);
	*learners = 0;
	for (unsigned i = 0; i < LEARN_LEARNERS; i++) {
		if (some && !learn_is_through(l, (int)i, now_ns))
			continue;
		uint32_t before = have, n = noted_by(l, i);
		for (uint32_t at = 0; at < n; at++) {
			uint64_t e = atomic_load_explicit(&l->entry[i][at], memory_order_relaxed);
			if ((e & 3) == (uint64_t)kind + 1)
				seen[have++] = e >> 2 << 8 | i;
		}
		*learners += have > before;
	}
	qsort(seen, have, sizeof *seen, compare);
	return have;
}

unsigned learn_predict(const struct learn *l, uint64_t now_ns, enum learn_kind kind, gfn_t *out,
		       unsigned max)
{
	/* Not the program's own memory, of which each clone would have a copy. */
	size_t bytes = LEARN_LEARNERS * LEARN_ENTRIES * sizeof(uint64_t);
	uint64_t *seen =
		mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	unsigned learners, found = 0;
	if (seen == MAP_FAILED)
		return 0;
	uint32_t have = gather(l, now_ns, kind, seen, &learners);
	for (uint32_t i = 0, same; i < have && found < max; i += same) {
		unsigned who = 1;
		for (same = 1; i + same < have && seen[i + same] >> 8 == seen[i] >> 8; same++)
			who += seen[i + same] != seen[i + same - 1];
		if (who * 2 >= learners)
			out[found++] = gfn(seen[i] >> 8);
	}
	munmap(seen, bytes);
	return found;
}
