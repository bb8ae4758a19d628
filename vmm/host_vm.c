/* A VM as the host sees it: its process's start, its console, its end. */
#include "vmm/clock.h"
#include "vmm/error.h"
#include "vmm/host_private.h"
#include <errno.h>
#include <linux/close_range.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- a VM's end ---------------------------------------------------------------------------- */

/* Read the console dry; false if the caller took no more for now. */
static bool pump_console(struct host_vm *vm)
{
	char bytes[4096];
	for (;;) {
		/* Peek, give, then take what was taken: what the caller refuses stays in the
		 * socket. */
		ssize_t n = recv(vm->console_fd, bytes, sizeof bytes, MSG_PEEK | MSG_DONTWAIT);
		if (n <= 0)
			return true;
		size_t took = vm->host->events.console(vm->host->events.ctx, vm, bytes, (size_t)n);
		if (took && recv(vm->console_fd, bytes, took, MSG_DONTWAIT) < 0)
			return true;
		if (took < (size_t)n)
			return false;
	}
}

static void finish(struct host_vm *vm);

static void on_console(struct host_source *s, uint32_t events)
{
	struct host_vm *vm = container(struct host_vm, on_console, s);
	bool dry = pump_console(vm);
	if (vm->draining && dry)
		finish(vm);
	else if (!dry || (events & (EPOLLHUP | EPOLLRDHUP)))
		/* Quiet until resumed, or for good: the pidfd tells of the end. */
		host_remove_source(vm->host, s);
}

void host_console_resume(struct host *h)
{
	for (unsigned i = 0; i < h->vms; i++)
		if (h->vm[i]->phase == HOST_VM_ALIVE || h->vm[i]->draining)
			host_add_source(h, &h->vm[i]->on_console, EPOLLIN | EPOLLRDHUP);
}

/* ---- persistent memory --------------------------------------------------------------------- */

static int join_pmem(struct host_vm *vm, char *error)
{
	struct host *h = vm->host;
	const struct machine *m = &vm->config.machine;
	int rc = 0;
	for (unsigned i = 0; !rc && i < vm->config.pmems; i++)
		rc = pmem_join(&h->pmem_files, h->table, &h->pool, vm->id,
			       gpa_gfn(m->bank[m->ram_banks + i].base), &vm->config.pmem[i],
			       &vm->pmem[i], error);
	return rc;
}

int host_vm_finish_pmem(struct host_vm *vm, char *error)
{
	int first = 0;
	for (unsigned i = 0; i < vm->config.pmems; i++) {
		int rc = vm->pmem[i] ? pmem_finish(vm->pmem[i], first ? NULL : error) : 0;
		first = first ? first : rc;
	}
	return first;
}

void host_vm_leave_pmem(struct host_vm *vm)
{
	for (unsigned i = 0; i < vm->config.pmems; i++)
		if (vm->pmem[i]) {
			pmem_leave(&vm->host->pmem_files, vm->pmem[i]);
			vm->pmem[i] = NULL;
		}
}

int host_vm_reap(struct host_vm *vm)
{
	struct host *h = vm->host;
	int rc = ipt_vm_reap(h->table, vm->id, pool_clean, &h->pool);
	if (rc && rc != -ENOENT) /* -ENOENT: nothing is left of it */
		return rc;       /* the tick tries again */
	host_vm_leave_pmem(vm);
	vm->phase = HOST_VM_GONE;
	host_feed_the_hungry(h);
	return 0;
}

/* Why it ended, in its own words or ours. */
static void note_end(struct host_vm *vm)
{
	struct mailbox *mb = vm->mailbox;
	vm->end = atomic_load_explicit(&mb->end, memory_order_acquire);
	bool said = atomic_load_explicit(&mb->state, memory_order_acquire) == VM_ENDED;
	if (!said || vm->end == END_NONE) {
		vm->end = END_CRASHED;
		if (WIFSIGNALED(vm->wait_status))
			snprintf(mb->words, sizeof mb->words,
				 "its process was killed by signal %d (%s)",
				 WTERMSIG(vm->wait_status), strsignal(WTERMSIG(vm->wait_status)));
		else
			snprintf(mb->words, sizeof mb->words,
				 "its process ended without a word, status %d",
				 WEXITSTATUS(vm->wait_status));
	}
	mb->words[MAILBOX_WORDS - 1] = 0;
	char error[ERROR_MAX];
	if (host_vm_finish_pmem(vm, error)) {
		/* Bytes that a guest believes to be in a file: no clean end, whatever else it was. */
		size_t n = vm->end == END_POWER_OFF ? 0 : strlen(mb->words);
		snprintf(mb->words + n, sizeof mb->words - n, "%s%s", n ? "; " : "", error);
		if (vm->end == END_POWER_OFF)
			vm->end = END_HOST_ERROR;
	}
}

