#include "ipt/fail.h"
#include "vmm/clock.h"
#include "vmm/doze.h"
#include "vmm/error.h"
#include "vmm/hold.h"
#include "vmm/stack.h"
#include "vmm/vm.h"
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

#define VCPU_STACK  (64 * KiB)
#define KICK_SIGNAL SIGUSR1

/* Not in the frame of who calls it: what an idle guest's thread has of its stack is to be one page. */
#define APART __attribute__((noinline, cold))

static void on_kick(int signal)
{
	(void)signal; /* it is there to interrupt KVM_RUN */
}

/* The registers, for words about a guest that stopped where it should not. */
static void describe(struct vm *vm, unsigned cpu, char *out, size_t size)
{
	struct kvm_regs r;
	struct kvm_sregs s;
	int fd = vm->kvm.vcpu[cpu].fd;
	if (ioctl(fd, KVM_GET_REGS, &r) < 0 || ioctl(fd, KVM_GET_SREGS, &s) < 0) {
		snprintf(out, size, "registers unknown: %s", strerror(errno));
		return;
	}
	snprintf(out, size,
		 "vCPU %u: rip %llx rsp %llx rflags %llx cs %x (cpl %u) cr0 %llx cr2 %llx cr3 %llx "
		 "cr4 "
		 "%llx efer %llx; rax %llx rbx %llx rcx %llx rdx %llx rsi %llx rdi %llx rbp %llx "
		 "r8 %llx "
		 "r9 %llx r10 %llx r11 %llx r12 %llx r13 %llx r14 %llx r15 %llx",
		 cpu, r.rip, r.rsp, r.rflags, s.cs.selector, s.ss.dpl, s.cr0, s.cr2, s.cr3, s.cr4,
		 s.efer, r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.r8, r.r9, r.r10, r.r11,
		 r.r12, r.r13, r.r14, r.r15);
}

static APART void end_with_registers(struct vm *vm, unsigned cpu, enum vm_end end, const char *what)
{
	char registers[MAILBOX_WORDS - 256];
	describe(vm, cpu, registers, sizeof registers);
	vm_end(vm, end, "%s; %s", what, registers);
}

static APART void internal_error(struct vm *vm, unsigned cpu, const struct kvm_run *run)
{
	static const char *const kinds[] = {
		[KVM_INTERNAL_ERROR_EMULATION] = "an instruction that it can't emulate",
		[KVM_INTERNAL_ERROR_SIMUL_EX] = "exceptions at the same time",
		[KVM_INTERNAL_ERROR_DELIVERY_EV] = "an exit while delivering an event",
		[KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON] = "an unexpected exit",
	};
	unsigned kind = run->internal.suberror;
	char words[200];
	int n = snprintf(words, sizeof words, "KVM internal error %u (%s)", kind,
			 kind < sizeof kinds / sizeof *kinds && kinds[kind] ? kinds[kind]
									    : "unknown");
	for (unsigned i = 0; i < run->internal.ndata && i < 4 && n < (int)sizeof words; i++)
		n += snprintf(words + n, sizeof words - (size_t)n, "%s%llx", i ? " " : ", data ",
			      (unsigned long long)run->internal.data[i]);
	end_with_registers(vm, cpu, END_KVM_ERROR, words);
}

/* An exit after which there are no more. */
static APART void last_exit(struct vm *vm, unsigned cpu, const struct kvm_run *run)
{
	char words[128];
	switch (run->exit_reason) {
	case KVM_EXIT_SHUTDOWN:
		end_with_registers(vm, cpu, END_TRIPLE, "triple fault");
		break;
	case KVM_EXIT_SYSTEM_EVENT:
		snprintf(words, sizeof words, "KVM system event %u", run->system_event.type);
		if (run->system_event.type == KVM_SYSTEM_EVENT_SHUTDOWN)
			vm_end(vm, END_POWER_OFF, "the guest powered off");
		else if (run->system_event.type == KVM_SYSTEM_EVENT_RESET)
			vm_end(vm, END_REBOOT, "the guest asked for a reset");
		else
			end_with_registers(vm, cpu, END_KVM_ERROR, words);
		break;
	case KVM_EXIT_INTERNAL_ERROR:
		internal_error(vm, cpu, run);
		break;
	case KVM_EXIT_FAIL_ENTRY:
		snprintf(words, sizeof words,
			 "the processor refused the guest's state, reason 0x%llx",
			 (unsigned long long)run->fail_entry.hardware_entry_failure_reason);
		end_with_registers(vm, cpu, END_KVM_ERROR, words);
		break;
	default:
		snprintf(words, sizeof words, "KVM exit %u, which nothing here handles",
			 run->exit_reason);
		end_with_registers(vm, cpu, END_KVM_ERROR, words);
		break;
	}
}

