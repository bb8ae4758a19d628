#include "vmm/filelock.h"
#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#define LOOK_MS 10

int filelock_take(int fd, int how, unsigned ms, bool (*in_vain)(void))
{
	for (unsigned waited = 0; flock(fd, how | LOCK_NB) < 0; waited += LOOK_MS) {
		if (errno != EWOULDBLOCK)
			return -errno;
		if (waited >= ms || (in_vain && in_vain()))
			return -EWOULDBLOCK;
		usleep(LOOK_MS * 1000);
	}
	return 0;
}

void filelock_await(const char *path, int how, unsigned ms)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return;
	filelock_take(fd, how, ms, NULL);
	close(fd);
}

void filelock_close(int fd)
{
	flock(fd, LOCK_UN);
	close(fd);
}
