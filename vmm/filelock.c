#include "vmm/filelock.h"
#include <errno.h>
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
