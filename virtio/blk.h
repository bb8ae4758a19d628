/*
 * Inside the block device: blk.c knows requests and configuration as virtio has them, blk_io.c
 * carries out what comes of them on the loop's io_uring.
 */
#ifndef VIRTIO_BLK_H
#define VIRTIO_BLK_H

#include "virtio/device.h"
#include "virtio/undo.h"
#include <stddef.h>

/* Section 5.2.3. The kernel's header has these too, and a struct of the name that virtio.h uses. */
enum {
	F_SIZE_MAX = 1,
	F_SEG_MAX = 2,
	F_RO = 5,
	F_BLK_SIZE = 6,
	F_FLUSH = 9,
	F_CONFIG_WCE = 11,
	F_DISCARD = 13,
	F_WRITE_ZEROES = 14,
};

/* Section 5.2.6. */
enum {
	T_IN = 0,
	T_OUT = 1,
	T_FLUSH = 4,
	T_GET_ID = 8,
	T_DISCARD = 11,
	T_WRITE_ZEROES = 13,
};

enum { S_OK, S_IOERR, S_UNSUPP };

/* Section 5.2.4: offsets in config space. */
enum {
	CONFIG_CAPACITY = 0,
	CONFIG_SIZE_MAX = 8,
	CONFIG_SEG_MAX = 12,
	CONFIG_BLK_SIZE = 20,
	CONFIG_WRITEBACK = 32,
	CONFIG_DISCARD_SECTORS_MAX = 36,
	CONFIG_DISCARD_SEG_MAX = 40,
	CONFIG_DISCARD_ALIGNMENT = 44,
	CONFIG_ZEROES_SECTORS_MAX = 48,
	CONFIG_ZEROES_SEG_MAX = 52,
	CONFIG_ZEROES_MAY_UNMAP = 56,
	CONFIG_BYTES = 60,
};

#define SECTOR   512u
#define ID_BYTES 20u

struct blk {
	struct virtio_dev dev; /* must be first */
	int fd;
	bool read_only;
	uint64_t sectors;
	uint8_t serial[ID_BYTES];

	/* dev.lock protects the rest */
	uint8_t config[CONFIG_BYTES];
	bool no_punch, no_zero_range; /* the file system said so */
	bool said_error;
	struct virtio_blk_stats stats;
	struct undo *undo; /* NULL: the disk isn't volatile */
};

/* What is left of a request. */
struct range {
	uint64_t at, bytes; /* in the file */
	bool unmap;
};

struct request {
	struct loop_op op; /* must be first */
	struct blk *b;
	struct virtq_chain *chain;
	uint32_t type;
	unsigned again;
	struct range now;      /* of the range under way, what is left */
	unsigned next, ranges; /* DISCARD, WRITE_ZEROES: range[next..ranges) are still to do */
	bool by_hand;          /* zeroes are being written */
	bool unflushed;        /* WRITE_ZEROES: fallocate did a part, and it knows no RWF_DSYNC */
	bool waits;            /* an injected delay is under way */
	bool faulty;           /* the status that it ends with is that of the injected fault */
	bool through;          /* what it changes is durable when it ends */
	bool at_once;          /* the step under way is done, with `result` */
	int result;
	uint64_t mark; /* FLUSH: what it makes durable came before (undo.h) */
	struct virtio_disk_fault fault;
	struct __kernel_timespec delay;
	uint64_t done_bytes; /* IN, OUT: moved so far */
	struct iovec *iov;   /* IN, OUT: what is left of the data; a copy of the chain's */
	int iovs;
	max_align_t rest[]; /* struct iovec[], or struct range[] */
};

/* All with the lock held, on the loop's thread. */

/* A request for the loop, with `rest` bytes at its end. NULL: no memory. */
struct request *blk_request(struct blk *b, struct virtq_chain *c, uint32_t type, size_t rest);
/* Begin r, which is in bounds: at once, or as injected faults have it. */
void blk_begin(struct request *r);
/* Submit what comes next of r. */
void blk_step(struct request *r);
/* Begin the next range of a DISCARD or WRITE_ZEROES, or finish it. */
void blk_next_range(struct request *r);
/* Give r's chain back with its status; r is gone. */
void blk_finish(struct request *r, uint8_t status);
/* Give a chain back with its status; `filled` bytes of its writable data were written. */
void blk_answer(struct virtq_chain *c, uint8_t status, uint64_t filled);
/* What completions of requests come to. */
void blk_done(struct loop_op *op, int res, uint32_t flags);

#endif
