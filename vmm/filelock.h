/* Locks of whole files (flock(2)) that whoever holds them is about to let go: what a process had open its kernel may close a
 * little after its end, and what it had forked has it for a moment. They belong to open file descriptions. */
#ifndef VMM_FILELOCK_H
#define VMM_FILELOCK_H

#include <stdbool.h>

/* Take it (LOCK_SH or LOCK_EX), waiting for `ms` milliseconds at most, in the calling thread, and no longer than `in_vain`
 * (NULL: nobody asks) says no. 0; -EWOULDBLOCK: somebody has it; another -errno of flock. */
int filelock_take(int fd, int how, unsigned ms, bool (*in_vain)(void));
/* Wait for as long until somebody could have the lock of the file of that name, and don't take it: before a request to who
 * doesn't wait. Whatever else is wrong with the file is for them to say. */
void filelock_await(const char *path, int how, unsigned ms);
/* Let it go, and close. The lock is gone at once, where closing would leave it until the last copy of the descriptor is
 * closed: those that a fork has made, and those of io_uring's requests, which are put away some milliseconds after their
 * process. So only when all who worked with the file have ended. */
void filelock_close(int fd);

#endif
