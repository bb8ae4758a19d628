/* Disks with a volatile cache: what a power cut leaves of them, against a model that knows every sector's past. */
#include "ipt/fail.h"
#include "virtio/undo.h"
#include "virtio_fake.h"
#include <criterion/criterion.h>
#include <linux/virtio_mmio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { IN, OUT, FLUSH = 4, DISCARD = 11, WRITE_ZEROES = 13 };
enum { OK, IOERR, UNSUPP };

#define DATA      0x100000u
#define SECTORS   256u
#define PAST      64 /* contents of a sector since a flush that the model remembers */
#define WRITEBACK (VIRTIO_MMIO_CONFIG + 32)
#define F_FLUSH   9

struct range {
	uint64_t sector;
	uint32_t sectors, flags;
};

/* A sector's contents by one number; 0: zeroes. past[0] is durable, past[n - 1] is now. */
struct model {
	struct {
		uint32_t past[PAST];
		unsigned n;
	} sector[SECTORS];
	uint32_t tag;
};

static void fill(uint8_t *to, uint32_t tag)
{
	for (unsigned i = 0; i < 512; i += 4)
		memcpy(to + i, &(uint32_t){tag ? tag * 2654435761u + i : 0}, 4);
}

static uint64_t draw(void *ctx, uint64_t sector, unsigned what, uint64_t below)
{
	struct rnd r = {*(const uint64_t *)ctx + sector * 1000003 + what * 7919};
	rnd64(&r);
	return rnd64(&r) % below;
}

static struct virtio_blk_loss cut(struct drv *t, int lose, uint64_t seed)
{
	struct virtio_blk_loss loss;
	struct virtio_blk_cut how = {.draw = draw, .ctx = &seed};
	how.lose = lose;
	virtio_blk_cut(t->dev, &how, &loss);
	return loss;
}

static int begin(struct drv *t, uint64_t sectors, bool is_volatile)
{
	int fd = temp_file(sectors * 512, true);
	uint8_t *zeroes = calloc(sectors, 512);
	cr_assert_eq(pwrite(fd, zeroes, sectors * 512, 0), (ssize_t)(sectors * 512));
	free(zeroes);
	drv_init(t);
	struct virtio_blk_config c = {.fd = dup(fd), .is_volatile = is_volatile, .serial = "v"};
	cr_assert_eq(virtio_blk_create(&t->dev, &t->env, &c), 0);
	drv_start(t, UINT64_MAX, 1);
	return fd;
}

static void becomes(struct model *m, uint64_t s, uint32_t tag)
{
	cr_assert_lt(m->sector[s].n, PAST);
	m->sector[s].past[m->sector[s].n++] = tag;
}

static void is_durable(struct model *m)
{
	for (unsigned s = 0; s < SECTORS; s++) {
		m->sector[s].past[0] = m->sector[s].past[m->sector[s].n - 1];
		m->sector[s].n = 1;
	}
}

static void write_some(struct drv *t, struct model *m, uint64_t at, unsigned n)
{
	uint8_t b[16 * 512];
	for (unsigned i = 0; i < n; i++) {
		fill(b + i * 512, ++m->tag);
		becomes(m, at + i, m->tag);
	}
	fake_put(&t->mem, DATA, b, n * 512);
	cr_assert_eq(drv_blk(t, OUT, at, DATA, n * 512), OK);
}

static void clear_some(struct drv *t, struct model *m, uint64_t at, unsigned n, struct rnd *r)
{
	bool discard = rnd_one_in(r, 2);
	struct range range = {at, n, discard ? 0 : rnd_below(r, 2)};
	fake_put(&t->mem, DATA, &range, sizeof range);
	cr_assert_eq(drv_blk(t, discard ? DISCARD : WRITE_ZEROES, 0, DATA, sizeof range), OK);
	for (unsigned i = 0; i < n; i++)
		becomes(m, at + i, 0);
}

