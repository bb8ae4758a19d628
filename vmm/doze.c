#include "vmm/doze.h"
#include "vmm/container.h"
#include "vmm/hold.h"
#include "vmm/vm.h"
#include <string.h>
#include <time.h>

#define TRIES    100 /* for a thread, which there was room for before */
#define RETRY_NS 10000000

bool doze_off(struct vm *vm, unsigned cpu, uint32_t wakes)
{
	pthread_mutex_lock(&vm->doze.lock);
	/* Who sets one of these wakes those that rest after it. What waits in the UART may have come between the guest's last
	 * look and its rest. */
	bool off = !atomic_load_explicit(&vm->stopping, memory_order_acquire) &&
		   !atomic_load_explicit(&vm->pause.wanted, memory_order_acquire) &&
		   !hold_wanted(vm) && !inject_wants(vm, cpu) && !serial_waits(vm->serial) &&
		   idle_sleep(&vm->idle, wakes);
	if (off)
		vm->doze.asleep[cpu] = true;
	pthread_mutex_unlock(&vm->doze.lock);
	return off;
}

/* Its thread ends, or has: wait for that. With doze.lock, which it takes no more. */
static void bury(struct vm *vm, unsigned cpu)
{
	if (vm->doze.asleep[cpu] && vm->vcpu_thread[cpu])
		vcpu_join(vm, cpu);
}

void doze_settle(struct vm *vm)
{
	pthread_mutex_lock(&vm->doze.lock);
	for (unsigned i = 0; i < vm->kvm.cpus; i++)
		bury(vm, i);
	pthread_mutex_unlock(&vm->doze.lock);
}

static int rise(struct vm *vm, unsigned cpu)
{
	bury(vm, cpu);
	atomic_store_explicit(&vm->vcpu_gone[cpu], false, memory_order_release);
	int rc = vcpu_start_again(vm, cpu);
	if (rc) {
		atomic_store_explicit(&vm->vcpu_gone[cpu], true, memory_order_release);
		return rc;
	}
	vm->doze.asleep[cpu] = false;
	idle_rise(&vm->idle);
	return 0;
}

/* Any thread. */
static void on_wake(struct idle *i)
{
	struct vm *vm = container(struct vm, idle, i);
	loop_post(vm->loop, &vm->doze.rouse);
}

static void rouse(struct loop_work *w)
{
	struct vm *vm = container(struct vm, doze.rouse, w);
	int rc = 0;
	pthread_mutex_lock(&vm->doze.lock);
	for (unsigned i = 0; i < vm->kvm.cpus; i++)
		if (vm->doze.asleep[i] &&
		    !atomic_load_explicit(&vm->stopping, memory_order_acquire) &&
		    !atomic_load_explicit(&vm->pause.wanted, memory_order_acquire)) {
			int one = rise(vm, i);
			rc = one ? one : rc;
		}
	pthread_mutex_unlock(&vm->doze.lock);
	if (!rc) {
		vm->doze.tries = 0;
	} else if (++vm->doze.tries < TRIES) {
		nanosleep(&(struct timespec){.tv_nsec = RETRY_NS}, NULL);
		loop_post(vm->loop, w);
	} else {
		vm_end(vm, END_HOST_ERROR, "no thread for a vCPU that rested: %s", strerror(-rc));
	}
}

void doze_init(struct vm *vm, bool able)
{
	vm->doze = (struct vm_doze){
		.lock = PTHREAD_MUTEX_INITIALIZER, .able = able, .rouse = {.run = rouse}};
	vm->idle.rouse = on_wake;
	atomic_store_explicit(&vm->idle.asleep, 0, memory_order_relaxed);
}
