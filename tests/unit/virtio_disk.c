/* The block device on real files, by a well-behaved driver. */
#include "virtio_fake.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_mmio.h>
#include <linux/virtio_ring.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { IN, OUT, FLUSH = 4, GET_ID = 8, DISCARD = 11, SECURE_ERASE = 14, WRITE_ZEROES = 13 };
enum { OK, IOERR, UNSUPP };

#define ALL       UINT64_MAX
#define DATA      0x100000u /* guest address of data, on a page boundary */
#define SECTORS   4096u     /* 2 MiB */
#define F_FLUSH   9
#define WRITEBACK (VIRTIO_MMIO_CONFIG + 32)

struct range {
	uint64_t sector;
	uint32_t sectors, flags;
};

/* fd stays ours too, to look at the file behind the device's back. */
static void disk(struct drv *t, int fd, bool read_only)
{
	drv_init(t);
	struct virtio_blk_config c = {
		.fd = dup(fd), .read_only = read_only, .serial = "serial-0123456789abc"};
	cr_assert_eq(virtio_blk_create(&t->dev, &t->env, &c), 0);
}

static void expect(struct drv *t, uint64_t at, uint64_t file_at, size_t n)
{
	uint8_t *b = malloc(n);
	fake_get(&t->mem, at, b, n);
	for (size_t i = 0; i < n; i++)
		cr_assert_eq(b[i], fill_byte(file_at + i), "byte %zu", i);
	free(b);
}

Test(virtio_blk, configuration)
{
	struct drv t;
	int fd = temp_file(SECTORS * 512 + 100, true);
	disk(&t, fd, false);
	cr_assert_eq(virtio_id(t.dev), 2);
	cr_assert_str_eq(virtio_name(t.dev), "virtio-blk serial-0123456789abc");
	uint64_t sectors = 0;
	virtio_mmio_access(t.dev, VIRTIO_MMIO_CONFIG, &sectors, 8, false);
	cr_assert_eq(sectors, SECTORS, "whole sectors only");
	/* The same byte by byte, and in any piece. */
	for (unsigned from = 0; from < 70; from++) {
		for (unsigned len = 0; len <= 8; len++) {
			uint8_t piece[8], one;
			virtio_mmio_access(t.dev, VIRTIO_MMIO_CONFIG + from, piece, len, false);
			for (unsigned i = 0; i < len; i++) {
				virtio_mmio_access(t.dev, VIRTIO_MMIO_CONFIG + from + i, &one, 1,
						   false);
				cr_assert_eq(piece[i], one);
			}
		}
	}
	cr_assert_eq(drv_rd(&t, VIRTIO_MMIO_CONFIG + 12), 126);
	cr_assert_eq(drv_rd(&t, VIRTIO_MMIO_CONFIG + 20), 512);
	uint8_t v = 0;
	virtio_mmio_access(t.dev, WRITEBACK, &v, 1, true);
	virtio_mmio_access(t.dev, WRITEBACK, &v, 1, false);
	cr_assert_eq(v, 1, "not before CONFIG_WCE is agreed on");
	drv_start(&t, ALL, 1);
	v = 0;
	virtio_mmio_access(t.dev, WRITEBACK, &v, 1, true);
	virtio_mmio_access(t.dev, WRITEBACK, &v, 1, false);
	cr_assert_eq(v, 0);
	drv_fini(&t);
	close(fd);
}

Test(virtio_blk, refuses_what_is_no_disk)
{
	struct drv t;
	struct virtio_blk_config c = {.fd = -1, .read_only = false, .serial = NULL};
	drv_init(&t);
	cr_assert_eq(virtio_blk_create(&t.dev, &t.env, &c), -EBADF);
	int p[2];
	cr_assert_eq(pipe(p), 0);
	c.fd = p[0];
	cr_assert_eq(virtio_blk_create(&t.dev, &t.env, &c), -ENOTBLK);
	c.fd = temp_file(511, true);
	cr_assert_eq(virtio_blk_create(&t.dev, &t.env, &c), -EINVAL);
	c.fd = open("/proc/self/exe", O_RDONLY);
	cr_assert_eq(virtio_blk_create(&t.dev, &t.env, &c), -EACCES);
	c.read_only = true;
	c.serial = "more than twenty bytes";
	cr_assert_eq(virtio_blk_create(&t.dev, &t.env, &c), -EINVAL);
	c.serial = NULL;
	cr_assert_eq(virtio_blk_create(&t.dev, &t.env, &c), 0);
	drv_fini(&t);
}

