/*
 * One VM, in a process of its own: a thread a vCPU, and the memory-and-device loop. The host forks
 * the process (host.h), which runs vm_process and nothing else, and hears from it through the
 * mailbox, its console socket and its end.
 */
#ifndef VMM_VM_H
#define VMM_VM_H

#include "virtio/virtio.h"
#include "vmm/boot.h"
#include "vmm/kvm.h"
#include "vmm/memory.h"
#include "vmm/outlet.h"
#include "vmm/pmem.h"
#include "vmm/serial.h"
#include <pthread.h>

#define VM_MAX_DISKS 8
#define VM_MAX_PMEM  MACHINE_MAX_PMEM
#define VM_MAX_SAID  50 /* lines about a guest's faults that a user is shown */

struct vm_disk {
	const char *path; /* for messages */
	int fd;           /* open, and locked by the host */
	bool read_only;
};

/* What a VM is made from; stays valid in the child after the fork. */
struct vm_config {
	struct machine machine;
	const struct boot_image *image;
	struct vm_disk disk[VM_MAX_DISKS];
	unsigned disks;
	struct pmem_use
		pmem[VM_MAX_PMEM]; /* of the machine's banks of persistent memory, in order */
	unsigned pmems;
};

/* What the host hands to the VM's process besides. */
struct vm_links {
	struct ipt *table;
	vmid_t id;
	const struct pool *pool;
	const struct kvm_host *kvm;
	struct mailbox *mailbox;
	struct pmem_view *const *pmem; /* of config's pmem, made by the host */
	int orders_fd;                 /* eventfd: the mailbox has orders */
	int news_fd;                   /* eventfd: the mailbox has news for the host */
	int console_fd;                /* stream socket: console bytes both ways */
};

struct vm;

/* A virtio slot's interrupt. */
struct vm_slot {
	struct vm *vm;
	unsigned gsi;
};

struct vm {
	const struct vm_config *config;
	struct vm_links links;
	struct memory memory;
	struct kvm_vm kvm;
	struct loop *loop;
	struct serial *serial;
	struct virtio_dev *device[MACHINE_MAX_VIRTIO];
	struct vm_slot slot[MACHINE_MAX_VIRTIO];
	unsigned devices;
	struct virtio_dev *console, *disk[VM_MAX_DISKS];
	struct outlet outlet;
	char input[512]; /* bytes for the guest that it had no room for yet */
	size_t input_held;
	bool input_watched;
	struct loop_work input_wanted, ending;
	struct loop_op on_fault, on_orders, on_input;
	struct fault_queue starved;
	struct boot_plan plan;
	pthread_t vcpu_thread[MACHINE_MAX_CPUS];
	_Atomic bool vcpu_gone[MACHINE_MAX_CPUS];
	_Atomic bool stopping, ended;
	_Atomic unsigned said;
	/* Where the guest's last output came from, and so where input goes; none before the first, since
	 * a guest that sets its console up forgets what came earlier. */
	_Atomic enum vm_console { CONSOLE_NONE, CONSOLE_SERIAL, CONSOLE_VIRTIO } console_in_use;
};

/* Run the VM to its end, in this process. Never returns; exit status 0 if the guest ended cleanly.
 */
_Noreturn void vm_process(const struct vm_config *config, const struct vm_links *links);

/* The VM is over, for this reason and in these words; the first call counts. Any thread. */
void vm_end(struct vm *vm, enum vm_end end, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* Give the guest what input is held, then read more. Any thread. */
void vm_input_wanted(struct vm *vm);

/* Fill in the virtio slots that board_create will make, so that FDT and ACPI describe them. */
void vm_machine_devices(struct machine *m, unsigned disks);

/* ---- vcpu.c -------------------------------------------------------------------------------- */

/* Start the thread of a vCPU whose registers are set. -errno of pthread_create. */
int vcpu_start(struct vm *vm, unsigned cpu);
/* Ask vCPUs to leave the guest, and wait up to `ms` for them; those that wait for a frame in the
 * kernel don't. Returns how many are still there. */
unsigned vcpu_stop_all(struct vm *vm, unsigned ms);

/* ---- board.c: what stands at ports and MMIO addresses -------------------------------------- */

/* Make serial and virtio devices. -errno with words. */
int board_create(struct vm *vm, char *error);
/* Stop devices and finish their I/O, disks flushed. */
void board_destroy(struct vm *vm);
/* A guest access; `data` is read or written, size 1, 2 or 4 (ports), 1 to 8 (MMIO). Any vCPU. */
void board_port(struct vm *vm, uint16_t port, uint8_t *data, unsigned size, bool write);
void board_mmio(struct vm *vm, gpa_t at, uint8_t *data, unsigned size, bool write);
/* Console bytes for the guest; returns how many were taken. */
size_t board_input(struct vm *vm, const char *bytes, size_t n);
/* The pool has frames again. */
void board_retry(struct vm *vm);

#endif
