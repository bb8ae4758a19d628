/*
 * Templates and clones.
 *
 * A VM that stands still is frozen by its own process: KVM's state goes into memory, the window is write-protected,
 * the table makes the VM's id a template's (ipt_vm_freeze), and the process forks. The child is the template's
 * process. It never runs the guest; it waits on its link for requests and forks clones from itself. A clone has by
 * the fork what a VM's process has: the window's mappings, without page tables; devices with their queues, the
 * UART, KVM's state. What the kernel keeps for a process it makes anew: KVM's VM and vCPUs, userfaultfd, io_uring,
 * threads.
 */
#include "vmm/clock.h"
#include "vmm/error.h"
#include "vmm/fds.h"
#include "vmm/identity.h"
#include "vmm/vm.h"
#include <errno.h>
#include <malloc.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define AHEAD_MOST 512 /* pages that a clone is given before it runs */

/* ---- clones -------------------------------------------------------------------------------- */

/* What a VM's process has by the fork and must not go on with. */
static void forget_the_past(struct vm *vm)
{
	vm->said = 0;
	vm->stopping = vm->ended = false;
	memset(vm->vcpu_thread, 0, sizeof vm->vcpu_thread);
	for (unsigned i = 0; i < MACHINE_MAX_CPUS; i++)
		vm->vcpu_gone[i] = false;
	vm->starved.n = 0;
	loop_unpost(vm->loop, &vm->pause.look);
	pause_init(vm);
}

static int become(struct vm *vm, const struct link_request *request, const gfn_t *ahead,
		  unsigned pages, char *error)
{
	const struct machine *m = &vm->config.machine;
	int rc = memory_adopt(&vm->memory, vm->links.id, vm->links.mailbox, vm->learn, error);
	if (rc)
		return rc;
	if (request->predict)
		memory_copy_ahead(&vm->memory, ahead, pages);
	rc = kvm_vm_create(&vm->kvm, vm->links.kvm, m, &vm->memory.window, error);
	if (rc)
		return rc;
	rc = identity_renew(vm, request->number);
	if (rc)
		return errorf(error, rc, "%s: %s", m->name,
			      rc == -EAGAIN ? "the pool has no frame for its generation id"
					    : strerror(-rc));
	rc = loop_renew(vm->loop, VM_LOOP_ENTRIES);
	if (rc)
		return errorf(error, rc, "%s: io_uring: %s", m->name, strerror(-rc));
	board_renew(vm);
	return vm_watch(vm, error);
}

/* KVM writes to the guest's memory when it gets some of the state (its clock's page, for one), and so takes faults
 * that the loop has to serve: another thread's work. */
