/*
 * Virtqueues alone (virtio/queue.c), against a model: a device that holds chains as long as the input says, gives
 * them back in any order, or puts them back. Every chain that it gets is held against what a plain walk of the
 * descriptors finds; queue 1 is of the kind whose buffers are addresses alone.
 */
#include "tests/fuzz/fuzz.h"
#include "virtio/device.h"
#include <errno.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <stdlib.h>
#include <string.h>

#define HELD 32

static struct {
	struct virtio_dev dev;
	struct virtq_chain *held[HELD];
	unsigned n;
	unsigned greed; /* chains that a turn takes */
	bool unpop;     /* and puts the last one back */
} own_dev;

/* What the driver's memory says of the next chain: false if it breaks a rule, which a device may not let pass. */
struct expected {
	bool sound;
	uint16_t head;
	uint64_t read_bytes, write_bytes;
};

static bool in_memory(uint64_t at, uint64_t n)
{
	return n && at < FAKE_BYTES && n <= FAKE_BYTES - at;
}

static struct expected expect_chain(const struct virtq *q, struct fake *mem)
{
	struct expected e = {0};
	struct vring_desc d;
	uint64_t table = q->desc, steps = 0, entries = q->num, at;
	uint64_t slot = q->avail + 4 + 2 * (q->avail_next & (q->num - 1u));
	bool indirect = false, writing = false;
	if (!in_memory(slot, 2))
		return e;
	fake_get(mem, slot, &e.head, 2);
	for (uint16_t i = e.head;; i = d.next) {
		at = table + sizeof(d) * i;
		if (i >= entries || steps++ == entries || at < table || !in_memory(at, sizeof(d)))
			return e;
		fake_get(mem, at, &d, sizeof(d));
		if (d.flags & VRING_DESC_F_INDIRECT) {
			if (indirect || !virtio_has(q->dev, VIRTIO_RING_F_INDIRECT_DESC) ||
			    d.flags & VRING_DESC_F_NEXT || !d.len || d.len % sizeof(d) ||
			    d.len > VIRTQ_TABLE_MAX * sizeof(d) || !in_memory(d.addr, d.len))
				return e;
			indirect = true;
			table = d.addr;
			entries = d.len / sizeof(d);
			steps = 0;
			d.next = 0;
			continue;
		}
		if (!d.len || (writing && !(d.flags & VRING_DESC_F_WRITE)))
			return e;
		if (!q->unmapped && !in_memory(d.addr, d.len))
			return e;
		writing = d.flags & VRING_DESC_F_WRITE;
		*(writing ? &e.write_bytes : &e.read_bytes) += d.len;
		if (!(d.flags & VRING_DESC_F_NEXT))
			break;
	}
	e.sound = q->unmapped || e.read_bytes + e.write_bytes <= VIRTQ_BYTES_MAX;
	return e;
}

static void check_chain(const struct virtq_chain *c, const struct expected *e)
{
	uint64_t bytes[2] = {0};
	cr_assert(e->sound, "a chain that breaks the rules was taken");
	cr_assert_eq(c->head, e->head);
	cr_assert(c->readable >= 0 && c->writable >= 0);
	cr_assert_leq(c->readable + c->writable, VIRTQ_PIECES_MAX);
	for (int i = 0; i < c->readable + c->writable; i++) {
		cr_assert_gt(c->iov[i].iov_len, 0);
		bytes[i >= c->readable] += c->iov[i].iov_len;
		if (c->q->unmapped)
			continue;
		/* Under the sanitizer: every byte is there, and pinned. */
		volatile uint8_t *at = c->iov[i].iov_base;
		(void)at[0];
		(void)at[c->iov[i].iov_len - 1];
	}
	cr_assert(bytes[0] == e->read_bytes && bytes[0] == c->read_bytes);
	cr_assert(bytes[1] == e->write_bytes && bytes[1] == c->write_bytes);
}

static void check_counts(const struct virtio_dev *d)
{
	unsigned flight = 0;
	for (unsigned i = 0; i < d->queues; i++) {
		cr_assert_leq(d->q[i].flight, d->q[i].num);
		flight += d->q[i].flight;
		for (const struct virtq_chain *c = d->q[i].unsent; c; c = c->next)
			flight--;
	}
	cr_assert_eq(flight, own_dev.n, "D2");
	cr_assert_eq(d->pinned, own_dev.n, "D1");
}

static void process(struct virtio_dev *d, struct virtq *q)
{
	struct fake *mem = (struct fake *)d->env.gmem;
	q->unmapped = q->index == 1;
	while (own_dev.greed && own_dev.n < HELD) {
		struct expected e = expect_chain(q, mem);
		struct virtq_chain *c = virtq_pop(q);
		if (!c)
			break;
		own_dev.greed--;
		check_chain(c, &e);
		if (own_dev.unpop) {
			own_dev.unpop = false;
			virtq_unpop(c);
			check_counts(d);
			break;
		}
		own_dev.held[own_dev.n++] = c;
		check_counts(d);
	}
}

/* Give the i-th of those held back. */
static void give_back(unsigned i)
{
	struct virtq_chain *c = own_dev.held[i];
	uint64_t n = c->write_bytes;
	own_dev.held[i] = own_dev.held[--own_dev.n];
	if (!c->q->unmapped) {
		uint8_t some[300];
		memset(some, 0x5a, sizeof(some));
		uint64_t got =
			iov_write(c->iov + c->readable, c->writable, n / 2, some, sizeof(some));
		cr_assert_eq(got, n - n / 2 < sizeof(some) ? n - n / 2 : sizeof(some));
		cr_assert_leq(iov_read(c->iov, c->readable, 3, some, sizeof(some)), sizeof(some));
	}
	virtq_done(c, (uint32_t)n);
}

static void before(struct drv *t)
{
	struct virtio_dev *d = t->dev;
	pthread_mutex_lock(&d->lock);
	while (own_dev.n)
		give_back(0);
	check_counts(d);
	pthread_mutex_unlock(&d->lock);
}

static void own(struct drv *t, struct fuzz_in *in)
{
	unsigned what = fuzz_u8(in);
	if (what < 0x80) {
		own_dev.greed = what & 63;
		own_dev.unpop = what & 64;
		virtio_kick(t->dev, 3);
		return;
	}
	pthread_mutex_lock(&t->dev->lock);
	if (own_dev.n)
		give_back(what % own_dev.n);
	check_counts(t->dev);
	pthread_mutex_unlock(&t->dev->lock);
}

static void destroy(struct virtio_dev *d)
{
	virtio_fini(d);
}

static int create(struct drv *t)
{
	static const struct virtio_ops ops = {.process = process, .destroy = destroy};
	memset(&own_dev, 0, sizeof(own_dev));
	own_dev.greed = 2;
	t->dev = &own_dev.dev;
	return virtio_init(t->dev, &t->env, &ops, 42, "fuzz", 0, 2);
}

static void works(struct drv *t)
{
	struct seg s[2] = {{0x40000, 5000, false}, {0x50000, 6000, true}};
	uint32_t n;
	uint16_t id, head;
	for (unsigned q = 0; q < 2; q++) {
		own_dev.greed = 1;
		own_dev.unpop = false;
		head = drv_add(t, q, s, 2, 0x60000);
		drv_kick(t, q);
		drv_step(t, 0);
		cr_assert_eq(own_dev.n, 1, "the chain isn't taken");
		before(t);
		drv_wait(t, q, &id, &n);
		cr_assert(id == head && n == 6000);
	}
}

const struct fuzz_device fuzz_device = {
	.queues = 2, .create = create, .own = own, .before = before, .works = works};
