/*
 * What a template's clones touch at first. The first few note it in memory that they share with the template: each page
 * that they write to, and each 2 MiB in which they read what the template has. Those after them get these pages copied,
 * and what is in those 2 MiB shown, in one go before they run, instead of by a fault each.
 */
#ifndef VMM_LEARN_H
#define VMM_LEARN_H

#include "ipt/addr.h"
#include <stdatomic.h>
#include <stdbool.h>

#define LEARN_LEARNERS 4
#define LEARN_ENTRIES  512 /* of each: it notes what it touches first */
/* How long one notes. What it writes to later is mostly its own task's; but where each fault takes milliseconds (nested or
 * emulated hosts, many clones at once) it takes seconds until a guest's kernel has been once round. */
#define LEARN_MS 10000

enum learn_kind { LEARN_WROTE, LEARN_READ };

struct learn {
	_Atomic uint32_t learners;                 /* that have joined */
	_Atomic uint64_t until_ns[LEARN_LEARNERS]; /* CLOCK_MONOTONIC; 0: not known yet */
	_Atomic uint32_t n[LEARN_LEARNERS];
	_Atomic uint64_t
		entry[LEARN_LEARNERS][LEARN_ENTRIES]; /* gfn << 2 | kind + 1; 0: not written yet */
};

/* Memory for it, that children share. NULL if there is none. */
struct learn *learn_create(void);
/* Become a learner, until now + LEARN_MS: its number, or -1 if there are enough. */
int learn_join(struct learn *l, uint64_t now_ns);
/* Has it noted all that it will? */
bool learn_is_through(const struct learn *l, int learner, uint64_t now_ns);
/* A learner has written to a page, or read in the 2 MiB that begin with it, that it shared; only its own process notes for
 * it. What has no room is not noted. */
void learn_note(struct learn *l, int learner, enum learn_kind kind, gfn_t g);
/* What to predict from changes with this: how much was noted, and by how many who are through. */
uint32_t learn_noted(const struct learn *l, uint64_t now_ns);
/* What at least half of the learners noted of this kind, ascending; at most max. Those who are through count, or, as long as
 * there are none, those who noted anything. */
unsigned learn_predict(const struct learn *l, uint64_t now_ns, enum learn_kind kind, gfn_t *out,
		       unsigned max);

#endif
