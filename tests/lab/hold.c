/*
 * Runs inside the lab for as long as it is up: holds one KVM VM with a vCPU that never runs.
 *
 * The first VM of a host, and the last one gone, make the kernel rewrite its own code (the keys of preemption
 * notifiers and of software-disabled APICs), while the other CPUs run it. QEMU's TCG with one thread a CPU now and
 * then keeps the breakpoint that the rewriting puts there for a moment, and the host dies of "Oops: int3". With one VM
 * held, tests that start and end VMs don't rewrite anything.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

int main(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	int vm = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);
	struct kvm_enable_cap split = {.cap = KVM_CAP_SPLIT_IRQCHIP, .args = {24}};

	if (vm < 0 || ioctl(vm, KVM_ENABLE_CAP, &split) < 0 || ioctl(vm, KVM_CREATE_VCPU, 0) < 0) {
		perror("hold: no VM");
		return 1;
	}
	for (;;)
		pause();
}
