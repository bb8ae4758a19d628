#include "vmm/kvm.h"
#include "ipt/fail.h"
#include "vmm/error.h"
#include "vmm/mce.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

static struct kvm_cpuid_entry2 *cpuid_find(struct kvm_cpuid2 *c, uint32_t function, uint32_t index)
{
	for (uint32_t i = 0; i < c->nent; i++)
		if (c->entries[i].function == function && c->entries[i].index == index)
			return &c->entries[i];
	return NULL;
}

/* The part of the adaptation that is the same for every vCPU. Bits: SDM vol. 2A CPUID, APM vol. 3
 * appendix E. */
static void cpuid_adapt(struct kvm_host *k)
{
	struct kvm_cpuid_entry2 *e = cpuid_find(k->cpuid, 1, 0);
	if (e) {
		e->ecx |= UINT32_C(1) << 31;   /* a hypervisor is there */
		e->ecx &= ~(UINT32_C(1) << 5); /* no VMX in guests */
		if (k->tsc_deadline)
			e->ecx |= UINT32_C(1) << 24;
	}
	e = cpuid_find(k->cpuid, 0x80000001, 0);
	if (e)
		e->ecx &= ~(UINT32_C(1) << 2); /* no SVM in guests */
	e = mce_is_amd(k) ? cpuid_find(k->cpuid, 0x80000007, 0) : NULL;
	if (e)
		mce_adapt_cpuid(e);
}

/* The MSRs that KVM says belong to a VM's state. */
static int list_msrs(struct kvm_host *k)
{
	struct kvm_msr_list none = {.nmsrs = 0};
	if (ioctl(k->fd, KVM_GET_MSR_INDEX_LIST, &none) < 0 && errno != E2BIG)
		return -errno;
	k->msrs = calloc(1, sizeof *k->msrs + none.nmsrs * sizeof *k->msrs->indices);
	if (!k->msrs)
		return -ENOMEM;
	k->msrs->nmsrs = none.nmsrs;
	return ioctl(k->fd, KVM_GET_MSR_INDEX_LIST, k->msrs) < 0 ? -errno : 0;
}

