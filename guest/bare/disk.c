/*
 * work=disk: a virtio-blk device (virtio 1.2, section 5.2), by polling.
 */
#include "guest/bare/console.h"
#include "guest/bare/cpu.h"
#include "guest/bare/end.h"
#include "guest/bare/region.h"
#include "guest/bare/team.h"
#include "guest/bare/vio.h"
#include "guest/bare/work.h"
#include <string.h>

#define SECTOR       512
#define SECTOR_WORDS 64
#define BUFFER       UINT64_C(65536)
#define DEPTH_MAX    10 /* three descriptors a request */

#define F_RO           (UINT64_C(1) << 5)
#define F_FLUSH        (UINT64_C(1) << 9)
#define F_DISCARD      (UINT64_C(1) << 13)
#define F_WRITE_ZEROES (UINT64_C(1) << 14)

enum type { T_IN = 0, T_OUT = 1, T_FLUSH = 4, T_GET_ID = 8, T_DISCARD = 11, T_WRITE_ZEROES = 13 };
enum status { S_OK = 0, S_IOERR = 1, S_UNSUPP = 2, S_NONE = 0xff };

/* Places in the configuration space. */
#define CONFIG_CAPACITY    0
#define CONFIG_DISCARD_MAX 36
#define CONFIG_ZEROES_MAX  48

struct request {
	struct {
		uint32_t type, reserved;
		uint64_t sector;
	} head;
	struct {
		uint64_t sector;
		uint32_t count, flags;
	} range; /* of discard and write zeroes */
	uint8_t status;
};

static struct {
	struct vio_queue queue;
	struct request request[DEPTH_MAX];
	uint64_t buffer[BUFFER / 8] __attribute__((aligned(4096)));
	const struct stage *stage;
	struct region order; /* for its permutation of chunks only */
	unsigned number;
	uint64_t features, capacity;
	uint64_t from, sectors, chunk, depth;
	uint64_t requests;
} disk;

/* Put request i into the batch: data goes with reads and writes, sectors with discards. */
static void prepare(unsigned i, enum type type, uint64_t sector, uint64_t sectors, void *data,
		    uint32_t bytes)
{
	struct request *r = &disk.request[i];
	*r = (struct request){.head = {.type = type, .sector = sector}, .status = S_NONE};
	struct vio_piece piece[3] = {{&r->head, sizeof r->head, false}};
	unsigned n = 1;
	if (type == T_DISCARD || type == T_WRITE_ZEROES) {
		r->head.sector = 0;
		r->range.sector = sector;
		r->range.count = (uint32_t)sectors;
		piece[n++] = (struct vio_piece){&r->range, sizeof r->range, false};
	} else if (bytes > 0) {
		piece[n++] = (struct vio_piece){data, bytes, type != T_OUT};
	}
	piece[n++] = (struct vio_piece){&r->status, 1, true};
	if (i == 0)
		vio_begin(&disk.queue);
	vio_add(&disk.queue, piece, n);
	disk.requests++;
}

/* Send the batch of n and wait for all of it. */
static void transact(unsigned n)
{
	uint32_t id, len;
	vio_kick(&disk.queue);
	for (unsigned i = 0; i < n; i++) {
		if (!vio_wait(&disk.queue, &id, &len))
			end_fail("disk %u: no answer to %u of %u requests, the first of type %u",
				 disk.number, n - i, n, disk.request[0].head.type);
	}
	for (unsigned i = 0; i < n; i++) {
		if (disk.request[i].status == S_NONE)
			end_fail("disk %u: a request came back without a status", disk.number);
	}
}

static void must_be_ok(unsigned i, const char *what)
{
	if (disk.request[i].status != S_OK)
		end_fail("disk %u: %s at sector %lu: status %u", disk.number, what,
			 disk.request[i].head.sector, disk.request[i].status);
}

static void fill(uint64_t *data, uint64_t sector, uint64_t sectors)
{
	for (uint64_t i = 0; i < sectors * SECTOR_WORDS; i++)
		data[i] = region_word(disk.stage->seed, sector * SECTOR_WORDS + i);
}

static void compare(const uint64_t *data, uint64_t sector, uint64_t sectors, bool zero)
{
	for (uint64_t i = 0; i < sectors * SECTOR_WORDS; i++) {
		uint64_t expected =
			zero ? 0 : region_word(disk.stage->seed, sector * SECTOR_WORDS + i);
		if (data[i] != expected)
			end_fail("disk %u: sector %lu byte %lu: expected 0x%016lx, found 0x%016lx",
				 disk.number, sector + i / SECTOR_WORDS, i % SECTOR_WORDS * 8,
				 expected, data[i]);
	}
}

