#include "ipt/fail.h"
#include "vmm/clock.h"
#include "vmm/merge.h"
#include "vmm/shared.h"
#include <errno.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define HEARD_MS 500 /* how long a VM gets to begin with what it was asked */
#define LOOK_MS  50  /* how often whoever waits looks whether the VM still is */

static size_t bytes_of(uint32_t vms)
{
	return sizeof(struct merge_board) + vms * sizeof(uint32_t);
}

struct merge_board *merge_board_create(uint32_t max_vms, int *fd)
{
	uint32_t vms = max_vms + 1; /* ids begin with 1 */
	*fd = -1;
	struct merge_board *b =
		fail_null(WORKER_BOARD, shared_create("invisor-merge", bytes_of(vms), fd));
	if (b)
		b->vms = vms;
	return b;
}

struct merge_board *merge_board_attach(uint32_t max_vms, int fd)
{
	struct merge_board *b = shared_attach(fd, bytes_of(max_vms + 1));
	if (b && b->vms != max_vms + 1) {
		munmap(b, bytes_of(max_vms + 1));
		return NULL;
	}
	return b;
}

void merge_board_destroy(struct merge_board *b)
{
	if (b)
		munmap(b, bytes_of(b->vms));
}

void merge_set_domain(struct merge_board *b, vmid_t vm, uint32_t domain)
{
	if (b && vm.v < b->vms)
		atomic_store_explicit(&b->domain[vm.v], domain, memory_order_relaxed);
}

uint32_t merge_domain(const struct merge_board *b, vmid_t vm)
{
	return b && vm.v < b->vms ? atomic_load_explicit(&b->domain[vm.v], memory_order_relaxed)
				  : 0;
}

/* ---- asking -------------------------------------------------------------------------------- */

static void wait_for_change(struct merge_board *b, uint32_t from)
{
	const struct timespec t = {.tv_nsec = LOOK_MS * 1000000L};
	syscall(SYS_futex, &b->state, FUTEX_WAIT, from, &t, NULL, 0);
}

static bool is_gone(struct ipt *t, vmid_t vm)
{
	struct ipt_vm_info info;
	return ipt_vm_info(t, vm, &info) || info.dying;
}

static bool move(struct merge_board *b, uint32_t from, uint32_t to)
{
	return atomic_compare_exchange_strong_explicit(&b->state, &from, to, memory_order_acq_rel,
						       memory_order_relaxed);
}

/* Until it is done (0), or won't be. */
static int wait_for_answer(struct merge_board *b, struct ipt *table, uint64_t until)
{
	for (;;) {
		uint32_t state = atomic_load_explicit(&b->state, memory_order_acquire);
		if (state == MERGE_DONE || state == MERGE_FREE)
			return 0;
		/* A VM that took it and is gone, process and all, won't touch it any more. */
		if (is_gone(table, vmid(b->request.vm))) {
			atomic_store_explicit(&b->state, MERGE_FREE, memory_order_release);
			return -ESRCH;
		}
		if (state == MERGE_ASKED && clock_ns() >= until && move(b, MERGE_ASKED, MERGE_FREE))
			return -ETIME;
		wait_for_change(b, state);
	}
}

int merge_ask(struct merge_board *b, struct ipt *table, int link, const struct merge_request *r,
	      struct merge_answer *answer)
{
	b->request = *r;
	atomic_store_explicit(&b->state, MERGE_ASKED, memory_order_release);
	/* A full socket rings too, when it is read. */
	fail_point(FAIL_WORKER_BATCH);
	link_send(link, &r->vm, sizeof r->vm, NULL, 0);
	int rc = wait_for_answer(b, table, clock_ns() + HEARD_MS * UINT64_C(1000000));
	if (rc)
		return rc;
	*answer = b->answer;
	atomic_store_explicit(&b->state, MERGE_FREE, memory_order_relaxed);
	return 0;
}

void merge_settle(struct merge_board *b, struct ipt *table)
{
	wait_for_answer(b, table, 0);
	atomic_store_explicit(&b->state, MERGE_FREE, memory_order_relaxed);
}
