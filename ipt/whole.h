/* Reads and writes of a file that are done whole, or fail: what the kernel does in parts, or puts off for a signal, goes on.
 * Each call of the kernel's is a hit of the caller's failpoint. 0 or -errno of pread(2), pwrite(2). */
#ifndef IPT_WHOLE_H
#define IPT_WHOLE_H

#include "ipt/fail.h"
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

/* -ENXIO: the file ends before. */
static inline int whole_read(enum fail_id point, int fd, void *to, size_t bytes, uint64_t at)
{
	for (size_t done = 0; done < bytes;) {
		int rc = -fail_point(point);
		ssize_t n = rc ? 0 : pread(fd, (char *)to + done, bytes - done, (off_t)(at + done));
		if (!rc && n <= 0)
			rc = n ? -errno : -ENXIO;
		if (rc && rc != -EINTR)
			return rc;
		done += n > 0 ? (size_t)n : 0;
	}
	return 0;
}

static inline int whole_write(enum fail_id point, int fd, const void *from, size_t bytes,
			      uint64_t at)
{
	for (size_t done = 0; done < bytes;) {
		int rc = -fail_point(point);
		ssize_t n = rc ? 0
			       : pwrite(fd, (const char *)from + done, bytes - done,
					(off_t)(at + done));
		if (!rc && n <= 0)
			rc = n ? -errno : -EIO;
		if (rc && rc != -EINTR)
			return rc;
		done += n > 0 ? (size_t)n : 0;
	}
	return 0;
}

#endif
