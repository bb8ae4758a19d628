/*
 * Split virtqueues (virtio 1.2 section 2.7), the device's side. Whatever the driver writes into the
 * rings, the work for one chain is bounded by VIRTQ_TABLE_MAX + q->num descriptors, and everything
 * is read once, then checked, then used.
 *
 * In guest memory, all little-endian:
 *   descriptor table  num * { le64 addr, le32 len, le16 flags, le16 next }
 *   available ring    le16 flags, le16 idx, le16 ring[num], le16 used_event
 *   used ring         le16 flags, le16 idx, { le32 id, le32 len } ring[num], le16 avail_event
 */
#include "virtio/device.h"
#include <endian.h>
#include <errno.h>
#include <linux/virtio_ring.h>
#include <stdlib.h>
#include <string.h>

#define DESC_BYTES 16u
#define USED_BYTES 8u

struct piece_of_chain {
	uint64_t addr;
	uint32_t len;
	bool write;
};

/* Order every earlier write before every later read, which neither acquire nor release does. */
static void full_barrier(void)
{
#ifdef __SANITIZE_THREAD__ /* gcc's knows no fences and says so with a warning */
	static atomic_int any;
	atomic_fetch_add_explicit(&any, 0, memory_order_seq_cst);
#else
	atomic_thread_fence(memory_order_seq_cst);
#endif
}

static gpa_t avail_at(const struct virtq *q, uint64_t offset)
{
	return gpa(q->avail + offset);
}

static gpa_t used_at(const struct virtq *q, uint64_t offset)
{
	return gpa(q->used + offset);
}

static gpa_t used_event_at(const struct virtq *q)
{
	return avail_at(q, 4 + 2u * q->num);
}

static gpa_t avail_event_at(const struct virtq *q)
{
	return used_at(q, 4 + USED_BYTES * q->num);
}

static bool fits(uint64_t at, uint64_t bytes, uint64_t align)
{
	return !(at & (align - 1)) && at + bytes >= at;
}

const char *virtq_start(struct virtq *q)
{
	uint64_t n = q->num;
	if (!n)
		return "its size is not a power of two up to the maximum";
	/* Sizes and alignments of section 2.7. That it is memory is checked at each use. */
	if (!fits(q->desc, DESC_BYTES * n, 16) || !fits(q->avail, 6 + 2 * n, 2) ||
	    !fits(q->used, 6 + USED_BYTES * n, 4))
		return "a ring's address is misaligned or wraps";
	q->avail_next = q->avail_seen = q->used_next = q->used_told = 0;
	q->told_valid = false;
	q->ready = true;
	return NULL;
}

void virtq_reset(struct virtq *q)
{
	while (q->unsent) {
		struct virtq_chain *c = q->unsent;
		q->unsent = c->next;
		free(c);
	}
	q->unsent_end = &q->unsent;
	q->ready = false;
	q->num = q->dev->queue_max;
	q->desc = q->avail = q->used = 0;
	q->flight = 0;
}

/* A ring or buffer couldn't be reached. */
static void trouble(struct virtq *q, int error, const char *what)
{
	/* -ENOMEM is ours, not the guest's fault; like a lack of frames it passes. */
	if (error == -EAGAIN || error == -ENOMEM)
		q->dev->stalled = true;
	else /* -EOVERFLOW: pins are counted in 16 bits */
		virtio_fail(q->dev, q, error == -EOVERFLOW ? "a page in flight too often" : what);
}

/* ---- taking chains ------------------------------------------------------------------------ */

static struct piece_of_chain decode(const uint8_t *raw, uint16_t *flags, uint16_t *next)
{
	struct {
		uint64_t addr;
		uint32_t len;
		uint16_t flags, next;
	} d;
	_Static_assert(sizeof(d) == DESC_BYTES, "as the specification lays it out");
	memcpy(&d, raw, sizeof(d));
	*flags = le16toh(d.flags);
	*next = le16toh(d.next);
	return (struct piece_of_chain){le64toh(d.addr), le32toh(d.len),
				       *flags & VRING_DESC_F_WRITE};
}