/* One exit. False: this vCPU is done. */
static bool handle(struct vm *vm, unsigned cpu, struct kvm_run *run)
{
	switch (run->exit_reason) {
	case KVM_EXIT_IO: {
		uint8_t *data = (uint8_t *)run + run->io.data_offset;
		for (uint32_t i = 0; i < run->io.count; i++, data += run->io.size)
			board_port(vm, run->io.port, data, run->io.size,
				   run->io.direction == KVM_EXIT_IO_OUT);
		return true;
	}
	case KVM_EXIT_MMIO:
		board_mmio(vm, gpa(run->mmio.phys_addr), run->mmio.data, run->mmio.len,
			   run->mmio.is_write);
		return true;
	case KVM_EXIT_INTR:
	case KVM_EXIT_IRQ_WINDOW_OPEN:
	case KVM_EXIT_IOAPIC_EOI:
	case KVM_EXIT_HLT:
		return true;
	default:
		last_exit(vm, cpu, run);
		return false;
	}
}

/* Is it a read that idle_rest answers? */
static bool is_rest(const struct kvm_run *run)
{
	return run->exit_reason == KVM_EXIT_IO && run->io.port == MACHINE_IDLE_PORT &&
	       run->io.direction == KVM_EXIT_IO_IN;
}

static APART void run_failed(struct vm *vm, unsigned cpu)
{
	char words[128];
	snprintf(words, sizeof words, "KVM_RUN: %s", strerror(errno));
	end_with_registers(vm, cpu, END_KVM_ERROR, words);
}

/* What the guest's last access still needs of KVM: entering with immediate_exit completes it and comes back
 * (api.rst, 5, KVM_EXIT_IO and KVM_EXIT_MMIO), or brings the next part of the same access. */
static bool complete_access(struct vm *vm, unsigned cpu, uint64_t *remaps)
{
	struct kvm_vcpu *v = &vm->kvm.vcpu[cpu];
	for (;;) {
		v->run->immediate_exit = 1;
		int rc = fail_call(KVM_COMPLETE, ioctl(v->fd, KVM_RUN, 0));
		if (rc < 0 && errno == EINTR)
			return true;
		if (rc < 0 && (errno == EAGAIN ||
			       (errno == EFAULT && dax_was_remapping(&vm->memory, remaps))))
			continue;
		if (rc < 0) {
			run_failed(vm, cpu);
			return false;
		}
		if (!handle(vm, cpu, v->run))
			return false; /* the end is told */
	}
}

/* A clone's vCPUs begin where they were frozen. */
static APART bool wake(struct vm *vm)
{
	char error[ERROR_MAX] = "";
	int rc = clone_wake(vm, error);
	for (unsigned i = 1; !rc && i < vm->kvm.cpus; i++) {
		rc = vcpu_start(vm, i);
		if (rc)
			errorf(error, rc, "no thread for vCPU %u: %s", i, strerror(-rc));
	}
	if (rc)
		vm_end(vm, END_HOST_ERROR, "%s", error);
	return !rc;
}

static void *vcpu_main(void *arg)
{
	const struct vm_start *start = arg;
	struct vm *vm = start->vm;
	unsigned cpu = start->cpu;
	struct kvm_vcpu *v = &vm->kvm.vcpu[cpu];
	inject_thread(vm, cpu);
	const bool born = vm->frozen.cpus && !start->again;
	if (cpu == 0 && born && !wake(vm)) {
		atomic_store_explicit(&vm->vcpu_gone[0], true, memory_order_release);
		return NULL;
	}
	int rc = sandbox_narrow(SECCOMP_VCPU);
	if (rc) {
		vm_end(vm, END_HOST_ERROR, "seccomp for vCPU %u: %s", cpu, strerror(-rc));
		atomic_store_explicit(&vm->vcpu_gone[cpu], true, memory_order_release);
		return NULL;
	}
	if (born) {
		clone_go(vm, cpu);
		stack_trim(VCPU_STACK / 2); /* its birth took more of it than an idle guest does */
	}
	if (cpu == 0 && !start->again) {
		atomic_store_explicit(&vm->links.mailbox->run_started_ns, clock_ns(),
				      memory_order_release);
		vm_set_state(vm, VM_RUNNING);
	}
	uint64_t remaps = atomic_load_explicit(&vm->memory.remaps, memory_order_acquire);
	bool first = cpu == 0 && !start->again;
	for (;;) {
		/* Who kicks says why first. So what a kick left is cleared before we look why: a later one then is
		 * seen by KVM, and one that comes after its reason is gone doesn't keep us out for ever. */
		if (v->run->immediate_exit) {
			v->run->immediate_exit = 0;
			atomic_thread_fence(memory_order_seq_cst);
		}
		if (atomic_load_explicit(&vm->stopping, memory_order_acquire))
			break;
		if (hold_wanted(vm)) {
			hold_wait(vm, cpu);
			continue;
		}
		if (atomic_load_explicit(&vm->pause.wanted, memory_order_acquire)) {
			if (!complete_access(vm, cpu, &remaps))
				break;
			pause_wait(vm, cpu);
			continue;
		}
		if (!inject_may_enter(vm, cpu))
			continue;
		rc = fail_call(KVM_RUN, ioctl(v->fd, KVM_RUN, 0));
		if (rc < 0 && (errno == EINTR || errno == EAGAIN))
			continue;
		if (rc < 0 && errno == EFAULT && dax_was_remapping(&vm->memory, &remaps))
			continue;
		if (rc < 0) {
			run_failed(vm, cpu);
			break;
		}
		if (first) {
			first = false;
			atomic_store_explicit(&vm->links.mailbox->first_exit_ns, clock_ns(),
					      memory_order_relaxed);
		}
		atomic_fetch_add_explicit(&vm->links.mailbox->exits[v->run->exit_reason & 63], 1,
					  memory_order_relaxed);
		const bool rests = vm->doze.able && is_rest(v->run);
		const uint32_t wakes = idle_wakes(&vm->idle);
		if (!handle(vm, cpu, v->run))
			break;
		if (rests && wakes == idle_wakes(&vm->idle)) {
			if (!complete_access(vm, cpu, &remaps))
				break;
			if (doze_off(vm, cpu, wakes))
				break;
		}
	}
	atomic_store_explicit(&vm->vcpu_gone[cpu], true, memory_order_release);
	loop_post(vm->loop, &vm->pause.look); /* who waits for it to park waits no longer */
	return NULL;
}

