/*
 * The filters. One table a kind of thread: a line is a call, perhaps what an argument must be, and why it is needed.
 * What isn't in a table is forbidden. docs/SECURITY.md has the same list; a unit test compares them.
 *
 * Arguments are compared as the registers have them, memory that they point to can't be looked at. So clone3, whose
 * flags lie in memory, answers ENOSYS: the C library then uses clone, whose flags are an argument.
 */
#include "vmm/seccomp.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/futex.h>
#include <linux/kvm.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* linux/userfaultfd.h since 6.1. */
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif
#define PAGEMAP_SCAN_CALL 0xc0606610 /* linux/fs.h since 6.7: _IOWR('f', 16, 96 bytes) */

#define UFFDIO_POISON_CALL 0xc020aa08 /* linux/userfaultfd.h since 6.6: _IOWR(0xAA, 8, 32 bytes) */

/* What glibc's fork and pthread_create ask of clone. */
#define FORK_FLAGS (CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID | SIGCHLD)
#define THREAD_FLAGS                                                                        \
	(CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | \
	 CLONE_SETTLS | CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID)

struct rule {
	const char *name;
	int call;
	enum { ALWAYS, ARGUMENT, REFUSED } how;
	unsigned argument; /* & mask must be value; mask 0: all of it */
	uint64_t mask, value;
};

#define ANY(call)                                  \
	{                                          \
#call, SYS_##call, ALWAYS, 0, 0, 0 \
	}
#define IS(call, argument, value)                               \
	{                                                       \
#call, SYS_##call, ARGUMENT, argument, 0, value \
	}
#define LACKS(call, argument, bits)                            \
	{                                                      \
#call, SYS_##call, ARGUMENT, argument, bits, 0 \
	}
#define NOSYS(call)                                 \
	{                                           \
#call, SYS_##call, REFUSED, 0, 0, 0 \
	}
#define IOCTL(request) IS(ioctl, 1, request)
#define PUNCH          (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)

/* What every thread of ours may need. */
static const struct rule common[] = {
	ANY(futex),                       /* locks, bells */
	ANY(write),                       /* eventfds; the last words of an assertion */
	ANY(writev),                      /* the same by stdio */
	IS(newfstatat, 3, AT_EMPTY_PATH), /* fstat, by stdio too */
	ANY(lseek), /* stdio, which says what a guest did wrong; holes of the pool and of files */
	ANY(fstat), /* the same, of newer C libraries */
	IS(prctl, 0, PR_GET_NAME),     /* what a failpoint says */
	IS(kill, 1, SIGKILL),          /* its panic; a template, of a clone that can't be watched */
	ANY(clock_gettime),            /* CPU time; the others where the vDSO has no clock */
	ANY(sched_yield),              /* readers of the table, while it changes */
	ANY(clock_nanosleep),          /* nanosleep(3) */
	ANY(restart_syscall),          /* a wait that a stop and continue interrupted */
	LACKS(mmap, 2, PROT_EXEC),     /* malloc; windows */
	LACKS(mprotect, 2, PROT_EXEC), /* stacks of threads; windows */
	ANY(munmap),                   /* free */
	ANY(mremap),                   /* realloc */
	ANY(brk),                      /* malloc */
	IS(madvise, 2, MADV_DONTNEED), /* pieces of windows; free; a thread's stack at its end */
	ANY(rt_sigprocmask),           /* abort, pthread_create, pthread_kill, fork */
	ANY(rt_sigreturn),             /* from the signal that kicks vCPUs */
	ANY(getpid),                   /* pthread_kill, abort */
	ANY(sysinfo),                  /* qsort, how much memory there is */
	ANY(gettid),                   /* abort */
	IS(tgkill, 2, SIGABRT),        /* abort */
	IS(tgkill, 2, SIGBUS),         /* memory that is lost, and wasn't the guest's */
	IS(rt_sigaction, 0, SIGBUS),   /* who handles that */
	IS(rt_sigaction, 0, SIGABRT),  /* abort */
	ANY(exit),                     /* a thread's end */
	ANY(exit_group),               /* a process's end */
};

