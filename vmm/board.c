/* What stands at ports and MMIO addresses: UART, reset and power registers, virtio slots. */
#include "vmm/error.h"
#include "vmm/reclaim.h"
#include "vmm/vm.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define SLP_EN    (1u << 5) /* ACPI 6.4, table 4.24: sleep control register */
#define SLP_TYP_S 2         /* SLP_TYPx, bits 4:2 */

static void serial_irq(void *ctx, bool level)
{
	struct vm *vm = ctx;
	kvm_vm_irq(&vm->kvm, MACHINE_COM1_GSI, level);
}

static void note_output(struct vm *vm, enum vm_console from)
{
	enum vm_console was =
		atomic_exchange_explicit(&vm->console_in_use, from, memory_order_relaxed);
	if (was == CONSOLE_NONE)
		inlet_wanted(&vm->inlet);
}

static void serial_output(void *ctx, const char *bytes, size_t n)
{
	struct vm *vm = ctx;
	note_output(vm, CONSOLE_SERIAL);
	outlet_write(&vm->outlet, bytes, n);
}

static void input_room(void *ctx)
{
	struct vm *vm = ctx;
	inlet_wanted(&vm->inlet);
}

static void input_lost(void *ctx, int rc)
{
	vm_end(ctx, END_HOST_ERROR,
	       "what comes for the guest's console or agent can't be waited for: %s",
	       strerror(-rc));
}

/* Console bytes for the guest. */
static size_t input(void *ctx, const char *bytes, size_t n)
{
	struct vm *vm = ctx;
	size_t took = 0;
	switch (atomic_load_explicit(&vm->console_in_use, memory_order_relaxed)) {
	case CONSOLE_NONE:
		break;
	case CONSOLE_SERIAL:
		took = serial_input(vm->serial, bytes, n);
		idle_wake(&vm->idle); /* a guest that polls the UART sees no interrupt */
		break;
	case CONSOLE_VIRTIO:
		took = virtio_console_input(vm->console, bytes, n);
		break;
	}
	return took;
}

static size_t console_output(void *ctx, const char *bytes, size_t n)
{
	struct vm *vm = ctx;
	note_output(vm, CONSOLE_VIRTIO);
	return outlet_offer(&vm->outlet, bytes, n);
}

static void console_room(void *ctx)
{
	struct vm *vm = ctx;
	virtio_retry(vm->console);
}

static size_t agent_output(void *ctx, const char *bytes, size_t n)
{
	struct vm *vm = ctx;
	if (!atomic_exchange_explicit(&vm->agent_spoke, true, memory_order_relaxed))
		inlet_wanted(&vm->agent_inlet);
	return outlet_offer(&vm->agent_outlet, bytes, n);
}

static size_t agent_input(void *ctx, const char *bytes, size_t n)
{
	struct vm *vm = ctx;
	return atomic_load_explicit(&vm->agent_spoke, memory_order_relaxed)
		       ? virtio_console_input(vm->agent, bytes, n)
		       : 0;
}

static void agent_outlet_room(void *ctx)
{
	struct vm *vm = ctx;
	virtio_retry(vm->agent);
}

static void agent_input_room(void *ctx)
{
	struct vm *vm = ctx;
	inlet_wanted(&vm->agent_inlet);
}

static void virtio_irq(void *ctx, bool level)
{
	const struct vm_slot *slot = ctx;
	kvm_vm_irq(&slot->vm->kvm, slot->gsi, level);
	idle_line(&slot->vm->idle, level);
}

/* A line about a guest's fault goes to the user's standard error, a bounded number of them. */
static void say(void *ctx, const char *line)
{
	struct vm *vm = ctx;
	unsigned said = atomic_fetch_add_explicit(&vm->said, 1, memory_order_relaxed);
	if (said < VM_MAX_SAID)
		dprintf(STDERR_FILENO, "invisor: %s: %s%s\n", vm->config.machine.name, line,
			said == VM_MAX_SAID - 1 ? " (no more of these)" : "");
}

static int add(struct vm *vm, int rc, struct virtio_dev *d, char *error)
{
	if (rc)
		return errorf(error, rc, "%s: virtio slot %u: %s", vm->config.machine.name,
			      vm->devices, strerror(-rc));
	vm->device[vm->devices++] = d;
	return 0;
}

