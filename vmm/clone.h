/*
 * A clone's beginning, in a process that the template's process forked (template.c): first what is the same for all
 * clones of the template, then what makes it this one. Between the two it may wait for being wanted.
 */
#ifndef VMM_CLONE_H
#define VMM_CLONE_H

#include "vmm/vm.h"

#define CLONE_AHEAD_MOST 512 /* pages that a clone is given before it runs */
#define CLONE_SHOWN_MOST 64  /* times 2 MiB of what it shares, that its window shows by then */

/* What makes it this one; the descriptors of LINK_CLONE come with it. */
struct birth {
	struct link_request request;
	uint32_t known; /* notes of earlier clones, from which the template chose */
	uint32_t shown; /* 2 MiB each */
	uint32_t pages; /* to copy ahead */
	gfn_t show[CLONE_SHOWN_MOST];
	gfn_t ahead[CLONE_AHEAD_MOST];
} __attribute__((aligned(PAGE_SIZE)));

/* Kernel objects of its own on the window that was inherited: userfaultfd, KVM's VM and vCPUs, io_uring. -errno with
 * words. */
int clone_prepare(struct vm *vm, char *error);
/* Become the clone that was asked for, after a clone_prepare that returned rc, and run. Afterwards *b reads as zeroes: its
 * pages are given back, and so must be anonymous memory. */
_Noreturn void clone_born(struct vm *vm, struct birth *b, const int fds[LINK_FDS_MAX], int rc,
			  char *error);

#endif
