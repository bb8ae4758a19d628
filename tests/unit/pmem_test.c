/* Files as persistent memory: views, fetching, write-back and what becomes of its failures. */
#include "virtio_fake.h"
#include "vmm/error.h"
#include "vmm/pmem.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGES 600u /* of the file: more than a 2 MiB block */

struct world {
	struct pool pool;
	struct ipt *table;
	struct pmem_file *files;
	vmid_t vm[3];
	char path[64];
	char error[ERROR_MAX];
};

/* The product's fdatasync comes here: to fail it is the only way to see what a failing disk does. */
static int sync_error;
static unsigned syncs;
int fdatasync(int fd)
{
	syncs++;
	if (sync_error) {
		errno = sync_error;
		return -1;
	}
	return (int)syscall(SYS_fdatasync, fd);
}

static void begin(struct world *w, uint64_t bytes, uint32_t frames)
{
	memset(w, 0, sizeof(*w));
	signal(SIGXFSZ, SIG_IGN);
	struct ipt_config c = {.frames = frames, .max_vms = 16, .nodes = 1, .colours = 1};
	cr_assert_eq(ipt_create(&w->table, &c), 0);
	cr_assert_eq(pool_create(&w->pool, frames, w->error), 0);
	cr_assert_eq(pool_map(&w->pool, w->error), 0);
	for (unsigned i = 0; i < 3; i++) {
		char name[8];
		snprintf(name, sizeof(name), "vm%u", i);
		cr_assert_eq(ipt_vm_add(w->table, name, INVALID_VMID, &w->vm[i]), 0);
	}
	strcpy(w->path, "/tmp/invisor-pmem-XXXXXX");
	int fd = mkstemp(w->path);
	cr_assert_geq(fd, 0);
	uint8_t *b = malloc(bytes);
	for (uint64_t i = 0; i < bytes; i++)
		b[i] = fill_byte(i);
	cr_assert_eq(write(fd, b, bytes), (ssize_t)bytes);
	free(b);
	close(fd);
}

static void end(struct world *w)
{
	cr_assert_null(w->files, "a file without users stays");
	for (unsigned i = 0; i < 3; i++)
		ipt_vm_reap(w->table, w->vm[i], pool_clean, &w->pool);
	cr_assert_eq(ipt_free_frames(w->table), w->pool.frames, "all frames come back");
	cr_assert_eq(ipt_audit(w->table, NULL, NULL), 0);
	ipt_detach(w->table);
	pool_destroy(&w->pool);
	unlink(w->path);
}

static struct pmem_view *join(struct world *w, unsigned vm, bool share)
{
	struct pmem_use use;
	struct pmem_view *v;
	cr_assert_eq(pmem_use_open(&use, w->path, share, w->error), 0, "%s", w->error);
	cr_assert_eq(pmem_join(&w->files, w->table, &w->pool, w->vm[vm], gfn(1 << 20), &use, &v,
			       w->error),
		     0, "%s", w->error);
	close(use.fd); /* the host may close what it opened for one guest */
	return v;
}

static int leave(struct world *w, unsigned vm, struct pmem_view *v)
{
	cr_assert_eq(ipt_vm_reap(w->table, w->vm[vm], pool_clean, &w->pool), 0);
	return pmem_leave(&w->files, v);
}

static uint8_t *page_of(struct pmem_view *v, uint64_t page)
{
	frame_t f = ipt_lookup(v->table, v->file->id, gfn(page));
	cr_assert(frame_valid(f), "page %lu isn't there", page);
	return pool_at(v->pool, f);
}

/* As a guest writes that touches the page first: fetched, noted, then written. */
static void put(struct world *w, unsigned vm, struct pmem_view *v, uint64_t page, uint8_t byte)
{
	cr_assert_eq(pmem_fetch(v, w->vm[vm], page), 0);
	pmem_note_write(v, page, 1);
	memset(page_of(v, page), byte, PAGE_SIZE);
}

/* What the file has in a page: `byte` all over, or its first contents if that is -1. */
static void file_has(struct world *w, uint64_t page, int byte)
{
	uint8_t b[PAGE_SIZE];
	int fd = open(w->path, O_RDONLY);
	cr_assert_eq(pread(fd, b, sizeof(b), (off_t)(page * PAGE_SIZE)), sizeof(b));
	close(fd);
	for (uint64_t i = 0; i < PAGE_SIZE; i++)
		cr_assert_eq(b[i], byte < 0 ? fill_byte(page * PAGE_SIZE + i) : (uint8_t)byte,
			     "page %lu byte %lu", page, i);
}

static uint64_t dirty(const struct pmem_view *v)
{
	uint64_t at = 0, n, all = 0;
	for (; (n = pageset_next(&v->dirty, &at, v->pages)); at += n)
		all += n;
	at = 0;
	cr_assert_eq(pageset_next(&v->writing, &at, 1), 0, "nothing is being written");
	return all;
}

