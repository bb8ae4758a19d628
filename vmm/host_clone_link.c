/* Jobs of clones: what VMs, templates and clones say on their links, and what becomes of a job when one of them ends. */
#include "vmm/host_clone.h"
#include "vmm/host_keep.h"
#include "vmm/proc.h"
#include <string.h>
#include <sys/socket.h>

/* A template without a process: what it owns stays for as long as others see it. */
static void bury(struct host_vm *t)
{
	host_vm_find_id(t); /* who froze its VM may have died, or lied, before we heard of it */
	if (!t->id.v) {
		host_vm_unmake(t);
		return;
	}
	host_end_lost(t);
}

/* A VM that is frozen anew, and whose last template made no clone that still lives, needs that one no more: without
 * this the chain of templates would grow with every clone that is made and ended. */
static void retire_the_last(struct host *h, const struct host_vm *t)
{
	struct ipt_vm_info info, last;
	if (ipt_vm_info(h->table, t->id, &info) || ipt_vm_info(h->table, info.parent, &last))
		return;
	struct host_vm *old = host_vm_by_id(h, last.id);
	if (old && old->is_template && !old->job && last.children == 1)
		host_kill(old);
}

/* It has a process: watch that, and have somebody look after it. -errno. */
static int supervise(struct host_vm *vm, struct host_vm *of)
{
	const struct host_events *e = &vm->host->events;
	int rc = host_vm_supervise(vm);
	return rc || !e->cloned ? rc : e->cloned(e->ctx, vm, of);
}

/* Is that the id by which the VM goes on, now that the one before is its template's? */
static bool goes_on_as(const struct host_vm *vm, const struct link_answer *a)
{
	struct ipt_vm_info info;
	return ipt_vm_info(vm->host->table, vmid(a->id), &info) == 0 &&
	       info.parent.v == a->template_id && !strcmp(info.name, vm->config.machine.name);
}

/* Returns whether the pidfd is taken. */
static bool frozen(struct host_vm *vm, const struct link_answer *a, int pidfd)
{
	struct clone_job *job = vm->job;
	struct host_vm *t = job->template;
	struct host *h = job->host;
	bool unwatched = !a->status && pidfd < 0;
	/* Of one that was adopted amid a freeze, the table may have told before. */
	bool was_it = a->template_id == vm->id.v || (vm->adopted && a->id == vm->id.v);
	bool lies = a->key != t->key || (a->template_id && !(was_it && goes_on_as(vm, a))) ||
		    (!a->status && !unwatched && proc_kin(pidfd, a->pid, vm->pid) == PROC_STRANGER);
	vm->job = NULL;
	job->source = t; /* from now on it doesn't matter what becomes of vm */
	if (lies) {
		host_clone_fail(job, "%s: its answer is about another process or VM",
				vm->config.machine.name);
		t->job = NULL;
		host_clone_finish(job);
		bury(t);
		host_kill(vm);
		return false;
	}
	if (a->template_id) {
		t->id = vmid(a->template_id);
		vm->id = vmid(a->id);
	}
	if (a->status || unwatched) {
		host_clone_fail(job, "%s",
				unwatched ? "the host has too many files open" : a->words);
		t->job = NULL;
		host_clone_finish(job);
		bury(t);
		return false;
	}
	t->pid = a->pid;
	t->pidfd = pidfd;
	t->ready_ns = vm->ready_ns;
	atomic_store_explicit(&t->mailbox->state, VM_TEMPLATE, memory_order_relaxed);
	if (atomic_load_explicit(&vm->mailbox->state, memory_order_acquire) == VM_PAUSED)
		vm->pristine = t;
	int rc = supervise(t, vm);
	if (rc) {
		host_clone_fail(job, "%s: can't watch its process: %s", t->config.machine.name,
				strerror(-rc));
		t->job = NULL;
		host_clone_finish(job);
		host_end_abandon(t);
		return true;
	}
	retire_the_last(h, t);
	host_clone_step(job);
	return true;
}

/* Returns whether the pidfd is taken. */
static bool cloned(struct host_vm *t, const struct link_answer *a, int pidfd)
{
	struct clone_job *job = t->job;
	struct host_vm *clone = job->clones[job->answered];
	enum proc_kin kin = !a->status && pidfd >= 0 ? proc_kin(pidfd, a->pid, t->pid) : PROC_GONE;
	if (a->key != clone->key || a->id != clone->id.v || (!a->status && pidfd < 0) ||
	    kin == PROC_STRANGER) {
		/* That process can't be watched. It ends with its link, as those do that were asked for. */
		host_clone_fail(job, "%s: %s", clone->config.machine.name,
				!a->status && pidfd < 0 ? "the host has too many files open"
				: kin == PROC_STRANGER
					? "its template named a process that isn't its own"
					: "its template answered for another");
		host_kill(t);
		return false;
	}
	job->answered++;
	if (a->status) {
		host_clone_fail(job, "%s", a->words);
		job->clones[job->answered - 1] = NULL;
		host_vm_unmake(clone);
	} else {
		clone->pid = a->pid;
		clone->pidfd = pidfd;
		clone->ready_ns = job->source->ready_ns;
		int rc = supervise(clone, job->source);
		if (rc) {
			host_clone_fail(job, "%s: can't watch its process: %s",
					clone->config.machine.name, strerror(-rc));
			job->clones[job->answered - 1] = NULL;
			clone->job = NULL;
			host_end_abandon(clone);
		} else if (job->failed) {
			host_kill(clone);
		}
	}
	host_clone_step(job);
	return !a->status;
}

