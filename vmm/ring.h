/* The last bytes of a stream: what was written long ago is overwritten. Bytes are named by their
 * position in the whole stream, from 0 on. A process that is forked from the ring's must not use it: it doesn't have it. */
#ifndef VMM_RING_H
#define VMM_RING_H

#include <stddef.h>
#include <stdint.h>

#define RING_BYTES 65536 /* kept at most; memory grows with what is written */

struct ring {
	char *bytes;
	size_t room;                /* a power of two, or 0 before the first byte */
	uint64_t written;           /* the stream's length so far */
	struct ring_shared *shared; /* NULL: it is this process's alone */
};

/* Make memory for a ring that another process may go on with, RING_BYTES of it; a descriptor, or -errno. */
int ring_share(void);
/* Go on with the ring there. -errno. Nobody else writes to it meanwhile. */
int ring_open(struct ring *r, int fd);

/* Without memory for more it keeps as much as it has room for. */
void ring_put(struct ring *r, const char *bytes, size_t n);
/* The first position that is still kept. */
uint64_t ring_first(const struct ring *r);
/* Bytes that lie side by side from position `at` (ring_first to r->written) on: their number, 0 at
 * the end. They stay valid until the next ring_put. */
size_t ring_piece(const struct ring *r, uint64_t at, const char **bytes);
void ring_free(struct ring *r);

#endif
