/*
 * The MMIO transport (virtio 1.2 sections 2.1, 3.1 and 4.2): registers, the status machine, the
 * interrupt line. Modern devices only (version 2).
 *
 * A reset is over when the register write that asks for it is: Linux's vm_reset doesn't poll, and
 * hands the rings' memory to others at once. So the writing vCPU waits until nothing is in flight.
 */
#include "virtio/device.h"
#include <endian.h>
#include <errno.h>
#include <linux/virtio_config.h>
#include <linux/virtio_mmio.h>
#include <linux/virtio_ring.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define MAGIC   0x74726976u /* "virt" */
#define VERSION 2u
#define VENDOR  0x52534e49u /* "INSR" */

#define SAID_MAX   16 /* lines a device; its guest can cause them at will */
#define DRAIN_STEP 20 /* ms */

/* ---- what devices call -------------------------------------------------------------------- */

bool virtio_live(const struct virtio_dev *d)
{
	const uint32_t bad = VIRTIO_CONFIG_S_FAILED | VIRTIO_CONFIG_S_NEEDS_RESET;
	return d->status & VIRTIO_CONFIG_S_DRIVER_OK && !(d->status & bad) && !d->draining &&
	       !d->dying;
}

void virtio_say(struct virtio_dev *d, const char *format, ...)
{
	char line[256];
	if (d->said > SAID_MAX)
		return;
	int n = snprintf(line, sizeof(line), "%s: ", d->name);
	if (d->said++ == SAID_MAX) {
		snprintf(line + n, sizeof(line) - (size_t)n, "more of the same is not shown");
	} else {
		va_list ap;
		va_start(ap, format);
		vsnprintf(line + n, sizeof(line) - (size_t)n, format, ap);
		va_end(ap);
	}
	d->env.say(d->env.say_ctx, line);
}

static void raise_irq(struct virtio_dev *d, uint32_t why)
{
	bool low = !d->irq_status;
	d->irq_status |= why;
	if (low)
		d->env.irq(d->env.irq_ctx, true);
}

static void lower_irq(struct virtio_dev *d, uint32_t acknowledged)
{
	bool high = d->irq_status;
	d->irq_status &= ~acknowledged;
	if (high && !d->irq_status)
		d->env.irq(d->env.irq_ctx, false);
}

/* The driver wasn't told: what is used next is a reason to tell it again, whatever it was told before. */
static void forget_told(struct virtio_dev *d)
{
	for (unsigned i = 0; i < d->queues; i++)
		d->q[i].told_valid = false;
}

void virtio_interrupt(struct virtio_dev *d)
{
	if (d->faults) {
		enum virtio_irq_fault f = d->faults->interrupt(d->faults->ctx, d);
		if (f == VIRTIO_IRQ_DROP)
			forget_told(d);
		if (f != VIRTIO_IRQ_TELL)
			return;
	}
	raise_irq(d, VIRTIO_MMIO_INT_VRING);
}

void virtio_interrupt_now(struct virtio_dev *d)
{
	pthread_mutex_lock(&d->lock);
	if (virtio_live(d))
		raise_irq(d, VIRTIO_MMIO_INT_VRING);
	pthread_mutex_unlock(&d->lock);
}

void virtio_set_faults(struct virtio_dev *d, const struct virtio_faults *f)
{
	pthread_mutex_lock(&d->lock);
	d->faults = f;
	pthread_mutex_unlock(&d->lock);
}

void virtio_config_changed(struct virtio_dev *d)
{
	d->generation++;
	if (d->status & VIRTIO_CONFIG_S_DRIVER_OK)
		raise_irq(d, VIRTIO_MMIO_INT_CONFIG);
}

void virtio_fail(struct virtio_dev *d, const struct virtq *q, const char *what)
{
	if (d->status & VIRTIO_CONFIG_S_NEEDS_RESET)
		return;
	virtio_say(d, "queue %u: %s; stopped until the guest resets the device", q->index, what);
	d->status |= VIRTIO_CONFIG_S_NEEDS_RESET;
	/* Section 2.1.2: with DRIVER_OK set, a change of configuration tells the driver. */
	if (d->status & VIRTIO_CONFIG_S_DRIVER_OK)
		raise_irq(d, VIRTIO_MMIO_INT_CONFIG);
}

void virtio_kick(struct virtio_dev *d, unsigned queues)
{
	/* Release, against work_run's acquire: what was done before the kick is seen by the turn
	 * that it causes. */
	atomic_fetch_or_explicit(&d->notified, queues, memory_order_release);
	loop_post(d->env.loop, &d->work);
}