/* Besides: a vCPU's thread, from its first entry into the guest on. */
static const struct rule vcpu[] = {
	IOCTL(KVM_RUN),             /* the guest */
	IOCTL(KVM_IRQ_LINE),        /* interrupts of the UART and of devices */
	IOCTL(KVM_GET_REGS),        /* words about a guest that stopped where it should not */
	IOCTL(KVM_GET_SREGS),       /* the same */
	ANY(sendto),                /* console bytes to the host */
	ANY(poll),                  /* until the host has taken some */
	IOCTL(KVM_X86_SET_MCE),     /* a machine check, for lost memory */
	IOCTL(KVM_GET_VCPU_EVENTS), /* is it the guest's? */
	IOCTL(KVM_GET_MSRS),        /* is another being handled? */
	IOCTL(KVM_GET_TSC_KHZ),     /* a clock that is to jump */
	IOCTL(KVM_GET_DEVICE_ATTR), /* the same: the TSC's offset */
	IOCTL(KVM_SET_DEVICE_ATTR),
};

/* Besides: the loop's thread of a VM or clone, its ender, a template; and vCPUs until they have a filter of their own,
 * so this holds all of theirs too. */
static const struct rule vm[] = {
	/* vCPUs. KVM_RUN first: it is the one that happens most. */
	IOCTL(KVM_RUN),
	IOCTL(KVM_IRQ_LINE),
	IOCTL(KVM_GET_REGS),
	IOCTL(KVM_GET_SREGS),
	/* The window: faults, and what goes in and out of it. */
	ANY(read),                  /* userfaults; eventfds */
	IOCTL(UFFDIO_CONTINUE),     /* shared frames */
	IOCTL(UFFDIO_WRITEPROTECT), /* the same */
	IOCTL(UFFDIO_REGISTER), /* pieces of the window that others get to see, or none any more */
	IOCTL(UFFDIO_POISON_CALL),       /* memory that is lost */
	IOCTL(UFFDIO_WAKE),              /* whoever waited for a page */
	IS(madvise, 2, MADV_NOHUGEPAGE), /* voids */
	IS(madvise, 2, MADV_DONTFORK),   /* the arena of swap I/O */
	ANY(pread64),            /* the pool, the store, pages of files, pagemap, KVM's counters */
	ANY(pwrite64),           /* the pool, the store */
	ANY(pwritev),            /* pages of files */
	IS(fallocate, 1, PUNCH), /* frames that are given back */
	IS(fallocate, 1, FALLOC_FL_KEEP_SIZE), /* frames for what comes soon */
	ANY(fadvise64),                        /* a file's pages that the pool has now */
	ANY(fdatasync),           /* files that the guest flushes, where io_uring can't */
	ANY(fsync),               /* disks, at the end */
	IOCTL(PAGEMAP_SCAN_CALL), /* what the guest touched since it was looked at */
	ANY(getrandom),           /* the entropy device; a clone's generation id */
	/* The loop, and swap I/O's ring. */
	ANY(io_uring_enter),
	ANY(io_uring_setup),    /* a clone's own */
	ANY(io_uring_register), /* the arena of swap I/O */
	ANY(eventfd2),          /* a clone's loop */
	/* Host, console, agent. */
	ANY(recvmsg),
	ANY(sendmsg),
	ANY(recvfrom),
	ANY(sendto),
	ANY(poll),
	ANY(close),
	/* Threads, and processes: vCPUs, the ender, a template, clones. */
	NOSYS(clone3),
	IS(clone, 0, THREAD_FLAGS),
	IS(clone, 0, FORK_FLAGS),
	ANY(set_robust_list), /* the C library, in every new thread and process */
	ANY(rseq),            /* the same */
	IS(seccomp, 0, SECCOMP_SET_MODE_FILTER), /* a vCPU's thread, its own */
	IS(tgkill, 2, SIGUSR1),                  /* kicks a vCPU */
	IS(rt_sigaction, 0, __SIGRTMIN + 1),     /* the C library's, before the first thread */
	IS(rt_sigaction, 0, SIGUSR1),            /* what the kick calls */
	IS(prctl, 0, PR_SET_NAME),
	ANY(close_range),           /* a template lets go of the VM's descriptors */
	ANY(pidfd_open),            /* of the process that was made, for the host */
	IS(socketpair, 0, AF_UNIX), /* to the clone that is kept ready */
	ANY(wait4),                 /* for its end */
	/* A clone's own kernel objects. */
	IOCTL(USERFAULTFD_IOC_NEW),
	ANY(userfaultfd), /* where there is no device; refused by the kernel unless all may */
	IOCTL(UFFDIO_API),
	IOCTL(KVM_CREATE_VM),
	IOCTL(KVM_SET_USER_MEMORY_REGION),
	IOCTL(KVM_SET_TSS_ADDR),
	IOCTL(KVM_CREATE_IRQCHIP),
	IOCTL(KVM_CREATE_VCPU),
	IOCTL(KVM_GET_TSC_KHZ),
	IOCTL(KVM_X86_GET_MCE_CAP_SUPPORTED),
	IOCTL(KVM_X86_SETUP_MCE),
	IOCTL(KVM_X86_SET_MCE),
	IOCTL(KVM_SET_CPUID2),
	IOCTL(KVM_SET_REGS),
	IOCTL(KVM_SET_SREGS),
	/* A VM's state, saved and loaded. */
	IOCTL(KVM_GET_LAPIC),
	IOCTL(KVM_GET_XSAVE),
	IOCTL(KVM_GET_XSAVE2),
	IOCTL(KVM_GET_XCRS),
	IOCTL(KVM_GET_VCPU_EVENTS),
	IOCTL(KVM_GET_DEBUGREGS),
	IOCTL(KVM_GET_MP_STATE),
	IOCTL(KVM_GET_MSRS),
	IOCTL(KVM_GET_IRQCHIP),
	IOCTL(KVM_GET_CLOCK),
	IOCTL(KVM_SET_LAPIC),
	IOCTL(KVM_SET_XSAVE),
	IOCTL(KVM_SET_XCRS),
	IOCTL(KVM_SET_VCPU_EVENTS),
	IOCTL(KVM_SET_DEBUGREGS),
	IOCTL(KVM_SET_MP_STATE),
	IOCTL(KVM_SET_MSRS),
	IOCTL(KVM_SET_IRQCHIP),
	IOCTL(KVM_SET_CLOCK),
	IOCTL(KVM_GET_DEVICE_ATTR), /* of a vCPU: its TSC's offset */
	IOCTL(KVM_SET_DEVICE_ATTR),
	IOCTL(KVM_KVMCLOCK_CTRL),
	IOCTL(KVM_GET_STATS_FD), /* how much KVM has mapped */
	/* The swap file's lock, a byte a VM. */
	IS(fcntl, 1, F_OFD_SETLK),
};

