/*
 * Machine checks: what a guest gets when it touches memory whose bytes are lost. KVM says so by a SIGBUS to the vCPU's
 * thread, with the address (BUS_MCEERR_AR); from that the guest gets the machine check that its processor would give
 * (SDM vol. 3B chapters 16 and 17; APM vol. 2 chapter 9), by KVM_X86_SET_MCE.
 */
#ifndef VMM_MCE_H
#define VMM_MCE_H

#include "vmm/kvm.h"

/* Let a vCPU that is being made have machine checks; does nothing where KVM has none. */
void mce_set_up(const struct kvm_host *k, int vcpu);
/* What of its CPUID says that an operating system may survive them; a guest of AMD's kind looks there. */
void mce_adapt_cpuid(struct kvm_cpuid_entry2 *e);

/* This thread, a vCPU's, takes SIGBUS from now on; its struct kvm_run is told to leave. */
void mce_thread(struct kvm_run *run);
/* The host address at which this thread's vCPU found lost memory since it was asked last; 0: none. */
uint64_t mce_taken(void);

/* Deliver one: memory at gpa is lost. Thread of the vCPU, outside KVM_RUN. 0 or -errno. */
int mce_deliver(int vcpu, bool amd, gpa_t at);
/* Can the vCPU be given a notice now? LATER: it is in the midst of a machine check or of another exception, or (AMD) hasn't
 * looked at the last one yet. NEVER: its guest takes no machine checks (CR4.MCE), and would be shut down. As above. */
enum mce_room { MCE_NOW, MCE_LATER, MCE_NEVER };
enum mce_room mce_room(int vcpu, bool amd);
/* Tell that memory at gpa is lost, although nobody touched it: by a machine check (SDM vol. 3B section 16.9.3.1, SRAO); on
 * AMD's by a deferred error in a bank, which the guest finds when it looks there, for KVM has no interrupt for it (APM vol. 2
 * section 9.3.2.4). As above. */
int mce_notify(int vcpu, bool amd, gpa_t at);
/* Another vCPU had one: on processors that tell all (Intel's), this one hears of it. As above. */
int mce_broadcast(int vcpu);
bool mce_is_amd(const struct kvm_host *k);

#endif
