#include "ipt/fail.h"
#include "vmm/agent.h"
#include "vmm/balloon.h"
#include "vmm/error.h"
#include "vmm/event.h"
#include "vmm/host_domain.h"
#include "vmm/host_inject.h"
#include "vmm/host_keep.h"
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define FILES_MAX  64   /* as persistent memory at once; they are in the registry as VMs are */
#define WAITS_MOST 1000 /* times in a row that waiting for events may fail */
#define TICK_MS    100  /* how often the host looks after VMs that wait for frames */

/* ---- sources ------------------------------------------------------------------------------- */

int host_add_source(struct host *h, struct host_source *s, uint32_t events)
{
	struct epoll_event e = {.events = events, .data.ptr = s};
	return fail_call(HOST_WATCH, epoll_ctl(h->epoll, EPOLL_CTL_ADD, s->fd, &e)) < 0 ? -errno
											: 0;
}

void host_change_source(struct host *h, struct host_source *s, uint32_t events)
{
	struct epoll_event e = {.events = events, .data.ptr = s};
	epoll_ctl(h->epoll, EPOLL_CTL_MOD, s->fd, &e);
}

void host_remove_source(struct host *h, struct host_source *s)
{
	epoll_ctl(h->epoll, EPOLL_CTL_DEL, s->fd, NULL);
}

int host_run(struct host *h)
{
	unsigned failures = 0; /* in a row */
	h->stop = false;
	while (!h->stop) {
		/* One at a time: what one source does may take another away. */
		struct epoll_event e;
		int n = fail_call(HOST_WAIT, epoll_wait(h->epoll, &e, 1, -1));
		if (n >= 0 || errno == EINTR)
			failures = 0;
		else if (++failures == WAITS_MOST)
			return -errno;
		else /* all VMs end with us: not for an error that may pass */
			nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
		if (n == 1) {
			struct host_source *s = e.data.ptr;
			s->ready(s, e.events);
		}
	}
	return 0;
}

void host_stop(struct host *h)
{
	h->stop = true;
}

/* ---- orders and news ----------------------------------------------------------------------- */

/* A full socket rings too, when it is read. If the kernel has no memory, it is rung at the next tick. */
static void ring(struct host_vm *vm)
{
	const uint32_t bell = LINK_ORDERS;
	int rc = link_send(vm->link_fd, &bell, sizeof bell, NULL, 0);
	if (rc && rc != -EPIPE && rc != -ECONNRESET) {
		vm->host->ring_due = true;
		host_want_tick(vm->host);
	}
}

void host_order(struct host_vm *vm, enum vm_order order)
{
	if (vm->phase != HOST_VM_ALIVE || vm->is_template)
		return;
	atomic_fetch_or_explicit(&vm->mailbox->orders, order, memory_order_release);
	ring(vm);
}

/* Those whose bell couldn't be rung, and who still have orders. */
static void ring_again(struct host *h)
{
	h->ring_due = false;
	for (unsigned i = 0; i < h->vms; i++) {
		struct host_vm *vm = h->vm[i];
		if (vm->phase == HOST_VM_ALIVE && !vm->is_template &&
		    atomic_load_explicit(&vm->mailbox->orders, memory_order_relaxed))
			ring(vm);
	}
}

/* Tell whoever waits for it to stand still or to move. */
static void tell(struct host_vm *vm, int rc)
{
	host_told_fn *told = vm->told;
	vm->told = NULL;
	if (told)
		told(vm->told_ctx, vm, rc);
}

void host_pause(struct host_vm *vm, bool pause, host_told_fn *told, void *ctx)
{
	const uint32_t other = pause ? ORDER_RESUME : ORDER_PAUSE;
	tell(vm, -EINTR);
	vm->told = told;
	vm->told_ctx = ctx;
	vm->told_pause = pause;
	vm->told_refusals = atomic_load_explicit(&vm->mailbox->pause_refused, memory_order_relaxed);
	if (!pause)
		vm->pristine = NULL;
	atomic_fetch_and_explicit(&vm->mailbox->orders, ~other, memory_order_relaxed);
	host_order(vm, pause ? ORDER_PAUSE : ORDER_RESUME);
}

