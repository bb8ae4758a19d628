/*
 * Reading and writing the swap file by io_uring: a batch at a time, waited for. See store.h.
 *
 * A batch goes in rounds. A round sends every block that is PENDING, neighbours as one request, and waits for
 * all of them; what came through gets its rc, what was cut short or interrupted stays PENDING for the next round.
 * A request of several blocks that fails leaves its blocks PENDING and `alone`. It ends because every request either
 * finishes a block, makes its blocks alone, or uses up one of a block's tries.
 *
 * The file is opened anew, not for its own sake but for the lock: a byte of the file, the one with the VM's number,
 * is locked through the new description. The kernel lets go of a description, and with it of the lock, only when
 * the last request that uses it is over, however its process ended.
 */
#include "ipt/fail.h"
#include "vmm/error.h"
#include "vmm/store.h"
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define ARENA     ((size_t)STORE_BATCH << PAGE_SHIFT) /* bytes */
#define TRIES     16 /* times that a block is sent after EINTR, EAGAIN or less than a block */
#define PENDING   1  /* rc of a block that isn't through */
#define LEN_BITS  8  /* of a request's user data, which is first block << LEN_BITS | blocks */
#define ENTER_MAX 16 /* times that io_uring_enter may fail in a batch */

struct store_io {
	struct io_uring ring;
	int fd;    /* the file, by a description of this process */
	bool lent; /* it is the store's own_fd */
	uint32_t file_blocks;
	pid_t pid;
	uint8_t *arena;
	bool registered; /* the arena, with the ring */
	int broken;      /* -errno: the ring can't be used any more */
	/* of the batch under way */
	uint8_t tries[STORE_BATCH]; /* used up */
	bool alone[STORE_BATCH];    /* in no request with others any more */
};

/* ---- making and letting go ------------------------------------------------------------------ */

int store_describe(const struct store *s)
{
	char path[32];
	if (s->file_fd < 0)
		return -ENODEV;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", s->file_fd);
	int fd = open(path, O_RDWR | O_CLOEXEC | (s->direct ? O_DIRECT : 0));
	return fd < 0 ? -errno : fd;
}

static int open_file(struct store_io *io, const struct store *s, uint32_t who, char *error)
{
	int refused = fail_point(FAIL_STORE_OPEN);
	io->lent = s->own_fd > 0 && !refused;
	io->fd = refused ? -refused : io->lent ? s->own_fd : store_describe(s);
	if (io->fd < 0)
		return errorf(error, io->fd, "swap file: %s", strerror(-io->fd));
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = who, .l_len = 1};
	if (fcntl(io->fd, F_OFD_SETLK, &lock) < 0) {
		int rc = errno == EACCES || errno == EAGAIN ? -EBUSY : -errno;
		return errorf(error, rc, "swap file: VM %" PRIu32 ": %s", who, strerror(-rc));
	}
	return 0;
}

