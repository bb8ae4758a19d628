/* Files that guests have as persistent memory, and their views: see pmem.h. */
#include "vmm/pmem.h"
#include "ipt/fail.h"
#include "ipt/sealed.h"
#include "vmm/error.h"
#include "vmm/filelock.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- what a guest is given ------------------------------------------------------------------ */

static int check(struct pmem_use *use, char *error)
{
	struct stat st;
	if (fstat(use->fd, &st) < 0 || !S_ISREG(st.st_mode))
		return errorf(error, -EINVAL, "--pmem: %.150s is no regular file", use->path);
	uint64_t bytes = (uint64_t)st.st_size;
	if (bytes < PAGE_SIZE || bytes > MACHINE_PMEM_MAX)
		return errorf(error, -EINVAL,
			      "--pmem: %.120s has %" PRIu64 " bytes; 4 KiB to 64 GiB are possible",
			      use->path, bytes);
	use->bytes = use->share ? bytes & ~PAGE_MASK
				: (bytes + MACHINE_PMEM_ALIGN - 1) & ~(MACHINE_PMEM_ALIGN - 1);
	return 0;
}

int pmem_use_open(struct pmem_use *use, const char *path, bool share, char *error)
{
	/* O_NONBLOCK so that a FIFO can't hold us up before we see that it is one. */
	*use = (struct pmem_use){
		.path = path,
		.share = share,
		.fd = fail_call(PMEM_OPEN,
				open(path, (share ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK))};
	if (use->fd < 0)
		return errorf(error, -errno, "--pmem: %.150s: %s%s", path, strerror(errno),
			      share && (errno == EACCES || errno == EROFS)
				      ? "; files that can't be written take ,private"
				      : "");
	int rc = check(use, error);
	if (rc) {
		close(use->fd);
		use->fd = -1;
	}
	return rc;
}

/* ---- files ---------------------------------------------------------------------------------- */

static bool is_file(const struct pmem_file *f, const struct stat *st)
{
	return f->device == st->st_dev && f->inode == st->st_ino;
}

static struct pmem_file *find_file(struct pmem_file *files, const struct pool *pool,
				   const struct stat *st)
{
	while (files && (files->pool != pool || !is_file(files, st)))
		files = files->next;
	return files;
}

/* May guests of this domain have it so, with what those of others do? */
static int check_others(const struct pmem_file *files, const struct pool *pool,
			const struct pmem_use *use, const struct stat *st, char *error)
{
	for (const struct pmem_file *f = files; f; f = f->next) {
		if (f->pool == pool || !is_file(f, st) || (f->write_fd < 0 && !use->share))
			continue;
		return errorf(
			error, -EBUSY,
			"--pmem: %.150s is %s guests of another sharing domain; a file can be "
			"shared within one domain only",
			use->path, f->write_fd >= 0 ? "shared by" : "in use by");
	}
	return 0;
}

static void close_file(struct pmem_file *f)
{
	if (f->fd >= 0)
		close(f->fd);
	if (f->write_fd >= 0)
		filelock_close(f->write_fd); /* nobody else has this description */
	free(f->path);
	free(f);
}

static int busy(const char *path, char *error)
{
	return errorf(error, -EBUSY, "--pmem: %.150s is in use by another host, or as a disk",
		      path);
}

/* Register it as a pseudo-VM. The name is for people to read; of other domains' copies it has a number besides. */
static int register_file(struct ipt *table, const struct stat *st, vmid_t *id)
{
	char name[IPT_NAME_LEN];
	int rc = -EEXIST;
	int n = snprintf(name, sizeof name, "file:%llx:%llx", (unsigned long long)st->st_dev,
			 (unsigned long long)st->st_ino);
	for (unsigned copy = 2; rc == -EEXIST; copy++) {
		rc = ipt_file_add(table, name, id);
		if (n >= (int)sizeof name || snprintf(name + n, sizeof name - (size_t)n, ":%u",
						      copy) >= (int)sizeof name - n)
			break;
	}
	return rc;
}

static int add_file(struct pmem_file **files, struct ipt *table, const struct pool *pool,
		    const struct pmem_use *use, const struct stat *st, char *error)
{
	struct pmem_file *f = calloc(1, sizeof *f);
	if (!f)
		return errorf(error, -ENOMEM, "--pmem: no memory");
	*f = (struct pmem_file){.pool = pool,
				.device = st->st_dev,
				.inode = st->st_ino,
				.bytes = (uint64_t)st->st_size,
				.path = strdup(use->path),
				.fd = fcntl(use->fd, F_DUPFD_CLOEXEC, 0),
				.write_fd = -1};
	if (!f->path || f->fd < 0) {
		int rc = f->path ? -errno : -ENOMEM;
		close_file(f);
		return errorf(error, rc, "--pmem: %.150s: %s", use->path, strerror(-rc));
	}
	if (flock(f->fd, LOCK_SH | LOCK_NB) < 0) {
		close_file(f);
		return busy(use->path, error);
	}
	int rc = register_file(table, st, &f->id);
	if (rc) {
		close_file(f);
		return errorf(error, rc, "--pmem: %.150s: the table: %s", use->path, strerror(-rc));
	}
	f->next = *files;
	*files = f;
	return 0;
}

/* The first guest that shares the file makes it this host's alone. */
static int let_write(struct pmem_file *f, const struct pmem_use *use, char *error)
{
	if (f->write_fd >= 0)
		return 0;
	int fd = fcntl(use->fd, F_DUPFD_CLOEXEC, 0);
	if (fd < 0)
		return errorf(error, -errno, "--pmem: %.150s: %s", use->path, strerror(errno));
	/* Locks belong to open file descriptions, of which there may be two now: let the first go. */
	flock(f->fd, LOCK_UN);
	if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
		flock(f->fd, LOCK_SH | LOCK_NB);
		close(fd);
		return busy(use->path, error);
	}
	f->write_fd = fd;
	return 0;
}

