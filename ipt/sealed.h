/* Memory that processes share by a descriptor, of one size for ever: nobody who has it can cut it short under the others
 * (who would die of SIGBUS), make it longer, or forbid them to write. fcntl(2), F_ADD_SEALS.
 */
#ifndef IPT_SEALED_H
#define IPT_SEALED_H

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
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

/* Map a memfd whole: NULL with errno. `at`: NULL, or where the process has it mapped already. Then it stays there, and other
 * threads may be using it, but its page tables go, one page for each 2 MiB that was touched; a failure leaves all as it
 * was, as mmap checks what may fail before it lets go of the old mapping. */
static inline void *sealed_map(int fd, uint64_t bytes, void *at)
{
	void *got = mmap(at, bytes, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_NORESERVE | (at ? MAP_FIXED : 0), fd, 0);
	return got == MAP_FAILED ? NULL : got;
}

/* Bytes of a memfd that have host memory behind them now; 0 where there is none (-1). */
static inline uint64_t sealed_populated_bytes(int fd)
{
	struct stat st;
	return fd < 0 || fstat(fd, &st) < 0 ? 0 : (uint64_t)st.st_blocks * 512;
}

#endif
