#include "vmm/kvm_state.h"
#include "ipt/fail.h"
#include "vmm/error.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

/* A step that failed: `what` and why, in words. */
static int failed(const char *name, unsigned cpu, const char *what, char *error)
{
	int rc = -errno;
	return errorf(error, rc, "%s: vCPU %u: %s: %s", name, cpu, what, strerror(-rc));
}

/* ---- saving -------------------------------------------------------------------------------- */

/* KVM reads MSRs in the order given and stops at the first that this VM doesn't have: leave that out and go
 * on behind it. */
static int save_msrs(const struct kvm_host *k, int fd, struct kvm_vcpu_state *s)
{
	size_t bytes = sizeof *s->msrs + k->msrs->nmsrs * sizeof *s->msrs->entries;
	struct kvm_msrs *some = malloc(bytes);
	s->msrs = malloc(bytes);
	if (!some || !s->msrs) {
		free(some);
		errno = ENOMEM;
		return -1;
	}
	s->msrs->nmsrs = 0;
	for (uint32_t next = 0; next < k->msrs->nmsrs;) {
		uint32_t n = k->msrs->nmsrs - next;
		some->nmsrs = n;
		for (uint32_t i = 0; i < n; i++)
			some->entries[i] =
				(struct kvm_msr_entry){.index = k->msrs->indices[next + i]};
		int got = ioctl(fd, KVM_GET_MSRS, some);
		if (got < 0) {
			free(some);
			return -1;
		}
		memcpy(s->msrs->entries + s->msrs->nmsrs, some->entries,
		       (size_t)got * sizeof *some->entries);
		s->msrs->nmsrs += (uint32_t)got;
		next += (uint32_t)got + ((uint32_t)got < n);
	}
	free(some);
	return 0;
}

static int tsc_offset(int fd, int request, uint64_t *offset)
{
	struct kvm_device_attr attr = {
		.group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET, .addr = (uintptr_t)offset};
	return ioctl(fd, (unsigned)request, &attr);
}

static int save_vcpu(const struct kvm_host *k, int fd, unsigned cpu, struct kvm_vcpu_state *s,
		     const char *name, char *error)
{
	if (fail_call(KVM_GET_STATE, 0) < 0)
		return failed(name, cpu, "reading its state", error);
	s->xsave = calloc(1, (size_t)k->xsave_bytes);
	if (!s->xsave)
		return errorf(error, -ENOMEM, "%s: no memory for a vCPU's state", name);
	if (ioctl(fd, KVM_GET_REGS, &s->regs) < 0)
		return failed(name, cpu, "KVM_GET_REGS", error);
	if (ioctl(fd, KVM_GET_SREGS, &s->sregs) < 0)
		return failed(name, cpu, "KVM_GET_SREGS", error);
	if (ioctl(fd, KVM_GET_LAPIC, &s->lapic) < 0)
		return failed(name, cpu, "KVM_GET_LAPIC", error);
	/* KVM_GET_XSAVE's size is fixed at 4 KiB, which does for states that are no larger. */
	if (ioctl(fd, k->xsave_bytes > (int)sizeof *s->xsave ? KVM_GET_XSAVE2 : KVM_GET_XSAVE,
		  s->xsave) < 0)
		return failed(name, cpu, "KVM_GET_XSAVE", error);
	s->has_xcrs = k->xcrs && ioctl(fd, KVM_GET_XCRS, &s->xcrs) == 0;
	if (ioctl(fd, KVM_GET_VCPU_EVENTS, &s->events) < 0)
		return failed(name, cpu, "KVM_GET_VCPU_EVENTS", error);
	if (ioctl(fd, KVM_GET_DEBUGREGS, &s->debugregs) < 0)
		return failed(name, cpu, "KVM_GET_DEBUGREGS", error);
	if (ioctl(fd, KVM_GET_MP_STATE, &s->mp_state) < 0)
		return failed(name, cpu, "KVM_GET_MP_STATE", error);
	if (save_msrs(k, fd, s) < 0)
		return failed(name, cpu, "KVM_GET_MSRS", error);
	s->has_tsc_offset = tsc_offset(fd, KVM_GET_DEVICE_ATTR, &s->tsc_offset) == 0;
	return 0;
}