/* Besides: the merger. */
static const struct rule merger[] = {
	ANY(pread64),               /* the pool */
	ANY(ppoll),                 /* rests; the host's end */
	ANY(poll),    ANY(sendmsg), /* rings VMs */
	ANY(recvmsg), ANY(close),   /* the pool's files come and go */
};

/* Besides: the reclaimer. */
static const struct rule reclaimer[] = {
	ANY(pread64),            /* frames of templates */
	ANY(pwrite64),           /* packed, in the store */
	IS(fallocate, 1, PUNCH), /* frames, and pages of the store, that are given back */
	ANY(poll),               /* the host's end */
	ANY(sendmsg),            /* rings VMs */
	ANY(recvmsg),
	ANY(close),                /* the pool's files come and go */
	IS(fcntl, 1, F_OFD_GETLK), /* does a VM still write to the swap file? */
};

static const struct {
	const char *name;
	const struct rule *rules;
	size_t count;
} kinds[SECCOMP_KINDS] = {
	[SECCOMP_VM] = {"vm", vm, sizeof vm / sizeof *vm},
	[SECCOMP_VCPU] = {"vcpu", vcpu, sizeof vcpu / sizeof *vcpu},
	[SECCOMP_MERGER] = {"merger", merger, sizeof merger / sizeof *merger},
	[SECCOMP_RECLAIMER] = {"reclaimer", reclaimer, sizeof reclaimer / sizeof *reclaimer},
};

/* The i-th of a kind's rules, its own first; NULL past the last. */
static const struct rule *rule_at(enum seccomp_kind kind, size_t i)
{
	const size_t n = sizeof common / sizeof *common;
	if (i < kinds[kind].count)
		return &kinds[kind].rules[i];
	i -= kinds[kind].count;
	return i < n ? &common[i] : NULL;
}

/* ---- making -------------------------------------------------------------------------------- */