void virtio_retry(struct virtio_dev *d)
{
	/* Always posted, stalled or not: the loop may be about to stall on what came before. */
	atomic_store_explicit(&d->retry, true, memory_order_release);
	loop_post(d->env.loop, &d->work);
}

void virtio_hold(struct virtio_dev *d)
{
	d->pinned++;
}

void virtio_release(struct virtio_dev *d)
{
	if (!--d->pinned)
		pthread_cond_broadcast(&d->idle);
}

/* A turn of the device on the loop's thread. */
static void work_run(struct loop_work *w)
{
	struct virtio_dev *d = (struct virtio_dev *)((char *)w - offsetof(struct virtio_dev, work));
	bool retry = atomic_exchange_explicit(&d->retry, false, memory_order_acquire);
	unsigned bits = atomic_exchange_explicit(&d->notified, 0, memory_order_acquire);
	pthread_mutex_lock(&d->lock);
	if (retry && d->stalled) {
		d->stalled = false;
		bits = ~0u;
	}
	for (unsigned i = 0; i < d->queues; i++) {
		struct virtq *q = &d->q[i];
		if (!(bits >> i & 1) || !virtio_live(d) || !q->ready)
			continue;
		virtq_send(q);
		q->budget = q->num;
		d->ops->process(d, q);
	}
	pthread_mutex_unlock(&d->lock);
}

/* ---- life --------------------------------------------------------------------------------- */

int virtio_init(struct virtio_dev *d, const struct virtio_env *env, const struct virtio_ops *ops,
		uint32_t id, const char *name, uint64_t features, unsigned queues)
{
	pthread_condattr_t attr;
	d->ops = ops;
	d->env = *env;
	d->id = id;
	d->features = features | 1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_RING_F_INDIRECT_DESC |
		      1ull << VIRTIO_RING_F_EVENT_IDX;
	d->queues = queues;
	if (!d->queue_max)
		d->queue_max = VIRTQ_NUM_MAX;
	d->work.run = work_run;
	virtio_set_name(d, name);
	int r = pthread_mutex_init(&d->lock, NULL);
	if (r)
		return -r;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	r = pthread_cond_init(&d->idle, &attr);
	pthread_condattr_destroy(&attr);
	if (r) {
		pthread_mutex_destroy(&d->lock);
		return -r;
	}
	for (unsigned i = 0; i < queues; i++) {
		d->q[i].dev = d;
		d->q[i].index = i;
		virtq_reset(&d->q[i]);
	}
	return 0;
}

void virtio_fini(struct virtio_dev *d)
{
	pthread_cond_destroy(&d->idle);
	pthread_mutex_destroy(&d->lock);
}

/* Wait until nothing is in flight; the lock is let go meanwhile, and the device isn't live. If
 * nobody runs the loop, the completions are taken here (and nothing else of the loop is run). */
static void drain(struct virtio_dev *d)
{
	d->draining++;
	while (d->pinned) {
		pthread_mutex_unlock(&d->lock);
		int r = loop_step(d->env.loop, d->ops->io_done, DRAIN_STEP);
		pthread_mutex_lock(&d->lock);
		if (r != -EBUSY || !d->pinned)
			continue;
		/* With a limit, since whoever runs the loop may stop. */
		struct timespec until;
		clock_gettime(CLOCK_MONOTONIC, &until);
		until.tv_nsec += DRAIN_STEP * 1000000L;
		until.tv_sec += until.tv_nsec / 1000000000L;
		until.tv_nsec %= 1000000000L;
		pthread_cond_timedwait(&d->idle, &d->lock, &until);
	}
	d->draining--;
}

static void reset(struct virtio_dev *d)
{
	drain(d);
	for (unsigned i = 0; i < d->queues; i++)
		virtq_reset(&d->q[i]);
	if (d->ops->reset)
		d->ops->reset(d);
	lower_irq(d, ~0u);
	d->status = 0;
	d->driver_features = 0;
	d->features_sel = d->driver_features_sel = d->queue_sel = 0;
	d->stalled = false;
	/* Left over notifications are harmless: they only make the loop look. */
}

void virtio_destroy(struct virtio_dev *d)
{
	if (!d)
		return;
	pthread_mutex_lock(&d->lock);
	d->dying = true;
	reset(d);
	pthread_mutex_unlock(&d->lock);
	loop_unpost(d->env.loop, &d->work);
	d->ops->destroy(d);
}

void virtio_pause(struct virtio_dev *d)
{
	pthread_mutex_lock(&d->lock);
	d->paused = true;
	while (d->pinned) {
		pthread_mutex_unlock(&d->lock);
		loop_step(d->env.loop, d->ops->io_done, DRAIN_STEP);
		pthread_mutex_lock(&d->lock);
	}
	pthread_mutex_unlock(&d->lock);
}

