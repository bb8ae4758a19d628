/*
 * bench-plain [--anonymous] KERNEL MEM-MIB [ARGUMENT]...: a bare guest on a plain shared memfd, the other
 * side of first-touch-ratio. The image, its loader, the machine's description and KVM's set-up are the
 * tree's own; what is missing is what is to be measured: no table, no pool, no userfaultfd, no
 * window that changes. The kernel resolves every touch alone.
 *
 * --anonymous: on private anonymous memory, which the kernel swaps as it does any other (the other side of
 * reclaim-throughput-*).
 *
 * Standard output: the guest's console. At the end one line on standard error:
 *   plain: part=N ns=NANOSECONDS tsc=CYCLES
 * for each measured part, timed here at the guest's writes to the event port (guest/bare/team.h).
 * Exit status: 0 power-off, 1 any other end, 2 set-up failed.
 */
#include "guest/bare/team.h"
#include "vmm/boot.h"
#include "vmm/clock.h"
#include "vmm/error.h"
#include "vmm/kvm.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <x86intrin.h>

#define PARTS_MAX 64

/* ---- guest memory: one flat mapping -------------------------------------------------------- */

struct flat {
	struct gmem gmem;
	struct window window; /* a memfd instead of a pool; nothing is registered */
};

static int flat_map(struct gmem *g, gpa_t a, uint64_t len, bool write, struct iovec *iov, int max)
{
	struct flat *f = (struct flat *)((char *)g - offsetof(struct flat, gmem));
	(void)write;
	if (!len || max < 1 || !machine_is_ram(f->window.machine, a, len))
		return -EFAULT;
	uint8_t *at = window_at(&f->window, gpa_gfn(a));
	iov[0] = (struct iovec){at + (a.v & PAGE_MASK), len};
	return 1;
}

static void flat_unmap(struct gmem *g, const struct iovec *iov, int n)
{
	(void)g, (void)iov, (void)n;
}

static const struct gmem_ops flat_ops = {.map = flat_map, .unmap = flat_unmap};

