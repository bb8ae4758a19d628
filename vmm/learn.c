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

int learn_join(struct learn *l)
{
	uint32_t me = atomic_load_explicit(&l->learners, memory_order_relaxed);
	do
		if (me >= LEARN_LEARNERS)
			return -1;
	while (!atomic_compare_exchange_weak_explicit(&l->learners, &me, me + 1,
						      memory_order_relaxed, memory_order_relaxed));
	return (int)me;
}

void learn_note(struct learn *l, int learner, gfn_t g)
{
	if (atomic_load_explicit(&l->n, memory_order_relaxed) >= LEARN_ENTRIES)
		return;
	uint32_t at = atomic_fetch_add_explicit(&l->n, 1, memory_order_relaxed);
	if (at < LEARN_ENTRIES)
		atomic_store_explicit(&l->entry[at], g.v << 8 | (uint64_t)(learner + 1),
				      memory_order_relaxed);
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return (x > y) - (x < y);
}

unsigned learn_predict(const struct learn *l, gfn_t *out, unsigned max)
{
	/* Not the program's own memory, of which each clone would have a copy. */
	uint64_t *seen = mmap(NULL, LEARN_ENTRIES * sizeof *seen, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint32_t n = atomic_load_explicit(&l->n, memory_order_relaxed), have = 0;
	unsigned noted = 0, learners = 0, found = 0;
	if (seen == MAP_FAILED)
		return 0;
	for (uint32_t i = 0; i < n && i < LEARN_ENTRIES; i++) {
		uint64_t e = atomic_load_explicit(&l->entry[i], memory_order_relaxed);
		if (!e)
			continue;
		noted |= 1u << (e & 31);
		seen[have++] = e;
	}
	for (; noted; noted &= noted - 1)
		learners++;
	qsort(seen, have, sizeof *seen, compare);
	for (uint32_t i = 0, same; i < have && found < max; i += same) {
		for (same = 1; i + same < have && seen[i + same] >> 8 == seen[i] >> 8; same++)
			;
		if (same * 2 >= learners)
			out[found++] = gfn(seen[i] >> 8);
	}
	munmap(seen, LEARN_ENTRIES * sizeof *seen);
	return found;
}
