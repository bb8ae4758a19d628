#include "vmm/ring.h"
#include <stdlib.h>
#include <string.h>

#define FIRST_BYTES 1024

/* Twice the room as long as nothing was overwritten yet, so that positions only need their low bits. */
static void grow(struct ring *r, size_t n)
{
	size_t room = r->room ? r->room : FIRST_BYTES;
	while (room < RING_BYTES && r->written + n > room)
		room *= 2;
	if (room == r->room || r->written > r->room)
		return;
	char *more = realloc(r->bytes, room);
	if (!more)
		return;
	r->bytes = more;
	r->room = room;
}

void ring_put(struct ring *r, const char *bytes, size_t n)
{
	grow(r, n);
	if (!r->room)
		return;
	if (n > r->room) {
		r->written += n - r->room;
		bytes += n - r->room;
		n = r->room;
	}
	while (n) {
		size_t at = r->written & (r->room - 1);
		size_t piece = n < r->room - at ? n : r->room - at;
		memcpy(r->bytes + at, bytes, piece);
		r->written += piece;
		bytes += piece;
		n -= piece;
	}
}

uint64_t ring_first(const struct ring *r)
{
	return r->written > r->room ? r->written - r->room : 0;
}

size_t ring_piece(const struct ring *r, uint64_t at, const char **bytes)
{
	if (at >= r->written)
		return 0;
	size_t from = at & (r->room - 1);
	uint64_t left = r->written - at;
	*bytes = r->bytes + from;
	return left < r->room - from ? (size_t)left : r->room - from;
}

void ring_free(struct ring *r)
{
	free(r->bytes);
	*r = (struct ring){.bytes = NULL};
}
