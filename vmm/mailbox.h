/*
 * What the host and one VM's process share besides the table and the pool: orders for the VM, and
 * what the VM tells of itself. One block a VM, made by the host before it forks, so that it
 * outlives the VM's process. Everything in it is read defensively: a VM's process may die between
 * any two stores.
 *
 * Orders: the sender sets bits in `orders` (release) and rings by the link (link.h); the VM's loop
 * takes them all at once (exchange, acquire). News: the VM stores, then writes to the host's
 * eventfd.
 */
#ifndef VMM_MAILBOX_H
#define VMM_MAILBOX_H

#include "vmm/histogram.h"
#include "vmm/inject.h"
#include <stdatomic.h>
#include <stdbool.h>

enum vm_state {
	VM_STARTING, /* the process sets up KVM and loads the image */
	VM_RUNNING,
	VM_STARVED,  /* stopped in a second-stage fault: the pool has no frame for it */
	VM_PAUSED,   /* stands still by the user's order */
	VM_TEMPLATE, /* frozen: clones are made of it */
	VM_ENDED,
};

/* Why a VM ended. CRASHED is what the host concludes when the process died without saying. */
enum vm_end {
	END_NONE,
	END_POWER_OFF,  /* the guest powered off */
	END_REBOOT,     /* the guest asked for a reset */
	END_TRIPLE,     /* triple fault */
	END_KVM_ERROR,  /* KVM_EXIT_INTERNAL_ERROR, FAIL_ENTRY, or KVM_RUN failed */
	END_HOST_ERROR, /* set-up or service failed on the host */
	END_ORDERED,    /* powered off by the host's order */
	END_POWER_CUT,  /* an injected fault: it ended at once */
	END_CRASHED,
};

enum vm_order {
	ORDER_POWER_OFF = 1 << 0,
	ORDER_FRAMES = 1 << 1, /* the pool has frames again: retry what waits */
	ORDER_SAMPLE = 1 << 2, /* refresh what is sampled below */
	ORDER_PRESS_POWER =
		1 << 3, /* press the ACPI power button: the guest may shut itself down */
	ORDER_PAUSE = 1 << 4,
	ORDER_RESUME = 1 << 5,  /* of both, the one that came last */
	ORDER_RENEW = 1 << 6,   /* a new generation id: the guest reseeds its random numbers */
	ORDER_MERGE = 1 << 7,   /* the merger's board may have a request for this VM: merge.h */
	ORDER_RECLAIM = 1 << 8, /* its desk of the reclaimer's board may have a batch: reclaim.h */
	ORDER_BALLOON = 1 << 9, /* the balloon is to hold balloon.wanted pages */
	ORDER_INJECT = 1 << 10, /* a fault is wanted: inject.wanted */
	ORDER_WRITE_BACK = 1 << 11, /* pages of files that it shares are wanted clean: pmem.h */
};

enum fault_kind {
	FAULT_GUEST_READ,
	FAULT_GUEST_WRITE,
	FAULT_DEVICE,
	FAULT_STALE,
	FAULT_SHOWN,   /* a read of shared frames, mapped without a copy */
	FAULT_COPIED,  /* a write to a shared frame, which copied it */
	FAULT_FETCHED, /* a page that was out of memory, brought back */
	FAULT_NKINDS
};

#define MAILBOX_WORDS   1024
#define MAILBOX_NUMBERS 10

/* The balloon, as the VM's process last told; virtio/virtio.h has what the numbers are. */
struct mailbox_balloon {
	_Atomic uint32_t driver, reports;             /* 0 or 1 */
	_Atomic uint32_t target, actual;              /* pages that it is to hold, and holds */
	_Atomic uint64_t inflated, deflated, refused; /* pages */
	_Atomic uint64_t reported;                    /* bytes */
	_Atomic uint32_t known, times;
	_Atomic uint64_t number[MAILBOX_NUMBERS];
	_Atomic uint64_t numbers_ns; /* CLOCK_MONOTONIC, when they came */
};

struct mailbox {
	_Atomic uint32_t orders;
	_Atomic uint32_t state;   /* enum vm_state */
	_Atomic uint32_t end;     /* enum vm_end, set before state becomes VM_ENDED */
	_Atomic uint32_t hungry;  /* the VM found the pool empty: send ORDER_FRAMES when it isn't */
	_Atomic uint32_t sampled; /* counts ORDER_SAMPLEs carried out */
	_Atomic uint32_t balloon_wanted; /* pages, for ORDER_BALLOON; the host writes it */
	_Atomic uint32_t pause_refused;  /* counts ORDER_PAUSEs that a vCPU didn't follow */

	/* The VM's own counters; only its process writes them. */
	_Atomic uint64_t faults[FAULT_NKINDS]; /* second-stage faults served, by what touched */
	_Atomic uint64_t starved;              /* times that a fault had to wait for frames */
	_Atomic uint64_t extents;              /* pieces of pool mapped into the window */
	_Atomic uint64_t extent_frames;
	struct histogram service_ns;     /* userfault read to wake */
	_Atomic uint64_t fetched_frames; /* brought back into memory */
	_Atomic uint64_t fetched_soon;   /* of them: 10 s after their 64 KiB */
	_Atomic uint64_t exits[64];      /* KVM exits by reason */
	_Atomic uint64_t run_started_ns; /* CLOCK_MONOTONIC at the first KVM_RUN */
	_Atomic uint64_t
		first_exit_ns; /* and when it came back from it: the guest has executed something */
	_Atomic uint64_t copied_frames;    /* shared frames of which it has a copy now */
	_Atomic uint64_t predicted_frames; /* of them: copied before it ran */
	_Atomic uint64_t zero_frames;      /* given back, since they held only zeroes */
	_Atomic uint64_t merged_frames;    /* given back for shared ones that held the same */
	_Atomic uint64_t returned_frames;  /* for the template's */
	_Atomic uint64_t published_frames; /* own ones that became shared */
	_Atomic uint64_t given_frames;     /* freed, since the guest gave what they held */
	struct mailbox_balloon balloon;

	/* Sampled by the VM on ORDER_SAMPLE and at its end. */
	_Atomic uint64_t second_stage_pages_4k, second_stage_pages_2m; /* mapped by KVM */
	_Atomic uint64_t disk_reads, disk_writes, disk_errors;
	_Atomic uint64_t pmem_flushes, pmem_errors, pmem_cleaned_pages;

	/* What an idle VM doesn't write to: a page that it doesn't have. */
	char words
		[MAILBOX_WORDS]; /* why it ended, with registers where they help; NUL-terminated */
	struct histogram fetch_ns; /* of service_ns: FAULT_FETCHED */
	struct inject_box inject;
};

/* Names for people: "running", "power-off" and so on. */
const char *vm_state_name(enum vm_state s);
const char *vm_end_name(enum vm_end e);

#endif