static void limit_files(uint64_t bytes)
{
	struct rlimit r;
	cr_assert_eq(getrlimit(RLIMIT_FSIZE, &r), 0);
	r.rlim_cur = bytes ? bytes : r.rlim_max;
	cr_assert_eq(setrlimit(RLIMIT_FSIZE, &r), 0);
}

/* ---- files and views ------------------------------------------------------------------------ */

Test(pmem, what_is_no_file_for_it)
{
	struct world w;
	struct pmem_use use;
	begin(&w, 4095, 64);
	cr_assert_eq(pmem_use_open(&use, "/nowhere/file", true, w.error), -ENOENT);
	cr_assert(strstr(w.error, "/nowhere/file"));
	cr_assert_eq(pmem_use_open(&use, "/tmp", false, w.error), -EINVAL);
	cr_assert_eq(pmem_use_open(&use, "/dev/zero", false, w.error), -EINVAL);
	cr_assert_eq(pmem_use_open(&use, w.path, false, w.error), -EINVAL);
	cr_assert(strstr(w.error, "4095 bytes"), "%s", w.error);
	cr_assert_eq(truncate(w.path, 64 * GiB + 1), 0);
	cr_assert_eq(pmem_use_open(&use, w.path, false, w.error), -EINVAL);
	static const uint64_t sizes[][3] = {{4096, 4096, 2 * MiB},
					    {4097, 4096, 2 * MiB},
					    {2 * MiB, 2 * MiB, 2 * MiB},
					    {5 * MiB + 1, 5 * MiB, 6 * MiB}};
	for (unsigned i = 0; i < 4; i++) {
		cr_assert_eq(truncate(w.path, (off_t)sizes[i][0]), 0);
		cr_assert_eq(pmem_use_open(&use, w.path, true, w.error), 0);
		cr_assert_eq(use.bytes, sizes[i][1], "no page without a place in the file");
		close(use.fd);
		cr_assert_eq(pmem_use_open(&use, w.path, false, w.error), 0);
		cr_assert_eq(use.bytes, sizes[i][2]);
		close(use.fd);
	}
	end(&w);
}

Test(pmem, one_file_however_it_is_named)
{
	struct world w;
	begin(&w, PAGES * PAGE_SIZE, 2048);
	struct pmem_view *a = join(&w, 0, true), *b = join(&w, 1, false);
	char other[80];
	snprintf(other, sizeof(other), "%s-link", w.path);
	cr_assert_eq(link(w.path, other), 0);
	char mine[64];
	strcpy(mine, w.path);
	strcpy(w.path, other);
	struct pmem_view *c = join(&w, 2, true);
	cr_assert(a->file == b->file && b->file == c->file);
	cr_assert_eq(a->file->users, 3);
	put(&w, 0, a, 7, 'a');
	cr_assert_eq(page_of(b, 7)[5], 'a');
	cr_assert_eq(page_of(c, 7), page_of(a, 7));
	cr_assert_eq(dirty(a), 1);
	cr_assert_eq(dirty(c), 0, "what another wrote is that one's to flush");
	cr_assert_eq(leave(&w, 1, b), 0);
	cr_assert_eq(pmem_finish(a, w.error), 0);
	cr_assert_eq(leave(&w, 0, a), 0);
	cr_assert_eq(page_of(c, 7)[5], 'a', "it lives while anyone maps it");
	cr_assert_eq(leave(&w, 2, c), 0);
	file_has(&w, 7, 'a');
	file_has(&w, 6, -1);
	unlink(other);
	strcpy(w.path, mine);
	end(&w);
}

/* Another host is another open file description. */
static bool others_may(const char *path, int lock)
{
	int fd = open(path, O_RDWR);
	bool may = flock(fd, lock | LOCK_NB) == 0;
	close(fd);
	return may;
}

