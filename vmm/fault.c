#include "vmm/clock.h"
#include "vmm/error.h"
#include "vmm/memory.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* linux/userfaultfd.h since 6.1; Debian 12's headers have it, older ones don't. */
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

int fault_open(char *error)
{
	/* The device first: it gives full faults to whoever may open it. The system call needs
	 * CAP_SYS_PTRACE or vm.unprivileged_userfaultfd=1 for faults that KVM takes in the kernel
	 * (Documentation/admin-guide/mm/userfaultfd.rst). */
	int fd = -1, device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (device >= 0) {
		fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
		close(device);
	}
	if (fd < 0)
		fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (fd < 0) {
		int rc = -errno;
		return errorf(
			error, rc,
			"userfaultfd: %s; run as root, give access to /dev/userfaultfd, or set "
			"vm.unprivileged_userfaultfd=1",
			strerror(-rc));
	}
	struct uffdio_api api = {.api = UFFD_API};
	if (ioctl(fd, UFFDIO_API, &api) < 0) {
		int rc = -errno;
		close(fd);
		return errorf(error, rc, "userfaultfd: this kernel refuses the API: %s",
			      strerror(-rc));
	}
	return fd;
}

int fault_register(int uffd, void *base, uint64_t bytes)
{
	struct uffdio_register r = {.range = {.start = (uintptr_t)base, .len = bytes},
				    .mode = UFFDIO_REGISTER_MODE_MISSING};
	return ioctl(uffd, UFFDIO_REGISTER, &r) < 0 ? -errno : 0;
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
	return ioctl(m->uffd, UFFDIO_WAKE, &range) < 0 ? -errno : 0;
}

static void count(struct memory *m, enum fault_kind kind)
{
	atomic_fetch_add_explicit(&m->mailbox->faults[kind], 1, memory_order_relaxed);
}

/* One fault: 0, -EAGAIN if it has to wait for frames, or another -errno. */
static int serve(struct memory *m, uint64_t hva, enum fault_kind kind)
{
	uint64_t began = clock_ns();
	gfn_t g = window_gfn(&m->window, hva);
	if (g.v == INVALID_GFN.v)
		return -EFAULT;
	bool stale = frame_valid(ipt_lookup(m->table, m->vm, g));
	int rc = stale ? 0 : memory_populate(m, g);
	if (rc)
		return rc;
	rc = wake(m, hva);
	count(m, stale ? FAULT_STALE : kind);
	histogram_add(&m->mailbox->service_ns, clock_ns() - began);
	return rc;
}

int fault_service(struct memory *m, struct fault_queue *waiting)
{
	struct uffd_msg msg[16];
	int first_error = 0;
	for (;;) {
		ssize_t n = read(m->uffd, msg, sizeof msg);
		if (n < 0)
			return errno == EAGAIN || errno == EINTR ? first_error : -errno;
		for (size_t i = 0; i < (size_t)n / sizeof *msg; i++) {
			if (msg[i].event != UFFD_EVENT_PAGEFAULT)
				continue;
			uint64_t hva = msg[i].arg.pagefault.address & ~PAGE_MASK;
			bool write = msg[i].arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE;
			int rc = serve(m, hva, write ? FAULT_GUEST_WRITE : FAULT_GUEST_READ);
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
		int rc = serve(m, waiting->hva[i], FAULT_GUEST_WRITE);
		if (rc == -EAGAIN)
			still.hva[still.n++] = waiting->hva[i];
		else if (rc && !first_error)
			first_error = rc;
	}
	*waiting = still;
	return first_error;
}
