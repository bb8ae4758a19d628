/*
 * bench-store [--dir DIRECTORY] FILE...: what the store's packing makes of the pages of files (best: memory of a
 * guest, see docs/RECLAIM.md) and of the bare guest's patterns, next to other packers as far as their development
 * packages were there when this was built; and what storing costs. A table on stdout.
 *
 *   kept    of the pages that aren't zero, those that pack into STORE_PACKED_MOST
 *   bytes   a page that isn't zero takes on average, in granules, or 4096 where it isn't kept
 *   pack, unpack   microseconds of this thread's time a page, the median of rounds over the sample; unpack of kept
 *           pages alone
 */
#include "guest/bare/region.h"
#include "vmm/error.h"
#include "vmm/store.h"
#include <fcntl.h>
#include <lz4.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#if __has_include(<zstd.h>)
#include <zstd.h>
#define HAVE_ZSTD 1
#endif
#if __has_include(<lzo/lzo1x.h>)
#include <lzo/lzo1x.h>
#define HAVE_LZO 1
#endif

#define SAMPLE_MOST 16384u /* pages of a file, evenly spread */
#define ROUNDS      5

struct sample {
	const char *name;
	uint8_t *pages;
	uint32_t count, zero;
};

/* Bytes, or 0 if it doesn't fit; and the other way, bytes unpacked. */
typedef unsigned pack_fn(const void *page, void *out);
typedef unsigned unpack_fn(const void *packed, unsigned n, void *page);