Test(pmem, other_hosts_are_kept_out)
{
	struct world w;
	begin(&w, PAGES * PAGE_SIZE, 2048);
	struct pmem_view *a = join(&w, 0, false);
	cr_assert(others_may(w.path, LOCK_SH) && !others_may(w.path, LOCK_EX));
	struct pmem_view *b = join(&w, 1, true);
	cr_assert(!others_may(w.path, LOCK_SH));
	cr_assert_eq(leave(&w, 0, a), 0);
	cr_assert_eq(leave(&w, 1, b), 0);
	cr_assert(others_may(w.path, LOCK_EX));

	int other = open(w.path, O_RDONLY);
	cr_assert_eq(flock(other, LOCK_SH), 0);
	struct pmem_use use;
	struct pmem_view *v;
	cr_assert_eq(pmem_use_open(&use, w.path, true, w.error), 0);
	cr_assert_eq(pmem_join(&w.files, w.table, &w.pool, w.vm[2], gfn(0), &use, &v, w.error),
		     -EBUSY);
	cr_assert(strstr(w.error, "in use by another host"), "%s", w.error);
	cr_assert_null(w.files);
	close(use.fd);
	a = join(&w, 2, false);
	/* To share it while another host reads it isn't possible, and leaves the private view as it was. */
	cr_assert_eq(pmem_use_open(&use, w.path, true, w.error), 0);
	cr_assert_eq(pmem_join(&w.files, w.table, &w.pool, w.vm[2], gfn(0), &use, &v, w.error),
		     -EBUSY);
	close(use.fd);
	cr_assert(!others_may(w.path, LOCK_EX));
	close(other);
	cr_assert(!others_may(w.path, LOCK_EX), "the private view's own lock is there again");
	cr_assert_eq(leave(&w, 2, a), 0);
	end(&w);
}

/* Sharing domains are to each other as hosts are: copies of their own where it is private, nothing else where it is
 * shared. */
Test(pmem, each_domain_has_its_own_copy)
{
	struct world w;
	struct pool other;
	struct pmem_use use;
	struct pmem_view *v;
	begin(&w, PAGES * PAGE_SIZE, 2048);
	cr_assert_eq(pool_create(&other, 2048, w.error), 0);
	cr_assert_eq(pool_map(&other, w.error), 0);
	struct pmem_view *a = join(&w, 0, false);
	cr_assert_eq(pmem_fetch(a, w.vm[0], 3), 0);
	cr_assert_eq(pool_populated_bytes(&other), 0);
	cr_assert_eq(pmem_use_open(&use, w.path, false, w.error), 0);
	cr_assert_eq(pmem_join(&w.files, w.table, &other, w.vm[1], gfn(1 << 20), &use, &v, w.error),
		     0);
	cr_assert_neq(v->file, a->file);
	uint64_t before = pool_populated_bytes(&w.pool);
	cr_assert_eq(pmem_fetch(v, w.vm[1], 3), 0);
	cr_assert_eq(pool_populated_bytes(&w.pool), before);
	cr_assert_gt(pool_populated_bytes(&other), 0);
	cr_assert_eq(page_of(v, 3)[5], fill_byte(3 * PAGE_SIZE + 5));
	memset(page_of(v, 3), 0,
	       PAGE_SIZE); /* as somebody does who took over a process of that domain */
	cr_assert_eq(page_of(a, 3)[5], fill_byte(3 * PAGE_SIZE + 5));
	close(use.fd);
	cr_assert_eq(pmem_use_open(&use, w.path, true, w.error), 0);
	struct pmem_view *no;
	cr_assert_eq(pmem_join(&w.files, w.table, &other, w.vm[2], gfn(0), &use, &no, w.error),
		     -EBUSY);
	cr_assert(strstr(w.error, "in use by guests of another sharing domain"), "%s", w.error);
	cr_assert_eq(leave(&w, 0, a), 0);
	cr_assert_eq(pool_populated_bytes(&w.pool), 0);
	/* Now it is the second domain's alone, and that may share it; then the first can't have it. */
	cr_assert_eq(pmem_join(&w.files, w.table, &other, w.vm[2], gfn(0), &use, &no, w.error), 0);
	close(use.fd);
	cr_assert_eq(pmem_use_open(&use, w.path, false, w.error), 0);
	cr_assert_eq(pmem_join(&w.files, w.table, &w.pool, w.vm[0], gfn(0), &use, &a, w.error),
		     -EBUSY);
	cr_assert(strstr(w.error, "shared by guests of another sharing domain"), "%s", w.error);
	close(use.fd);
	cr_assert_eq(ipt_vm_reap(w.table, w.vm[1], pool_clean, &other), 0);
	cr_assert_eq(pmem_leave(&w.files, v), 0);
	cr_assert_eq(ipt_vm_reap(w.table, w.vm[2], pool_clean, &other), 0);
	cr_assert_eq(pmem_leave(&w.files, no), 0);
	cr_assert_eq(pool_populated_bytes(&other), 0);
	pool_destroy(&other);
	end(&w);
}

Test(pmem, a_file_that_changed_its_size_takes_no_more_users)
{
	struct world w;
	begin(&w, PAGES * PAGE_SIZE, 2048);
	struct pmem_view *a = join(&w, 0, false), *v;
	struct pmem_use use;
	cr_assert_eq(truncate(w.path, 8192), 0);
	cr_assert_eq(pmem_use_open(&use, w.path, false, w.error), 0);
	cr_assert_eq(pmem_join(&w.files, w.table, &w.pool, w.vm[1], gfn(0), &use, &v, w.error),
		     -EBUSY);
	cr_assert(strstr(w.error, "changed its size"));
	close(use.fd);
	cr_assert_eq(a->file->users, 1);
	cr_assert_eq(leave(&w, 0, a), 0);
	end(&w);
}

