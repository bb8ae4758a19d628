/*
 * A driver of the memory balloon (virtio 1.2, section 5.5), for commands of work=serve. It takes pages that its caller
 * doesn't need, and keeps no list of them.
 */
#ifndef BARE_BALLOON_H
#define BARE_BALLOON_H

#include <stdint.h>

struct balloon_sizes {
	uint32_t target, actual; /* pages */
};

/* Each opens the device at its first call. NULL, or what went wrong. */
const char *balloon_sizes(struct balloon_sizes *out);
/* Name `pages` pages from `base` on to the device, from the last to the first, and tell it of the new size. */
const char *balloon_inflate(uint64_t base, uint64_t pages);
const char *balloon_deflate(uint64_t base, uint64_t pages);
/* Report them as free, in pieces of 2 MiB at most, up to 32 at once. */
const char *balloon_report(uint64_t base, uint64_t pages);

#endif
