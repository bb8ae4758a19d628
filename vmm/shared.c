#include "vmm/shared.h"
#include "ipt/sealed.h"
#include <errno.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

void *shared_create(const char *name, size_t bytes, int *fd)
{
	*fd = sealed_memfd(name, bytes);
	if (*fd < 0)
		return NULL;
	void *at = sealed_map(*fd, bytes);
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
	return sealed_map(fd, bytes);
}