static void drop_file(struct pmem_file **files, struct ipt *table, struct pmem_file *f)
{
	if (f->users)
		return;
	while (*files != f)
		files = &(*files)->next;
	*files = f->next;
	ipt_vm_reap(table, f->id, pool_clean, (void *)(uintptr_t)f->pool);
	close_file(f);
}

/* ---- views ---------------------------------------------------------------------------------- */

#define SETS 3

static void free_view(struct pmem_view *v)
{
	if (v->sets)
		munmap(v->sets, SETS * pageset_bytes(v->pages));
	if (v->sets_fd >= 0)
		close(v->sets_fd);
	free(v);
}

static int map_sets(struct pmem_view *v)
{
	size_t bytes = pageset_bytes(v->pages);
	void *at = sealed_map(v->sets_fd, SETS * bytes);
	if (!at)
		return -errno;
	v->sets = at;
	v->dirty = pageset_at(at, v->pages);
	v->writing = pageset_at((char *)at + bytes, v->pages);
	v->wanted = pageset_at((char *)at + 2 * bytes, v->pages);
	return 0;
}

/* The host's mapping: VMs' processes have nothing to do with others' (pmem_attach). */
static int map_hosts_sets(struct pmem_view *v)
{
	int rc = map_sets(v);
	if (!rc && madvise(v->sets, SETS * pageset_bytes(v->pages), MADV_DONTFORK) < 0)
		rc = -errno;
	return rc;
}

static int make_sets(struct pmem_view *v)
{
	v->sets_fd =
		fail_call(PMEM_SETS, sealed_memfd("invisor-pmem", SETS * pageset_bytes(v->pages)));
	if (v->sets_fd < 0)
		return -errno;
	return map_hosts_sets(v);
}

int pmem_attach(struct pmem_view *v)
{
	return v->share ? map_sets(v) : 0;
}

