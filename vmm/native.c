/*
 * Does KVM run privileged guest code on the processor? Some machines offer a /dev/kvm that emulates
 * CPL0 instruction by instruction, a thousand times slower than CPL3; Linux doesn't boot on those.
 * The same short loop runs at both levels, and the ratio tells.
 */
#include "vmm/boot_parts.h"
#include "vmm/clock.h"
#include "vmm/kvm.h"
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define LOOPS      20000 /* 10 ms where CPL0 is emulated, nothing where it isn't */
#define NATIVE_MIN 0.05  /* CPL0 over CPL3 speed from which a host counts as native */
#define CODE_AT    0x10000

/* mov loops, %ecx; 1: dec %ecx; jnz 1b; out %al, $0x10; jmp . */
static const uint8_t code[] = {
	0xb9, LOOPS & 0xff, LOOPS >> 8 & 0xff, LOOPS >> 16, 0, 0xff, 0xc9, 0x75, 0xfc, 0xe6, 0x10,
	0xeb, 0xfe};

/* Loops a second in one mode, or -errno. */
static double loop_rate(int vcpu, struct kvm_run *run, enum boot_mode mode)
{
	struct kvm_sregs s;
	struct boot_cpu cpu;
	if (ioctl(vcpu, KVM_GET_SREGS, &s) < 0)
		return -errno;
	boot_cpu_state(&cpu, mode, BOOT_BARE_TABLES);
	boot_apply_sregs(&cpu, &s);
	cpu.regs.rip = CODE_AT;
	double best = 0;
	for (int round = 0; round < 3; round++) {
		if (ioctl(vcpu, KVM_SET_SREGS, &s) < 0 || ioctl(vcpu, KVM_SET_REGS, &cpu.regs) < 0)
			return -errno;
		uint64_t began = clock_ns();
		int rc;
		do
			rc = ioctl(vcpu, KVM_RUN, 0);
		while (rc < 0 && errno == EINTR);
		if (rc < 0)
			return -errno;
		if (run->exit_reason != KVM_EXIT_IO || run->io.port != 0x10)
			return -EIO;
		double rate = LOOPS * 1e9 / (double)(clock_ns() - began + 1);
		if (rate > best)
			best = rate;
	}
	return best;
}

int kvm_is_native(const struct kvm_host *k, double rate[2])
{
	const size_t bytes = 2 * MiB;
	double got[2] = {-EIO, -EIO};
	int vm = ioctl(k->fd, KVM_CREATE_VM, 0), vcpu = -1;
	if (vm < 0)
		return -errno;
	struct kvm_run *run = MAP_FAILED;
	uint8_t *mem =
		mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (mem != MAP_FAILED) {
		/* Identity map of the first 2 MiB, for users too. */
		uint64_t *tables = (uint64_t *)(mem + BOOT_BARE_TABLES);
		tables[0] = (BOOT_BARE_TABLES + PAGE_SIZE) | 0x7;
		tables[512] = (BOOT_BARE_TABLES + 2 * PAGE_SIZE) | 0x7;
		tables[1024] = 0x87;
		memcpy(mem + CODE_AT, code, sizeof code);
		struct kvm_userspace_memory_region slot = {.memory_size = bytes,
							   .userspace_addr = (uintptr_t)mem};
		if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot) == 0 &&
		    ioctl(vm, KVM_SET_TSS_ADDR, MACHINE_TSS_BASE) == 0)
			vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
		if (vcpu >= 0)
			run = mmap(NULL, (size_t)k->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
				   vcpu, 0);
		if (run != MAP_FAILED && ioctl(vcpu, KVM_SET_CPUID2, k->cpuid) == 0) {
			got[1] = loop_rate(vcpu, run, BOOT_MODE_LONG_USER);
			got[0] = loop_rate(vcpu, run, BOOT_MODE_LONG);
		}
	}
	if (run != MAP_FAILED)
		munmap(run, (size_t)k->run_bytes);
	if (mem != MAP_FAILED)
		munmap(mem, bytes);
	if (vcpu >= 0)
		close(vcpu);
	close(vm);
	if (rate)
		memcpy(rate, got, sizeof got);
	if (got[0] <= 0 || got[1] <= 0)
		return got[0] <= 0 ? (int)got[0] : (int)got[1];
	return got[0] / got[1] >= NATIVE_MIN;
}