int template_wake(struct vm *vm, char *error)
{
	int rc = kvm_state_load(&vm->kvm, &vm->frozen, vm->config.machine.name, error);
	if (rc)
		return rc;
	board_resume(vm);
	identity_announce(vm);
	return 0;
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

static _Noreturn void clone_main(struct vm *vm, const struct link_request *request,
				 const int fds[LINK_FDS_MAX], const gfn_t *ahead, unsigned pages)
{
	char error[ERROR_MAX] = "";
	close(vm->links.link_fd); /* the template's */
	struct mailbox *mb = mmap(NULL, sizeof *mb, PROT_READ | PROT_WRITE, MAP_SHARED, fds[1], 0);
	close(fds[1]);
	if (mb == MAP_FAILED)
		_exit(1);
	vm->links.mailbox = mb;
	vm->links.link_fd = fds[0];
	vm->links.console_fd = fds[2];
	vm->links.agent_fd = fds[3];
	vm->links.id = vmid(request->id);
	snprintf(vm->config.machine.name, sizeof vm->config.machine.name, "%s", request->name);
	vm_name_process("vm", request->name);
	forget_the_past(vm);
	int rc = adopt_sets(vm, fds + LINK_FDS, error);
	if (!rc)
		rc = become(vm, request, ahead, pages, error);
	if (rc)
		vm_give_up(vm, *error ? error : strerror(-rc));
	vm_run(vm);
}

/* ---- the template's process ---------------------------------------------------------------- */

static void answer(const struct vm *vm, const struct link_answer *a, int pidfd)
{
	while (link_send(vm->links.link_fd, a, sizeof *a, &pidfd, pidfd >= 0) == -EAGAIN) {
		struct pollfd p = {.fd = vm->links.link_fd, .events = POLLOUT};
		poll(&p, 1, -1);
	}
}

static void refuse(struct link_answer *a, const struct link_request *request, const char *why)
{
	a->status = -errno;
	snprintf(a->words, sizeof a->words, "%s: %s: %s", request->name, why, strerror(errno));
}

static void make_clone(struct vm *vm, const struct link_request *request,
		       const int fds[LINK_FDS_MAX])
{
	static gfn_t ahead[AHEAD_MOST];
	static uint32_t known;
	static unsigned pages;
	uint32_t noted = vm->learn ? vm->learn->n : 0;
	if (noted != known) {
		pages = learn_predict(vm->learn, ahead, AHEAD_MOST);
		known = noted;
	}
	struct link_answer a = {.id = request->id};
	if (fds[LINK_FDS - 1] < 0) { /* the kernel found no room for them */
		errno = EMFILE;
		refuse(&a, request, "its template can't take its channels");
		answer(vm, &a, -1);
		return;
	}
	a.pid = fork();
	if (a.pid == 0)
		clone_main(vm, request, fds, ahead, pages);
	int pidfd = -1;
	if (a.pid > 0)
		pidfd = (int)syscall(SYS_pidfd_open, a.pid, 0);
	if (pidfd < 0)
		refuse(&a, request, "no process for it");
	if (pidfd < 0 && a.pid > 0) { /* there is one, but it can't be watched */
		kill(a.pid, SIGKILL);
		waitpid(a.pid, NULL, 0);
	}
	answer(vm, &a, pidfd);
	if (pidfd >= 0)
		close(pidfd);
}

/* The child of a VM's process: let go of what is the VM's. */
static void leave_the_vm(struct vm *vm, int link)
{
	loop_forget(vm->loop);
	for (unsigned i = 0; i < vm->kvm.cpus; i++)
		munmap(vm->kvm.vcpu[i].run, (size_t)vm->kvm.host->run_bytes);
	munmap(vm->links.mailbox, sizeof *vm->links.mailbox);
	int keep[8 + VM_MAX_DISKS + 2 * VM_MAX_PMEM];
	unsigned n = 0;
	keep[n++] = link;
	keep[n++] = vm->links.pool->fd;
	keep[n++] = ipt_fd(vm->links.table);
	keep[n++] = vm->links.kvm->fd;
	keep[n++] = vm->links.news_fd;
	for (unsigned i = 0; i < vm->config.disks; i++)
		keep[n++] = vm->config.disk[i].fd;
	for (unsigned i = 0; i < vm->config.pmems; i++) {
		keep[n++] = vm->links.pmem[i]->file->fd;
		keep[n++] = vm->links.pmem[i]->file->write_fd;
	}
	fds_close_all_but(keep, n);
	vm->links.link_fd = link;
	malloc_trim(0);
}

static _Noreturn void template_main(struct vm *vm, int link, const char *name)
{
	leave_the_vm(vm, link);
	vm_name_process("tm", name);
	for (;;) {
		struct pollfd p = {.fd = link, .events = POLLIN};
		struct link_request request;
		int fds[LINK_FDS_MAX];
		poll(&p, 1, -1);
		ssize_t n = link_receive(link, &request, sizeof request, fds);
		if (n == 0)
			_exit(0); /* the host is gone, or wants no more clones */
		if (n < 0)
			continue;
		request.name[IPT_NAME_LEN - 1] = 0;
		if (request.op == LINK_CLONE)
			make_clone(vm, &request, fds);
		link_close(fds);
	}
}

/* ---- freezing ------------------------------------------------------------------------------ */

void template_make(struct vm *vm, const struct link_request *request, int link,
		   struct link_answer *a, int *pidfd)
{
	char error[ERROR_MAX] = "";
	vmid_t id = INVALID_VMID;
	int rc = kvm_state_save(&vm->kvm, &vm->frozen, vm->config.machine.name, error);
	if (!rc)
		rc = memory_freeze(&vm->memory, error);
	if (!rc) {
		rc = ipt_vm_freeze(vm->links.table, vm->links.id, request->name, &id);
		if (rc)
			errorf(error, rc, "%s: can't become a template: %s", request->name,
			       strerror(-rc));
	}
	if (!rc) {
		a->template_id = vm->links.id.v;
		a->id = id.v;
		vm->learn = learn_create();
		a->pid = fork();
		if (a->pid == 0)
			template_main(vm, link, request->name);
		if (a->pid > 0)
			*pidfd = (int)syscall(SYS_pidfd_open, a->pid, 0);
		if (*pidfd < 0)
			rc = errorf(error, -errno, "%s: no process for it: %s", request->name,
				    strerror(errno));
		vm->links.id = id;
		memory_go_on(&vm->memory, id, vm->learn);
	}
	kvm_state_free(&vm->frozen);
	a->status = rc;
	snprintf(a->words, sizeof a->words, "%.199s", error);
}