/* ---- fetching ------------------------------------------------------------------------------- */

Test(pmem, fetched_pages_are_the_files)
{
	struct world w;
	struct rnd rnd = {5};
	begin(&w, PAGES * PAGE_SIZE + 100, 2048);
	struct pmem_view *views[3] = {join(&w, 0, false), join(&w, 1, false), join(&w, 2, false)};
	struct pmem_view *v = views[0];
	cr_assert_eq(v->pages, PAGES + 1, "a private view has the end of the last page too");
	for (int i = 0; i < 40; i++)
		cr_assert_eq(pmem_fetch(views[i % 3], w.vm[i % 3], rnd_below(&rnd, PAGES + 1)), 0);
	for (uint64_t p = 0; p <= PAGES; p++) {
		cr_assert_eq(pmem_fetch(v, w.vm[0], p), 0);
		const uint8_t *b = page_of(v, p);
		for (uint64_t i = 0; i < PAGE_SIZE; i++) {
			uint64_t at = p * PAGE_SIZE + i;
			cr_assert_eq(b[i], at < PAGES * PAGE_SIZE + 100 ? fill_byte(at) : 0);
		}
	}
	cr_assert_eq(pmem_fetch(v, w.vm[0], PAGES + 1), -EFAULT);
	cr_assert_eq(pmem_fetch(v, w.vm[0], UINT64_MAX), -EFAULT);
	cr_assert_eq(ipt_free_frames(w.table), 2048 - (PAGES + 1), "one frame a page");
	for (unsigned i = 0; i < 3; i++)
		cr_assert_eq(leave(&w, i, views[i]), 0);
	end(&w);
}

/* A hole of the file takes frames, but no memory until it is written to. */
Test(pmem, holes_cost_no_memory)
{
	struct world w;
	begin(&w, 4096, 2048);
	cr_assert_eq(truncate(w.path, 1024 * PAGE_SIZE), 0);
	struct pmem_view *v = join(&w, 0, true);
	for (uint64_t p = 16; p < 1024; p++)
		cr_assert_eq(pmem_fetch(v, w.vm[0], p), 0);
	cr_assert_eq(pool_populated_bytes(&w.pool), 0);
	cr_assert_eq(pmem_fetch(v, w.vm[0], 0), 0);
	cr_assert_eq(page_of(v, 0)[77], fill_byte(77));
	cr_assert_leq(pool_populated_bytes(&w.pool), 16 * PAGE_SIZE);
	for (uint64_t i = 0; i < PAGE_SIZE; i++)
		cr_assert_eq(page_of(v, 500)[i], 0);
	put(&w, 0, v, 600, 'w');
	pmem_note_write(v, 601, 1);
	cr_assert_eq(pmem_write_back(v), 0);
	file_has(&w, 600, 'w');
	file_has(&w, 601, 0);
	cr_assert_eq(leave(&w, 0, v), 0);
	end(&w);
}

Test(pmem, extents_grow_with_what_is_read_in_a_row)
{
	struct world w;
	begin(&w, 4096 * PAGE_SIZE, 8192);
	struct pmem_view *v = join(&w, 0, false);
	unsigned reads = 0;
	uint64_t largest = 0;
	for (uint64_t p = 0; p < 4096; reads++) {
		uint32_t before = ipt_free_frames(w.table);
		cr_assert_eq(pmem_fetch(v, w.vm[0], p), 0);
		uint64_t n = before - ipt_free_frames(w.table);
		cr_assert(n && n <= 512);
		largest = n > largest ? n : largest;
		p += n;
	}
	cr_assert_eq(largest, 512);
	cr_assert_lt(reads, 20);
	cr_assert_eq(leave(&w, 0, v), 0);
	end(&w);
}

Test(pmem, a_short_pool)
{
	struct world w;
	begin(&w, PAGES * PAGE_SIZE, 20);
	struct pmem_view *v = join(&w, 0, false);
	uint64_t p = 0;
	int rc = 0;
	for (; !rc && p < PAGES; p++)
		rc = pmem_fetch(v, w.vm[0], p);
	cr_assert_eq(rc, -EAGAIN);
	cr_assert_eq(p, 21, "every frame was used before");
	cr_assert_eq(leave(&w, 0, v), 0);
	end(&w);
}

