/* Injected faults in the VM's process: orders from the box, what devices and vCPUs are to have. */
#include "vmm/inject.h"
#include "vmm/clock.h"
#include "vmm/container.h"
#include "vmm/mce.h"
#include "vmm/vm.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>

#define STALL_STEP_MS 10 /* a stalled vCPU looks so often whether it is wanted otherwise */

struct inject_timer {
	struct loop_op op;
	struct vm *vm;
	struct virtio_dev *device;
	struct __kernel_timespec delay;
	bool armed, sent; /* sent: before its time came */
};

static struct inject_box *box(struct vm *vm)
{
	return &vm->links.mailbox->inject;
}

static void count(_Atomic uint64_t *n)
{
	atomic_fetch_add_explicit(n, 1, memory_order_relaxed);
}

/* ---- what devices ask ---------------------------------------------------------------------- */

static bool is_spent(const struct inject_slot *s)
{
	return s->fault.times && s->hits >= s->fault.times;
}

static bool in_range(const struct inject *f, uint64_t at, uint64_t bytes)
{
	return at < f->from + f->bytes && f->from < at + bytes;
}

/* Does it happen this time? Of a fault that concerns what is asked for. */
static bool happens(struct inject_slot *s)
{
	uint64_t n = atomic_fetch_add_explicit(&s->seen, 1, memory_order_relaxed);
	if (s->fault.chance < INJECT_CERTAIN &&
	    chance_below(s->fault.seed, 0, 0, n, INJECT_CERTAIN) >= s->fault.chance)
		return false;
	count(&s->hits);
	return true;
}

static void apply(const struct inject *f, enum virtio_disk_op op, struct virtio_disk_fault *out)
{
	if (f->effect == INJECT_LATENCY) {
		out->delay_ms += f->ms;
		if (out->delay_ms > VIRTIO_FAULT_MS)
			out->delay_ms = VIRTIO_FAULT_MS;
		return;
	}
	if (f->effect == INJECT_TORN && op == VIRTIO_DISK_WRITE) {
		out->torn = true;
		out->sectors = f->sectors;
	}
	if (f->status)
		out->status = f->status;
}

static void disk(void *ctx, struct virtio_dev *d, enum virtio_disk_op op, uint64_t at,
		 uint64_t bytes, struct virtio_disk_fault *out)
{
	struct vm *vm = ctx;
	pthread_mutex_lock(&vm->inject.lock);
	for (unsigned i = 0; i < INJECT_SLOTS; i++) {
		struct inject_slot *s = &box(vm)->slot[i];
		const struct inject *f = &s->fault;
		if (s->id && f->kind == INJECT_DISK && vm->disk[f->disk] == d && f->ops >> op & 1 &&
		    !is_spent(s) && (op == VIRTIO_DISK_FLUSH || in_range(f, at, bytes)) &&
		    happens(s))
			apply(f, op, out);
	}
	pthread_mutex_unlock(&vm->inject.lock);
}

static void on_timer(struct loop_op *op, int res, uint32_t flags)
{
	struct inject_timer *t = container(struct inject_timer, op, op);
	struct vm *vm = t->vm;
	(void)res;
	(void)flags;
	t->armed = false;
	/* With the lock held devices stay: inject_end. */
	pthread_mutex_lock(&vm->inject.timers);
	if (!vm->inject.ended && !t->sent)
		virtio_interrupt_now(t->device);
	pthread_mutex_unlock(&vm->inject.timers);
}

/* Interrupt it later, if not at a time that was set before. False: at once, since there is no timer. */
static bool interrupt_later(struct vm *vm, struct virtio_dev *d, unsigned slot, uint32_t ms)
{
	struct inject_state *s = &vm->inject;
	if (!s->timer)
		s->timer = calloc(MACHINE_MAX_VIRTIO, sizeof *s->timer);
	struct inject_timer *t = s->timer ? &s->timer[slot] : NULL;
	if (t && t->armed && !t->sent)
		return true;
	if (t && t->armed) /* of one that is over: this one isn't late */
		return false;
	struct io_uring_sqe *sqe = t ? loop_sqe(vm->loop, &t->op) : NULL;
	if (!sqe)
		return false;
	*t = (struct inject_timer){.op = {on_timer},
				   .vm = vm,
				   .device = d,
				   .delay = {ms / 1000, ms % 1000 * 1000000LL},
				   .armed = true};
	io_uring_prep_timeout(sqe, &t->delay, 0, 0);
	return true;
}