/* The process is gone and its last console bytes are out (or given up): tell, and let go of the rest. */
static void finish(struct host_vm *vm)
{
	struct host *h = vm->host;
	vm->draining = false;
	host_remove_source(h, &vm->on_console);
	close(vm->console_fd);
	vm->console_fd = -1;
	h->alive--;
	h->events.ended(h->events.ctx, vm);
	munmap(vm->mailbox, sizeof *vm->mailbox);
	vm->mailbox = NULL;
}

static void on_exit_of_vm(struct host_source *s, uint32_t events)
{
	struct host_vm *vm = container(struct host_vm, on_exit, s);
	struct host *h = vm->host;
	(void)events;
	if (waitpid(vm->pid, &vm->wait_status, 0) < 0)
		vm->wait_status = -1;
	vm->ended_ns = clock_ns();
	note_end(vm);
	host_remove_source(h, &vm->on_exit);
	close(vm->pidfd);
	close(vm->orders_fd);
	vm->pidfd = vm->orders_fd = -1;
	struct ipt_vm_info info;
	if (ipt_vm_info(h->table, vm->id, &info) == 0)
		memcpy(vm->frames_at_end, info.frames, sizeof info.frames);
	vm->phase = HOST_VM_REAPING;
	vm->draining = true;
	if (host_vm_reap(vm))
		host_set_tick(h, true);
	if (pump_console(vm))
		finish(vm);
	/* else the caller takes no more for now, and host_console_resume goes on with it */
}

void host_kill(struct host_vm *vm)
{
	if (vm->phase == HOST_VM_ALIVE)
		syscall(SYS_pidfd_send_signal, vm->pidfd, SIGKILL, NULL, 0);
	else if (vm->draining)
		finish(vm);
}

size_t host_console_input(struct host_vm *vm, const char *bytes, size_t n)
{
	if (vm->phase != HOST_VM_ALIVE)
		return n;
	ssize_t sent = send(vm->console_fd, bytes, n, MSG_DONTWAIT | MSG_NOSIGNAL);
	return sent > 0 ? (size_t)sent : 0;
}

/* ---- a VM's start -------------------------------------------------------------------------- */

static int compare_int(const void *a, const void *b)
{
	return *(const int *)a - *(const int *)b;
}

/* A VM's process keeps its own descriptors and none of the host's or of other VMs. */
static void close_all_but(int *keep, unsigned n)
{
	qsort(keep, n, sizeof *keep, compare_int);
	int from = STDERR_FILENO + 1;
	for (unsigned i = 0; i < n; i++) {
		if (keep[i] > from)
			close_range((unsigned)from, (unsigned)keep[i] - 1, 0);
		if (keep[i] >= from)
			from = keep[i] + 1;
	}
	close_range((unsigned)from, ~0u, 0);
}

static _Noreturn void child(struct host *h, const struct host_vm *vm, int console, pid_t parent)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(1);
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	int keep[8 + VM_MAX_DISKS + 2 * VM_MAX_PMEM];
	unsigned n = 0;
	keep[n++] = h->kvm.fd;
	keep[n++] = h->pool.fd;
	keep[n++] = ipt_fd(h->table);
	keep[n++] = vm->orders_fd;
	keep[n++] = h->news_fd;
	keep[n++] = console;
	for (unsigned i = 0; i < vm->config.disks; i++)
		keep[n++] = vm->config.disk[i].fd;
	for (unsigned i = 0; i < vm->config.pmems; i++) {
		keep[n++] = vm->pmem[i]->file->fd;
		keep[n++] = vm->pmem[i]->file->write_fd;
	}
	close_all_but(keep, n);
	struct vm_links links = {.table = h->table,
				 .id = vm->id,
				 .pool = &h->pool,
				 .kvm = &h->kvm,
				 .mailbox = vm->mailbox,
				 .pmem = vm->pmem,
				 .orders_fd = vm->orders_fd,
				 .news_fd = h->news_fd,
				 .console_fd = console};
	vm_process(&vm->config, &links);
}

