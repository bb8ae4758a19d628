/* A VM as the host sees it: its process's start, its console, its end. */
#include "ipt/fail.h"
#include "ipt/sealed.h"
#include "vmm/agent.h"
#include "vmm/balloon.h"
#include "vmm/clock.h"
#include "vmm/error.h"
#include "vmm/fds.h"
#include "vmm/host_inject.h"
#include "vmm/host_keep.h"
#include "vmm/proc.h"
#include "vmm/ring.h"
#include "vmm/store.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
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

static void close_all(int *fds, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		if (fds[i] >= 0)
			close(fds[i]);
}

/* ---- a VM's end ---------------------------------------------------------------------------- */

/* Read the console dry; false if the caller took no more for now. */
static bool pump_console(struct host_vm *vm)
{
	char bytes[4096];
	for (;;) {
		/* Peek, give, then take what was taken: what the caller refuses stays in the
		 * socket. */
		ssize_t n = fail_call(CONSOLE_RECEIVE, recv(vm->console_fd, bytes, sizeof bytes,
							    MSG_PEEK | MSG_DONTWAIT));
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
	h->resume_due = false;
	for (unsigned i = 0; i < h->vms; i++) {
		struct host_vm *vm = h->vm[i];
		if (vm->console_fd < 0 || !(vm->phase == HOST_VM_ALIVE || vm->draining))
			continue;
		int rc = host_add_source(h, &vm->on_console, EPOLLIN | EPOLLRDHUP);
		h->resume_due = h->resume_due || (rc && rc != -EEXIST);
	}
	if (h->resume_due)
		host_set_tick(h, true);
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
	for (unsigned i = 0; !rc && i < vm->config.pmems; i++)
		host_reclaim_file(h, vm->pmem[i]->file);
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
}

/* A template's frames stay for as long as more than one see them; its last child takes them over. -EBUSY: they do;
 * -EAGAIN: a frame is pinned. */
static int reap(struct host_vm *vm)
{
	struct host *h = vm->host;
	struct ipt_vm_info info;
	int busy = host_reclaim_may_reap(vm);
	if (busy)
		return busy;
	if (!vm->is_template) {
		int rc = ipt_vm_reap(h->table, vm->id, pool_clean, &h->pool);
		return rc == -ENOENT ? 0 : rc; /* -ENOENT: nothing is left of it */
	}
	if (ipt_vm_info(h->table, vm->id, &info) == 0 && info.children > 1)
		return -EBUSY;
	int rc = ipt_vm_collapse(h->table, vm->id, pool_clean, &h->pool);
	return rc == -ENOENT ? 0 : rc == -EBUSY ? -EAGAIN : rc;
}

/* Those that waited for the end of their clones, and then perhaps those that they were made from. */
static void reap_templates(struct host *h)
{
	for (bool again = true; again;) {
		again = false;
		for (unsigned i = 0; i < h->vms; i++) {
			struct host_vm *t = h->vm[i];
			if (!t->is_template || t->phase != HOST_VM_REAPING)
				continue;
			int rc = reap(t);
			if (!rc) {
				host_vm_leave_pmem(t);
				t->phase = HOST_VM_GONE;
				again = true;
			} else if (rc != -EBUSY) {
				host_set_tick(h, true);
			}
		}
	}
}

int host_vm_reap(struct host_vm *vm)
{
	struct host *h = vm->host;
	int rc = reap(vm);
	if (rc)
		return rc;
	host_vm_leave_pmem(vm);
	vm->phase = HOST_VM_GONE;
	reap_templates(h);
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
		if (vm->wait_status <
		    0) /* its parent was its template, and the kernel doesn't tell */
			snprintf(mb->words, sizeof mb->words, "its process was killed");
		else if (WIFSIGNALED(vm->wait_status) && WTERMSIG(vm->wait_status) == SIGSYS)
			snprintf(mb->words, sizeof mb->words,
				 "its process made a system call that its sandbox forbids, and was "
				 "killed (the kernel's log says which)");
		else if (WIFSIGNALED(vm->wait_status))
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
	if (vm->console_fd >= 0) {
		host_remove_source(h, &vm->on_console);
		close(vm->console_fd);
		vm->console_fd = -1;
	}
	agent_vm_ended(vm);
	if (!vm->is_template)
		h->alive--;
	h->events.ended(h->events.ctx, vm);
	munmap(vm->mailbox, sizeof *vm->mailbox);
	vm->mailbox = NULL;
	close_all(&vm->mailbox_fd, 1);
	close_all(&vm->ring_fd, 1);
	vm->mailbox_fd = vm->ring_fd = -1;
}

void host_vm_lost(struct host_vm *vm)
{
	struct host *h = vm->host;
	vm->ended_ns = clock_ns();
	note_end(vm);
	host_keep_drop(vm);
	if (vm->adopted)
		host_adopt_find(vm); /* it may have been frozen, with nobody there to hear of it */
	host_remove_source(h, &vm->on_link);
	close(vm->link_fd);
	vm->link_fd = -1;
	struct ipt_vm_info info;
	if (ipt_vm_info(h->table, vm->id, &info) == 0)
		memcpy(vm->frames_at_end, info.frames, sizeof info.frames);
	vm->phase = HOST_VM_REAPING;
	vm->draining = true;
	host_vm_told(vm, true);
	balloon_news(vm);
	host_inject_news(vm);
	host_clone_ended(vm);
	int rc = host_vm_reap(vm);
	if (rc && rc != -EBUSY)
		host_set_tick(h, true);
	if (vm->console_fd < 0 || pump_console(vm))
		finish(vm);
	/* else the caller takes no more for now, and host_console_resume goes on with it */
}

/* The wait status of a process that ended; -1: unknown. By the pidfd: what pid a clone has is its template's word. */
static int reap_process(int pidfd)
{
	siginfo_t i = {.si_pid = 0};
	if (waitid(P_PIDFD, (id_t)pidfd, &i, WEXITED | WNOHANG) < 0 || !i.si_pid)
		return proc_exit_status(pidfd); /* its parent was its template */
	return i.si_code == CLD_EXITED   ? W_EXITCODE(i.si_status, 0)
	       : i.si_code == CLD_DUMPED ? W_EXITCODE(0, i.si_status) | WCOREFLAG
					 : W_EXITCODE(0, i.si_status);
}

static void on_exit_of_vm(struct host_source *s, uint32_t events)
{
	struct host_vm *vm = container(struct host_vm, on_exit, s);
	struct host *h = vm->host;
	bool is_template = vm->is_template;
	(void)events;
	vm->wait_status = reap_process(vm->pidfd);
	host_remove_source(h, &vm->on_exit);
	close(vm->pidfd);
	vm->pidfd = -1;
	host_vm_lost(vm);
	host_reap_strays(h);
	if (is_template) /* the clone that it kept ready ends a moment later */
		host_set_tick(h, true);
}

void host_reap_strays(struct host *h)
{
	siginfo_t info;
	for (;;) {
		info.si_pid = 0;
		if (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) < 0 || !info.si_pid)
			return;
		for (unsigned i = 0; i < h->vms; i++)
			if (h->vm[i]->pid == info.si_pid && h->vm[i]->pidfd >= 0)
				return; /* its pidfd tells, and then we look again */
		waitid(P_PID, (id_t)info.si_pid, &info, WEXITED | WNOHANG);
	}
}

