/*
 * Opening the swap file. Its first 4 KiB are the mark, by which we know a file whose contents are worth nothing
 * from one that somebody named by mistake; block b lies behind it, at (b + 1) * 4 KiB. See store.h.
 */
#include "ipt/fail.h"
#include "vmm/error.h"
#include "vmm/filelock.h"
#include "vmm/store.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define BLOCKS_MOST UINT64_C(0xffffffff)
#define LAST_WRITES 2000u       /* ms that writes of processes that are gone may take */
#define LAST_LOCKS  1000u       /* ms that processes may take to go */
#define FOREIGN     (128 * KiB) /* what is looked at for others' contents: btrfs begins at 64 KiB */

static const char mark[] = "invisor swap file: worth nothing when no host has it open\n";

struct opening {
	const char *path;
	uint64_t bytes; /* the mark included */
	int fd;
	bool made;   /* by us, so that it goes again if something fails */
	bool device; /* a block device */
	char *error;
};

/* Fail with -errno, in words that end with it. */
static int fail(const struct opening *o, const char *what)
{
	int rc = -errno;
	return errorf(o->error, rc, "swap file %.120s: %s%s", o->path, what, strerror(-rc));
}

static int open_it(struct opening *o)
{
	/* O_NONBLOCK so that nothing can hold us up before we see what it is. O_EXCL is for block devices: not one that
	 * is mounted or swapped to. */
	int flags = O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_EXCL;
	o->fd = open(o->path, flags);
	if (o->fd < 0 && errno == ENOENT) {
		o->fd = open(o->path, flags | O_CREAT, 0600);
		o->made = o->fd >= 0;
	}
	if (o->fd >= 0)
		return 0;
	switch (errno) {
	case ELOOP:
		return errorf(o->error, -ELOOP,
			      "swap file %.120s is a symbolic link; give the file it leads to",
			      o->path);
	case ENOENT:
		return errorf(o->error, -ENOENT, "swap file %.120s: there is no such directory",
			      o->path);
	case EISDIR:
	case ENXIO:
		return errorf(o->error, -EINVAL,
			      "swap file %.120s is no regular file nor a block device", o->path);
	case EBUSY:
		return errorf(o->error, -EBUSY, "swap file %.120s is mounted or in use", o->path);
	default:
		return fail(o, "");
	}
}

/* The size that is asked for, or a block device's; which must have that much. */
static int check_size(struct opening *o)
{
	uint64_t has;
	if (o->device) {
		if (ioctl(o->fd, BLKGETSIZE64, &has) < 0)
			return fail(o, "its size: ");
		if (!o->bytes)
			o->bytes = has;
		if (has < o->bytes)
			return errorf(o->error, -EINVAL,
				      "swap file %.120s has %" PRIu64 " MiB, fewer than %" PRIu64,
				      o->path, has / MiB, o->bytes / MiB);
	}
	o->bytes &= ~PAGE_MASK;
	if (o->bytes < STORE_FILE_LEAST || (o->bytes >> PAGE_SHIFT) - 1 > BLOCKS_MOST)
		return errorf(o->error, -EINVAL,
			      "swap file %.120s: %" PRIu64 " KiB; 1 MiB to 16 TiB are possible",
			      o->path, o->bytes / KiB);
	return 0;
}

/* What processes of a host that is gone had begun to write is over soon: see struct store_io. */
static int wait_for_writes(const struct opening *o)
{
	for (unsigned ms = 0; ms < LAST_WRITES; ms += 10) {
		struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
		if (fcntl(o->fd, F_OFD_GETLK, &lock) < 0)
			return fail(o, "lock: ");
		if (lock.l_type == F_UNLCK)
			return 0;
		nanosleep(&(struct timespec){0, 10000000}, NULL);
	}
	return errorf(o->error, -EBUSY,
		      "swap file %.120s is still written to by a guest that ended", o->path);
}

