/*
 * The block device (virtio 1.2 section 5.2) on the loop's io_uring, straight between the file and
 * the pool's pages. The driver's requests run side by side, as many as the queue holds.
 *
 * A request is a chain: a header of 16 bytes and the data to write in its readable part; the data
 * to read, then one byte of status, in its writable part. Where one descriptor ends and the next
 * begins has no meaning (section 2.7.4.1).
 *
 * Durability: a write is durable once a later FLUSH is done; at once if the driver agreed to no
 * FLUSH, or turned the write cache off (section 5.2.6.2). A volatile disk (undo.h) takes that literally
 * at a power cut; what changes it is then done on the loop's thread, one after the other.
 *
 * Discard punches a hole; where the file system has none, it is UNSUPP. Write-zeroes punches a hole
 * if the driver allows unmapping, else zeroes the range in place; where the file system has
 * neither, zeroes are written.
 */
#include "virtio/blk.h"
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/virtio_ids.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define HEADER        16u        /* le32 type, le32 reserved, le64 sector */
#define RANGE         16u        /* le64 sector, le32 sectors, le32 flags */
#define UNMAP         1u         /* the flag of a write-zeroes range */
#define RANGE_MAX     16u        /* ranges a request */
#define RANGE_SECTORS (1u << 22) /* 2 GiB a range */

/* SEG_MAX leaves two descriptors of the ring for header and status. With SIZE_MAX no legal request
 * comes to more pieces than a chain can have, however its pages are scattered in the pool. */
#define SEG_MAX      (VIRTQ_NUM_MAX - 2)
#define SIZE_MAX_SEG (16u * KiB)
_Static_assert(SEG_MAX *(SIZE_MAX_SEG / PAGE_SIZE + 1) + 3 <= VIRTQ_PIECES_MAX, "see above");

static uint32_t get32(const uint8_t *p)
{
	uint32_t v;
	memcpy(&v, p, sizeof(v));
	return le32toh(v);
}

static uint64_t get64(const uint8_t *p)
{
	uint64_t v;
	memcpy(&v, p, sizeof(v));
	return le64toh(v);
}

static void put32(uint8_t *p, uint32_t v)
{
	v = htole32(v);
	memcpy(p, &v, sizeof(v));
}

static void put64(uint8_t *p, uint64_t v)
{
	v = htole64(v);
	memcpy(p, &v, sizeof(v));
}

/* ---- requests ----------------------------------------------------------------------------- */

static bool in_bounds(const struct blk *b, uint64_t sector, uint64_t sectors)
{
	return sector <= b->sectors && sectors <= b->sectors - sector;
}

/* The data is `bytes` long and begins `skip` bytes into the pieces iov[0..n). */
static void transfer(struct blk *b, struct virtq_chain *c, uint32_t type, uint64_t sector,
		     const struct iovec *iov, int n, uint64_t skip, uint64_t bytes)
{
	*(type == T_IN ? &b->stats.reads : &b->stats.writes) += 1;
	if (bytes % SECTOR || !in_bounds(b, sector, bytes / SECTOR) ||
	    (type == T_OUT && b->read_only)) {
		blk_answer(c, S_IOERR, 0);
		return;
	}
	if (!bytes) {
		blk_answer(c, S_OK, 0);
		return;
	}
	struct request *r = blk_request(b, c, type, (size_t)n * sizeof(*iov));
	if (!r) {
		blk_answer(c, S_IOERR, 0);
		return;
	}
	r->now = (struct range){sector * SECTOR, bytes, false};
	r->iov = (struct iovec *)r->rest;
	for (int i = 0; i < n && bytes; i++) {
		uint64_t len = iov[i].iov_len;
		if (skip >= len) {
			skip -= len;
			continue;
		}
		uint64_t k = len - skip < bytes ? len - skip : bytes;
		r->iov[r->iovs++] = (struct iovec){(uint8_t *)iov[i].iov_base + skip, k};
		skip = 0;
		bytes -= k;
	}
	blk_begin(r);
}

static void flush(struct blk *b, struct virtq_chain *c)
{
	b->stats.flushes++;
	struct request *r = b->read_only ? NULL : blk_request(b, c, T_FLUSH, 0);
	if (r)
		blk_begin(r);
	else
		blk_answer(c, b->read_only ? S_OK : S_IOERR, 0);
}

