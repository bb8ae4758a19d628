/*
 * The persistent memory device (virtio 1.2 section 5.19). The memory itself is a bank of the guest's
 * physical space, which its accesses reach without this device; here is only the flush, by which
 * a guest makes durable what it wrote there.
 *
 * One flush is under way at a time. Requests that come meanwhile wait for the next one, which answers
 * all of them: a write that was there before a request is there before the flush that answers it. Between
 * flushes what the host wants is made durable, without the guest's knowing.
 */
#include "virtio/device.h"
#include <endian.h>
#include <errno.h>
#include <linux/virtio_ids.h>
#include <stdlib.h>
#include <string.h>

/* Sections 5.19.6 and 5.19.7. The kernel's uapi header has no number for the second answer. */
enum { REQUEST_FLUSH = 0 };
enum { ANSWER_OK = 0, ANSWER_EIO = 1 };

struct list {
	struct virtq_chain **chain;
	unsigned n;
};

struct pmem {
	struct virtio_dev dev; /* must be first */
	struct virtio_pmem_config of;
	struct {
		uint64_t start, size; /* le64: section 5.19.4 */
	} config;

	/* dev.lock protects the rest */
	struct loop_op op;
	enum { NOTHING, FLUSH, CLEAN } pass; /* that is under way */
	bool clean;                          /* the host wants one, */
	bool still;                          /* as the device stood still already */
	struct list served,
		waiting; /* by the flush under way, and for the next; room for a queue each */
	struct virtio_pmem_stats stats;
};

static void answer(struct virtq_chain *c, uint32_t ret)
{
	ret = htole32(ret);
	iov_write(c->iov + c->readable, c->writable, 0, &ret, sizeof(ret));
	virtq_done(c, sizeof(ret));
}

static void answer_all(struct list *l, uint32_t ret)
{
	for (unsigned i = 0; i < l->n; i++)
		answer(l->chain[i], ret);
	l->n = 0;
}

/* The pass that is next: what the guest waits for comes first. */
static void choose(struct pmem *p)
{
	const struct virtio_dev *d = &p->dev;
	p->clean &= p->of.clean && (!d->paused || p->still) && !d->draining && !d->dying;
	p->pass = p->waiting.n ? FLUSH : p->clean ? CLEAN : NOTHING;
	if (p->pass != FLUSH)
		return;
	struct list empty = p->served;
	p->served = p->waiting;
	p->waiting = empty;
	p->stats.flushes++;
}

static int call(struct pmem *p, bool begin, int res)
{
	if (p->pass == CLEAN)
		return p->of.clean(p->of.ctx, &p->op, begin, res);
	return p->of.flush ? p->of.flush(p->of.ctx, &p->op, begin, res) : 0;
}

static void flushed(struct pmem *p, int rc)
{
	if (rc)
		p->stats.errors++;
	answer_all(&p->served, rc ? ANSWER_EIO : ANSWER_OK);
	if (p->dev.draining) /* the driver waits for no answer any more */
		answer_all(&p->waiting, ANSWER_EIO);
}

/* What a step of the pass came to: 1 if it goes on. Starts the next while there is one. A pass for the host counts as
 * pinned, as a flush's requests do, so that who waits for the device to stand still waits for it. */
static void step(struct pmem *p, bool begin, int res)
{
	for (;; begin = true, res = 0) {
		if (begin)
			choose(p);
		if (p->pass == NOTHING)
			return;
		int rc = call(p, begin, res);
		if (p->pass == CLEAN && begin && rc > 0)
			virtio_hold(&p->dev);
		if (rc > 0)
			return;
		if (p->pass == FLUSH)
			flushed(p, rc);
		else if (!begin)
			virtio_release(&p->dev);
		if (p->pass == CLEAN && (begin || rc))
			p->clean = false;
	}
}

static void done(struct loop_op *op, int res, uint32_t flags)
{
	struct pmem *p = (struct pmem *)((char *)op - offsetof(struct pmem, op));
	(void)flags;
	pthread_mutex_lock(&p->dev.lock);
	step(p, false, res);
	pthread_mutex_unlock(&p->dev.lock);
}

static void process(struct virtio_dev *d, struct virtq *q)
{
	struct pmem *p = (struct pmem *)d;
	struct virtq_chain *c;
	while ((c = virtq_pop(q))) {
		uint32_t type;
		if (c->read_bytes < sizeof(type) || c->write_bytes < sizeof(uint32_t)) {
			virtq_done(c, 0);
			virtio_fail(d, q, "a request without type or room for an answer");
			break;
		}
		iov_read(c->iov, c->readable, 0, &type, sizeof(type));
		p->stats.requests++;
		if (le32toh(type) == REQUEST_FLUSH)
			p->waiting.chain[p->waiting.n++] = c;
		else
			answer(c, ANSWER_EIO);
	}
	if (p->pass == NOTHING)
		step(p, true, 0);
}

void virtio_pmem_clean(struct virtio_dev *d)
{
	struct pmem *p = (struct pmem *)d;
	pthread_mutex_lock(&d->lock);
	p->clean = true;
	p->still = d->paused && !d->pinned;
	if (p->pass == NOTHING)
		step(p, true, 0);
	pthread_mutex_unlock(&d->lock);
}

static void destroy(struct virtio_dev *d)
{
	struct pmem *p = (struct pmem *)d;
	virtio_fini(d);
	free(p->served.chain);
	free(p->waiting.chain);
	free(p);
}

void virtio_pmem_stats(struct virtio_dev *d, struct virtio_pmem_stats *out)
{
	pthread_mutex_lock(&d->lock);
	*out = ((struct pmem *)d)->stats;
	pthread_mutex_unlock(&d->lock);
}

static const struct virtio_ops ops = {.process = process, .destroy = destroy, .io_done = done};

int virtio_pmem_create(struct virtio_dev **out, const struct virtio_env *env,
		       const struct virtio_pmem_config *config)
{
	if (!config->bytes || (config->start | config->bytes) & PAGE_MASK ||
	    config->bytes > UINT64_MAX - config->start)
		return -EINVAL;
	struct pmem *p = calloc(1, sizeof(*p));
	if (!p)
		return -ENOMEM;
	p->of = *config;
	p->op.done = done;
	p->config.start = htole64(config->start);
	p->config.size = htole64(config->bytes);
	p->served.chain = calloc(VIRTQ_NUM_MAX, sizeof(struct virtq_chain *));
	p->waiting.chain = calloc(VIRTQ_NUM_MAX, sizeof(struct virtq_chain *));
	int r = p->served.chain && p->waiting.chain
			? virtio_init(&p->dev, env, &ops, VIRTIO_ID_PMEM, "virtio-pmem", 0, 1)
			: -ENOMEM;
	if (r) {
		free(p->served.chain);
		free(p->waiting.chain);
		free(p);
		return r;
	}
	p->dev.config = (const uint8_t *)&p->config;
	p->dev.config_bytes = sizeof(p->config);
	*out = &p->dev;
	return 0;
}
