/*
 * What host.c (the loop, the pool, who is hungry) and host_vm.c (a VM's start, console and end) share.
 * All on the host's one thread.
 */
#ifndef VMM_HOST_PRIVATE_H
#define VMM_HOST_PRIVATE_H

#include "vmm/container.h"
#include "vmm/host.h"

struct host {
	struct host_config config;
	struct host_events events;
	struct kvm_host kvm;
	struct pool pool;
	struct ipt *table;
	struct pmem_file *pmem_files; /* that VMs have as persistent memory */
	int epoll;
	int news_fd;
	struct host_source on_news, on_tick;
	bool ticking;
	struct host_vm **vm;
	unsigned vms, room, alive;
	bool stop;
};

/* Frames came free: tell the VMs that found none. Returns whether anyone still waits. */
bool host_feed_the_hungry(struct host *h);
/* Look after what waits (frames to be freed, VMs that starve) every now and then, or no longer. */
void host_set_tick(struct host *h, bool on);
/* The process is gone: write back what the guest left in files that it shares. -errno, and words in
 * `error` of the first that could not be written. */
int host_vm_finish_pmem(struct host_vm *vm, char *error);
/* The VM is gone from the table: let go of its files. */
void host_vm_leave_pmem(struct host_vm *vm);
/* Free what a dead VM owned: 0, or -errno and the tick tries again. */
int host_vm_reap(struct host_vm *vm);

#endif
