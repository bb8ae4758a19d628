/* Jobs of clones: requests, and what VMs and templates are asked for. See host_clone.h. */
#include "vmm/host_clone.h"
#include "ipt/fail.h"
#include "vmm/clock.h"
#include "vmm/error.h"
#include "vmm/host_domain.h"
#include "vmm/host_keep.h"
#include "vmm/proc.h"
#include "vmm/store.h"
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define ASKED_MOST \
	16 /* clones that a template is asked for at once; its link's buffer holds more */

/* ---- the end of a job ---------------------------------------------------------------------- */

static void free_job(struct clone_job *job)
{
	struct host *h = job->host;
	struct clone_job **p = &h->jobs;
	while (*p != job)
		p = &(*p)->next;
	*p = job->next;
	for (unsigned i = 0; i < job->made; i++)
		if (job->clones[i])
			job->clones[i]->job = NULL;
	if (job->template && job->template->job == job)
		job->template->job = NULL;
	if (job->source->job == job)
		job->source->job = NULL;
	free(job->clones);
	free(job);
	h->jobs_ended++;
	/* Who waited for that template: of those the oldest, which is the last. */
	struct clone_job *waits = NULL;
	for (struct clone_job *other = h->jobs; other; other = other->next)
		if (other->template && !other->template->job)
			waits = other;
	if (waits) {
		waits->template->job = waits;
		host_clone_step(waits);
	}
}

void host_clone_finish(struct clone_job *job)
{
	const struct host_clone_request *r = &job->request;
	if (job->failed && r->failed)
		r->failed(r->ctx, job->words);
	else if (!job->failed && r->done)
		r->done(r->ctx, job->clones, r->count);
	free_job(job);
}

void host_clone_fail(struct clone_job *job, const char *format, ...)
{
	va_list args;
	if (job->failed)
		return;
	job->failed = true;
	va_start(args, format);
	vsnprintf(job->words, sizeof job->words, format, args);
	va_end(args);
	for (unsigned i = 0; i < job->answered; i++)
		if (job->clones[i])
			host_kill(job->clones[i]);
}

/* ---- asking the template ------------------------------------------------------------------- */

static int register_clone(struct clone_job *job, struct host_vm *clone, char *error)
{
	struct host *h = job->host;
	const char *name = clone->config.machine.name;
	int rc = ipt_vm_add(h->table, name, job->template->id, &clone->id);
	if (rc)
		return errorf(error, rc, "%s: %s", name,
			      rc == -EEXIST   ? "a VM of that name exists"
			      : rc == -ENOSPC ? "the host has as many VMs as its table has room for"
					      : strerror(-rc));
	host_domain_follow(clone, job->template->domain);
	host_merge_admit(clone);
	host_reclaim_admit(clone);
	clone->phase = HOST_VM_FORKING;
	clone->job = job;
	clone->asked_ns = job->asked_ns;
	clone->number = ++h->clones;
	host_keep_numbers(h);
	return 0;
}

static int watch_link(struct host_vm *clone, char *error)
{
	int rc = host_add_source(clone->host, &clone->on_link, EPOLLIN);
	return rc ? errorf(error, rc, "%s: can't listen to its link: %s",
			   clone->config.machine.name, strerror(-rc))
		  : 0;
}

/* The config of the next clone: the template's, with its own name. */
static int name_clone(const struct clone_job *job, struct vm_config *c, char *error)
{
	char *name = c->machine.name;
	size_t size = sizeof c->machine.name;
	int n;
	*c = job->template->config;
	if (!*job->name) {
		const char *after = job->source->config.machine.name;
		int length = (int)strcspn(after, "@"); /* a template's own name is its VM's */
		vmid_t id;
		do /* somebody may have given a name like that to a VM */
			n = snprintf(name, size, "%.*s.%u", length < 20 ? length : 20, after,
				     job->host->clones + 1);
		while (ipt_vm_find(job->host->table, name, &id) == 0 && ++job->host->clones);
	} else if (job->request.count == 1)
		n = snprintf(name, size, "%s", job->name);
	else
		n = snprintf(name, size, "%.26s-%u", job->name, job->made + 1);
	return n < (int)size ? 0 : errorf(error, -ENAMETOOLONG, "%.40s...: too long a name", name);
}

/* A description of the swap file, for a clone that can't open one. -ENODEV: there is no such file. */
static int lend_swap_file(const struct host *h)
{
	const struct store *s = host_store(h);
	return s ? store_describe(s) : -ENODEV;
}

