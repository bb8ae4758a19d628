#include "vmm/vm.h"
#include "ipt/fail.h"
#include "vmm/clock.h"
#include "vmm/container.h"
#include "vmm/doze.h"
#include "vmm/error.h"
#include "vmm/event.h"
#include "vmm/hold.h"
#include "vmm/identity.h"
#include "vmm/merge.h"
#include "vmm/nook.h"
#include "vmm/reclaim.h"
#include "vmm/stack.h"
#include <errno.h>
#include <malloc.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <unistd.h>

#define STACK_BYTES (64 * KiB) /* of the loop's stack, looked through for pages to give back */
#define REST_MS \
	2000 /* without work for the loop, after which a VM gives back what it can do without */

/* Limits of its process. */
#define SPARE_BYTES  (64 * MiB) /* of private memory, beside the window and what it began with */
#define LOCKED_BYTES (64 * MiB) /* swap I/O pins 256 KiB a VM, and goes on without */
#define FILES_MOST   256
#define TASKS_BESIDE 16 /* the loop's thread, ender, template, workers of io_uring and KVM */

/* virtio 1.2 section 5 */
#define ID_BLK     2
#define ID_CONSOLE 3
#define ID_RNG     4
#define ID_BALLOON 5
#define ID_PMEM    27

_Static_assert(4 + VM_MAX_DISKS + VM_MAX_PMEM <= MACHINE_MAX_VIRTIO, "each has a slot");

void vm_machine_devices(struct machine *m, unsigned disks)
{
	m->virtio_slots = 0;
	m->virtio_id[m->virtio_slots++] = ID_CONSOLE;
	m->virtio_id[m->virtio_slots++] = ID_RNG;
	m->virtio_id[m->virtio_slots++] = ID_CONSOLE; /* the agent's */
	for (unsigned i = 0; i < disks; i++)
		m->virtio_id[m->virtio_slots++] = ID_BLK;
	for (unsigned i = m->ram_banks; i < m->banks; i++)
		m->virtio_id[m->virtio_slots++] = ID_PMEM;
	/* Last, so that the others stay where they were. */
	m->virtio_id[m->virtio_slots++] = ID_BALLOON;
}

void vm_tell_host(const struct vm *vm)
{
	event_ring(vm->links.news_fd);
}

void vm_set_state(struct vm *vm, enum vm_state state)
{
	atomic_store_explicit(&vm->links.mailbox->state, state, memory_order_release);
	vm_tell_host(vm);
}

void vm_sample(struct vm *vm)
{
	struct mailbox *mb = vm->links.mailbox;
	uint64_t p4k, p2m, reads = 0, writes = 0, errors = 0;
	kvm_vm_mapped(&vm->kvm, &p4k, &p2m);
	mb->second_stage_pages_4k = p4k;
	mb->second_stage_pages_2m = p2m;
	for (unsigned i = 0; i < vm->config.disks; i++) {
		struct virtio_blk_stats s;
		virtio_blk_stats(vm->disk[i], &s);
		reads += s.reads;
		writes += s.writes;
		errors += s.errors;
	}
	mb->disk_reads = reads;
	mb->disk_writes = writes;
	mb->disk_errors = errors;
	uint64_t flushes = errors = 0;
	for (unsigned i = 0; i < vm->config.pmems; i++) {
		struct virtio_pmem_stats s;
		virtio_pmem_stats(vm->pmem[i], &s);
		flushes += s.flushes;
		errors += s.errors;
	}
	mb->pmem_flushes = flushes;
	mb->pmem_errors = errors;
	uint64_t cleaned = 0;
	for (unsigned i = 0; i < vm->config.pmems; i++)
		cleaned += vm->links.pmem[i]->cleaned_pages;
	mb->pmem_cleaned_pages = cleaned;
}

/* ---- the loop's events --------------------------------------------------------------------- */