Test(pmem, a_file_cut_short_while_it_is_read)
{
	struct world w;
	begin(&w, PAGES * PAGE_SIZE, 2048);
	struct pmem_view *v = join(&w, 0, true);
	cr_assert_eq(pmem_fetch(v, w.vm[0], 0), 0);
	cr_assert_eq(truncate(w.path, 100 * PAGE_SIZE), 0);
	uint32_t before = ipt_free_frames(w.table);
	cr_assert_eq(pmem_fetch(v, w.vm[0], 500), -ENXIO);
	cr_assert_eq(ipt_free_frames(w.table), before);
	cr_assert_eq(page_of(v, 0)[9], fill_byte(9));
	/* And under what was written: an error, and the file is left as long as it is. */
	put(&w, 0, v, 99, 'x');
	cr_assert_eq(truncate(w.path, 50 * PAGE_SIZE), 0);
	cr_assert_eq(pmem_write_back(v), -ENXIO);
	cr_assert(strstr(pmem_why(-ENXIO), "shorter"));
	cr_assert_eq(dirty(v), 1);
	struct stat st;
	cr_assert_eq(stat(w.path, &st), 0);
	cr_assert_eq(st.st_size, 50 * PAGE_SIZE);
	cr_assert_eq(pmem_finish(v, w.error), -ENXIO);
	cr_assert(strstr(w.error, "1 pages") && strstr(w.error, "shorter"), "%s", w.error);
	cr_assert_eq(leave(&w, 0, v), -ENXIO);
	end(&w);
}

/* ---- write-back ----------------------------------------------------------------------------- */

Test(pmem, what_is_written_comes_to_the_file)
{
	struct world w;
	struct rnd rnd = {6};
	begin(&w, PAGES * PAGE_SIZE, 2048);
	struct pmem_view *v = join(&w, 0, true);
	int byte[PAGES];
	memset(byte, -1, sizeof(byte));
	cr_assert_eq(pmem_write_back(v), 0);
	cr_assert_eq(syncs, 0, "nothing to do");
	for (int round = 0; round < 12; round++) {
		unsigned n = rnd_below(&rnd, 40), first = 0;
		for (unsigned i = 0; i < n; i++) {
			/* runs and single pages, in an order that scatters them over the pool */
			first = i % 4 ? (first + 1) % PAGES : rnd_below(&rnd, PAGES);
			byte[first] = (int)rnd_below(&rnd, 256);
			put(&w, 0, v, first, (uint8_t)byte[first]);
		}
		cr_assert_eq(pmem_write_back(v), 0);
		cr_assert_eq(dirty(v), 0);
		for (unsigned p = 0; p < PAGES; p++)
			file_has(&w, p, byte[p]);
	}
	for (unsigned p = 0; p < PAGES; p++)
		put(&w, 0, v, p, 'z');
	cr_assert_eq(pmem_finish(v, w.error), 0);
	for (unsigned p = 0; p < PAGES; p++)
		file_has(&w, p, 'z');
	cr_assert_eq(leave(&w, 0, v), 0);
	end(&w);
}

/* A guest that writes until the very moment its window is protected. */
struct late {
	struct pmem_view *v;
	uint64_t pages;
	int rc;
};

static int protect(void *ctx, gfn_t first, uint64_t count)
{
	struct late *l = ctx;
	for (uint64_t i = 0; i < count; i++)
		memset(page_of(l->v, first.v - l->v->first.v + i), 'L', PAGE_SIZE);
	l->pages += count;
	return l->rc;
}

Test(pmem, writes_up_to_the_protection_are_in_it)
{
	struct world w;
	begin(&w, PAGES * PAGE_SIZE, 2048);
	struct pmem_view *v = join(&w, 0, true);
	struct late late = {v, 0, 0};
	v->protect = protect;
	v->ctx = &late;
	for (unsigned p = 10; p < 400; p += 1 + p % 3)
		put(&w, 0, v, p, 'e');
	uint64_t n = dirty(v);
	cr_assert_eq(pmem_write_back(v), 0);
	cr_assert_eq(late.pages, n);
	for (unsigned p = 10; p < 400; p += 1 + p % 3)
		file_has(&w, p, 'L');
	/* A window that can't be protected: nothing is taken for done. */
	put(&w, 0, v, 3, 'e');
	late.rc = -ENOMEM;
	cr_assert_eq(pmem_write_back(v), -ENOMEM);
	cr_assert_eq(dirty(v), 1);
	late.rc = 0;
	cr_assert_eq(pmem_write_back(v), 0);
	file_has(&w, 3, 'L');
	cr_assert_eq(leave(&w, 0, v), 0);
	end(&w);
}