void virtio_resume(struct virtio_dev *d)
{
	pthread_mutex_lock(&d->lock);
	d->paused = false;
	d->stalled = false;
	if (d->irq_status)
		d->env.irq(d->env.irq_ctx, true);
	pthread_mutex_unlock(&d->lock);
	virtio_kick(d, ~0u);
}

uint32_t virtio_id(const struct virtio_dev *d)
{
	return d->id;
}

const char *virtio_name(const struct virtio_dev *d)
{
	return d->name;
}

void virtio_set_name(struct virtio_dev *d, const char *name)
{
	snprintf(d->name, sizeof(d->name), "%s", name);
}

/* ---- registers ---------------------------------------------------------------------------- */

static struct virtq *selected(struct virtio_dev *d)
{
	return d->queue_sel < d->queues ? &d->q[d->queue_sel] : NULL;
}

static uint32_t register_read(struct virtio_dev *d, uint64_t offset)
{
	const struct virtq *q = selected(d);
	switch (offset) {
	case VIRTIO_MMIO_MAGIC_VALUE:
		return MAGIC;
	case VIRTIO_MMIO_VERSION:
		return VERSION;
	case VIRTIO_MMIO_DEVICE_ID:
		return d->id;
	case VIRTIO_MMIO_VENDOR_ID:
		return VENDOR;
	case VIRTIO_MMIO_DEVICE_FEATURES:
		return d->features_sel < 2 ? (uint32_t)(d->features >> 32 * d->features_sel) : 0;
	case VIRTIO_MMIO_QUEUE_NUM_MAX:
		return q ? d->queue_max : 0;
	case VIRTIO_MMIO_QUEUE_READY:
		return q ? q->ready : 0;
	case VIRTIO_MMIO_INTERRUPT_STATUS:
		return d->irq_status;
	case VIRTIO_MMIO_STATUS:
		return d->status;
	case VIRTIO_MMIO_SHM_LEN_LOW: /* no shared memory region: all ones (4.2.2) */
	case VIRTIO_MMIO_SHM_LEN_HIGH:
	case VIRTIO_MMIO_SHM_BASE_LOW:
	case VIRTIO_MMIO_SHM_BASE_HIGH:
		return UINT32_MAX;
	case VIRTIO_MMIO_CONFIG_GENERATION:
		return d->generation;
	default:
		return 0;
	}
}

/* Does the driver ask only for what is offered, and for what we can't do without? */
static bool features_ok(const struct virtio_dev *d)
{
	return !(d->driver_features & ~d->features) && virtio_has(d, VIRTIO_F_VERSION_1);
}

static void write_status(struct virtio_dev *d, uint32_t v)
{
	if (!v) {
		reset(d);
		return;
	}
	if (d->draining)
		return;
	/* The driver may add bits, in order (3.1.1), and take none back (2.1.1). */
	if (v & VIRTIO_CONFIG_S_FAILED)
		d->status |= VIRTIO_CONFIG_S_FAILED;
	if (v & VIRTIO_CONFIG_S_ACKNOWLEDGE)
		d->status |= VIRTIO_CONFIG_S_ACKNOWLEDGE;
	if (v & VIRTIO_CONFIG_S_DRIVER && d->status & VIRTIO_CONFIG_S_ACKNOWLEDGE)
		d->status |= VIRTIO_CONFIG_S_DRIVER;
	if (v & VIRTIO_CONFIG_S_FEATURES_OK && d->status & VIRTIO_CONFIG_S_DRIVER && features_ok(d))
		d->status |= VIRTIO_CONFIG_S_FEATURES_OK;
	if (v & VIRTIO_CONFIG_S_DRIVER_OK && d->status & VIRTIO_CONFIG_S_FEATURES_OK &&
	    !(d->status & VIRTIO_CONFIG_S_DRIVER_OK)) {
		d->status |= VIRTIO_CONFIG_S_DRIVER_OK;
		virtio_kick(d, ~0u); /* for what was made available before */
	}
}

static void write_ready(struct virtio_dev *d, struct virtq *q, uint32_t v)
{
	if (v & 1) {
		if (q->ready)
			return;
		const char *wrong = virtq_start(q);
		if (wrong)
			virtio_say(d, "queue %u: %s; it stays off", q->index, wrong);
	} else if (q->ready) {
		drain(d);
		virtq_reset(q);
		virtio_kick(d, ~0u); /* what the other queues finished meanwhile is unsent */
	}
}