int kvm_open(struct kvm_host *k, char *error)
{
	static const struct {
		int cap;
		const char *name;
	} needed[] = {
		{KVM_CAP_IRQCHIP, "KVM_CAP_IRQCHIP"},
		{KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY"},
		{KVM_CAP_SYNC_MMU, "KVM_CAP_SYNC_MMU"},
		{KVM_CAP_EXT_CPUID, "KVM_CAP_EXT_CPUID"},
		{KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT"},
		{KVM_CAP_MP_STATE, "KVM_CAP_MP_STATE"},
	};
	*k = (struct kvm_host){.fd = fail_call(KVM_OPEN, open("/dev/kvm", O_RDWR | O_CLOEXEC))};
	if (k->fd < 0) {
		int rc = -errno;
		return errorf(error, rc, "/dev/kvm: %s; %s", strerror(-rc),
			      rc == -ENOENT ? "load the kvm-intel or kvm-amd module, or switch "
					      "virtualization on in the firmware"
			      : rc == -EACCES || rc == -EPERM ? "join the kvm group or run as root"
							      : "KVM is not usable here");
	}
	int version = ioctl(k->fd, KVM_GET_API_VERSION, 0);
	if (version != KVM_API_VERSION) {
		kvm_close(k);
		return errorf(error, -ENOTSUP, "/dev/kvm: API version %d instead of %d", version,
			      KVM_API_VERSION);
	}
	for (size_t i = 0; i < sizeof needed / sizeof *needed; i++)
		if (ioctl(k->fd, KVM_CHECK_EXTENSION, needed[i].cap) <= 0) {
			kvm_close(k);
			return errorf(error, -ENOTSUP, "/dev/kvm: this KVM lacks %s",
				      needed[i].name);
		}
	k->run_bytes = ioctl(k->fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	k->stats = ioctl(k->fd, KVM_CHECK_EXTENSION, KVM_CAP_BINARY_STATS_FD) > 0;
	k->tsc_deadline = ioctl(k->fd, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) > 0;
	k->cpuid = calloc(1, sizeof *k->cpuid + KVM_MAX_CPUID * sizeof *k->cpuid->entries);
	if (!k->cpuid || k->run_bytes < (int)sizeof(struct kvm_run)) {
		kvm_close(k);
		return errorf(error, -ENOMEM, "/dev/kvm: no memory");
	}
	k->cpuid->nent = KVM_MAX_CPUID - 1; /* cpuid_timing may add one */
	if (ioctl(k->fd, KVM_GET_SUPPORTED_CPUID, k->cpuid) < 0) {
		int rc = -errno;
		kvm_close(k);
		return errorf(error, rc, "/dev/kvm: KVM_GET_SUPPORTED_CPUID: %s", strerror(-rc));
	}
	cpuid_adapt(k);
	k->xcrs = ioctl(k->fd, KVM_CHECK_EXTENSION, KVM_CAP_XCRS) > 0;
	k->xsave_bytes = ioctl(k->fd, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2);
	if (k->xsave_bytes < (int)sizeof(struct kvm_xsave))
		k->xsave_bytes = sizeof(struct kvm_xsave);
	int rc = list_msrs(k);
	if (rc) {
		kvm_close(k);
		return errorf(error, rc, "/dev/kvm: KVM_GET_MSR_INDEX_LIST: %s", strerror(-rc));
	}
	return 0;
}

void kvm_close(struct kvm_host *k)
{
	if (k->fd >= 0)
		close(k->fd);
	free(k->cpuid);
	free(k->msrs);
	*k = (struct kvm_host){.fd = -1};
}

/* The TSC's frequency for guests without kvmclock, in the leaf that hypervisors agreed on for it
 * (lkml.org, "CPUID usage for interaction between Hypervisors and Linux": 0x40000010, EAX in kHz). */
static void cpuid_timing(struct kvm_cpuid2 *c, int tsc_khz)
{
	struct kvm_cpuid_entry2 *base = cpuid_find(c, 0x40000000, 0);
	if (tsc_khz <= 0 || !base || c->nent >= KVM_MAX_CPUID || cpuid_find(c, 0x40000010, 0))
		return;
	if (base->eax < 0x40000010)
		base->eax = 0x40000010;
	c->entries[c->nent++] =
		(struct kvm_cpuid_entry2){.function = 0x40000010, .eax = (uint32_t)tsc_khz};
}

static int step(int rc, const char *name, const char *what, char *error)
{
	if (rc >= 0)
		return 0;
	rc = -errno;
	return errorf(error, rc, "%s: %s: %s", name, what, strerror(-rc));
}

/* APIC ids and topology: all vCPUs are cores of one package. NULL without memory. */
static struct kvm_cpuid2 *vcpu_cpuid(const struct kvm_host *k, int fd, unsigned cpu, unsigned cpus)
{
	struct kvm_cpuid2 *c = malloc(sizeof *c + (k->cpuid->nent + 1) * sizeof *k->cpuid->entries);
	if (!c)
		return NULL;
	memcpy(c, k->cpuid, sizeof *c + k->cpuid->nent * sizeof *k->cpuid->entries);
	cpuid_timing(c, ioctl(fd, KVM_GET_TSC_KHZ, 0));
	unsigned shift = 0;
	while ((1u << shift) < cpus)
		shift++;
	for (uint32_t i = 0; i < c->nent; i++) {
		struct kvm_cpuid_entry2 *e = &c->entries[i];
		switch (e->function) {
		case 1:
			e->ebx = (e->ebx & 0xffff) | cpus << 16 | cpu << 24;
			if (cpus > 1)
				e->edx |= 1u << 28;
			else
				e->edx &= ~(1u << 28);
			break;
		case 4: /* cores in the package, 31:26; threads that share the cache, 25:14 */
			e->eax = (e->eax & 0x3fff) | (cpus - 1) << 26;
			break;
		case 0xb:
		case 0x1f: /* level 0: threads of a core (one); level 1: cores */
			e->edx = cpu;
			if (e->index == 0) {
				e->eax = 0;
				e->ebx = 1;
				e->ecx = 1 << 8;
			} else if (e->index == 1) {
				e->eax = shift;
				e->ebx = cpus;
				e->ecx = 1 | 2 << 8;
			} else {
				e->eax = e->ebx = 0;
				e->ecx = e->index;
			}
			break;
		case 0x80000008:
			e->ecx = (e->ecx & ~0xf0ffu) | (cpus - 1) | shift << 12;
			break;
		case 0x8000001e:
			e->eax = cpu;
			e->ebx = cpu; /* one thread a core */
			e->ecx = 0;
			break;
		}
	}
	return c;
}

static int vcpu_create(struct kvm_vm *vm, unsigned cpu, const char *name, char *error)
{
	struct kvm_vcpu *v = &vm->vcpu[cpu];
	v->fd = fail_call(KVM_CREATE_VCPU, ioctl(vm->fd, KVM_CREATE_VCPU, (unsigned long)cpu));
	int rc = step(v->fd, name, "KVM_CREATE_VCPU", error);
	if (rc)
		return rc;
	void *run = fail_call(KVM_MAP_RUN, mmap(NULL, (size_t)vm->host->run_bytes,
						PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0));
	if (run == MAP_FAILED)
		return step(-1, name, "mmap of the vCPU", error);
	v->run = run;
	mce_set_up(vm->host, v->fd);
	if (!v->cpuid)
		v->cpuid = vcpu_cpuid(vm->host, v->fd, cpu, vm->cpus);
	if (!v->cpuid)
		return errorf(error, -ENOMEM, "%s: no memory for a vCPU's CPUID", name);
	return step(fail_call(KVM_SET_CPUID, ioctl(v->fd, KVM_SET_CPUID2, v->cpuid)), name,
		    "KVM_SET_CPUID2", error);
}

/* Write-back memory by default, as firmware would leave it (SDM vol. 3A 11.11.2.1). */
static int vcpu_reset(const struct kvm_vm *vm, unsigned cpu, const char *name, char *error)
{
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entry[1];
	} msrs = {{.nmsrs = 1}, {{.index = 0x2ff, .data = 1 << 11 | 6}}};
	return step(ioctl(vm->vcpu[cpu].fd, KVM_SET_MSRS, &msrs), name, "KVM_SET_MSRS", error);
}

int kvm_vm_create_again(struct kvm_vm *vm, const struct machine *machine,
			const struct window *window, char *error)
{
	const char *name = machine->name;
	for (unsigned i = 0; i < vm->cpus; i++)
		vm->vcpu[i].fd = -1;
	vm->fd = fail_call(KVM_CREATE_VM, ioctl(vm->host->fd, KVM_CREATE_VM, 0));
	int rc = step(vm->fd, name, "KVM_CREATE_VM", error);
	for (unsigned i = 0; !rc && i < machine->banks; i++) {
		const struct machine_bank *b = &machine->bank[i];
		struct kvm_userspace_memory_region slot = {
			.slot = i,
			.guest_phys_addr = b->base.v,
			.memory_size = b->bytes,
			.userspace_addr = (uintptr_t)window_at(window, gpa_gfn(b->base)),
		};
		rc = step(
			fail_call(KVM_SET_MEMORY, ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &slot)),
			name, "KVM_SET_USER_MEMORY_REGION", error);
	}
	if (!rc)
		rc = step(ioctl(vm->fd, KVM_SET_TSS_ADDR, MACHINE_TSS_BASE), name,
			  "KVM_SET_TSS_ADDR", error);
	if (!rc)
		rc = step(fail_call(KVM_CREATE_IRQCHIP, ioctl(vm->fd, KVM_CREATE_IRQCHIP, 0)), name,
			  "KVM_CREATE_IRQCHIP", error);
	for (unsigned cpu = 0; !rc && cpu < vm->cpus; cpu++)
		rc = vcpu_create(vm, cpu, name, error);
	return rc;
}

int kvm_vm_create(struct kvm_vm *vm, const struct kvm_host *host, const struct machine *machine,
		  const struct window *window, char *error)
{
	*vm = (struct kvm_vm){.host = host, .cpus = machine->cpus, .fd = -1};
	int rc = kvm_vm_create_again(vm, machine, window, error);
	for (unsigned cpu = 0; !rc && cpu < vm->cpus; cpu++)
		rc = vcpu_reset(vm, cpu, machine->name, error);
	return rc;
}

void kvm_vm_irq(const struct kvm_vm *vm, unsigned gsi, bool level)
{
	struct kvm_irq_level irq = {.irq = gsi, .level = level};
	ioctl(vm->fd, KVM_IRQ_LINE, &irq); /* fails only for a line that isn't there */
}

void kvm_vm_mapped(const struct kvm_vm *vm, uint64_t *pages_4k, uint64_t *pages_2m)
{
	*pages_4k = *pages_2m = 0;
	int fd = vm->host->stats ? ioctl(vm->fd, KVM_GET_STATS_FD, 0) : -1;
	if (fd < 0)
		return;
	struct kvm_stats_header h;
	if (pread(fd, &h, sizeof h, 0) == (ssize_t)sizeof h && h.name_size && h.name_size <= 256 &&
	    h.num_desc <= 1024) {
		size_t one = sizeof(struct kvm_stats_desc) + h.name_size;
		union {
			struct kvm_stats_desc d;
			char bytes[sizeof(struct kvm_stats_desc) + 256];
		} u;
		for (uint32_t i = 0; i < h.num_desc; i++) {
			if (pread(fd, u.bytes, one, (off_t)(h.desc_offset + i * one)) !=
			    (ssize_t)one)
				break;
			u.bytes[one - 1] = 0;
			uint64_t *to = !strcmp(u.d.name, "pages_4k")   ? pages_4k
				       : !strcmp(u.d.name, "pages_2m") ? pages_2m
								       : NULL;
			if (to && pread(fd, to, sizeof *to, (off_t)(h.data_offset + u.d.offset)) !=
					  (ssize_t)sizeof *to)
				*to = 0;
		}
	}
	close(fd);
}
