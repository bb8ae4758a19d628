/*
 * The memory balloon (virtio 1.2 section 5.5): pages that the guest takes out of its own use and names on the inflate
 * queue, and free pages that it reports before it uses them again. Both are given to the VMM, for good; a page of the
 * balloon, or a reported one, that the guest touches again is memory like any other.
 *
 * Reported pages keep what is in them or read as zero (5.5.6.7.2), and that suits every driver but one that fills its
 * free pages with something else (PAGE_POISON, poison_val): its reports are answered and nothing is given. A driver
 * that fills them with zeroes may report only if it can say so, hence the feature.
 *
 * The buffer of the statistics queue is held until its numbers are wanted, which is to use it: the driver then sends
 * another. It is held in the available ring, so that nothing is in flight for as long as that.
 */
#include "ipt/own.h"
#include "virtio/device.h"
#include <endian.h>
#include <errno.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
#include <stdlib.h>
#include <string.h>

/* Section 5.5.3. The kernel's header has these too, and a struct of the name that virtio.h uses. */
enum {
	F_STATS_VQ = 1,
	F_DEFLATE_ON_OOM = 2,
	F_PAGE_POISON = 4,
	F_REPORTING = 5,
};

/* Section 5.5.2. Without free page hints there is no queue 3 of that name, and drivers count differently: the
 * specification has reports on queue 4, Linux leaves no numbers out (vm_find_vqs), so that they are on 3, or on 2
 * without statistics. What comes after those we have is taken for reports. */
enum { INFLATE, DEFLATE, STATS, QUEUES = 5 };

/* Section 5.5.4: offsets in config space. */
enum { CONFIG_NUM_PAGES = 0, CONFIG_ACTUAL = 4, CONFIG_POISON = 12, CONFIG_BYTES = 16 };

#define CHAIN_PAGES 4096u /* named by one request at most; Linux has 256 */
#define TURN_PAGES  1024u /* after so many the loop sees to its other work */
#define SORTED      256u
#define NUMBER      10u /* bytes: le16 tag, le64 value */
#define NUMBERS_MAX 64u

struct balloon {
	struct virtio_dev dev; /* must be first */
	struct virtio_balloon_config of;

	/* dev.lock protects the rest */
	uint8_t config[CONFIG_BYTES];
	bool asked;   /* the held buffer of numbers is to be used */
	bool awaited; /* the next one has numbers that are new */
	struct virtio_balloon_stats stats;
};

static uint32_t get32(const uint8_t *p)
{
	uint32_t v;
	memcpy(&v, p, sizeof(v));
	return le32toh(v);
}

static void put32(uint8_t *p, uint32_t v)
{
	v = htole32(v);
	memcpy(p, &v, sizeof(v));
}

static void tell(struct balloon *b)
{
	if (b->of.news)
		b->of.news(b->of.ctx, &b->stats);
}

/* ---- pages -------------------------------------------------------------------------------- */

static int ascending(const void *a, const void *b)
{
	uint32_t x, y;
	memcpy(&x, a, sizeof(x));
	memcpy(&y, b, sizeof(y));
	return (x > y) - (x < y);
}

/* Page numbers in any order, some of them twice if the driver likes. */
static void give_pages(struct balloon *b, uint32_t *pfn, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		pfn[i] = le32toh(pfn[i]);
	qsort(pfn, n, sizeof(*pfn), ascending);
	for (unsigned i = 0, k; i < n; i += k) {
		uint64_t end = pfn[i] + UINT64_C(1);
		for (k = 1; i + k < n && pfn[i + k] <= end; k++)
			end = pfn[i + k] + UINT64_C(1);
		uint64_t pages = end - pfn[i];
		b->stats.inflated += pages;
		if (b->of.give(b->of.ctx, gpa((uint64_t)pfn[i] << PAGE_SHIFT), pages << PAGE_SHIFT))
			b->stats.refused += pages;
	}
}

static void inflate_or_deflate(struct balloon *b, struct virtq *q)
{
	struct virtq_chain *c;
	uint64_t done = 0;
	while (done < TURN_PAGES && (c = virtq_pop(q))) {
		uint64_t n = c->read_bytes / sizeof(uint32_t);
		bool wrong = !n || c->read_bytes % sizeof(uint32_t) || n > CHAIN_PAGES;
		for (uint64_t at = 0, k; !wrong && q->index == INFLATE && at < n; at += k) {
			uint32_t pfn[SORTED];
			k = n - at < SORTED ? n - at : SORTED;
			iov_read(c->iov, c->readable, at * sizeof(*pfn), pfn, k * sizeof(*pfn));
			give_pages(b, pfn, (unsigned)k);
		}
		/* Deflated pages are memory again as soon as the guest touches them. */
		if (!wrong && q->index == DEFLATE)
			b->stats.deflated += n;
		done += n;
		virtq_done(c, 0);
		if (wrong)
			virtio_fail(&b->dev, q, "a request with an impossible number of pages");
	}
	if (done >= TURN_PAGES)
		virtio_kick(&b->dev, 1u << q->index);
}

/* Whole pages of one buffer that the driver reports. False if it isn't memory. */
static bool give_buffer(struct balloon *b, const struct iovec *v)
{
	uint64_t from = (uintptr_t)v->iov_base, to = from + v->iov_len;
	if (to < from)
		return false;
	b->stats.reported += v->iov_len;
	if (virtio_has(&b->dev, F_PAGE_POISON) && get32(b->config + CONFIG_POISON))
		return true;
	from = (from + PAGE_MASK) & ~PAGE_MASK;
	to &= ~PAGE_MASK;
	return from >= to || !b->of.give(b->of.ctx, gpa(from), to - from);
}