static enum virtio_irq_fault interrupt(void *ctx, struct virtio_dev *d)
{
	struct vm *vm = ctx;
	enum virtio_irq_fault what = VIRTIO_IRQ_TELL;
	pthread_mutex_lock(&vm->inject.lock);
	for (unsigned i = 0; i < INJECT_SLOTS && what == VIRTIO_IRQ_TELL; i++) {
		struct inject_slot *s = &box(vm)->slot[i];
		const struct inject *f = &s->fault;
		if (!s->id || f->kind != INJECT_IRQ || vm->device[f->device] != d || is_spent(s) ||
		    !happens(s))
			continue;
		if (f->effect == INJECT_DROP)
			what = VIRTIO_IRQ_DROP;
		else if (interrupt_later(vm, d, f->device, f->ms))
			what = VIRTIO_IRQ_LATER;
	}
	pthread_mutex_unlock(&vm->inject.lock);
	return what;
}

void inject_hurry(struct vm *vm)
{
	struct inject_timer *t = vm->inject.timer;
	for (unsigned i = 0; t && i < MACHINE_MAX_VIRTIO; i++)
		if (t[i].armed && !t[i].sent) {
			t[i].sent = true;
			virtio_interrupt_now(t[i].device);
		}
}

static void tell_devices(struct vm *vm, bool have)
{
	for (unsigned i = 0; i < vm->devices; i++)
		virtio_set_faults(vm->device[i], have ? &vm->inject.faults : NULL);
}

/* ---- orders -------------------------------------------------------------------------------- */

static enum inject_outcome refuse(struct vm *vm, const char *why)
{
	snprintf(box(vm)->words, INJECT_WORDS, "%s", why);
	return INJECT_REFUSED;
}

static void clear(struct vm *vm)
{
	tell_devices(vm, false);
	pthread_mutex_lock(&vm->inject.lock);
	for (unsigned i = 0; i < INJECT_SLOTS; i++)
		box(vm)->slot[i].id = 0;
	pthread_mutex_unlock(&vm->inject.lock);
}

/* Into an empty slot, or the oldest of those that are spent. */
static enum inject_outcome arm(struct vm *vm, const struct inject *f)
{
	struct inject_slot *at = NULL;
	pthread_mutex_lock(&vm->inject.lock);
	for (unsigned i = 0; i < INJECT_SLOTS; i++) {
		struct inject_slot *s = &box(vm)->slot[i];
		if ((!s->id || is_spent(s)) && (!at || s->id < at->id))
			at = s;
	}
	if (at) {
		at->id = 0;
		at->fault = *f;
		at->seen = at->hits = 0;
		at->id = ++vm->inject.ids;
		box(vm)->id = vm->inject.ids;
	}
	pthread_mutex_unlock(&vm->inject.lock);
	if (!at)
		return refuse(vm, "as many faults are armed as a VM can have; clear some");
	tell_devices(vm, true);
	return INJECT_ARMED;
}

static void want_attention(struct vm *vm, unsigned cpu)
{
	atomic_fetch_or_explicit(&vm->inject.attention, 1u << cpu, memory_order_release);
}

static enum inject_outcome stall(struct vm *vm, const struct inject *f)
{
	if (f->vcpu >= vm->kvm.cpus || f->ms > INJECT_STALL_MS)
		return refuse(vm, "the guest has no such vCPU");
	atomic_store_explicit(&vm->inject.stalled_until_ns[f->vcpu],
			      clock_ns() + f->ms * UINT64_C(1000000), memory_order_release);
	want_attention(vm, f->vcpu);
	vcpu_kick_all(vm);
	return INJECT_DONE;
}

