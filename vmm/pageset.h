/*
 * A set of page numbers in memory that processes share: a bit a page, and above it a bit a group of
 * 4,096 pages, so that a large and nearly empty set is gone through quickly and costs little memory.
 * It is sound after the death of a process at any step: a page whose adding had returned is in it.
 *
 * Any thread of any process may add; one at a time may remove.
 */
#ifndef VMM_PAGESET_H
#define VMM_PAGESET_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define PAGESET_MAX (UINT64_C(1) << 24) /* pages: 64 GiB */

struct pageset {
	_Atomic uint64_t *group, *word;
	uint64_t pages;
};

/* Bytes of zeroed, shared memory that a set of `pages` (1 to PAGESET_MAX) needs; whole host pages. */
size_t pageset_bytes(uint64_t pages);
/* The set in that memory, which another process may have as well. */
struct pageset pageset_at(void *memory, uint64_t pages);

/* Pages outside the set's range must not be given. */
void pageset_add(struct pageset *s, uint64_t first, uint64_t count);
void pageset_remove(struct pageset *s, uint64_t first, uint64_t count);
/* The first run of pages in the set from *first on: its start goes to *first, its length, at most `max`
 * (not 0), is returned; 0 if there is none. */
uint64_t pageset_next(const struct pageset *s, uint64_t *first, uint64_t max);

#endif