static void get_id(struct blk *b, struct virtq_chain *c)
{
	uint64_t room = c->write_bytes - 1;
	if (room < ID_BYTES) {
		blk_answer(c, S_IOERR, 0);
		return;
	}
	iov_write(c->iov + c->readable, c->writable, 0, b->serial, ID_BYTES);
	blk_answer(c, S_OK, ID_BYTES);
}

/* DISCARD and WRITE_ZEROES (section 5.2.6.2): the data is an array of ranges. */
static void ranges(struct blk *b, struct virtq_chain *c, uint32_t type)
{
	uint64_t bytes = c->read_bytes - HEADER, n = bytes / RANGE;
	if (type == T_DISCARD)
		b->stats.discards++;
	else
		b->stats.writes++;
	if (!virtio_has(&b->dev, type == T_DISCARD ? F_DISCARD : F_WRITE_ZEROES)) {
		blk_answer(c, b->read_only ? S_IOERR : S_UNSUPP, 0);
		return;
	}
	if (!n || n > RANGE_MAX || bytes % RANGE) {
		blk_answer(c, S_IOERR, 0);
		return;
	}
	struct request *r = blk_request(b, c, type, n * sizeof(struct range));
	if (!r) {
		blk_answer(c, S_IOERR, 0);
		return;
	}
	uint8_t status = S_OK;
	for (uint64_t i = 0; i < n; i++) {
		uint8_t raw[RANGE];
		iov_read(c->iov, c->readable, HEADER + i * RANGE, raw, RANGE);
		uint64_t sector = get64(raw);
		uint32_t sectors = get32(raw + 8), flags = get32(raw + 12);
		/* Reserved flags, and to unmap in a discard, are UNSUPP (section 5.2.6.2). */
		if (flags & ~UNMAP || (type == T_DISCARD && flags))
			status = S_UNSUPP;
		else if (sectors > RANGE_SECTORS || !in_bounds(b, sector, sectors))
			status = S_IOERR;
		if (status != S_OK)
			break;
		if (sectors)
			((struct range *)r->rest)[r->ranges++] =
				(struct range){sector * SECTOR, (uint64_t)sectors * SECTOR,
					       type == T_DISCARD || flags & UNMAP};
	}
	if (status == S_OK && type == T_DISCARD && b->no_punch)
		status = S_UNSUPP;
	if (status != S_OK || !r->ranges)
		blk_finish(r, status);
	else
		blk_next_range(r);
}

/* False if the chain is no request at all. */
static bool begin(struct blk *b, struct virtq_chain *c)
{
	uint8_t header[HEADER];
	if (c->read_bytes < HEADER || !c->write_bytes) {
		virtq_done(c, 0);
		return false;
	}
	iov_read(c->iov, c->readable, 0, header, HEADER);
	uint32_t type = get32(header);
	uint64_t sector = get64(header + 8);
	switch (type) {
	case T_IN:
		transfer(b, c, type, sector, c->iov + c->readable, c->writable, 0,
			 c->write_bytes - 1);
		break;
	case T_OUT:
		transfer(b, c, type, sector, c->iov, c->readable, HEADER, c->read_bytes - HEADER);
		break;
	case T_FLUSH:
		flush(b, c);
		break;
	case T_GET_ID:
		get_id(b, c);
		break;
	case T_DISCARD:
	case T_WRITE_ZEROES:
		ranges(b, c, type);
		break;
	default:
		blk_answer(c, S_UNSUPP, 0);
	}
	return true;
}

static void process(struct virtio_dev *d, struct virtq *q)
{
	struct virtq_chain *c;
	while ((c = virtq_pop(q))) {
		if (!begin((struct blk *)d, c))
			virtio_fail(d, q, "a request without header or status");
	}
}

/* ---- life --------------------------------------------------------------------------------- */

static void reset(struct virtio_dev *d)
{
	((struct blk *)d)->config[CONFIG_WRITEBACK] = 1;
}

static void config_write(struct virtio_dev *d, unsigned offset, const uint8_t *data, unsigned len)
{
	struct blk *b = (struct blk *)d;
	if (offset <= CONFIG_WRITEBACK && CONFIG_WRITEBACK < offset + len &&
	    virtio_has(d, F_CONFIG_WCE))
		b->config[CONFIG_WRITEBACK] = data[CONFIG_WRITEBACK - offset] & 1;
}

static void destroy(struct virtio_dev *d)
{
	struct blk *b = (struct blk *)d;
	virtio_fini(d);
	close(b->fd);
	undo_free(b->undo);
	free(b);
}