Test(virtio_blk, reads_and_writes)
{
	for (int memory = 0; memory < 2; memory++) {
		struct drv t;
		struct stat st;
		int fd = temp_file(SECTORS * 512, memory);
		disk(&t, fd, false);
		for (int pass = 0; pass < 3; pass++) {
			/* pass 1 without FLUSH: every write durable; pass 2 by config */
			drv_start(&t, pass == 1 ? ALL & ~(1ull << F_FLUSH) : ALL, 1);
			uint8_t off = 0;
			if (pass == 2)
				virtio_mmio_access(t.dev, WRITEBACK, &off, 1, true);
			for (unsigned i = 0; i < 40; i++) {
				uint32_t n = 512 * (1 + i * 3);
				uint64_t sector = i * 100;
				/* misaligned buffers: every one lies across pages */
				cr_assert_eq(drv_blk(&t, IN, sector, DATA + 8 * i, n), OK);
				expect(&t, DATA + 8 * i, sector * 512, n);
			}
			uint8_t out[5 * 512], in[5 * 512];
			for (unsigned i = 0; i < sizeof(out); i++)
				out[i] = (uint8_t)(i * 13 + pass + i / 256);
			fake_put(&t.mem, DATA + 0xff0, out, sizeof(out));
			cr_assert_eq(drv_blk(&t, OUT, SECTORS - 5, DATA + 0xff0, sizeof(out)), OK);
			cr_assert_eq(drv_blk(&t, FLUSH, 0, 0, 0), OK);
			cr_assert_eq(pread(fd, in, sizeof(in), (SECTORS - 5) * 512), sizeof(in));
			cr_assert(!memcmp(in, out, sizeof(in)));
			char id[20];
			cr_assert_eq(drv_blk(&t, GET_ID, 0, DATA, 20), OK);
			fake_get(&t.mem, DATA, id, 20);
			cr_assert(!memcmp(id, "serial-0123456789abc", 20));
			cr_assert_eq(drv_blk(&t, GET_ID, 0, DATA, 19), IOERR);
			cr_assert_eq(drv_blk(&t, SECURE_ERASE, 0, DATA, 512), UNSUPP);
			cr_assert_eq(drv_blk(&t, 0x80000000, 0, DATA, 512), UNSUPP);
			drv_reset(&t);
		}
		cr_assert_eq(fstat(fd, &st), 0);
		cr_assert_eq(st.st_size, SECTORS * 512);
		struct virtio_blk_stats s;
		virtio_blk_stats(t.dev, &s);
		cr_assert_eq(s.reads, 120);
		cr_assert_eq(s.writes, 3);
		cr_assert_eq(s.flushes, 3);
		cr_assert_eq(s.bytes_written, 3 * 5 * 512);
		cr_assert_eq(s.errors, 0);
		drv_fini(&t);
		close(fd);
	}
}