static struct virtio_env env(struct vm *vm)
{
	struct vm_slot *slot = &vm->slot[vm->devices];
	*slot = (struct vm_slot){vm, MACHINE_VIRTIO_GSI + vm->devices};
	return (struct virtio_env){.gmem = &vm->memory.gmem,
				   .loop = vm->loop,
				   .irq = virtio_irq,
				   .irq_ctx = slot,
				   .say = say,
				   .say_ctx = vm};
}

static int protect(void *ctx, gfn_t first, uint64_t count)
{
	struct vm *vm = ctx;
	return dax_protect(&vm->memory, first, count);
}

static void cleaned(void *ctx, uint64_t pages, int error)
{
	const struct vm *vm = ctx;
	reclaim_cleaned(vm->links.reclaim, pages, error);
}

int board_create(struct vm *vm, char *error)
{
	static const struct serial_ops ops = {
		.irq = serial_irq, .output = serial_output, .room = input_room};
	idle_init(&vm->idle);
	outlet_init(&vm->outlet, vm->buffers.console_out, vm->links.console_fd, vm->loop,
		    console_room, vm);
	outlet_init(&vm->agent_outlet, vm->buffers.agent_out, vm->links.agent_fd, vm->loop,
		    agent_outlet_room, vm);
	int rc = serial_create(&vm->serial, &ops, vm);
	if (rc)
		return errorf(error, rc, "%s: serial port: %s", vm->config.machine.name,
			      strerror(-rc));
	/* The order is the machine's: vm_machine_devices in vm.c. */
	struct virtio_dev *d = NULL;
	struct virtio_env e = env(vm);
	rc = virtio_console_create(&d, &e, console_output, vm);
	rc = add(vm, rc, d, error);
	if (rc)
		return rc;
	vm->console = d;
	virtio_console_on_room(d, input_room, vm);
	e = env(vm);
	rc = virtio_rng_create(&d, &e);
	rc = add(vm, rc, d, error);
	if (rc)
		return rc;
	e = env(vm);
	rc = virtio_console_create(&d, &e, agent_output, vm);
	rc = add(vm, rc, d, error);
	if (rc)
		return rc;
	vm->agent = d;
	virtio_set_name(d, "virtio-console of the agent");
	virtio_console_on_room(d, agent_input_room, vm);
	for (unsigned i = 0; !rc && i < vm->config.disks; i++) {
		const struct vm_disk *disk = &vm->config.disk[i];
		char serial[21];
		snprintf(serial, sizeof serial, "invisor-%u", i);
		struct virtio_blk_config c = {.fd = disk->fd,
					      .read_only = disk->read_only,
					      .is_volatile = disk->is_volatile,
					      .serial = serial};
		e = env(vm);
		rc = virtio_blk_create(&d, &e, &c);
		rc = add(vm, rc, d, error);
		vm->disk[i] = d;
	}
	for (unsigned i = 0; !rc && i < vm->config.pmems; i++) {
		const struct machine *m = &vm->config.machine;
		const struct machine_bank *b = &m->bank[m->ram_banks + i];
		struct pmem_view *view = vm->links.pmem[i];
		view->loop = vm->loop;
		view->say = say;
		view->protect = protect;
		view->cleaned = cleaned;
		view->ctx = vm;
		struct virtio_pmem_config c = {.start = b->base.v,
					       .bytes = b->bytes,
					       .flush = view->share ? pmem_flush : NULL,
					       .ctx = view,
					       .clean = view->share ? pmem_clean : NULL};
		e = env(vm);
		rc = virtio_pmem_create(&d, &e, &c);
		rc = add(vm, rc, d, error);
		vm->pmem[i] = d;
	}
	if (rc)
		return rc;
	e = env(vm);
	rc = balloon_create(vm, &e, &d);
	rc = add(vm, rc, d, error);
	vm->balloon = d;
	return rc;
}

void board_pause(struct vm *vm)
{
	for (unsigned i = 0; i < vm->devices; i++)
		virtio_pause(vm->device[i]);
}

void board_renew(struct vm *vm)
{
	outlet_renew(&vm->outlet, vm->links.console_fd);
	outlet_renew(&vm->agent_outlet, vm->links.agent_fd);
	loop_unpost(vm->loop, &vm->inlet.wanted);
	loop_unpost(vm->loop, &vm->agent_inlet.wanted);
}

