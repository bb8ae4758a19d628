/*
 * Memory that processes share by a descriptor, so that it outlives whoever made it: a memfd, mapped whole.
 */
#ifndef VMM_SHARED_H
#define VMM_SHARED_H

#include <stddef.h>

/* Make `bytes` of zeroes and map them; memory comes as they are touched. `name` is for /proc. NULL with errno. */
void *shared_create(const char *name, size_t bytes, int *fd);
/* Map what fd holds: NULL with errno; EPROTO if it is not at least `bytes`. The descriptor stays the caller's. */
void *shared_attach(int fd, size_t bytes);

#endif
