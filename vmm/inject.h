/*
 * Faults that somebody injects into a guest to see what it does (docs/FAULTS.md): what they are, the box in the mailbox
 * by which they come to the VM's process, and what that process does about them.
 *
 *   memory      a frame is damaged: its bytes are destroyed, and it is never used again
 *   notice      the guest is told that a page's memory is bad, before it touches it
 *   disk        requests to a range of a disk fail, come late, or are torn
 *   irq         a virtio device's interrupts are lost, or late
 *   stall       a vCPU stays out of the guest for a while
 *   clock       the guest's clocks jump
 *   power-cut   the VM ends at once; disks with a volatile cache lose what was not flushed
 *
 * Disk and irq faults stay until they have happened `times` times, or are cleared: each has a place (slot) in the box,
 * whose counters the host reads at any time. The others happen once.
 */
#ifndef VMM_INJECT_H
#define VMM_INJECT_H

#include "virtio/faults.h"
#include "virtio/loop.h"
#include "vmm/machine.h"
#include <pthread.h>
#include <stdatomic.h>

#define INJECT_SLOTS    16
#define INJECT_WORDS    160
#define INJECT_STALL_MS 60000
#define INJECT_JUMP_MS  (INT64_C(366) * 86400 * 1000)
#define INJECT_TIMES    1000000
#define INJECT_CERTAIN  1000000 /* parts per million */
#define INJECT_ANYWHERE UINT64_MAX

enum inject_kind {
	INJECT_NONE,
	INJECT_MEMORY,
	INJECT_DISK,
	INJECT_IRQ,
	INJECT_STALL,
	INJECT_CLOCK,
	INJECT_POWER_CUT,
	INJECT_NOTICE,
	INJECT_CLEAR, /* no fault: all slots become empty */
	INJECT_KINDS
};
/* Does it concern a page, which may be a random one of [from, from + bytes)? */
static inline bool inject_has_page(uint32_t kind)
{
	return kind == INJECT_MEMORY || kind == INJECT_NOTICE;
}

/* What a power cut takes of volatile disks' unflushed writes; not said: all. */
enum inject_lose { INJECT_LOSE_UNSAID, INJECT_LOSE_ALL, INJECT_LOSE_NONE, INJECT_LOSE_RANDOM };

enum inject_effect { INJECT_ERROR, INJECT_LATENCY, INJECT_TORN, INJECT_DROP, INJECT_DELAY };

/* One fault, in numbers alone: it goes from process to process, and what comes out of the box is checked again. */
struct inject {
	uint32_t kind;
	uint64_t gpa;   /* memory, notice: of the page; INJECT_ANYWHERE: by frame */
	uint32_t frame; /* memory: UINT32_MAX: by gpa */
	uint32_t disk;
	uint32_t ops; /* disk: bits by enum virtio_disk_op */
	uint64_t from, bytes;
	uint32_t effect;  /* disk, irq: enum inject_effect */
	uint32_t status;  /* disk: enum of virtio_disk_fault */
	uint32_t sectors; /* disk, torn */
	uint32_t ms;      /* latency, delay, stall */
	uint32_t chance;  /* disk: of a request that it concerns, parts per million */
	uint32_t times;   /* disk, irq: at most; 0: until cleared */
	uint32_t device;  /* irq: virtio slot */
	char name[12];    /* and what it was called */
	uint32_t vcpu;    /* stall */
	int64_t jump_ms;  /* clock */
	uint64_t seed;    /* disk: of its chances; power-cut: of what it takes */
	uint32_t lose;    /* power-cut: enum inject_lose */
};

/* What a power cut took of all volatile disks together. */
struct inject_loss {
	uint32_t disks;                   /* that are volatile */
	uint64_t writes, bytes;           /* not flushed */
	uint64_t lost_writes, lost_bytes; /* of these, wholly or in part */
};

/* What became of it. */
enum inject_outcome {
	INJECT_REFUSED,  /* nothing was done; words say why */
	INJECT_DONE,     /* of one that happens at once */
	INJECT_ARMED,    /* it has a slot, and happens later */
	INJECT_RETIRED,  /* memory: nobody had the frame */
	INJECT_REPAIRED, /* memory: what it held is elsewhere */
	INJECT_LOST,     /* memory: who touches it gets a machine check */
	INJECT_BLANK,    /* memory: there was nothing to lose, and nothing was done */
};
const char *inject_outcome_name(enum inject_outcome o);

