/* Guest memory for devices and loaders: (VM, gfn) -> table -> frame -> pool address, pinned. */
#include "ipt/whole.h"
#include "vmm/clock.h"
#include "vmm/container.h"
#include "vmm/memory.h"
#include <errno.h>
#include <string.h>

static struct memory *memory_of(struct gmem *g)
{
	return container(struct memory, gmem, g);
}

/* Is the frame, which is pinned, this VM's alone? */
static bool is_own(const struct memory *m, frame_t f)
{
	struct ipt_owner o;
	return ipt_owner(m->table, f, &o) == 0 && o.state == IPT_PRIVATE && o.vm.v == m->vm.v;
}

/* Pin the frame behind g, giving it one first if it has none, or one of its own if it is to be written to. */
static int pin_page(struct memory *m, gfn_t g, bool write, frame_t *f)
{
	/* What is given can't be taken away again before we pin it more than a few times, but the loop bounds it
	 * all the same. */
	for (int tries = 0; tries < 8; tries++) {
		pthread_mutex_lock(&m->lock);
		int rc = ipt_pin(m->table, m->vm, g, f);
		pthread_mutex_unlock(&m->lock);
		if (rc == 0 && (!write || is_own(m, *f) || dax_note_device(m, g)))
			return 0;
		if (rc == 0)
			ipt_unpin(m->table, *f);
		else if (rc != -ENOENT)
			return rc;
		rc = write ? memory_own(m, g) : memory_populate(m, g);
		if (rc)
			return rc;
		atomic_fetch_add_explicit(&m->mailbox->faults[FAULT_DEVICE], 1,
					  memory_order_relaxed);
	}
	return -EAGAIN;
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

/*
 * A page couldn't be brought in for a device, by no fault of the guest's: the host has no memory or mappings left, the
 * page's bytes couldn't be read. Such things pass, so the device of a VM that runs waits as if the pool were empty
 * (-EAGAIN), and tries again when the host says so, some 100 ms later. If that goes on for seconds, or the bytes are
 * damaged, the VM ends, as it does when a vCPU meets such an error.
 */
#define DEVICE_ERRORS_MOST 50

static int device_error(struct memory *m, int rc)
{
	uint64_t now = clock_ns(),
		 last = atomic_exchange_explicit(&m->device_error_ns, now, memory_order_relaxed);
	if (!m->on_device_error || rc == -EAGAIN || rc == -EFAULT || rc == -EINVAL ||
	    rc == -ENOBUFS || rc == -EOVERFLOW)
		return rc;
	if (now - last > UINT64_C(1000000000))
		atomic_store_explicit(&m->device_errors, 0, memory_order_relaxed);
	unsigned errors = atomic_fetch_add_explicit(&m->device_errors, 1, memory_order_relaxed);
	bool final = errors >= DEVICE_ERRORS_MOST || rc == -EBADMSG;
	if (!final)
		atomic_store_explicit(&m->mailbox->hungry, 1, memory_order_seq_cst);
	m->on_device_error(m, rc, final);
	return final ? rc : -EAGAIN;
}

static int map(struct gmem *gm, gpa_t a, uint64_t len, bool write, struct iovec *iov, int max)
{
	struct memory *m = memory_of(gm);
	if (!len || !machine_bank_of(m->machine, a, len))
		return -EFAULT;
	int n = 0, rc = 0;
	while (len) {
		uint64_t in_page = a.v & PAGE_MASK;
		uint64_t piece = PAGE_SIZE - in_page < len ? PAGE_SIZE - in_page : len;
		frame_t f;
		rc = pin_page(m, gpa_gfn(a), write, &f);
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
		return device_error(m, rc);
	}
	return n;
}

static bool all_zero(const uint8_t *page)
{
	return !page[0] && !memcmp(page, page + 1, PAGE_SIZE - 1);
}

/* Write to the pool by its descriptor: the kernel fills whole pages as it makes them, which costs neither
 * a fault a page nor zeroing it first. */
static int write_pinned(struct memory *m, gpa_t to, const uint8_t *from, uint64_t len)
{
	enum { PIECES = 64 };
	while (len) {
		struct iovec iov[PIECES];
		uint64_t n = PIECES * PAGE_SIZE - (to.v & PAGE_MASK);
		if (n > len)
			n = len;
		int pieces = map(&m->gmem, to, n, true, iov, PIECES), rc = 0;
		if (pieces < 0)
			return pieces;
		for (int i = 0; i < pieces && !rc; i++) {
			uint64_t at = (uint64_t)((uint8_t *)iov[i].iov_base - m->pool->base);
			rc = whole_write(FAIL_POOL_WRITE, m->pool->fd, from, iov[i].iov_len, at);
			from += iov[i].iov_len;
		}
		unmap(&m->gmem, iov, pieces);
		if (rc)
			return rc;
		to.v += n;
		len -= n;
	}
	return 0;
}

static int load(struct gmem *gm, gpa_t to, const void *from, uint64_t len)
{
	struct memory *m = memory_of(gm);
	const uint8_t *bytes = from;
	if (!len || !machine_is_ram(m->machine, to, len))
		return -EFAULT;
	uint64_t held = 0; /* bytes before `at` that are still to be written */
	for (uint64_t at = 0, n; at < len; at += n) {
		n = PAGE_SIZE - ((to.v + at) & PAGE_MASK);
		if (n > len - at)
			n = len - at;
		struct ipt_place p;
		bool skip = n == PAGE_SIZE && all_zero(bytes + at) &&
			    ipt_place(m->table, m->vm, gpa_gfn(gpa(to.v + at)), 1, &p) &&
			    p.kind == IPT_VOID;
		if (!skip)
			held += n;
		if (held && (skip || at + n == len)) {
			uint64_t start = at + (skip ? 0 : n) - held;
			int rc = write_pinned(m, gpa(to.v + start), bytes + start, held);
			if (rc)
				return rc;
			held = 0;
		}
	}
	return 0;
}

const struct gmem_ops memory_gmem_ops = {.map = map, .unmap = unmap, .load = load};