/* What /proc says of a clone, which it can't open itself. Without it the clone does without. */
static void lend_self(const struct clone_job *job, const struct host_vm *clone)
{
	const struct host *h = clone->host;
	const struct link_request request = {.op = LINK_SELF};
	const char *const names[] = {"maps", "pagemap"};
	unsigned n = 0, wanted = h->merger || h->reclaimer ? 2 : 1;
	int fds[2];
	char path[64];
	if (h->sandbox.mode == SANDBOX_OFF || clone->pidfd < 0 ||
	    proc_kin(clone->pidfd, clone->pid, job->template->pid) != PROC_CHILD)
		return;
	for (; n < wanted; n++) {
		snprintf(path, sizeof path, "/proc/%d/%s", (int)clone->pid, names[n]);
		fds[n] = open(path, O_RDONLY | O_CLOEXEC);
		if (fds[n] < 0)
			break;
	}
	if (n)
		link_send(clone->link_fd, &request, sizeof request, fds, n);
	while (n)
		close(fds[--n]);
}

/* Ask for one more. -EAGAIN: the template's link is full. */
static int ask(struct clone_job *job, char *error)
{
	struct vm_config config;
	struct host_vm *clone;
	int ends[LINK_FDS];
	int rc = name_clone(job, &config, error);
	if (!rc)
		rc = host_vm_make(job->host, &config, false, &clone, ends, error);
	if (rc)
		return rc;
	rc = register_clone(job, clone, error);
	if (!rc)
		rc = host_vm_share_pmem(clone, job->template, error);
	if (!rc)
		rc = watch_link(clone, error);
	if (!rc) {
		host_keep_vm(clone);
		struct link_request request = {.op = LINK_CLONE,
					       .id = clone->id.v,
					       .number = clone->number,
					       .predict = job->request.predict,
					       .key = clone->key};
		snprintf(request.name, sizeof request.name, "%s", config.machine.name);
		int fds[LINK_FDS_MAX];
		memcpy(fds, ends, sizeof ends);
		unsigned n = LINK_FDS + host_vm_pmem_fds(clone, fds + LINK_FDS);
		int swap = lend_swap_file(job->host);
		if (swap >= 0)
			fds[n++] = swap;
		rc = swap == -ENODEV || swap >= 0
			     ? link_send(job->template->link_fd, &request, sizeof request, fds, n)
			     : swap;
		if (swap >= 0)
			close(swap);
		if (rc && rc != -EAGAIN)
			errorf(error, rc, "%s: its template can't be asked: %s", request.name,
			       rc == -EPIPE || rc == -EBADF ? "its process ended" : strerror(-rc));
	}
	for (unsigned i = 0; i < LINK_FDS; i++)
		close(ends[i]);
	if (rc)
		host_vm_unmake(clone);
	else
		job->clones[job->made++] = clone;
	return rc;
}

void host_clone_step(struct clone_job *job)
{
	char error[ERROR_MAX];
	int rc = 0;
	while (!job->failed && !rc && job->made < job->request.count &&
	       job->made - job->answered < ASKED_MOST) {
		rc = ask(job, error);
		if (rc && (rc != -EAGAIN || job->made == job->answered))
			host_clone_fail(job, "%s",
					rc == -EAGAIN ? "the template's link is full" : error);
	}
	while (job->running < job->answered) {
		struct host_vm *clone = job->clones[job->running];
		if (clone && !job->failed && clone->mailbox &&
		    !atomic_load_explicit(&clone->mailbox->run_started_ns, memory_order_acquire))
			break;
		if (clone && !job->failed)
			lend_self(job, clone); /* now, since until now it was in a hurry */
		job->running++;
	}
	if (job->failed ? job->answered == job->made : job->running == job->request.count)
		host_clone_finish(job);
}

void host_clone_news(struct host *h)
{
	for (struct clone_job *job = h->jobs; job;) {
		uint32_t ended = h->jobs_ended;
		if (job->template && job->template->job == job &&
		    job->template->phase == HOST_VM_ALIVE)
			host_clone_step(job);
		/* It may be gone, and others with it that waited for their turn and were refused. */
		job = h->jobs_ended == ended ? job->next : h->jobs;
	}
}

/* ---- freezing ------------------------------------------------------------------------------ */

