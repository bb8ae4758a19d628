/* Copying to and from guest memory, over map and unmap. See gmem.h. */
#include "virtio/gmem.h"
#include <endian.h>
#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#define STEP_PAGES 16 /* a step's end is on a page boundary, so it has at most this many pieces */

/* A ring field of guest memory, which a vCPU reads and writes at the same time. */
typedef _Atomic uint16_t ring16_t;
_Static_assert(sizeof(ring16_t) == 2, "an atomic 16-bit field is the field alone");

static int copy(struct gmem *m, gpa_t at, uint8_t *host, uint64_t len, bool write)
{
	while (len) {
		struct iovec iov[STEP_PAGES];
		uint64_t n = STEP_PAGES * PAGE_SIZE - (at.v & PAGE_MASK);
		if (n > len)
			n = len;
		int pieces = gmem_map(m, at, n, write, iov, STEP_PAGES);
		if (pieces < 0)
			return pieces;
		for (int i = 0; i < pieces; i++) {
			if (write)
				memcpy(iov[i].iov_base, host, iov[i].iov_len);
			else
				memcpy(host, iov[i].iov_base, iov[i].iov_len);
			host += iov[i].iov_len;
		}
		gmem_unmap(m, iov, pieces);
		at.v += n; /* can't wrap within memory: map refuses a range that does */
		len -= n;
	}
	return 0;
}

int gmem_read(struct gmem *m, gpa_t from, void *to, uint64_t len)
{
	return copy(m, from, to, len, false);
}

int gmem_write(struct gmem *m, gpa_t to, const void *from, uint64_t len)
{
	return copy(m, to, (uint8_t *)from, len, true);
}

int gmem_load(struct gmem *m, gpa_t to, const void *from, uint64_t len)
{
	return m->ops->load ? m->ops->load(m, to, from, len) : gmem_write(m, to, from, len);
}

int gmem_load16_acquire(struct gmem *m, gpa_t at, uint16_t *out)
{
	struct iovec iov;
	if (at.v & 1)
		return -EINVAL;
	int r = gmem_map(m, at, 2, false, &iov, 1);
	if (r < 0)
		return r;
	/* Acquire: what the driver wrote before it moved an index is read after the index. */
	*out = le16toh(atomic_load_explicit((ring16_t *)iov.iov_base, memory_order_acquire));
	gmem_unmap(m, &iov, 1);
	return 0;
}

int gmem_store16_release(struct gmem *m, gpa_t at, uint16_t v)
{
	struct iovec iov;
	if (at.v & 1)
		return -EINVAL;
	int r = gmem_map(m, at, 2, true, &iov, 1);
	if (r < 0)
		return r;
	/* Release: the driver that sees this index sees what was written before it. */
	atomic_store_explicit((ring16_t *)iov.iov_base, htole16(v), memory_order_release);
	gmem_unmap(m, &iov, 1);
	return 0;
}
