/*
 * What a template's clones write to as soon as they run. The first few note it, page by page, in memory that they
 * share with the template; those after them get these pages copied in one go before they run, instead of by a
 * fault each.
 */
#ifndef VMM_LEARN_H
#define VMM_LEARN_H

#include "ipt/addr.h"
#include <stdatomic.h>

#define LEARN_LEARNERS 4
#define LEARN_ENTRIES  2048 /* of all learners */
#define LEARN_MS       50   /* how long one notes what it writes to */

struct learn {
	_Atomic uint32_t learners;             /* that have joined */
	_Atomic uint32_t n;                    /* entries given out; may run past the end */
	_Atomic uint64_t entry[LEARN_ENTRIES]; /* gfn << 8 | learner + 1; 0: not written yet */
};

/* Memory for it, that children share. NULL if there is none. */
struct learn *learn_create(void);
/* Become a learner: its number, or -1 if there are enough. */
int learn_join(struct learn *l);
/* A learner has written to a page that it shared. Once a page and learner. */
void learn_note(struct learn *l, int learner, gfn_t g);
/* The pages that at least half of those who noted anything wrote to, ascending; at most max. */
unsigned learn_predict(const struct learn *l, gfn_t *out, unsigned max);

#endif
