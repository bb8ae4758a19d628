#include "ipt/own.h"
#include <stdalign.h>
#include <stdatomic.h>
#include <stdlib.h>

/* For a VM's loop, its devices (but disks and files) and what it knows of 128 MiB of memory. AddressSanitizer sees who
 * goes beyond his piece in the heap only. */
#ifdef __SANITIZE_ADDRESS__
#define OWN_BYTES 64
#else
#define OWN_BYTES 4416
#endif
#define OWN_ALIGN 64 /* cache lines: pieces are different threads' */

static OWN alignas(OWN_ALIGN) char room[OWN_BYTES];
static OWN _Atomic size_t given;

void *own_alloc(size_t bytes)
{
	size_t all = (bytes + OWN_ALIGN - 1) & ~(size_t)(OWN_ALIGN - 1);
	size_t at = atomic_load_explicit(&given, memory_order_relaxed);
	do
		if (all < bytes || all > OWN_BYTES - at)
			return calloc(1, bytes);
	while (!atomic_compare_exchange_weak_explicit(&given, &at, at + all, memory_order_relaxed,
						      memory_order_relaxed));
	return room + at;
}

void own_free(void *p)
{
	if ((char *)p < room || (char *)p >= room + OWN_BYTES)
		free(p);
}