Test(virtio_blk, bounds)
{
	struct drv t;
	int fd = temp_file(SECTORS * 512, true);
	disk(&t, fd, false);
	drv_start(&t, ALL, 1);
	for (uint32_t type = IN; type <= OUT; type++) {
		cr_assert_eq(drv_blk(&t, type, SECTORS - 1, DATA, 512), OK);
		cr_assert_eq(drv_blk(&t, type, SECTORS - 1, DATA, 1024), IOERR);
		cr_assert_eq(drv_blk(&t, type, SECTORS, DATA, 512), IOERR);
		cr_assert_eq(drv_blk(&t, type, UINT64_MAX, DATA, 1024), IOERR);
		cr_assert_eq(drv_blk(&t, type, UINT64_MAX / 512, DATA, 1024), IOERR);
		cr_assert_eq(drv_blk(&t, type, UINT64_MAX / 512 + 1, DATA, 1024), IOERR);
		cr_assert_eq(drv_blk(&t, type, 0, DATA, 511), IOERR);
		cr_assert_eq(drv_blk(&t, type, 0, DATA, 513), IOERR);
		cr_assert_eq(drv_blk(&t, type, SECTORS, 0, 0), OK, "nothing at the end");
	}
	/* The file shrinks under the guest: an error, told once. */
	cr_assert_eq(ftruncate(fd, 4096), 0);
	cr_assert_eq(drv_blk(&t, IN, 100, DATA, 512), IOERR);
	cr_assert_eq(drv_blk(&t, IN, 7, DATA, 1024), IOERR, "a short read at the end");
	cr_assert_eq(drv_blk(&t, IN, 7, DATA, 512), OK);
	cr_assert_eq(atomic_load(&t.said), 1);
	cr_assert(strstr(t.line, "Input/output error"), "%s", t.line);
	struct virtio_blk_stats s;
	virtio_blk_stats(t.dev, &s);
	cr_assert_eq(s.errors, 2);
	drv_fini(&t);
	close(fd);
}

/* A file the host lets nobody write: I/O errors for the guest, one line for the user. */
Test(virtio_blk, host_refuses)
{
	static const uint32_t types[] = {OUT, DISCARD, WRITE_ZEROES};
	static const char *const words[] = {"write", "discard", "write-zeroes"};
	for (unsigned i = 0; i < 3; i++) {
		struct drv t;
		int fd = memfd_create("sealed", MFD_ALLOW_SEALING);
		cr_assert_eq(ftruncate(fd, SECTORS * 512), 0);
		cr_assert_eq(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), 0);
		disk(&t, fd, false);
		drv_start(&t, ALL, 1);
		struct range r = {8, 8, i == 2};
		fake_put(&t.mem, DATA, &r, sizeof(r));
		for (int again = 0; again < 3; again++)
			cr_assert_eq(drv_blk(&t, types[i], 0, DATA, i ? 16 : 512), IOERR);
		cr_assert_eq(drv_blk(&t, IN, 0, DATA, 512), OK);
		cr_assert_eq(atomic_load(&t.said), 1);
		cr_assert(strstr(t.line, words[i]) && strstr(t.line, "not permitted"), "%s",
			  t.line);
		struct virtio_blk_stats s;
		virtio_blk_stats(t.dev, &s);
		cr_assert_eq(s.errors, 3);
		drv_fini(&t);
		close(fd);
	}
}

Test(virtio_blk, read_only)
{
	struct drv t;
	int fd = temp_file(SECTORS * 512, true);
	uint8_t first[512], now[512];
	disk(&t, fd, true);
	drv_start(&t, ALL, 1);
	cr_assert(t.features & 1u << 5);
	cr_assert(!(t.features & (1u << 13 | 1u << 14)));
	cr_assert_eq(pread(fd, first, 512, 0), 512);
	cr_assert_eq(drv_blk(&t, IN, 3, DATA, 1024), OK);
	expect(&t, DATA, 3 * 512, 1024);
	cr_assert_eq(drv_blk(&t, OUT, 0, DATA, 512), IOERR);
	struct range r = {0, 1, 0};
	fake_put(&t.mem, DATA, &r, sizeof(r));
	cr_assert_eq(drv_blk(&t, DISCARD, 0, DATA, 16), IOERR);
	cr_assert_eq(drv_blk(&t, WRITE_ZEROES, 0, DATA, 16), IOERR);
	cr_assert_eq(drv_blk(&t, FLUSH, 0, 0, 0), OK);
	cr_assert_eq(pread(fd, now, 512, 0), 512);
	cr_assert(!memcmp(first, now, 512));
	drv_fini(&t);
	close(fd);
}

