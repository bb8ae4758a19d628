#include "vmm/stack.h"
#include "ipt/addr.h"
#include <stdint.h>
#include <sys/mman.h>

#define KEPT 256 /* bytes below this function's frame: where madvise returns to, and the red zone */

__attribute__((noinline)) void stack_trim(size_t most)
{
	uintptr_t here = (uintptr_t)__builtin_frame_address(0);
	uintptr_t end = (here - KEPT) & ~(uintptr_t)(PAGE_SIZE - 1);
	/* Where there is no more stack it fails, with what there is given back. */
	madvise((void *)(end - most), most, MADV_DONTNEED);
}