/* Of each vCPU's thread, with a guard below it. A clone has them by the fork. */
static uint8_t *stacks[MACHINE_MAX_CPUS];

static int take_stack(unsigned cpu)
{
	if (stacks[cpu])
		return 0;
	void *at = mmap(NULL, VCPU_STACK, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK | MAP_NORESERVE, -1, 0);
	if (at == MAP_FAILED)
		return -errno;
	if (mprotect(at, PAGE_SIZE, PROT_NONE) < 0) {
		int rc = -errno;
		munmap(at, VCPU_STACK);
		return rc;
	}
	stacks[cpu] = at;
	return 0;
}

static int start(struct vm *vm, unsigned cpu, bool again)
{
	/* Not the heap's: with its first free the thread would get a cache of its own. */
	vm->start[cpu] = (struct vm_start){vm, cpu, again};
	pthread_attr_t attr;
	pthread_attr_init(&attr);
	pthread_attr_setstack(&attr, stacks[cpu], VCPU_STACK);
	int rc = fail_point(FAIL_VM_THREAD);
	if (!rc)
		rc = pthread_create(&vm->vcpu_thread[cpu], &attr, vcpu_main, &vm->start[cpu]);
	if (rc)
		vm->vcpu_thread[cpu] = 0;
	pthread_attr_destroy(&attr);
	return -rc;
}

int vcpu_start(struct vm *vm, unsigned cpu)
{
	struct sigaction action = {.sa_handler = on_kick};
	sigaction(KICK_SIGNAL, &action, NULL);
	int rc = take_stack(cpu);
	return rc ? rc : start(vm, cpu, false);
}

int vcpu_start_again(struct vm *vm, unsigned cpu)
{
	return start(vm, cpu, true);
}

void vcpu_join(struct vm *vm, unsigned cpu)
{
	pthread_join(vm->vcpu_thread[cpu], NULL);
	vm->vcpu_thread[cpu] = 0;
	madvise(stacks[cpu], VCPU_STACK, MADV_DONTNEED);
}

static bool kick(struct vm *vm, unsigned cpu)
{
	pthread_mutex_lock(&vm->doze.lock);
	bool there = vm->vcpu_thread[cpu] &&
		     !atomic_load_explicit(&vm->vcpu_gone[cpu], memory_order_acquire);
	if (there) {
		/* Read by KVM before it enters the guest, so the signal can't come too early to be noticed
		 * (api.rst, struct kvm_run, immediate_exit). */
		vm->kvm.vcpu[cpu].run->immediate_exit = 1;
		pthread_kill(vm->vcpu_thread[cpu], KICK_SIGNAL);
	}
	pthread_mutex_unlock(&vm->doze.lock);
	return there;
}

void vcpu_kick_all(struct vm *vm)
{
	for (unsigned i = 0; i < vm->kvm.cpus; i++)
		kick(vm, i);
	board_wake(vm);
}

unsigned vcpu_stop_all(struct vm *vm, unsigned ms)
{
	atomic_store_explicit(&vm->stopping, true, memory_order_release);
	pause_abandon(vm);
	for (unsigned waited = 0;; waited++) {
		unsigned left = 0;
		for (unsigned i = 0; i < vm->kvm.cpus; i++)
			left += kick(vm, i);
		board_wake(vm);
		if (!left || waited >= ms)
			return left;
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	}
}
