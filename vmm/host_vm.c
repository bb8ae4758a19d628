/* A VM as the host sees it: its process's start, what it is made of, and its files. */
#include "ipt/fail.h"
#include "ipt/sealed.h"
#include "vmm/agent.h"
#include "vmm/clock.h"
#include "vmm/error.h"
#include "vmm/fds.h"
#include "vmm/host_domain.h"
#include "vmm/host_keep.h"
#include "vmm/ring.h"
#include "vmm/store.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- persistent memory --------------------------------------------------------------------- */

static int join_pmem(struct host_vm *vm, char *error)
{
	struct host *h = vm->host;
	const struct machine *m = &vm->config.machine;
	int rc = 0;
	for (unsigned i = 0; !rc && i < vm->config.pmems; i++)
		if (vm->config.pmem[i].share) /* we write back what it leaves */
			rc = pool_map_alone(&vm->domain->pool, error);
	for (unsigned i = 0; !rc && i < vm->config.pmems; i++)
		rc = pmem_join(&h->pmem_files, h->table, &vm->domain->pool, vm->id,
			       gpa_gfn(m->bank[m->ram_banks + i].base), &vm->config.pmem[i],
			       &vm->pmem[i], error);
	for (unsigned i = 0; !rc && i < vm->config.pmems; i++)
		host_reclaim_file(h, vm->pmem[i]->file, vm->domain->number);
	return rc;
}

int host_vm_share_pmem(struct host_vm *vm, const struct host_vm *of, char *error)
{
	int rc = 0;
	for (unsigned i = 0; !rc && i < vm->config.pmems; i++)
		rc = pmem_join_clone(of->pmem[i], &vm->pmem[i], error);
	return rc;
}

unsigned host_vm_pmem_fds(const struct host_vm *vm, int fds[VM_MAX_PMEM])
{
	unsigned n = 0;
	for (unsigned i = 0; i < vm->config.pmems; i++)
		if (vm->pmem[i]->share)
			fds[n++] = vm->pmem[i]->sets_fd;
	return n;
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
			vmid_t file = vm->pmem[i]->file->id;
			pmem_leave(&vm->host->pmem_files, vm->pmem[i]);
			vm->pmem[i] = NULL;
			if (!host_file_by_id(vm->host, file))
				host_keep_drop_file(vm->host, file);
		}
	host_left_rest(vm->host);
}

/* ---- a VM's start -------------------------------------------------------------------------- */

static void on_link(struct host_source *s, uint32_t events)
{
	(void)events;
	host_clone_link(container(struct host_vm, on_link, s));
}

/* What is the VM's and isn't there by the fork. */
static struct mailbox *attach(const struct host_vm *vm, int mailbox)
{
	struct mailbox *mb = sealed_map(mailbox, sizeof *mb);
	for (unsigned i = 0; mb && i < vm->config.pmems; i++)
		if (pmem_attach(vm->pmem[i]))
			mb = NULL;
	if (!mb)
		_exit(1);
	return mb;
}

