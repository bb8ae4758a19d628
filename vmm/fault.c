#include "ipt/fail.h"
#include "vmm/clock.h"
#include "vmm/error.h"
#include "vmm/memory.h"
#include "vmm/reclaim.h"
#include "vmm/sandbox.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* linux/userfaultfd.h since 6.1; Debian 12's headers have it, older ones don't. */
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

/* Since 6.4; continuing without write protection would let a guest write to what others see. */
#ifndef UFFDIO_CONTINUE_MODE_WP
#define UFFDIO_CONTINUE_MODE_WP ((__u64)1 << 1)
#endif

static int kept = -1;

int fault_device(void)
{
	return kept;
}

void fault_keep_device(void)
{
	if (kept < 0)
		kept = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
}
static uint64_t features; /* of this kernel's userfaultfd, once one was opened */

int fault_open(char *error)
{
	/* The device first: it gives full faults to whoever may open it. The system call needs
	 * CAP_SYS_PTRACE or vm.unprivileged_userfaultfd=1 for faults that KVM takes in the kernel
	 * (Documentation/admin-guide/mm/userfaultfd.rst). */
	int fd = -1, refused = fail_point(FAIL_UFFD_OPEN), device = refused ? -1 : kept;
	if (device < 0 && !refused && !sandbox_confined())
		device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (device >= 0) {
		fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
		if (device != kept)
			close(device);
	}
	if (fd < 0 && !refused)
		fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (fd < 0) {
		int rc = refused ? -refused : -errno;
		return errorf(
			error, rc,
			"userfaultfd: %s; run as root, give access to /dev/userfaultfd, or set "
			"vm.unprivileged_userfaultfd=1",
			strerror(-rc));
	}
	struct uffdio_api api = {.api = UFFD_API,
				 .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP |
					     UFFD_FEATURE_MINOR_SHMEM |
					     UFFD_FEATURE_WP_HUGETLBFS_SHMEM};
	if (fail_call(UFFD_API, ioctl(fd, UFFDIO_API, &api)) < 0) {
		int rc = -errno;
		close(fd);
		return errorf(error, rc, "userfaultfd: this kernel refuses the API: %s",
			      strerror(-rc));
	}
	if (features !=
	    api.features) /* else it is the template's already, in a page that needs no copy */
		features = api.features;
	return fd;
}

/* A page of a memfd, mapped twice: written to by the one mapping, continued in the other. */
static int try_sharing(int uffd, int memfd)
{
	uint8_t *a = MAP_FAILED, *b = MAP_FAILED;
	int rc = ftruncate(memfd, PAGE_SIZE) < 0 ? -errno : 0, error = 0;
	if (!rc) {
		a = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
		b = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
		rc = a == MAP_FAILED || b == MAP_FAILED ? -errno : 0;
	}
	if (!rc) {
		*a = 1;
		rc = fault_register(uffd, b, PAGE_SIZE, true);
	}
	if (!rc && !fault_continue(uffd, b, PAGE_SIZE, &error))
		rc = error;
	if (a != MAP_FAILED)
		munmap(a, PAGE_SIZE);
	if (b != MAP_FAILED)
		munmap(b, PAGE_SIZE);
	return rc;
}

int fault_can_share(char *error)
{
	static bool tried;
	static int rc;
	if (!tried) {
		int uffd = fault_open(error), memfd = memfd_create("invisor-try", MFD_CLOEXEC);
		if (uffd < 0)
			return uffd;
		rc = memfd < 0 ? -errno : try_sharing(uffd, memfd);
		close(uffd);
		if (memfd >= 0)
			close(memfd);
		tried = true;
	}
	if (rc)
		return errorf(error, rc,
			      "this kernel can't map shared frames write-protected (%s); it takes "
			      "Linux 6.4 or newer",
			      strerror(-rc));
	return 0;
}

int fault_register(int uffd, void *base, uint64_t bytes, bool shared)
{
	struct uffdio_register r = {.range = {.start = (uintptr_t)base, .len = bytes},
				    .mode = UFFDIO_REGISTER_MODE_MISSING};
	if (shared)
		r.mode |= UFFDIO_REGISTER_MODE_MINOR | UFFDIO_REGISTER_MODE_WP;
	return fail_call(UFFD_REGISTER, ioctl(uffd, UFFDIO_REGISTER, &r)) < 0 ? -errno : 0;
}

uint64_t fault_continue(int uffd, void *base, uint64_t bytes, int *error)
{
	for (;;) {
		struct uffdio_continue c = {.range = {.start = (uintptr_t)base, .len = bytes},
					    .mode = UFFDIO_CONTINUE_MODE_WP};
		*error =
			fail_call(UFFD_CONTINUE, ioctl(uffd, UFFDIO_CONTINUE, &c)) < 0 ? -errno : 0;
		if (!*error)
			return bytes;
		if (c.mapped > 0)
			return (uint64_t)c.mapped;
		if (*error != -EAGAIN) /* which is a change of mappings under way */
			return 0;
	}
}