static int create_arena(struct store_io *io)
{
	void *at = mmap(NULL, ARENA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (at == MAP_FAILED)
		return -errno;
	io->arena = at;
	/* Pinned pages would be copied at every fork. */
	return madvise(at, ARENA, MADV_DONTFORK) < 0 ? -errno : 0;
}

static int create_ring(struct store_io *io, char *error)
{
	int rc = fail_rc(STORE_RING, io_uring_queue_init(STORE_BATCH, &io->ring, 0));
	if (rc < 0) {
		io->ring.ring_fd = -1;
		return errorf(error, rc, "swap file: io_uring: %s", strerror(-rc));
	}
	/* Not if the user may lock too little memory; it works without. */
	struct iovec arena = {io->arena, ARENA};
	io->registered = io_uring_register_buffers(&io->ring, &arena, 1) == 0;
	return 0;
}

int store_io_create(struct store_io **out, const struct store *s, uint32_t who, char *error)
{
	if (s->file_fd < 0)
		return errorf(error, -ENODEV, "swap file: there is none");
	struct store_io *io = calloc(1, sizeof(*io));
	if (!io)
		return errorf(error, -ENOMEM, "swap file: no memory");
	io->file_blocks = s->file_blocks;
	io->pid = getpid();
	io->ring.ring_fd = -1;
	int rc = open_file(io, s, who, error);
	if (!rc) {
		rc = create_arena(io);
		if (rc)
			errorf(error, rc, "swap file: buffers: %s", strerror(-rc));
	}
	if (!rc)
		rc = create_ring(io, error);
	if (rc) {
		store_io_destroy(io);
		return rc;
	}
	*out = io;
	return 0;
}

void store_io_destroy(struct store_io *io)
{
	if (!io)
		return;
	if (io->arena)
		munmap(io->arena, ARENA);
	/* The description stays; the lock goes, unless something may still be under way. */
	struct flock none = {.l_type = F_UNLCK, .l_whence = SEEK_SET};
	if (io->lent && !io->broken)
		fcntl(io->fd, F_OFD_SETLK, &none);
	store_io_forget(io);
}

void store_io_forget(struct store_io *io)
{
	if (!io)
		return;
	/* The arena isn't here after a fork; other things may be in its place. */
	if (io->ring.ring_fd >= 0)
		io_uring_queue_exit(&io->ring);
	if (io->fd >= 0 && !io->lent)
		close(io->fd);
	free(io);
}

int store_io_lives(const struct store *s, uint32_t who)
{
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = who, .l_len = 1};
	if (fcntl(s->file_fd, F_OFD_GETLK, &lock) < 0)
		return -errno;
	return lock.l_type != F_UNLCK;
}

void *store_io_page(const struct store_io *io, unsigned i)
{
	return io->arena + ((size_t)i << PAGE_SHIFT);
}

/* ---- a round -------------------------------------------------------------------------------- */

static bool in_arena(const struct store_io *io, const void *page)
{
	return (uintptr_t)page - (uintptr_t)io->arena < ARENA;
}

/* May block i be in the same request as the one before it? */
static bool goes_on(const struct store_io *io, const struct store_block *b, unsigned i)
{
	return b[i].rc == PENDING && !io->alone[i] && !io->alone[i - 1] &&
	       b[i].block == b[i - 1].block + 1 &&
	       (uintptr_t)b[i].page == (uintptr_t)b[i - 1].page + PAGE_SIZE &&
	       in_arena(io, b[i].page) == in_arena(io, b[i - 1].page);
}

static void prepare_one(struct store_io *io, const struct store_block *all, unsigned first,
			unsigned n, bool write)
{
	const struct store_block *b = &all[first];
	/* There is room: as many entries as blocks, and none is left from the round before. */
	struct io_uring_sqe *sqe = io_uring_get_sqe(&io->ring);
	uint64_t at = ((uint64_t)b->block + 1) << PAGE_SHIFT; /* behind the mark */
	unsigned bytes = n << PAGE_SHIFT;
	bool fixed = io->registered && in_arena(io, b->page);
	if (write && fixed)
		io_uring_prep_write_fixed(sqe, io->fd, b->page, bytes, at, 0);
	else if (write)
		io_uring_prep_write(sqe, io->fd, b->page, bytes, at);
	else if (fixed)
		io_uring_prep_read_fixed(sqe, io->fd, b->page, bytes, at, 0);
	else
		io_uring_prep_read(sqe, io->fd, b->page, bytes, at);
	io_uring_sqe_set_data64(sqe, (uint64_t)first << LEN_BITS | n);
}

/* Prepare requests for all that is PENDING; how many. */
static unsigned prepare(struct store_io *io, const struct store_block *b, unsigned n, bool write)
{
	unsigned requests = 0, len;
	for (unsigned i = 0; i < n; i += len) {
		len = 1;
		if (b[i].rc != PENDING)
			continue;
		while (i + len < n && goes_on(io, b, i + len))
			len++;
		prepare_one(io, b, i, len, write);
		requests++;
	}
	return requests;
}

