#include "vmm/hold.h"
#include "vmm/clock.h"
#include "vmm/vm.h"
#include <linux/futex.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PATIENCE_NS UINT64_C(20000000) /* for vCPUs whose threads come to a CPU late */
#define LOOK_NS     1000000            /* between looks whether one waits for a page */

/* By the futex itself: what waits for a condition has more of the stack than an idle vCPU's page has room for. */
static void wait_while(_Atomic uint32_t *word, uint32_t value, const struct timespec *most)
{
	syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, most, NULL, 0);
}

static void wake(_Atomic uint32_t *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, MACHINE_MAX_CPUS, NULL, NULL, 0);
}

bool hold_wanted(const struct vm *vm)
{
	return atomic_load_explicit(&vm->hold.wanted, memory_order_acquire);
}

void hold_wait(struct vm *vm, unsigned cpu)
{
	struct vm_hold *h = &vm->hold;
	uint32_t which;
	/* Said anew for each hold: who comes out of the last one as the next begins isn't taken for one that stands. */
	while ((which = atomic_load_explicit(&h->wanted, memory_order_acquire))) {
		if (h->stands[cpu] != which) {
			atomic_store_explicit(&h->stands[cpu], which, memory_order_release);
			atomic_fetch_add_explicit(&h->said, 1, memory_order_release);
			wake(&h->said);
		}
		wait_while(&h->wanted, which, NULL);
	}
}

/* How much of a CPU the vCPUs used since the last look is what other threads than this one did. */
static bool is_busy(struct vm_hold *h)
{
	uint64_t now = clock_ns(), cpu = clock_process_cpu_ns() - clock_cpu_ns();
	bool busy = (cpu - h->cpu_ns) * 4 > now - h->at_ns;
	h->at_ns = now;
	h->cpu_ns = cpu;
	return busy;
}

static bool all_stand(const struct vm *vm, uint32_t which)
{
	for (unsigned i = 0; i < vm->kvm.cpus; i++)
		if (atomic_load_explicit(&vm->hold.stands[i], memory_order_acquire) != which &&
		    !atomic_load_explicit(&vm->vcpu_gone[i], memory_order_acquire))
			return false;
	return true;
}

static bool waits_for_page(const struct vm *vm)
{
	struct pollfd p = {.fd = vm->memory.uffd, .events = POLLIN};
	return poll(&p, 1, 0) > 0;
}

bool hold_still(struct vm *vm)
{
	struct vm_hold *h = &vm->hold;
	if (vm->pause.stillness != VM_MOVES || is_busy(h))
		return false;
	h->last = h->last == UINT32_MAX ? 1 : h->last + 1;
	atomic_store_explicit(&h->wanted, h->last, memory_order_seq_cst);
	if (all_stand(vm, h->last)) /* without a thread: nobody is to be woken for it */
		return true;
	vcpu_kick_all(vm);
	const uint64_t until = clock_ns() + PATIENCE_NS;
	const struct timespec slice = {.tv_nsec = LOOK_NS};
	do {
		uint32_t said = atomic_load_explicit(&h->said, memory_order_acquire);
		if (all_stand(vm, h->last))
			return true;
		wait_while(&h->said, said, &slice);
	} while (clock_ns() < until && !waits_for_page(vm));
	hold_end(vm);
	return false;
}

void hold_end(struct vm *vm)
{
	atomic_store_explicit(&vm->hold.wanted, 0, memory_order_release);
	wake(&vm->hold.wanted);
}
