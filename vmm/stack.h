/*
 * What a thread's stack holds below its frames now: pages that it once needed, as for its VM's start or birth, and that
 * stay its process's own for as long as it lives.
 */
#ifndef VMM_STACK_H
#define VMM_STACK_H

#include <stddef.h>

/* Give back whole pages of the caller's stack that lie below its frame, up to `most` bytes of them, which the stack must
 * have room for or end before (a main thread's, which grows). They read as zeroes when they are used again. */
void stack_trim(size_t most);

#endif
