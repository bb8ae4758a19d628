/* The swap file: what is taken for one, and reading and writing it. Errors are the kernel's own. */
#include "vmm/error.h"
#include "vmm/store.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BYTES (2 * MiB) /* of the swap file */

struct world {
	struct store s;
	char dir[32], path[64];
	char error[ERROR_MAX];
};

/* A directory for it, and no file yet. */
static void begin(struct world *w)
{
	memset(w, 0, sizeof(*w));
	signal(SIGXFSZ, SIG_IGN);
	strcpy(w->dir, "/tmp/invisor-store-XXXXXX");
	cr_assert_not_null(mkdtemp(w->dir));
	snprintf(w->path, sizeof(w->path), "%s/swap", w->dir);
}

static void end(struct world *w)
{
	store_destroy(&w->s);
	unlink(w->path);
	cr_assert_eq(rmdir(w->dir), 0, "nothing else is left");
}

static int create(struct world *w)
{
	return store_create(&w->s, 0, w->path, BYTES, w->error);
}

static struct store_io *open_io(struct world *w, uint32_t who)
{
	struct store_io *io;
	cr_assert_eq(store_io_create(&io, &w->s, who, w->error), 0, "%s", w->error);
	return io;
}

static void make_file(const char *path, const void *bytes, size_t n, off_t at)
{
	int fd = open(path, O_WRONLY | O_CREAT, 0644);
	cr_assert_geq(fd, 0);
	cr_assert_eq(pwrite(fd, bytes, n, at), (ssize_t)n);
	close(fd);
}

static void limit_files(uint64_t bytes)
{
	struct rlimit r;
	cr_assert_eq(getrlimit(RLIMIT_FSIZE, &r), 0);
	r.rlim_cur = bytes ? bytes : r.rlim_max;
	cr_assert_eq(setrlimit(RLIMIT_FSIZE, &r), 0);
}

static bool exists(const char *path)
{
	return access(path, F_OK) == 0;
}

/* ---- what is taken for one ------------------------------------------------------------------ */

Test(store_file, is_made_and_used_again)
{
	struct world w;
	struct stat st;
	begin(&w);
	for (unsigned round = 0; round < 2; round++) {
		cr_assert_eq(create(&w), 0, "%s", w.error);
		cr_assert_eq(stat(w.path, &st), 0);
		cr_assert_eq(st.st_mode & 07777, 0600);
		cr_assert_eq(st.st_size, BYTES);
		cr_assert(w.s.sparse || st.st_blocks * 512 >= (blkcnt_t)BYTES, "reserved");
		cr_assert_eq(w.s.file_blocks, BYTES / PAGE_SIZE - 1);
		cr_assert(fcntl(w.s.file_fd, F_GETFD) & FD_CLOEXEC);
		cr_assert_not(fcntl(w.s.file_fd, F_GETFL) & O_NONBLOCK);
		store_destroy(&w.s);
		cr_assert(exists(w.path), "it stays");
	}
	/* Another size next time; a mode that others may read. */
	cr_assert_eq(chmod(w.path, 0644), 0);
	cr_assert_eq(store_create(&w.s, 0, w.path, STORE_FILE_LEAST + 4095, w.error), 0);
	cr_assert_eq(stat(w.path, &st), 0);
	cr_assert_eq(st.st_mode & 07777, 0600);
	cr_assert_eq(st.st_size, STORE_FILE_LEAST);
	cr_assert_eq(w.s.file_blocks, 255);
	end(&w);
}

static void refused(struct world *w, const char *path, uint64_t bytes, int rc, const char *words)
{
	cr_expect_eq(store_create(&w->s, 0, path, bytes, w->error), rc, "%s: %s", path, w->error);
	cr_expect(strstr(w->error, words), "%s", w->error);
	cr_expect(strstr(w->error, path), "%s", w->error);
	cr_expect_eq(w->s.file_fd, -1);
}