void host_pause_forget(struct host_vm *vm)
{
	vm->told = NULL;
}

void host_vm_told(struct host_vm *vm, bool ended)
{
	if (!vm->told)
		return;
	uint32_t state = atomic_load_explicit(&vm->mailbox->state, memory_order_acquire);
	if (ended || state == VM_ENDED)
		tell(vm, -ESRCH);
	else if ((state == VM_PAUSED) == vm->told_pause)
		tell(vm, 0);
	else if (atomic_load_explicit(&vm->mailbox->pause_refused, memory_order_relaxed) !=
		 vm->told_refusals)
		tell(vm, -EBUSY);
}

bool host_feed_the_hungry(struct host *h)
{
	bool waiting = false, frames = ipt_free_frames(h->table) > 0;
	for (unsigned i = 0; i < h->vms; i++) {
		struct host_vm *vm = h->vm[i];
		if (vm->phase == HOST_VM_ALIVE &&
		    atomic_load_explicit(&vm->mailbox->hungry, memory_order_seq_cst)) {
			waiting = true;
			if (frames)
				host_order(vm, ORDER_FRAMES);
		}
	}
	return waiting;
}

static void arm_tick(struct host *h, bool on)
{
	struct timespec every = {.tv_nsec = on ? TICK_MS * 1000000 : 0};
	timerfd_settime(h->on_tick.fd, 0, &(struct itimerspec){every, every}, NULL);
	h->ticking = on;
}

void host_want_tick(struct host *h)
{
	if (!h->ticking)
		arm_tick(h, true);
}

/* Everything that is waited for; whether something is waited for still. */
static bool look_again(struct host *h)
{
	bool more = host_feed_the_hungry(h);
	host_tell_starved(h);
	host_end_reap_strays(h);
	more = host_end_reap_all(h) || more;
	if (h->ring_due)
		ring_again(h);
	more = h->ring_due || more;
	if (h->resume_due)
		host_console_resume(h);
	more = h->resume_due || more;
	more = host_merge_tick(h) || more;
	return host_reclaim_tick(h) || more;
}

static void on_tick(struct host_source *s, uint32_t events)
{
	struct host *h = container(struct host, on_tick, s);
	(void)events;
	event_drain(s->fd);
	h->ticking = false; /* who asks for another one from here on is heard */
	bool more = look_again(h);
	arm_tick(h, more || h->ticking);
}

/* Tell of VMs that wait for memory, and of those that go on. Where pages can be taken out it is only when no more can
 * be. */
void host_tell_starved(struct host *h)
{
	bool hopeless = host_reclaim_is_full(h);
	for (unsigned i = 0; i < h->vms; i++) {
		struct host_vm *vm = h->vm[i];
		if (vm->phase != HOST_VM_ALIVE)
			continue;
		uint32_t state = atomic_load_explicit(&vm->mailbox->state, memory_order_acquire);
		bool starved = state == VM_STARVED && (hopeless || vm->said_starved);
		if (starved != vm->said_starved && state != VM_ENDED) {
			vm->said_starved = starved;
			h->events.starved(h->events.ctx, vm, starved);
		}
	}
}

static void on_news(struct host_source *s, uint32_t events)
{
	struct host *h = container(struct host, on_news, s);
	(void)events;
	event_drain(s->fd);
	for (unsigned i = 0; i < h->vms; i++) {
		struct host_vm *vm = h->vm[i];
		if (vm->phase != HOST_VM_ALIVE)
			continue;
		host_vm_told(vm, false);
		balloon_news(vm);
		host_inject_news(vm);
		h->events.news(h->events.ctx, vm);
		if (atomic_load_explicit(&vm->mailbox->hungry, memory_order_seq_cst))
			host_want_tick(h);
	}
	host_tell_starved(h);
	host_clone_news(h);
}

/* ---- the host itself ----------------------------------------------------------------------- */