/* ends: what host_vm_make made for it. */
static _Noreturn void child(struct host *h, const struct host_vm *vm, const int ends[LINK_FDS],
			    pid_t parent, uid_t user)
{
	/* With a keeper it is the link's end that tells: there may be another host. */
	if (!h->keeper)
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(1);
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	struct mailbox *mailbox = attach(vm, ends[1]);
	sandbox_streams(&h->sandbox);
	int keep[11 + SANDBOX_FDS + VM_MAX_DISKS + 2 * VM_MAX_PMEM];
	unsigned n = sandbox_fds(&h->sandbox, keep);
	keep[n++] = fault_device();
	keep[n++] = h->kvm.fd;
	keep[n++] = vm->domain->pool.fd;
	keep[n++] = ipt_fd(h->table);
	keep[n++] = h->news_fd;
	keep[n++] = ends[0];
	keep[n++] = ends[2];
	keep[n++] = ends[3];
	const struct store *store = host_reclaim_store(h, vm->domain);
	if (store && store->mem_fd >= 0)
		keep[n++] = store->mem_fd;
	if (store && store->file_fd >= 0)
		keep[n++] = store->file_fd;
	for (unsigned i = 0; i < vm->config.disks; i++)
		keep[n++] = vm->config.disk[i].fd;
	for (unsigned i = 0; i < vm->config.pmems; i++) {
		keep[n++] = vm->pmem[i]->file->fd;
		keep[n++] = vm->pmem[i]->file->write_fd;
	}
	fds_close_all_but(keep, n);
	struct vm_links links = {.table = h->table,
				 .id = vm->id,
				 .pool = &vm->domain->pool,
				 .kvm = &h->kvm,
				 .mailbox = mailbox,
				 .pmem = vm->pmem,
				 .link_fd = ends[0],
				 .news_fd = h->news_fd,
				 .console_fd = ends[2],
				 .agent_fd = ends[3],
				 .merging = host_merge_board(h),
				 .store = store,
				 .reclaim = host_reclaim_board(h),
				 .sandbox = &h->sandbox,
				 .user = user,
				 .relatives = h->config.max_vms};
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

/* The mailbox, shared by a descriptor: a clone's process isn't a child of ours, and children of ours don't have what is
 * mapped here for others. */
static int make_mailbox(struct host_vm *vm, int *end)
{
	*end = fail_call(VM_MAILBOX, sealed_memfd("invisor-mailbox", sizeof *vm->mailbox));
	if (*end < 0)
		return -errno;
	vm->mailbox = sealed_map(*end, sizeof *vm->mailbox);
	if (!vm->mailbox || madvise(vm->mailbox, sizeof *vm->mailbox, MADV_DONTFORK) < 0)
		return -errno;
	return 0;
}

/* One end becomes the VM's, the other is for its process. */
static int make_stream(int *ours, int *theirs)
{
	int fd[2];
	if (fail_call(VM_STREAM,
		      socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fd)) < 0)
		return -errno;
	*ours = fd[0];
	*theirs = fd[1];
	return 0;
}

static int make_channels(struct host_vm *vm, int ends[LINK_FDS])
{
	int link[2];
	int rc = make_mailbox(vm, &ends[1]);
	if (!rc)
		rc = link_pair(link);
	if (rc)
		return rc;
	vm->link_fd = link[0];
	ends[0] = link[1];
	if (vm->host->keeper) {
		vm->mailbox_fd = fcntl(ends[1], F_DUPFD_CLOEXEC, 0);
		rc = vm->mailbox_fd < 0 ? -errno : 0;
	}
	if (rc || vm->is_template)
		return rc;
	if (vm->host->keeper) {
		vm->ring_fd = ring_share();
		if (vm->ring_fd < 0)
			return vm->ring_fd;
	}
	rc = make_stream(&vm->console_fd, &ends[2]);
	if (!rc)
		rc = make_stream(&vm->agent_fd, &ends[3]);
	return rc;
}

static void close_channels(struct host_vm *vm)
{
	int *const fds[] = {&vm->link_fd, &vm->console_fd, &vm->agent_fd,
			    &vm->pidfd,   &vm->mailbox_fd, &vm->ring_fd};
	for (unsigned i = 0; i < sizeof fds / sizeof *fds; i++)
		fds_close(fds[i], 1);
	if (vm->mailbox)
		munmap(vm->mailbox, sizeof *vm->mailbox);
	vm->mailbox = NULL;
}

static void free_vm(struct host_vm *vm)
{
	close_channels(vm);
	free(vm);
}

static struct host_vm bare(struct host *h, const struct vm_config *config, bool is_template)
{
	return (struct host_vm){.host = h,
				.config = *config,
				.is_template = is_template,
				.on_console = {-1, host_console_ready},
				.on_link = {-1, on_link},
				.wait_status = -1,
				.pidfd = -1,
				.link_fd = -1,
				.console_fd = -1,
				.agent_fd = -1,
				.mailbox_fd = -1,
				.ring_fd = -1};
}

struct host_vm *host_vm_bare(struct host *h, const struct vm_config *config, bool is_template)
{
	struct host_vm *vm = calloc(1, sizeof *vm);
	if (!vm)
		return NULL;
	*vm = bare(h, config, is_template);
	if (remember(h, vm) == 0)
		return vm;
	free(vm);
	return NULL;
}

int host_vm_make(struct host *h, const struct vm_config *config, bool is_template,
		 struct host_vm **out, int ends[LINK_FDS], char *error)
{
	const char *name = config->machine.name;
	struct host_vm *vm = fail_null(VM_MEMORY, calloc(1, sizeof *vm));
	if (!vm)
		return errorf(error, -ENOMEM, "%s: no memory", name);
	*vm = bare(h, config, is_template);
	for (unsigned i = 0; i < LINK_FDS; i++)
		ends[i] = -1;
	int rc = make_channels(vm, ends);
	if (!rc)
		rc = remember(h, vm);
	if (rc) {
		fds_close(ends, LINK_FDS);
		free_vm(vm);
		return errorf(error, rc, "%s: can't make its channels: %s%s", name, strerror(-rc),
			      rc == -EMFILE ? "; raise the limit of open files (ulimit -n)" : "");
	}
	vm->forked_ns = clock_ns();
	vm->on_console.fd = vm->console_fd;
	vm->on_link.fd = vm->link_fd;
	vm->key = host_keep_key(h);
	*out = vm;
	return 0;
}