Test(store_file, what_is_none)
{
	struct world w;
	char other[96];
	begin(&w);
	refused(&w, "/nowhere/swap", BYTES, -ENOENT, "no such directory");
	refused(&w, "/etc/passwd/swap", BYTES, -ENOTDIR, "Not a directory");
	refused(&w, w.dir, BYTES, -EINVAL, "no regular file nor a block device");
	refused(&w, "/dev/zero", BYTES, -EINVAL, "no regular file nor a block device");
	refused(&w, w.path, STORE_FILE_LEAST - 1, -EINVAL, "1 MiB to 16 TiB");
	refused(&w, w.path, 0, -EINVAL, "1 MiB to 16 TiB");
	refused(&w, w.path, UINT64_C(1) << 45, -EINVAL, "1 MiB to 16 TiB");
	refused(&w, w.path, UINT64_MAX, -EINVAL, "1 MiB to 16 TiB");
	cr_assert_not(exists(w.path), "what was made for nothing is gone");
	cr_assert_eq(mkfifo(w.path, 0600), 0);
	refused(&w, w.path, BYTES, -EINVAL, "no regular file nor a block device");
	cr_assert_eq(unlink(w.path), 0);
	/* A symbolic link, wherever it leads. */
	snprintf(other, sizeof(other), "%s-other", w.path);
	cr_assert_eq(symlink(other, w.path), 0);
	refused(&w, w.path, BYTES, -ELOOP, "symbolic link");
	cr_assert_not(exists(other));
	cr_assert_eq(unlink(w.path), 0);
	end(&w);
}

Test(store_file, what_holds_something_else)
{
	struct world w;
	struct stat st;
	static const off_t places[] = {0, 1080, 4086, 65600, 128 * 1024 - 8};
	begin(&w);
	for (unsigned i = 0; i < 5; i++) {
		make_file(w.path, "contents", 8, places[i]);
		refused(&w, w.path, BYTES, -EEXIST, "holds something else");
		cr_assert_eq(stat(w.path, &st), 0);
		cr_assert_eq(st.st_size, places[i] + 8, "left as it was");
		cr_assert_eq(st.st_mode & 07777, 0644);
		cr_assert_eq(unlink(w.path), 0);
	}
	/* Made ahead, and empty or of zeroes. */
	make_file(w.path, "", 0, 0);
	cr_assert_eq(create(&w), 0, "%s", w.error);
	store_destroy(&w.s);
	cr_assert_eq(unlink(w.path), 0);
	make_file(w.path, "\0", 1, 8 * 1024 * 1024);
	cr_assert_eq(create(&w), 0, "%s", w.error);
	end(&w);
}

Test(store_file, is_one_hosts)
{
	struct world w;
	struct store other;
	begin(&w);
	cr_assert_eq(create(&w), 0);
	cr_assert_eq(store_create(&other, 0, w.path, BYTES, w.error), -EBUSY);
	cr_assert(strstr(w.error, "in use by another host"), "%s", w.error);
	cr_assert(exists(w.path));
	store_destroy(&w.s);
	/* The host is gone, and what a guest began to write isn't over until a little later. */
	cr_assert_eq(create(&w), 0);
	pid_t pid = fork();
	if (!pid) {
		open_io(&w, 3);
		store_destroy(&w.s);
		usleep(100000);
		_exit(0);
	}
	while (!store_io_lives(&w.s, 3))
		usleep(1000);
	store_destroy(&w.s);
	usleep(20000);
	cr_assert_eq(create(&w), 0, "%s", w.error);
	cr_assert_eq(store_io_lives(&w.s, 3), 0, "waited for");
	cr_assert_eq(waitpid(pid, NULL, 0), pid);
	/* A disk of some guest's. */
	store_destroy(&w.s);
	int fd = open(w.path, O_RDONLY);
	cr_assert_eq(flock(fd, LOCK_SH), 0);
	cr_assert_eq(create(&w), -EBUSY);
	close(fd);
	end(&w);
}

Test(store_file, no_room)
{
	struct world w;
	begin(&w);
	limit_files(MiB);
	cr_assert_eq(create(&w), -EFBIG);
	cr_assert(strstr(w.error, "File too large"), "%s", w.error);
	cr_assert_not(exists(w.path));
	limit_files(0);
	if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("tmpfs", w.dir, "tmpfs", 0, "size=1536k") < 0) {
		end(&w);
		cr_skip_test("a tmpfs can't be mounted");
	}
	cr_assert_eq(create(&w), -ENOSPC);
	cr_assert(strstr(w.error, "no room for 2 MiB"), "%s", w.error);
	cr_assert_not(exists(w.path));
	cr_assert_eq(store_create(&w.s, 0, w.path, STORE_FILE_LEAST, w.error), 0, "%s", w.error);
	store_destroy(&w.s);
	cr_assert_eq(unlink(w.path), 0);
	cr_assert_eq(umount(w.dir), 0);
	end(&w);
}

