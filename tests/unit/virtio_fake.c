#include "virtio_fake.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_config.h>
#include <linux/virtio_mmio.h>
#include <linux/virtio_ring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define GUARDED
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define GUARDED
#endif
#ifdef GUARDED
#include <sanitizer/asan_interface.h>
#endif

uint64_t rnd64(struct rnd *r)
{
	uint64_t z = r->state += UINT64_C(0x9e3779b97f4a7c15);
	z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
	return z ^ z >> 31;
}

uint32_t rnd_below(struct rnd *r, uint32_t n)
{
	return (uint32_t)(rnd64(r) % n);
}

bool rnd_one_in(struct rnd *r, uint32_t n)
{
	return !rnd_below(r, n);
}

/* ---- memory ------------------------------------------------------------------------------- */

static uint8_t *at_page(struct fake *f, uint64_t at)
{
	return f->pool + f->place[at / PAGE_SIZE] * PAGE_SIZE + at % PAGE_SIZE;
}

/* Under the address sanitizer a page that isn't pinned is poisoned: whoever touches guest memory without
 * a pin is told of. (Its owner is the kernel as well, which nobody watches.) Returns the pins before. */
static int count_pin(struct fake *f, unsigned page, int more)
{
#ifdef GUARDED
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	pthread_mutex_lock(&lock);
	int was = atomic_fetch_add(&f->pins[page], more);
	if (was == 0 && more > 0)
		ASAN_UNPOISON_MEMORY_REGION(f->pool + page * PAGE_SIZE, PAGE_SIZE);
	if (was == 1 && more < 0)
		ASAN_POISON_MEMORY_REGION(f->pool + page * PAGE_SIZE, PAGE_SIZE);
	pthread_mutex_unlock(&lock);
	return was;
#else
	return atomic_fetch_add(&f->pins[page], more);
#endif
}

static void guard_all(struct fake *f, bool on)
{
#ifdef GUARDED
	if (on)
		ASAN_POISON_MEMORY_REGION(f->pool, FAKE_BYTES);
	else
		ASAN_UNPOISON_MEMORY_REGION(f->pool, FAKE_BYTES);
#else
	(void)f;
	(void)on;
#endif
}

static void fake_unmap(struct gmem *m, const struct iovec *iov, int n)
{
	struct fake *f = (struct fake *)m;
	for (int i = 0; i < n; i++) {
		uint64_t at = (uint64_t)((uint8_t *)iov[i].iov_base - f->pool);
		cr_assert(at < FAKE_BYTES && iov[i].iov_len && iov[i].iov_len <= PAGE_SIZE,
			  "unmap of what map never gave");
		int was = count_pin(f, (unsigned)(at / PAGE_SIZE), -1);
		cr_assert(was > 0, "a page unpinned once too often");
		atomic_fetch_sub(&f->pinned, 1);
	}
}

static int fake_map(struct gmem *m, gpa_t a, uint64_t len, bool write, struct iovec *iov, int max)
{
	struct fake *f = (struct fake *)m;
	f->maps++;
	if (!len || a.v >= FAKE_BYTES || len > FAKE_BYTES - a.v)
		return -EFAULT;
	if (f->skip > 0) {
		f->skip--;
	} else if (f->fail > 0) {
		f->fail--;
		return f->error;
	}
	if (f->chaos && rnd_one_in(f->chaos, f->odds))
		return rnd_one_in(f->chaos, 8) ? -EFAULT : -EAGAIN;
	int n = 0;
	for (uint64_t at = a.v, end = a.v + len; at < end;) {
		uint64_t k = PAGE_SIZE - at % PAGE_SIZE;
		if (k > end - at)
			k = end - at;
		if (n == max) {
			fake_unmap(m, iov, n);
			return -ENOBUFS;
		}
		iov[n++] = (struct iovec){at_page(f, at), k};
		count_pin(f, f->place[at / PAGE_SIZE], 1);
		atomic_fetch_add(&f->pinned, 1);
		if (write)
			f->written[at / PAGE_SIZE] = true;
		at += k;
	}
	return n;
}

static const struct gmem_ops fake_ops = {.map = fake_map, .unmap = fake_unmap};

