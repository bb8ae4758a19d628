/*
 * The store: where the bytes of guest pages go that were taken out of memory. Two places, each of which may be
 * missing:
 *
 *   compressed memory   a memfd of its own, given out in granules of 64 bytes. An item, one packed page, lies within
 *                       one 4 KiB page of it, so that a page without items can be given back to the host.
 *   swap file           a file or block device, given out in blocks of 4 KiB, each one page as it is.
 *
 * The store knows bytes only. What is free, what belongs to whom, and the length and sum of what was stored is the
 * table's to know; so nothing that lies in the store is believed: lengths and sums are the caller's, and
 * whatever bytes are found, unpacking them stays within the page.
 *
 * Compressed memory isn't mapped anywhere but read and written by its descriptor. Copying 1 KiB so takes 0.7 us
 * instead of 0.1, next to 2 us and more for packing it; but mapped by 100 processes, giving a page back took 53 us
 * instead of 2.4, since the kernel looks for it in each of them, and each would have page tables for it.
 */
#ifndef VMM_STORE_H
#define VMM_STORE_H

#include "ipt/addr.h"

#define STORE_GRANULE       64u   /* bytes */
#define STORE_PAGE_GRANULES 64u   /* granules in a page */
#define STORE_PACKED_MOST   3072u /* bytes; a page that doesn't pack into this isn't kept packed */
#define STORE_FILE_LEAST    MiB   /* of a swap file, its first 4 KiB (the mark) included */
#define STORE_BATCH         64u   /* blocks that can be read or written at once */

struct store {
	int mem_fd; /* -1: no compressed memory; or the host's store, as each sharing domain has its own (host_domain.h) */
	uint32_t mem_pages;
	int file_fd; /* -1: no swap file. Holds the lock that keeps other hosts out. */
	int own_fd; /* a description of the file for this process alone; 0: it opens one when it needs it */
	uint32_t file_blocks;
	bool direct; /* the file is read and written past the host's page cache */
	bool sparse; /* its file system can't reserve space: a write may find none left */
};

/* ---- the whole ----------------------------------------------------------------------------- */

/* Make a store in the host, before it forks. `mem_bytes` of compressed memory are whole pages, at most 256 GiB, and
 * cost memory only as they are written; 0 is none. `file` (NULL: none) has `file_bytes` of swap file, 16 TiB at most
 * and counted in whole blocks, or as many as a block device has if that is 0: see store_file_open. With words:
 * -EINVAL (sizes), -errno of memfd_create and ftruncate, and those of store_file_open. */
int store_create(struct store *s, uint64_t mem_bytes, const char *file, uint64_t file_bytes,
		 char *error);
/* The parts of it that concern compressed memory: note how large it is; make one of that size, a descriptor, for a store
 * that is otherwise the same. Places are given out once for all that are made. Errors as of store_create. */
int store_mem_size(struct store *s, uint64_t bytes, char *error);
int store_mem_create(const struct store *s, char *error);
/* Let go of both. The swap file stays, with what it has. */
void store_destroy(struct store *s);

/* ---- packing ------------------------------------------------------------------------------- */

/* Pack a page into `out`, of STORE_PACKED_MOST bytes. -E2BIG if it doesn't fit. */
int store_pack(const void *page, void *out, uint32_t *bytes);
/* Unpack into a page: -EBADMSG if that isn't exactly 4096 bytes; the page's bytes are anything then. `packed` must
 * be memory that nobody else writes to. */
int store_unpack(const void *packed, uint32_t bytes, void *page);
bool store_is_zero(const void *page);
/* The sum that is kept of stored bytes: the low half of their XXH3. It finds what was damaged, or is another
 * page's; it keeps out nobody who wants to deceive. */
uint32_t store_sum(const void *bytes, uint32_t n);

/* ---- compressed memory --------------------------------------------------------------------- */

/* Any process, at the same time, as long as the granules differ. `granule` is a place's first granule.
 * -EINVAL: not within one page of the memory, or not 1 to STORE_PACKED_MOST bytes. */