/* ---- blocks --------------------------------------------------------------------------------- */

/* What block `block` has in its `version`th life. */
static void fill(void *page, uint32_t block, uint32_t version)
{
	uint64_t *word = page, v = ((uint64_t)version << 32 | block) + 1;
	for (unsigned i = 0; i < PAGE_SIZE / 8; i++) {
		v ^= v >> 12;
		v ^= v << 25;
		v ^= v >> 27;
		word[i] = v;
	}
}

static bool has(const void *page, uint32_t block, uint32_t version)
{
	uint64_t expected[PAGE_SIZE / 8];
	fill(expected, block, version);
	return !memcmp(page, expected, PAGE_SIZE);
}

static void *other_memory(void)
{
	void *at = mmap(NULL, STORE_BATCH * PAGE_SIZE, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	cr_assert_neq(at, MAP_FAILED);
	return at;
}

/* Batches of all sizes, in runs and scattered, of the arena and of other memory, against what should be there. */
static void exercise(struct world *w, struct store_io *io, uint32_t first, uint32_t blocks,
		     unsigned rounds)
{
	uint32_t version[512] = {0}, sum[512] = {0};
	uint8_t *other = other_memory();
	uint64_t seed = first * 77 + 1;
	for (unsigned round = 0; round < rounds; round++) {
		struct store_block b[STORE_BATCH];
		uint32_t at = 0;
		seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407u;
		unsigned n = round < 3 ? STORE_BATCH : (unsigned)(seed >> 40) % (STORE_BATCH + 1);
		bool write = seed >> 60 & 1;
		for (unsigned i = 0; i < n; i++) {
			at = i % 7 < 4 && i ? at + 1 : (uint32_t)(seed >> 20) + i * 97;
			at %= blocks;
			/* Each block once in a batch. */
			for (unsigned k = 0; k < i; k++) {
				if (b[k].block == first + at) {
					at = (at + 1) % blocks;
					k = UINT32_MAX;
				}
			}
			uint8_t *page =
				(seed >> 50) % 3 ? store_io_page(io, i) : other + i * PAGE_SIZE;
			if (round % 5 == 4) /* pages backwards */
				page = store_io_page(io, n - 1 - i);
			b[i] = (struct store_block){.block = first + at, .page = page};
			write |= !version[at];
		}
		for (unsigned i = 0; i < n; i++) {
			uint32_t k = b[i].block - first;
			if (write)
				fill(b[i].page, b[i].block, ++version[k]);
			else
				memset(b[i].page, 0, PAGE_SIZE);
			b[i].sum = write ? 0 : sum[k];
		}
		cr_assert_eq(write ? store_file_write(io, b, n) : store_file_read(io, b, n), 0);
		for (unsigned i = 0; i < n; i++) {
			uint32_t k = b[i].block - first;
			cr_assert_eq(b[i].rc, 0);
			sum[k] = write ? b[i].sum : sum[k];
			cr_assert(has(b[i].page, b[i].block, version[k]), "block %u", b[i].block);
		}
	}
	for (uint32_t k = 0; k < blocks; k++) {
		struct store_block b = {first + k, sum[k], store_io_page(io, 63), 0};
		if (version[k]) {
			cr_assert_eq(store_file_read(io, &b, 1), 0);
			cr_assert(has(b.page, b.block, version[k]));
		}
	}
	munmap(other, STORE_BATCH * PAGE_SIZE);
	cr_assert_eq(store_io_lives(&w->s, first), 1);
}

Test(store_file, batches)
{
	struct world w;
	begin(&w);
	cr_assert_eq(create(&w), 0, "%s", w.error);
	struct store_io *io = open_io(&w, 0);
	exercise(&w, io, 0, w.s.file_blocks, 400);
	store_io_destroy(io);
	end(&w);
}

/* By the page cache: as where the file system has no O_DIRECT. */
Test(store_file, batches_by_the_page_cache)
{
	struct world w;
	begin(&w);
	cr_assert_eq(create(&w), 0, "%s", w.error);
	w.s.direct = false;
	struct store_io *io = open_io(&w, 0);
	exercise(&w, io, 0, w.s.file_blocks, 400);
	store_io_destroy(io);
	end(&w);
}

Test(store_file, batches_that_are_none)
{
	struct world w;
	begin(&w);
	cr_assert_eq(create(&w), 0, "%s", w.error);
	struct store_io *io = open_io(&w, 9), *second;
	struct store_block b[STORE_BATCH + 1] = {{0}};
	for (unsigned i = 0; i <= STORE_BATCH; i++)
		b[i] = (struct store_block){.block = i, .page = store_io_page(io, i % 64)};
	cr_assert_eq(store_file_write(io, b, 0), 0);
	cr_assert_eq(store_file_write(io, b, STORE_BATCH + 1), -EINVAL);
	b[3].block = w.s.file_blocks;
	cr_assert_eq(store_file_write(io, b, 4), -EINVAL);
	cr_assert_eq(b[0].rc, -EINVAL, "none of them");
	b[3].block = UINT32_MAX;
	cr_assert_eq(store_file_read(io, b, 4), -EINVAL);
	b[3].block = w.s.file_blocks - 1;
	cr_assert_eq(store_file_write(io, b, 4), 0);
	b[3].page = (uint8_t *)b[3].page + 512;
	cr_assert_eq(store_file_write(io, b, 4), -EINVAL);
	cr_assert_eq(store_io_create(&second, &w.s, 9, w.error), -EBUSY);
	cr_assert(strstr(w.error, "VM 9"), "%s", w.error);
	struct store none;
	cr_assert_eq(store_create(&none, 0, NULL, 0, w.error), 0);
	cr_assert_eq(store_io_create(&second, &none, 9, w.error), -ENODEV);
	store_io_destroy(NULL);
	store_io_destroy(io);
	end(&w);
}

/* ---- what breaks ---------------------------------------------------------------------------- */

/* A batch of n blocks that follow each other, of the arena. */
static void run(struct store_io *io, struct store_block *b, uint32_t first, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		b[i] = (struct store_block){.block = first + i, .page = store_io_page(io, i)};
		fill(b[i].page, b[i].block, 1);
	}
}

