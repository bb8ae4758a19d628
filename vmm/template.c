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
#include "ipt/fail.h"
#include "ipt/own.h"
#include "vmm/clock.h"
#include "vmm/clone.h"
#include "vmm/error.h"
#include "vmm/fds.h"
#include "vmm/merge.h"
#include "vmm/reclaim.h"
#include "vmm/store.h"
#include <alloca.h>
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

/* ---- the template's process ---------------------------------------------------------------- */

static void answer(const struct vm *vm, const struct link_answer *a, int pidfd)
{
	link_send_surely(vm->links.link_fd, a, sizeof *a, &pidfd, pidfd >= 0);
}

static void refuse(struct link_answer *a, const struct link_request *request, const char *why)
{
	a->status = -errno;
	snprintf(a->words, sizeof a->words, "%s: %s: %s", request->name, why, strerror(errno));
}

/*
 * A clone kept ready: its process is forked and prepared while nobody waits, so that who asks next waits only for its
 * birth. It hears by a link of its own, and ends with the template's process.
 */
static OWN struct {
	int link; /* -1: there is none */
	int pidfd;
	pid_t pid;
} spare = {.link = -1, .pidfd = -1};

/* How long nobody asks before another is made: its fork and its KVM would take the CPUs from the clone that is being born. */
#define SPARE_MS 2

/* What the next clone is born with; what was learned stays in it for the one after. */
static struct birth birth;

static void drop_spare(void)
{
	if (spare.link >= 0)
		close(spare.link);
	if (spare.pidfd >= 0)
		close(spare.pidfd);
	spare.link = spare.pidfd = -1;
}

/* The template's process has one thread, so nobody else has a lock of the C library's: fork(3), which takes them all, would
 * write to pages for that, which template and clones then have each for itself. */
static pid_t fork_alone(void)
{
#ifdef __SANITIZE_THREAD__ /* has a thread of its own */
	return fork();
#else
	return _Fork();
#endif
}

static _Noreturn void spare_main(struct vm *vm, int link)
{
	char error[ERROR_MAX] = "";
	int fds[LINK_FDS_MAX];
	int rc = clone_prepare(vm, error);
	if (rc)
		_exit(1); /* who asks next gets a clone that says why */
	struct pollfd p = {.fd = link, .events = POLLIN};
	ssize_t n;
	do
		poll(&p, 1, -1);
	while ((n = link_receive(link, &birth, sizeof birth, fds)) == -EAGAIN);
	close(link);
	if (n <= 0)
		_exit(0);
	clone_born(vm, &birth, fds, 0, error);
}

static void keep_spare(struct vm *vm)
{
	int link[2];
	if (link_pair(link))
		return;
	spare.pid = fail_call(CLONE_SPARE, fork_alone());
	if (spare.pid == 0) {
		close(link[0]);
		close(vm->links.link_fd); /* the template's: its end must be heard */
		vm_name_process("sp", vm->config.machine.name);
		spare_main(vm, link[1]);
	}
	close(link[1]);
	spare.link = link[0];
	if (spare.pid > 0)
		spare.pidfd = (int)syscall(SYS_pidfd_open, spare.pid, 0);
	if (spare.pidfd < 0)
		drop_spare();
}

/* Give the birth to the spare. False if there is none, or it is gone. */
static bool use_spare(const struct birth *b, const int fds[LINK_FDS_MAX], struct link_answer *a,
		      int *pidfd)
{
	unsigned n = 0;
	while (n < LINK_FDS_MAX && fds[n] >= 0)
		n++;
	size_t bytes = offsetof(struct birth, ahead) + b->pages * sizeof b->ahead[0];
	if (spare.link < 0 || link_send(spare.link, b, bytes, fds, n)) {
		drop_spare();
		return false;
	}
	a->pid = spare.pid;
	*pidfd = spare.pidfd;
	spare.pidfd = -1;
	drop_spare();
	return true;
}

static void fork_clone(struct vm *vm, struct birth *b, const int fds[LINK_FDS_MAX],
		       struct link_answer *a, int *pidfd)
{
	a->pid = fail_call(CLONE_FORK, fork_alone());
	if (a->pid == 0) {
		char error[ERROR_MAX] = "";
		drop_spare();
		close(vm->links.link_fd);
		int rc = clone_prepare(vm, error);
		clone_born(vm, b, fds, rc, error);
	}
	if (a->pid > 0)
		*pidfd = (int)fail_call(CLONE_PIDFD, syscall(SYS_pidfd_open, a->pid, 0));
	if (*pidfd < 0)
		refuse(a, &b->request, "no process for it");
	if (*pidfd < 0 && a->pid > 0) { /* there is one, but it can't be watched */
		kill(a->pid, SIGKILL);
		waitpid(a->pid, NULL, 0);
	}
}