static void after_faults(struct vm *vm, int rc)
{
	struct mailbox *mb = vm->links.mailbox;
	if (rc)
		vm_end(vm, END_HOST_ERROR, "a second-stage fault could not be served: %s%s",
		       strerror(-rc),
		       rc == -ENOMEM    ? " (raise vm.max_map_count, or give the host memory)"
		       : rc == -EBADMSG ? " (a page that was taken out of memory came back damaged)"
		       : rc == -EIO     ? " (reading a page back that was taken out of memory)"
					: "");
	/* Waiting for its turn is nothing that the host or a user could mend. */
	bool has_turn = reclaim_has_turn(reclaim_desk(vm->links.reclaim, vm->links.id));
	uint32_t now = vm->starved.n && has_turn ? VM_STARVED : VM_RUNNING;
	uint32_t was = atomic_load_explicit(&mb->state, memory_order_relaxed);
	if (was == now && now == VM_STARVED)
		vm_tell_host(vm); /* hungry again: the host may have looked while it wasn't said */
	if (was == now || vm->pause.stillness == VM_STILL)
		return;
	if (now == VM_STARVED)
		atomic_fetch_add_explicit(&mb->starved, 1, memory_order_relaxed);
	vm_set_state(vm, now);
}

void vm_serve_faults(struct vm *vm)
{
	after_faults(vm, fault_service(&vm->memory, &vm->starved));
}

static void on_fault(struct loop_op *op, int res, uint32_t flags)
{
	struct vm *vm = container(struct vm, on_fault, op);
	(void)flags;
	if (res == -ECANCELED)
		return;
	vm_serve_faults(vm);
	if (res < 0) /* the loop doesn't watch it any more */
		vm_end(vm, END_HOST_ERROR, "io_uring poll of userfaultfd: %s", strerror(-res));
}

static void on_device_error(struct memory *m, int rc, bool final)
{
	struct vm *vm = container(struct vm, memory, m);
	if (final)
		vm_end(vm, END_HOST_ERROR, "a device can't reach the guest's memory: %s",
		       strerror(-rc));
	else
		vm_tell_host(vm);
}

/* A part of what the reclaimer asks for; the rest when others had their turn. */
static void reclaim(struct vm *vm)
{
	int rc = reclaim_take(&vm->memory, vm->links.reclaim);
	if (rc == 1)
		loop_post(vm->loop, &vm->reclaiming);
	else if (rc)
		vm_end(vm, END_HOST_ERROR, "reclaim left a page without its mapping: %s%s",
		       strerror(-rc), rc == -ENOMEM ? " (raise vm.max_map_count)" : "");
}

/* A guest that does nothing is to cost little. */
static void rest(struct loop_work *w)
{
	struct vm *vm = container(struct vm, resting, w);
	memory_rest(&vm->memory);
	malloc_trim(VM_HEAP_KEPT);
	stack_trim(STACK_BYTES);
}

static void go_on_reclaiming(struct loop_work *w)
{
	struct vm *vm = container(struct vm, reclaiming, w);
	after_faults(vm, fault_service(&vm->memory, &vm->starved));
	reclaim(vm);
}