void board_resume(struct vm *vm)
{
	idle_forget(&vm->idle); /* the lines are raised again: */
	serial_resume(vm->serial);
	for (unsigned i = 0; i < vm->devices; i++)
		virtio_resume(vm->device[i]);
}

void board_destroy(struct vm *vm)
{
	for (unsigned i = 0; i < vm->devices; i++)
		virtio_destroy(vm->device[i]);
	vm->devices = 0;
	for (unsigned i = 0; i < vm->config.disks; i++)
		if (!vm->config.disk[i].read_only && fsync(vm->config.disk[i].fd) < 0 &&
		    errno != EINVAL && errno != EBADF)
			say(vm, "a disk could not be flushed");
	/* What fails here the host tries again, and tells. */
	for (unsigned i = 0; i < vm->config.pmems; i++)
		if (vm->links.pmem[i]->share)
			pmem_write_back(vm->links.pmem[i]);
}

void board_port(struct vm *vm, uint16_t port, uint8_t *data, unsigned size, bool write)
{
	if (port >= MACHINE_COM1_PORT && port < MACHINE_COM1_PORT + 8 && size == 1) {
		serial_access(vm->serial, port - MACHINE_COM1_PORT, data, write);
		return;
	}
	if (!write && port == MACHINE_IDLE_PORT) {
		memset(data, 0, size);
		idle_rest(&vm->idle, &vm->stopping, &vm->pause.wanted);
		return;
	}
	if (!write && port >= MACHINE_IDENTITY_PORT && port + size <= MACHINE_IDENTITY_PORT + 4u) {
		uint32_t number = atomic_load_explicit(&vm->identity, memory_order_relaxed);
		memcpy(data, (const uint8_t *)&number + (port - MACHINE_IDENTITY_PORT), size);
		return;
	}
	if (!write) {
		/* No device there: the bus floats high. The keyboard controller's status reads as
		 * empty and ready, so that who resets by it need not wait. */
		memset(data,
		       port == MACHINE_I8042_PORT || port == MACHINE_SLEEP_PORT + 1 ? 0 : 0xff,
		       size);
		return;
	}
	if (port == MACHINE_SLEEP_PORT && *data & SLP_EN) {
		if ((*data >> SLP_TYP_S & 7) == MACHINE_SLEEP_S5)
			vm_end(vm, END_POWER_OFF, "the guest powered off");
	} else if (port == MACHINE_RESET_PORT && *data == MACHINE_RESET_VALUE) {
		vm_end(vm, END_REBOOT, "the guest asked for a reset (ACPI reset register)");
	} else if (port == MACHINE_I8042_PORT && *data == 0xfe) {
		vm_end(vm, END_REBOOT, "the guest asked for a reset (keyboard controller)");
	}
}

void board_mmio(struct vm *vm, gpa_t at, uint8_t *data, unsigned size, bool write)
{
	uint64_t base = machine_mmio_base(vm->config.machine.bank[0].bytes);
	uint64_t slot = (at.v - base) / MACHINE_MMIO_STRIDE;
	uint64_t offset = (at.v - base) % MACHINE_MMIO_STRIDE;
	if (at.v >= base && slot < vm->devices && offset < VIRTIO_MMIO_SIZE)
		virtio_mmio_access(vm->device[slot], offset, data, size, write);
	else if (!write)
		memset(data, 0xff, size);
}

void board_listen(struct vm *vm)
{
	inlet_init(&vm->inlet, vm->buffers.console_in, vm->links.console_fd, vm->loop, input,
		   input_lost, vm);
	inlet_init(&vm->agent_inlet, vm->buffers.agent_in, vm->links.agent_fd, vm->loop,
		   agent_input, input_lost, vm);
}

void board_flush(struct vm *vm, int ms)
{
	outlet_flush(&vm->outlet, ms);
	outlet_flush(&vm->agent_outlet, ms);
}

void board_wake(struct vm *vm)
{
	idle_wake(&vm->idle);
}

void board_write_back(struct vm *vm)
{
	/* Devices go when it ends, which begins on this thread. */
	for (unsigned i = 0; i < vm->config.pmems && !atomic_load(&vm->stopping); i++)
		virtio_pmem_clean(vm->pmem[i]);
}

void board_retry(struct vm *vm)
{
	for (unsigned i = 0; i < vm->devices; i++)
		virtio_retry(vm->device[i]);
}