void host_vm_abandon(struct host_vm *vm)
{
	struct pollfd p = {.fd = vm->pidfd, .events = POLLIN};
	host_kill(vm);
	poll(&p, 1, 1000); /* a killed process is gone within milliseconds */
	on_exit_of_vm(&vm->on_exit, EPOLLIN);
}

static void on_link(struct host_source *s, uint32_t events)
{
	(void)events;
	host_clone_link(container(struct host_vm, on_link, s));
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

static struct mailbox *map_mailbox(int fd)
{
	void *at = mmap(NULL, sizeof(struct mailbox), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	return at == MAP_FAILED ? NULL : at;
}

/* What is the VM's and isn't there by the fork. */
static struct mailbox *attach(const struct host_vm *vm, int mailbox)
{
	struct mailbox *mb = map_mailbox(mailbox);
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
	keep[n++] = h->pool.fd;
	keep[n++] = ipt_fd(h->table);
	keep[n++] = h->news_fd;
	keep[n++] = ends[0];
	keep[n++] = ends[2];
	keep[n++] = ends[3];
	const struct store *store = host_store(h);
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
				 .pool = &h->pool,
				 .kvm = &h->kvm,
				 .mailbox = mailbox,
				 .pmem = vm->pmem,
				 .link_fd = ends[0],
				 .news_fd = h->news_fd,
				 .console_fd = ends[2],
				 .agent_fd = ends[3],
				 .merging = host_merge_board(h),
				 .store = host_store(h),
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
	vm->mailbox = map_mailbox(*end);
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

static void free_vm(struct host_vm *vm)
{
	close_all((int[]){vm->link_fd, vm->console_fd, vm->agent_fd, vm->pidfd, vm->mailbox_fd,
			  vm->ring_fd},
		  6);
	if (vm->mailbox)
		munmap(vm->mailbox, sizeof *vm->mailbox);
	free(vm);
}

static struct host_vm bare(struct host *h, const struct vm_config *config, bool is_template)
{
	return (struct host_vm){.host = h,
				.config = *config,
				.is_template = is_template,
				.on_console = {-1, on_console},
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
		close_all(ends, LINK_FDS);
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

void host_vm_unmake(struct host_vm *vm)
{
	struct host *h = vm->host;
	if (vm->phase == HOST_VM_ALIVE && !vm->is_template) /* it couldn't be supervised */
		h->alive--;
	host_keep_drop(vm);
	if (vm->id.v)
		ipt_vm_reap(h->table, vm->id, pool_clean, &h->pool);
	host_vm_leave_pmem(vm);
	host_remove_source(h, &vm->on_link);
	unsigned i = h->vms;
	while (h->vm[--i] != vm)
		;
	memmove(h->vm + i, h->vm + i + 1, (--h->vms - i) * sizeof(struct host_vm *));
	free_vm(vm);
	reap_templates(h); /* it may have been the last but one that saw a dead template's frames */
}

int host_vm_supervise(struct host_vm *vm)
{
	struct host *h = vm->host;
	vm->phase = HOST_VM_ALIVE;
	if (!vm->is_template)
		h->alive++;
	vm->on_exit = (struct host_source){vm->pidfd, on_exit_of_vm};
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
	rc = ipt_vm_add(h->table, name, INVALID_VMID, &vm->id);
	if (rc) {
		errorf(error, rc, "%s: %s", name,
		       rc == -EEXIST ? "a VM of that name exists" : strerror(-rc));
		close_all(ends, LINK_FDS);
		host_vm_unmake(vm);
		return rc;
	}
	host_merge_admit(vm);
	host_reclaim_admit(vm);
	rc = join_pmem(vm, error);
	if (rc) {
		close_all(ends, LINK_FDS);
		host_vm_unmake(vm);
		return rc;
	}
	host_keep_vm(vm);
	pid_t parent = getpid();
	uid_t user = sandbox_next_id(&h->sandbox);
	fflush(NULL);
	vm->pid = fail_call(VM_FORK, fork());
	if (vm->pid == 0)
		child(h, vm, ends, parent, user);
	if (vm->pid < 0)
		rc = -errno;
	close_all(ends, LINK_FDS);
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