static void read_some(struct drv *t, const struct model *m, uint64_t at, unsigned n)
{
	uint8_t is[512], should[512];
	cr_assert_eq(drv_blk(t, IN, at, DATA, n * 512), OK);
	for (unsigned i = 0; i < n; i++) {
		fake_get(&t->mem, DATA + i * 512, is, 512);
		fill(should, m->sector[at + i].past[m->sector[at + i].n - 1]);
		cr_assert(!memcmp(is, should, 512), "sector %lu", at + i);
	}
}

/* Does what a guest does, by a seed; its last words are no flush. */
static void work(struct drv *t, struct model *m, uint64_t seed, unsigned steps)
{
	struct rnd r = {seed};
	for (unsigned i = 0; i < steps; i++) {
		unsigned n = 1 + rnd_below(&r, 16);
		uint64_t at = rnd_below(&r, SECTORS - n);
		switch (rnd_below(&r, 16)) {
		case 0:
			cr_assert_eq(drv_blk(t, FLUSH, 0, 0, 0), OK);
			is_durable(m);
			break;
		case 1: /* its driver begins anew; no power is cut by that */
			drv_reset(t);
			drv_start(t, UINT64_MAX, 1);
			break;
		case 2: { /* a write that is to be durable at once, between others */
			uint8_t cache = 0;
			if (!rnd_one_in(&r, 4))
				break;
			virtio_mmio_access(t->dev, WRITEBACK, &cache, 1, true);
			write_some(t, m, at, n);
			is_durable(m);
			cache = 1;
			virtio_mmio_access(t->dev, WRITEBACK, &cache, 1, true);
			break;
		}
		case 3:
		case 4:
			clear_some(t, m, at, n, &r);
			break;
		case 5:
		case 6:
			read_some(t, m, at, n);
			break;
		default:
			write_some(t, m, at, n);
		}
	}
	write_some(t, m, 3, 16);
}

static unsigned which(const struct model *m, unsigned s, const uint8_t *is)
{
	uint8_t could[512];
	for (unsigned k = m->sector[s].n; k-- > 0;) {
		fill(could, m->sector[s].past[k]);
		if (!memcmp(is, could, 512))
			return k;
	}
	cr_assert_fail("sector %u has what it never had since the flush", s);
	return 0;
}

struct seen {
	unsigned old, between, now; /* sectors that had a choice */
	uint8_t file[SECTORS * 512];
};

static void run(uint64_t seed, int lose, uint64_t cut_seed, struct seen *out)
{
	struct drv t;
	static struct model m;
	m = (struct model){.tag = 0};
	for (unsigned s = 0; s < SECTORS; s++)
		m.sector[s].n = 1;
	int fd = begin(&t, SECTORS, true);
	work(&t, &m, seed, 60);
	struct virtio_blk_loss loss = cut(&t, lose, cut_seed);
	cr_assert(loss.writes >= 1 && loss.error == 0 && loss.evicted == 0);
	cr_assert(loss.lost_writes <= loss.writes && loss.lost_bytes <= loss.bytes);
	*out = (struct seen){.old = 0};
	cr_assert_eq(pread(fd, out->file, sizeof out->file, 0), (ssize_t)sizeof out->file);
	for (unsigned s = 0; s < SECTORS; s++) {
		unsigned k = which(&m, s, out->file + s * 512), last = m.sector[s].n - 1;
		cr_assert(lose != VIRTIO_BLK_LOSE_NONE || k == last ||
				  m.sector[s].past[k] == m.sector[s].past[last],
			  "sector %u lost something", s);
		cr_assert(lose != VIRTIO_BLK_LOSE_ALL || k == 0 ||
				  m.sector[s].past[k] == m.sector[s].past[0],
			  "sector %u kept something", s);
		if (last)
			*(k == last ? &out->now : k ? &out->between : &out->old) += 1;
	}
	if (lose == VIRTIO_BLK_LOSE_ALL)
		cr_assert(loss.lost_writes == loss.writes && loss.lost_bytes == loss.bytes);
	if (lose == VIRTIO_BLK_LOSE_NONE)
		cr_assert(loss.lost_writes == 0 && loss.lost_bytes == 0);
	/* There is nothing more to lose. */
	cr_assert_eq(cut(&t, VIRTIO_BLK_LOSE_ALL, 0).writes, 0);
	drv_fini(&t);
	close(fd);
}