static int remember(struct host *h, struct host_vm *vm)
{
	if (h->vms == h->room) {
		unsigned room = h->room ? h->room * 2 : 16;
		struct host_vm **more = realloc(h->vm, room * sizeof(struct host_vm *));
		if (!more)
			return -ENOMEM;
		h->vm = more;
		h->room = room;
	}
	h->vm[h->vms++] = vm;
	return 0;
}

int host_start_vm(struct host *h, const struct vm_config *config, struct host_vm **out, char *error)
{
	const char *name = config->machine.name;
	struct host_vm *vm = calloc(1, sizeof *vm);
	if (!vm)
		return errorf(error, -ENOMEM, "%s: no memory", name);
	*vm = (struct host_vm){.host = h,
			       .config = *config,
			       .pidfd = -1,
			       .orders_fd = -1,
			       .console_fd = -1,
			       .mailbox = MAP_FAILED};
	int socket[2] = {-1, -1};
	int rc = ipt_vm_add(h->table, name, INVALID_VMID, &vm->id);
	if (rc) {
		free(vm);
		return errorf(error, rc, "%s: %s", name,
			      rc == -EEXIST ? "a VM of that name exists" : strerror(-rc));
	}
	rc = join_pmem(vm, error);
	if (rc) {
		ipt_vm_reap(h->table, vm->id, NULL, NULL);
		host_vm_leave_pmem(vm);
		free(vm);
		return rc;
	}
	vm->mailbox = mmap(NULL, sizeof *vm->mailbox, PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	vm->orders_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (vm->mailbox == MAP_FAILED || vm->orders_fd < 0 ||
	    socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, socket) < 0 ||
	    (rc = remember(h, vm)) < 0) {
		rc = rc ? rc : -errno;
		goto fail;
	}
	vm->console_fd = socket[0];
	vm->forked_ns = clock_ns();
	pid_t parent = getpid();
	fflush(NULL);
	vm->pid = fork();
	if (vm->pid == 0)
		child(h, vm, socket[1], parent);
	if (vm->pid < 0) {
		rc = -errno;
		h->vms--;
		goto fail;
	}
	close(socket[1]);
	vm->pidfd = (int)syscall(SYS_pidfd_open, vm->pid, 0);
	vm->phase = HOST_VM_ALIVE;
	h->alive++;
	vm->on_exit = (struct host_source){vm->pidfd, on_exit_of_vm};
	vm->on_console = (struct host_source){vm->console_fd, on_console};
	rc = vm->pidfd < 0 ? -errno : host_add_source(h, &vm->on_exit, EPOLLIN);
	if (!rc)
		rc = host_add_source(h, &vm->on_console, EPOLLIN | EPOLLRDHUP);
	if (rc) {
		/* It can't be supervised, so it must not run. */
		kill(vm->pid, SIGKILL);
		on_exit_of_vm(&vm->on_exit, 0);
		return errorf(error, rc, "%s: can't watch its process: %s", name, strerror(-rc));
	}
	*out = vm;
	return 0;
fail:
	ipt_vm_reap(h->table, vm->id, NULL, NULL);
	host_vm_leave_pmem(vm);
	if (vm->mailbox != MAP_FAILED)
		munmap(vm->mailbox, sizeof *vm->mailbox);
	if (vm->orders_fd >= 0)
		close(vm->orders_fd);
	if (socket[0] >= 0) {
		close(socket[0]);
		close(socket[1]);
	}
	free(vm);
	return errorf(error, rc, "%s: can't start its process: %s%s", name, strerror(-rc),
		      rc == -EMFILE ? "; raise the limit of open files (ulimit -n)" : "");
}
