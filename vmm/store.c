/* The store as a whole, and compressed memory. See store.h. */
#include "vmm/store.h"
#include "ipt/fail.h"
#include "ipt/sealed.h"
#include "vmm/error.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MEM_MOST (UINT64_C(1) << 38) /* bytes: granules have 32-bit numbers */

int store_mem_size(struct store *s, uint64_t bytes, char *error)
{
	if (bytes % PAGE_SIZE || bytes > MEM_MOST)
		return errorf(error, -EINVAL,
			      "compressed memory: %" PRIu64
			      " bytes; whole pages of 4 KiB, at most 256 GiB, are possible",
			      bytes);
	s->mem_pages = (uint32_t)(bytes >> PAGE_SHIFT);
	return 0;
}

int store_mem_create(const struct store *s, char *error)
{
	uint64_t bytes = (uint64_t)s->mem_pages << PAGE_SHIFT;
	int fd = fail_call(STORE_CREATE, sealed_memfd("invisor-packed", bytes));
	return fd >= 0 ? fd
		       : errorf(error, -errno, "compressed memory: %" PRIu64 " MiB: %s",
				bytes / MiB, strerror(errno));
}

int store_create(struct store *s, uint64_t mem_bytes, const char *file, uint64_t file_bytes,
		 char *error)
{
	*s = (struct store){.mem_fd = -1, .file_fd = -1};
	int rc = mem_bytes ? store_mem_size(s, mem_bytes, error) : 0;
	if (!rc && mem_bytes) {
		s->mem_fd = store_mem_create(s, error);
		rc = s->mem_fd < 0 ? s->mem_fd : 0;
	}
	if (!rc && file)
		rc = store_file_open(s, file, file_bytes, error);
	if (rc)
		store_destroy(s);
	return rc;
}

void store_destroy(struct store *s)
{
	if (s->mem_fd >= 0)
		close(s->mem_fd);
	if (s->file_fd >= 0)
		close(s->file_fd);
	*s = (struct store){.mem_fd = -1, .file_fd = -1};
}

/* Is that a place for n bytes? A page has as many granules as a granule has bytes, so that the first granule
 * says which page it is and where in it. */
static bool is_place(const struct store *s, uint32_t granule, uint32_t n)
{
	uint32_t within = granule % STORE_PAGE_GRANULES * STORE_GRANULE;
	return granule / STORE_PAGE_GRANULES < s->mem_pages && n && n <= STORE_PACKED_MOST &&
	       within + n <= PAGE_SIZE;
}

/* What a read or write of all n bytes came to; 1 if it is to be done again. */
static int result(ssize_t did, uint32_t n)
{
	if (did < 0)
		return errno == EINTR ? 1 : -errno;
	/* Within one page there are no halves, unless someone made the memory shorter. */
	return did == (ssize_t)n ? 0 : -EIO;
}

int store_mem_write(const struct store *s, uint32_t granule, const void *bytes, uint32_t n)
{
	int rc;
	if (!is_place(s, granule, n))
		return -EINVAL;
	do {
		rc = result(fail_call(STORE_MEM_WRITE,
				      pwrite(s->mem_fd, bytes, n, (off_t)granule * STORE_GRANULE)),
			    n);
	} while (rc > 0);
	return rc;
}

int store_mem_read(const struct store *s, uint32_t granule, uint32_t bytes, uint32_t sum,
		   void *page)
{
	/* A copy: what is summed up and unpacked can't change in between. */
	uint8_t packed[STORE_PACKED_MOST];
	int rc;
	if (!is_place(s, granule, bytes))
		return -EINVAL;
	do {
		rc = result(fail_call(STORE_MEM_READ, pread(s->mem_fd, packed, bytes,
							    (off_t)granule * STORE_GRANULE)),
			    bytes);
	} while (rc > 0);
	if (rc)
		return rc;
	if (store_sum(packed, bytes) != sum)
		return -EBADMSG;
	return store_unpack(packed, bytes, page);
}

int store_mem_trim(const struct store *s, uint32_t first_page, uint32_t n)
{
	int rc;
	if (!n || first_page >= s->mem_pages || n > s->mem_pages - first_page)
		return -EINVAL;
	do {
		rc = fail_call(STORE_TRIM,
			       fallocate(s->mem_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
					 (off_t)first_page << PAGE_SHIFT, (off_t)n << PAGE_SHIFT));
	} while (rc < 0 && errno == EINTR);
	return rc < 0 ? -errno : 0;
}

uint64_t store_mem_populated_bytes(const struct store *s)
{
	return sealed_populated_bytes(s->mem_fd);
}