static void take_orders(struct vm *vm)
{
	struct mailbox *mb = vm->links.mailbox;
	uint32_t orders = atomic_exchange_explicit(&mb->orders, 0, memory_order_acquire);
	if (orders & ORDER_FRAMES) {
		atomic_store_explicit(&mb->hungry, 0, memory_order_seq_cst);
		after_faults(vm, fault_retry(&vm->memory, &vm->starved));
		board_retry(vm);
	}
	if (orders & ORDER_SAMPLE) {
		vm_sample(vm);
		virtio_balloon_ask(vm->balloon); /* its answer comes later */
		atomic_fetch_add_explicit(&mb->sampled, 1, memory_order_release);
		vm_tell_host(vm);
	}
	if (orders & ORDER_BALLOON)
		balloon_obey(vm);
	if (orders & ORDER_PRESS_POWER) {
		kvm_vm_irq(&vm->kvm, MACHINE_POWER_GSI, true); /* edge-triggered: a pulse */
		kvm_vm_irq(&vm->kvm, MACHINE_POWER_GSI, false);
	}
	if (orders & ORDER_PAUSE)
		pause_by_user(vm, true);
	if (orders & ORDER_RESUME)
		pause_by_user(vm, false);
	if (orders & ORDER_RENEW) {
		int rc = identity_renew(vm, vm->identity);
		if (rc == 0)
			identity_announce(vm);
		else if (rc == -EAGAIN) /* until ORDER_FRAMES comes */
			atomic_fetch_or_explicit(&mb->orders, ORDER_RENEW, memory_order_relaxed);
	}
	if (orders & ORDER_MERGE) {
		bool still = merge_remaps(&vm->memory, vm->links.merging) && hold_still(vm);
		int rc = merge_take(&vm->memory, vm->links.merging, still);
		if (still)
			hold_end(vm);
		if (rc)
			vm_end(vm, END_HOST_ERROR, "merging left a page without its mapping: %s%s",
			       strerror(-rc), rc == -ENOMEM ? " (raise vm.max_map_count)" : "");
	}
	if (orders & ORDER_RECLAIM) {
		if (vm->starved.n) /* it may be our turn now */
			after_faults(vm, fault_retry(&vm->memory, &vm->starved));
		reclaim(vm);
	}
	if (orders & ORDER_WRITE_BACK)
		board_write_back(vm);
	if (orders & ORDER_INJECT)
		inject_obey(vm);
	if (orders & ORDER_POWER_OFF)
		vm_end(vm, END_ORDERED, "powered off by the host");
}

static void on_link(struct loop_op *op, int res, uint32_t flags)
{
	struct vm *vm = container(struct vm, on_link, op);
	struct link_request request;
	int fds[LINK_FDS_MAX];
	ssize_t n;
	(void)flags;
	if (res == -ECANCELED)
		return;
	while ((n = link_receive(vm->links.link_fd, &request, sizeof request, fds)) > 0) {
		request.name[IPT_NAME_LEN - 1] = 0;
		if (request.op == LINK_ORDERS) {
			take_orders(vm);
		} else if (request.op == LINK_FREEZE && fds[0] >= 0) {
			pause_for_freeze(vm, &request, fds[0]);
			fds[0] = -1;
		} else if (request.op == LINK_SELF && fds[0] >= 0) {
			memory_take_self(&vm->memory, fds[1], fds[0]);
			fds[0] = fds[1] = -1;
		}
		link_close(fds);
	}
	if (n == 0)
		_exit(1); /* the host is gone, and nobody supervises us any more */
	if (res < 0)
		vm_end(vm, END_HOST_ERROR, "io_uring poll of the host's link: %s", strerror(-res));
}

/* ---- set-up -------------------------------------------------------------------------------- */

/* The pool was empty while the image was being loaded: wait for the host's word that it isn't any more. */
static void wait_for_frames(struct vm *vm)
{
	struct mailbox *mb = vm->links.mailbox;
	atomic_fetch_add_explicit(&mb->starved, 1, memory_order_relaxed);
	vm_set_state(vm, VM_STARVED);
	struct pollfd p = {.fd = vm->links.link_fd, .events = POLLIN};
	struct link_request request;
	int fds[LINK_FDS_MAX];
	ssize_t n;
	poll(&p, 1, -1);
	while ((n = link_receive(vm->links.link_fd, &request, sizeof request, fds)) > 0)
		link_close(fds); /* nobody freezes a VM that is starting */
	if (n == 0)
		_exit(1);
	uint32_t orders = atomic_exchange_explicit(&mb->orders, 0, memory_order_acquire);
	atomic_store_explicit(&mb->hungry, 0, memory_order_seq_cst);
	if (orders & ORDER_POWER_OFF)
		vm_leave(vm, END_ORDERED, "powered off by the host while it waited for memory");
	vm_set_state(vm, VM_STARTING);
}