static int ask_to_freeze(struct clone_job *job, char *error)
{
	struct host_vm *vm = job->source, *t;
	struct vm_config config = vm->config;
	struct link_request request = {.op = LINK_FREEZE};
	int ends[LINK_FDS];
	snprintf(config.machine.name, sizeof config.machine.name, "%.24s@%u",
		 vm->config.machine.name, ++job->host->templates);
	int rc = host_vm_make(job->host, &config, true, &t, ends, error);
	if (rc)
		return rc;
	t->phase = HOST_VM_FORKING;
	t->job = job;
	host_domain_follow(t, vm->domain);
	request.key = t->key;
	snprintf(request.name, sizeof request.name, "%s", config.machine.name);
	rc = host_vm_share_pmem(t, vm, error);
	if (!rc)
		rc = host_add_source(job->host, &t->on_link, EPOLLIN);
	if (!rc) {
		host_keep_numbers(job->host);
		host_keep_vm(t);
		rc = link_send(vm->link_fd, &request, sizeof request, &ends[0], 1);
	}
	close(ends[0]);
	close(ends[1]);
	if (rc) {
		host_vm_unmake(t);
		return errorf(error, rc, "%s: can't be told to freeze: %s", vm->config.machine.name,
			      strerror(-rc));
	}
	job->template = t;
	vm->job = job;
	return 0;
}

/* ---- requests ------------------------------------------------------------------------------ */

/* Guests that run, or are being made. */
static unsigned guests(const struct host *h)
{
	unsigned n = h->alive;
	for (unsigned i = 0; i < h->vms; i++)
		n += h->vm[i]->phase == HOST_VM_FORKING && !h->vm[i]->is_template;
	return n;
}

static int check(const struct host_vm *vm, const struct host_clone_request *r, char *error)
{
	struct host *h = vm->host;
	unsigned have = guests(h), room = have < h->config.max_vms ? h->config.max_vms - have : 0;
	const char *name = vm->config.machine.name;
	uint32_t state = atomic_load_explicit(&vm->mailbox->state, memory_order_acquire);
	uint32_t left = ipt_free_frames(h->table);
	int rc = fault_can_share(error);
	if (rc)
		return rc;
	for (unsigned i = 0; i < vm->config.disks; i++)
		if (!vm->config.disk[i].read_only)
			return errorf(error, -EBUSY,
				      "%s: its disk %.100s is writable, and its clones would all "
				      "write to it; start it with ,ro",
				      name, vm->config.disk[i].path);
	if (!vm->is_template && state != VM_RUNNING && state != VM_PAUSED)
		return errorf(error, -EAGAIN, "%s: can't be cloned while it is %s", name,
			      vm_state_name(state));
	if (!r->count || r->count > room)
		return errorf(error, -EINVAL,
			      "%u clones: the host has room for %u more guests; see --max-vms",
			      r->count, room);
	if (left / HOST_CLONE_FRAMES < r->count)
		return errorf(
			error, -ENOMEM,
			"%u clones: the pool has %u free frames, and each clone needs %u to begin "
			"with",
			r->count, left, HOST_CLONE_FRAMES);
	if (!vm->is_template && vm->job)
		return errorf(error, -EBUSY, "%s: is being frozen already; ask again", name);
	return 0;
}

int host_clone(struct host_vm *vm, const struct host_clone_request *request, char *error)
{
	struct host *h = vm->host;
	host_forget_gone(h);
	int rc = check(vm, request, error);
	if (rc)
		return rc;
	struct clone_job *job = fail_null(CLONE_MEMORY, calloc(1, sizeof *job));
	struct host_vm **clones = calloc(request->count, sizeof(struct host_vm *));
	if (!job || !clones) {
		free(job);
		free(clones);
		return errorf(error, -ENOMEM, "no memory for %u clones", request->count);
	}
	*job = (struct clone_job){.host = h,
				  .request = *request,
				  .source = vm->pristine ? vm->pristine : vm,
				  .template = vm->is_template ? vm : vm->pristine,
				  .clones = clones,
				  .asked_ns = clock_ns()};
	if (request->name)
		snprintf(job->name, sizeof job->name, "%s", request->name);
	job->next = h->jobs;
	h->jobs = job;
	if (!job->template) {
		rc = ask_to_freeze(job, error);
		if (rc) {
			job->request.failed = NULL;
			free_job(job);
		}
		return rc;
	}
	if (!job->template->job) {
		job->template->job = job;
		/* Its answers come later, and with them whatever fails from now on. */
		host_clone_step(job);
	}
	return 0;
}

void host_clone_forget(struct host *h, void *ctx)
{
	for (struct clone_job *job = h->jobs; job; job = job->next)
		if (job->request.ctx == ctx) {
			job->request.done = NULL;
			job->request.failed = NULL;
		}
}

void host_clone_destroy(struct host *h)
{
	while (h->jobs) {
		struct clone_job *job = h->jobs;
		h->jobs = job->next;
		free(job->clones);
		free(job);
	}
}