static int add(scmp_filter_ctx ctx, const struct rule *r)
{
	if (r->how == REFUSED)
		return seccomp_rule_add_exact(ctx, SCMP_ACT_ERRNO(ENOSYS), r->call, 0);
	if (r->how == ALWAYS)
		return seccomp_rule_add_exact(ctx, SCMP_ACT_ALLOW, r->call, 0);
	struct scmp_arg_cmp is = {.arg = r->argument, .op = SCMP_CMP_EQ, .datum_a = r->value};
	if (r->mask)
		is = (struct scmp_arg_cmp){.arg = r->argument,
					   .op = SCMP_CMP_MASKED_EQ,
					   .datum_a = r->mask,
					   .datum_b = r->value};
	return seccomp_rule_add_exact_array(ctx, SCMP_ACT_ALLOW, r->call, 1, &is);
}

/* libseccomp 2.5 exports to descriptors only. */
static int export(enum seccomp_kind kind, bool log, int fd)
{
	uint32_t forbidden = log ? SCMP_ACT_LOG : SCMP_ACT_KILL_PROCESS;
	scmp_filter_ctx ctx = seccomp_init(forbidden);
	if (!ctx)
		return -ENOMEM;
	int rc = seccomp_attr_set(ctx, SCMP_FLTATR_ACT_BADARCH, forbidden);
	if (!rc)
		rc = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2); /* by a search tree */
	const struct rule *r;
	for (size_t i = 0; !rc && (r = rule_at(kind, i)); i++)
		rc = add(ctx, r);
	if (!rc)
		rc = seccomp_export_bpf(ctx, fd);
	seccomp_release(ctx);
	return rc;
}

/* In a process of its own: what libseccomp leaves of the heap would be copied, 80 KiB of it, by every process that is
 * forked later. */
static int export_all(bool log, const int fds[SECCOMP_KINDS])
{
	int status, rc = 0;
	pid_t pid = fork();
	if (pid == 0) {
		for (unsigned k = 0; !rc && k < SECCOMP_KINDS; k++)
			rc = export((enum seccomp_kind)k, log, fds[k]);
		_exit(-rc);
	}
	if (pid < 0 || waitpid(pid, &status, 0) < 0)
		return -errno;
	return WIFEXITED(status) ? -WEXITSTATUS(status) : -EIO;
}

static int take(int fd, struct sock_fprog *out)
{
	off_t bytes = lseek(fd, 0, SEEK_END);
	size_t one = sizeof *out->filter;
	if (bytes <= 0 || (size_t)bytes > BPF_MAXINSNS * one)
		return -E2BIG;
	out->filter = malloc((size_t)bytes);
	if (!out->filter)
		return -ENOMEM;
	out->len = (unsigned short)((size_t)bytes / one);
	return pread(fd, out->filter, (size_t)bytes, 0) == bytes ? 0 : -EIO;
}

int seccomp_make(struct seccomp_filters *f, bool log)
{
	int fds[SECCOMP_KINDS], rc = 0;
	*f = (struct seccomp_filters){0};
	for (unsigned k = 0; k < SECCOMP_KINDS; k++) {
		fds[k] = rc ? -1 : memfd_create("invisor-filter", MFD_CLOEXEC);
		rc = rc || fds[k] >= 0 ? rc : -errno;
	}
	if (!rc)
		rc = export_all(log, fds);
	for (unsigned k = 0; k < SECCOMP_KINDS; k++) {
		if (!rc)
			rc = take(fds[k], &f->program[k]);
		if (fds[k] >= 0)
			close(fds[k]);
	}
	if (rc)
		seccomp_free(f);
	return rc;
}

void seccomp_free(struct seccomp_filters *f)
{
	for (unsigned k = 0; k < SECCOMP_KINDS; k++)
		free(f->program[k].filter);
	*f = (struct seccomp_filters){0};
}

int seccomp_enter(const struct seccomp_filters *f, enum seccomp_kind kind)
{
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &f->program[kind]) < 0 ? -errno : 0;
}

/* ---- telling ------------------------------------------------------------------------------- */

const char *seccomp_kind_name(enum seccomp_kind kind)
{
	return kinds[kind].name;
}

bool seccomp_describe(enum seccomp_kind kind, unsigned i, char *out, size_t size)
{
	const struct rule *r = rule_at(kind, i);
	if (!r)
		return false;
	if (r->how == REFUSED)
		snprintf(out, size, "%s: ENOSYS", r->name);
	else if (r->how == ALWAYS)
		snprintf(out, size, "%s", r->name);
	else
		snprintf(out, size, "%s: argument %u %s 0x%llx", r->name, r->argument,
			 r->mask ? "lacks" : "is",
			 (unsigned long long)(r->mask ? r->mask : r->value));
	return true;
}
