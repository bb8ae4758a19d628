/*
 * One VM, in a process of its own: a thread a vCPU, and the memory-and-device loop. The host forks
 * the process (host.h), which runs vm_process and nothing else, and hears from it through the
 * mailbox, its console socket and its end.
 */
#ifndef VMM_VM_H
#define VMM_VM_H

#include "virtio/virtio.h"
#include "vmm/boot.h"
#include "vmm/idle.h"
#include "vmm/inlet.h"
#include "vmm/kvm.h"
#include "vmm/kvm_state.h"
#include "vmm/link.h"
#include "vmm/memory.h"
#include "vmm/outlet.h"
#include "vmm/pmem.h"
#include "vmm/sandbox.h"
#include "vmm/serial.h"
#include "vmm/store.h"
#include <pthread.h>

#define VM_MAX_DISKS    8
#define VM_MAX_PMEM     MACHINE_MAX_PMEM
#define VM_LOOP_ENTRIES 64
/* At the heap's end, for what a clone needs: else its heap would grow, and shrink again when it rests. */
#define VM_HEAP_KEPT (8 * KiB)
#define VM_MAX_SAID  50 /* lines about a guest's faults that a user is shown */

struct vm_disk {
	const char *path; /* for messages */
	int fd;           /* open, and locked by the host */
	bool read_only, is_volatile;
};

/* What a VM may have when there is less memory than all want (docs/RECLAIM.md). */
struct vm_memory_share {
	uint32_t shares; /* 0: RECLAIM_SHARES */
	uint32_t min;    /* frames that it keeps */
	uint32_t limit;  /* frames in memory, at most; 0: any number */
};

/* What a VM is made from; stays valid in the child after the fork. */
struct vm_config {
	struct machine machine;
	const struct boot_image *image;
	struct vm_disk disk[VM_MAX_DISKS];
	unsigned disks;
	char share_domain[IPT_NAME_LEN]; /* empty: the default one; host.h */
	struct pmem_use
		pmem[VM_MAX_PMEM]; /* of the machine's banks of persistent memory, in order */
	unsigned pmems;
	struct vm_memory_share memory_share;
	bool made_guest; /* the one beside the program, of which we know when it hears the power button */
};

/* What the host hands to the VM's process besides. */
struct vm_links {
	struct ipt *table;
	vmid_t id;
	struct pool *pool; /* of its sharing domain; mapped by the process */
	const struct kvm_host *kvm;
	struct mailbox *mailbox;
	struct pmem_view *const *pmem; /* of config's pmem, made by the host */
	int link_fd;                   /* to the host: link.h */
	int news_fd;                   /* eventfd: the mailbox has news for the host */
	int console_fd;                /* stream socket: console bytes both ways */
	int agent_fd; /* stream socket: bytes of the guest's agent both ways (docs/AGENT.md) */
	struct merge_board *merging; /* NULL: nothing is merged; merge.h */
	const struct store *store; /* where pages go that are taken out of memory; NULL: none are */
	struct reclaim_board *reclaim; /* NULL: likewise */
	const struct sandbox *sandbox; /* to be entered before the guest runs */
	uid_t user;                    /* to be there */
	uint32_t relatives;            /* VMs that may come to be of this one by cloning, at most */
};

struct vm;

/* How far a clone is in being born; its vCPUs' threads wait for it (clone.c). */
enum vm_birth {
	BIRTH_PREPARED, /* nobody wants it yet */
	BIRTH_NAMED,    /* its memory is its own: it can get what was frozen */
	BIRTH_GIVEN,    /* and what it gets before it runs is there */
	BIRTH_OVER,     /* its devices go on: so may all vCPUs */
};

/* How far a VM is in standing still (pause.c); all but what vCPUs read belongs to the loop's thread. */
enum vm_stillness { VM_MOVES, VM_PARKS, VM_STILL };

struct vm_pause {
	pthread_mutex_t lock;
	pthread_cond_t go; /* wanted is false, or the VM ends */
	_Atomic bool wanted;
	_Atomic bool parked[MACHINE_MAX_CPUS];
	struct loop_work look; /* posted by a vCPU that has parked */
	enum vm_stillness stillness;
	bool by_user; /* until a resume */
	bool freeze;  /* a freeze was asked for: */
	struct link_request request;
	int template_link;
	struct loop_op timer;
	bool timer_armed;
	struct __kernel_timespec delay;
	uint64_t deadline_ns;
};

