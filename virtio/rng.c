/* The entropy device (virtio 1.2 section 5.4): fills what the driver offers from getrandom(2). */
#include "ipt/own.h"
#include "virtio/device.h"
#include <errno.h>
#include <linux/virtio_ids.h>
#include <sys/random.h>

/* Bytes a chain is given at most, so that one request can't keep the loop long. It may be fewer
 * than asked for (section 5.4.6). */
#define FILL_MAX 4096u

static void process(struct virtio_dev *d, struct virtq *q)
{
	struct virtq_chain *c;
	while ((c = virtq_pop(q))) {
		uint32_t filled = 0;
		for (int i = c->readable; i < c->readable + c->writable; i++) {
			size_t n = c->iov[i].iov_len;
			if (n > FILL_MAX - filled)
				n = FILL_MAX - filled;
			/* Up to 256 bytes come whole; more can be cut short by a signal. */
			ssize_t got = n ? getrandom(c->iov[i].iov_base, n, 0) : 0;
			if (got <= 0)
				break;
			filled += (uint32_t)got;
			if ((size_t)got < c->iov[i].iov_len)
				break;
		}
		bool nothing = !c->writable;
		virtq_done(c, filled);
		if (nothing)
			virtio_fail(d, q, "a request without room for an answer");
	}
}

static void destroy(struct virtio_dev *d)
{
	virtio_fini(d);
	own_free(d);
}

static const struct virtio_ops ops = {.process = process, .destroy = destroy};

int virtio_rng_create(struct virtio_dev **out, const struct virtio_env *env)
{
	struct virtio_dev *d = own_alloc(sizeof(*d));
	if (!d)
		return -ENOMEM;
	int r = virtio_init(d, env, &ops, VIRTIO_ID_RNG, "virtio-rng", 0, 1);
	if (r) {
		own_free(d);
		return r;
	}
	*out = d;
	return 0;
}
