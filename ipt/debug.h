/*
 * The tests' way into the middle of a change: called between the steps of everything that writes to
 * the table, so that a test can kill the process at exactly the k-th. NULL outside tests.
 */
#ifndef IPT_DEBUG_H
#define IPT_DEBUG_H

#include <stddef.h>

extern void (*ipt_step_hook)(void);

static inline void ipt_step(void)
{
	if (__builtin_expect(ipt_step_hook != NULL, 0))
		ipt_step_hook();
}

#endif