void host_vm_find_id(struct host_vm *vm)
{
	if (ipt_vm_find(vm->host->table, vm->config.machine.name, &vm->id))
		vm->id = INVALID_VMID;
}

static void forget_vm(struct host_vm *vm)
{
	struct host *h = vm->host;
	unsigned i = h->vms;
	while (h->vm[--i] != vm)
		;
	memmove(h->vm + i, h->vm + i + 1, (--h->vms - i) * sizeof(struct host_vm *));
	free_vm(vm);
}

void host_vm_unmake(struct host_vm *vm)
{
	struct host *h = vm->host;
	if (vm->phase == HOST_VM_ALIVE && !vm->is_template) /* it couldn't be supervised */
		h->alive--;
	host_remove_source(h, &vm->on_link);
	host_vm_finish_pmem(vm, NULL);
	host_keep_drop(vm);
	agent_close(vm);
	close_channels(vm);
	vm->job = NULL;
	vm->phase = HOST_VM_REAPING;
	int rc = vm->id.v ? host_end_reap(vm) : 0;
	if (rc) { /* as of any that is dead: time will bring it */
		if (rc != -EBUSY)
			host_want_tick(h);
		return;
	}
	if (!vm->id.v)
		host_end_gone(vm);
	forget_vm(vm);
}

int host_vm_supervise(struct host_vm *vm)
{
	struct host *h = vm->host;
	vm->phase = HOST_VM_ALIVE;
	if (!vm->is_template)
		h->alive++;
	vm->on_exit = (struct host_source){vm->pidfd, host_end_ready};
	host_keep_vm(vm);
	int rc = host_add_source(h, &vm->on_exit, EPOLLIN);
	if (!rc && vm->console_fd >= 0)
		rc = host_add_source(h, &vm->on_console, EPOLLIN | EPOLLRDHUP);
	return rc;
}

int host_start_vm(struct host *h, const struct vm_config *config, struct host_vm **out, char *error)
{
	const char *name = config->machine.name;
	struct host_vm *vm;
	int ends[LINK_FDS];
	int rc = host_vm_make(h, config, false, &vm, ends, error);
	if (rc)
		return rc;
	rc = host_domain_join(vm, error);
	if (!rc) {
		rc = ipt_vm_add(h->table, name, INVALID_VMID, &vm->id);
		if (rc)
			errorf(error, rc, "%s: %s", name,
			       rc == -EEXIST ? "a VM of that name exists" : strerror(-rc));
	}
	if (rc) {
		fds_close(ends, LINK_FDS);
		host_vm_unmake(vm);
		return rc;
	}
	host_merge_admit(vm);
	host_reclaim_admit(vm);
	rc = join_pmem(vm, error);
	if (rc) {
		fds_close(ends, LINK_FDS);
		host_vm_unmake(vm);
		return rc;
	}
	pid_t parent = getpid();
	uid_t user = sandbox_next_id(&h->sandbox);
	host_keep_numbers(h);
	host_keep_vm(vm);
	fflush(NULL);
	vm->pid = fail_call(VM_FORK, fork());
	if (vm->pid == 0)
		child(h, vm, ends, parent, user);
	if (vm->pid < 0)
		rc = -errno;
	fds_close(ends, LINK_FDS);
	if (rc) {
		host_vm_unmake(vm);
		return errorf(error, rc, "%s: can't start its process: %s", name, strerror(-rc));
	}
	vm->pidfd = (int)fail_call(VM_PIDFD, syscall(SYS_pidfd_open, vm->pid, 0));
	rc = vm->pidfd < 0 ? -errno : host_add_source(h, &vm->on_link, EPOLLIN);
	if (!rc)
		rc = host_vm_supervise(vm);
	if (rc) {
		/* It can't be supervised, so it must not run. */
		kill(vm->pid, SIGKILL);
		waitpid(vm->pid, NULL, 0);
		host_vm_unmake(vm);
		return errorf(error, rc, "%s: can't watch its process: %s", name, strerror(-rc));
	}
	*out = vm;
	return 0;
}