Test(pmem, a_page_that_a_device_writes_to_stays_dirty)
{
	struct world w;
	begin(&w, PAGES * PAGE_SIZE, 2048);
	struct pmem_view *v = join(&w, 0, true);
	put(&w, 0, v, 4, 'a');
	put(&w, 0, v, 5, 'a');
	frame_t f;
	cr_assert_eq(ipt_pin(w.table, v->file->id, gfn(5), &f), 0);
	cr_assert_eq(pmem_write_back(v), 0);
	cr_assert_eq(dirty(v), 1);
	memset(page_of(v, 5), 'b', PAGE_SIZE); /* DMA goes on, without a fault */
	ipt_unpin(w.table, f);
	cr_assert_eq(pmem_write_back(v), 0);
	cr_assert_eq(dirty(v), 0);
	file_has(&w, 4, 'a');
	file_has(&w, 5, 'b');
	cr_assert_eq(leave(&w, 0, v), 0);
	end(&w);
}

/* No room: what fits is written, the rest stays dirty and is written once there is room. */
Test(pmem, what_has_no_room_is_kept)
{
	struct world w;
	begin(&w, PAGES * PAGE_SIZE, 2048);
	struct pmem_view *v = join(&w, 0, true);
	for (unsigned p = 0; p < PAGES; p += 2)
		put(&w, 0, v, p, 'n');
	for (unsigned p = 100; p < 140; p++)
		put(&w, 0, v, p, 'n'); /* a run across the limit: a short write, then an error */
	limit_files(120 * PAGE_SIZE);
	cr_assert_eq(pmem_write_back(v), -EFBIG);
	file_has(&w, 0, 'n');
	file_has(&w, 98, 'n');
	file_has(&w, 119, 'n');
	file_has(&w, 120, -1);
	cr_assert_geq(dirty(v), (PAGES - 120) / 2);
	limit_files(0);
	cr_assert_eq(pmem_write_back(v), 0);
	cr_assert_eq(dirty(v), 0);
	for (unsigned p = 0; p < PAGES; p++)
		file_has(&w, p, p % 2 == 0 || (p >= 100 && p < 140) ? 'n' : -1);
	cr_assert_eq(leave(&w, 0, v), 0);
	end(&w);
}

/* The disk fails when it is asked for durability: all since the last time is dirty again. */
Test(pmem, a_failed_sync_loses_no_page)
{
	struct world w;
	begin(&w, PAGES * PAGE_SIZE, 2048);
	struct pmem_view *v = join(&w, 0, true);
	put(&w, 0, v, 1, 's');
	cr_assert_eq(pmem_write_back(v), 0);
	for (unsigned p = 0; p < PAGES; p += 7)
		put(&w, 0, v, p, 't');
	uint64_t n = dirty(v);
	sync_error = EIO;
	cr_assert_eq(pmem_write_back(v), -EIO);
	cr_assert_eq(dirty(v), n);
	cr_assert_eq(pmem_finish(v, w.error), -EIO);
	cr_assert(strstr(w.error, "Input/output error"), "%s", w.error);
	sync_error = 0;
	cr_assert_eq(pmem_finish(v, w.error), 0);
	cr_assert_eq(dirty(v), 0);
	cr_assert_eq(leave(&w, 0, v), 0);
	end(&w);
}

/* A process dies in the middle of a flush: what it had taken out of `dirty` is written by the host. */
Test(pmem, a_death_in_a_flush_loses_no_page)
{
	struct world w;
	begin(&w, PAGES * PAGE_SIZE, 2048);
	struct pmem_view *v = join(&w, 0, true);
	put(&w, 0, v, 20, 'd');
	put(&w, 0, v, 300, 'd');
	pageset_add(&v->writing, 300, 1);
	pageset_remove(&v->dirty, 300, 1);
	cr_assert_eq(pmem_finish(v, w.error), 0);
	file_has(&w, 20, 'd');
	file_has(&w, 300, 'd');
	cr_assert_eq(leave(&w, 0, v), 0);
	end(&w);
}

/* What a dead guest left unwritten is tried again when the next one goes. */
Test(pmem, what_one_left_is_written_when_the_next_goes)
{
	struct world w;
	begin(&w, PAGES * PAGE_SIZE, 2048);
	struct pmem_view *a = join(&w, 0, true), *b = join(&w, 1, false);
	put(&w, 0, a, 500, 'k');
	limit_files(4096);
	cr_assert_eq(pmem_finish(a, w.error), -EFBIG);
	cr_assert_eq(leave(&w, 0, a), 0, "not lost yet");
	file_has(&w, 500, -1);
	limit_files(0);
	cr_assert_eq(pmem_finish(b, w.error), 0);
	cr_assert_eq(leave(&w, 1, b), 0);
	file_has(&w, 500, 'k');
	/* And if that fails as well, it is told. */
	w.vm[0] = w.vm[2];
	a = join(&w, 0, true);
	put(&w, 0, a, 501, 'k');
	limit_files(4096);
	cr_assert_eq(pmem_finish(a, w.error), -EFBIG);
	cr_assert_eq(leave(&w, 0, a), -EFBIG);
	limit_files(0);
	end(&w);
}