/* kvmclock at once, each vCPU's TSC when it enters the guest next. */
static enum inject_outcome jump(struct vm *vm, const struct inject *f)
{
	struct kvm_clock_data clock = {.flags = 0};
	if (f->jump_ms > INJECT_JUMP_MS || f->jump_ms < -INJECT_JUMP_MS)
		return refuse(vm, "too far");
	int64_t ns = f->jump_ms * 1000000;
	if (ioctl(vm->kvm.fd, KVM_GET_CLOCK, &clock) < 0)
		return refuse(vm, "KVM doesn't tell its clock");
	if (ns < 0 && clock.clock < (uint64_t)-ns)
		return refuse(vm, "the guest hasn't been up for so long: its clock begins at 0");
	struct kvm_clock_data then = {.clock = clock.clock + (uint64_t)ns};
	if (ioctl(vm->kvm.fd, KVM_SET_CLOCK, &then) < 0)
		return refuse(vm, "KVM doesn't let its clock be set");
	for (unsigned i = 0; i < vm->kvm.cpus; i++) {
		atomic_fetch_add_explicit(&vm->inject.jump_ns[i], ns, memory_order_relaxed);
		want_attention(vm, i);
	}
	vcpu_kick_all(vm);
	return INJECT_DONE;
}

static enum inject_outcome obey(struct vm *vm, const struct inject *f)
{
	struct inject_box *b = box(vm);
	switch (f->kind) {
	case INJECT_MEMORY:
		return inject_memory(&vm->memory, gpa_gfn(gpa(f->gpa)), frame(f->frame), b->words);
	case INJECT_DISK:
		if (f->disk >= vm->config.disks || f->ms > VIRTIO_FAULT_MS ||
		    f->bytes > UINT64_MAX - f->from || f->status > VIRTIO_DISK_UNSUPPORTED)
			return refuse(vm, "the guest has no such disk");
		return arm(vm, f);
	case INJECT_IRQ:
		if (f->device >= vm->devices || f->ms > VIRTIO_FAULT_MS)
			return refuse(vm, "the guest has no such device");
		return arm(vm, f);
	case INJECT_STALL:
		return stall(vm, f);
	case INJECT_CLOCK:
		return jump(vm, f);
	case INJECT_POWER_CUT:
		inject_power_cut(vm, f, &b->loss, b->words);
		return INJECT_DONE;
	case INJECT_NOTICE:
		return inject_notice(vm, f, b->words);
	case INJECT_CLEAR:
		clear(vm);
		return INJECT_DONE;
	}
	return refuse(vm, "no such fault");
}

void inject_obey(struct vm *vm)
{
	struct inject_box *b = box(vm);
	uint32_t asked = atomic_load_explicit(&b->asked, memory_order_acquire);
	if (asked == atomic_load_explicit(&b->answered, memory_order_relaxed) || vm->stopping)
		return;
	struct inject f = b->wanted;
	b->words[0] = 0;
	b->id = 0;
	b->loss = (struct inject_loss){.disks = 0};
	b->outcome = obey(vm, &f);
	atomic_store_explicit(&b->answered, asked, memory_order_release);
	if (f.kind == INJECT_POWER_CUT)
		vm_cut_power(vm, b->words);
	vm_tell_host(vm);
}

void inject_init(struct vm *vm)
{
	vm->inject =
		(struct inject_state){.faults = {.disk = disk, .interrupt = interrupt, .ctx = vm},
				      .lock = PTHREAD_MUTEX_INITIALIZER,
				      .timers = PTHREAD_MUTEX_INITIALIZER};
	tell_devices(vm, false);
}

void inject_end(struct vm *vm)
{
	pthread_mutex_lock(&vm->inject.timers);
	vm->inject.ended = true;
	pthread_mutex_unlock(&vm->inject.timers);
}

/* ---- vCPUs --------------------------------------------------------------------------------- */

void inject_thread(struct vm *vm, unsigned cpu)
{
	mce_thread(vm->kvm.vcpu[cpu].run);
}

static void move_tsc(struct vm *vm, unsigned cpu)
{
	int fd = vm->kvm.vcpu[cpu].fd;
	int64_t ns = atomic_exchange_explicit(&vm->inject.jump_ns[cpu], 0, memory_order_relaxed);
	int khz = ns ? ioctl(fd, KVM_GET_TSC_KHZ, 0) : 0;
	uint64_t offset;
	struct kvm_device_attr attr = {.group = KVM_VCPU_TSC_CTRL,
				       .attr = KVM_VCPU_TSC_OFFSET,
				       .addr = (uintptr_t)&offset};
	if (khz <= 0 || ioctl(fd, KVM_GET_DEVICE_ATTR, &attr) < 0)
		return;
	offset += (uint64_t)(int64_t)((__int128)ns * khz / 1000000);
	ioctl(fd, KVM_SET_DEVICE_ATTR, &attr);
}