/* Mapped at a 2 MiB boundary, as the window is. */
static int flat_create(struct flat *f, const struct machine *m, bool anonymous)
{
	const uint64_t align = 2 * MiB;
	*f = (struct flat){.gmem = {.ops = &flat_ops, .bytes = m->mem_bytes},
			   .window = {.bytes = m->mem_bytes, .machine = m}};
	int fd = anonymous ? -1 : memfd_create("bench-plain", MFD_CLOEXEC);
	if (!anonymous && (fd < 0 || ftruncate(fd, (off_t)m->mem_bytes) < 0))
		return -errno;
	uint8_t *room = mmap(NULL, m->mem_bytes + align, PROT_NONE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (room == MAP_FAILED)
		return -errno;
	uint8_t *base = (uint8_t *)(((uintptr_t)room + align - 1) & ~(align - 1));
	int how = anonymous ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
	if (mmap(base, m->mem_bytes, PROT_READ | PROT_WRITE, how | MAP_FIXED, fd, 0) == MAP_FAILED)
		return -errno;
	if (anonymous)
		madvise(base, m->mem_bytes, MADV_NOHUGEPAGE); /* as the window */
	f->window.base = base;
	return 0;
}

/* ---- the run ------------------------------------------------------------------------------- */

static struct part {
	uint64_t began_ns, ns, began_tsc, tsc;
} part[PARTS_MAX];

static void event(uint32_t value)
{
	struct part *p = &part[(value >> 1) % PARTS_MAX];
	uint64_t ns = clock_ns(), tsc = __rdtsc();
	if (value & 1) {
		p->began_ns = ns;
		p->began_tsc = tsc;
	} else {
		p->ns = ns - p->began_ns;
		p->tsc = tsc - p->began_tsc;
	}
}

/* A write to a port; true if the guest powered off. */
static bool out(uint16_t port, const uint8_t *data, unsigned size)
{
	uint32_t value = 0;
	memcpy(&value, data, size < sizeof value ? size : sizeof value);
	if (port == MACHINE_COM1_PORT)
		putchar((int)(value & 0xff));
	else if (port == MACHINE_EVENT_PORT)
		event(value);
	return port == MACHINE_SLEEP_PORT && (value >> 2 & 7) == MACHINE_SLEEP_S5;
}

static void in(uint16_t port, uint8_t *data, unsigned size)
{
	/* The UART's line status: all sent, nothing come. Nothing else is there. */
	memset(data, port == MACHINE_COM1_PORT + 5 ? 0x60 : 0, size);
}

/* What of the guest's memory is its image, page tables and stack (guest/bare/region.h). */
#define GUEST_OWN (4 * MiB)

/* Only what the guest works with is to be taken out: a process of which something else is missing when memory is short
 * doesn't wait, but dies. */
static int lock_own(const struct window *w)
{
	if (mlockall(MCL_CURRENT | MCL_ONFAULT) < 0 ||
	    munlock(w->base + GUEST_OWN, w->bytes - GUEST_OWN) < 0)
		return -errno;
	return 0;
}

enum { SHORT_MS = 60000 };

/* A cgroup without room tells KVM so, which tells us: a page wasn't to be had. It may be after others gave some back. */
static bool short_of_memory(unsigned *ms)
{
	if ((errno != EFAULT && errno != ENOMEM) || *ms == SHORT_MS)
		return false;
	*ms += 1;
	usleep(1000);
	return true;
}

static int run(struct kvm_vcpu *v)
{
	struct kvm_run *r = v->run;
	for (unsigned short_ms = 0;;) {
		if (ioctl(v->fd, KVM_RUN, 0) < 0) {
			if (errno == EINTR || errno == EAGAIN || short_of_memory(&short_ms))
				continue;
			fprintf(stderr, "plain: KVM_RUN: %s\n", strerror(errno));
			return 1;
		}
		short_ms = 0;
		if (r->exit_reason == KVM_EXIT_INTR)
			continue;
		if (r->exit_reason != KVM_EXIT_IO) {
			fprintf(stderr, "plain: KVM exit %u\n", r->exit_reason);
			return 1;
		}
		uint8_t *data = (uint8_t *)r + r->io.data_offset;
		for (uint32_t i = 0; i < r->io.count; i++, data += r->io.size) {
			if (r->io.direction == KVM_EXIT_IO_IN)
				in(r->io.port, data, r->io.size);
			else if (out(r->io.port, data, r->io.size))
				return 0;
		}
	}
}

static int set_registers(struct kvm_vcpu *v, const struct boot_cpu *plan)
{
	struct kvm_sregs sregs;
	if (ioctl(v->fd, KVM_GET_SREGS, &sregs) < 0)
		return -errno;
	boot_apply_sregs(plan, &sregs);
	if (ioctl(v->fd, KVM_SET_SREGS, &sregs) < 0 || ioctl(v->fd, KVM_SET_REGS, &plan->regs) < 0)
		return -errno;
	return 0;
}

static int fail(int rc, const char *error)
{
	fprintf(stderr, "plain: %s\n", *error ? error : strerror(-rc));
	return 2;
}

int main(int argc, char **argv)
{
	static struct boot_image image;
	static struct boot_plan plan;
	static struct machine m = {.name = "plain", .cpus = 1};
	static char cmdline[MACHINE_CMDLINE_MAX];
	char error[ERROR_MAX] = "";
	struct kvm_host kvm;
	struct kvm_vm vm;
	struct flat memory;

	bool anonymous = argc > 1 && !strcmp(argv[1], "--anonymous");
	argc -= anonymous;
	argv += anonymous;
	setvbuf(stdout, NULL, _IOLBF, 0); /* lines are to be seen as they come */
	if (argc < 3) {
		fprintf(stderr, "usage: bench-plain [--anonymous] KERNEL MEM-MIB [ARGUMENT]...\n");
		return 2;
	}
	for (int i = 3; i < argc; i++)
		snprintf(cmdline + strlen(cmdline), sizeof cmdline - strlen(cmdline), "%s%s",
			 i > 3 ? " " : "", argv[i]);
	m.cmdline = cmdline;
	int rc = machine_set_memory(&m, strtoull(argv[2], NULL, 10) * MiB);
	if (!rc)
		rc = boot_image_open(&image, argv[1], NULL, error);
	if (!rc)
		rc = boot_image_fits(&image, &m, error);
	if (!rc)
		rc = flat_create(&memory, &m, anonymous);
	if (!rc)
		rc = boot_load(&image, &m, &memory.gmem, &plan, error);
	if (!rc)
		rc = kvm_open(&kvm, error);
	if (rc)
		return fail(rc, error);
	rc = kvm_vm_create(&vm, &kvm, &m, &memory.window, error);
	if (!rc)
		rc = set_registers(&vm.vcpu[0], &plan.cpu[0]);
	if (!rc && anonymous)
		rc = lock_own(&memory.window);
	if (rc)
		return fail(rc, error);
	rc = run(&vm.vcpu[0]);
	fflush(stdout);
	for (unsigned i = 0; i < PARTS_MAX; i++)
		if (part[i].tsc)
			fprintf(stderr, "plain: part=%u ns=%lu tsc=%lu\n", i, part[i].ns,
				part[i].tsc);
	return rc;
}
