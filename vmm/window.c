#include "vmm/window.h"
#include "ipt/fail.h"
#include <errno.h>
#include <sys/mman.h>

/* The window's start is aligned as the banks are, so that 2 MiB of gpa are 2 MiB of hva. */
#define WINDOW_ALIGN (2 * MiB)

int window_create(struct window *w, const struct machine *machine, const struct pool *pool)
{
	uint64_t bytes = machine_window_bytes(machine);
	*w = (struct window){.bytes = bytes, .pool = pool, .machine = machine};
	/*
	 * The void is anonymous and private to this process. If a fault ever slipped through (a
	 * kernel worker that waits for a userfault when the descriptor goes away with a dying
	 * process), the page it makes is this VM's own and goes with it; a void that VMs share
	 * would show it to the others.
	 */
	uint8_t *room =
		fail_call(WINDOW_CREATE, mmap(NULL, bytes + WINDOW_ALIGN, PROT_READ | PROT_WRITE,
					      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
	if (room == MAP_FAILED)
		return -errno;
	uint8_t *base = (uint8_t *)(((uintptr_t)room + WINDOW_ALIGN - 1) & ~(WINDOW_ALIGN - 1));
	/* The kernel would allocate and clear a huge page before it asks userfaultfd: 1.3 ms a fault in the lab
	 * where transparent huge pages are on. Fails only where the kernel has none. */
	madvise(base, bytes, MADV_NOHUGEPAGE);
	if (base > room)
		munmap(room, (size_t)(base - room));
	uint8_t *end = base + bytes, *room_end = room + bytes + WINDOW_ALIGN;
	end = (uint8_t *)(((uintptr_t)end + PAGE_MASK) & ~PAGE_MASK);
	if (room_end > end)
		munmap(end, (size_t)(room_end - end));
	w->base = base;
	return 0;
}

static int map(struct window *w, gfn_t first, frame_t f, uint32_t count, int access, int how)
{
	void *got = fail_call(WINDOW_MAP, mmap(window_at(w, first), (size_t)count << PAGE_SHIFT,
					       access, how | MAP_FIXED | MAP_NORESERVE, w->pool->fd,
					       (off_t)f.v << PAGE_SHIFT));
	return got == MAP_FAILED ? -errno : 0;
}

int window_map(struct window *w, gfn_t first, frame_t f, uint32_t count)
{
	return map(w, first, f, count, PROT_READ | PROT_WRITE, MAP_SHARED);
}

int window_map_read_only(struct window *w, gfn_t first, frame_t f, uint32_t count)
{
	return map(w, first, f, count, PROT_READ, MAP_SHARED);
}

int window_map_copied(struct window *w, gfn_t first, frame_t f, uint32_t count)
{
	return map(w, first, f, count, PROT_READ | PROT_WRITE, MAP_PRIVATE);
}

int window_close(struct window *w, gfn_t first, uint64_t count)
{
	void *at = fail_call(WINDOW_CLOSE,
			     mmap(window_at(w, first), count << PAGE_SHIFT, PROT_NONE,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0));
	if (at == MAP_FAILED)
		return -errno;
	madvise(at, count << PAGE_SHIFT, MADV_NOHUGEPAGE); /* as the void around it */
	return 0;
}

int window_open(struct window *w, gfn_t first, uint64_t count)
{
	return fail_call(WINDOW_PROTECT, mprotect(window_at(w, first), count << PAGE_SHIFT,
						  PROT_READ | PROT_WRITE)) < 0
		       ? -errno
		       : 0;
}

uint8_t *window_at(const struct window *w, gfn_t g)
{
	const struct machine_bank *b = machine_bank_of(w->machine, gfn_gpa(g), 1);
	return b ? w->base + b->window + (gfn_gpa(g).v - b->base.v) : NULL;
}

gfn_t window_gfn(const struct window *w, uint64_t hva)
{
	uint64_t at = hva - (uintptr_t)w->base;
	if (hva < (uintptr_t)w->base || at >= w->bytes)
		return INVALID_GFN;
	for (unsigned i = 0; i < w->machine->banks; i++) {
		const struct machine_bank *b = &w->machine->bank[i];
		if (at >= b->window && at - b->window < b->bytes)
			return gpa_gfn(gpa(b->base.v + at - b->window));
	}
	return INVALID_GFN;
}