int kvm_state_save(const struct kvm_vm *vm, struct kvm_state *out, const char *name, char *error)
{
	*out = (struct kvm_state){.cpus = vm->cpus};
	for (unsigned i = 0; i < vm->cpus; i++) {
		out->vcpu[i] = calloc(1, sizeof *out->vcpu[i]);
		if (!out->vcpu[i])
			return errorf(error, -ENOMEM, "%s: no memory for a vCPU's state", name);
		int rc = save_vcpu(vm->host, vm->vcpu[i].fd, i, out->vcpu[i], name, error);
		if (rc)
			return rc;
	}
	for (uint32_t i = 0; i < 3; i++) {
		out->chip[i].chip_id = i;
		if (fail_call(KVM_GET_CHIPS, ioctl(vm->fd, KVM_GET_IRQCHIP, &out->chip[i])) < 0)
			return failed(name, 0, "KVM_GET_IRQCHIP", error);
	}
	if (ioctl(vm->fd, KVM_GET_CLOCK, &out->clock) < 0)
		return failed(name, 0, "KVM_GET_CLOCK", error);
	return 0;
}

void kvm_state_free(struct kvm_state *s)
{
	for (unsigned i = 0; i < s->cpus; i++) {
		if (!s->vcpu[i])
			continue;
		free(s->vcpu[i]->xsave);
		free(s->vcpu[i]->msrs);
		free(s->vcpu[i]);
	}
	*s = (struct kvm_state){0};
}

/* ---- loading ------------------------------------------------------------------------------- */

#define SOME_MSRS 64

/* Those that KVM refuses are left out too: it gives some that it doesn't take back, unchanged ones among them. */
static int load_msrs(int fd, const struct kvm_msrs *msrs)
{
	/* Not in the heap: with its first malloc a vCPU's thread would get a cache of its own. */
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entry[SOME_MSRS];
	} some;
	int did = ioctl(fd, KVM_SET_MSRS, msrs);
	uint32_t next = did < 0 ? 0 : (uint32_t)did + 1;
	while (did >= 0 && next < msrs->nmsrs) {
		uint32_t n = msrs->nmsrs - next;
		n = n < SOME_MSRS ? n : SOME_MSRS;
		some.head = (struct kvm_msrs){.nmsrs = n};
		memcpy(some.entry, msrs->entries + next, n * sizeof some.entry[0]);
		did = ioctl(fd, KVM_SET_MSRS, &some);
		next += did < 0 ? 0 : (uint32_t)did + ((uint32_t)did < n);
	}
	return did < 0 ? -1 : 0;
}

/* The value of an MSR, 0 if it isn't there. */
static uint64_t msr(const struct kvm_msrs *msrs, uint32_t index)
{
	for (uint32_t i = 0; i < msrs->nmsrs; i++)
		if (msrs->entries[i].index == index)
			return msrs->entries[i].data;
	return 0;
}

/* What a vCPU has after its reset need not be put into one that is new (SDM vol. 3A 9.1.1). Each call costs a few
 * microseconds, since KVM loads the vCPU for it. */
static bool debugregs_reset(const struct kvm_debugregs *d)
{
	return !d->db[0] && !d->db[1] && !d->db[2] && !d->db[3] && d->dr6 == 0xffff0ff0 &&
	       d->dr7 == 0x400;
}

static bool xcrs_reset(const struct kvm_xcrs *x)
{
	return x->nr_xcrs == 1 && x->xcrs[0].xcr == 0 && x->xcrs[0].value == 1;
}

/* With PAE paging KVM reads the page directory pointers when it gets the registers (SDM vol. 3A 4.4.1). */
static bool reads_memory(const struct kvm_sregs *s)
{
	const uint64_t paging = UINT64_C(1) << 31, pae = 1 << 5, long_mode = 1 << 10;
	return s->cr0 & paging && s->cr4 & pae && !(s->efer & long_mode);
}

