/* The block device's operations on its file. See blk.h. */
#include "ipt/fail.h"
#include "virtio/blk.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define AGAIN_MAX 16 /* times that an operation is sent again after EINTR or EAGAIN */

#define ZEROES_BYTES 65536u
#define ZEROES_IOVS  16

/* Never written, so it costs no memory: every page of it is the kernel's zero page. */
static uint8_t zeroes[ZEROES_BYTES];
static const struct iovec zeroes_iov[ZEROES_IOVS] = {
	{zeroes, ZEROES_BYTES}, {zeroes, ZEROES_BYTES}, {zeroes, ZEROES_BYTES},
	{zeroes, ZEROES_BYTES}, {zeroes, ZEROES_BYTES}, {zeroes, ZEROES_BYTES},
	{zeroes, ZEROES_BYTES}, {zeroes, ZEROES_BYTES}, {zeroes, ZEROES_BYTES},
	{zeroes, ZEROES_BYTES}, {zeroes, ZEROES_BYTES}, {zeroes, ZEROES_BYTES},
	{zeroes, ZEROES_BYTES}, {zeroes, ZEROES_BYTES}, {zeroes, ZEROES_BYTES},
	{zeroes, ZEROES_BYTES},
};

static const char *name_of(uint32_t type)
{
	switch (type) {
	case T_IN:
		return "read";
	case T_OUT:
		return "write";
	case T_FLUSH:
		return "flush";
	case T_DISCARD:
		return "discard";
	default:
		return "write-zeroes";
	}
}

/* ---- answers ------------------------------------------------------------------------------ */

void blk_answer(struct virtq_chain *c, uint8_t status, uint64_t filled)
{
	const struct iovec *last = &c->iov[c->readable + c->writable - 1];
	((uint8_t *)last->iov_base)[last->iov_len - 1] = status;
	/* The used ring's length counts from the start of the writable part, and only what was
	 * surely written; the status is the last byte, so it counts when all before it does. */
	virtq_done(c, (uint32_t)(filled == c->write_bytes - 1 ? filled + 1 : filled));
}

/* What the host's refusal comes to, for the guest and for the user. */
static void host_error(struct request *r, int error)
{
	struct blk *b = r->b;
	b->stats.errors++;
	if (b->said_error)
		return;
	b->said_error = true;
	char text[64];
	virtio_say(&b->dev,
		   "%s at byte %llu of the file: %s; the guest got an I/O error (told once)",
		   name_of(r->type), (unsigned long long)r->now.at,
		   strerror_r(error, text, sizeof(text)));
}

void blk_finish(struct request *r, uint8_t status)
{
	/* What was there before it is history, and so is what came before that. */
	if (r->through && r->b->undo && status == S_OK)
		undo_settle(r->b->undo, undo_mark(r->b->undo));
	blk_answer(r->chain, status, status == S_OK && r->type == T_IN ? r->done_bytes : 0);
	free(r);
}

/* ---- the steps of a request --------------------------------------------------------------- */

static bool write_through(const struct blk *b)
{
	return !(b->dev.driver_features & 1u << F_FLUSH) || !b->config[CONFIG_WRITEBACK];
}

static int zeroes_iovs(const struct request *r)
{
	uint64_t n = r->now.bytes / ZEROES_BYTES;
	return (int)(n < ZEROES_IOVS ? n : ZEROES_IOVS);
}

static int fallocate_mode(const struct request *r)
{
	return FALLOC_FL_KEEP_SIZE | (r->now.unmap ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);
}

static void prepare(const struct request *r, struct io_uring_sqe *sqe)
{
	const struct blk *b = r->b;
	int durable = r->through ? RWF_DSYNC : 0;
	switch (r->type) {
	case T_IN:
		io_uring_prep_readv(sqe, b->fd, r->iov, (unsigned)r->iovs, r->now.at);
		break;
	case T_OUT:
		io_uring_prep_writev2(sqe, b->fd, r->iov, (unsigned)r->iovs, r->now.at, durable);
		break;
	case T_FLUSH:
		io_uring_prep_fsync(sqe, b->fd, IORING_FSYNC_DATASYNC);
		break;
	default:
		if (r->by_hand && r->now.bytes >= ZEROES_BYTES) {
			io_uring_prep_writev2(sqe, b->fd, zeroes_iov, (unsigned)zeroes_iovs(r),
					      r->now.at, durable);
		} else if (r->by_hand) {
			io_uring_prep_write(sqe, b->fd, zeroes, (unsigned)r->now.bytes, r->now.at);
			sqe->rw_flags = durable;
		} else {
			io_uring_prep_fallocate(sqe, b->fd, fallocate_mode(r), (off_t)r->now.at,
						(off_t)r->now.bytes);
		}
	}
}