Test(virtio_volatile, what_was_flushed_is_there_and_the_rest_as_asked)
{
	static struct seen s;
	for (uint64_t seed = 1; seed <= 40; seed++)
		for (int lose = VIRTIO_BLK_LOSE_ALL; lose <= VIRTIO_BLK_LOSE_NONE; lose++)
			run(seed, lose, 0, &s);
}

Test(virtio_volatile, by_chance_every_sector_is_of_some_time_since_the_flush)
{
	static struct seen first, again, other;
	unsigned old = 0, between = 0, now = 0, differ = 0;
	for (uint64_t seed = 1; seed <= 40; seed++) {
		run(seed, VIRTIO_BLK_LOSE_RANDOM, seed, &first);
		run(seed, VIRTIO_BLK_LOSE_RANDOM, seed, &again);
		run(seed, VIRTIO_BLK_LOSE_RANDOM, seed + 1, &other);
		cr_assert(!memcmp(first.file, again.file, sizeof first.file),
			  "the same seed, another loss");
		differ += memcmp(first.file, other.file, sizeof first.file) != 0;
		old += first.old;
		between += first.between;
		now += first.now;
	}
	cr_assert_geq(differ, 39u, "another seed, the same loss");
	cr_assert(old > 100 && now > 100 && between > 20, "old %u, between %u, now %u", old,
		  between, now);
}

static uint8_t file_byte(int fd, uint64_t at)
{
	uint8_t b = 0;
	cr_assert_eq(pread(fd, &b, 1, (off_t)at), 1);
	return b;
}

/* One byte for all of 64 KiB, which is a write. */
static uint8_t write_one(struct drv *t, uint64_t i, uint8_t with)
{
	uint8_t *b = malloc(65536);
	memset(b, with, 65536);
	fake_put(&t->mem, DATA, b, 65536);
	free(b);
	return drv_blk(t, OUT, i * 128, DATA, 65536);
}

Test(virtio_volatile, a_full_cache_writes_back_its_oldest)
{
	enum { WRITES = UNDO_BYTES / 65536 + 100 };
	struct drv t;
	int fd = begin(&t, WRITES * 128, true);
	for (unsigned i = 0; i < WRITES; i++)
		cr_assert_eq(write_one(&t, i, 7), OK);
	struct virtio_blk_loss loss = cut(&t, VIRTIO_BLK_LOSE_ALL, 0);
	cr_assert_gt(loss.evicted, 100u);
	cr_assert_eq(loss.evicted + loss.writes, (uint64_t)WRITES);
	cr_assert_leq(loss.bytes, (uint64_t)UNDO_BYTES);
	cr_assert_geq(loss.bytes, (uint64_t)UNDO_BYTES * 9 / 10);
	for (unsigned i = 0; i < WRITES; i++)
		cr_assert_eq(file_byte(fd, i * 65536u + 99), i < loss.evicted ? 7 : 0, "%u", i);
	/* So does what is larger than it. */
	cr_assert_eq(write_one(&t, 0, 9), OK);
	struct range all = {0, WRITES * 128, 0};
	fake_put(&t.mem, DATA, &all, sizeof all);
	cr_assert_eq(drv_blk(&t, DISCARD, 0, DATA, sizeof all), OK);
	loss = cut(&t, VIRTIO_BLK_LOSE_ALL, 0);
	cr_assert_eq(loss.writes, 0);
	cr_assert_eq(file_byte(fd, 99), 0);
	drv_fini(&t);
	close(fd);
}

