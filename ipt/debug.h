/*
 * For tests and tools.
 *
 * ipt_step_hook is the tests' way into the middle of a change: called between the steps of everything
 * that writes to the table, so that a test can kill the process at exactly the k-th. NULL outside tests.
 *
 * IPT_TSAN is 1 in builds with the thread sanitizer, which can't follow some of what we do.
 */
#ifndef IPT_DEBUG_H
#define IPT_DEBUG_H

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

extern void (*ipt_step_hook)(void);

static inline void ipt_step(void)
{
	if (__builtin_expect(ipt_step_hook != NULL, 0))
		ipt_step_hook();
}

#endif