static int make_table(struct host *h, char *error)
{
	uint64_t frames = h->config.pool_bytes >> PAGE_SHIFT;
	if (!frames || frames > IPT_MAX_FRAMES)
		return errorf(error, -EINVAL, "pool: %" PRIu64 " frames; 1 to %u are possible",
			      frames, IPT_MAX_FRAMES);
	struct ipt_config c = {.kind = h->config.kind,
			       .frames = (uint32_t)frames,
			       .max_vms = h->config.max_vms + FILES_MAX + 1, /* the holder */
			       .nodes = h->config.nodes,
			       .colours = h->config.colours};
	if (getrandom(&c.seed, sizeof c.seed, 0) != sizeof c.seed)
		return errorf(error, -EIO, "getrandom: %s", strerror(errno));
	int rc = host_reclaim_open(h, &c, error);
	if (rc)
		return rc;
	rc = host_domain_create(h, c.frames, error);
	if (rc)
		return rc;
	rc = ipt_create(&h->table, &c);
	if (rc)
		return errorf(error, rc, "table for %" PRIu64 " frames: %s", frames, strerror(-rc));
	/* No guest can have that name. */
	rc = c.packed_pages || c.blocks ? ipt_holder_add(h->table, "(merged)") : 0;
	return rc ? errorf(error, rc, "table: %s", strerror(-rc)) : 0;
}

/* A pool of our own; or another host's, whose keeper has it. */
static int find_or_make_table(struct host *h, char *error)
{
	int rc = h->config.keeps ? host_keep_find(h, error) : -ENOENT;
	if (rc == 0) {
		h->unadopted = true;
		return host_adopt_pool(h, error);
	}
	if (rc != -ENOENT)
		return rc;
	/* First, while this process is small. */
	rc = h->config.keeps ? host_keep_start(h, error) : 0;
	return rc ? rc : make_table(h, error);
}

static int open_news(struct host *h)
{
	int fd = host_adopt_fd(h, KEPT_NEWS);
	return fd >= 0 ? fd : eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

/* Four descriptors a VM: ask for as many as the host may have. */
static void raise_descriptor_limit(void)
{
	struct rlimit r;
	if (getrlimit(RLIMIT_NOFILE, &r) == 0 && r.rlim_cur < r.rlim_max) {
		r.rlim_cur = r.rlim_max;
		setrlimit(RLIMIT_NOFILE, &r);
	}
}

static int watch(struct host *h, struct host_source *s, char *error)
{
	int rc = host_add_source(h, s, EPOLLIN);
	return rc ? errorf(error, rc, "the host's event loop: %s", strerror(-rc)) : 0;
}

int host_create(struct host **out, const struct host_config *config,
		const struct host_events *events, char *error)
{
	struct host *h = calloc(1, sizeof *h);
	if (!h)
		return errorf(error, -ENOMEM, "no memory for the host");
	h->config = *config;
	h->events = *events;
	h->sandbox = SANDBOX_NONE;
	h->kvm.fd = h->epoll = h->news_fd = h->on_tick.fd = -1;
	raise_descriptor_limit();
	fault_keep_device();
	/* A file that would grow past the limit of a process is an error like any other (setrlimit(2)). */
	signal(SIGXFSZ, SIG_IGN);
	prctl(PR_SET_CHILD_SUBREAPER, 1); /* of clones whose template's process is gone */
	fail_be(FAIL_HOST, NULL);
	int rc = fail_share();
	if (rc)
		errorf(error, rc, "the failpoints' memory: %s", strerror(-rc));
	if (!rc)
		rc = kvm_open(&h->kvm, error);
	if (!rc)
		rc = sandbox_create(&h->sandbox, h->config.sandbox, h->config.first_id, error);
	if (!rc)
		rc = find_or_make_table(h, error);
	if (!rc) {
		h->epoll = fail_call(HOST_EPOLL, epoll_create1(EPOLL_CLOEXEC));
		h->news_fd = open_news(h);
		h->on_news = (struct host_source){h->news_fd, on_news};
		h->on_tick = (struct host_source){
			timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK), on_tick};
		if (h->epoll < 0 || h->news_fd < 0 || h->on_tick.fd < 0)
			rc = errorf(error, -errno, "the host's event loop: %s", strerror(errno));
	}
	if (!rc)
		rc = watch(h, &h->on_news, error);
	if (!rc)
		rc = watch(h, &h->on_tick, error);
	if (!rc)
		rc = host_merge_create(h, error);
	if (!rc)
		rc = host_reclaim_start(h, error);
	if (!rc)
		rc = host_keep_watch(h, error);
	if (!rc && !h->unadopted)
		host_keep_host(h);
	if (rc) {
		host_destroy(h);
		return rc;
	}
	*out = h;
	return 0;
}