/* See hold.h. */
struct vm_hold {
	_Atomic uint32_t wanted; /* number of the hold, 0: none */
	_Atomic uint32_t
		stands[MACHINE_MAX_CPUS]; /* number of the last one in which this vCPU stood */
	_Atomic uint32_t said;            /* goes up with each of these */
	uint32_t last;
	uint64_t at_ns, cpu_ns; /* when it was last asked for; what vCPUs had used then */
};

/* See doze.h. */
struct vm_doze {
	pthread_mutex_t lock; /* who kicks a thread, and who has it end */
	bool able, asleep[MACHINE_MAX_CPUS];
	unsigned tries;
	struct loop_work rouse;
};

/* A virtio slot's interrupt. */
struct vm_slot {
	struct vm *vm;
	unsigned gsi;
};

struct vm {
	struct vm_config config; /* a copy, so that a clone can have a name of its own */
	struct vm_links links;
	struct memory memory;
	struct store
		store; /* what links.store is: a copy, with a description of the swap file for this process */
	struct kvm_vm kvm;
	struct loop *loop;
	struct serial *serial;
	struct virtio_dev *device[MACHINE_MAX_VIRTIO];
	struct vm_slot slot[MACHINE_MAX_VIRTIO];
	unsigned devices;
	struct virtio_dev *console, *agent, *disk[VM_MAX_DISKS], *pmem[VM_MAX_PMEM], *balloon;
	struct outlet outlet, agent_outlet;
	struct inlet inlet, agent_inlet;
	struct idle idle;
	struct loop_work ending;
	struct loop_work reclaiming, resting;
	struct loop_op on_fault, on_link;
	struct fault_queue starved;
	struct vm_pause pause;
	struct vm_hold hold;
	struct vm_doze doze;
	struct inject_state inject;
	_Atomic enum vm_birth birth;
	struct learn
		*learn; /* what clones of the same template write to at first; NULL: nobody asks */
	pthread_t vcpu_thread[MACHINE_MAX_CPUS];
	struct vm_start {
		struct vm *vm;
		unsigned cpu;
		bool again;        /* it ran before */
	} start[MACHINE_MAX_CPUS]; /* what these are told */
	_Atomic bool vcpu_gone[MACHINE_MAX_CPUS];
	_Atomic bool stopping, ended;
	_Atomic unsigned said;
	_Atomic uint32_t identity; /* the clone's number, 0 for a VM that was booted */
	/* Where the guest's last output came from, and so where input goes; none before the first, since
	 * a guest that sets its console up forgets what came earlier. */
	_Atomic enum vm_console { CONSOLE_NONE, CONSOLE_SERIAL, CONSOLE_VIRTIO } console_in_use;
	/* The agent listens. Input waits until it has said something: Linux drops what comes while it
	 * sets a console up. */
	_Atomic bool agent_spoke;

	/* What is above a clone writes to, and so has its own of. What follows it doesn't, as long as it is idle. */
	struct kvm_state frozen; /* of a template, and of a clone until it runs */
	struct {
		char console_out[OUTLET_BYTES], agent_out[OUTLET_BYTES];
		char console_in[INLET_BYTES], agent_in[INLET_BYTES];
	} buffers;
};
_Static_assert(offsetof(struct vm, frozen) <= PAGE_SIZE, "a clone has one page of it");

/* Run the VM to its end, in this process. Never returns; exit status 0 if the guest ended cleanly.
 */
_Noreturn void vm_process(const struct vm_config *config, const struct vm_links *links);

/* Fill in the virtio slots that board_create will make, so that FDT and ACPI describe them. */
void vm_machine_devices(struct machine *m, unsigned disks);

/* What the state of the VM is, for the host to see. */
void vm_set_state(struct vm *vm, enum vm_state state);
/* There is news in the mailbox. Any thread. */
void vm_tell_host(const struct vm *vm);
/* What only KVM and the devices know, for the mailbox. */
void vm_sample(struct vm *vm);
/* The loop's sources, for the guest's first time or a clone's: faults, link, input. -errno with words. */
int vm_watch(struct vm *vm, char *error);
/* Serve the faults that wait, in the midst of work that takes long. Loop's thread. */
void vm_serve_faults(struct vm *vm);
/* What the process is called in ps: "vm:NAME", "tm:NAME". */
void vm_name_process(const char *prefix, const char *name);
/* Start the vCPUs and run the loop to the VM's end. */
_Noreturn void vm_run(struct vm *vm);
/* ---- vm_end.c ------------------------------------------------------------------------------ */