static void make_clone(struct vm *vm, const struct link_request *request,
		       const int fds[LINK_FDS_MAX])
{
	struct birth *b = &birth;
	uint64_t now = clock_ns();
	uint32_t noted = vm->learn ? learn_noted(vm->learn, now) : 0;
	if (noted != b->known) {
		b->shown = learn_predict(vm->learn, now, LEARN_READ, b->show, CLONE_SHOWN_MOST);
		b->pages = learn_predict(vm->learn, now, LEARN_WROTE, b->ahead, CLONE_AHEAD_MOST);
		b->known = noted;
	}
	b->request = *request;
	struct link_answer a = {.id = request->id, .key = request->key};
	int pidfd = -1;
	if (fds[LINK_FDS - 1] < 0) { /* the kernel found no room for them */
		errno = EMFILE;
		refuse(&a, request, "its template can't take its channels");
	} else if (!use_spare(b, fds, &a, &pidfd))
		fork_clone(vm, b, fds, &a, &pidfd);
	answer(vm, &a, pidfd);
	if (pidfd >= 0)
		close(pidfd);
}

/* What clones get of the heap begins on a page of its own, and there is VM_HEAP_KEPT of it. */
static void align_heap(void)
{
	void *end = malloc(VM_HEAP_KEPT);
	/* glibc has 16 bytes before each piece, of which it lends the first 8 to the piece before. */
	size_t piece = (16 - (uintptr_t)end) & (PAGE_SIZE - 1);
	free(end);
	void *stays = malloc(piece + PAGE_SIZE - 8);
	__asm__ volatile("" : : "r"(stays));
	free(malloc(VM_HEAP_KEPT));
}

/* The child of a VM's process: let go of what is the VM's. */
static void leave_the_vm(struct vm *vm, int link)
{
	loop_forget(vm->loop);
	for (unsigned i = 0; i < vm->kvm.cpus; i++)
		munmap(vm->kvm.vcpu[i].run, (size_t)vm->kvm.host->run_bytes);
	munmap(vm->links.mailbox, sizeof *vm->links.mailbox);
	int keep[11 + VM_MAX_DISKS + 2 * VM_MAX_PMEM];
	unsigned n = 0;
	keep[n++] = fault_device();
	keep[n++] = link;
	keep[n++] = vm->links.pool->fd;
	keep[n++] = ipt_fd(vm->links.table);
	keep[n++] = vm->links.kvm->fd;
	keep[n++] = vm->links.news_fd;
	if (vm->links.store && vm->links.store->mem_fd >= 0)
		keep[n++] = vm->links.store->mem_fd;
	if (vm->links.store && vm->links.store->file_fd >= 0)
		keep[n++] = vm->links.store->file_fd;
	for (unsigned i = 0; i < vm->config.disks; i++)
		keep[n++] = vm->config.disk[i].fd;
	for (unsigned i = 0; i < vm->config.pmems; i++) {
		keep[n++] = vm->links.pmem[i]->file->fd;
		keep[n++] = vm->links.pmem[i]->file->write_fd;
	}
	fds_close_all_but(keep, n);
	vm->links.link_fd = link;
	align_heap();
	malloc_trim(VM_HEAP_KEPT);
}

/* Serve the host's requests, in frames that begin on a page of their own: what a clone writes to of this stack is then
 * that page, and the frames above stay the template's. */
static __attribute__((noinline)) _Noreturn void serve(struct vm *vm, int link);

static _Noreturn void template_main(struct vm *vm, int link, const char *name)
{
	leave_the_vm(vm, link);
	vm_name_process("tm", name);
	fail_be(FAIL_VM, name);
	char *here = alloca(1);
	here = alloca((uintptr_t)here & (PAGE_SIZE - 1));
	__asm__ volatile("" : : "r"(here));
	serve(vm, link);
}

static _Noreturn void serve(struct vm *vm, int link)
{
	for (;;) {
		struct pollfd p = {.fd = link, .events = POLLIN};
		struct link_request request;
		int fds[LINK_FDS_MAX];
		if (poll(&p, 1, spare.link < 0 ? SPARE_MS : -1) == 0) {
			keep_spare(vm); /* nobody asks just now */
			poll(&p, 1, -1);
		}
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
		merge_set_domain(vm->links.merging, id,
				 merge_domain(vm->links.merging, vm->links.id));
		const struct reclaim_desk *d = reclaim_desk(vm->links.reclaim, vm->links.id);
		if (d)
			reclaim_desk_clear(vm->links.reclaim, id, d->shares, d->min, d->limit);
		reclaim_set_domain(vm->links.reclaim, id,
				   reclaim_domain(vm->links.reclaim, vm->links.id));
		a->template_id = vm->links.id.v;
		a->id = id.v;
		vm->learn = learn_create();
		a->pid = fail_call(TEMPLATE_FORK, fork());
		if (a->pid == 0)
			template_main(vm, link, request->name);
		if (a->pid > 0)
			*pidfd = (int)fail_call(CLONE_PIDFD, syscall(SYS_pidfd_open, a->pid, 0));
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