/*
 * KVM says that it found lost memory: did the guest? When an access that KVM waited for asynchronously is ready, it looks
 * by itself whether the page is there (virt/kvm/async_pf.c; arch/x86/kvm/x86.c, kvm_arch_async_page_ready), on this thread
 * but while the guest is somewhere else; and the exception by which the guest is told to wait may not be delivered yet,
 * which a machine check would overwrite. So the first signal is passed over. Where it was the guest's access, it comes
 * again, from the same place.
 */
static bool is_the_guests(int vcpu, uint64_t hva)
{
	static _Thread_local uint64_t passed_hva, passed_rip;
	struct kvm_vcpu_events events;
	struct kvm_regs regs;
	if (ioctl(vcpu, KVM_GET_VCPU_EVENTS, &events) < 0 || ioctl(vcpu, KVM_GET_REGS, &regs) < 0)
		return true;
	bool again = !events.exception.injected && !events.exception.pending && passed_hva == hva &&
		     passed_rip == regs.rip;
	passed_hva = events.exception.injected || again ? 0 : hva;
	passed_rip = regs.rip;
	return again;
}

void inject_tell_others(struct vm *vm, unsigned cpu)
{
	for (unsigned i = 0; i < vm->kvm.cpus; i++)
		if (i != cpu) {
			vm->inject.checked[i] = true;
			want_attention(vm, i);
		}
	if (vm->kvm.cpus > 1)
		vcpu_kick_all(vm);
}

/* This vCPU has touched lost memory. */
static void check_machine(struct vm *vm, unsigned cpu, uint64_t hva)
{
	struct inject_box *b = box(vm);
	gfn_t g = window_gfn(&vm->memory.window, hva);
	bool amd = mce_is_amd(vm->kvm.host);
	int rc =
		g.v == INVALID_GFN.v ? -EFAULT : mce_deliver(vm->kvm.vcpu[cpu].fd, amd, gfn_gpa(g));
	if (rc) {
		count(&b->undelivered);
		vm_end(vm, END_HOST_ERROR,
		       "it touched memory that is lost, gpa 0x%" PRIx64
		       ", and a machine check can't be delivered: %s",
		       gfn_gpa(g).v, strerror(-rc));
		return;
	}
	b->last_gpa = gfn_gpa(g).v;
	count(&b->machine_checks);
	if (!amd)
		inject_tell_others(vm, cpu);
}

/* Wait, but not for too long at a time. True: it is over. */
static bool sit_out(struct vm *vm, unsigned cpu)
{
	uint64_t now = clock_ns();
	uint64_t until =
		atomic_load_explicit(&vm->inject.stalled_until_ns[cpu], memory_order_acquire);
	if (now >= until)
		return true;
	uint64_t rest = until - now, step = STALL_STEP_MS * UINT64_C(1000000);
	nanosleep(&(struct timespec){.tv_nsec = (long)(rest < step ? rest : step)}, NULL);
	return false;
}

bool inject_wants(const struct vm *vm, unsigned cpu)
{
	return atomic_load_explicit(&vm->inject.attention, memory_order_acquire) >> cpu & 1;
}

bool inject_may_enter(struct vm *vm, unsigned cpu)
{
	uint64_t hva = mce_taken();
	if (hva && is_the_guests(vm->kvm.vcpu[cpu].fd, hva))
		check_machine(vm, cpu, hva);
	if (!inject_wants(vm, cpu))
		return true;
	atomic_fetch_and_explicit(&vm->inject.attention, ~(1u << cpu), memory_order_acq_rel);
	move_tsc(vm, cpu);
	if (vm->inject.checked[cpu]) {
		vm->inject.checked[cpu] = false;
		mce_broadcast(vm->kvm.vcpu[cpu].fd);
	}
	if (cpu == 0 && !inject_give_notice(vm))
		want_attention(vm, cpu);
	bool over = sit_out(vm, cpu);
	if (!over)
		want_attention(vm, cpu);
	return over;
}
