/*
 * Which system calls threads may make once they have to do with what guests and other processes wrote: a filter for
 * every kind of thread (seccomp(2)). Made once in the host by libseccomp, loaded by the threads. A filter stays for
 * the thread's life and goes on to threads and processes it makes; one that is loaded later narrows it further.
 */
#ifndef VMM_SECCOMP_H
#define VMM_SECCOMP_H

#include <linux/filter.h>
#include <stdbool.h>
#include <stddef.h>

enum seccomp_kind {
	SECCOMP_VM, /* the process of a VM, a template or a clone: its loop's thread, and vCPUs before they run */
	SECCOMP_VCPU, /* a vCPU's thread while the guest runs, within the process's */
	SECCOMP_MERGER,
	SECCOMP_RECLAIMER,
	SECCOMP_KINDS,
};

struct seccomp_filters {
	struct sock_fprog program[SECCOMP_KINDS]; /* filter NULL: not made */
};

/* Make all of them. What they forbid ends the process by SIGSYS; with `log` it is only written to the kernel's log.
 * -errno. */
int seccomp_make(struct seccomp_filters *f, bool log);
void seccomp_free(struct seccomp_filters *f);
/* Load one for the calling thread, which must have no_new_privs. -errno. */
int seccomp_enter(const struct seccomp_filters *f, enum seccomp_kind kind);

/* What the filters are made of, for words and tests. A kind's name; its i-th call, such as "mmap: argument 2 & 0x4 is
 * 0x0", false past the last. */
const char *seccomp_kind_name(enum seccomp_kind kind);
bool seccomp_describe(enum seccomp_kind kind, unsigned i, char *out, size_t size);

#endif