static void set_half(uint64_t *at, uint32_t v, bool high)
{
	*at = high ? (*at & UINT32_MAX) | (uint64_t)v << 32 : (*at & ~(uint64_t)UINT32_MAX) | v;
}

/* Registers that set a queue up: between FEATURES_OK and DRIVER_OK. */
static void queue_write(struct virtio_dev *d, struct virtq *q, uint64_t offset, uint32_t v)
{
	if (offset == VIRTIO_MMIO_QUEUE_READY && !v) {
		write_ready(d, q, v);
		return;
	}
	if (!(d->status & VIRTIO_CONFIG_S_FEATURES_OK) || d->status & VIRTIO_CONFIG_S_DRIVER_OK ||
	    q->ready)
		return;
	switch (offset) {
	case VIRTIO_MMIO_QUEUE_NUM:
		/* A size that can't be is remembered as 0, which never becomes ready. */
		q->num = v <= d->queue_max && !(v & (v - 1)) ? (uint16_t)v : 0;
		break;
	case VIRTIO_MMIO_QUEUE_READY:
		write_ready(d, q, v);
		break;
	case VIRTIO_MMIO_QUEUE_DESC_LOW:
	case VIRTIO_MMIO_QUEUE_DESC_HIGH:
		set_half(&q->desc, v, offset == VIRTIO_MMIO_QUEUE_DESC_HIGH);
		break;
	case VIRTIO_MMIO_QUEUE_AVAIL_LOW:
	case VIRTIO_MMIO_QUEUE_AVAIL_HIGH:
		set_half(&q->avail, v, offset == VIRTIO_MMIO_QUEUE_AVAIL_HIGH);
		break;
	case VIRTIO_MMIO_QUEUE_USED_LOW:
	case VIRTIO_MMIO_QUEUE_USED_HIGH:
		set_half(&q->used, v, offset == VIRTIO_MMIO_QUEUE_USED_HIGH);
		break;
	}
}

static void register_write(struct virtio_dev *d, uint64_t offset, uint32_t v)
{
	if (offset == VIRTIO_MMIO_STATUS) {
		write_status(d, v);
		return;
	}
	if (offset == VIRTIO_MMIO_INTERRUPT_ACK) {
		lower_irq(d, v);
		return;
	}
	if (d->draining) /* another vCPU resets the device just now */
		return;
	struct virtq *q = selected(d);
	switch (offset) {
	case VIRTIO_MMIO_DEVICE_FEATURES_SEL:
		d->features_sel = v;
		break;
	case VIRTIO_MMIO_DRIVER_FEATURES_SEL:
		d->driver_features_sel = v;
		break;
	case VIRTIO_MMIO_DRIVER_FEATURES:
		if (d->driver_features_sel < 2 && d->status & VIRTIO_CONFIG_S_DRIVER &&
		    !(d->status & VIRTIO_CONFIG_S_FEATURES_OK))
			set_half(&d->driver_features, v, d->driver_features_sel == 1);
		break;
	case VIRTIO_MMIO_QUEUE_SEL:
		d->queue_sel = v;
		break;
	default:
		if (q)
			queue_write(d, q, offset, v);
	}
}

static void config_access(struct virtio_dev *d, uint64_t offset, uint8_t *data, unsigned len,
			  bool write)
{
	if (offset >= d->config_bytes)
		return;
	if (len > d->config_bytes - offset)
		len = d->config_bytes - (unsigned)offset;
	if (!write)
		memcpy(data, d->config + offset, len);
	else if (d->ops->config_write && !d->draining)
		d->ops->config_write(d, (unsigned)offset, data, len);
}

void virtio_mmio_access(struct virtio_dev *d, uint64_t offset, void *data, unsigned len, bool write)
{
	uint32_t v = 0;
	if (!write)
		memset(data, 0, len);
	else if (len == 4)
		memcpy(&v, data, sizeof(v));
	v = le32toh(v);

	/* The frequent one, without the lock: whether the device is live the loop finds out. */
	if (write && offset == VIRTIO_MMIO_QUEUE_NOTIFY) {
		if (len == 4 && v < d->queues)
			virtio_kick(d, 1u << v);
		return;
	}
	pthread_mutex_lock(&d->lock);
	if (offset >= VIRTIO_MMIO_CONFIG) {
		config_access(d, offset - VIRTIO_MMIO_CONFIG, data, len, write);
	} else if (len == 4 && !(offset & 3)) { /* section 4.2.2.2: no other is a register's */
		if (write) {
			register_write(d, offset, v);
		} else {
			v = htole32(register_read(d, offset));
			memcpy(data, &v, sizeof(v));
		}
	}
	pthread_mutex_unlock(&d->lock);
}
