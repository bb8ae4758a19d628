#include "vmm/shared.h"
#include "ipt/sealed.h"
#include <errno.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static void *map(int fd, size_t bytes)
{
	void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
	return at == MAP_FAILED ? NULL : at;
}

void *shared_create(const char *name, size_t bytes, int *fd)
{
	*fd = sealed_memfd(name, bytes);
	if (*fd < 0)
		return NULL;
	void *at = map(*fd, bytes);
	if (!at) {
		int error = errno;
		close(*fd);
		*fd = -1;
		errno = error;
	}
	return at;
}

void *shared_attach(int fd, size_t bytes)
{
	struct stat st;
	if (fstat(fd, &st) < 0)
		return NULL;
	if (st.st_size < (off_t)bytes) {
		errno = EPROTO;
		return NULL;
	}
	return map(fd, bytes);
}