struct inject_slot {
	_Atomic uint32_t id;         /* 0: empty */
	struct inject fault;         /* written while it is empty */
	_Atomic uint64_t seen, hits; /* what it could have hit, and did */
};

/* In the mailbox. The host writes `wanted`, then asks (`asked` + 1, ORDER_INJECT) when the one before was answered. */
struct inject_box {
	struct inject wanted;
	_Atomic uint32_t asked, answered;
	_Atomic uint32_t outcome; /* enum inject_outcome; words too, before `answered` */
	_Atomic uint32_t id;      /* of the slot that it got */
	struct inject_loss loss;
	char words[INJECT_WORDS];
	struct inject_slot slot[INJECT_SLOTS];
	_Atomic uint64_t machine_checks, last_gpa; /* given to the guest */
	_Atomic uint64_t undelivered;              /* that the guest couldn't be given */
};

/* ---- the VM's process ----------------------------------------------------------------------- */

struct vm;
struct inject_timer;

struct inject_state {
	struct virtio_faults faults; /* what devices get while a slot is taken */
	pthread_mutex_t lock;        /* slots; a leaf, taken with a device's lock held */
	pthread_mutex_t
		timers; /* taken before a device's lock: devices exist while it is held and `ended` is false */
	bool ended;
	uint32_t ids;
	struct inject_timer *timer; /* of each virtio slot's late interrupt; NULL: never needed */
	/* What vCPUs have to do before they enter the guest again, by bit of the vCPU; 0 in nearly all cases. */
	_Atomic uint32_t attention;
	_Atomic uint64_t stalled_until_ns[MACHINE_MAX_CPUS];
	_Atomic int64_t jump_ns[MACHINE_MAX_CPUS]; /* of the TSC, still to be made */
	_Atomic uint64_t notice; /* gpa | 1: that vCPU 0 is still to be told of; 0: none */
	_Atomic bool checked
		[MACHINE_MAX_CPUS]; /* another vCPU had a machine check: this one hears of it */
};

/* Before the VM runs, also in a clone's process. */
void inject_init(struct vm *vm);
/* Devices are about to go: none is interrupted any more. */
void inject_end(struct vm *vm);
/* Interrupts that are late come now: a clone, which has no timers, would never get them. Loop's thread, no vCPU runs. */
void inject_hurry(struct vm *vm);
/* ORDER_INJECT. Loop's thread. */
void inject_obey(struct vm *vm);
/* A vCPU's thread begins; and before each time that it enters the guest. False: don't yet. */
void inject_thread(struct vm *vm, unsigned cpu);
bool inject_may_enter(struct vm *vm, unsigned cpu);
/* Has it something to do before that? */
bool inject_wants(const struct vm *vm, unsigned cpu);
/* A vCPU has been given a machine check: on processors that tell all of them, so that the others have it too. */
void inject_tell_others(struct vm *vm, unsigned cpu);
/* inject_power.c: disks get to be what a power cut leaves of them. Loop's thread. */
void inject_power_cut(struct vm *vm, const struct inject *f, struct inject_loss *loss,
		      char words[INJECT_WORDS]);
/* inject_notice.c: the guest is to be told of a page (loop's thread); vCPU 0 is about to enter the guest, and is told of it
 * if it can be (its thread). False: not yet. */
enum inject_outcome inject_notice(struct vm *vm, const struct inject *f, char words[INJECT_WORDS]);
bool inject_give_notice(struct vm *vm);
/* inject_memory.c: the VM's own page is damaged. Loop's thread. */
struct memory;
enum inject_outcome inject_memory(struct memory *m, gfn_t g, frame_t f, char words[INJECT_WORDS]);

/* ---- chance.c ------------------------------------------------------------------------------- */

/* The n-th random number of a stream that is named by a seed and two more numbers: the same whenever it is asked
 * for, whatever else was. */
uint64_t chance_number(uint64_t seed, uint64_t a, uint64_t b, uint64_t n);
/* The same as one of 0 to below - 1 (below > 0), all as likely to within 2^-32. */
uint64_t chance_below(uint64_t seed, uint64_t a, uint64_t b, uint64_t n, uint64_t below);

#endif
