/* Guest memory for devices and loaders: (VM, gfn) -> table -> frame -> pool address, pinned. */
#include "vmm/memory.h"
#include <errno.h>

static struct memory *memory_of(struct gmem *g)
{
	return (struct memory *)((char *)g - offsetof(struct memory, gmem));
}

/* Pin the frame behind g, giving it one first if it has none. */
static int pin_page(struct memory *m, gfn_t g, frame_t *f)
{
	int rc;
	/* A page that is void gets a frame; it can't be taken away again before we pin it more than
	 * a few times, but the loop bounds it all the same. */
	for (int tries = 0; tries < 8; tries++) {
		rc = ipt_pin(m->table, m->vm, g, f);
		if (rc != -ENOENT)
			return rc;
		rc = memory_populate(m, g);
		if (rc)
			return rc;
		atomic_fetch_add_explicit(&m->mailbox->faults[FAULT_DEVICE], 1,
					  memory_order_relaxed);
	}
	return rc;
}

static void unmap(struct gmem *gm, const struct iovec *iov, int n)
{
	struct memory *m = memory_of(gm);
	for (int i = 0; i < n; i++) {
		uintptr_t at = (uintptr_t)iov[i].iov_base, end = at + iov[i].iov_len;
		for (at &= ~PAGE_MASK; at < end; at += PAGE_SIZE)
			ipt_unpin(m->table, pool_frame(m->pool, (void *)at));
	}
}

static int map(struct gmem *gm, gpa_t a, uint64_t len, bool write, struct iovec *iov, int max)
{
	struct memory *m = memory_of(gm);
	(void)write; /* every mapped frame is private, so far */
	if (!len || !machine_is_ram(m->machine, a, len))
		return -EFAULT;
	int n = 0, rc = 0;
	while (len) {
		uint64_t in_page = a.v & PAGE_MASK;
		uint64_t piece = PAGE_SIZE - in_page < len ? PAGE_SIZE - in_page : len;
		frame_t f;
		rc = pin_page(m, gpa_gfn(a), &f);
		if (rc)
			break;
		uint8_t *at = (uint8_t *)pool_at(m->pool, f) + in_page;
		if (n && (uint8_t *)iov[n - 1].iov_base + iov[n - 1].iov_len == at) {
			iov[n - 1].iov_len += piece;
		} else if (n < max) {
			iov[n++] = (struct iovec){at, piece};
		} else {
			ipt_unpin(m->table, f);
			rc = -ENOBUFS;
			break;
		}
		a.v += piece;
		len -= piece;
	}
	if (rc) {
		unmap(gm, iov, n);
		return rc;
	}
	return n;
}

const struct gmem_ops memory_gmem_ops = {.map = map, .unmap = unmap};
