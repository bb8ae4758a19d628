/*
 * What KVM knows of a VM beyond its memory, taken out of one and put into another: registers, extended state,
 * MSRs, local APICs, interrupt chips, clock. The vCPUs stand still and have no exit to complete (vcpu.c parks
 * them so). Linux Documentation/virt/kvm/api.rst; which MSRs there are KVM says itself.
 */
#ifndef VMM_KVM_STATE_H
#define VMM_KVM_STATE_H

#include "vmm/kvm.h"

struct kvm_vcpu_state {
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_xcrs xcrs;
	struct kvm_lapic_state lapic;
	struct kvm_vcpu_events events;
	struct kvm_debugregs debugregs;
	struct kvm_mp_state mp_state;
	bool has_xcrs, has_tsc_offset;
	uint64_t
		tsc_offset; /* to the host's TSC, so that the guest's runs on wherever it goes on */
	struct kvm_xsave *xsave; /* kvm_host.xsave_bytes */
	struct kvm_msrs *msrs;   /* those that could be read */
};

struct kvm_state {
	unsigned cpus;
	struct kvm_vcpu_state *vcpu[MACHINE_MAX_CPUS];
	struct kvm_irqchip chip[3]; /* both PICs and the I/O APIC */
	struct kvm_clock_data clock;
};

/* Take the state of a VM whose vCPUs are parked. -errno with words; *out is to be freed in any case. */
int kvm_state_save(const struct kvm_vm *vm, struct kvm_state *out, const char *name, char *error);
/* Put it into a new VM with as many vCPUs, none of which has run, in two steps. The first: registers, which have nothing
 * to do with time and for which KVM doesn't touch the guest's memory. -errno with words. */
int kvm_state_begin(const struct kvm_vm *vm, const struct kvm_state *s, const char *name,
		    char *error);
/* The second: the rest, for which it may. The VM's clocks go on as if it had run all the time since. -errno with words. */
int kvm_state_load(const struct kvm_vm *vm, const struct kvm_state *s, const char *name,
		   char *error);
void kvm_state_free(struct kvm_state *s);

#endif