/* The special registers come first, since they say where the APIC is. */
static int load_registers(int fd, unsigned cpu, const struct kvm_vcpu_state *s, const char *name,
			  char *error)
{
	if (ioctl(fd, KVM_SET_SREGS, &s->sregs) < 0)
		return failed(name, cpu, "KVM_SET_SREGS", error);
	if (ioctl(fd, KVM_SET_REGS, &s->regs) < 0)
		return failed(name, cpu, "KVM_SET_REGS", error);
	if (s->has_xcrs && !xcrs_reset(&s->xcrs) && ioctl(fd, KVM_SET_XCRS, &s->xcrs) < 0)
		return failed(name, cpu, "KVM_SET_XCRS", error);
	if (ioctl(fd, KVM_SET_XSAVE, s->xsave) < 0)
		return failed(name, cpu, "KVM_SET_XSAVE", error);
	if (!debugregs_reset(&s->debugregs) && ioctl(fd, KVM_SET_DEBUGREGS, &s->debugregs) < 0)
		return failed(name, cpu, "KVM_SET_DEBUGREGS", error);
	return 0;
}

/* The APIC comes before the MSRs, since its deadline is one of them; the events after what could change them. */
static int load_vcpu(int fd, unsigned cpu, const struct kvm_vcpu_state *s, const char *name,
		     char *error)
{
	uint64_t offset = s->tsc_offset;
	int rc = reads_memory(&s->sregs) ? load_registers(fd, cpu, s, name, error) : 0;
	if (rc)
		return rc;
	if (fail_call(KVM_SET_STATE, ioctl(fd, KVM_SET_LAPIC, &s->lapic)) < 0)
		return failed(name, cpu, "KVM_SET_LAPIC", error);
	if (load_msrs(fd, s->msrs) < 0)
		return failed(name, cpu, "KVM_SET_MSRS", error);
	if (s->has_tsc_offset)
		tsc_offset(fd, KVM_SET_DEVICE_ATTR, &offset); /* else the MSR's value stands */
	if (ioctl(fd, KVM_SET_VCPU_EVENTS, &s->events) < 0)
		return failed(name, cpu, "KVM_SET_VCPU_EVENTS", error);
	if ((cpu || s->mp_state.mp_state != KVM_MP_STATE_RUNNABLE) &&
	    ioctl(fd, KVM_SET_MP_STATE, &s->mp_state) < 0)
		return failed(name, cpu, "KVM_SET_MP_STATE", error);
	/* Tells the watchdogs of a guest with kvmclock that it was stopped. */
	if (msr(s->msrs, 0x4b564d01) ||
	    msr(s->msrs, 0x12)) /* MSR_KVM_SYSTEM_TIME_NEW and the old one */
		ioctl(fd, KVM_KVMCLOCK_CTRL, 0);
	return 0;
}

int kvm_state_begin(const struct kvm_vm *vm, const struct kvm_state *s, const char *name,
		    char *error)
{
	int rc = 0;
	for (unsigned i = 0; i < s->cpus && !rc; i++)
		if (!reads_memory(&s->vcpu[i]->sregs))
			rc = load_registers(vm->vcpu[i].fd, i, s->vcpu[i], name, error);
	return rc;
}

int kvm_state_load(const struct kvm_vm *vm, const struct kvm_state *s, const char *name,
		   char *error)
{
	/* With the real time of the saving given, KVM adds what has passed since (api.rst, 4.30). */
	struct kvm_clock_data clock = s->clock;
	clock.flags &= KVM_CLOCK_REALTIME;
	for (unsigned i = 0; i < s->cpus; i++) {
		int rc = load_vcpu(vm->vcpu[i].fd, i, s->vcpu[i], name, error);
		if (rc)
			return rc;
	}
	for (unsigned i = 0; i < 3; i++) {
		struct kvm_irqchip chip = s->chip[i];
		if (fail_call(KVM_SET_CHIPS, ioctl(vm->fd, KVM_SET_IRQCHIP, &chip)) < 0)
			return failed(name, 0, "KVM_SET_IRQCHIP", error);
	}
	if (ioctl(vm->fd, KVM_SET_CLOCK, &clock) < 0)
		return failed(name, 0, "KVM_SET_CLOCK", error);
	return 0;
}