void fake_init(struct fake *f)
{
	memset(f, 0, sizeof(*f));
	f->gmem.ops = &fake_ops;
	f->gmem.bytes = FAKE_BYTES;
	f->pool = aligned_alloc(PAGE_SIZE, FAKE_BYTES);
	memset(f->pool, 0, FAKE_BYTES);
	/* An odd factor, not 1: a permutation without neighbours. */
	for (unsigned i = 0; i < FAKE_PAGES; i++)
		f->place[i] = (uint16_t)((i * 389u + 17u) % FAKE_PAGES);
	guard_all(f, true);
}

void fake_wipe(struct fake *f)
{
	cr_assert_eq(atomic_load(&f->pinned), 0, "pages stay pinned");
	guard_all(f, false);
	for (uint64_t i = 0; i < FAKE_PAGES; i++)
		if (f->written[i])
			memset(at_page(f, i * PAGE_SIZE), 0, PAGE_SIZE);
	memset(f->written, 0, sizeof(f->written));
	guard_all(f, true);
}

void fake_fini(struct fake *f)
{
	cr_assert_eq(atomic_load(&f->pinned), 0, "pages stay pinned");
	guard_all(f, false);
	free(f->pool);
}

static void fake_copy(struct fake *f, uint64_t at, uint8_t *host, size_t n, bool put)
{
	cr_assert(at <= FAKE_BYTES && n <= FAKE_BYTES - at);
	while (n) {
		size_t k = PAGE_SIZE - at % PAGE_SIZE;
		k = k > n ? n : k;
		count_pin(f, f->place[at / PAGE_SIZE], 1);
		if (put)
			memcpy(at_page(f, at), host, k);
		else
			memcpy(host, at_page(f, at), k);
		count_pin(f, f->place[at / PAGE_SIZE], -1);
		if (put)
			f->written[at / PAGE_SIZE] = true;
		at += k;
		host += k;
		n -= k;
	}
}

void fake_put(struct fake *f, uint64_t at, const void *from, size_t n)
{
	fake_copy(f, at, (uint8_t *)from, n, true);
}

void fake_get(struct fake *f, uint64_t at, void *to, size_t n)
{
	fake_copy(f, at, to, n, false);
}

uint16_t fake_load16(struct fake *f, uint64_t at)
{
	count_pin(f, f->place[at / PAGE_SIZE], 1);
	uint16_t v = atomic_load_explicit((_Atomic uint16_t *)at_page(f, at), memory_order_acquire);
	count_pin(f, f->place[at / PAGE_SIZE], -1);
	return v;
}

void fake_store16(struct fake *f, uint64_t at, uint16_t v)
{
	count_pin(f, f->place[at / PAGE_SIZE], 1);
	atomic_store_explicit((_Atomic uint16_t *)at_page(f, at), v, memory_order_release);
	count_pin(f, f->place[at / PAGE_SIZE], -1);
	f->written[at / PAGE_SIZE] = true;
}

/* ---- driver ------------------------------------------------------------------------------- */

static void on_irq(void *ctx, bool level)
{
	struct drv *t = ctx;
	cr_assert_neq(atomic_exchange(&t->irq, level), level, "told of a level that didn't change");
	if (level)
		atomic_fetch_add(&t->irqs, 1);
}

static void on_say(void *ctx, const char *line)
{
	struct drv *t = ctx;
	cr_assert(!strchr(line, '\n'));
	snprintf(t->line, sizeof(t->line), "%s", line);
	atomic_fetch_add(&t->said, 1);
}

void drv_init(struct drv *t)
{
	memset(t, 0, sizeof(*t));
	fake_init(&t->mem);
	cr_assert_eq(loop_create(&t->loop, 8), 0);
	t->env = (struct virtio_env){&t->mem.gmem, t->loop, on_irq, t, on_say, t};
	/* Rings in the first pages, one page apart; the queues one after the other. */
	for (unsigned i = 0; i < 5; i++)
		t->q[i] = (struct drv_queue){.desc = 0x1000 + i * 0x4000,
					     .avail = 0x2000 + i * 0x4000,
					     .used = 0x3000 + i * 0x4000,
					     .num = DRV_NUM};
}

static void *run(void *arg)
{
	struct drv *t = arg;
	cr_assert_eq(loop_run(t->loop), 0);
	return NULL;
}

void drv_thread(struct drv *t)
{
	t->threaded = true;
	cr_assert_eq(pthread_create(&t->thread, NULL, run, t), 0);
}