void host_destroy(struct host *h)
{
	host_merge_destroy(h);
	host_keep_destroy(h, !h->unadopted);
	for (unsigned i = 0; i < h->vms; i++) {
		struct host_vm *vm = h->vm[i];
		if (vm->link_fd >= 0)
			close(vm->link_fd); /* of one that isn't our child, this is the end */
		if (vm->phase == HOST_VM_ALIVE) {
			host_kill(vm);
			poll(&(struct pollfd){.fd = vm->pidfd, .events = POLLIN}, 1, -1);
			waitpid(vm->pid, NULL, 0);
			close(vm->pidfd);
			host_vm_finish_pmem(vm, NULL);
		}
		host_vm_leave_pmem(vm);
		if (vm->console_fd >= 0)
			close(vm->console_fd);
		if (vm->ring_fd >= 0)
			close(vm->ring_fd);
		if (vm->mailbox_fd >= 0)
			close(vm->mailbox_fd);
		agent_close(vm);
		if (vm->mailbox)
			munmap(vm->mailbox, sizeof *vm->mailbox);
		free(vm);
	}
	free(h->vm);
	host_clone_destroy(h);
	host_reclaim_destroy(h);
	if (h->table)
		ipt_detach(h->table);
	host_domain_destroy(h);
	kvm_close(&h->kvm);
	sandbox_destroy(&h->sandbox);
	if (h->on_tick.fd >= 0)
		close(h->on_tick.fd);
	if (h->news_fd >= 0)
		close(h->news_fd);
	if (h->epoll >= 0)
		close(h->epoll);
	free(h);
}

const char *host_notice(const struct host *h)
{
	return sandbox_notice(&h->sandbox);
}

struct ipt *host_table(struct host *h)
{
	return h->table;
}

const struct host_config *host_settings(const struct host *h)
{
	return &h->config;
}

const struct pmem_file *host_files(const struct host *h)
{
	return h->pmem_files;
}

const struct pmem_file *host_file_by_id(const struct host *h, vmid_t id)
{
	const struct pmem_file *f = h->pmem_files;
	while (f && f->id.v != id.v)
		f = f->next;
	return f;
}

const struct domain *host_domains(const struct host *h)
{
	return h->domains;
}

uint32_t host_frames(const struct host *h)
{
	return ipt_config(h->table)->frames;
}

unsigned host_alive(struct host *h)
{
	return h->alive;
}

struct host_vm *host_vm_at(struct host *h, unsigned index)
{
	return index < h->vms ? h->vm[index] : NULL;
}

struct host_vm *host_vm_by_name(struct host *h, const char *name)
{
	for (unsigned i = 0; i < h->vms; i++)
		if (h->vm[i]->phase == HOST_VM_ALIVE &&
		    !strcmp(h->vm[i]->config.machine.name, name))
			return h->vm[i];
	return NULL;
}

struct host_vm *host_vm_by_id(struct host *h, vmid_t id)
{
	for (unsigned i = 0; i < h->vms; i++)
		if (h->vm[i]->id.v == id.v && h->vm[i]->phase == HOST_VM_ALIVE)
			return h->vm[i];
	return NULL;
}

void host_forget_gone(struct host *h)
{
	unsigned kept = 0;
	if (h->jobs) /* which point to VMs */
		return;
	for (unsigned i = 0; i < h->vms; i++) {
		struct host_vm *vm = h->vm[i];
		if (vm->phase == HOST_VM_GONE && !vm->draining && !vm->mailbox && !vm->job)
			free(vm); /* nothing else is left since host_end_finish */
		else
			h->vm[kept++] = vm;
	}
	h->vms = kept;
}