static int load(struct vm *vm, struct boot_plan *plan, char *error)
{
	for (;;) {
		int rc = boot_load(vm->config.image, &vm->config.machine, &vm->memory.gmem, plan,
				   error);
		if (!rc)
			rc = identity_renew(vm, 0);
		if (rc && rc != -EAGAIN && !*error)
			errorf(error, rc, "%s: generation id: %s", vm->config.machine.name,
			       strerror(-rc));
		if (rc != -EAGAIN)
			return rc;
		wait_for_frames(vm);
	}
}

static int set_registers(struct vm *vm, const struct boot_plan *plan, char *error)
{
	for (unsigned i = 0; i < vm->kvm.cpus; i++) {
		const struct boot_cpu *cpu = &plan->cpu[i];
		int fd = vm->kvm.vcpu[i].fd;
		if (!cpu->runs)
			continue;
		struct kvm_sregs sregs;
		struct kvm_mp_state runnable = {.mp_state = KVM_MP_STATE_RUNNABLE};
		int rc = fail_call(KVM_REGISTERS, ioctl(fd, KVM_GET_SREGS, &sregs));
		if (rc == 0) {
			boot_apply_sregs(cpu, &sregs);
			rc = ioctl(fd, KVM_SET_SREGS, &sregs);
		}
		if (rc == 0)
			rc = ioctl(fd, KVM_SET_REGS, &cpu->regs);
		if (rc == 0 && i)
			rc = ioctl(fd, KVM_SET_MP_STATE, &runnable);
		if (rc < 0)
			return errorf(error, -errno, "%s: registers of vCPU %u: %s",
				      vm->config.machine.name, i, strerror(errno));
	}
	return 0;
}

int vm_watch(struct vm *vm, char *error)
{
	int rc = loop_watch(vm->loop, &vm->on_fault, vm->memory.uffd, POLLIN);
	if (!rc)
		rc = loop_watch(vm->loop, &vm->on_link, vm->links.link_fd, POLLIN);
	if (rc)
		return errorf(error, rc, "%s: io_uring poll: %s", vm->config.machine.name,
			      strerror(-rc));
	board_listen(vm);
	return 0;
}

/* The swap file can't be opened once we are in the sandbox. */
static int keep_store(struct vm *vm, char *error)
{
	if (!vm->links.store)
		return 0;
	vm->store = *vm->links.store;
	vm->links.store = &vm->store;
	if (vm->store.file_fd < 0)
		return 0;
	vm->store.own_fd = store_describe(&vm->store);
	return vm->store.own_fd > 0 ? 0
				    : errorf(error, vm->store.own_fd, "%s: the swap file: %s",
					     vm->config.machine.name, strerror(-vm->store.own_fd));
}

static int set_up(struct vm *vm, char *error)
{
	const struct machine *m = &vm->config.machine;
	struct boot_plan plan = {0};
	/* The pool last, which may be large: then page tables of window and nook lie together. */
	int rc = memory_create(&vm->memory, vm->links.table, vm->links.id, m, vm->links.pool,
			       vm->links.mailbox, error);
	if (!rc)
		rc = pool_map(vm->links.pool, error);
	if (rc)
		return rc;
	memory_open_self(&vm->memory, vm->links.store || vm->links.merging);
	rc = keep_store(vm, error);
	if (rc)
		return rc;
	vm->memory.store = vm->links.store;
	vm->memory.reclaim = vm->links.reclaim;
	rc = dax_attach(&vm->memory, vm->links.pmem, vm->config.pmems);
	if (rc)
		return errorf(error, rc, "%s: no memory for its files", m->name);
	rc = loop_create(&vm->loop, VM_LOOP_ENTRIES);
	if (rc)
		return errorf(error, rc, "%s: io_uring: %s%s", m->name, strerror(-rc),
			      rc == -EPERM ? " (see /proc/sys/kernel/io_uring_disabled)" : "");
	rc = board_create(vm, error);
	if (!rc)
		rc = load(vm, &plan, error);
	if (!rc)
		rc = kvm_vm_create(&vm->kvm, vm->links.kvm, m, &vm->memory.window, error);
	if (!rc)
		rc = set_registers(vm, &plan, error);
	if (rc)
		return rc;
	pause_init(vm);
	doze_init(vm, vm->config.image->kind == BOOT_BARE);
	inject_init(vm);
	vm->on_fault.done = on_fault;
	vm->on_link.done = on_link;
	vm_end_init(vm);
	vm->reclaiming.run = go_on_reclaiming;
	vm->resting.run = rest;
	loop_when_quiet(vm->loop, &vm->resting, REST_MS);
	vm->memory.on_device_error = on_device_error;
	return vm_watch(vm, error);
}

