/* From options to what VMs are made of: images, disks, command line, machine. */
#include "ipt/fail.h"
#include "vmm/filelock.h"
#include "vmm/run.h"
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

/* Short boots: few messages, one UART to probe. A panic ends the guest instead of hanging it. */
/* The second line lets an idle guest sleep: no watch over time and stalls that a host has anyway, twice a second and
 * every four seconds, no pressure averages every two (kernel: Documentation/admin-guide/kernel-parameters.txt). */
#define LINUX_CMDLINE                                   \
	"console=ttyS0 quiet panic=-1 8250.nr_uarts=1 " \
	"tsc=nowatchdog nowatchdog psi=0"

#define AWAIT_DISK_MS 1000 /* of what ends with a process that was killed */

/* The made guest lies beside the program, in guest/. */
static int made_guest(char *out, size_t size, const char *file)
{
	char self[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
	if (n < 0)
		return -errno;
	self[n] = 0;
	if ((size_t)snprintf(out, size, "%s/guest/%s", dirname(self), file) >= size)
		return -ENAMETOOLONG;
	return access(out, R_OK) < 0 ? -errno : 0;
}

static int open_image(struct run_setup *s, char *error)
{
	char kernel[PATH_MAX + 32], initrd[PATH_MAX + 32];
	const char *k = s->options.kernel, *i = s->options.initrd;
	if (!k) {
		int rc = made_guest(kernel, sizeof kernel, "vmlinux");
		if (!rc && !i)
			rc = made_guest(initrd, sizeof initrd, "initrd");
		if (rc)
			return errorf(error, rc,
				      "no guest beside the program: make it with 'make guest', or "
				      "name one "
				      "with --kernel and --initrd");
		k = kernel;
		i = i ? i : initrd;
	}
	return boot_image_open(&s->image, k, i, error);
}

static int open_disk(struct run_setup *s, unsigned i, char *error)
{
	const char *path = s->options.disk[i].path;
	bool ro = s->options.disk[i].read_only;
	struct stat st;
	if (!ro && s->options.count > 1)
		return errorf(error, -EINVAL,
			      "--disk: %.120s would be written by %u guests at once; add ,ro", path,
			      s->options.count);
	/* O_NONBLOCK so that a FIFO can't hold us up before we see that it is one. */
	int fd =
		fail_call(DISK_OPEN, open(path, (ro ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK));
	if (fd < 0)
		return errorf(error, -errno, "--disk: %.150s: %s%s", path, strerror(errno),
			      errno == EACCES || errno == EROFS ? "; read-only disks take ,ro"
								: "");
	if (fstat(fd, &st) < 0 || !(S_ISREG(st.st_mode) || S_ISBLK(st.st_mode))) {
		close(fd);
		return errorf(error, -EINVAL, "--disk: %.150s is neither a file nor a block device",
			      path);
	}
	if (S_ISREG(st.st_mode) && st.st_size < 512) {
		close(fd);
		return errorf(error, -EINVAL,
			      "--disk: %.120s has %lld bytes; a disk has 512 at least", path,
			      (long long)st.st_size);
	}
	/* Two writers of one disk would ruin it, whoever they are. */
	if (filelock_take(fd, ro ? LOCK_SH : LOCK_EX, 0, NULL)) {
		close(fd);
		return errorf(error, -EBUSY, "--disk: %.150s is in use by another guest or host",
			      path);
	}
	s->config.disk[i] = (struct vm_disk){.path = path,
					     .fd = fd,
					     .read_only = ro,
					     .is_volatile = s->options.disk[i].is_volatile};
	s->config.disks = i + 1;
	return 0;
}

static int open_pmem(struct run_setup *s, unsigned i, char *error)
{
	struct pmem_use *use = &s->config.pmem[i];
	struct run_options *o = &s->options;
	int rc = pmem_use_open(use, o->pmem[i].path, o->pmem[i].share, error);
	if (rc)
		return rc;
	s->config.pmems = i + 1;
	/* One copy for all, and in private one more for each guest. */
	o->pmem_bytes += use->bytes;
	if (!use->share)
		o->pmem_bytes += use->bytes * o->count;
	if (use->share && use->bytes % MACHINE_PMEM_ALIGN && s->image.kind != BOOT_BARE)
		return errorf(
			error, -EINVAL,
			"--pmem: %.80s: Linux takes multiples of 2 MiB only, this has %" PRIu64
			" KiB; lengthen it (truncate -s %%2M FILE), or use ,private",
			use->path, use->bytes / KiB);
	return 0;
}

static int make_cmdline(struct run_setup *s, char *error)
{
	const char *base = s->image.kind == BOOT_BARE ? "" : LINUX_CMDLINE;
	const char *more = s->options.append ? s->options.append : "";
	int n = snprintf(s->cmdline, sizeof s->cmdline, "%s%s%s", base, *base && *more ? " " : "",
			 more);
	if (n < 0 || (size_t)n >= sizeof s->cmdline)
		return errorf(error, -E2BIG,
			      "--append: the command line would have %d bytes; %d fit", n,
			      MACHINE_CMDLINE_MAX - 1);
	return 0;
}

/* Linux does not boot where KVM emulates privileged code; say so before it hangs. */
static int check_native(const struct run_setup *s, char *error)
{
	static int known; /* measured once, since a host is asked for guests again and again */
	if (s->image.kind == BOOT_BARE || known > 0)
		return 0;
	struct kvm_host kvm;
	int rc = kvm_open(&kvm, error);
	if (rc)
		return rc;
	rc = known = kvm_is_native(&kvm, NULL);
	kvm_close(&kvm);
	if (rc < 0)
		return errorf(error, rc, "/dev/kvm: a test loop did not run: %s", strerror(-rc));
	if (rc == 0)
		return errorf(error, -ENOTSUP,
			      "this host's KVM emulates privileged code, so Linux won't boot; run "
			      "it in the "
			      "lab: tests/lab/run -- build/invisor run ...");
	return 0;
}

/* Permission for userfaultfd, asked for once before any VM is made. */
static int check_userfaultfd(char *error)
{
	int fd = fault_open(error);
	if (fd < 0)
		return fd;
	close(fd);
	return 0;
}

void run_await_disks(const struct run_options *o)
{
	for (unsigned i = 0; i < o->disks; i++)
		filelock_await(o->disk[i].path, o->disk[i].read_only ? LOCK_SH : LOCK_EX,
			       AWAIT_DISK_MS);
}

int run_setup_open(struct run_setup *s, char *error)
{
	int rc = open_image(s, error);
	if (!rc && s->options.pmems)
		rc = fault_can_share(error);
	for (unsigned i = 0; !rc && i < s->options.pmems; i++)
		rc = open_pmem(s, i, error);
	if (!rc)
		rc = options_check_sizes(&s->options, error);
	if (rc) {
		run_setup_close(s);
		return rc;
	}
	struct machine *m = &s->config.machine;
	s->config.image = &s->image;
	s->config.made_guest = !s->options.kernel && !s->options.initrd;
	m->cpus = s->options.cpus;
	m->cmdline = s->cmdline;
	snprintf(m->name, sizeof m->name, "%s", s->options.name);
	snprintf(s->config.share_domain, sizeof s->config.share_domain, "%s",
		 s->options.share_domain ? s->options.share_domain : "");
	s->config.memory_share =
		(struct vm_memory_share){.shares = s->options.mem_shares,
					 .min = (uint32_t)(s->options.mem_min >> PAGE_SHIFT),
					 .limit = (uint32_t)(s->options.mem_limit >> PAGE_SHIFT)};
	rc = make_cmdline(s, error);
	if (!rc)
		rc = machine_set_memory(m, s->options.mem_bytes);
	for (unsigned i = 0; !rc && i < s->config.pmems; i++)
		rc = machine_add_pmem(m, s->config.pmem[i].bytes);
	for (unsigned i = 0; !rc && i < s->options.disks; i++)
		rc = open_disk(s, i, error);
	vm_machine_devices(m, s->options.disks);
	if (!rc)
		rc = boot_image_fits(&s->image, m, error);
	if (!rc)
		rc = check_userfaultfd(error);
	if (!rc)
		rc = check_native(s, error);
	if (rc)
		run_setup_close(s);
	return rc;
}

void run_setup_close(struct run_setup *s)
{
	/* What the guests had the kernel write is over when their processes are: it waits for io_uring's workers. */
	for (unsigned i = 0; i < s->config.disks; i++)
		filelock_close(s->config.disk[i].fd);
	s->config.disks = 0;
	for (unsigned i = 0; i < s->config.pmems; i++)
		close(s->config.pmem[i].fd);
	s->config.pmems = 0;
	boot_image_close(&s->image);
}
