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

/* Map a memfd whole: NULL with errno. */
static inline void *sealed_map(int fd, uint64_t bytes)
{
	void *got = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
	return got == MAP_FAILED ? NULL : got;
}

/* The same for large ones, where no other mapping shares a page table with it: aligned to what such a page maps, and its
 * address space is as long as whole ones. `at`: NULL, or where the process has it mapped so already. Then it stays there,
 * and other threads may be using it, but its page tables go, one page for each 2 MiB that was touched; a failure leaves all
 * as it was, as mmap checks what may fail before it lets go of the old mapping. */
#define SEALED_APART UINT64_C(0x200000)
static inline uint64_t sealed_apart_bytes(uint64_t bytes)
{
	return (bytes + SEALED_APART - 1) & ~(SEALED_APART - 1);
}

static inline void *sealed_map_apart(int fd, uint64_t bytes, void *at)
{
	uint64_t all = sealed_apart_bytes(bytes);
	uint8_t *room = NULL, *to = at;
	if (!at) {
		room = mmap(NULL, all + SEALED_APART, PROT_NONE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (room == MAP_FAILED)
			return NULL;
		to = (uint8_t *)(uintptr_t)sealed_apart_bytes((uintptr_t)room);
	}
	void *got = mmap(to, all, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE | MAP_FIXED,
			 fd, 0);
	int error = errno;
	if (room && got == MAP_FAILED)
		munmap(room, all + SEALED_APART);
	else if (room && to > room)
		munmap(room, (size_t)(to - room));
	if (room && got != MAP_FAILED && to < room + SEALED_APART)
		munmap(to + all, (size_t)(room + SEALED_APART - to));
	errno = error;
	return got == MAP_FAILED ? NULL : got;
}

static inline void sealed_unmap_apart(void *at, uint64_t bytes)
{
	munmap(at, sealed_apart_bytes(bytes));
}

/* Bytes of a memfd that have host memory behind them now; 0 where there is none (-1). */
static inline uint64_t sealed_populated_bytes(int fd)
{
	struct stat st;
	return fd < 0 || fstat(fd, &st) < 0 ? 0 : (uint64_t)st.st_blocks * 512;
}

#endif
