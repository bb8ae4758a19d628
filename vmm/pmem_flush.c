/*
 * Write-back of a shared view: what is dirty goes to the file in runs, then fdatasync. A page leaves
 * `dirty` for `writing` before it is protected and read, so that a write that comes later makes it dirty
 * again; and leaves `writing` only when the file system says that it is durable. What fails goes back
 * to `dirty`, after a failed fdatasync all that was written since the last one: the kernel reports such an
 * error once and may have dropped the pages.
 */
#include "ipt/fail.h"
#include "vmm/clock.h"
#include "vmm/pmem.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define AGAIN_MAX   16   /* times that an operation is sent again after EINTR or EAGAIN */
#define EARLY_PAGES 1024 /* that the host wants, at once: a guest's flush may wait for these */
#define LATER_NS    UINT64_C(1000000000) /* until the next try, where none of them could be written */

void pmem_note_write(struct pmem_view *v, uint64_t page, uint64_t count)
{
	pageset_add(&v->dirty, page, count);
}

const char *pmem_why(int error)
{
	return error == -ENXIO ? "the file has become shorter" : strerror(-error);
}

static void move(struct pageset *from, struct pageset *to, uint64_t first, uint64_t count)
{
	pageset_add(to, first, count);
	pageset_remove(from, first, count);
}

static void move_all(struct pageset *from, struct pageset *to)
{
	uint64_t at = 0, n;
	while ((n = pageset_next(from, &at, from->pages)))
		move(from, to, at, n);
}

static void begin_flush(struct pmem_view *v, bool early)
{
	v->flush.next = 0;
	v->flush.count = 0;
	v->flush.any = v->flush.syncing = false;
	v->flush.early = early;
	v->flush.room = EARLY_PAGES;
	v->flush.durable = 0;
	v->flush.error = 0;
	/* Left by a process that died in a flush. */
	move_all(&v->writing, &v->dirty);
}

static void run_failed(struct pmem_view *v, int error)
{
	move(&v->writing, &v->dirty, v->flush.first, v->flush.count);
	v->flush.count = 0;
	if (!v->flush.error)
		v->flush.error = error;
}

/* The frame of a page that is to be written: it stays the file's, since it is in a set. One that is written to just
 * while it was to be dropped (host_drop.c) is missing for that moment, in which the registry is locked. */
static frame_t frame_of(const struct pmem_view *v, uint64_t page)
{
	frame_t f = ipt_lookup(v->table, v->file->id, gfn(page));
	if (!frame_valid(f)) {
		ipt_mend(v->table); /* which waits for that lock */
		f = ipt_lookup(v->table, v->file->id, gfn(page));
	}
	return f;
}

/* Find the frames of the run, which is shortened where they come in too many pieces. There is nothing to pin. */
static int find_frames(struct pmem_view *v)
{
	v->flush.rest = v->flush.iov;
	v->flush.pieces = 0;
	for (uint64_t i = 0; i < v->flush.count; i++) {
		frame_t f = frame_of(v, v->flush.first + i);
		if (!frame_valid(f))
			return -EIO; /* who put the page into the set had found it there */
		if (ipt_health(v->table, f) != IPT_GOOD) { /* what the guest wrote is lost */
			v->flush.count = i ? i : 1;
			return i ? 0 : -EIO;
		}
		uint8_t *at = pool_at(v->pool, f);
		struct iovec *last = v->flush.pieces ? &v->flush.iov[v->flush.pieces - 1] : NULL;
		if (last && (uint8_t *)last->iov_base + last->iov_len == at)
			last->iov_len += PAGE_SIZE;
		else if (v->flush.pieces < PMEM_RUN_PIECES)
			v->flush.iov[v->flush.pieces++] = (struct iovec){at, PAGE_SIZE};
		else
			v->flush.count = i;
	}
	return 0;
}

/* A page that a device of some guest writes to now, behind the window's protection, stays dirty: what it
 * writes until it unpins may come after we read. */
