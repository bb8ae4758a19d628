/* Locks of whole files (flock(2)) that whoever holds them is about to let go: what a process had open its kernel may close a
 * little after its end, and what it had forked has it for a moment. */
#ifndef VMM_FILELOCK_H
#define VMM_FILELOCK_H

#include <stdbool.h>

/* Take it (LOCK_SH or LOCK_EX), waiting for `ms` milliseconds at most, in the calling thread, and no longer than `in_vain`
 * (NULL: nobody asks) says no. 0; -EWOULDBLOCK: somebody has it; another -errno of flock. */
int filelock_take(int fd, int how, unsigned ms, bool (*in_vain)(void));

#endif