/* Check one more buffer of the chain list[0..n). NULL, or what is wrong with it. */
static const char *check(const struct virtq *q, const struct piece_of_chain *list, unsigned n,
			 uint64_t *bytes)
{
	const struct piece_of_chain *d = &list[n];
	if (!d->len)
		return "a buffer of length 0";
	*bytes += d->len;
	if (*bytes > VIRTQ_BYTES_MAX && !q->unmapped)
		return "a chain of more than 4 MiB";
	if (n && list[n - 1].write && !d->write)
		return "a readable buffer after a writable one";
	return NULL;
}

/* Read the indirect table and append it to list[0..*n). 0, or -errno and *what. */
static int walk_table(struct virtq *q, const struct piece_of_chain *at, struct piece_of_chain *list,
		      unsigned *n, uint64_t *bytes, const char **what)
{
	uint8_t raw[VIRTQ_TABLE_MAX * DESC_BYTES];
	*what = "an indirect table of an impossible size";
	if (!at->len || at->len % DESC_BYTES || at->len > sizeof(raw))
		return -EINVAL;
	*what = "an indirect table outside memory";
	int r = gmem_read(q->dev->env.gmem, gpa(at->addr), raw, at->len);
	if (r)
		return r;
	unsigned entries = at->len / DESC_BYTES;
	uint16_t flags, i = 0;
	/* Each entry at most once, or it is a loop. */
	for (unsigned steps = 0; steps < entries; steps++) {
		uint16_t next;
		list[*n] = decode(raw + DESC_BYTES * i, &flags, &next);
		*what = "an indirect table inside an indirect table";
		if (flags & VRING_DESC_F_INDIRECT)
			return -EINVAL;
		*what = check(q, list, *n, bytes);
		if (*what)
			return -EINVAL;
		(*n)++;
		if (!(flags & VRING_DESC_F_NEXT))
			return 0;
		*what = "a descriptor index outside its table";
		if (next >= entries)
			return -EINVAL;
		i = next;
	}
	*what = "a loop of descriptors";
	return -EINVAL;
}

/* Collect the buffers of the chain that begins at head. The number, or -errno and *what. */
static int walk(struct virtq *q, uint16_t head, struct piece_of_chain *list, const char **what)
{
	unsigned n = 0;
	uint64_t bytes = 0;
	uint16_t flags, next, i = head;
	for (unsigned steps = 0; steps < q->num; steps++) {
		uint8_t raw[DESC_BYTES];
		*what = "a descriptor index outside its table";
		if (i >= q->num)
			return -EINVAL;
		*what = "a descriptor table outside memory";
		int r = gmem_read(q->dev->env.gmem, gpa(q->desc + DESC_BYTES * i), raw,
				  sizeof(raw));
		if (r)
			return r;
		list[n] = decode(raw, &flags, &next);
		if (flags & VRING_DESC_F_INDIRECT) {
			*what = "an indirect descriptor that was not agreed on, or has a next";
			if (!virtio_has(q->dev, VIRTIO_RING_F_INDIRECT_DESC) ||
			    flags & VRING_DESC_F_NEXT)
				return -EINVAL;
			struct piece_of_chain table = list[n];
			r = walk_table(q, &table, list, &n, &bytes, what);
			return r ? r : (int)n;
		}
		*what = check(q, list, n, &bytes);
		if (*what)
			return -EINVAL;
		n++;
		if (!(flags & VRING_DESC_F_NEXT))
			return (int)n;
		i = next;
	}
	*what = "a loop of descriptors";
	return -EINVAL;
}

/* Find and pin a buffer: its pieces, or -errno. */
static int map_piece(struct virtq *q, const struct piece_of_chain *p, struct iovec *iov, int max)
{
	if (max < 1)
		return -ENOBUFS;
	if (!q->unmapped)
		return gmem_map(q->dev->env.gmem, gpa(p->addr), p->len, p->write, iov, max);
	*iov = (struct iovec){(void *)(uintptr_t)p->addr, p->len};
	return 1;
}