/* ext4 has both ways to zero a range, tmpfs only the hole. */
Test(virtio_blk, discard_and_zeroes)
{
	for (int memory = 0; memory < 2; memory++) {
		struct drv t;
		int fd = temp_file(SECTORS * 512, memory);
		uint8_t *b = malloc(SECTORS * 512);
		disk(&t, fd, false);
		for (int wce = 0; wce < 2; wce++) {
			drv_start(&t, ALL, 1);
			uint8_t v = (uint8_t)wce;
			virtio_mmio_access(t.dev, WRITEBACK, &v, 1, true);
			unsigned base = wce * 2000u;
			struct range r[3] = {{base + 1, 700, 0}, {base + 800, 9, 1}, {5, 0, 0}};
			fake_put(&t.mem, DATA - 8, r, sizeof(r));
			cr_assert_eq(drv_blk(&t, WRITE_ZEROES, 0, DATA - 8, sizeof(r)), OK);
			cr_assert_eq(pread(fd, b, SECTORS * 512, 0), SECTORS * 512);
			for (uint64_t i = base * 512; i < (base + 2000) * 512; i++) {
				uint64_t s = i / 512 - base;
				bool zero = (s >= 1 && s < 701) || (s >= 800 && s < 809);
				cr_assert_eq(b[i], zero ? 0 : fill_byte(i), "%lu", i);
			}
			r[0] = (struct range){base + 1000, 800, 0};
			fake_put(&t.mem, DATA, r, 16);
			cr_assert_eq(drv_blk(&t, DISCARD, 0, DATA, 16), OK);
			struct stat st;
			cr_assert_eq(fstat(fd, &st), 0);
			cr_assert_eq(st.st_size, SECTORS * 512);
			cr_assert_lt(st.st_blocks, SECTORS - 600);
			/* What is refused. */
			r[0].flags = 1;
			fake_put(&t.mem, DATA, r, 16);
			cr_assert_eq(drv_blk(&t, DISCARD, 0, DATA, 16), UNSUPP);
			r[0].flags = 2;
			fake_put(&t.mem, DATA, r, 16);
			cr_assert_eq(drv_blk(&t, WRITE_ZEROES, 0, DATA, 16), UNSUPP);
			cr_assert_eq(drv_blk(&t, WRITE_ZEROES, 0, DATA, 15), IOERR);
			cr_assert_eq(drv_blk(&t, WRITE_ZEROES, 0, DATA, 0), IOERR);
			cr_assert_eq(drv_blk(&t, WRITE_ZEROES, 0, DATA, 17 * 16), IOERR);
			struct range bad[] = {{SECTORS, 1, 0},
					      {SECTORS - 1, 2, 0},
					      {UINT64_MAX, 2, 0},
					      {0, UINT32_MAX, 0},
					      {UINT64_MAX / 512 + 1, 1, 0}};
			for (unsigned i = 0; i < 5; i++) {
				fake_put(&t.mem, DATA, &bad[i], 16);
				cr_assert_eq(drv_blk(&t, WRITE_ZEROES, 0, DATA, 16), IOERR);
				cr_assert_eq(drv_blk(&t, DISCARD, 0, DATA, 16), IOERR);
			}
			drv_reset(&t);
		}
		/* Without the features they don't exist. */
		drv_start(&t, ALL & ~(3ull << 13), 1);
		struct range r = {0, 1, 0};
		fake_put(&t.mem, DATA, &r, 16);
		cr_assert_eq(drv_blk(&t, DISCARD, 0, DATA, 16), UNSUPP);
		cr_assert_eq(drv_blk(&t, WRITE_ZEROES, 0, DATA, 16), UNSUPP);
		cr_assert_eq(atomic_load(&t.said), 0, "%s", t.line);
		drv_fini(&t);
		free(b);
		close(fd);
	}
}

