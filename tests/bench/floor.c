/*
 * bench-floor COUNT MEM-MIB: what KVM itself takes for COUNT VMs with one vCPU, interrupt chips and MEM-MIB of memory
 * that no guest ever touches, all in one process. Each is entered once, without executing anything: KVM makes some of
 * what a VM has only then. Prints {"vms", "kib"}: KiB of host memory for each, by how much what is free or can be
 * reclaimed falls. The floor under what a clone takes.
 */
#include "vmm/error.h"
#include "vmm/kvm.h"
#include "vmm/proc.h"
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

/* Free memory, and page cache and slabs that could be: their sum stays the same when the kernel reclaims some, which
 * MemAvailable, an estimate, doesn't. */
static uint64_t spare_kib(void)
{
	return proc_meminfo_kib("MemFree") + proc_meminfo_kib("Active(file)") +
	       proc_meminfo_kib("Inactive(file)") + proc_meminfo_kib("SReclaimable");
}

int main(int argc, char **argv)
{
	unsigned count = argc > 2 ? (unsigned)atoi(argv[1]) : 0;
	uint64_t bytes = argc > 2 ? strtoull(argv[2], NULL, 10) * MiB : 0;
	char error[ERROR_MAX];
	struct kvm_host host;
	struct machine m = {.name = "floor", .cpus = 1};
	struct rlimit files = {4096 + 2 * count, 4096 + 2 * count};
	if (!count || machine_set_memory(&m, bytes)) {
		fprintf(stderr, "usage: bench-floor COUNT MEM-MIB\n");
		return 2;
	}
	setrlimit(RLIMIT_NOFILE, &files);
	if (kvm_open(&host, error)) {
		fprintf(stderr, "bench-floor: %s\n", error);
		return 2;
	}
	/* One window for all: KVM counts what it needs for its slots, not what is behind them. */
	void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (at == MAP_FAILED)
		return 2;
	const struct window window = {.base = at, .bytes = bytes, .machine = &m};
	struct kvm_vm vm = {.host = &host};
	if (kvm_vm_create(&vm, &host, &m, &window, error)) { /* what only the first needs */
		fprintf(stderr, "bench-floor: %s\n", error);
		return 2;
	}
	sleep(1);
	uint64_t before = spare_kib();
	for (unsigned i = 0; i < count; i++) {
		if (kvm_vm_create(&vm, &host, &m, &window, error)) {
			fprintf(stderr, "bench-floor: VM %u: %s\n", i, error);
			return 2;
		}
		vm.vcpu[0].run->immediate_exit = 1;
		ioctl(vm.vcpu[0].fd, KVM_RUN, 0);
	}
	sleep(1);
	uint64_t after = spare_kib();
	printf("{\"vms\": %u, \"kib\": %.1f}\n", count, ((double)before - (double)after) / count);
	return 0;
}