static void unmap(struct virtq *q, const struct iovec *iov, int n)
{
	if (!q->unmapped)
		gmem_unmap(q->dev->env.gmem, iov, n);
}

/* Pin the buffers of the chain at head. -errno and *what. */
static int fetch(struct virtq *q, uint16_t head, struct virtq_chain **out, const char **what)
{
	struct piece_of_chain list[VIRTQ_NUM_MAX + VIRTQ_TABLE_MAX];
	struct iovec iov[VIRTQ_PIECES_MAX]; /* only as much of it is touched as is needed */
	struct virtq_chain count = {.q = q, .head = head};
	int n = walk(q, head, list, what), pieces = 0;
	if (n < 0)
		return n;
	int r = 0;
	for (int i = 0; i < n; i++) {
		r = map_piece(q, &list[i], iov + pieces, VIRTQ_PIECES_MAX - pieces);
		if (r < 0)
			break;
		*(list[i].write ? &count.writable : &count.readable) += r;
		*(list[i].write ? &count.write_bytes : &count.read_bytes) += list[i].len;
		pieces += r;
	}
	struct virtq_chain *c = NULL;
	if (r >= 0) {
		c = malloc(sizeof(*c) + (size_t)pieces * sizeof(c->iov[0]));
		r = c ? 0 : -ENOMEM;
	}
	if (r) {
		unmap(q, iov, pieces);
		*what = r == -ENOBUFS ? "a chain in too many pieces" : "a buffer outside memory";
		return r;
	}
	*c = count;
	memcpy(c->iov, iov, (size_t)pieces * sizeof(iov[0]));
	*out = c;
	return 0;
}

/* Are there chains to pop? Reads the driver's index; if there are none, asks to be notified of the
 * next. */
static bool any_available(struct virtq *q)
{
	struct gmem *m = q->dev->env.gmem;
	for (int asked = 0; q->avail_seen == q->avail_next; asked++) {
		/* Acquire: the entry and its descriptors are read after the index. */
		int r = gmem_load16_acquire(m, avail_at(q, 2), &q->avail_seen);
		if (r) {
			q->avail_seen = q->avail_next;
			trouble(q, r, "an available ring outside memory");
			return false;
		}
		uint16_t n = (uint16_t)(q->avail_seen - q->avail_next);
		if (n > q->num) {
			virtio_fail(q->dev, q, "the available index jumps");
			return false;
		}
		if (n)
			break;
		if (asked || !virtio_has(q->dev, VIRTIO_RING_F_EVENT_IDX))
			return false;
		r = gmem_store16_release(m, avail_event_at(q), q->avail_next);
		if (r) {
			trouble(q, r, "a used ring outside memory");
			return false;
		}
		/* Full barrier: either the driver sees our avail_event and notifies, or we see its
		 * index when we look again (section 2.7.10). */
		full_barrier();
	}
	return true;
}

struct virtq_chain *virtq_pop(struct virtq *q)
{
	struct virtio_dev *d = q->dev;
	if (!virtio_live(d) || d->paused || !q->ready || !any_available(q))
		return NULL;
	if (!q->budget) {
		/* A driver that is faster than we are must not keep the loop from its other work.
		 */
		virtio_kick(d, 1u << q->index);
		return NULL;
	}
	if (q->flight >= q->num) {
		virtio_fail(d, q, "more chains in flight than the queue holds");
		return NULL;
	}
	uint16_t head;
	int r = gmem_load16_acquire(d->env.gmem,
				    avail_at(q, 4 + 2u * (q->avail_next & (q->num - 1u))), &head);
	if (r) {
		trouble(q, r, "an available ring outside memory");
		return NULL;
	}
	struct virtq_chain *c;
	const char *what;
	r = fetch(q, head, &c, &what);
	if (r) {
		trouble(q, r, what);
		return NULL;
	}
	q->budget--;
	q->avail_next++;
	q->flight++;
	virtio_hold(d);
	return c;
}

/* ---- giving them back --------------------------------------------------------------------- */