void vm_end_init(struct vm *vm);
/* The VM is over, for this reason and in these words; the first call counts. Any thread. */
void vm_end(struct vm *vm, enum vm_end end, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
/* The VM is over, at once: nothing is flushed, no console byte is waited for. `and`: what else is to be said about it, or
 * "". Never returns. */
_Noreturn void vm_cut_power(struct vm *vm, const char *and);
/* Tell the host of the end, and exit. */
_Noreturn void vm_leave(struct vm *vm, enum vm_end end, const char *words);
/* Tell the host that there won't be a guest, or none any more, and exit. */
_Noreturn void vm_give_up(struct vm *vm, const char *words);

/* ---- pause.c: standing still --------------------------------------------------------------- */

void pause_init(struct vm *vm);
/* The user's orders. Loop's thread. */
void pause_by_user(struct vm *vm, bool pause);
/* Freeze the VM as soon as it stands still, and answer on the link. Takes template_link. Loop's thread. */
void pause_for_freeze(struct vm *vm, const struct link_request *request, int template_link);
/* A vCPU that has seen pause.wanted and has no exit to complete waits here until the VM moves again or ends. */
void pause_wait(struct vm *vm, unsigned cpu);
/* Let vCPUs that wait there see that the VM ends. */
void pause_abandon(struct vm *vm);

/* ---- balloon.c ------------------------------------------------------------------------------ */

/* Make the device of the next slot. 0 or -errno. */
int balloon_create(struct vm *vm, const struct virtio_env *env, struct virtio_dev **out);
/* The host wants it to be another size. Loop's thread. */
void balloon_obey(struct vm *vm);
/* What it is, for a mailbox that doesn't know yet. */
void balloon_tell(struct vm *vm);

/* ---- template.c, clone.c: freezing, and clones --------------------------------------------- */

/* Make a template of a VM that stands still: its process is forked here. The answer is for the host; *pidfd is
 * the template's, or -1. Loop's thread. */
void template_make(struct vm *vm, const struct link_request *request, int link,
		   struct link_answer *answer, int *pidfd);
/* A clone's first step, on the thread of its vCPU 0, once it has a name: it gets the state that was frozen. -errno with
 * words. */
int clone_wake(struct vm *vm, char *error);
/* Its last before it runs, on each vCPU's thread: wait until it may. Not if the VM ends. */
void clone_go(struct vm *vm, unsigned cpu);

/* ---- vcpu.c -------------------------------------------------------------------------------- */

/* Start the thread of a vCPU whose registers are set. -errno of pthread_create. */
int vcpu_start(struct vm *vm, unsigned cpu);
/* For doze.c, with doze.lock: one that let its thread end has another; -errno as before. That one has ended: wait for it,
 * and give its stack back. */
int vcpu_start_again(struct vm *vm, unsigned cpu);
void vcpu_join(struct vm *vm, unsigned cpu);
/* Have vCPUs leave the guest; they look at stopping, hold.wanted and pause.wanted before they enter it again. */
void vcpu_kick_all(struct vm *vm);
/* Ask vCPUs to leave the guest, and wait up to `ms` for them; those that wait for a frame in the
 * kernel don't. Returns how many are still there. */
unsigned vcpu_stop_all(struct vm *vm, unsigned ms);

/* ---- board.c: what stands at ports and MMIO addresses -------------------------------------- */

/* Make serial and virtio devices. -errno with words. */
int board_create(struct vm *vm, char *error);
/* Take no more requests and finish those in flight (loop's thread); and go on, in this process or in one forked from
 * it (any thread). */
void board_pause(struct vm *vm);
void board_resume(struct vm *vm);
/* In a clone's process, before vm_watch: its own sockets, on its own loop. */
void board_renew(struct vm *vm);
/* Stop devices and finish their I/O, disks flushed. */
void board_destroy(struct vm *vm);
/* A guest access; `data` is read or written, size 1, 2 or 4 (ports), 1 to 8 (MMIO). Any vCPU. */
void board_port(struct vm *vm, uint16_t port, uint8_t *data, unsigned size, bool write);
void board_mmio(struct vm *vm, gpa_t at, uint8_t *data, unsigned size, bool write);
/* Begin to take console and agent bytes for the guest. Loop thread, or before it runs. */
void board_listen(struct vm *vm);
/* Send what the guest wrote and the host hasn't taken yet, waiting at most `ms` each. */
void board_flush(struct vm *vm, int ms);
/* The pool has frames again. */
void board_retry(struct vm *vm);
/* The host wants pages of files that the guest shares clean: write them back. Loop's thread. */
void board_write_back(struct vm *vm);
/* vCPUs that rest at MACHINE_IDLE_PORT go on at once: call it after setting what keeps them from
 * going back to the guest. Any thread. */
void board_wake(struct vm *vm);

#endif