struct pmem_file *pmem_file_adopt(struct pmem_file **files, const struct pool *pool, vmid_t id,
				  const char *path, uint64_t bytes, int fd, int write_fd)
{
	struct pmem_file *f = calloc(1, sizeof *f);
	if (!f)
		return NULL;
	*f = (struct pmem_file){.next = *files,
				.pool = pool,
				.path = strdup(path),
				.bytes = bytes,
				.id = id,
				.fd = fd,
				.write_fd = write_fd};
	if (!f->path) {
		free(f);
		return NULL;
	}
	*files = f;
	return f;
}

void pmem_file_leave(struct pmem_file **files, struct pmem_file *f, struct ipt *table)
{
	drop_file(files, table, f);
}

int pmem_view_adopt(struct pmem_file *f, struct ipt *table, gfn_t first, uint64_t pages, int sets,
		    struct pmem_view **out)
{
	struct pmem_view *v = calloc(1, sizeof *v);
	if (!v)
		return -ENOMEM;
	*v = (struct pmem_view){.file = f,
				.table = table,
				.pool = f->pool,
				.share = sets >= 0,
				.first = first,
				.pages = pages,
				.sets_fd = sets};
	int rc = v->share ? map_hosts_sets(v) : 0;
	if (rc) {
		free(v);
		return rc;
	}
	f->users++;
	*out = v;
	return 0;
}

static int make_view(struct pmem_view **out, struct pmem_file *f, struct ipt *table, gfn_t first,
		     uint64_t pages, bool share, char *error)
{
	struct pmem_view *v = calloc(1, sizeof *v);
	if (!v)
		return errorf(error, -ENOMEM, "--pmem: no memory");
	*v = (struct pmem_view){.file = f,
				.table = table,
				.pool = f->pool,
				.first = first,
				.pages = pages,
				.share = share,
				.sets_fd = -1};
	int rc = share ? make_sets(v) : 0;
	if (rc) {
		free_view(v);
		return errorf(error, rc, "--pmem: %.150s: no memory for its sets of pages: %s",
			      f->path, strerror(-rc));
	}
	f->users++;
	*out = v;
	return 0;
}

int pmem_join(struct pmem_file **files, struct ipt *table, const struct pool *pool, vmid_t vm,
	      gfn_t first, const struct pmem_use *use, struct pmem_view **out, char *error)
{
	struct stat st;
	if (fstat(use->fd, &st) < 0)
		return errorf(error, -errno, "--pmem: %.150s: %s", use->path, strerror(errno));
	struct pmem_file *f = find_file(*files, pool, &st);
	int rc = check_others(*files, pool, use, &st, error);
	if (!rc && !f)
		rc = add_file(files, table, pool, use, &st, error);
	if (rc)
		return rc;
	f = f ? f : *files;
	uint64_t pages = use->share ? f->bytes / PAGE_SIZE : (f->bytes + PAGE_SIZE - 1) / PAGE_SIZE;
	if ((uint64_t)st.st_size != f->bytes || pages > use->bytes / PAGE_SIZE)
		rc = errorf(error, -EBUSY, "--pmem: %.120s has changed its size while it is in use",
			    use->path);
	if (!rc && use->share)
		rc = let_write(f, use, error);
	if (!rc)
		rc = make_view(out, f, table, first, pages, use->share, error);
	if (!rc) {
		rc = ipt_vm_region(table, vm, first, pages, f->id, 0);
		if (!rc)
			return 0;
		errorf(error, rc, "--pmem: %.150s: the table: %s", use->path, strerror(-rc));
		free_view(*out);
		f->users--;
	}
	drop_file(files, table, f);
	return rc;
}

int pmem_join_clone(const struct pmem_view *of, struct pmem_view **out, char *error)
{
	return make_view(out, of->file, of->table, of->first, of->pages, of->share, error);
}