Test(store_file, a_damaged_block_is_found)
{
	struct world w;
	struct store_block b[STORE_BATCH];
	begin(&w);
	cr_assert_eq(create(&w), 0, "%s", w.error);
	struct store_io *io = open_io(&w, 1);
	run(io, b, 100, 32);
	cr_assert_eq(store_file_write(io, b, 32), 0);
	make_file(w.path, "x", 1, (1 + 110) * 4096 + 77);
	cr_assert_eq(store_file_read(io, b, 32), -EBADMSG);
	for (unsigned i = 0; i < 32; i++) {
		cr_assert_eq(b[i].rc, i == 10 ? -EBADMSG : 0);
		cr_assert(i == 10 || has(b[i].page, b[i].block, 1));
	}
	/* What was there before isn't what was written last. */
	b[5].sum ^= 1;
	cr_assert_eq(store_file_read(io, b, 8), -EBADMSG);
	cr_assert_eq(b[5].rc, -EBADMSG);
	cr_assert_eq(b[4].rc, 0);
	store_io_destroy(io);
	end(&w);
}

Test(store_file, cut_short_under_us)
{
	struct world w;
	struct store_block b[STORE_BATCH];
	begin(&w);
	cr_assert_eq(create(&w), 0, "%s", w.error);
	struct store_io *io = open_io(&w, 1);
	static const unsigned ends[] = {20 * 4096, 20 * 4096 + 512, 20 * 4096 + 100, 0};
	for (unsigned k = 0; k < 4; k++) {
		run(io, b, 100, 64);
		cr_assert_eq(store_file_write(io, b, 64), 0);
		cr_assert_eq(truncate(w.path, ends[k] ? 101 * 4096 + (off_t)ends[k] : 0), 0);
		b[7].block = 0; /* before the end, but never written: in three requests */
		b[7].sum = 0;
		cr_assert_neq(store_file_read(io, b, 64), 0);
		for (unsigned i = 0; i < 64; i++) {
			int rc = i >= 20 || !ends[k] ? -EIO : i == 7 ? -EBADMSG : 0;
			cr_assert_eq(b[i].rc, rc, "block %u: %d", i, b[i].rc);
		}
		/* And it works again where it may grow. */
		run(io, b, 100, 64);
		cr_assert_eq(store_file_write(io, b, 64), 0);
		cr_assert_eq(store_file_read(io, b, 64), 0);
	}
	store_io_destroy(io);
	end(&w);
}