static void keep_pinned_dirty(struct pmem_view *v)
{
	for (uint64_t i = 0; i < v->flush.count; i++) {
		frame_t f = frame_of(v, v->flush.first + i);
		struct ipt_owner o;
		if (frame_valid(f) && ipt_owner(v->table, f, &o) == 0 && o.pins)
			pageset_add(&v->dirty, v->flush.first + i, 1);
	}
}

static int check_size(const struct pmem_view *v)
{
	struct stat st;
	if (fstat(v->file->write_fd, &st) < 0)
		return -errno;
	/* Writing would make the file longer again, which is for whoever cut it to decide. */
	return (v->flush.first + v->flush.count) * PAGE_SIZE > (uint64_t)st.st_size ? -ENXIO : 0;
}

/* Was a page of the run destroyed after it was looked up, and before it was said to be written? */
static bool run_is_lost(const struct pmem_view *v)
{
	for (uint64_t i = 0; i < v->flush.count; i++)
		if (ipt_health(v->table, frame_of(v, v->flush.first + i)) != IPT_GOOD)
			return true;
	return false;
}

/* The next dirty pages among those that the host wants: their number, the first in flush.first. Others are taken off the
 * set. */
static uint64_t find_wanted(struct pmem_view *v, uint64_t most)
{
	uint64_t at = v->flush.next, n;
	while (most && (n = pageset_next(&v->wanted, &at, most))) {
		uint64_t first = at, end = at + n, dirty = pageset_next(&v->dirty, &first, n);
		if (dirty && first < end) {
			v->flush.first = first;
			return dirty < end - first ? dirty : end - first;
		}
		pageset_remove(&v->wanted, at, n);
		at = end;
	}
	return 0;
}

/* The next run, in flush.first and .count. */
static bool find_run(struct pmem_view *v)
{
	if (v->flush.early) {
		v->flush.count = find_wanted(v, v->flush.room < PMEM_RUN_PAGES ? v->flush.room
									       : PMEM_RUN_PAGES);
	} else {
		v->flush.first = v->flush.next;
		v->flush.count = pageset_next(&v->dirty, &v->flush.first, PMEM_RUN_PAGES);
	}
	return v->flush.count > 0;
}

/* Take the next run out of `dirty`: false if there is none. */
static bool take_run(struct pmem_view *v)
{
	while (find_run(v)) {
		int rc = find_frames(v);
		v->flush.next = v->flush.first + v->flush.count;
		move(&v->dirty, &v->writing, v->flush.first, v->flush.count);
		if (v->flush.early) {
			pageset_remove(&v->wanted, v->flush.first, v->flush.count);
			v->flush.room -= v->flush.count;
		}
		if (!rc && v->protect)
			rc = v->protect(v->ctx, gfn_add(v->first, v->flush.first), v->flush.count);
		keep_pinned_dirty(v);
		if (!rc && run_is_lost(v))
			rc = -EIO;
		if (!rc)
			rc = check_size(v);
		v->flush.any = true;
		if (!rc)
			return true;
		run_failed(v, rc);
	}
	return false;
}

/* What comes next; END when the flush is over. */
enum next { END, WRITE, SYNC };

static enum next next(struct pmem_view *v)
{
	if (v->flush.count || (!v->flush.syncing && take_run(v)))
		return WRITE;
	if (v->flush.any && !v->flush.syncing) {
		v->flush.syncing = true;
		v->flush.again = 0;
		return SYNC;
	}
	return END;
}