int fault_protect(int uffd, void *base, uint64_t bytes, bool protect)
{
	struct uffdio_writeprotect w = {.range = {.start = (uintptr_t)base, .len = bytes},
					.mode = protect ? UFFDIO_WRITEPROTECT_MODE_WP : 0};
	while (fail_call(UFFD_PROTECT, ioctl(uffd, UFFDIO_WRITEPROTECT, &w)) < 0)
		if (errno != EAGAIN) /* which is a change of mappings under way */
			return -errno;
	return 0;
}

/* Since 6.6. */
#ifndef UFFDIO_POISON
struct uffdio_poison {
	struct uffdio_range range;
	__u64 mode;
	__s64 updated;
};
#define UFFDIO_POISON _IOWR(0xAA, 0x08, struct uffdio_poison)
#endif
#ifndef UFFD_FEATURE_POISON
#define UFFD_FEATURE_POISON (1 << 14)
#endif

int fault_can_poison(char *error)
{
	int fd = fault_open(error);
	if (fd < 0)
		return fd;
	close(fd);
	if (features & UFFD_FEATURE_POISON)
		return 0;
	return errorf(error, -EOPNOTSUPP,
		      "this kernel can't tell a guest of lost memory (UFFDIO_POISON); it takes "
		      "Linux 6.6 or newer");
}

static int poison(const struct memory *m, uint64_t hva)
{
	struct uffdio_poison p = {.range = {.start = hva, .len = PAGE_SIZE}};
	for (int tries = 0;;) {
		if (ioctl(m->uffd, UFFDIO_POISON, &p) == 0)
			return 0;
		if (errno == EAGAIN) /* a change of mappings is under way */
			continue;
		if (errno != EEXIST || tries++)
			return errno == EEXIST ? 0 : -errno;
		/* The page's entry may still say that it was write-protected, which stays when a page is punched out of
		 * the file; without protection the entry is empty. */
		int rc = fault_protect(m->uffd, (void *)hva, PAGE_SIZE, false);
		if (rc)
			return rc;
	}
}

static int wake(const struct memory *m, uint64_t hva)
{
	/* All that wait in the 2 MiB around: an extent answers several vCPUs at once, and one woken
	 * too early only faults again. Waking needs no registration of the range. */
	uint64_t start = hva & ~(2 * MiB - 1), end = start + 2 * MiB;
	uint64_t base = (uintptr_t)m->window.base;
	if (start < base)
		start = base;
	if (end > base + m->window.bytes)
		end = base + m->window.bytes;
	struct uffdio_range range = {.start = start, .len = end - start};
	/* EAGAIN is an empty pool to those who asked us, and would leave the vCPU waiting for that. */
	while (fail_call(UFFD_WAKE, ioctl(m->uffd, UFFDIO_WAKE, &range)) < 0)
		if (errno != EAGAIN)
			return -errno;
	return 0;
}

static void count(struct memory *m, enum fault_kind kind)
{
	atomic_fetch_add_explicit(&m->mailbox->faults[kind], 1, memory_order_relaxed);
}

/* A frame that others see too. */
static int resolve_shared(struct memory *m, gfn_t g, bool write, bool mapped)
{
	if (!write)
		return memory_show(m, g);
	/* KVM's asynchronous page faults ask to write whatever the guest does (virt/kvm/async_pf.c,
	 * async_pf_execute: FOLL_WRITE), so this may be a read. The pages around are shown as for a
	 * read: then KVM finds them at once and asks for what the guest wants of them. */
	int rc = mapped ? 0 : memory_show_known(m, g);
	return rc ? rc : memory_own(m, g);
}

/* A page that is out. The template's, if it is that, is there then and not in the window yet. */
static int resolve_away(struct memory *m, gfn_t g, bool write)
{
	struct ipt_place p;
	int rc = memory_populate(m, g);
	if (rc || !ipt_place(m->table, m->vm, g, 1, &p) || p.kind == IPT_OWN)
		return rc;
	return resolve_shared(m, g, write, false);
}

/* What the table says of the page decides, not what the kernel missed: the fault may be an old one. *kind becomes
 * what it was. */
static int resolve(struct memory *m, gfn_t g, bool write, bool mapped, enum fault_kind *kind)
{
	struct ipt_place p;
	if (!ipt_place(m->table, m->vm, g, 1, &p) || p.kind == IPT_VOID) {
		int rc = memory_populate(m, g);
		if (rc || !dax_of(m, g))
			return rc;
		/* A page of a file: the pool has it now, the window not yet. */
		return write ? memory_own(m, g) : memory_show(m, g);
	}
	if (ipt_health(m->table, p.frame) != IPT_GOOD)
		return -EHWPOISON;
	if (p.kind == IPT_AWAY) {
		*kind = FAULT_FETCHED;
		if (!reclaim_has_turn(reclaim_desk(m->reclaim, m->vm)))
			return -EAGAIN;
		return resolve_away(m, g, write);
	}
	if (p.kind != IPT_OWN) {
		*kind = write ? FAULT_COPIED : FAULT_SHOWN;
		return resolve_shared(m, g, write, mapped);
	}
	*kind = FAULT_STALE;
	/* A frame that became ours with its template's end: its piece is still write-protected. */
	return m->shares ? memory_own(m, g) : 0;
}

