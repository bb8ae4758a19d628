#include "vmm/mailbox.h"

const char *vm_state_name(enum vm_state s)
{
	static const char *const names[] = {
		[VM_STARTING] = "starting", [VM_RUNNING] = "running",   [VM_STARVED] = "starved",
		[VM_PAUSED] = "paused",     [VM_TEMPLATE] = "template", [VM_ENDED] = "ended",
	};
	return (unsigned)s < sizeof names / sizeof *names ? names[s] : "unknown";
}

const char *vm_end_name(enum vm_end e)
{
	static const char *const names[] = {
		[END_NONE] = "none",           [END_POWER_OFF] = "power-off",
		[END_REBOOT] = "reboot",       [END_TRIPLE] = "triple-fault",
		[END_KVM_ERROR] = "kvm-error", [END_HOST_ERROR] = "host-error",
		[END_ORDERED] = "ordered",     [END_CRASHED] = "crashed",
		[END_POWER_CUT] = "power-cut",
	};
	return (unsigned)e < sizeof names / sizeof *names ? names[e] : "unknown";
}
