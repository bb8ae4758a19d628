#include "vmm/identity.h"
#include <errno.h>
#include <sys/random.h>

int identity_renew(struct vm *vm, uint32_t number)
{
	struct {
		uint8_t guid[16];
		uint32_t number;
	} page = {.number = number};
	if (vm->config.image->kind != BOOT_BARE) {
		if (getrandom(page.guid, sizeof page.guid, 0) != sizeof page.guid)
			return -EIO;
		int rc = gmem_write(&vm->memory.gmem, gpa(BOOT_IDENTITY), &page, sizeof page);
		if (rc)
			return rc;
	}
	atomic_store_explicit(&vm->identity, number, memory_order_relaxed);
	return 0;
}

void identity_announce(struct vm *vm)
{
	if (vm->config.image->kind == BOOT_BARE)
		return;
	kvm_vm_irq(&vm->kvm, MACHINE_GENERATION_GSI, true); /* edge-triggered: a pulse */
	kvm_vm_irq(&vm->kvm, MACHINE_GENERATION_GSI, false);
}
