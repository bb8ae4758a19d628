#include "vmm/pool.h"
#include "ipt/fail.h"
#include "ipt/sealed.h"
#include "vmm/error.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int pool_create(struct pool *p, uint32_t frames, char *error)
{
	*p = (struct pool){.fd = -1, .frames = frames};
	p->fd = fail_call(POOL_CREATE,
			  sealed_memfd("invisor-pool", (uint64_t)frames << PAGE_SHIFT));
	return p->fd < 0 ? errorf(error, -errno, "pool: memfd_create: %s", strerror(errno)) : 0;
}

int pool_attach(struct pool *p, int fd, uint32_t frames)
{
	struct stat st;
	*p = (struct pool){.fd = fd, .frames = frames};
	if (fstat(fd, &st) < 0)
		return -errno;
	return st.st_size == (off_t)frames << PAGE_SHIFT ? 0 : -EPROTO;
}

int pool_map(struct pool *p, char *error)
{
	uint64_t bytes = (uint64_t)p->frames << PAGE_SHIFT;
	void *base = fail_null(POOL_MAP, sealed_map_apart(p->fd, bytes, NULL));
	if (!base)
		return errorf(error, -errno, "pool: no address space for %" PRIu64 " MiB: %s",
			      bytes / MiB, strerror(errno));
	p->base = base;
	return 0;
}

int pool_map_alone(struct pool *p, char *error)
{
	if (p->base)
		return 0;
	int rc = pool_map(p, error);
	if (rc || madvise(p->base, sealed_apart_bytes((uint64_t)p->frames << PAGE_SHIFT),
			  MADV_DONTFORK) == 0)
		return rc;
	rc = errorf(error, -errno, "pool: madvise: %s", strerror(errno));
	sealed_unmap_apart(p->base, (uint64_t)p->frames << PAGE_SHIFT);
	p->base = NULL;
	return rc;
}

void pool_destroy(struct pool *p)
{
	if (p->base)
		sealed_unmap_apart(p->base, (uint64_t)p->frames << PAGE_SHIFT);
	if (p->fd >= 0)
		close(p->fd);
	*p = (struct pool){.fd = -1};
}

int pool_clean(void *ctx, frame_t first, uint32_t count)
{
	const struct pool *p = ctx;
	int rc;
	do {
		rc = fail_call(POOL_CLEAN,
			       fallocate(p->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
					 (off_t)first.v << PAGE_SHIFT, (off_t)count << PAGE_SHIFT));
	} while (rc < 0 && errno == EINTR);
	return rc < 0 ? -errno : 0;
}

int pool_fill(const struct pool *p, frame_t first, uint32_t count)
{
	int rc;
	do {
		rc = fail_call(POOL_FILL,
			       fallocate(p->fd, FALLOC_FL_KEEP_SIZE, (off_t)first.v << PAGE_SHIFT,
					 (off_t)count << PAGE_SHIFT));
	} while (rc < 0 && errno == EINTR);
	return rc < 0 ? -errno : 0;
}

int pool_rest(const struct pool *p)
{
	return sealed_map_apart(p->fd, (uint64_t)p->frames << PAGE_SHIFT, p->base) ? 0 : -errno;
}

bool pool_has(const struct pool *p, frame_t f)
{
	off_t at = (off_t)f.v << PAGE_SHIFT;
	return lseek(p->fd, at, SEEK_DATA) == at;
}

uint64_t pool_populated_bytes(const struct pool *p)
{
	return sealed_populated_bytes(p->fd);
}