Test(virtio_volatile, without_flushes_every_write_is_durable)
{
	struct drv t;
	int fd = begin(&t, 4096, true);
	cr_assert_eq(write_one(&t, 1, 5), OK);
	drv_reset(&t);
	drv_start(&t, ~(UINT64_C(1) << F_FLUSH), 1);
	cr_assert_eq(write_one(&t, 0, 7), OK);
	cr_assert_eq(cut(&t, VIRTIO_BLK_LOSE_ALL, 0).writes, 0);
	cr_assert_eq(file_byte(fd, 99), 7);
	drv_fini(&t);
	close(fd);
}

Test(virtio_volatile, a_disk_that_is_not_loses_nothing)
{
	struct drv t;
	int fd = begin(&t, 4096, false);
	cr_assert_eq(write_one(&t, 0, 7), OK);
	struct virtio_blk_loss loss = cut(&t, VIRTIO_BLK_LOSE_ALL, 0);
	cr_assert(loss.writes == 0 && loss.lost_writes == 0);
	cr_assert_eq(file_byte(fd, 99), 7);
	drv_fini(&t);
	struct virtio_blk_config both = {.fd = fd, .read_only = true, .is_volatile = true};
	cr_assert_eq(virtio_blk_create(&t.dev, &t.env, &both), -EINVAL);
	close(fd);
}

Test(virtio_volatile, what_fails_on_the_host)
{
	struct drv t;
	char words[FAIL_WORDS_MAX];
	int fd = begin(&t, 4096, true);
	cr_assert_eq(write_one(&t, 0, 1), OK);
	cr_assert_eq(drv_blk(&t, FLUSH, 0, 0, 0), OK);
	/* A flush that fails makes nothing durable. */
	cr_assert_eq(write_one(&t, 0, 2), OK);
	cr_assert_eq(fail_set(FAIL_BLK_RESULT, "1*return(EIO)", words), 0);
	cr_assert_eq(drv_blk(&t, FLUSH, 0, 0, 0), IOERR);
	/* What was there can't be read: the write isn't made. */
	cr_assert_eq(fail_set(FAIL_BLK_KEEP, "1*return(EIO)", words), 0);
	cr_assert_eq(write_one(&t, 1, 3), IOERR);
	cr_assert_eq(file_byte(fd, 65536), 0);
	/* Answers that are cut short, or to be asked for again. */
	cr_assert_eq(fail_set(FAIL_BLK_SHORT, "3*return(512)", words), 0);
	cr_assert_eq(write_one(&t, 2, 4), OK);
	cr_assert_eq(fail_set(FAIL_BLK_RESULT, "2*return(EINTR)", words), 0);
	cr_assert_eq(write_one(&t, 3, 5), OK);
	struct virtio_blk_loss loss = cut(&t, VIRTIO_BLK_LOSE_ALL, 0);
	cr_assert_geq(loss.lost_writes, 3u);
	for (unsigned i = 0; i < 4; i++)
		cr_assert_eq(file_byte(fd, i * 65536 + 700), i == 0, "%u", i);
	/* No memory: it is as durable as without a cache, and it is said. */
	cr_assert_eq(fail_set(FAIL_BLK_KEEP_MEMORY, "1*return", words), 0);
	cr_assert_eq(write_one(&t, 1, 6), OK);
	loss = cut(&t, VIRTIO_BLK_LOSE_ALL, 0);
	cr_assert(loss.writes == 0 && loss.evicted == 1);
	cr_assert_eq(file_byte(fd, 65536), 6);
	/* What can't be put back is told. */
	cr_assert_eq(write_one(&t, 1, 7), OK);
	cr_assert_eq(fail_set(FAIL_BLK_LOSE, "1*return(ENOSPC)", words), 0);
	loss = cut(&t, VIRTIO_BLK_LOSE_ALL, 0);
	cr_assert(loss.error == -ENOSPC && loss.lost_writes == 0 && loss.writes == 1);
	fail_clear();
	drv_fini(&t);
	close(fd);
}
