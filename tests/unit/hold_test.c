/* Standing still (vmm/hold.c): threads play vCPUs. */
#include "vmm/clock.h"
#include "vmm/hold.h"
#include "vmm/vm.h"
#include <criterion/criterion.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define CPUS 3

static struct vm vm;
static _Atomic bool stop, absent, busy;
static _Atomic uint64_t steps[CPUS]; /* what each did while it wasn't held */

static void *vcpu(void *arg)
{
	unsigned cpu = (unsigned)(uintptr_t)arg;
	while (!atomic_load(&stop)) {
		if (hold_wanted(&vm) && !(cpu == 1 && atomic_load(&absent))) {
			hold_wait(&vm, cpu);
			continue;
		}
		atomic_fetch_add(&steps[cpu], 1);
		if (!atomic_load(&busy))
			usleep(200);
	}
	return NULL;
}

static pthread_t thread[CPUS];

static void begin(void)
{
	vm.kvm.cpus = CPUS;
	vm.memory.uffd = eventfd(0, EFD_CLOEXEC); /* readable: a page is waited for */
	cr_assert_geq(vm.memory.uffd, 0);
	for (uintptr_t i = 0; i < CPUS; i++)
		cr_assert_eq(pthread_create(&thread[i], NULL, vcpu, (void *)i), 0);
}

static void end(void)
{
	atomic_store(&stop, true);
	for (unsigned i = 0; i < CPUS; i++)
		pthread_join(thread[i], NULL);
}

static uint64_t all_steps(void)
{
	uint64_t n = 0;
	for (unsigned i = 0; i < CPUS; i++)
		n += atomic_load(&steps[i]);
	return n;
}

/* Waits until each has gone on. */
static bool all_go_on(void)
{
	uint64_t was[CPUS], until = clock_ns() + 10 * UINT64_C(1000000000);
	for (unsigned i = 0; i < CPUS; i++)
		was[i] = atomic_load(&steps[i]);
	for (unsigned i = 0; i < CPUS; i++)
		while (atomic_load(&steps[i]) == was[i])
			if (clock_ns() > until)
				return false;
	return true;
}

/* On a busy machine a thread may come too late: then once more. */
static bool holds(void)
{
	for (int i = 0; i < 100; i++) {
		if (hold_still(&vm))
			return true;
		usleep(20000);
	}
	return false;
}

Test(hold, nobody_moves_while_all_are_held, .timeout = 60)
{
	begin();
	for (int i = 0; i < 200; i++) {
		cr_assert(holds(), "round %d", i);
		uint64_t before = all_steps();
		if (i % 4 == 0)
			usleep(1000);
		cr_assert_eq(all_steps(), before, "round %d", i);
		hold_end(&vm);
		/* At times the next hold begins before they have gone on. */
		if (i % 3 == 0)
			cr_assert(all_go_on(), "round %d", i);
	}
	end();
}

Test(hold, a_vcpu_that_does_not_come_lets_the_others_go, .timeout = 60)
{
	begin();
	atomic_store(&absent, true);
	cr_expect_not(hold_still(&vm));
	cr_expect_not(hold_wanted(&vm));
	cr_expect(all_go_on());
	atomic_store(&absent, false);
	cr_expect(holds());
	hold_end(&vm);
	end();
}

Test(hold, who_waits_for_a_page_is_not_waited_for, .timeout = 60)
{
	begin();
	atomic_store(&absent, true);
	cr_assert_eq(eventfd_write(vm.memory.uffd, 1), 0);
	uint32_t before = vm.hold.said;
	cr_expect_not(hold_still(&vm));
	cr_expect_leq(vm.hold.said - before, CPUS - 1u);
	cr_expect(all_go_on());
	end();
}

Test(hold, a_busy_guest_is_left_alone, .timeout = 60)
{
	begin();
	atomic_store(&busy, true);
	while (clock_process_cpu_ns() - clock_cpu_ns() < 50000000)
		usleep(1000);
	bool left = false;
	/* As if it had used all this in 10 ms; once more if we were late. */
	for (int i = 0; i < 100 && !left; i++) {
		uint32_t before = vm.hold.last;
		vm.hold.cpu_ns = 0;
		vm.hold.at_ns = clock_ns() - 10000000;
		if (hold_still(&vm))
			hold_end(&vm);
		left = vm.hold.last == before;
	}
	cr_expect(left);
	end();
}

Test(hold, a_paused_guest_is_not_held)
{
	vm.kvm.cpus = CPUS;
	vm.pause.stillness = VM_PARKS;
	cr_expect_not(hold_still(&vm));
	cr_expect_not(hold_wanted(&vm));
}