/* Write an item. -ENOSPC, -ENOMEM, -EFBIG: the host has no more for it; -EIO. */
int store_mem_write(const struct store *s, uint32_t granule, const void *bytes, uint32_t n);
/* Read and unpack the item that was written with `bytes` and has `sum`. -EBADMSG: what is there isn't it, and
 * `page` has anything in it; -EIO. */
int store_mem_read(const struct store *s, uint32_t granule, uint32_t bytes, uint32_t sum,
		   void *page);
/* Give `n` pages in which nobody has an item, nor can get one meanwhile, back to the host. -EINVAL, -errno of
 * fallocate. */
int store_mem_trim(const struct store *s, uint32_t first_page, uint32_t n);
/* Bytes of compressed memory that have host memory behind them now. */
uint64_t store_mem_populated_bytes(const struct store *s);

/* ---- the swap file ------------------------------------------------------------------------- */

/* Open or make the swap file: s->file_fd, file_blocks, direct, sparse. Its space is reserved now. A file that isn't
 * invisor's is left alone: what begins with neither our mark nor 128 KiB of zeroes is refused. Waits up to 1 s
 * for a host that is going, and up to 2 s for writes of one that is gone. With words: -ENOENT, -ELOOP (symbolic link), -EINVAL (no regular file nor block
 * device, too small), -EEXIST (something else's contents), -EBUSY (another host's, a disk, mounted), -ENOSPC, -EFBIG,
 * -EACCES and the like. A file that was made here is gone again after an error. */
int store_file_open(struct store *s, const char *path, uint64_t bytes, char *error);

/*
 * A process's way to the swap file: an io_uring, a description of the file of its own, and an arena of STORE_BATCH
 * pages. Made when it is first needed; one thread at a time.
 *
 * The kernel doesn't wait for a process's writes when it is killed: seen, its io was there up to 40 ms after waitpid.
 * So blocks of a dead VM mustn't be given to another before store_io_lives says that no write of its can come any more.
 */
struct store_io;

struct store_block {
	uint32_t block;
	uint32_t sum; /* store_sum of the page: found out by writing, compared by reading */
	void *page;   /* 4096 bytes, aligned: of the arena, or any */
	int rc;       /* out: 0 or -errno */
};

/* A description of the file of its own, for s->own_fd of a process that can't open one itself. -ENODEV, -errno. */
int store_describe(const struct store *s);
/* `who` is the VM's id: no two at a time (-EBUSY). With words: -EBUSY, -ENODEV (no swap file), -ENOMEM, -errno of
 * io_uring_queue_init (-ENOSYS or -EPERM: the kernel forbids io_uring), open, fcntl. */
int store_io_create(struct store_io **out, const struct store *s, uint32_t who, char *error);
void store_io_destroy(struct store_io *io);
/* In a process that was forked from the one that made it, which has nothing more to do with it: let go. */
void store_io_forget(struct store_io *io);
/* 1: `who` has an io, or writes that it began before it ended are under way; 0: neither; -errno of fcntl. */
int store_io_lives(const struct store *s, uint32_t who);
/* Page i of the arena. Precondition: i < STORE_BATCH. */
void *store_io_page(const struct store_io *io, unsigned i);

/* Write or read up to STORE_BATCH blocks, all at once, and wait for them. Neighbours in `b` whose blocks and pages
 * follow each other are one request. Every block gets its `rc`; blocks whose request fails are tried alone, so that
 * one bad block takes no others along. Returns 0 or the error of the first block that has one: -ENOSPC, -EFBIG,
 * -EIO (also: the file has become shorter), others of read and write; -EBADMSG: read, but it isn't what was
 * written. For the whole batch, and nothing is done: -EINVAL (no such block, page not aligned, too many), -EPERM
 * (another process's io). A block twice in a batch to write ends with either. */
int store_file_write(struct store_io *io, struct store_block *b, unsigned n);
int store_file_read(struct store_io *io, struct store_block *b, unsigned n);

#endif
