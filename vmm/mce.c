#include "vmm/mce.h"
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>

#define BANKS 10u
#define BANK  9u /* as other monitors have it; Linux doesn't mind which */

/* IA32_MCG_CAP */
#define CAP_CTL_P (UINT64_C(1) << 8)
#define CAP_SER_P (UINT64_C(1) << 24)
#define CR4_MCE   (UINT64_C(1) << 6)
/* IA32_MCG_STATUS */
#define MSR_MCG_STATUS      0x17a
#define MSR_MC_STATUS(bank) (0x401 + 4 * (bank))
#define MCG_RIPV            (UINT64_C(1) << 0)
#define MCG_EIPV            (UINT64_C(1) << 1)
#define MCG_MCIP            (UINT64_C(1) << 2)
/* IA32_MCi_STATUS; 43, 44, 55 and 56 differ between makers */
#define VAL          (UINT64_C(1) << 63)
#define UC           (UINT64_C(1) << 61)
#define EN           (UINT64_C(1) << 60)
#define MISCV        (UINT64_C(1) << 59)
#define ADDRV        (UINT64_C(1) << 58)
#define S            (UINT64_C(1) << 56)
#define AR           (UINT64_C(1) << 55)
#define AMD_POISON   (UINT64_C(1) << 43)
#define AMD_DEFERRED (UINT64_C(1) << 44)
#define SCRUBBING    UINT64_C(0xc0)  /* the same: the error was found by looking for such */
#define DATA_LOAD    UINT64_C(0x134) /* SDM vol. 3B table 16-11: the error was found by a load */
/* IA32_MCi_MISC: the address is physical, and good to 4 KiB */
#define MISC_PAGE (UINT64_C(2) << 6 | 12)

void mce_set_up(const struct kvm_host *k, int vcpu)
{
	uint64_t can = 0;
	if (ioctl(k->fd, KVM_X86_GET_MCE_CAP_SUPPORTED, &can) < 0)
		return;
	uint64_t cap = (can & (CAP_CTL_P | CAP_SER_P)) | BANKS;
	ioctl(vcpu, KVM_X86_SETUP_MCE, &cap); /* without it mce_deliver fails, and says so */
}

void mce_adapt_cpuid(struct kvm_cpuid_entry2 *e)
{
	/* EBX: an overflow of the error's record, and an error that is not corrected, can be survived. */
	if (e->function == 0x80000007)
		e->ebx |= 3;
}

bool mce_is_amd(const struct kvm_host *k)
{
	for (uint32_t i = 0; i < k->cpuid->nent; i++) {
		const struct kvm_cpuid_entry2 *e = &k->cpuid->entries[i];
		if (e->function == 0) /* "AuthenticAMD", "HygonGenuine" */
			return e->ebx == 0x68747541 || e->ebx == 0x6f677948;
	}
	return false;
}

/* ---- the signal ---------------------------------------------------------------------------- */

static _Thread_local struct kvm_run *run_here;
static _Thread_local volatile uintptr_t hit;

static void on_bus_error(int signal_number, siginfo_t *info, void *context)
{
	(void)context;
	if (run_here && (info->si_code == BUS_MCEERR_AR || info->si_code == BUS_MCEERR_AO)) {
		hit = (uintptr_t)info->si_addr;
		run_here->immediate_exit = 1;
		return;
	}
	/* Ours, and no fault of the guest's: end as we would have without a handler. */
	signal(signal_number, SIG_DFL);
	raise(signal_number);
}

void mce_thread(struct kvm_run *run)
{
	struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO};
	run_here = run;
	sigaction(SIGBUS, &action, NULL);
}

uint64_t mce_taken(void)
{
	uintptr_t at = hit;
	hit = 0;
	return at;
}

/* ---- the machine check --------------------------------------------------------------------- */

static int set(int vcpu, struct kvm_x86_mce *mce)
{
	return ioctl(vcpu, KVM_X86_SET_MCE, mce) < 0 ? -errno : 0;
}

int mce_deliver(int vcpu, bool amd, gpa_t at)
{
	/* Found when it was used, the instruction can be begun again, and the address is that of the instruction. */
	struct kvm_x86_mce mce = {.bank = BANK,
				  .addr = at.v,
				  .misc = MISC_PAGE,
				  .mcg_status = MCG_MCIP | MCG_RIPV | MCG_EIPV,
				  .status = VAL | UC | EN | MISCV | ADDRV};
	mce.status |= amd ? AMD_POISON : S | AR | DATA_LOAD;
	return set(vcpu, &mce);
}

/* False: it isn't there. */
static bool read_msr(int vcpu, uint32_t index, uint64_t *value)
{
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entry;
	} msr = {.head.nmsrs = 1, .entry.index = index};
	bool is = ioctl(vcpu, KVM_GET_MSRS, &msr) == 1;
	*value = msr.entry.data;
	return is;
}

enum mce_room mce_room(int vcpu, bool amd)
{
	struct kvm_vcpu_events events;
	struct kvm_sregs s;
	uint64_t status;
	if (amd)
		return !read_msr(vcpu, MSR_MC_STATUS(BANK), &status) ? MCE_NEVER
		       : status & VAL                                ? MCE_LATER
								     : MCE_NOW;
	if (ioctl(vcpu, KVM_GET_SREGS, &s) < 0 || !(s.cr4 & CR4_MCE) ||
	    !read_msr(vcpu, MSR_MCG_STATUS, &status) ||
	    ioctl(vcpu, KVM_GET_VCPU_EVENTS, &events) < 0)
		return MCE_NEVER;
	return status & MCG_MCIP || events.exception.pending || events.exception.injected
		       ? MCE_LATER
		       : MCE_NOW;
}

int mce_notify(int vcpu, bool amd, gpa_t at)
{
	struct kvm_x86_mce mce = {
		.bank = BANK, .addr = at.v, .misc = MISC_PAGE, .status = VAL | EN | MISCV | ADDRV};
	mce.status |= amd ? AMD_POISON | AMD_DEFERRED : UC | S | SCRUBBING;
	mce.mcg_status = amd ? 0 : MCG_MCIP | MCG_RIPV;
	return set(vcpu, &mce);
}

int mce_broadcast(int vcpu)
{
	struct kvm_x86_mce mce = {.bank = 1, .mcg_status = MCG_MCIP | MCG_RIPV, .status = VAL | UC};
	return set(vcpu, &mce);
}