void virtio_blk_stats(struct virtio_dev *d, struct virtio_blk_stats *out)
{
	pthread_mutex_lock(&d->lock);
	*out = ((struct blk *)d)->stats;
	pthread_mutex_unlock(&d->lock);
}

void virtio_blk_cut(struct virtio_dev *d, const struct virtio_blk_cut *how,
		    struct virtio_blk_loss *out)
{
	struct blk *b = (struct blk *)d;
	*out = (struct virtio_blk_loss){.writes = 0};
	pthread_mutex_lock(&d->lock);
	if (b->undo)
		undo_cut(b->undo, b->fd, how, out);
	pthread_mutex_unlock(&d->lock);
}

static const struct virtio_ops ops = {.process = process,
				      .reset = reset,
				      .config_write = config_write,
				      .destroy = destroy,
				      .io_done = blk_done};

static int size_of(int fd, uint64_t *bytes)
{
	struct stat st;
	if (fstat(fd, &st))
		return -errno;
	*bytes = (uint64_t)st.st_size;
	if (S_ISBLK(st.st_mode))
		return ioctl(fd, BLKGETSIZE64, bytes) ? -errno : 0;
	return S_ISREG(st.st_mode) ? 0 : -ENOTBLK;
}

int virtio_blk_create(struct virtio_dev **out, const struct virtio_env *env,
		      const struct virtio_blk_config *config)
{
	uint64_t bytes;
	size_t serial = config->serial ? strlen(config->serial) : 0;
	int flags = fcntl(config->fd, F_GETFL), r = size_of(config->fd, &bytes);
	if (flags < 0 || r)
		return r ? r : -errno;
	if ((flags & O_ACCMODE) == O_WRONLY ||
	    (!config->read_only && (flags & O_ACCMODE) != O_RDWR))
		return -EACCES;
	if (bytes < SECTOR || serial > ID_BYTES || (config->read_only && config->is_volatile))
		return -EINVAL;
	struct blk *b = calloc(1, sizeof(*b));
	if (!b)
		return -ENOMEM;
	if (config->is_volatile) {
		b->undo = undo_create();
		b->no_zero_range =
			true; /* a hole, or zeroes: what the sandbox lets the thread do itself */
		if (!b->undo) {
			free(b);
			return -ENOMEM;
		}
	}
	b->fd = config->fd;
	b->read_only = config->read_only;
	b->sectors = bytes / SECTOR;
	if (serial)
		memcpy(b->serial, config->serial, serial);

	uint64_t features = 1u << F_SIZE_MAX | 1u << F_SEG_MAX | 1u << F_BLK_SIZE | 1u << F_FLUSH;
	if (b->read_only)
		features |= 1u << F_RO;
	else
		features |= 1u << F_CONFIG_WCE | 1u << F_DISCARD | 1u << F_WRITE_ZEROES;
	put64(b->config + CONFIG_CAPACITY, b->sectors);
	put32(b->config + CONFIG_SIZE_MAX, SIZE_MAX_SEG);
	put32(b->config + CONFIG_SEG_MAX, SEG_MAX);
	put32(b->config + CONFIG_BLK_SIZE, SECTOR);
	b->config[CONFIG_WRITEBACK] = 1;
	if (!b->read_only) {
		put32(b->config + CONFIG_DISCARD_SECTORS_MAX, RANGE_SECTORS);
		put32(b->config + CONFIG_DISCARD_SEG_MAX, RANGE_MAX);
		put32(b->config + CONFIG_DISCARD_ALIGNMENT, PAGE_SIZE / SECTOR);
		put32(b->config + CONFIG_ZEROES_SECTORS_MAX, RANGE_SECTORS);
		put32(b->config + CONFIG_ZEROES_SEG_MAX, RANGE_MAX);
		b->config[CONFIG_ZEROES_MAY_UNMAP] = 1;
	}
	char name[16 + ID_BYTES + 1] = "virtio-blk";
	if (serial)
		snprintf(name, sizeof(name), "virtio-blk %s", config->serial);
	r = virtio_init(&b->dev, env, &ops, VIRTIO_ID_BLOCK, name, features, 1);
	if (r) {
		undo_free(b->undo);
		free(b);
		return r;
	}
	b->dev.config = b->config;
	b->dev.config_bytes = CONFIG_BYTES;
	*out = &b->dev;
	return 0;
}
