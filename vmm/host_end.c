/* A VM's end as the host sees it: its process is gone, why, and what it owned goes back. */
#include "ipt/fail.h"
#include "vmm/agent.h"
#include "vmm/balloon.h"
#include "vmm/clock.h"
#include "vmm/error.h"
#include "vmm/fds.h"
#include "vmm/host_domain.h"
#include "vmm/host_inject.h"
#include "vmm/host_keep.h"
#include "vmm/proc.h"
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

void host_end_gone(struct host_vm *vm)
{
	host_vm_leave_pmem(vm);
	host_domain_leave(vm);
	vm->phase = HOST_VM_GONE;
}

#define PINNED_MS 1000 /* longer than a copy takes */

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
		int rc = ipt_vm_reap(h->table, vm->id, host_domain_clean_vm, vm);
		return rc == -ENOENT ? 0 : rc; /* -ENOENT: nothing is left of it */
	}
	if (ipt_vm_info(h->table, vm->id, &info) == 0 && info.children > 1)
		return -EBUSY;
	/* A clone that was killed while it copied has left its pin; others have one for a moment. */
	bool leave = vm->pinned_ns && clock_ns() - vm->pinned_ns > PINNED_MS * UINT64_C(1000000);
	int rc = (leave ? ipt_vm_collapse_pinned : ipt_vm_collapse)(h->table, vm->id,
								    host_domain_clean_vm, vm);
	if (rc == -EBUSY && !vm->pinned_ns)
		vm->pinned_ns = clock_ns();
	return rc == -ENOENT ? 0 : rc == -EBUSY ? -EAGAIN : rc;
}

void host_end_reap_templates(struct host *h)
{
	for (bool again = true; again;) {
		again = false;
		for (unsigned i = 0; i < h->vms; i++) {
			struct host_vm *t = h->vm[i];
			if (!t->is_template || t->phase != HOST_VM_REAPING)
				continue;
			int rc = reap(t);
			if (!rc) {
				host_end_gone(t);
				again = true;
			} else if (rc != -EBUSY) {
				host_want_tick(h);
			}
		}
	}
}

int host_end_reap(struct host_vm *vm)
{
	struct host *h = vm->host;
	int rc = reap(vm);
	if (rc)
		return rc;
	host_end_gone(vm);
	host_end_reap_templates(h);
	host_feed_the_hungry(h);
	return 0;
}

bool host_end_reap_all(struct host *h)
{
	bool more = false;
	for (unsigned i = 0; i < h->vms; i++) {
		int rc = h->vm[i]->phase == HOST_VM_REAPING ? host_end_reap(h->vm[i]) : 0;
		more = more || (rc && rc != -EBUSY);
	}
	return more;
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
	error_plain(mb->words, sizeof mb->words);
	char error[ERROR_MAX];
	if (host_vm_finish_pmem(vm, error)) {
		/* Bytes that a guest believes to be in a file: no clean end, whatever else it was. */
		size_t n = vm->end == END_POWER_OFF ? 0 : strlen(mb->words);
		snprintf(mb->words + n, sizeof mb->words - n, "%s%s", n ? "; " : "", error);
		if (vm->end == END_POWER_OFF)
			vm->end = END_HOST_ERROR;
	}
}

void host_end_finish(struct host_vm *vm)
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
	fds_close(&vm->mailbox_fd, 1);
	fds_close(&vm->ring_fd, 1);
}

void host_end_lost(struct host_vm *vm)
{
	struct host *h = vm->host;
	vm->ended_ns = clock_ns();
	note_end(vm);
	host_keep_drop(vm);
	host_vm_find_id(vm); /* it may have been frozen, with nobody there to hear of it */
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
	int rc = host_end_reap(vm);
	if (rc && rc != -EBUSY)
		host_want_tick(h);
	if (vm->console_fd < 0 || host_console_drain(vm))
		host_end_finish(vm);
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

void host_end_ready(struct host_source *s, uint32_t events)
{
	struct host_vm *vm = container(struct host_vm, on_exit, s);
	struct host *h = vm->host;
	bool is_template = vm->is_template;
	(void)events;
	vm->wait_status = reap_process(vm->pidfd);
	host_remove_source(h, &vm->on_exit);
	close(vm->pidfd);
	vm->pidfd = -1;
	host_end_lost(vm);
	host_end_reap_strays(h);
	if (is_template) /* the clone that it kept ready ends a moment later */
		host_want_tick(h);
}

void host_end_reap_strays(struct host *h)
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

void host_end_abandon(struct host_vm *vm)
{
	struct pollfd p = {.fd = vm->pidfd, .events = POLLIN};
	host_kill(vm);
	poll(&p, 1, 1000); /* a killed process is gone within milliseconds */
	host_end_ready(&vm->on_exit, EPOLLIN);
}

void host_kill(struct host_vm *vm)
{
	if (vm->phase == HOST_VM_ALIVE)
		syscall(SYS_pidfd_send_signal, vm->pidfd, SIGKILL, NULL, 0);
	else if (vm->draining)
		host_end_finish(vm);
}