/* A clone that is FORKING has no process and gets none. */
static void drop_clone(struct clone_job *job, struct host_vm *clone)
{
	unsigned i = job->answered;
	while (job->clones[i] != clone)
		i++;
	job->clones[i] = job->clones[job->answered];
	job->clones[job->answered++] = NULL;
	host_vm_unmake(clone);
}

/* The other end is closed, and so there is no process any more. */
static void never_came(struct host_vm *vm)
{
	struct clone_job *job = vm->job;
	if (vm->is_template ? job->source != vm : job->template->phase == HOST_VM_ALIVE) {
		/* Who was asked for it answers yet, or ends: that says what there was. */
		host_remove_source(vm->host, &vm->on_link);
		vm->link_ended = true;
		if (vm->is_template)
			host_clone_fail(job, "%s: its process ended", vm->config.machine.name);
	} else if (vm->is_template) {
		host_clone_finish(job);
		bury(vm);
	} else {
		drop_clone(job, vm);
		if (job->answered == job->made)
			host_clone_finish(job);
	}
}

/* The key of the next answer on its link. */
static uint64_t awaited(const struct host_vm *vm)
{
	const struct clone_job *job = vm->job;
	const struct host_vm *what = !vm->is_template            ? job->template
				     : job->answered < job->made ? job->clones[job->answered]
								 : NULL;
	return what ? what->key : 0;
}

void host_clone_link(struct host_vm *vm)
{
	struct link_answer a;
	int fds[LINK_FDS_MAX];
	ssize_t n = link_receive(vm->link_fd, &a, sizeof a, fds);
	if (n == 0 && vm->phase == HOST_VM_FORKING) {
		if (vm->job)
			never_came(vm);
		else
			host_adopt_link_ended(vm);
		return;
	}
	if (n == 0) {
		host_remove_source(vm->host, &vm->on_link); /* the pidfd tells of the end */
		return;
	}
	error_plain(a.words, sizeof a.words);
	/* Of what another host asked for, the one that died, the answers may come yet. */
	bool late = n > 0 && vm->adopted && vm->job && a.key != awaited(vm);
	bool takes = n > 0 && vm->job && !late;
	if (takes && vm->is_template && vm->job->answered < vm->job->made) {
		if (cloned(vm, &a, fds[0]))
			fds[0] = -1;
	} else if (takes && !vm->is_template && vm->job->source == vm) {
		if (frozen(vm, &a, fds[0]))
			fds[0] = -1;
	} else if (n > 0 && vm->adopted) {
		host_adopt_answer(vm, &a);
	}
	link_close(fds);
}

/* Hear the end of its link, now that whoever would have answered is gone. */
static void hang_up(struct host_vm *vm)
{
	shutdown(vm->link_fd, SHUT_WR);
}

void host_clone_ended(struct host_vm *vm)
{
	struct host *h = vm->host;
	struct clone_job *job = vm->job;
	for (unsigned i = 0; i < h->vms; i++)
		if (h->vm[i]->pristine == vm)
			h->vm[i]->pristine = NULL;
	vm->pristine = NULL;
	if (!job)
		return;
	if (vm->is_template) {
		host_clone_fail(job, "%s: its process ended", vm->config.machine.name);
		for (unsigned i = job->answered; i < job->made; i++)
			if (job->clones[i]->link_ended)
				drop_clone(job, job->clones[i]);
			else
				hang_up(job->clones[i]);
		if (job->answered == job->made)
			host_clone_finish(job);
	} else if (job->source == vm) {
		host_clone_fail(job, "%s ended while it was being frozen", vm->config.machine.name);
		vm->job = NULL;
		job->source = job->template;
		if (job->source->link_ended)
			never_came(job->source);
		else
			hang_up(job->source);
	} else {
		for (unsigned i = 0; i < job->answered; i++)
			if (job->clones[i] == vm)
				job->clones[i] = NULL;
		vm->job = NULL;
		host_clone_fail(job, "%s: %s", vm->config.machine.name, vm->mailbox->words);
		if (job->answered == job->made)
			host_clone_finish(job);
	}
}