/* The operation under way came to `res`: bytes, or -errno. */
static enum next result(struct pmem_view *v, int res)
{
	res = fail_result(v->flush.early ? FAIL_PMEM_CLEAN : FAIL_PMEM_FLUSH, FAIL_IDS, res);
	if ((res == -EINTR || res == -EAGAIN || res == -ECANCELED) && v->flush.again++ < AGAIN_MAX)
		return v->flush.syncing ? SYNC : WRITE;
	v->flush.again = 0;
	if (v->flush.syncing) {
		if (res < 0) {
			move_all(&v->writing, &v->dirty);
			if (!v->flush.error)
				v->flush.error = res;
		} else {
			uint64_t at = 0, n;
			for (; (n = pageset_next(&v->writing, &at, v->writing.pages));
			     v->flush.durable += n)
				pageset_remove(&v->writing, at, n);
		}
		return END;
	}
	if (res <= 0) {
		run_failed(v, res ? res : -EIO);
		return next(v);
	}
	size_t n = (size_t)res;
	for (; v->flush.pieces && n >= v->flush.rest->iov_len; v->flush.pieces--)
		n -= v->flush.rest++->iov_len;
	if (v->flush.pieces) {
		v->flush.rest->iov_base = (uint8_t *)v->flush.rest->iov_base + n;
		v->flush.rest->iov_len -= n;
	} else {
		v->flush.count = 0;
	}
	return next(v);
}

/* Where in the file the rest of the run goes. */
static off_t offset(const struct pmem_view *v)
{
	uint64_t left = 0;
	for (int i = 0; i < v->flush.pieces; i++)
		left += v->flush.rest[i].iov_len;
	return (off_t)((v->flush.first + v->flush.count) * PAGE_SIZE - left);
}

static void say(struct pmem_view *v, bool *said, const char *what, const char *then)
{
	char line[256];
	if (v->flush.error && !*said && v->say) {
		snprintf(line, sizeof line, "%.120s: %s: %s; %s (told once)", v->file->path, what,
			 pmem_why(v->flush.error), then);
		v->say(v->ctx, line);
	}
	*said = v->flush.error != 0;
}

static int ended(struct pmem_view *v)
{
	int error = v->flush.error;
	v->flush.under_way = false;
	if (!v->flush.early) {
		say(v, &v->said, "flush", "the guest got an I/O error");
		return error;
	}
	say(v, &v->said_early, "writing back to make room", "pages stay in memory");
	v->not_before_ns = error && !v->flush.durable ? clock_ns() + LATER_NS : 0;
	v->cleaned_pages += v->flush.durable;
	if (v->cleaned)
		v->cleaned(v->ctx, v->flush.durable, error);
	return error;
}

/* Begin what comes next. */
static int go_on(struct pmem_view *v, struct loop_op *op, enum next what)
{
	if (what == END)
		return ended(v);
	struct io_uring_sqe *sqe = loop_sqe(v->loop, op);
	if (!sqe) {
		move_all(&v->writing, &v->dirty);
		v->flush.error = -EBUSY;
		return ended(v);
	}
	if (what == WRITE)
		io_uring_prep_writev(sqe, v->file->write_fd, v->flush.rest,
				     (unsigned)v->flush.pieces, (uint64_t)offset(v));
	else
		io_uring_prep_fsync(sqe, v->file->write_fd, IORING_FSYNC_DATASYNC);
	v->flush.under_way = true;
	return 1;
}

int pmem_flush(void *view, struct loop_op *op, bool begin, int res)
{
	struct pmem_view *v = view;
	if (begin)
		begin_flush(v, false);
	return go_on(v, op, begin ? next(v) : result(v, res));
}

int pmem_clean(void *view, struct loop_op *op, bool begin, int res)
{
	struct pmem_view *v = view;
	if (begin && (!v->pool->base || clock_ns() < v->not_before_ns))
		return 0;
	if (begin)
		begin_flush(v, true);
	enum next what = begin ? next(v) : result(v, res);
	return what == END && !v->flush.any ? 0 : go_on(v, op, what);
}

int pmem_write_back(struct pmem_view *v)
{
	if (!v->pool->base)
		return -ENOMEM; /* an adopted view, and there was no address space for the pool */
	begin_flush(v, false);
	for (enum next what = next(v); what != END;) {
		ssize_t rc = what == WRITE ? pwritev(v->file->write_fd, v->flush.rest,
						     v->flush.pieces, offset(v))
					   : fdatasync(v->file->write_fd);
		what = result(v, rc < 0 ? -errno : (int)rc);
	}
	return v->flush.error;
}