/* Read or write all of the range, chunk by chunk in the stage's order, depth at a time. */
static void transfer(enum type type, bool check, bool zero)
{
	uint64_t chunks = (disk.sectors + disk.chunk - 1) / disk.chunk, spent = 0;
	struct team_time whole = team_start();
	for (uint64_t c = 0; c < chunks;) {
		struct {
			uint64_t sector, sectors, *data;
		} part[DEPTH_MAX];
		unsigned n = 0;
		for (; n < disk.depth && c < chunks; n++, c++) {
			uint64_t at = region_order(&disk.order, c) * disk.chunk;
			part[n].sector = disk.from + at;
			part[n].sectors =
				disk.sectors - at < disk.chunk ? disk.sectors - at : disk.chunk;
			part[n].data = disk.buffer + n * disk.chunk * SECTOR_WORDS;
			if (type == T_OUT)
				fill(part[n].data, part[n].sector, part[n].sectors);
			else
				memset(part[n].data, 0xa5, part[n].sectors * SECTOR);
			prepare(n, type, part[n].sector, 0, part[n].data,
				(uint32_t)(part[n].sectors * SECTOR));
		}
		uint64_t start = cpu_tsc();
		transact(n);
		spent += cpu_tsc() - start;
		for (unsigned i = 0; i < n; i++) {
			must_be_ok(i, type == T_OUT ? "write" : "read");
			if (check)
				compare(part[i].data, part[i].sector, part[i].sectors, zero);
		}
	}
	team_stop(&whole);
	console_say("disk %u %s part=%u sectors=%lu requests=%lu us=%lu io-us=%lu us/request=%lu%s",
		    disk.number, type == T_OUT ? "write" : "read", whole.part, disk.sectors, chunks,
		    team_us(whole.cycles), team_us(spent), team_us(spent) / chunks,
		    check ? " verified" : "");
}

/* Discard or zero all of the range. */
static void clear(enum type type, uint64_t feature, unsigned config_max, const char *what,
		  uint64_t regs)
{
	if ((disk.features & feature) == 0)
		end_fail("disk %u: no %s", disk.number, what);
	uint64_t max = vio_config32(regs, config_max), requests = 0;
	if (max == 0)
		end_fail("disk %u: %s of at most 0 sectors", disk.number, what);
	struct team_time t = team_start();
	for (uint64_t at = 0; at < disk.sectors; at += max) {
		uint64_t n = disk.sectors - at < max ? disk.sectors - at : max;
		prepare(0, type, disk.from + at, n, NULL, 0);
		transact(1);
		must_be_ok(0, what);
		requests++;
	}
	team_stop(&t);
	console_say("disk %u %s part=%u sectors=%lu requests=%lu us=%lu", disk.number, what, t.part,
		    disk.sectors, requests, team_us(t.cycles));
}

static void flush(uint64_t times)
{
	if ((disk.features & F_FLUSH) == 0) {
		console_say("disk %u has no flush", disk.number);
		return;
	}
	struct team_time t = team_start();
	for (uint64_t i = 0; i < times; i++) {
		prepare(0, T_FLUSH, 0, 0, NULL, 0);
		transact(1);
		must_be_ok(0, "flush");
	}
	team_stop(&t);
	console_say("disk %u flush part=%u times=%lu us=%lu", disk.number, t.part, times,
		    team_us(t.cycles));
}

/* A request that the device must refuse. */
static void must_fail(enum type type, uint64_t sector, const char *what)
{
	fill(disk.buffer, sector, 1);
	prepare(0, type, sector, 1, disk.buffer, type == T_IN || type == T_OUT ? SECTOR : 0);
	transact(1);
	if (disk.request[0].status == S_OK)
		end_fail("disk %u: %s succeeded", disk.number, what);
	console_say("disk %u %s refused, status=%u", disk.number, what, disk.request[0].status);
}

static void read_only(void)
{
	if ((disk.features & F_RO) == 0)
		end_fail("disk %u: does not say that it is read-only", disk.number);
	prepare(0, T_IN, disk.from, 0, disk.buffer, SECTOR);
	transact(1);
	must_be_ok(0, "read");
	uint64_t before = disk.buffer[0];
	must_fail(T_OUT, disk.from, "write");
	must_fail(T_DISCARD, disk.from, "discard");
	must_fail(T_WRITE_ZEROES, disk.from, "write zeroes");
	prepare(0, T_IN, disk.from, 0, disk.buffer, SECTOR);
	transact(1);
	must_be_ok(0, "read");
	if (disk.buffer[0] != before)
		end_fail("disk %u: a refused write was made", disk.number);
}

