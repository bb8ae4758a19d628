/*
 * For tests and tools.
 *
 * ipt_step marks the middle of a change: between the steps of everything that writes to the table. Tests have their
 * hook called there (ipt_step_do), so that one can kill the process at exactly the k-th; outside tests it is the failpoint
 * ipt.step.
 *
 * IPT_TSAN is 1 in builds with the thread sanitizer, which can't follow some of what we do.
 */
#ifndef IPT_DEBUG_H
#define IPT_DEBUG_H

#include "ipt/fail.h"
#include <stddef.h>

#if defined(__SANITIZE_THREAD__)
#define IPT_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define IPT_TSAN 1
#endif
#endif
#ifndef IPT_TSAN
#define IPT_TSAN 0
#endif

/* The hook of this process; NULL: none. */
void ipt_step_do(void (*hook)(void));
/* Where the failpoint is set, or there is a hook. */
void ipt_step_slowly(void);

static inline void ipt_step(void)
{
	if (fail_armed(FAIL_IPT_STEP))
		ipt_step_slowly();
}

#endif
