/*
 * Frames and slots that one VM gives another which may be working meanwhile: what a live VM counts as
 * its own must be right although the giver may die at any step. So what is being given is written down
 * first, in the header, and whoever mends the registry counts it.
 */
#ifndef IPT_MOVE_H
#define IPT_MOVE_H

#include "ipt/table.h"

/* Between these two, with the registry locked, the words of n frames or slots from f on, which are
 * `from`'s, may become those of `to`, in that state, once each. */
void move_begin(struct ipt *t, uint32_t from, uint32_t to, uint32_t f, uint32_t n,
		enum ipt_state state);
/* Counts for `to` what went there, and returns how many that were. */
uint32_t move_end(struct ipt *t);
/* The giver died, or didn't. */
void move_mend(struct ipt *t);

#endif
