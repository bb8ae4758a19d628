#include "vmm/ring.h"
#include "ipt/sealed.h"
#include "vmm/shared.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define FIRST_BYTES 4096

/* Pages of their own, which processes that are forked from this one don't get: what a guest said is no other's business. */
static char *more_pages(char *had, size_t old, size_t bytes)
{
	char *at =
		had ? mremap(had, old, bytes, MREMAP_MAYMOVE)
		    : mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (at == MAP_FAILED)
		return NULL;
	if (had || madvise(at, bytes, MADV_DONTFORK) == 0)
		return at;
	munmap(at, bytes);
	return NULL;
}

struct ring_shared {
	_Atomic uint64_t written; /* once the bytes are there */
	char bytes[RING_BYTES];
};

int ring_share(void)
{
	int fd;
	struct ring_shared *s = shared_create("invisor-console", sizeof *s, &fd);
	if (!s)
		return -errno;
	munmap(s, sizeof *s);
	return fd;
}

int ring_open(struct ring *r, int fd)
{
	struct ring_shared *s = shared_attach(fd, sizeof *s);
	if (!s)
		return -errno;
	madvise(s, sizeof *s, MADV_DONTFORK);
	/* Where nothing was written yet not even a look, which would take a page. */
	*r = (struct ring){.bytes = s->bytes,
			   .room = RING_BYTES,
			   .written = sealed_populated_bytes(fd) ? s->written : 0,
			   .shared = s};
	return 0;
}

/* Twice the room as long as nothing was overwritten yet, so that positions only need their low bits. */
static void grow(struct ring *r, size_t n)
{
	size_t room = r->room ? r->room : FIRST_BYTES;
	while (room < RING_BYTES && r->written + n > room)
		room *= 2;
	if (room == r->room || r->written > r->room)
		return;
	char *more = more_pages(r->bytes, r->room, room);
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
	if (r->shared)
		r->shared->written = r->written;
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
	if (r->shared)
		munmap(r->shared, sizeof *r->shared);
	else if (r->bytes)
		munmap(r->bytes, r->room);
	*r = (struct ring){.bytes = NULL};
}
