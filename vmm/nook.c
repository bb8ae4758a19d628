#include "vmm/nook.h"
#include "ipt/addr.h"
#include <stddef.h>
#include <sys/mman.h>

#define NOOK_BYTES MiB /* for a vCPU some 100 KiB */

static void *nook;

void nook_take(void)
{
	void *at = mmap(NULL, NOOK_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
			-1, 0);
	nook = at == MAP_FAILED ? NULL : at;
}

void nook_open(void)
{
	if (nook)
		munmap(nook, NOOK_BYTES);
	nook = NULL;
}