static double now_us(clockid_t clock)
{
	struct timespec t;
	clock_gettime(clock, &t);
	return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static double median(double *v, unsigned n)
{
	qsort(v, n, sizeof(*v), by_value);
	return v[n / 2];
}

static _Noreturn void die(const char *what)
{
	fprintf(stderr, "bench-store: %s\n", what);
	exit(1);
}

/* ---- packers -------------------------------------------------------------------------------- */

static unsigned lz4_pack(const void *page, void *out)
{
	uint32_t n;
	return store_pack(page, out, &n) ? 0 : n;
}

static unsigned lz4_unpack(const void *packed, unsigned n, void *page)
{
	return store_unpack(packed, n, page) ? 0 : PAGE_SIZE;
}

#ifdef HAVE_ZSTD
static ZSTD_CCtx *zstd_c;
static ZSTD_DCtx *zstd_d;

static unsigned zstd_pack(const void *page, void *out)
{
	size_t n = ZSTD_compressCCtx(zstd_c, out, STORE_PACKED_MOST, page, PAGE_SIZE, 1);
	return ZSTD_isError(n) ? 0 : (unsigned)n;
}

static unsigned zstd_unpack(const void *packed, unsigned n, void *page)
{
	size_t got = ZSTD_decompressDCtx(zstd_d, page, PAGE_SIZE, packed, n);
	return ZSTD_isError(got) ? 0 : (unsigned)got;
}
#endif

#ifdef HAVE_LZO
static unsigned lzo_pack(const void *page, void *out)
{
	static uint8_t work[LZO1X_1_MEM_COMPRESS], all[2 * PAGE_SIZE];
	lzo_uint n = 0;
	/* LZO doesn't look at the room it has. */
	if (lzo1x_1_compress(page, PAGE_SIZE, all, &n, work) != LZO_E_OK || n > STORE_PACKED_MOST)
		return 0;
	memcpy(out, all, n);
	return (unsigned)n;
}

static unsigned lzo_unpack(const void *packed, unsigned n, void *page)
{
	lzo_uint got = PAGE_SIZE;
	return lzo1x_decompress_safe(packed, n, page, &got, NULL) == LZO_E_OK ? (unsigned)got : 0;
}
#endif

static const struct packer {
	const char *name;
	pack_fn *pack;
	unpack_fn *unpack;
} packers[] = {
	{"LZ4", lz4_pack, lz4_unpack},
#ifdef HAVE_ZSTD
	{"zstd-1", zstd_pack, zstd_unpack},
#endif
#ifdef HAVE_LZO
	{"LZO1X-1", lzo_pack, lzo_unpack},
#endif
};

static void measure(const struct sample *s, const struct packer *p)
{
	static uint8_t out[STORE_PACKED_MOST], page[PAGE_SIZE];
	uint8_t *packed = malloc((size_t)s->count * STORE_PACKED_MOST);
	unsigned *bytes = calloc(s->count, sizeof(*bytes)), kept = 0;
	double pack[ROUNDS], unpack[ROUNDS], stored = 0;
	if (!packed || !bytes)
		die("no memory");
	for (unsigned r = 0; r < ROUNDS; r++) {
		double t = now_us(CLOCK_THREAD_CPUTIME_ID);
		for (uint32_t i = 0; i < s->count; i++) {
			bytes[i] = p->pack(s->pages + i * PAGE_SIZE, out);
			memcpy(packed + (size_t)i * STORE_PACKED_MOST, out, bytes[i]);
		}
		pack[r] = (now_us(CLOCK_THREAD_CPUTIME_ID) - t) / s->count;
		t = now_us(CLOCK_THREAD_CPUTIME_ID);
		kept = 0;
		for (uint32_t i = 0; i < s->count; i++) {
			if (!bytes[i])
				continue;
			kept++;
			if (p->unpack(packed + (size_t)i * STORE_PACKED_MOST, bytes[i], page) !=
			    PAGE_SIZE)
				die("what was packed doesn't unpack");
		}
		unpack[r] = (now_us(CLOCK_THREAD_CPUTIME_ID) - t) / s->count;
	}
	for (uint32_t i = 0; i < s->count; i++)
		stored += bytes[i] ? (bytes[i] + STORE_GRANULE - 1) / STORE_GRANULE * STORE_GRANULE
				   : PAGE_SIZE;
	printf("%-24.24s %6u %6u  %-8s %5.1f%% %7.0f %6.2f %7.2f\n", s->name, s->count, s->zero,
	       p->name, 100.0 * kept / s->count, stored / s->count, median(pack, ROUNDS),
	       kept ? median(unpack, ROUNDS) * s->count / kept : 0);
	free(packed);
	free(bytes);
}

/* ---- samples -------------------------------------------------------------------------------- */

static void take(struct sample *s, const void *page)
{
	if (store_is_zero(page))
		s->zero++;
	else
		memcpy(s->pages + s->count++ * PAGE_SIZE, page, PAGE_SIZE);
}

static void begin(struct sample *s, const char *name)
{
	*s = (struct sample){.name = name, .pages = malloc(SAMPLE_MOST * PAGE_SIZE)};
	if (!s->pages)
		die("no memory");
}

static void end(struct sample *s)
{
	for (unsigned i = 0; s->count && i < sizeof(packers) / sizeof(packers[0]); i++)
		measure(s, &packers[i]);
	free(s->pages);
}

static void of_file(const char *path)
{
	struct sample s;
	struct stat st;
	uint8_t page[PAGE_SIZE];
	const char *slash = strrchr(path, '/');
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) < 0)
		die(path);
	uint64_t pages = (uint64_t)st.st_size / PAGE_SIZE;
	uint64_t step = pages / SAMPLE_MOST + 1;
	begin(&s, slash ? slash + 1 : path);
	for (uint64_t i = 0; i < pages; i += step) {
		if (pread(fd, page, sizeof(page), (off_t)(i * PAGE_SIZE)) != (ssize_t)sizeof(page))
			die(path);
		take(&s, page);
	}
	close(fd);
	end(&s);
}

/* As guest/bare/pattern.c fills pages. */
static void of_pattern(unsigned used)
{
	struct sample s;
	char name[32];
	snprintf(name, sizeof(name), "pattern words=%u", used);
	begin(&s, name);
	unsigned step = 512 / used;
	for (uint64_t p = 0; p < 4096; p++) {
		uint64_t page[512] = {0};
		for (unsigned w = region_word(1, p * PAGE_SIZE) >> 8 & (step - 1); w < 512;
		     w += step)
			page[w] = region_word(1, p * 512 + w);
		take(&s, page);
	}
	end(&s);
}

/* ---- storing -------------------------------------------------------------------------------- */

static void tell(const char *what, double *v)
{
	printf("%-58s %8.2f us\n", what, median(v, ROUNDS));
}