/* A vCPU waited for memory from then to then: that is noted. */
static void fault_stall(struct memory *m, uint64_t from_ns, uint64_t to_ns)
{
	struct reclaim_desk *d = reclaim_desk(m->reclaim, m->vm);
	if (d && to_ns > from_ns)
		atomic_fetch_add_explicit(&d->stall_ns, to_ns - from_ns, memory_order_release);
}

/* Some faults wait for memory, or none does any more. */
static void note_stall(struct memory *m, bool waiting)
{
	struct reclaim_desk *d = reclaim_desk(m->reclaim, m->vm);
	uint64_t now = clock_ns(), since = m->stalled_ns;
	m->stalled_ns = !waiting ? 0 : since ? since : now;
	if (d && m->stalled_ns != since) /* before it is added: see reclaim_stalled_ns */
		atomic_store_explicit(&d->stalled_since_ns, m->stalled_ns, memory_order_relaxed);
	if (!waiting && since)
		fault_stall(m, since, now);
}

#define IN_VAIN_MOST 10000

/* While we looked, others made something else of the page: it was dropped, moved, brought in by another. Who touched it
 * tries again. Where that never ends, table and window don't fit together. */
static bool has_changed(struct memory *m, int rc)
{
	m->in_vain = rc == -EEXIST ? m->in_vain + 1 : 0;
	return rc == -EEXIST && m->in_vain < IN_VAIN_MOST;
}

/* One fault: 0, -EAGAIN if it has to wait for frames, or another -errno. */
static int serve(struct memory *m, uint64_t hva, bool write, bool mapped)
{
	struct reclaim_desk *d = reclaim_desk(m->reclaim, m->vm);
	uint64_t began = clock_ns(), cpu = d ? clock_cpu_ns() : 0;
	enum fault_kind kind = write ? FAULT_GUEST_WRITE : FAULT_GUEST_READ;
	gfn_t g = window_gfn(&m->window, hva);
	if (g.v == INVALID_GFN.v)
		return -EFAULT;
	int rc = resolve(m, g, write, mapped, &kind);
	if (has_changed(m, rc))
		rc = 0;
	/* Its bytes are lost: who touched it is told by a signal. Or they are being replaced: he tries again. */
	if (rc == -EHWPOISON)
		rc = memory_is_lost(m, g) ? poison(m, hva) : 0;
	if (rc)
		return rc;
	rc = wake(m, hva);
	count(m, kind);
	uint64_t now = clock_ns();
	histogram_add(&m->mailbox->service_ns, now - began);
	if (kind == FAULT_FETCHED) {
		histogram_add(&m->mailbox->fetch_ns, now - began);
		if (!m->stalled_ns)
			fault_stall(m, began, now);
		if (d)
			reclaim_worked(d, clock_cpu_ns() - cpu);
	}
	return rc;
}

int fault_service(struct memory *m, struct fault_queue *waiting)
{
	struct uffd_msg msg[16];
	int first_error = 0;
	for (;;) {
		ssize_t n = fail_call(UFFD_READ, read(m->uffd, msg, sizeof msg));
		if (n < 0) {
			note_stall(m, waiting->n);
			return errno == EAGAIN || errno == EINTR ? first_error : -errno;
		}
		for (size_t i = 0; i < (size_t)n / sizeof *msg; i++) {
			if (msg[i].event != UFFD_EVENT_PAGEFAULT)
				continue;
			uint64_t hva = msg[i].arg.pagefault.address & ~PAGE_MASK;
			bool mapped = msg[i].arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP;
			bool write =
				mapped || msg[i].arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE;
			int rc = serve(m, hva, write, mapped);
			if (rc == -EAGAIN) {
				if (waiting->n == sizeof waiting->hva / sizeof *waiting->hva)
					rc = wake(m,
						  hva); /* no room to remember it: it comes again */
				else {
					waiting->hva[waiting->n++] = hva;
					rc = 0;
				}
			}
			if (rc && !first_error)
				first_error = rc;
		}
	}
}

int fault_retry(struct memory *m, struct fault_queue *waiting)
{
	struct fault_queue still = {.n = 0};
	int first_error = 0;
	for (unsigned i = 0; i < waiting->n; i++) {
		int rc = serve(m, waiting->hva[i], true, true);
		if (rc == -EAGAIN)
			still.hva[still.n++] = waiting->hva[i];
		else if (rc && !first_error)
			first_error = rc;
	}
	*waiting = still;
	note_stall(m, still.n);
	return first_error;
}
