/*
 * Pages of files come into the pool when a guest first touches them: an extent at a time, as much as was
 * touched in a row before it, from 64 KiB to 2 MiB, read straight into frames which then become the
 * file's. Two VMs may read the same extent at once; the table takes the first and refuses the other.
 */
#include "ipt/whole.h"
#include "vmm/pmem.h"
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

static bool present(const struct pmem_view *v, uint64_t page)
{
	return frame_valid(ipt_lookup(v->table, v->file->id, gfn(page)));
}

/* Is the naturally aligned block of 2^order pages around `page` within the file, and none of it here? */
static bool is_void(const struct pmem_view *v, uint64_t page, unsigned order)
{
	uint64_t first = page & ~((UINT64_C(1) << order) - 1), end = first + (UINT64_C(1) << order);
	if (end > v->pages)
		return false;
	for (uint64_t i = first; i < end; i++)
		if (present(v, i))
			return false;
	return true;
}

static unsigned choose_order(const struct pmem_view *v, uint64_t page)
{
	uint64_t cluster = page / IPT_CLUSTER_FRAMES, run = 0;
	while (run < UINT64_C(1) << (IPT_MAX_ORDER - IPT_CLUSTER_ORDER) && run < cluster &&
	       present(v, (cluster - run) * IPT_CLUSTER_FRAMES - 1))
		run++;
	unsigned order = IPT_CLUSTER_ORDER;
	while (order < IPT_MAX_ORDER && UINT64_C(2) << (order - IPT_CLUSTER_ORDER) <= run)
		order++;
	while (order && !is_void(v, page, order))
		order--;
	return order;
}

/* Is [at, end) within the file and nothing but a hole of it? Then it needs no memory of the pool either: frames
 * without a page read as zero. */
static bool is_hole(const struct pmem_view *v, uint64_t at, uint64_t end)
{
	struct stat st;
	off_t data = lseek(v->file->fd, (off_t)at, SEEK_DATA);
	if (data >= 0 ? (uint64_t)data < end : errno != ENXIO)
		return false;
	return fstat(v->file->fd, &st) == 0 && end <= (uint64_t)st.st_size;
}

static int read_pages(const struct pmem_view *v, uint64_t first, uint64_t count, uint8_t *to)
{
	uint64_t at = first * PAGE_SIZE, end = at + count * PAGE_SIZE;
	if (end > v->file->bytes)
		end = v->file->bytes; /* the rest of the last page is zero, as fresh frames are */
	if (is_hole(v, at, end))
		return 0;
	return whole_read(FAIL_PMEM_READ, v->file->fd, to, end - at, at);
}

static void give_back(const struct pmem_view *v, vmid_t vm, frame_t f, uint32_t count)
{
	/* If it can't be cleaned it stays limbo, and is cleaned when the VM is reaped. */
	if (pool_clean((void *)(uintptr_t)v->pool, f, count) == 0)
		ipt_free(v->table, vm, f, count);
}

/* The block of 2^*order pages around `page`, or a smaller one where the pool is short. */
static int fetch_block(struct pmem_view *v, vmid_t vm, uint64_t page, unsigned *order)
{
	frame_t f;
	int rc;
	for (;;) {
		uint64_t first = page & ~((UINT64_C(1) << *order) - 1);
		frame_t before =
			first ? ipt_lookup(v->table, v->file->id, gfn(first - 1)) : INVALID_FRAME;
		struct ipt_hint hint = {.goal = frame_valid(before) ? frame_add(before, 1)
								    : INVALID_FRAME};
		rc = ipt_alloc(v->table, vm, *order, &hint, &f);
		if (rc != -ENOMEM || !*order)
			break;
		--*order;
	}
	if (rc)
		return rc == -ENOMEM ? -EAGAIN : rc;
	uint64_t first = page & ~((UINT64_C(1) << *order) - 1);
	uint32_t count = UINT32_C(1) << *order;
	uint32_t done = 0;
	rc = read_pages(v, first, count, pool_at(v->pool, f));
	if (!rc)
		rc = ipt_file_map(v->table, vm, v->file->id, first, f, count, &done);
	if (rc)
		give_back(v, vm, frame_add(f, done), count - done);
	else /* the pool has it now, and a clean copy in the kernel's cache would be one too many */
		posix_fadvise(v->file->fd, (off_t)(first * PAGE_SIZE),
			      (off_t)((uint64_t)count * PAGE_SIZE), POSIX_FADV_DONTNEED);
	return rc;
}

int pmem_fetch(struct pmem_view *v, vmid_t vm, uint64_t page)
{
	if (page >= v->pages)
		return -EFAULT;
	unsigned order = choose_order(v, page);
	while (!present(v, page)) {
		int rc = fetch_block(v, vm, page, &order);
		if (!rc || rc == -EAGAIN || (!order && rc != -EEXIST))
			return rc;
		order = 0; /* another was quicker with a part of it, or a neighbour can't be read */
	}
	return 0;
}