/* What can't be written is told block by block; the others are. */
Test(store_file, the_host_refuses_to_write)
{
	struct world w;
	struct store_block b[STORE_BATCH];
	begin(&w);
	cr_assert_eq(create(&w), 0, "%s", w.error);
	struct store_io *io = open_io(&w, 1);
	run(io, b, 100, 64);
	b[63].block = 3;
	limit_files(131 * 4096);
	cr_assert_eq(store_file_write(io, b, 64), -EFBIG);
	limit_files(0);
	for (unsigned i = 0; i < 64; i++)
		cr_assert_eq(b[i].rc, i < 30 || i == 63 ? 0 : -EFBIG, "block %u: %d", i, b[i].rc);
	cr_assert_eq(store_file_read(io, b, 30), 0);
	cr_assert_eq(store_file_read(io, b + 63, 1), 0);
	store_io_destroy(io);
	end(&w);
}

/* The file system behind a sparse file is full. */
Test(store_file, no_space_is_left)
{
	struct world w;
	struct store_block b[STORE_BATCH];
	begin(&w);
	if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("tmpfs", w.dir, "tmpfs", 0, "size=2M") < 0) {
		end(&w);
		cr_skip_test("a tmpfs can't be mounted");
	}
	cr_assert_eq(create(&w), 0, "%s", w.error);
	/* As if it were sparse: someone else takes the space. */
	cr_assert_eq(truncate(w.path, 0), 0);
	cr_assert_eq(truncate(w.path, BYTES), 0);
	char other[96];
	snprintf(other, sizeof(other), "%s/other", w.dir);
	int fd = open(other, O_RDWR | O_CREAT, 0600);
	cr_assert_eq(fallocate(fd, 0, 0, BYTES - 32 * 4096), 0);
	struct store_io *io = open_io(&w, 1);
	run(io, b, 100, 64);
	cr_assert_eq(store_file_write(io, b, 64), -ENOSPC);
	unsigned written = 0;
	for (unsigned i = 0; i < 64; i++) {
		cr_assert(b[i].rc == 0 || b[i].rc == -ENOSPC, "%d", b[i].rc);
		written += !b[i].rc;
	}
	cr_assert(written > 16 && written <= 32, "%u", written);
	cr_assert_eq(store_file_read(io, b, 16), 0);
	cr_assert_eq(ftruncate(fd, 0), 0);
	cr_assert_eq(store_file_write(io, b, 64), 0);
	cr_assert_eq(store_file_read(io, b, 64), 0);
	store_io_destroy(io);
	store_destroy(&w.s);
	close(fd);
	cr_assert_eq(umount2(w.dir, MNT_DETACH), 0);
	end(&w);
}

/* ---- processes ------------------------------------------------------------------------------ */

#define USERS 4u

Test(store_file, users_in_parallel)
{
	struct world w;
	pid_t pid[USERS];
	begin(&w);
	cr_assert_eq(create(&w), 0, "%s", w.error);
	uint32_t share = w.s.file_blocks / USERS;
	for (unsigned u = 0; u < USERS; u++) {
		pid[u] = fork();
		if (!pid[u]) {
			struct store_io *io = open_io(&w, u * share);
			exercise(&w, io, u * share, share, 200);
			store_io_destroy(io);
			_exit(0);
		}
	}
	for (unsigned u = 0; u < USERS; u++) {
		int status;
		cr_assert_eq(waitpid(pid[u], &status, 0), pid[u]);
		cr_assert_eq(status, 0);
	}
	end(&w);
}

static bool gone_within(const struct store *s, uint32_t who, int ms)
{
	struct timespec t = {0, 1000000};
	while (store_io_lives(s, who) && ms--)
		nanosleep(&t, NULL);
	return store_io_lives(s, who) == 0;
}

/* A clone has the file and not the io. What it was forked from goes on as if nothing was. */
Test(store_file, a_clone_makes_its_own)
{
	struct world w;
	struct store_block b[STORE_BATCH];
	int status;
	begin(&w);
	cr_assert_eq(create(&w), 0, "%s", w.error);
	struct store_io *io = open_io(&w, 1);
	run(io, b, 0, 64);
	cr_assert_eq(store_file_write(io, b, 64), 0);
	pid_t pid = fork();
	if (!pid) {
		struct store_block own = {.block = 500, .page = other_memory()};
		cr_assert_eq(store_file_write(io, &own, 1), -EPERM);
		cr_assert_eq(own.rc, -EPERM);
		store_io_forget(io);
		io = open_io(&w, 2);
		fill(own.page, 500, 1);
		cr_assert_eq(store_file_write(io, &own, 1), 0);
		struct store_block old = {.block = 5, .sum = b[5].sum};
		old.page = store_io_page(io, 0);
		cr_assert_eq(store_file_read(io, &old, 1), 0, "the file is the same");
		cr_assert(has(old.page, 5, 1));
		raise(SIGKILL);
	}
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	cr_assert_eq(status, SIGKILL, "it got as far as that");
	cr_assert(gone_within(&w.s, 2, 2000));
	cr_assert_eq(store_file_read(io, b, 64), 0);
	for (unsigned i = 0; i < 64; i++)
		cr_assert(has(b[i].page, i, 1));
	store_io_destroy(io);
	cr_assert(gone_within(&w.s, 1, 2000));
	end(&w);
}

