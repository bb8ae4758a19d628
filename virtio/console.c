/*
 * The console device (virtio 1.2 section 5.3) with one port and no features: queue 0 carries bytes
 * to the guest, queue 1 from it. Config space stays empty, since size, ports and emergency write
 * each need a feature that isn't offered.
 */
#include "ipt/own.h"
#include "virtio/device.h"
#include <errno.h>
#include <linux/virtio_ids.h>
#include <stdlib.h>
#include <string.h>

#define INPUT_BYTES 4096u /* power of two */
#define QUEUE_MAX   16    /* Linux keeps a page, zeroed, in every place of the receive queue */

enum { TO_GUEST, FROM_GUEST };

struct console {
	struct virtio_dev dev; /* must be first */
	virtio_console_out_fn *output;
	void *output_ctx;
	void (*room)(void *ctx);
	void *room_ctx;

	/* dev.lock protects the rest */
	uint64_t sent; /* bytes of the next chain of FROM_GUEST that the sink already took */
	bool refused;  /* input came that there was no room for */
	/* Input not yet taken by the guest: in[tail..head), both running on. Made at the first
	 * input. */
	uint8_t *in;
	uint32_t head, tail;
};

static void to_guest(struct console *k, struct virtq *q)
{
	struct virtq_chain *c;
	while (k->head != k->tail && (c = virtq_pop(q))) {
		uint32_t given = 0;
		while (k->head != k->tail) {
			uint32_t at = k->tail & (INPUT_BYTES - 1), n = k->head - k->tail;
			if (n > INPUT_BYTES - at)
				n = INPUT_BYTES - at;
			n = (uint32_t)iov_write(c->iov + c->readable, c->writable, given,
						k->in + at, n);
			if (!n)
				break;
			given += n;
			k->tail += n;
		}
		bool nothing = !c->writable;
		virtq_done(c, given);
		if (nothing)
			virtio_fail(&k->dev, q, "a receive buffer that isn't writable");
	}
	if (k->refused && k->head - k->tail < INPUT_BYTES) {
		k->refused = false;
		if (k->room) {
			pthread_mutex_unlock(&k->dev.lock);
			k->room(k->room_ctx);
			pthread_mutex_lock(&k->dev.lock);
		}
	}
}

/* Give the sink what it takes of c, from `skip` on. Returns how far it got. */
static uint64_t give(struct console *k, const struct virtq_chain *c, uint64_t skip)
{
	uint64_t done = 0;
	for (int i = 0; i < c->readable; i++) {
		uint64_t len = c->iov[i].iov_len, from = 0;
		if (skip >= done + len) {
			done += len;
			continue;
		}
		if (skip > done)
			from = skip - done;
		size_t took =
			k->output(k->output_ctx, (char *)c->iov[i].iov_base + from, len - from);
		done += from + took;
		if (took < len - from)
			break;
	}
	return done;
}

static void from_guest(struct console *k, struct virtq *q)
{
	struct virtq_chain *c;
	while ((c = virtq_pop(q))) {
		uint64_t skip = k->sent;
		/* Without the lock: the sink may be slow, or take a lock under which others call
		 * us. The chain is in flight, so no reset gets past us. */
		pthread_mutex_unlock(&k->dev.lock);
		uint64_t got = give(k, c, skip);
		pthread_mutex_lock(&k->dev.lock);
		if (got < c->read_bytes) {
			/* The sink is full. The chain goes back, so that nothing stays pinned for
			 * as long as that lasts; virtio_retry pops it again. */
			k->sent = got;
			k->dev.stalled = true;
			virtq_unpop(c);
			return;
		}
		k->sent = 0;
		virtq_done(c, 0);
	}
}

static void process(struct virtio_dev *d, struct virtq *q)
{
	struct console *k = (struct console *)d;
	if (q->index == TO_GUEST)
		to_guest(k, q);
	else
		from_guest(k, q);
}

/* Input that waits is for the guest, not for its driver, and survives. */
static void reset(struct virtio_dev *d)
{
	((struct console *)d)->sent = 0;
}

static void destroy(struct virtio_dev *d)
{
	struct console *k = (struct console *)d;
	virtio_fini(d);
	free(k->in);
	own_free(k);
}

size_t virtio_console_input(struct virtio_dev *d, const char *bytes, size_t n)
{
	struct console *k = (struct console *)d;
	size_t taken = 0;
	pthread_mutex_lock(&d->lock);
	if (!k->in)
		k->in = malloc(INPUT_BYTES);
	while (k->in && taken < n && k->head - k->tail < INPUT_BYTES)
		k->in[k->head++ & (INPUT_BYTES - 1)] = (uint8_t)bytes[taken++];
	if (taken < n)
		k->refused = true;
	pthread_mutex_unlock(&d->lock);
	if (taken)
		virtio_kick(d, 1u << TO_GUEST);
	return taken;
}

void virtio_console_on_room(struct virtio_dev *d, void (*room)(void *ctx), void *ctx)
{
	struct console *k = (struct console *)d;
	k->room = room;
	k->room_ctx = ctx;
}

static const struct virtio_ops ops = {.process = process, .reset = reset, .destroy = destroy};

int virtio_console_create(struct virtio_dev **out, const struct virtio_env *env,
			  virtio_console_out_fn *output, void *ctx)
{
	struct console *k = own_alloc(sizeof(*k));
	if (!k)
		return -ENOMEM;
	k->dev.queue_max = QUEUE_MAX;
	int r = virtio_init(&k->dev, env, &ops, VIRTIO_ID_CONSOLE, "virtio-console", 0, 2);
	if (r) {
		own_free(k);
		return r;
	}
	k->output = output;
	k->output_ctx = ctx;
	*out = &k->dev;
	return 0;
}