static void of_memory(void)
{
	enum { N = 8192 };
	struct store s;
	char error[ERROR_MAX];
	static uint8_t item[1024];
	double first[ROUNDS], second[ROUNDS], read[ROUNDS], trim[ROUNDS];
	uint8_t page[PAGE_SIZE] = {0}, packed[STORE_PACKED_MOST];
	uint32_t bytes;
	if (store_create(&s, N * PAGE_SIZE, NULL, 0, error))
		die(error);
	for (unsigned i = 0; i < 125; i++)
		((uint64_t *)page)[i] = region_word(1, i);
	store_pack(page, packed, &bytes);
	uint32_t sum = store_sum(packed, bytes);
	for (unsigned r = 0; r < ROUNDS; r++) {
		double t0 = now_us(CLOCK_MONOTONIC);
		for (uint32_t i = 0; i < N; i++)
			store_mem_write(&s, i * STORE_PAGE_GRANULES, item, sizeof(item));
		double t1 = now_us(CLOCK_MONOTONIC);
		for (uint32_t i = 0; i < N; i++)
			store_mem_write(&s, i * STORE_PAGE_GRANULES + 16, packed, bytes);
		double t2 = now_us(CLOCK_MONOTONIC);
		for (uint32_t i = 0; i < N; i++) {
			if (store_mem_read(&s, i * STORE_PAGE_GRANULES + 16, bytes, sum, page))
				die("what was stored isn't there");
		}
		double t3 = now_us(CLOCK_MONOTONIC);
		for (uint32_t i = 0; i < N; i++)
			store_mem_trim(&s, i, 1);
		double t4 = now_us(CLOCK_MONOTONIC);
		first[r] = (t1 - t0) / N;
		second[r] = (t2 - t1) / N;
		read[r] = (t3 - t2) / N;
		trim[r] = (t4 - t3) / N;
	}
	tell("1 KiB into a page that has none yet", first);
	tell("1 KiB into a page that has some", second);
	tell("1 KiB read, summed up and unpacked", read);
	tell("a page given back", trim);
	store_destroy(&s);
}

static void batches(struct store_io *io, struct store_block *b, unsigned runs, const char *name)
{
	enum { N = 200 };
	char what[80];
	double write[ROUNDS], read[ROUNDS];
	for (unsigned r = 0; r < ROUNDS; r++) {
		double t0 = now_us(CLOCK_MONOTONIC);
		for (unsigned k = 0; k < N; k++) {
			if (store_file_write(io, b, STORE_BATCH))
				die("the swap file can't be written");
		}
		double t1 = now_us(CLOCK_MONOTONIC);
		for (unsigned k = 0; k < N; k++) {
			if (store_file_read(io, b, STORE_BATCH))
				die("the swap file can't be read");
		}
		write[r] = (t1 - t0) / N / STORE_BATCH;
		read[r] = (now_us(CLOCK_MONOTONIC) - t1) / N / STORE_BATCH;
	}
	snprintf(what, sizeof(what), "swap file, a page of 64 in %u runs, %s: written", runs, name);
	tell(what, write);
	snprintf(what, sizeof(what), "swap file, a page of 64 in %u runs, %s: read", runs, name);
	tell(what, read);
}

static void of_swap(const char *dir)
{
	struct store s;
	struct store_io *io;
	char error[ERROR_MAX], path[256];
	snprintf(path, sizeof(path), "%s/invisor-bench-store.%d", dir, (int)getpid());
	if (store_create(&s, 0, path, 64 * MiB, error) || store_io_create(&io, &s, 1, error))
		die(error);
	unlink(path);
	uint8_t *other = mmap(NULL, STORE_BATCH * PAGE_SIZE, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (unsigned k = 0; k < 4; k++) {
		struct store_block b[STORE_BATCH];
		bool scattered = k & 1, arena = k < 2;
		for (unsigned i = 0; i < STORE_BATCH; i++) {
			b[i].block = scattered ? (i * 37 + 11) * 4 : 1000 + i;
			b[i].page = arena ? store_io_page(io, i) : other + i * PAGE_SIZE;
			memset(b[i].page, (int)i, PAGE_SIZE);
		}
		batches(io, b, scattered ? 64 : 1, arena ? "arena" : "other memory");
	}
	printf("(%s, %s)\n", dir, s.direct ? "direct" : "by the page cache");
	store_io_destroy(io);
	store_destroy(&s);
}

int main(int argc, char **argv)
{
	const char *dir = "/var/tmp";
	int at = 1;
	if (argc > 2 && !strcmp(argv[1], "--dir")) {
		dir = argv[2];
		at = 3;
	}
#ifdef HAVE_ZSTD
	zstd_c = ZSTD_createCCtx();
	zstd_d = ZSTD_createDCtx();
#endif
	printf("%-24s %6s %6s  %-8s %6s %7s %6s %7s\n", "sample", "pages", "zero", "packer", "kept",
	       "bytes", "pack", "unpack");
	for (; at < argc; at++)
		of_file(argv[at]);
	for (unsigned used = 512; used; used /= 4)
		of_pattern(used);
	of_memory();
	of_swap(dir);
	return 0;
}