/* A clone's view: the same file, sets of its own. */
Test(pmem, clones_flush_what_they_wrote)
{
	struct world w;
	begin(&w, PAGES * PAGE_SIZE, 2048);
	struct pmem_view *a = join(&w, 0, true), *b;
	put(&w, 0, a, 1, 'a');
	cr_assert_eq(pmem_join_clone(a, &b, w.error), 0);
	cr_assert_eq(dirty(b), 0);
	put(&w, 0, b, 2, 'b');
	cr_assert_eq(pmem_write_back(b), 0);
	file_has(&w, 2, 'b');
	file_has(&w, 1, -1);
	cr_assert_eq(leave(&w, 1, b), 0);
	cr_assert_eq(pmem_finish(a, w.error), 0);
	file_has(&w, 1, 'a');
	cr_assert_eq(leave(&w, 0, a), 0);
	end(&w);
}

/* ---- by the device, on the loop ------------------------------------------------------------- */

static void say(void *ctx, const char *line)
{
	struct drv *t = ctx;
	atomic_fetch_add(&t->said, 1);
	snprintf(t->line, sizeof(t->line), "%s", line);
}

static uint32_t ask_flush(struct drv *t)
{
	uint32_t type = 0, ret = 99;
	struct seg s[2] = {{0x20000, 4, false}, {0x21000, 4, true}};
	fake_put(&t->mem, s[0].at, &type, 4);
	fake_put(&t->mem, s[1].at, &ret, 4);
	drv_add(t, 0, s, 2, 0);
	drv_kick(t, 0);
	drv_wait(t, 0, NULL, NULL);
	fake_get(&t->mem, s[1].at, &ret, 4);
	return ret;
}

Test(pmem, flushed_by_a_driver)
{
	struct world w;
	struct drv t;
	begin(&w, PAGES * PAGE_SIZE, 2048);
	drv_init(&t);
	struct pmem_view *v = join(&w, 0, true);
	v->loop = t.loop;
	v->say = say;
	v->ctx = &t;
	struct virtio_pmem_config c = {4 * GiB, PAGES * PAGE_SIZE, pmem_flush, v, NULL};
	cr_assert_eq(virtio_pmem_create(&t.dev, &t.env, &c), 0);
	drv_start(&t, UINT64_MAX, 1);
	cr_assert_eq(ask_flush(&t), 0);
	for (unsigned p = 0; p < PAGES; p += 1 + (p % 3 == 1))
		put(&w, 0, v, p, 'f');
	cr_assert_eq(ask_flush(&t), 0);
	cr_assert_eq(dirty(v), 0);
	for (unsigned p = 0; p < PAGES; p++)
		file_has(&w, p, p % 3 != 2 ? 'f' : -1);

	put(&w, 0, v, 3, 'g');
	put(&w, 0, v, 500, 'g');
	limit_files(100 * PAGE_SIZE);
	for (int i = 0; i < 3; i++)
		cr_assert_eq(ask_flush(&t), 1);
	cr_assert_eq(atomic_load(&t.said), 1, "told once");
	cr_assert(strstr(t.line, w.path) && strstr(t.line, "too large"), "%s", t.line);
	limit_files(0);
	file_has(&w, 3, 'g');
	file_has(&w, 500, 500 % 3 != 2 ? 'f' : -1);
	cr_assert_eq(ask_flush(&t), 0);
	file_has(&w, 500, 'g');
	/* Reset with a flush under way. */
	for (unsigned p = 0; p < PAGES; p++)
		put(&w, 0, v, p, 'h');
	struct seg s[2] = {{0x20000, 4, false}, {0x21000, 4, true}};
	drv_add(&t, 0, s, 2, 0);
	drv_kick(&t, 0);
	drv_step(&t, 0);
	drv_reset(&t);
	cr_assert_eq(pmem_finish(v, w.error), 0);
	for (unsigned p = 0; p < PAGES; p++)
		file_has(&w, p, 'h');
	drv_fini(&t);
	cr_assert_eq(leave(&w, 0, v), 0);
	end(&w);
}

/* ---- what the host wants clean ---------------------------------------------------------------- */

struct cleaned {
	struct drv t; /* must be first */
	uint64_t pages;
	unsigned times, errors;
};

static void note_cleaned(void *ctx, uint64_t pages, int error)
{
	struct cleaned *c = ctx;
	c->pages += pages;
	c->times++;
	c->errors += error != 0;
}

