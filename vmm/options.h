/*
 * The options of `invisor run`, checked as far as they can be before anything is made.
 */
#ifndef VMM_OPTIONS_H
#define VMM_OPTIONS_H

#include "ipt/ipt.h"
#include "vmm/error.h"
#include "vmm/vm.h"

#define RUN_MAX_GUESTS 4096

struct run_options {
	unsigned count;
	const char *name;
	const char *kernel, *initrd; /* as given; NULL: the made guest's */
	const char *append;
	uint64_t mem_bytes, pool_bytes; /* pool 0: chosen by count and mem */
	unsigned cpus;
	struct {
		const char *path;
		bool read_only;
	} disk[VM_MAX_DISKS];
	unsigned disks;
	enum ipt_kind table;
	const char *stats;
	uint64_t timeout_seconds; /* 0: none */
};

/* Parse argv[0..argc) after the command's name. 0; 1 if --help was asked for (and printed); -EINVAL
 * with words that name the option and the mend. */
int options_parse_run(struct run_options *o, int argc, char **argv, char *error);

/* Size the pool where it wasn't given, and hold every size against the others and the host. -errno
 * with words. */
int options_check_sizes(struct run_options *o, char *error);

#endif