/* Change a volatile disk here and now, so that what was there before is known: bytes or -errno, as io_uring has it. */
static int change(const struct request *r)
{
	const struct blk *b = r->b;
	off_t at = (off_t)r->now.at;
	bool many = r->type != T_OUT && r->by_hand && r->now.bytes >= ZEROES_BYTES;
	uint64_t bytes = many ? (uint64_t)zeroes_iovs(r) * ZEROES_BYTES : r->now.bytes;
	int rc = undo_keep(b->undo, b->fd, r->now.at, bytes);
	if (rc)
		return rc;
	ssize_t n = r->type == T_OUT ? pwritev(b->fd, r->iov, r->iovs, at)
		    : many           ? pwritev(b->fd, zeroes_iov, zeroes_iovs(r), at)
		    : r->by_hand     ? pwrite(b->fd, zeroes, bytes, at)
				     : fallocate(b->fd, fallocate_mode(r), at, (off_t)bytes);
	return n < 0 ? -errno : (int)n;
}

void blk_step(struct request *r)
{
	struct blk *b = r->b;
	bool changes = r->type != T_IN && r->type != T_FLUSH;
	struct io_uring_sqe *sqe = loop_sqe(b->dev.env.loop, &r->op);
	if (!sqe) {
		host_error(r, EBUSY);
		blk_finish(r, S_IOERR);
		return;
	}
	r->through = changes ? write_through(b) : r->through;
	r->at_once = b->undo && changes && !r->through;
	if (b->undo && r->type == T_FLUSH)
		r->mark = undo_mark(b->undo);
	if (r->at_once) {
		r->result = change(r);
		io_uring_prep_nop(sqe); /* the loop tells of it as of the others */
	} else {
		prepare(r, sqe);
	}
}

/* ---- injected faults (faults.h) ----------------------------------------------------------- */

/* Cut a write down to its first sectors. */
static void tear(struct request *r)
{
	uint64_t left = (uint64_t)r->fault.sectors * SECTOR;
	if (left >= r->now.bytes)
		left = r->now.bytes - SECTOR; /* it has one at least */
	r->now.bytes = left;
	for (int i = 0; i < r->iovs; i++) {
		if (r->iov[i].iov_len > left)
			r->iov[i].iov_len = left;
		left -= r->iov[i].iov_len;
		if (!left)
			r->iovs = r->iov[i].iov_len ? i + 1 : i;
	}
}

/* The delay is over, or there was none. */
static void begin_late(struct request *r)
{
	static const uint8_t status[] = {S_OK, S_IOERR, S_UNSUPP};
	r->waits = false;
	if (r->fault.torn && r->type == T_OUT) {
		r->faulty = true;
		tear(r);
	}
	if ((r->fault.status != VIRTIO_DISK_OK && !r->faulty) || (r->faulty && !r->now.bytes))
		blk_finish(r, status[r->fault.status]);
	else
		blk_step(r);
}

void blk_begin(struct request *r)
{
	struct virtio_dev *d = &r->b->dev;
	if (!d->faults) {
		blk_step(r);
		return;
	}
	d->faults->disk(d->faults->ctx, d,
			r->type == T_IN    ? VIRTIO_DISK_READ
			: r->type == T_OUT ? VIRTIO_DISK_WRITE
					   : VIRTIO_DISK_FLUSH,
			r->now.at, r->now.bytes, &r->fault);
	struct io_uring_sqe *sqe = r->fault.delay_ms ? loop_sqe(d->env.loop, &r->op) : NULL;
	if (!sqe) {
		begin_late(r);
		return;
	}
	r->waits = true;
	r->delay.tv_sec = r->fault.delay_ms / 1000;
	r->delay.tv_nsec = r->fault.delay_ms % 1000 * 1000000LL;
	io_uring_prep_timeout(sqe, &r->delay, 0, 0);
}

void blk_next_range(struct request *r)
{
	const struct blk *b = r->b;
	if (r->next == r->ranges) {
		if (!r->unflushed || !write_through(b)) {
			blk_finish(r, S_OK);
			return;
		}
		r->type = T_FLUSH;
		blk_step(r);
		return;
	}
	r->now = ((struct range *)r->rest)[r->next++];
	r->by_hand = r->type == T_WRITE_ZEROES && (r->now.unmap ? b->no_punch : b->no_zero_range);
	blk_step(r);
}

