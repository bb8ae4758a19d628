/*
 * Standing still: every vCPU is out of the guest with no exit to complete, and no device has I/O in flight. So a
 * VM can be frozen, and so the user can stop it for a while.
 *
 * vCPUs park themselves when they see `wanted`; faults go on being served meanwhile, since a vCPU may wait for one
 * in the kernel. All else is decided by update(), on the loop's thread, from what is wanted and how far it is.
 */
#include "vmm/clock.h"
#include "vmm/container.h"
#include "vmm/doze.h"
#include "vmm/vm.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* How long vCPUs get; one that waits for a frame of a full pool can't park. */
#define PARK_MS 2000

static void update(struct vm *vm);

static bool all_parked(const struct vm *vm)
{
	const struct vm_pause *p = &vm->pause;
	for (unsigned i = 0; i < vm->kvm.cpus; i++)
		if (!atomic_load_explicit(&p->parked[i], memory_order_acquire) &&
		    !atomic_load_explicit(&vm->vcpu_gone[i], memory_order_acquire))
			return false;
	return true;
}

/* ---- vCPU threads -------------------------------------------------------------------------- */

void pause_wait(struct vm *vm, unsigned cpu)
{
	struct vm_pause *p = &vm->pause;
	/* Under the lock: see settle(). */
	pthread_mutex_lock(&p->lock);
	/* Release: what this thread did to the vCPU and to devices is seen by who finds it parked. */
	atomic_store_explicit(&p->parked[cpu], true, memory_order_release);
	loop_post(vm->loop, &p->look);
	while (atomic_load_explicit(&p->wanted, memory_order_relaxed) &&
	       !atomic_load_explicit(&vm->stopping, memory_order_acquire))
		pthread_cond_wait(&p->go, &p->lock);
	atomic_store_explicit(&p->parked[cpu], false, memory_order_relaxed);
	pthread_mutex_unlock(&p->lock);
}

static void want(struct vm *vm, bool wanted)
{
	struct vm_pause *p = &vm->pause;
	pthread_mutex_lock(&p->lock);
	atomic_store_explicit(&p->wanted, wanted, memory_order_release);
	pthread_cond_broadcast(&p->go);
	pthread_mutex_unlock(&p->lock);
}

void pause_abandon(struct vm *vm)
{
	pthread_mutex_lock(&vm->pause.lock);
	pthread_cond_broadcast(&vm->pause.go);
	pthread_mutex_unlock(&vm->pause.lock);
}

/* ---- the loop's thread --------------------------------------------------------------------- */

static void answer_freeze(struct vm *vm, const struct link_answer *answer, int pidfd)
{
	struct vm_pause *p = &vm->pause;
	p->freeze = false;
	/* If the host is gone there is nobody to tell. */
	link_send_surely(vm->links.link_fd, answer, sizeof *answer, &pidfd, pidfd >= 0);
	if (pidfd >= 0)
		close(pidfd);
	close(p->template_link);
	p->template_link = -1;
}

static void refuse_freeze(struct vm *vm, int rc, const char *words)
{
	struct link_answer a = {.status = rc, .key = vm->pause.request.key};
	snprintf(a.words, sizeof a.words, "%s: %s", vm->config.machine.name, words);
	answer_freeze(vm, &a, -1);
}

static void arm_timer(struct vm *vm)
{
	struct vm_pause *p = &vm->pause;
	struct io_uring_sqe *sqe = p->timer_armed ? NULL : loop_sqe(vm->loop, &p->timer);
	if (!sqe)
		return;
	p->delay = (struct __kernel_timespec){.tv_nsec = PARK_MS / 2 * 1000000L};
	io_uring_prep_timeout(sqe, &p->delay, 0, 0);
	p->timer_armed = true;
}

static void on_timer(struct loop_op *op, int res, uint32_t flags)
{
	struct vm *vm = container(struct vm, pause.timer, op);
	struct vm_pause *p = &vm->pause;
	(void)flags;
	p->timer_armed = false;
	if (p->stillness != VM_PARKS || res == -ECANCELED)
		return;
	if (clock_ns() < p->deadline_ns) {
		arm_timer(vm);
		return;
	}
	p->stillness = VM_MOVES;
	want(vm, false);
	if (p->by_user) {
		p->by_user = false;
		atomic_fetch_add_explicit(&vm->links.mailbox->pause_refused, 1,
					  memory_order_release);
		vm_tell_host(vm);
	}
	if (p->freeze)
		refuse_freeze(vm, -EBUSY, "a vCPU doesn't stop; it waits for memory");
}

static void freeze(struct vm *vm)
{
	struct vm_pause *p = &vm->pause;
	struct link_answer a = {.status = 0, .key = p->request.key};
	int pidfd = -1;
	board_pause(vm); /* pages of files may be being written back, if it stood still before */
	inject_hurry(vm);
	template_make(vm, &p->request, p->template_link, &a, &pidfd);
	answer_freeze(vm, &a, pidfd);
}

/* Parked vCPUs sleep or have no thread when this returns, and hold no lock: the process may be forked. */
static void settle(struct vm *vm)
{
	pthread_mutex_lock(&vm->pause.lock);
	pthread_mutex_unlock(&vm->pause.lock);
	doze_settle(vm);
}

static void update(struct vm *vm)
{
	struct vm_pause *p = &vm->pause;
	if (atomic_load_explicit(&vm->stopping, memory_order_acquire)) {
		if (p->freeze)
			refuse_freeze(vm, -ESRCH, "it is ending");
		return;
	}
	bool wanted = p->by_user || p->freeze;
	if (wanted && p->stillness == VM_MOVES) {
		p->stillness = VM_PARKS;
		p->deadline_ns = clock_ns() + PARK_MS * UINT64_C(1000000);
		want(vm, true);
		vcpu_kick_all(vm);
		arm_timer(vm);
	}
	if (p->stillness == VM_PARKS && all_parked(vm)) {
		settle(vm);
		board_pause(vm);
		p->stillness = VM_STILL;
		if (p->by_user)
			vm_set_state(vm, VM_PAUSED);
	}
	if (p->stillness == VM_STILL && p->freeze)
		freeze(vm);
	if (p->stillness == VM_STILL && !p->by_user) {
		p->stillness = VM_MOVES;
		board_resume(vm);
		vm_set_state(vm, VM_RUNNING);
		want(vm, false);
		board_wake(vm); /* vCPUs without a thread, which couldn't get one meanwhile */
	}
}

static void look(struct loop_work *w)
{
	struct vm *vm = container(struct vm, pause.look, w);
	doze_settle(vm); /* a thread that let go may have posted this */
	update(vm);
}

void pause_init(struct vm *vm)
{
	vm->pause = (struct vm_pause){.lock = PTHREAD_MUTEX_INITIALIZER,
				      .go = PTHREAD_COND_INITIALIZER,
				      .look = {.run = look},
				      .timer = {.done = on_timer},
				      .template_link = -1};
}

void pause_by_user(struct vm *vm, bool pause)
{
	vm->pause.by_user = pause;
	update(vm);
}

void pause_for_freeze(struct vm *vm, const struct link_request *request, int template_link)
{
	struct vm_pause *p = &vm->pause;
	if (p->freeze) {
		struct link_answer a = {.status = -EBUSY, .key = request->key};
		snprintf(a.words, sizeof a.words, "%s is being frozen already",
			 vm->config.machine.name);
		link_send_surely(vm->links.link_fd, &a, sizeof a, NULL, 0);
		close(template_link);
		return;
	}
	p->freeze = true;
	p->request = *request;
	p->template_link = template_link;
	update(vm);
}