static void report(struct balloon *b, struct virtq *q)
{
	struct virtq_chain *c;
	uint64_t done = 0;
	q->unmapped = true;
	while (done < TURN_PAGES && (c = virtq_pop(q))) {
		bool good = c->writable > 0;
		for (int i = c->readable; good && i < c->readable + c->writable; i++)
			good = give_buffer(b, &c->iov[i]);
		done += c->write_bytes >> PAGE_SHIFT;
		virtq_done(c, 0);
		if (!good)
			virtio_fail(&b->dev, q, "a report of what is no memory");
	}
	tell(b);
	if (done >= TURN_PAGES)
		virtio_kick(&b->dev, 1u << q->index);
}

/* ---- the guest's numbers ------------------------------------------------------------------ */

static void take_numbers(struct balloon *b, const struct virtq_chain *c)
{
	uint8_t raw[NUMBERS_MAX * NUMBER];
	size_t bytes = iov_read(c->iov, c->readable, 0, raw, sizeof(raw));
	for (size_t at = 0; at + NUMBER <= bytes; at += NUMBER) {
		unsigned tag = raw[at] | (unsigned)raw[at + 1] << 8;
		if (tag >= VIRTIO_BALLOON_NUMBERS)
			continue;
		b->stats.number[tag] = get32(raw + at + 2) | (uint64_t)get32(raw + at + 6) << 32;
		b->stats.known |= 1u << tag;
	}
	b->stats.times++;
	b->awaited = false;
	tell(b);
}

static void stats(struct balloon *b, struct virtq *q)
{
	struct virtq_chain *c;
	while ((c = virtq_pop(q))) {
		if (b->asked) {
			b->asked = false;
			b->awaited = true;
			virtq_done(c, 0);
			continue;
		}
		if (b->awaited)
			take_numbers(b, c);
		virtq_unpop(c);
		return;
	}
}

/* ---- life --------------------------------------------------------------------------------- */

static void process(struct virtio_dev *d, struct virtq *q)
{
	struct balloon *b = (struct balloon *)d;
	if (!b->stats.driver) {
		b->stats.driver = true;
		b->stats.reports = virtio_has(d, F_REPORTING);
		tell(b);
	}
	if (q->index < STATS)
		inflate_or_deflate(b, q);
	else if (q->index == STATS && virtio_has(d, F_STATS_VQ))
		stats(b, q);
	else if (virtio_has(d, F_REPORTING))
		report(b, q);
}

static void reset(struct virtio_dev *d)
{
	struct balloon *b = (struct balloon *)d;
	put32(b->config + CONFIG_ACTUAL, 0);
	put32(b->config + CONFIG_POISON, 0);
	b->stats.driver = b->stats.reports = b->asked = false;
	b->stats.actual = b->stats.known = 0;
	b->awaited = true;
	for (unsigned i = 0; i < QUEUES; i++)
		d->q[i].unmapped = false;
	if (!d->dying)
		tell(b);
}

static void config_write(struct virtio_dev *d, unsigned offset, const uint8_t *data, unsigned len)
{
	struct balloon *b = (struct balloon *)d;
	for (unsigned i = 0; i < len; i++) {
		unsigned at = offset + i;
		if ((at >= CONFIG_ACTUAL && at < CONFIG_ACTUAL + 4) || at >= CONFIG_POISON)
			b->config[at] = data[i];
	}
	uint32_t actual = get32(b->config + CONFIG_ACTUAL);
	if (actual == b->stats.actual)
		return;
	b->stats.actual = actual;
	tell(b);
}

static void destroy(struct virtio_dev *d)
{
	virtio_fini(d);
	own_free(d);
}

void virtio_balloon_resize(struct virtio_dev *d, uint32_t pages)
{
	struct balloon *b = (struct balloon *)d;
	pthread_mutex_lock(&d->lock);
	bool other = pages != b->stats.target;
	put32(b->config + CONFIG_NUM_PAGES, pages);
	b->stats.target = pages;
	if (other)
		virtio_config_changed(d);
	tell(b);
	pthread_mutex_unlock(&d->lock);
}

void virtio_balloon_ask(struct virtio_dev *d)
{
	struct balloon *b = (struct balloon *)d;
	pthread_mutex_lock(&d->lock);
	/* If the last answer is still to come, it will do. */
	bool ask = virtio_live(d) && virtio_has(d, F_STATS_VQ) && !b->awaited;
	b->asked = b->asked || ask;
	pthread_mutex_unlock(&d->lock);
	if (ask)
		virtio_kick(d, 1u << STATS);
}

void virtio_balloon_stats(struct virtio_dev *d, struct virtio_balloon_stats *out)
{
	pthread_mutex_lock(&d->lock);
	*out = ((struct balloon *)d)->stats;
	pthread_mutex_unlock(&d->lock);
}

static const struct virtio_ops ops = {
	.process = process, .reset = reset, .config_write = config_write, .destroy = destroy};

int virtio_balloon_create(struct virtio_dev **out, const struct virtio_env *env,
			  const struct virtio_balloon_config *config)
{
	struct balloon *b = own_alloc(sizeof(*b));
	if (!b)
		return -ENOMEM;
	b->of = *config;
	b->awaited = true;
	int r = virtio_init(&b->dev, env, &ops, VIRTIO_ID_BALLOON, "virtio-balloon",
			    1u << F_STATS_VQ | 1u << F_DEFLATE_ON_OOM | 1u << F_PAGE_POISON |
				    1u << F_REPORTING,
			    QUEUES);
	if (r) {
		own_free(b);
		return r;
	}
	b->dev.config = b->config;
	b->dev.config_bytes = CONFIG_BYTES;
	*out = &b->dev;
	return 0;
}