/* `n` bytes of IN or OUT are done. True if that was all. */
static bool advance(struct request *r, uint64_t n)
{
	r->done_bytes += n;
	r->now.at += n;
	r->now.bytes -= n;
	while (r->iovs && n >= r->iov->iov_len) {
		n -= r->iov->iov_len;
		r->iov++;
		r->iovs--;
	}
	if (n) {
		r->iov->iov_base = (uint8_t *)r->iov->iov_base + n;
		r->iov->iov_len -= n;
	}
	return !r->now.bytes;
}

static bool lacks(int error)
{
	return error == EOPNOTSUPP || error == ENOSYS || error == EINVAL || error == ENODEV;
}

/* fallocate came back with an error. */
static void fallocate_failed(struct request *r, int error)
{
	struct blk *b = r->b;
	if (lacks(error)) {
		/* EINVAL can be about this range alone, a block device's alignment for one. */
		if (error != EINVAL)
			*(r->now.unmap ? &b->no_punch : &b->no_zero_range) = true;
		if (r->type == T_DISCARD) {
			blk_finish(r, S_UNSUPP);
			return;
		}
		r->by_hand = true;
		blk_step(r);
		return;
	}
	host_error(r, error);
	blk_finish(r, S_IOERR);
}

static void done_locked(struct request *r, int res)
{
	struct blk *b = r->b;
	if (r->waits) {
		if (b->dev.draining)
			blk_finish(r, S_IOERR);
		else
			begin_late(r);
		return;
	}
	/* A thread that ends has its operations cancelled: ours goes on by another. */
	if ((res == -EINTR || res == -EAGAIN || res == -ECANCELED) && r->again++ < AGAIN_MAX) {
		blk_step(r);
		return;
	}
	bool allocating = r->ranges && r->type != T_FLUSH && !r->by_hand;
	if (res < 0 && allocating) {
		fallocate_failed(r, -res);
	} else if (res < 0 || (!res && !allocating && r->type != T_FLUSH)) {
		/* Nothing read although within the capacity: the file has become shorter. */
		host_error(r, res ? -res : EIO);
		blk_finish(r, S_IOERR);
	} else if (r->type == T_FLUSH) {
		if (b->undo)
			undo_settle(b->undo, r->mark);
		blk_finish(r, S_OK);
	} else if (allocating) {
		r->unflushed = r->type == T_WRITE_ZEROES;
		blk_next_range(r);
	} else if (b->dev.draining) {
		blk_finish(r, S_IOERR); /* the driver doesn't wait for the answer any more */
	} else if (r->ranges) {
		r->now.at += (uint64_t)res;
		r->now.bytes -= (uint64_t)res;
		if (r->now.bytes)
			blk_step(r);
		else
			blk_next_range(r);
	} else {
		*(r->type == T_IN ? &b->stats.bytes_read : &b->stats.bytes_written) +=
			(uint64_t)res;
		if (advance(r, (uint64_t)res))
			blk_finish(r, r->faulty && r->fault.status == VIRTIO_DISK_EIO ? S_IOERR
				      : r->faulty && r->fault.status == VIRTIO_DISK_UNSUPPORTED
					      ? S_UNSUPP
					      : S_OK);
		else
			blk_step(r);
	}
}

void blk_done(struct loop_op *op, int res, uint32_t flags)
{
	struct request *r = (struct request *)op;
	struct virtio_dev *d = &r->b->dev;
	(void)flags;
	if (r->at_once && res >= 0) /* else not even the NOP was carried out */
		res = r->result;
	if (r->type == T_IN || r->type == T_OUT)
		res = fail_result(FAIL_BLK_RESULT, FAIL_BLK_SHORT, res);
	else
		res = fail_result(FAIL_BLK_RESULT, FAIL_IDS, res);
	pthread_mutex_lock(&d->lock);
	done_locked(r, res);
	pthread_mutex_unlock(&d->lock);
}

struct request *blk_request(struct blk *b, struct virtq_chain *c, uint32_t type, size_t rest)
{
	struct request *r = fail_null(BLK_MEMORY, malloc(sizeof(*r) + rest));
	if (!r)
		return NULL;
	*r = (struct request){.op = {blk_done}, .b = b, .chain = c, .type = type};
	return r;
}
