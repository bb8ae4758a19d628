/* Memory that processes share by a descriptor, of one size for ever: nobody who has it can cut it short under the others
 * (who would die of SIGBUS), make it longer, or forbid them to write. fcntl(2), F_ADD_SEALS.
 */
#ifndef IPT_SEALED_H
#define IPT_SEALED_H

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

/* A memfd of `bytes`, close-on-exec; -1 with errno. */
static inline int sealed_memfd(const char *name, uint64_t bytes)
{
	int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0)
		return -1;
	if (ftruncate(fd, (off_t)bytes) == 0 &&
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0)
		return fd;
	int error = errno;
	close(fd);
	errno = error;
	return -1;
}

#endif
