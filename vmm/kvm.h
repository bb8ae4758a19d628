/*
 * KVM's side of a VM: the descriptors and the set-up that costs least (slots before the interrupt
 * chip: a slot set after it takes a hundred times as long; no PIT: Linux needs none with kvmclock
 * and the TSC-deadline timer). Linux Documentation/virt/kvm/api.rst.
 */
#ifndef VMM_KVM_H
#define VMM_KVM_H

#include "vmm/machine.h"
#include "vmm/window.h"
#include <linux/kvm.h>

#define KVM_MAX_CPUID 128

/* What is the same for all VMs; made once by the host. */
struct kvm_host {
	int fd;
	int run_bytes; /* of struct kvm_run's mapping */
	bool stats, tsc_deadline, xcrs;
	int xsave_bytes;           /* of a vCPU's extended state */
	struct kvm_msr_list *msrs; /* that a VM's state is made of */
	struct kvm_cpuid2 *cpuid;  /* what this host supports, adapted; KVM_MAX_CPUID entries */
};

/* Open /dev/kvm and check what we need of it. -errno with words. */
int kvm_open(struct kvm_host *k, char *error);
void kvm_close(struct kvm_host *k);

struct kvm_vm {
	const struct kvm_host *host;
	int fd;
	unsigned cpus;
	struct kvm_vcpu {
		int fd;
		struct kvm_run *run;
		struct kvm_cpuid2 *cpuid; /* what it was made with */
	} vcpu[MACHINE_MAX_CPUS];
};

/* Make the VM on its window, with interrupt chips and vCPUs. -errno with words; what was opened
 * stays open until the process ends, which is this VM alone. */
int kvm_vm_create(struct kvm_vm *vm, const struct kvm_host *host, const struct machine *machine,
		  const struct window *window, char *error);
/* The same for a clone, by the process's inherited struct of the VM that it is a clone of: the vCPUs are made alike,
 * and are to get that one's state (kvm_state.h). */
int kvm_vm_create_again(struct kvm_vm *vm, const struct machine *machine,
			const struct window *window, char *error);
/* Level of an interrupt line; any thread. */
void kvm_vm_irq(const struct kvm_vm *vm, unsigned gsi, bool level);
/* Guest pages KVM has mapped at the second stage, by size (0 if KVM doesn't tell). */
void kvm_vm_mapped(const struct kvm_vm *vm, uint64_t *pages_4k, uint64_t *pages_2m);

/* Does this host run CPL0 guest code natively? 1 yes, 0 no (a software KVM: Linux guests won't
 * boot), -errno if it could not be told. `rate` (may be NULL) gets the loops a second in CPL0 and
 * in CPL3. */
int kvm_is_native(const struct kvm_host *k, double rate[2]);

#endif