/* Header, data and status in descriptors cut anywhere (2.7.4.1), direct and by table. */
Test(virtio_blk, framing_is_free)
{
	struct drv t;
	struct rnd rnd = {7};
	int fd = temp_file(SECTORS * 512, true);
	disk(&t, fd, false);
	drv_start(&t, ALL, 1);
	for (int round = 0; round < 2000; round++) {
		bool in = round & 1;
		uint32_t bytes = 512 * (1 + rnd_below(&rnd, 20)), readable = 16, writable = 1, len;
		uint64_t sector = rnd_below(&rnd, SECTORS - 20), at = 0x50000, out_at = DATA;
		*(in ? &writable : &readable) += bytes;
		struct seg s[100];
		unsigned n = 0;
		uint8_t b[16 + 20 * 512], status = 0xee;
		drv_blk_header(&t, at, in ? IN : OUT, sector);
		for (unsigned i = 0; i < bytes; i++)
			b[i] = fill_byte(sector * 512 + i); /* so that the file stays as it is */
		if (!in)
			fake_put(&t.mem, at + 16, b, bytes);
		for (uint32_t left = readable, k; left; left -= k, at += k) {
			k = n > 40 ? left : 1 + rnd_below(&rnd, left);
			s[n++] = (struct seg){at, k, false};
		}
		for (uint32_t left = writable, k; left; left -= k, out_at += k) {
			k = n > 90 ? left : 1 + rnd_below(&rnd, left);
			s[n++] = (struct seg){out_at, k, true};
		}
		fake_put(&t.mem, DATA + writable - 1, &status, 1);
		drv_add(&t, 0, s, n, round & 2 ? 0x80000 : 0);
		drv_kick(&t, 0);
		drv_wait(&t, 0, NULL, &len);
		fake_get(&t.mem, DATA + writable - 1, &status, 1);
		cr_assert_eq(status, OK);
		cr_assert_eq(len, writable);
		if (in)
			expect(&t, DATA, sector * 512, bytes);
	}
	uint8_t *b = malloc(SECTORS * 512);
	cr_assert_eq(pread(fd, b, SECTORS * 512, 0), SECTORS * 512);
	for (uint64_t i = 0; i < SECTORS * 512; i++)
		cr_assert_eq(b[i], fill_byte(i));
	free(b);
	drv_fini(&t);
	close(fd);
}

/* The largest request that the limits of config space allow, all of it misaligned. */
Test(virtio_blk, largest_request)
{
	struct drv t;
	int fd = temp_file(8192 * 512, false);
	disk(&t, fd, false);
	drv_start(&t, ALL, 1);
	uint32_t segs = drv_rd(&t, VIRTIO_MMIO_CONFIG + 12),
		 size = drv_rd(&t, VIRTIO_MMIO_CONFIG + 8);
	cr_assert(t.features & 1u << 1);
	struct seg s[130] = {{0x9ff8, 16, false}};
	uint64_t at = DATA + 8;
	for (unsigned i = 0; i < segs; i++, at += size)
		s[1 + i] = (struct seg){at, size, true};
	s[1 + segs] = (struct seg){0xbfff, 1, true};
	for (int table = 0; table < 2; table++) {
		uint32_t len;
		uint8_t status = 0xee;
		drv_blk_header(&t, s[0].at, IN, 1);
		drv_add(&t, 0, s, segs + 2, table ? 0x80000 : 0);
		drv_kick(&t, 0);
		drv_wait(&t, 0, NULL, &len);
		fake_get(&t.mem, 0xbfff, &status, 1);
		cr_assert_eq(status, OK);
		cr_assert_eq(len, segs * size + 1);
		expect(&t, DATA + 8, 512, segs * size);
	}
	drv_fini(&t);
	close(fd);
}

/* Fill the queue with reads of one 4 KiB page each; request i reads page i of the file. */
static void fill_queue(struct drv *t, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		struct seg s[3] = {{0x40000 + 16 * i, 16, false},
				   {DATA + 4096 * i, 4096, true},
				   {0x48000 + i, 1, true}};
		uint8_t none = 0xee;
		fake_put(&t->mem, s[2].at, &none, 1);
		drv_blk_header(t, s[0].at, IN, 8 * i);
		drv_add(t, 0, s, 3, 0x50000 + 64 * i);
	}
	drv_kick(t, 0);
}

