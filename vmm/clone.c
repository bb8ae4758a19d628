#include "vmm/clone.h"
#include "ipt/fail.h"
#include "vmm/doze.h"
#include "vmm/error.h"
#include "vmm/identity.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* What a VM's process has by the fork and must not go on with. */
static void forget_the_past(struct vm *vm)
{
	vm->said = 0;
	vm->stopping = vm->ended = false;
	vm->birth = BIRTH_PREPARED;
	memset(vm->vcpu_thread, 0, sizeof vm->vcpu_thread);
	for (unsigned i = 0; i < MACHINE_MAX_CPUS; i++)
		vm->vcpu_gone[i] = false;
	vm->starved.n = 0;
	loop_unpost(vm->loop, &vm->pause.look);
	loop_unpost(vm->loop, &vm->reclaiming);
	loop_unpost(vm->loop, &vm->doze.rouse);
	pause_init(vm);
	doze_init(vm, vm->doze.able);
	inject_init(vm);
}

int clone_prepare(struct vm *vm, char *error)
{
	forget_the_past(vm);
	int rc = memory_adopt(&vm->memory, error);
	if (!rc)
		rc = kvm_vm_create_again(&vm->kvm, &vm->config.machine, &vm->memory.window, error);
	if (!rc)
		rc = kvm_state_begin(&vm->kvm, &vm->frozen, vm->config.machine.name, error);
	if (rc)
		return rc;
	rc = loop_renew(vm->loop, VM_LOOP_ENTRIES);
	if (rc)
		return errorf(error, rc, "%s: io_uring: %s", vm->config.machine.name,
			      strerror(-rc));
	rc = vcpu_start(vm, 0);
	if (rc)
		return errorf(error, rc, "%s: no thread for vCPU 0: %s", vm->config.machine.name,
			      strerror(-rc));
	return 0;
}

/* ---- birth, on two threads ----------------------------------------------------------------- */

static void reach(struct vm *vm, enum vm_birth birth)
{
	pthread_mutex_lock(&vm->pause.lock);
	atomic_store_explicit(&vm->birth, birth, memory_order_release);
	pthread_cond_broadcast(&vm->pause.go);
	pthread_mutex_unlock(&vm->pause.lock);
}

/* False: the VM ends before it is so far. */
static bool await(struct vm *vm, enum vm_birth birth)
{
	bool is = atomic_load_explicit(&vm->birth, memory_order_acquire) >= birth;
	if (is)
		return true;
	pthread_mutex_lock(&vm->pause.lock);
	while (!(is = atomic_load_explicit(&vm->birth, memory_order_acquire) >= birth) &&
	       !atomic_load_explicit(&vm->stopping, memory_order_acquire))
		pthread_cond_wait(&vm->pause.go, &vm->pause.lock);
	pthread_mutex_unlock(&vm->pause.lock);
	return is;
}

/* What the guest writes to files that it shares is noted in sets of its own from now on. */
static int adopt_sets(struct vm *vm, const int *fds, char *error)
{
	int rc = 0;
	for (unsigned i = 0; !rc && i < vm->config.pmems; i++)
		if (vm->links.pmem[i]->share)
			rc = pmem_adopt(vm->links.pmem[i], *fds++, error);
	return rc;
}

/* The descriptor behind those; 0: none came. */
static int swap_file(const struct vm *vm, const int fds[LINK_FDS_MAX])
{
	unsigned at = LINK_FDS;
	for (unsigned i = 0; i < vm->config.pmems; i++)
		at += vm->links.pmem[i]->share;
	return fds[at] > 0 ? fds[at] : 0;
}

static int become(struct vm *vm, const struct birth *b, char *error)
{
	memory_become(&vm->memory, vm->links.id, vm->links.mailbox, vm->learn);
	reach(vm, BIRTH_NAMED);
	/* Not one that learns: what it is given it wouldn't note. */
	if (b->request.predict && vm->memory.learner < 0) {
		memory_copy_ahead(&vm->memory, b->ahead,
				  b->pages < CLONE_AHEAD_MOST ? b->pages : CLONE_AHEAD_MOST);
		vm_serve_faults(vm); /* of the vCPU's thread, which is getting its state */
		for (unsigned i = 0; i < b->shown && i < CLONE_SHOWN_MOST; i++)
			memory_show_ahead(&vm->memory, b->show[i]);
	}
	int rc = fail_rc(CLONE_IDENTITY, identity_renew(vm, b->request.number));
	if (rc)
		return errorf(error, rc, "%s: its generation id: %s", vm->config.machine.name,
			      rc == -EAGAIN ? "the pool has no free frame" : strerror(-rc));
	board_renew(vm);
	balloon_tell(vm);
	rc = vm_watch(vm, error);
	if (!rc)
		reach(vm, BIRTH_GIVEN);
	return rc;
}

_Noreturn void clone_born(struct vm *vm, struct birth *b, const int fds[LINK_FDS_MAX], int rc,
			  char *error)
{
	struct mailbox *mb = fail_call(CLONE_MAILBOX, mmap(NULL, sizeof *mb, PROT_READ | PROT_WRITE,
							   MAP_SHARED, fds[1], 0));
	close(fds[1]);
	if (mb == MAP_FAILED)
		_exit(1);
	vm->links.mailbox = mb;
	vm->links.link_fd = fds[0];
	vm->links.console_fd = fds[2];
	vm->links.agent_fd = fds[3];
	vm->links.id = vmid(b->request.id);
	snprintf(vm->config.machine.name, sizeof vm->config.machine.name, "%s", b->request.name);
	vm_name_process("vm", b->request.name);
	fail_be(FAIL_VM, b->request.name);
	if (!rc)
		rc = adopt_sets(vm, fds + LINK_FDS, error);
	vm->store.own_fd = swap_file(vm, fds);
	if (!rc)
		rc = become(vm, b, error);
	madvise(b, sizeof *b, MADV_DONTNEED);
	if (rc)
		vm_give_up(vm, *error ? error : strerror(-rc));
	vm_run(vm);
}

/* KVM writes to the guest's memory when it gets some of the state (its clock's page, for one), and so takes faults
 * that the loop has to serve: another thread's work. */
int clone_wake(struct vm *vm, char *error)
{
	if (!await(vm, BIRTH_NAMED))
		return 0;
	vm_name_process("vm", vm->config.machine.name); /* the thread has one of its own */
	return kvm_state_load(&vm->kvm, &vm->frozen, vm->config.machine.name, error);
}

void clone_go(struct vm *vm, unsigned cpu)
{
	if (!await(vm, cpu ? BIRTH_OVER : BIRTH_GIVEN) || cpu)
		return;
	board_resume(vm);
	identity_announce(vm);
	reach(vm, BIRTH_OVER);
}