void drv_fini(struct drv *t)
{
	virtio_destroy(t->dev);
	if (t->threaded) {
		loop_stop(t->loop);
		pthread_join(t->thread, NULL);
	}
	loop_destroy(t->loop);
	fake_fini(&t->mem);
}

void drv_step(struct drv *t, int ms)
{
	if (t->threaded)
		usleep(100);
	else
		cr_assert_eq(loop_step(t->loop, NULL, ms), 0);
}

uint32_t drv_rd(struct drv *t, uint64_t offset)
{
	uint32_t v = 0xdeadbeef;
	virtio_mmio_access(t->dev, offset, &v, sizeof(v), false);
	return v;
}

void drv_wr(struct drv *t, uint64_t offset, uint32_t v)
{
	virtio_mmio_access(t->dev, offset, &v, sizeof(v), true);
}

void drv_start(struct drv *t, uint64_t mask, unsigned queues)
{
	drv_wr(t, VIRTIO_MMIO_STATUS, 0);
	cr_assert_eq(drv_rd(t, VIRTIO_MMIO_STATUS), 0);
	drv_wr(t, VIRTIO_MMIO_STATUS, 1);
	drv_wr(t, VIRTIO_MMIO_STATUS, 3);
	drv_wr(t, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
	uint64_t offered = drv_rd(t, VIRTIO_MMIO_DEVICE_FEATURES);
	drv_wr(t, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
	offered |= (uint64_t)drv_rd(t, VIRTIO_MMIO_DEVICE_FEATURES) << 32;
	t->features = offered & (mask | 1ull << VIRTIO_F_VERSION_1);
	for (unsigned i = 0; i < 2; i++) {
		drv_wr(t, VIRTIO_MMIO_DRIVER_FEATURES_SEL, i);
		drv_wr(t, VIRTIO_MMIO_DRIVER_FEATURES, (uint32_t)(t->features >> 32 * i));
	}
	drv_wr(t, VIRTIO_MMIO_STATUS, 0xb);
	cr_assert_eq(drv_rd(t, VIRTIO_MMIO_STATUS), 0xb, "features refused");
	for (unsigned i = 0; i < queues; i++) {
		struct drv_queue *q = &t->q[i];
		uint8_t none[0x3000] = {0};
		fake_put(&t->mem, q->desc, none, sizeof(none));
		q->avail_idx = q->used_seen = q->next_desc = 0;
		drv_wr(t, VIRTIO_MMIO_QUEUE_SEL, i);
		uint32_t most = drv_rd(t, VIRTIO_MMIO_QUEUE_NUM_MAX);
		cr_assert_gt(most, 0);
		q->num = most < DRV_NUM ? (uint16_t)most : DRV_NUM;
		cr_assert_eq(drv_rd(t, VIRTIO_MMIO_QUEUE_READY), 0);
		drv_wr(t, VIRTIO_MMIO_QUEUE_NUM, q->num);
		drv_wr(t, VIRTIO_MMIO_QUEUE_DESC_LOW, (uint32_t)q->desc);
		drv_wr(t, VIRTIO_MMIO_QUEUE_DESC_HIGH, (uint32_t)(q->desc >> 32));
		drv_wr(t, VIRTIO_MMIO_QUEUE_AVAIL_LOW, (uint32_t)q->avail);
		drv_wr(t, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, (uint32_t)(q->avail >> 32));
		drv_wr(t, VIRTIO_MMIO_QUEUE_USED_LOW, (uint32_t)q->used);
		drv_wr(t, VIRTIO_MMIO_QUEUE_USED_HIGH, (uint32_t)(q->used >> 32));
		drv_wr(t, VIRTIO_MMIO_QUEUE_READY, 1);
		cr_assert_eq(drv_rd(t, VIRTIO_MMIO_QUEUE_READY), 1);
	}
	drv_wr(t, VIRTIO_MMIO_STATUS, 0xf);
	cr_assert_eq(drv_rd(t, VIRTIO_MMIO_STATUS), 0xf);
}

void drv_reset(struct drv *t)
{
	drv_wr(t, VIRTIO_MMIO_STATUS, 0);
	cr_assert_eq(drv_rd(t, VIRTIO_MMIO_STATUS), 0);
	if (!t->threaded) /* a look at the rings by the loop may be under way otherwise */
		cr_assert_eq(atomic_load(&t->mem.pinned), 0, "pages stay pinned after a reset");
	cr_assert(!atomic_load(&t->irq));
}

static void put_desc(struct drv *t, uint64_t at, const struct seg *s, uint16_t flags, uint16_t next)
{
	struct vring_desc d = {s->at, s->len,
			       (uint16_t)(flags | (s->write ? VRING_DESC_F_WRITE : 0)), next};
	fake_put(&t->mem, at, &d, sizeof(d));
}

uint16_t drv_add(struct drv *t, unsigned index, const struct seg *s, unsigned n, uint64_t table)
{
	struct drv_queue *q = &t->q[index];
	uint16_t head = q->next_desc, mask = (uint16_t)(q->num - 1);
	for (unsigned i = 0; i < n; i++) {
		uint16_t flags = i + 1 < n ? VRING_DESC_F_NEXT : 0;
		if (table) {
			put_desc(t, table + 16 * i, &s[i], flags, (uint16_t)(i + 1));
			continue;
		}
		uint16_t next = (uint16_t)((q->next_desc + 1) & mask);
		put_desc(t, q->desc + 16 * q->next_desc, &s[i], flags, next);
		q->next_desc = next;
	}
	if (table) {
		struct seg indirect = {table, 16 * n, false};
		put_desc(t, q->desc + 16 * q->next_desc, &indirect, VRING_DESC_F_INDIRECT, 0);
		q->next_desc = (uint16_t)((q->next_desc + 1) & mask);
	}
	fake_put(&t->mem, q->avail + 4 + 2 * (q->avail_idx & mask), &head, 2);
	fake_store16(&t->mem, q->avail + 2, ++q->avail_idx);
	return head;
}

void drv_kick(struct drv *t, unsigned q)
{
	drv_wr(t, VIRTIO_MMIO_QUEUE_NOTIFY, q);
}

bool drv_used(struct drv *t, unsigned index, uint16_t *id, uint32_t *len)
{
	struct drv_queue *q = &t->q[index];
	uint32_t e[2];
	if (fake_load16(&t->mem, q->used + 2) == q->used_seen)
		return false;
	fake_get(&t->mem, q->used + 4 + 8 * (q->used_seen & (q->num - 1)), e, sizeof(e));
	q->used_seen++;
	if (id)
		*id = (uint16_t)e[0];
	if (len)
		*len = e[1];
	return true;
}

void drv_wait(struct drv *t, unsigned q, uint16_t *id, uint32_t *len)
{
	struct timespec start, now;
	clock_gettime(CLOCK_MONOTONIC, &start);
	while (!drv_used(t, q, id, len)) {
		drv_step(t, 100);
		clock_gettime(CLOCK_MONOTONIC, &now);
		cr_assert(now.tv_sec - start.tv_sec < 20, "no answer on queue %u; said: %s", q,
			  t->line);
	}
}

void drv_blk_header(struct drv *t, uint64_t at, uint32_t type, uint64_t sector)
{
	struct {
		uint32_t type, reserved;
		uint64_t sector;
	} h = {type, 0, sector};
	fake_put(&t->mem, at, &h, sizeof(h));
}

uint8_t drv_blk(struct drv *t, uint32_t type, uint64_t sector, uint64_t at, uint32_t bytes)
{
	uint64_t header = 0x9ff8, status = 0xbfff; /* the header lies across two pages */
	bool in = type == 0 || type == 8;
	uint8_t v = 0xee;
	drv_blk_header(t, header, type, sector);
	fake_put(&t->mem, status, &v, 1);
	struct seg s[3] = {{header, 16, false}, {at, bytes, in}, {status, 1, true}};
	if (!bytes)
		s[1] = s[2];
	uint16_t head = drv_add(t, 0, s, bytes ? 3 : 2, 0), id;
	drv_kick(t, 0);
	drv_wait(t, 0, &id, NULL);
	cr_assert_eq(id, head);
	fake_get(&t->mem, status, &v, 1);
	return v;
}

int temp_file(uint64_t bytes, bool in_memory)
{
	char name[] = "/tmp/virtio-test-XXXXXX";
	int fd = in_memory ? memfd_create("virtio-test", MFD_CLOEXEC) : mkstemp(name);
	cr_assert_geq(fd, 0);
	if (!in_memory)
		unlink(name);
	uint8_t *all = malloc(bytes + 1);
	for (uint64_t i = 0; i < bytes; i++)
		all[i] = fill_byte(i);
	cr_assert_eq(write(fd, all, bytes), (ssize_t)bytes);
	free(all);
	return fd;
}