static void be_a_vm_process(void)
{
	/* An arena for each vCPU's thread would cost more than waiting for each other does. */
	mallopt(M_ARENA_MAX, 1);
	/* The terminal's Ctrl-C is for the host, which tells us what to do. */
	signal(SIGINT, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGTERM, SIG_DFL);
	signal(SIGCHLD, SIG_IGN); /* a template's end is the host's business: its pidfd tells */
	nook_open();
}

void vm_name_process(const char *prefix, const char *name)
{
	char comm[16];
	snprintf(comm, sizeof comm, "%s:%.12s", prefix, name);
	prctl(PR_SET_NAME, comm);
}

_Noreturn void vm_run(struct vm *vm)
{
	int rc = 0;
	/* A clone's are there already, or started by its first. */
	unsigned first = vm->frozen.cpus ? 0 : vm->kvm.cpus;
	for (unsigned i = 0; i < first && !rc; i++) {
		rc = vcpu_start(vm, i);
		if (rc)
			vm_end(vm, END_HOST_ERROR, "no thread for vCPU %u: %s", i, strerror(-rc));
	}
	rc = loop_run(vm->loop);
	if (rc)
		vm_give_up(vm, "the event loop failed");
	vm_set_state(vm, VM_ENDED);
	_exit(vm->links.mailbox->end == END_POWER_OFF ? 0 : 1);
}

/* Nothing but what the guest asks for is done from now on. */
static int confine(struct vm *vm, uint64_t data_before, char *error)
{
	const struct machine *m = &vm->config.machine;
	uint64_t clones = (uint64_t)vm->links.relatives + 1, caches = 0;
	for (unsigned i = 0; i < vm->config.disks; i++)
		caches += vm->config.disk[i].is_volatile ? VIRTIO_BLK_CACHE_BYTES : 0;
	const struct sandbox_limits limits = {
		.data_bytes = data_before
				      ? data_before + machine_window_bytes(m) + SPARE_BYTES + caches
				      : 0,
		.lock_bytes = LOCKED_BYTES,
		.files = FILES_MOST,
		/* Each has a vCPU's threads, the loop's, the ender, KVM's and io_uring's. */
		.tasks = clones * (m->cpus + TASKS_BESIDE)};
	return sandbox_enter(vm->links.sandbox, SECCOMP_VM, vm->links.user, &limits, error);
}

_Noreturn void vm_process(const struct vm_config *config, const struct vm_links *links)
{
	/* The process is this VM and nothing else. In as few pages as it fits: each clone has its own of what it writes to. */
	static struct vm vm __attribute__((aligned(PAGE_SIZE)));
	char error[ERROR_MAX] = "";
	vm.config = *config;
	vm.links = *links;
	be_a_vm_process();
	vm_name_process("vm", config->machine.name);
	uint64_t data = sandbox_data_bytes();
	fail_be(FAIL_VM, config->machine.name);
	int rc = set_up(&vm, error);
	if (!rc)
		rc = confine(&vm, data, error);
	if (rc)
		vm_give_up(&vm, *error ? error : strerror(-rc));
	vm_run(&vm);
}