/* A full queue, the pool running dry at random points: every request is answered once, rightly. */
Test(virtio_blk, full_queue_and_a_dry_pool)
{
	struct drv t;
	struct rnd rnd = {3};
	int fd = temp_file(SECTORS * 512, false);
	disk(&t, fd, false);
	drv_start(&t, ALL, 1);
	for (int round = 0; round < 30; round++) {
		bool seen[DRV_NUM] = {false};
		uint16_t first = t.q[0].next_desc;
		fill_queue(&t, DRV_NUM);
		for (unsigned got = 0; got < DRV_NUM;) {
			uint16_t id;
			t.mem.skip = (int)rnd_below(&rnd, 300);
			t.mem.fail = (int)rnd_below(&rnd, 4);
			t.mem.error = -EAGAIN;
			drv_step(&t, 1);
			virtio_retry(t.dev);
			while (drv_used(&t, 0, &id, NULL)) {
				unsigned i = (uint16_t)(id - first) % DRV_NUM;
				uint8_t status;
				cr_assert(!seen[i], "answered twice");
				seen[i] = true;
				got++;
				fake_get(&t.mem, 0x48000 + i, &status, 1);
				cr_assert_eq(status, OK);
				expect(&t, DATA + 4096 * i, 4096 * i, 4096);
			}
		}
	}
	cr_assert_eq(atomic_load(&t.said), 0, "%s", t.line);
	t.mem.fail = 0;
	drv_fini(&t);
	close(fd);
}

/* Reset with a full queue in flight: when the register write returns, nothing touches memory any
 * more. With the loop on its own thread, and with nobody running it. */
Test(virtio_blk, reset_in_flight)
{
	for (int threaded = 0; threaded < 2; threaded++) {
		struct drv t;
		int fd = temp_file(SECTORS * 512, false);
		disk(&t, fd, false);
		if (threaded)
			drv_thread(&t);
		for (int round = 0; round < 200; round++) {
			drv_start(&t, ALL, 1);
			fill_queue(&t, 100);
			if (!threaded) {
				drv_step(&t, 0);
				cr_assert_gt(atomic_load(&t.mem.pinned), 0);
			} else if (round & 1) {
				usleep((unsigned)round * 3);
			}
			if (round % 3 == 2) { /* by QueueReady, which waits too */
				drv_wr(&t, VIRTIO_MMIO_QUEUE_READY, 0);
				cr_assert_eq(drv_rd(&t, VIRTIO_MMIO_QUEUE_READY), 0);
			} else {
				drv_reset(&t);
			}
			uint8_t a[512], b[512];
			uint16_t used = fake_load16(&t.mem, t.q[0].used + 2);
			memset(a, 0x5a, sizeof(a));
			for (unsigned i = 0; i < 100; i++)
				fake_put(&t.mem, DATA + 4096 * i, a, sizeof(a));
			if (round % 20 == 0)
				usleep(2000);
			if (!threaded)
				drv_step(&t, 0);
			for (unsigned i = 0; i < 100; i++) {
				fake_get(&t.mem, DATA + 4096 * i, b, sizeof(b));
				cr_assert(!memcmp(a, b, sizeof(a)), "written after the reset");
			}
			cr_assert_eq(fake_load16(&t.mem, t.q[0].used + 2), used);
		}
		/* And destroyed in flight. */
		drv_start(&t, ALL, 1);
		fill_queue(&t, 100);
		drv_step(&t, 0);
		drv_fini(&t);
		close(fd);
	}
}

/* The loop stopped with I/O in flight: reset and destroy still get it back. */
Test(virtio_blk, loop_stopped_in_flight)
{
	for (int round = 0; round < 20; round++) {
		struct drv t;
		int fd = temp_file(SECTORS * 512, true);
		disk(&t, fd, false);
		drv_thread(&t);
		drv_start(&t, ALL, 1);
		fill_queue(&t, 120);
		if (round & 1)
			usleep(100);
		loop_stop(t.loop);
		if (round & 2)
			drv_reset(&t);
		pthread_join(t.thread, NULL);
		t.threaded = false;
		drv_fini(&t);
		close(fd);
	}
}
