/* Memory that processes share by a descriptor, of one size for ever: nobody who has it can cut it short under the others
 * (who would die of SIGBUS), make it longer, or forbid them to write. fcntl(2), F_ADD_SEALS.
 */
#ifndef IPT_SEALED_H
#define IPT_SEALED_H

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/stat.h>
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

/* Bytes of a memfd that have host memory behind them now; 0 where there is none (-1). */
static inline uint64_t sealed_populated_bytes(int fd)
{
	struct stat st;
	return fd < 0 || fstat(fd, &st) < 0 ? 0 : (uint64_t)st.st_blocks * 512;
}

#endif
