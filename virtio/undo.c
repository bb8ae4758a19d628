/* See undo.h. */
#include "virtio/undo.h"
#include "ipt/whole.h"
#include <errno.h>
#include <stdlib.h>
#include <sys/queue.h>
#include <unistd.h>

#define SECTOR 512u

/* A write, by what was there before. */
struct entry {
	TAILQ_ENTRY(entry) link;
	uint64_t number; /* from 0 on, without gaps in the log */
	uint64_t at;     /* in the file */
	size_t bytes;
	uint8_t old[];
};

struct undo {
	TAILQ_HEAD(undo_log, entry) log; /* the oldest first */
	uint64_t next;                   /* number */
	size_t bytes;                    /* of all entries */
	uint64_t evicted;                /* entries so far that no flush let go of */
};

struct undo *undo_create(void)
{
	struct undo *u = calloc(1, sizeof *u);
	if (u)
		TAILQ_INIT(&u->log);
	return u;
}

static void let_go_of_oldest(struct undo *u)
{
	struct entry *e = TAILQ_FIRST(&u->log);
	TAILQ_REMOVE(&u->log, e, link);
	u->bytes -= sizeof *e + e->bytes;
	free(e);
}

void undo_free(struct undo *u)
{
	if (u)
		undo_settle(u, u->next);
	free(u);
}

uint64_t undo_mark(const struct undo *u)
{
	return u->next;
}

void undo_settle(struct undo *u, uint64_t mark)
{
	while (!TAILQ_EMPTY(&u->log) && TAILQ_FIRST(&u->log)->number < mark)
		let_go_of_oldest(u);
}

static void evict_down_to(struct undo *u, size_t bytes)
{
	while (u->bytes > bytes) {
		let_go_of_oldest(u);
		u->evicted++;
	}
}

int undo_keep(struct undo *u, int fd, uint64_t at, uint64_t bytes)
{
	struct entry *e = bytes > UNDO_BYTES / 2
				  ? NULL
				  : fail_null(BLK_KEEP_MEMORY, malloc(sizeof *e + bytes));
	if (!e) {
		evict_down_to(u, 0);
		u->evicted++; /* this one */
		return 0;
	}
	int rc = whole_read(FAIL_BLK_KEEP, fd, e->old, bytes, at);
	if (rc) {
		free(e);
		return rc;
	}
	evict_down_to(u, UNDO_BYTES - (sizeof *e + bytes));
	e->number = u->next++;
	e->at = at;
	e->bytes = bytes;
	u->bytes += sizeof *e + bytes;
	TAILQ_INSERT_TAIL(&u->log, e, link);
	return 0;
}

/* ---- power cuts ---------------------------------------------------------------------------- */

/* Does that write of the sector get lost? If so, then all later ones of the sector too, so that it ends with what it had
 * at some time since the flush. Of all sectors a quarter is lost as a whole, a quarter kept; in the others what came
 * late is lost with a greater chance than what came early, and writes of one sector may be parted. */
static bool is_lost(const struct virtio_blk_cut *how, uint64_t sector, uint64_t number,
		    uint64_t first, uint64_t n)
{
	if (how->lose != VIRTIO_BLK_LOSE_RANDOM)
		return how->lose == VIRTIO_BLK_LOSE_ALL;
	switch (how->draw(how->ctx, sector, 0, 4)) {
	case 0:
		return true;
	case 1:
		return false;
	default:
		return number >= first + how->draw(how->ctx, sector, 1, n + 1);
	}
}

/* What of a write is lost, in runs of sectors; bytes. */
static size_t undo_one(const struct entry *e, int fd, const struct virtio_blk_cut *how,
		       uint64_t first, uint64_t n, int *error)
{
	size_t lost = 0;
	for (size_t at = 0, run; at < e->bytes; at += run) {
		bool is = is_lost(how, (e->at + at) / SECTOR, e->number, first, n);
		run = SECTOR;
		while (at + run < e->bytes &&
		       is_lost(how, (e->at + at + run) / SECTOR, e->number, first, n) == is)
			run += SECTOR;
		int rc = is ? whole_write(FAIL_BLK_LOSE, fd, e->old + at, run, e->at + at) : 0;
		if (rc)
			*error = rc;
		else if (is)
			lost += run;
	}
	return lost;
}

void undo_cut(struct undo *u, int fd, const struct virtio_blk_cut *how, struct virtio_blk_loss *out)
{
	const struct entry *e;
	uint64_t first = TAILQ_EMPTY(&u->log) ? 0 : TAILQ_FIRST(&u->log)->number;
	*out = (struct virtio_blk_loss){.evicted = u->evicted};
	TAILQ_FOREACH_REVERSE(e, &u->log, undo_log, link)
	{
		size_t lost = undo_one(e, fd, how, first, u->next - first, &out->error);
		out->writes++;
		out->bytes += e->bytes;
		out->lost_writes += lost > 0;
		out->lost_bytes += lost;
	}
	undo_settle(u, u->next);
}