static void unpin(struct virtq_chain *c)
{
	struct virtio_dev *d = c->q->dev;
	unmap(c->q, c->iov, c->readable + c->writable);
	virtio_release(d);
}

void virtq_unpop(struct virtq_chain *c)
{
	unpin(c);
	c->q->flight--;
	c->q->avail_next--;
	free(c);
}

/* Does the driver want an interrupt for what was added since it was last told? (2.7.7) */
static bool wanted(struct virtq *q)
{
	struct gmem *m = q->dev->env.gmem;
	uint16_t v, old = q->used_told, new = q->used_next;
	bool valid = q->told_valid;
	if (!virtio_has(q->dev, VIRTIO_RING_F_EVENT_IDX)) {
		/* If it can't be read: an interrupt too many does no harm. */
		return gmem_load16_acquire(m, avail_at(q, 0), &v) ||
		       !(v & VRING_AVAIL_F_NO_INTERRUPT);
	}
	q->used_told = new;
	q->told_valid = true;
	if (gmem_load16_acquire(m, used_event_at(q), &v) || !valid)
		return true;
	return (uint16_t)(new - v - 1) < (uint16_t)(new - old);
}

/* Write c into the used ring. Written twice it is the same: -EAGAIN may come at any point. */
static int push(struct virtq *q, const struct virtq_chain *c)
{
	struct gmem *m = q->dev->env.gmem;
	uint32_t entry[2] = {htole32(c->head), htole32(c->written)};
	uint64_t slot = q->used_next & (q->num - 1u);
	int r = gmem_write(m, used_at(q, 4 + USED_BYTES * slot), entry, sizeof(entry));
	if (!r) /* Release: the driver that sees the index sees the entry and the buffers. */
		r = gmem_store16_release(m, used_at(q, 2), (uint16_t)(q->used_next + 1));
	if (!r)
		q->used_next++;
	return r;
}

void virtq_send(struct virtq *q)
{
	bool any = false;
	while (q->unsent && virtio_live(q->dev) && q->ready) {
		struct virtq_chain *c = q->unsent;
		int r = push(q, c);
		if (r) {
			trouble(q, r, "a used ring outside memory");
			break;
		}
		q->unsent = c->next;
		if (!q->unsent)
			q->unsent_end = &q->unsent;
		q->flight--;
		free(c);
		any = true;
	}
	if (!any)
		return;
	/* Full barrier: either the driver sees the new index when it looks again after allowing
	 * interrupts, or we see that it allows them (section 2.7.7.2). */
	full_barrier();
	if (wanted(q))
		virtio_interrupt(q->dev);
}

void virtq_done(struct virtq_chain *c, uint32_t written)
{
	struct virtq *q = c->q;
	unpin(c); /* what was written into the buffers becomes visible by push's release */
	c->written = written;
	c->next = NULL;
	*q->unsent_end = c;
	q->unsent_end = &c->next;
	virtq_send(q);
}

/* ---- pieces ------------------------------------------------------------------------------- */

static size_t iov_copy(const struct iovec *iov, int n, uint64_t skip, uint8_t *host, size_t len,
		       bool write)
{
	size_t done = 0;
	for (int i = 0; i < n && done < len; i++) {
		if (skip >= iov[i].iov_len) {
			skip -= iov[i].iov_len;
			continue;
		}
		uint8_t *at = (uint8_t *)iov[i].iov_base + skip;
		size_t k = iov[i].iov_len - skip;
		if (k > len - done)
			k = len - done;
		if (write)
			memcpy(at, host + done, k);
		else
			memcpy(host + done, at, k);
		skip = 0;
		done += k;
	}
	return done;
}

size_t iov_read(const struct iovec *iov, int n, uint64_t skip, void *to, size_t len)
{
	return iov_copy(iov, n, skip, to, len, false);
}

size_t iov_write(const struct iovec *iov, int n, uint64_t skip, const void *from, size_t len)
{
	return iov_copy(iov, n, skip, (uint8_t *)from, len, true);
}
