/*
 * bench-floor COUNT MEM-MIB: COUNT VMs with one vCPU, interrupt chips and MEM-MIB of memory, all in one process, to
 * measure what KVM itself takes for each: the floor under what a clone takes. Each executes one instruction, in a page
 * that all have in common: KVM makes much of what a VM has only when its guest is entered. Says "ready", and ends with its
 * input.
 */
#include "vmm/boot_parts.h"
#include "vmm/error.h"
#include "vmm/kvm.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>

#define TABLES 0x1000u
#define CODE   0x4000u

/* In the memory that all VMs have in common: page tables of the first 2 MiB (SDM vol. 3A, 4.5), and out %al, $0x80, which
 * leaves KVM_RUN. */
static void write_code(uint8_t *at)
{
	for (unsigned i = 0; i < 2; i++)
		*(uint64_t *)(at + TABLES + i * 0x1000) = TABLES + (i + 1) * 0x1000 + 0x7;
	*(uint64_t *)(at + TABLES + 0x2000) = 0x87;
	memcpy(at + CODE, "\xe6\x80", 2);
}

/* In 64-bit mode, as a clone: what KVM has for a VM depends on whether its guest has paging on. */
static int execute(const struct kvm_vm *vm)
{
	int fd = vm->vcpu[0].fd;
	struct kvm_sregs s;
	struct boot_cpu cpu;
	boot_cpu_state(&cpu, BOOT_MODE_LONG, TABLES);
	cpu.regs.rip = CODE;
	if (ioctl(fd, KVM_GET_SREGS, &s) < 0)
		return -1;
	boot_apply_sregs(&cpu, &s);
	if (ioctl(fd, KVM_SET_SREGS, &s) < 0 || ioctl(fd, KVM_SET_REGS, &cpu.regs) < 0 ||
	    ioctl(fd, KVM_RUN, 0) < 0)
		return -1;
	return vm->vcpu[0].run->exit_reason == KVM_EXIT_IO ? 0 : -1;
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
	write_code(at);
	const struct window window = {.base = at, .bytes = bytes, .machine = &m};
	struct kvm_vm vm = {.host = &host};
	for (unsigned i = 0; i < count; i++) {
		if (kvm_vm_create(&vm, &host, &m, &window, error)) {
			fprintf(stderr, "bench-floor: VM %u: %s\n", i, error);
			return 2;
		}
		if (execute(&vm)) {
			fprintf(stderr, "bench-floor: VM %u doesn't execute (exit %u)\n", i,
				vm.vcpu[0].run->exit_reason);
			return 2;
		}
	}
	puts("ready");
	fflush(stdout);
	while (getchar() != EOF)
		;
	return 0;
}