int pmem_adopt(struct pmem_view *v, int fd, char *error)
{
	munmap(v->sets, SETS * pageset_bytes(v->pages)); /* the other's */
	v->sets = NULL;
	v->sets_fd = fd;
	v->said = v->said_early = false;
	v->not_before_ns = v->cleaned_pages = 0;
	int rc = map_sets(v);
	close(fd);
	v->sets_fd = -1;
	return rc ? errorf(error, rc, "%.150s: its sets of pages: %s", v->file->path, strerror(-rc))
		  : 0;
}

/* It may be being tried by host_left.c: from here on it isn't. */
static void settle_left(struct pmem_view *v)
{
	pageset_remove(&v->wanted, 0, v->pages);
	while (v->flush.under_way)
		loop_step(v->loop, NULL, -1);
}

/* Try again what earlier views left; those that succeed are forgotten. */
static int finish_left(struct pmem_file *f)
{
	int error = 0;
	for (struct pmem_view **at = &f->left; *at;) {
		struct pmem_view *v = *at;
		settle_left(v);
		int rc = pmem_write_back(v);
		if (rc) {
			error = rc;
			at = &v->next;
		} else {
			*at = v->next;
			free_view(v);
		}
	}
	return error;
}

static uint64_t count(const struct pageset *s)
{
	uint64_t at = 0, n, all = 0;
	for (; (n = pageset_next(s, &at, s->pages)); at += n)
		all += n;
	return all;
}

static bool has_any(const struct pageset *s, uint64_t page, uint64_t count)
{
	uint64_t at = page;
	return page < s->pages && pageset_next(s, &at, 1) && at < page + count;
}

bool pmem_is_dirty(const struct pmem_view *v, uint64_t page, uint64_t count)
{
	/* A flush moves pages from the one to the other, and adds before it removes: `dirty` twice, as it may move back. */
	return v->share && (has_any(&v->dirty, page, count) || has_any(&v->writing, page, count) ||
			    has_any(&v->dirty, page, count));
}

bool pmem_want_clean(struct pmem_view *v, uint64_t page, uint64_t count)
{
	/* Single pages would cost an fdatasync each. */
	uint64_t first = page & ~(uint64_t)(IPT_CLUSTER_FRAMES - 1);
	uint64_t end =
		(page + count + IPT_CLUSTER_FRAMES - 1) & ~(uint64_t)(IPT_CLUSTER_FRAMES - 1);
	if (!pmem_is_dirty(v, page, count))
		return false;
	pageset_add(&v->wanted, first, (end < v->pages ? end : v->pages) - first);
	return true;
}

bool pmem_left_dirty(const struct pmem_file *f, uint64_t page, uint64_t count)
{
	const struct pmem_view *v = f->left;
	while (v && !pmem_is_dirty(v, page, count))
		v = v->next;
	return v != NULL;
}

uint64_t pmem_dirty_pages(const struct pmem_view *v)
{
	return v->share ? count(&v->dirty) + count(&v->writing) : 0;
}

int pmem_finish(struct pmem_view *v, char *error)
{
	if (!v->share)
		return 0;
	v->protect = NULL; /* no guest runs on it */
	v->say = NULL;
	int rc = pmem_write_back(v);
	if (!rc)
		return 0;
	return errorf(error, rc, "%.120s: %" PRIu64 " pages it wrote could not be written back: %s",
		      v->file->path, count(&v->dirty), pmem_why(rc));
}

int pmem_leave(struct pmem_file **files, struct pmem_view *v)
{
	struct pmem_file *f = v->file;
	struct ipt *table = v->table;
	uint64_t at = 0;
	if (v->share && pageset_next(&v->dirty, &at, 1)) {
		v->next = f->left;
		f->left = v;
	} else {
		free_view(v);
	}
	int rc = finish_left(f);
	if (--f->users)
		return 0;
	while (f->left) {
		v = f->left;
		f->left = v->next;
		free_view(v);
	}
	drop_file(files, table, f);
	return rc;
}