static struct pmem_view *begin_cleaning(struct world *w, struct cleaned *c)
{
	memset(c, 0, sizeof(*c));
	begin(w, PAGES * PAGE_SIZE, 2048);
	drv_init(&c->t);
	struct pmem_view *v = join(w, 0, true);
	v->loop = c->t.loop;
	v->say = say;
	v->cleaned = note_cleaned;
	v->ctx = c;
	struct virtio_pmem_config config = {4 * GiB, PAGES * PAGE_SIZE, pmem_flush, v, pmem_clean};
	cr_assert_eq(virtio_pmem_create(&c->t.dev, &c->t.env, &config), 0);
	drv_start(&c->t, UINT64_MAX, 1);
	return v;
}

/* Until so many passes have ended. */
static void clean(struct cleaned *c, unsigned times)
{
	virtio_pmem_clean(c->t.dev);
	for (int i = 0; i < 1000 && c->times < times; i++)
		drv_step(&c->t, 5);
	cr_assert_eq(c->times, times);
}

Test(pmem, wanted_clean)
{
	struct world w;
	struct cleaned c;
	struct pmem_view *v = begin_cleaning(&w, &c);
	for (unsigned p = 0; p < PAGES; p += 2)
		put(&w, 0, v, p, 'a');
	cr_assert(!pmem_want_clean(v, 1, 1), "nobody wrote to it");
	clean(&c, 0);
	/* With their 64 KiB, and no others. */
	cr_assert(pmem_want_clean(v, 20, 1));
	cr_assert(pmem_want_clean(v, 592, 8), "the last ones");
	clean(&c, 1);
	cr_assert_eq(c.pages, 8 + 4);
	cr_assert_eq(v->cleaned_pages, 12);
	cr_assert_eq(dirty(v), PAGES / 2 - 12);
	for (unsigned p = 0; p < PAGES; p++)
		file_has(&w, p, p % 2 == 0 && ((p >= 16 && p < 32) || p >= 592) ? 'a' : -1);
	cr_assert(!pmem_is_dirty(v, 16, 16) && pmem_is_dirty(v, 32, 1));
	/* Those that a flush has written meanwhile need nothing. */
	cr_assert(pmem_want_clean(v, 100, 16));
	cr_assert_eq(ask_flush(&c.t), 0);
	unsigned before = syncs;
	virtio_pmem_clean(c.t.dev);
	for (int i = 0; i < 20; i++)
		drv_step(&c.t, 1);
	cr_assert_eq(c.times, 1);
	cr_assert_eq(syncs, before);
	uint64_t at = 0;
	cr_assert_eq(pageset_next(&v->wanted, &at, 1), 0);
	drv_fini(&c.t);
	cr_assert_eq(pmem_finish(v, w.error), 0);
	cr_assert_eq(leave(&w, 0, v), 0);
	end(&w);
}

/* What fails stays dirty and is told once; the guest's flush fails as long as the file system does. It isn't tried all the
 * time. */
Test(pmem, wanted_clean_and_it_fails)
{
	struct world w;
	struct cleaned c;
	struct pmem_view *v = begin_cleaning(&w, &c);
	for (unsigned p = 0; p < PAGES; p++)
		put(&w, 0, v, p, 'a');
	limit_files(300 * PAGE_SIZE);
	/* A part goes: then there is no reason to wait. */
	for (unsigned p = 0; p < PAGES; p += 16)
		pmem_want_clean(v, p, 1);
	clean(&c, 1);
	cr_assert_eq(c.errors, 1);
	cr_assert_eq(c.pages, 256, "the runs that could be written as a whole");
	cr_assert_eq(dirty(v), PAGES - 256);
	cr_assert_eq(atomic_load(&c.t.said), 1);
	cr_assert(strstr(c.t.line, w.path) && strstr(c.t.line, "make room") &&
			  strstr(c.t.line, "too large"),
		  "%s", c.t.line);
	for (unsigned i = 0; i < 100; i++) {
		cr_assert(pmem_want_clean(v, 320, 16));
		virtio_pmem_clean(c.t.dev);
		drv_step(&c.t, 1);
	}
	cr_assert_eq(c.times, 2, "%u tries", c.times);
	cr_assert_eq(atomic_load(&c.t.said), 1, "told once");
	cr_assert_eq(ask_flush(&c.t), 1);
	cr_assert_eq(ask_flush(&c.t), 1);
	cr_assert_eq(dirty(v), PAGES - 300 + 44, "the run as a whole");
	limit_files(0);
	cr_assert_eq(ask_flush(&c.t), 0);
	cr_assert_eq(dirty(v), 0);
	for (unsigned p = 0; p < PAGES; p++)
		file_has(&w, p, 'a');
	drv_fini(&c.t);
	cr_assert_eq(pmem_finish(v, w.error), 0);
	cr_assert_eq(leave(&w, 0, v), 0);
	end(&w);
}