static int check_kind(struct opening *o)
{
	struct stat st;
	if (fstat(o->fd, &st) < 0)
		return fail(o, "");
	o->device = S_ISBLK(st.st_mode);
	if (!o->device && !S_ISREG(st.st_mode))
		return errorf(o->error, -EINVAL,
			      "swap file %.120s is no regular file nor a block device", o->path);
	/* As disks and persistent memory lock their files. VMs of a host that was just killed have it until they are gone. */
	int rc = filelock_take(o->fd, LOCK_EX, LAST_LOCKS, NULL);
	if (rc)
		return rc == -EWOULDBLOCK
			       ? errorf(o->error, -EBUSY,
					"swap file %.120s is in use by another host, or as a disk",
					o->path)
			       : fail(o, "lock: ");
	rc = wait_for_writes(o);
	return rc ? rc : check_size(o);
}

/* Nobody else's contents. */
static int check_contents(struct opening *o)
{
	uint8_t page[PAGE_SIZE];
	for (uint64_t at = 0; at < FOREIGN; at += PAGE_SIZE) {
		memset(page, 0, sizeof(page));
		ssize_t n = pread(o->fd, page, sizeof(page), (off_t)at);
		if (n < 0)
			return fail(o, "read: ");
		if (!at && !memcmp(page, mark, sizeof(mark)))
			return 0;
		if (!store_is_zero(page))
			return errorf(o->error, -EEXIST,
				      "swap file %.120s holds something else; remove it or give "
				      "another name",
				      o->path);
	}
	return 0;
}

/* The guests' memory is for nobody else to read, and what we promise is there. */
static int reserve(struct store *s, struct opening *o)
{
	if (o->device)
		return 0;
	if (fchmod(o->fd, 0600) < 0)
		return fail(o, "mode 0600: ");
	/* Shorter first, if it is longer; and to give it its length where fallocate can't. */
	if (ftruncate(o->fd, (off_t)o->bytes) < 0)
		return fail(o, "");
	int rc;
	do {
		rc = fail_call(STORE_CREATE, fallocate(o->fd, 0, 0, (off_t)o->bytes));
	} while (rc < 0 && errno == EINTR);
	s->sparse = rc < 0 && (errno == EOPNOTSUPP || errno == ENOSYS);
	if (rc == 0 || s->sparse)
		return 0;
	rc = -errno;
	return errorf(o->error, rc, "swap file %.120s: no room for %" PRIu64 " MiB: %s", o->path,
		      o->bytes / MiB, strerror(-rc));
}

/* Past the page cache if the file system lets us: what is swapped out should leave memory. */
static bool go_direct(int fd)
{
	_Alignas(PAGE_SIZE) uint8_t page[PAGE_SIZE];
	/* Some take the flag and then refuse to read, or want more than 4 KiB at a time. */
	if (fcntl(fd, F_SETFL, O_DIRECT) == 0 &&
	    pread(fd, page, sizeof(page), PAGE_SIZE) == (ssize_t)sizeof(page))
		return true;
	/* Not O_NONBLOCK either, with which io_uring doesn't wait. */
	fcntl(fd, F_SETFL, 0);
	return false;
}

static int write_mark(const struct opening *o)
{
	uint8_t page[PAGE_SIZE] = {0};
	memcpy(page, mark, sizeof(mark));
	ssize_t n = pwrite(o->fd, page, sizeof(page), 0);
	if (n == (ssize_t)sizeof(page))
		return 0;
	if (n >= 0)
		errno = EIO;
	return fail(o, "write: ");
}

int store_file_open(struct store *s, const char *path, uint64_t bytes, char *error)
{
	struct opening o = {.path = path, .bytes = bytes, .error = error};
	int rc = open_it(&o);
	if (rc)
		return rc;
	rc = check_kind(&o);
	if (!rc)
		rc = check_contents(&o);
	if (!rc)
		rc = reserve(s, &o);
	if (!rc)
		rc = write_mark(&o);
	if (rc) {
		/* Not what another host was quicker to lock. */
		if (o.made && rc != -EBUSY)
			unlink(path);
		close(o.fd);
		return rc;
	}
	s->direct = go_direct(o.fd);
	s->file_fd = o.fd;
	s->file_blocks = (uint32_t)((o.bytes >> PAGE_SHIFT) - 1);
	return 0;
}
