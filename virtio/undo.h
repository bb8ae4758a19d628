/*
 * What a disk with a volatile cache would have forgotten if its power failed now (docs/FAULTS.md). Writes go to the file at
 * once, so reads need no second place to look at; but before each, what the file has there is kept in this log. A flush
 * lets go of what was kept before it; a power cut puts it back, the newest first, so that the file is as the last flush
 * left it, or anything between that and now. Whoever ends otherwise, by SIGKILL too, leaves all that was written.
 *
 * The log is bounded: the oldest writes are let go of to make room, as a cache writes back what it has no room for.
 */
#ifndef VIRTIO_UNDO_H
#define VIRTIO_UNDO_H

#include "virtio/virtio.h"

#define UNDO_BYTES VIRTIO_BLK_CACHE_BYTES /* of old contents and what describes them */

struct undo;

/* NULL: no memory. */
struct undo *undo_create(void);
void undo_free(struct undo *u);

/* Keep what fd has at [at, at + bytes), whole sectors, which is about to be overwritten. More than half of UNDO_BYTES, or
 * no memory for it: then all that was written is let go of, and this isn't kept. 0; -errno of pread, -EIO where the
 * file is shorter: then nothing may be written. */
int undo_keep(struct undo *u, int fd, uint64_t at, uint64_t bytes);
/* A name for now: undo_settle lets go of all that was kept before. */
uint64_t undo_mark(const struct undo *u);
void undo_settle(struct undo *u, uint64_t mark);
/* virtio_blk_cut (virtio.h). The log is empty then. */
void undo_cut(struct undo *u, int fd, const struct virtio_blk_cut *how,
	      struct virtio_blk_loss *out);

#endif
