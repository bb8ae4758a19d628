/* Where the bytes of pages go: packing, compressed memory. What breaks is made to break by the kernel. */
#include "vmm/error.h"
#include "vmm/store.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <lz4.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#define PAGES 64u

static uint64_t seed = 7;

static uint64_t rnd(void)
{
	seed ^= seed >> 12;
	seed ^= seed << 25;
	seed ^= seed >> 27;
	return seed * UINT64_C(0x2545f4914f6cdd1d);
}

/* The first `random` bytes are random, the others `rest`. */
static void fill(uint8_t *page, unsigned random, uint8_t rest)
{
	memset(page, rest, PAGE_SIZE);
	for (unsigned i = 0; i < random; i++)
		page[i] = (uint8_t)(rnd() >> 32);
}

/* A page with nothing behind it: who goes one byte too far dies. */
static uint8_t *fenced_page(void)
{
	uint8_t *at = mmap(NULL, 3 * PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	cr_assert_neq(at, MAP_FAILED);
	cr_assert_eq(mprotect(at + PAGE_SIZE, PAGE_SIZE, PROT_READ | PROT_WRITE), 0);
	return at + PAGE_SIZE;
}

static void begin(struct store *s)
{
	char error[ERROR_MAX];
	signal(SIGXFSZ, SIG_IGN);
	cr_assert_eq(store_create(s, PAGES * PAGE_SIZE, NULL, 0, error), 0, "%s", error);
}

/* ---- packing -------------------------------------------------------------------------------- */

Test(store, pages_come_back)
{
	struct store s;
	uint8_t page[PAGE_SIZE], packed[STORE_PACKED_MOST], *back = fenced_page();
	begin(&s);
	unsigned kept = 0, refused = 0;
	uint32_t bytes = 0, largest = 0;
	for (unsigned random = 0; random <= PAGE_SIZE; random += 1 + (random % 64 == 0) * 15) {
		fill(page, random, (uint8_t)random);
		int rc = store_pack(page, packed, &bytes);
		if (rc) {
			cr_assert_eq(rc, -E2BIG);
			refused++;
			continue;
		}
		cr_assert(bytes && bytes <= STORE_PACKED_MOST);
		largest = bytes > largest ? bytes : largest;
		kept++;
		uint32_t granule = random % 16 + STORE_PAGE_GRANULES * (random % PAGES);
		cr_assert_eq(store_mem_write(&s, granule, packed, bytes), 0);
		memset(back, 0x55, PAGE_SIZE);
		cr_assert_eq(store_mem_read(&s, granule, bytes, store_sum(packed, bytes), back), 0);
		cr_assert_eq(memcmp(back, page, PAGE_SIZE), 0, "%u random bytes", random);
	}
	cr_assert(kept > 500 && refused > 100, "%u kept, %u refused", kept, refused);
	cr_assert_eq(largest, STORE_PACKED_MOST, "the bound itself was met");
	store_destroy(&s);
}

Test(store, patterns_pack_small)
{
	uint64_t page[512];
	uint8_t packed[STORE_PACKED_MOST];
	uint32_t bytes;
	memset(page, 0, sizeof(page));
	cr_assert_eq(store_pack(page, packed, &bytes), 0);
	cr_assert_leq(bytes, STORE_GRANULE);
	for (unsigned i = 0; i < 512; i++)
		page[i] = UINT64_C(0x0123456789abcdef);
	cr_assert_eq(store_pack(page, packed, &bytes), 0);
	cr_assert_leq(bytes, STORE_GRANULE);
	for (unsigned i = 0; i < 512; i++)
		page[i] = rnd();
	cr_assert_eq(store_pack(page, packed, &bytes), -E2BIG);
}

Test(store, zero_is_all_zero)
{
	uint8_t page[PAGE_SIZE] = {0};
	cr_assert(store_is_zero(page));
	for (unsigned i = 0; i < PAGE_SIZE; i++) {
		page[i] = 1;
		cr_assert_not(store_is_zero(page), "byte %u", i);
		page[i] = 0;
	}
}

/* Sums are what others keep: they mustn't change from build to build. */
Test(store, sums)
{
	uint8_t page[PAGE_SIZE] = {0};
	uint32_t zero = store_sum(page, PAGE_SIZE);
	cr_assert_neq(store_sum(page, PAGE_SIZE - 1), zero);
	for (unsigned bit = 0; bit < PAGE_SIZE * 8; bit++) {
		page[bit / 8] ^= (uint8_t)(1 << bit % 8);
		cr_assert_neq(store_sum(page, PAGE_SIZE), zero, "bit %u", bit);
		page[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
}

/* Whatever bytes there are: the page or an error, and nothing beyond the page. */
Test(store, hostile_bytes)
{
	uint8_t page[PAGE_SIZE], *back = fenced_page(), *end = fenced_page() + PAGE_SIZE;
	uint8_t packed[STORE_PACKED_MOST];
	uint32_t bytes;
	fill(page, 300, 'a');
	memcpy(page + 2000, page + 10, 200);
	cr_assert_eq(store_pack(page, packed, &bytes), 0);
	for (unsigned i = 0; i < bytes; i++) {
		for (unsigned v = 0; v < 256; v += i < 8 ? 1 : 37) {
			/* Packed bytes end at a fence too. */
			memcpy(end - bytes, packed, bytes);
			end[(int)i - (int)bytes] = (uint8_t)v;
			int rc = store_unpack(end - bytes, bytes, back);
			cr_assert(rc == 0 || rc == -EBADMSG);
		}
	}
	for (unsigned n = 0; n < bytes; n++) {
		memcpy(end - n, packed, n);
		cr_assert_eq(store_unpack(end - n, n, back), -EBADMSG, "cut to %u", n);
	}
	for (unsigned round = 0; round < 20000; round++) {
		unsigned n = 1 + (unsigned)(rnd() >> 40) % STORE_PACKED_MOST;
		uint64_t word = rnd() | rnd();
		for (unsigned i = 0; i < n; i += 8) {
			word = i % 64 ? word : rnd() | rnd();
			memcpy(end - n + i, &word, n - i < 8 ? n - i : 8);
		}
		int rc = store_unpack(end - n, n, back);
		cr_assert(rc == 0 || rc == -EBADMSG);
	}
	cr_assert_eq(store_unpack(packed, STORE_PACKED_MOST + 1, back), -EBADMSG);
}

/* Well packed, but not a page. */
Test(store, not_quite_a_page)
{
	struct store s;
	uint8_t more[PAGE_SIZE + 1] = {1, 2, 3}, packed[STORE_PACKED_MOST], *back = fenced_page();
	static const int sizes[] = {0, 1, 4095, 4096, 4097};
	begin(&s);
	for (unsigned i = 0; i < 5; i++) {
		int n = LZ4_compress_default((char *)more, (char *)packed, sizes[i],
					     sizeof(packed));
		cr_assert_gt(n, 0);
		uint32_t sum = store_sum(packed, (uint32_t)n);
		cr_assert_eq(store_mem_write(&s, 0, packed, (uint32_t)n), 0);
		cr_assert_eq(store_mem_read(&s, 0, (uint32_t)n, sum, back),
			     sizes[i] == 4096 ? 0 : -EBADMSG, "%d bytes", sizes[i]);
	}
	store_destroy(&s);
}

/* ---- compressed memory ---------------------------------------------------------------------- */

Test(store, an_item_lies_within_a_page)
{
	struct store s;
	static const struct {
		uint32_t granule, bytes;
		bool fits;
	} places[] = {
		{0, 1, true},
		{0, 0, false},
		{0, STORE_PACKED_MOST, true},
		{0, STORE_PACKED_MOST + 1, false},
		{16, STORE_PACKED_MOST, true},
		{17, STORE_PACKED_MOST, false},
		{17, STORE_PACKED_MOST - 64, true},
		{63, 64, true},
		{63, 65, false},
		{PAGES * 64 - 1, 64, true},
		{PAGES * 64, 1, false},
		{UINT32_MAX, 1, false},
		{UINT32_MAX, UINT32_MAX, false},
		{0, UINT32_MAX, false},
	};
	uint8_t bytes[STORE_PACKED_MOST] = {0}, page[PAGE_SIZE];
	begin(&s);
	for (unsigned i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		int rc = store_mem_write(&s, places[i].granule, bytes, places[i].bytes);
		cr_assert_eq(rc, places[i].fits ? 0 : -EINVAL, "place %u", i);
		rc = store_mem_read(&s, places[i].granule, places[i].bytes, 0, page);
		cr_assert_eq(rc, places[i].fits ? -EBADMSG : -EINVAL, "place %u", i);
	}
	store_destroy(&s);
	begin(&s);
	store_destroy(&s);
	char error[ERROR_MAX];
	cr_assert_eq(store_create(&s, 5000, NULL, 0, error), -EINVAL);
	cr_assert(strstr(error, "5000"), "%s", error);
	cr_assert_eq(store_create(&s, 512 * GiB, NULL, 0, error), -EINVAL);
	cr_assert_eq(store_create(&s, 0, NULL, 0, error), 0, "neither is possible");
	cr_assert_eq(store_mem_write(&s, 0, bytes, 1), -EINVAL);
	cr_assert_eq(store_mem_populated_bytes(&s), 0);
	store_destroy(&s);
}

/* Items side by side in every page leave each other alone, and a damaged one is found. */
Test(store, neighbours_and_damage)
{
	struct store s;
	uint8_t page[PAGE_SIZE], packed[STORE_PACKED_MOST];
	struct {
		uint32_t granule, bytes, sum, content;
	} item[PAGES * 64];
	unsigned n = 0;
	begin(&s);
	for (uint32_t at = 0; at < PAGES * 64;) {
		fill(page, (unsigned)(rnd() >> 40) % 1500, (uint8_t)n);
		item[n].granule = at;
		item[n].content = store_sum(page, PAGE_SIZE);
		cr_assert_eq(store_pack(page, packed, &item[n].bytes), 0);
		uint32_t granules = (item[n].bytes + 63) / 64;
		if (at % 64 + granules > 64) {
			at = (at | 63) + 1;
			continue;
		}
		item[n].sum = store_sum(packed, item[n].bytes);
		cr_assert_eq(store_mem_write(&s, at, packed, item[n].bytes), 0);
		at += granules;
		n++;
	}
	cr_assert_gt(n, 2 * PAGES);
	for (unsigned i = 0; i < n; i++) {
		cr_assert_eq(store_mem_read(&s, item[i].granule, item[i].bytes, item[i].sum, page),
			     0);
		cr_assert_eq(store_sum(page, PAGE_SIZE), item[i].content);
	}
	for (unsigned i = 0; i < n; i += 3) {
		off_t at = (off_t)item[i].granule * 64 + (off_t)(rnd() >> 40) % item[i].bytes;
		uint8_t b;
		cr_assert_eq(pread(s.mem_fd, &b, 1, at), 1);
		b ^= 0x10;
		cr_assert_eq(pwrite(s.mem_fd, &b, 1, at), 1);
	}
	for (unsigned i = 0; i < n; i++)
		cr_assert_eq(store_mem_read(&s, item[i].granule, item[i].bytes, item[i].sum, page),
			     i % 3 ? 0 : -EBADMSG);
	/* Another's place, another's length. */
	cr_assert_eq(store_mem_read(&s, item[1].granule, item[1].bytes, item[2].sum, page),
		     -EBADMSG);
	cr_assert_eq(store_mem_read(&s, item[1].granule, item[1].bytes - 1, item[1].sum, page),
		     -EBADMSG);
	store_destroy(&s);
}

Test(store, memory_is_given_back)
{
	struct store s;
	uint8_t bytes[64] = {1}, page[PAGE_SIZE];
	begin(&s);
	cr_assert_eq(store_mem_populated_bytes(&s), 0);
	for (uint32_t p = 0; p < PAGES; p++)
		cr_assert_eq(store_mem_write(&s, p * 64 + 5, bytes, 64), 0);
	cr_assert_eq(store_mem_populated_bytes(&s), PAGES * PAGE_SIZE);
	cr_assert_eq(store_mem_trim(&s, 10, 20), 0);
	cr_assert_eq(store_mem_trim(&s, PAGES - 1, 1), 0);
	cr_assert_eq(store_mem_populated_bytes(&s), (PAGES - 21) * PAGE_SIZE);
	cr_assert_eq(store_mem_read(&s, 29 * 64 + 5, 64, store_sum(bytes, 64), page), -EBADMSG);
	cr_assert_eq(pread(s.mem_fd, page, 64, 30 * 4096 + 5 * 64), 64);
	cr_assert_eq(memcmp(page, bytes, 64), 0);
	cr_assert_eq(store_mem_trim(&s, 0, 0), -EINVAL);
	cr_assert_eq(store_mem_trim(&s, PAGES, 1), -EINVAL);
	cr_assert_eq(store_mem_trim(&s, 1, PAGES), -EINVAL);
	cr_assert_eq(store_mem_trim(&s, 1, UINT32_MAX), -EINVAL);
	store_destroy(&s);
}

Test(store, memory_that_refuses)
{
	struct store s;
	struct rlimit r;
	uint8_t bytes[64] = {1}, page[PAGE_SIZE];
	begin(&s);
	/* One that can be cut short: the store's own can't. */
	cr_assert_eq(ftruncate(s.mem_fd, 4096), -1);
	cr_assert_eq(errno, EPERM);
	close(s.mem_fd);
	s.mem_fd = memfd_create("store", 0);
	cr_assert_eq(ftruncate(s.mem_fd, (off_t)s.mem_pages * PAGE_SIZE), 0);
	cr_assert_eq(getrlimit(RLIMIT_FSIZE, &r), 0);
	r.rlim_cur = 4096 + 32;
	cr_assert_eq(setrlimit(RLIMIT_FSIZE, &r), 0);
	cr_assert_eq(store_mem_write(&s, 64, bytes, 64), -EIO, "half of it");
	cr_assert_eq(store_mem_write(&s, 65, bytes, 64), -EFBIG);
	r.rlim_cur = r.rlim_max;
	cr_assert_eq(setrlimit(RLIMIT_FSIZE, &r), 0);
	cr_assert_eq(store_mem_write(&s, 65, bytes, 64), 0);
	cr_assert_eq(ftruncate(s.mem_fd, 4096 + 65 * 64), 0);
	cr_assert_eq(store_mem_read(&s, 64 * 3, 64, 0, page), -EIO);
	store_destroy(&s);
}
