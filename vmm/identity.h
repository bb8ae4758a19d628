/*
 * How a guest tells that it is a copy: a VM Generation ID ("Virtual Machine Generation ID",
 * Microsoft 2012: an ACPI device with a 16-byte GUID in memory, notified when that changes; Linux:
 * drivers/virt/vmgenid.c, which then reseeds its random numbers), and the number of the clone.
 *
 * The page BOOT_IDENTITY of every guest but a bare one: the GUID, then the number, 32 bits
 * little-endian. The number can also be read at MACHINE_IDENTITY_PORT, by all guests.
 */
#ifndef VMM_IDENTITY_H
#define VMM_IDENTITY_H

#include "vmm/vm.h"

/* A fresh GUID, and this number. While the vCPUs don't run, or with identity_announce after it; the
 * loop's thread, or before it runs. 0, gmem_write's -errno (-EAGAIN: the pool has no frame for the
 * page), or -EIO without random bytes; then nothing changed. */
int identity_renew(struct vm *vm, uint32_t number);
/* Tell the guest to look at the GUID again. Any thread. */
void identity_announce(struct vm *vm);

#endif