/* Killed in the midst of writing: its io goes by itself, and then its blocks can be another's. (That a write comes
 * after the process's end is too rare on this machine's disks for a test to wait for.) */
Test(store_file, a_death_with_writes_under_way)
{
	struct world w;
	begin(&w);
	cr_assert_eq(create(&w), 0, "%s", w.error);
	struct store_io *mine = open_io(&w, 1000);
	for (unsigned round = 0; round < 12; round++) {
		struct store_block b[STORE_BATCH];
		int ready[2], status;
		char c;
		cr_assert_eq(pipe(ready), 0);
		pid_t pid = fork();
		if (!pid) {
			struct store_io *io = open_io(&w, 7);
			for (uint32_t v = 100;; v++) {
				for (unsigned i = 0; i < STORE_BATCH; i++) {
					b[i].block = i * 5;
					b[i].page = store_io_page(io, i);
					fill(b[i].page, b[i].block, v);
				}
				store_file_write(io, b, STORE_BATCH);
				if (v == 101 && write(ready[1], "x", 1) != 1)
					_exit(1);
			}
		}
		cr_assert_eq(read(ready[0], &c, 1), 1);
		cr_assert_eq(store_io_lives(&w.s, 7), 1);
		usleep(round * 211);
		kill(pid, SIGKILL);
		cr_assert_eq(waitpid(pid, &status, 0), pid);
		cr_assert(gone_within(&w.s, 7, 2000));
		/* The blocks are another's now. */
		for (unsigned i = 0; i < STORE_BATCH; i++) {
			b[i] = (struct store_block){.block = i * 5, .page = store_io_page(mine, i)};
			fill(b[i].page, b[i].block, round);
		}
		cr_assert_eq(store_file_write(mine, b, STORE_BATCH), 0);
		for (unsigned again = 0; again < 3; again++)
			cr_assert_eq(store_file_read(mine, b, STORE_BATCH), 0);
		close(ready[0]);
		close(ready[1]);
	}
	store_io_destroy(mine);
	end(&w);
}

/* ---- a block device ------------------------------------------------------------------------- */

/* A free loop device with `path` behind it, or -1. */
static int loop_device(const char *path, char *name, size_t room)
{
	int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	int number = control < 0 ? -1 : ioctl(control, LOOP_CTL_GET_FREE);
	int file = open(path, O_RDWR | O_CLOEXEC), device = -1;
	if (control >= 0)
		close(control);
	if (number >= 0) {
		snprintf(name, room, "/dev/loop%d", number);
		device = open(name, O_RDWR | O_CLOEXEC);
	}
	if (device >= 0 && ioctl(device, LOOP_SET_FD, file) < 0) {
		close(device);
		device = -1;
	}
	close(file);
	return device;
}

Test(store_file, a_block_device)
{
	struct world w;
	char name[32];
	begin(&w);
	make_file(w.path, "\0", 1, BYTES - 1);
	int device = loop_device(w.path, name, sizeof(name));
	if (device < 0) {
		end(&w);
		cr_skip_test("no loop device to be had");
	}
	refused(&w, name, BYTES + 4096, -EINVAL, "fewer than");
	cr_assert_eq(store_create(&w.s, 0, name, 0, w.error), 0, "%s", w.error);
	cr_assert_eq(w.s.file_blocks, BYTES / PAGE_SIZE - 1);
	cr_assert_not(w.s.sparse);
	struct store other;
	cr_assert_eq(store_create(&other, 0, name, 0, w.error), -EBUSY);
	struct store_io *io = open_io(&w, 0);
	exercise(&w, io, 0, w.s.file_blocks, 60);
	store_io_destroy(io);
	store_destroy(&w.s);
	ioctl(device, LOOP_CLR_FD);
	close(device);
	end(&w);
}