/* The request of blocks first to first + n - 1 came to `res`: bytes, or -errno. */
static void result(struct store_io *io, struct store_block *b, unsigned first, unsigned n, int res)
{
	unsigned whole = res > 0 ? (unsigned)res >> PAGE_SHIFT : 0;
	for (unsigned i = first; i < first + whole && i < first + n; i++)
		b[i].rc = 0;
	if (whole)
		return; /* it went on; what is left, if anything, is PENDING */
	/* ECANCELED: requests that were handed to a thread which ended. */
	bool again = res == -EINTR || res == -EAGAIN || res == -ECANCELED || res > 0;
	if (again && io->tries[first]++ < TRIES)
		return;
	if (n > 1) {
		memset(&io->alone[first], true, n);
		memset(&io->tries[first], 0, n);
		return;
	}
	/* 0 is the end of the file, which has become shorter; a part of a block as well. */
	b[first].rc = res < 0 ? res : -EIO;
}

/* Take what has come; how many requests that were. */
static unsigned reap(struct store_io *io, struct store_block *b, bool write)
{
	struct io_uring_cqe *cqe;
	unsigned head, taken = 0;
	io_uring_for_each_cqe(&io->ring, head, cqe)
	{
		uint64_t data = io_uring_cqe_get_data64(cqe);
		result(io, b, (unsigned)(data >> LEN_BITS), data & ((1u << LEN_BITS) - 1),
		       fail_result(write ? FAIL_STORE_WRITE : FAIL_STORE_READ, FAIL_STORE_SHORT,
				   cqe->res));
		taken++;
	}
	io_uring_cq_advance(&io->ring, taken);
	return taken;
}

/* Send what is prepared and wait for all of it. If the ring refuses for good it is broken, and what was not
 * sent stays PENDING; but what was sent is over. */
static void go(struct store_io *io, struct store_block *b, unsigned requests, bool write)
{
	unsigned refused = 0;
	while (requests && refused < ENTER_MAX) {
		int rc = fail_rc(STORE_ENTER, io_uring_submit_and_wait(&io->ring, requests));
		if (rc < 0 && rc != -EINTR && ++refused == ENTER_MAX)
			io->broken = rc;
		requests -= reap(io, b, write);
	}
	requests -= requests ? io_uring_sq_ready(&io->ring) : 0;
	while (requests) {
		struct io_uring_cqe *cqe;
		io_uring_wait_cqe(&io->ring, &cqe);
		requests -= reap(io, b, write);
	}
}

/* ---- a batch -------------------------------------------------------------------------------- */

static int begin(struct store_io *io, struct store_block *b, unsigned n, bool write)
{
	int rc = io->pid != getpid() ? -EPERM : n > STORE_BATCH ? -EINVAL : io->broken;
	for (unsigned i = 0; i < n && !rc; i++) {
		if (b[i].block >= io->file_blocks || (uintptr_t)b[i].page & PAGE_MASK)
			rc = -EINVAL;
	}
	for (unsigned i = 0; i < n; i++) {
		b[i].rc = rc ? rc : PENDING;
		if (!rc && write)
			b[i].sum = store_sum(b[i].page, PAGE_SIZE);
	}
	memset(io->tries, 0, sizeof(io->tries));
	memset(io->alone, 0, sizeof(io->alone));
	return rc;
}

static int transfer(struct store_io *io, struct store_block *b, unsigned n, bool write)
{
	unsigned requests;
	int rc = begin(io, b, n, write);
	if (rc)
		return rc;
	while (!io->broken && (requests = prepare(io, b, n, write)))
		go(io, b, requests, write);
	for (unsigned i = 0; i < n; i++) {
		if (b[i].rc == PENDING)
			b[i].rc = io->broken;
		else if (!b[i].rc && !write && store_sum(b[i].page, PAGE_SIZE) != b[i].sum)
			b[i].rc = -EBADMSG;
		if (!rc)
			rc = b[i].rc;
	}
	return rc;
}

int store_file_write(struct store_io *io, struct store_block *b, unsigned n)
{
	return transfer(io, b, n, true);
}

int store_file_read(struct store_io *io, struct store_block *b, unsigned n)
{
	return transfer(io, b, n, false);
}