static void open_disk(const struct stage *s, uint64_t regs)
{
	char serial[21] = "";
	const char *wrong;
	if (regs == 0)
		end_fail("disk %u: no such device", disk.number);
	wrong = vio_open(regs, F_RO | F_FLUSH | F_DISCARD | F_WRITE_ZEROES, &disk.features);
	if (wrong == NULL)
		wrong = vio_queue_open(&disk.queue, regs, 0);
	if (wrong != NULL)
		end_fail("disk %u: %s", disk.number, wrong);
	vio_go(regs);
	disk.capacity = vio_config64(regs, CONFIG_CAPACITY);
	memset(disk.buffer, 0, 20);
	prepare(0, T_GET_ID, 0, 0, disk.buffer, 20);
	transact(1);
	if (disk.request[0].status == S_OK)
		memcpy(serial, disk.buffer, 20);
	console_say("disk %u capacity=%lu features=0x%lx queue=%u serial=%s%s%s%s%s", disk.number,
		    disk.capacity, vio_offered(regs), disk.queue.size, serial,
		    (disk.features & F_RO) != 0 ? " ro" : "",
		    (disk.features & F_FLUSH) != 0 ? " flush" : "",
		    (disk.features & F_DISCARD) != 0 ? " discard" : "",
		    (disk.features & F_WRITE_ZEROES) != 0 ? " zeroes" : "");

	disk.chunk = s->chunk;
	disk.depth = s->depth;
	if (disk.chunk == 0 || disk.depth == 0 || disk.depth * 3 > disk.queue.size ||
	    disk.chunk > BUFFER / SECTOR || disk.depth * disk.chunk > BUFFER / SECTOR)
		end_fail("disk: chunk= times depth= is 1 to %lu sectors, depth= at most %u",
			 BUFFER / SECTOR, disk.queue.size / 3);
	disk.from = s->from;
	disk.sectors = s->sectors;
	if (disk.sectors == WORDS_UNSET)
		disk.sectors = disk.from < disk.capacity ? disk.capacity - disk.from : 0;
	if (disk.sectors == 0 || disk.from > disk.capacity ||
	    disk.sectors > disk.capacity - disk.from)
		end_fail("disk %u: has %lu sectors, not %lu from %lu on", disk.number,
			 disk.capacity, disk.sectors, disk.from);
	region_order_make(&disk.order, s, (disk.sectors + disk.chunk - 1) / disk.chunk);
}

void disk_run(const struct stage *s)
{
	disk.stage = s;
	disk.number = (unsigned)s->disk;
	uint64_t regs = vio_find(VIO_ID_BLK, disk.number);
	open_disk(s, regs);
	if ((disk.features & F_RO) != 0 && s->mode != MODE_VERIFY && s->mode != MODE_RO &&
	    s->mode != MODE_INFO && s->mode != MODE_FLUSH)
		end_fail("disk %u: is read-only", disk.number);
	switch (s->mode) {
	case MODE_WRITE:
		transfer(T_OUT, false, false);
		if (s->flush)
			flush(1);
		break;
	case MODE_VERIFY:
		transfer(T_IN, true, false);
		break;
	case MODE_RW:
		transfer(T_OUT, false, false);
		flush(1);
		transfer(T_IN, true, false);
		must_fail(T_IN, disk.capacity, "read past the end");
		must_fail(T_OUT, disk.capacity, "write past the end");
		break;
	case MODE_RO:
		read_only();
		break;
	case MODE_DISCARD: /* what a discarded sector reads as is the device's to choose */
		clear(T_DISCARD, F_DISCARD, CONFIG_DISCARD_MAX, "discard", regs);
		transfer(T_IN, false, false);
		break;
	case MODE_ZEROES:
		clear(T_WRITE_ZEROES, F_WRITE_ZEROES, CONFIG_ZEROES_MAX, "zeroes", regs);
		transfer(T_IN, true, true);
		break;
	case MODE_FLUSH:
		flush(s->passes != WORDS_UNSET ? s->passes : 1);
		break;
	case MODE_INFO:
		break;
	default:
		end_fail("disk: no such mode=");
	}
	vio_close(regs);
}
