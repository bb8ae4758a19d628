/*
 * Guest memory as devices see it: the only way from virtio/ to a guest's bytes.
 *
 * A device never touches a VM's window. It asks for [gpa, gpa + length) and gets pieces of the
 * pool, found by (VM, gfn) -> table -> frame, each pinned until it is put back, so that the frame
 * can be neither freed nor replaced while I/O is in flight. Lengths come from the guest: everything
 * is checked against the VM's memory, with length, here.
 *
 * Guest memory that the guest never touched has no frame yet; asking for it gives it one.
 */
#ifndef VIRTIO_GMEM_H
#define VIRTIO_GMEM_H

#include "ipt/addr.h"
#include <stddef.h>
#include <sys/uio.h>

struct gmem; /* one VM's memory; made by vmm/gmem.c, or by a test's stand-in */

struct gmem_ops {
	/* Find, populate and pin the pages of [gpa, gpa + len) and append them to iov[] as pieces
	 * that are contiguous in the pool. Returns the number of pieces (1..max), or -EFAULT if any
	 * byte lies outside the VM's memory (or gpa + len wraps, or len is 0), -ENOBUFS if more
	 * than max pieces are needed, -EAGAIN if the pool has no frame now (try again when the VM's
	 * loop says so), -EOVERFLOW if a page is pinned too often at once. Nothing stays pinned on
	 * error.
	 *
	 * Devices call it on the loop's thread with their lock held, and a vCPU may be waiting for
	 * that lock: it may not wait for a vCPU, nor call into a device. */
	int (*map)(struct gmem *m, gpa_t gpa, uint64_t len, bool write, struct iovec *iov, int max);
	/* Unpin what map gave: the same pieces, in any number of calls and any order. Loop's thread,
	 * as map; or the thread that destroys a device when the loop has stopped. */
	void (*unmap)(struct gmem *m, const struct iovec *iov, int n);
	/* Copy an image in. May be NULL: then gmem_load copies by map. */
	int (*load)(struct gmem *m, gpa_t to, const void *from, uint64_t len);
};

struct gmem {
	const struct gmem_ops *ops;
	uint64_t bytes; /* the largest valid gpa + 1, for messages only */
};

static inline int gmem_map(struct gmem *m, gpa_t a, uint64_t len, bool write, struct iovec *iov,
			   int max)
{
	return m->ops->map(m, a, len, write, iov, max);
}

static inline void gmem_unmap(struct gmem *m, const struct iovec *iov, int n)
{
	m->ops->unmap(m, iov, n);
}

/* Copy out of / into guest memory. 0 or map's -errno (then a part may have been copied);
 * a len of 0 is 0. Any thread that map allows. */
int gmem_read(struct gmem *m, gpa_t from, void *to, uint64_t len);
int gmem_write(struct gmem *m, gpa_t to, const void *from, uint64_t len);
/* The same as gmem_write in its result, for images of many pages: the host need not map the pages to fill
 * them, and zeroes over memory that was never touched leave it untouched. */
int gmem_load(struct gmem *m, gpa_t to, const void *from, uint64_t len);

/* Little-endian 16-bit ring fields, with the ordering that virtqueues need: the load is an acquire,
 * the store a release. gpa must be 2-byte aligned: -EINVAL. */
int gmem_load16_acquire(struct gmem *m, gpa_t at, uint16_t *out);
int gmem_store16_release(struct gmem *m, gpa_t at, uint16_t v);

#endif
