/*
 * The options of `invisor run`, checked as far as they can be before anything is made; commands that
 * boot guests in other ways share them.
 */
#ifndef VMM_OPTIONS_H
#define VMM_OPTIONS_H

#include "ipt/ipt.h"
#include "vmm/error.h"
#include "vmm/sandbox.h"
#include "vmm/vm.h"
#include <getopt.h>

#define RUN_MAX_GUESTS 4096
/* A limit on what a guest has in memory: with less it would do nothing but wait for its pages. */
#define OPTIONS_MEM_LIMIT_LEAST MiB

struct run_options {
	unsigned count;
	const char *name;
	const char *kernel, *initrd; /* as given; NULL: the made guest's */
	const char *append;
	uint64_t mem_bytes, pool_bytes; /* pool 0: chosen by count and mem */
	unsigned cpus;
	struct {
		const char *path;
		bool read_only, is_volatile;
	} disk[VM_MAX_DISKS];
	unsigned disks;
	struct {
		const char *path;
		bool share;
	} pmem[VM_MAX_PMEM];
	unsigned pmems;
	uint64_t pmem_bytes; /* of the pool that all guests' pmem may come to; set by setup */
	enum ipt_kind table;
	const char *stats;
	const char *scenario, *report; /* files; NULL: none */
	uint64_t seed;                 /* of the scenario, if has_seed; else its own */
	bool has_seed;
	uint64_t timeout_seconds; /* 0: none */
	unsigned merge_percent;   /* of a CPU; 0: no merging */
	const char *share_domain; /* NULL: the default one */
	uint64_t pack_bytes;      /* of packed memory; 0: none */
	const char *swap_file;    /* NULL: none */
	uint64_t swap_bytes;
	enum sandbox_mode sandbox;   /* of the processes of VMs and workers */
	uid_t first_id;              /* that they get; 0: sandbox.h's */
	uint64_t mem_min, mem_limit; /* bytes; 0: none */
	uint32_t mem_shares;         /* 0: as all others */
	bool reclaims; /* pages can go out of memory: set if the host that they are for does that */
	bool fails;    /* failpoints were set, in this process */
	bool detach;   /* in the long-running host */
	const char *wait; /* with detach: up, ready; NULL: chosen by the kernel */
	const char *host; /* with detach: its socket; NULL: found */
};

/* Parse argv[0..argc) after the command's name. 0; 1 if --help was asked for (and printed); -EINVAL
 * with words that name the option and the mend. */
int options_parse_run(struct run_options *o, int argc, char **argv, char *error);

/* The same for guests of a running host, as it hears of them by a request: without the options that are
 * about the host or about who asks; name is NULL if none is given. */
int options_parse_guests(struct run_options *o, int argc, char **argv, char *error);

/* ---- for other commands -------------------------------------------------------------------- */

extern const struct run_options options_run_defaults;

struct options_spec {
	const char *command, *help,
		*shorts;            /* shorts and longs as getopt_long(3) has them, ':' first */
	const struct option *longs; /* --help is 'h' */
	bool operands;              /* may follow, from argv[optind] on */
	/* Take one option. 0 or -EINVAL with words. */
	int (*one)(void *ctx, int option, char *value, char *error);
};

/* What options_parse_run does, for any command. */
int options_parse(const struct options_spec *spec, void *ctx, int argc, char **argv, char *error);
/* A spec's `one` for the options of run, by its letters: n count, N name, k kernel, i initrd, a append,
 * m mem, c cpus, d disk, P pmem, p pool, t table, s stats, T timeout, g merge, S share-domain, K pack, w swap, B sandbox, I mem-min, L mem-limit, R mem-shares,
 * f fail, x fail-seed (both at once, in this process). ctx is a struct
 * run_options. */
int options_run_one(void *ctx, int option, char *value, char *error);

/* The largest pool that leaves the host some memory of its own. */
uint64_t options_most_pool(void);
/* Size the pool where it wasn't given, and hold every size against the others and the host. -errno
 * with words. */
int options_check_sizes(struct run_options *o, char *error);

/* May VMs be called that? 1 to 26 letters, digits, '-', '_' or '.', and not "all", which stands for all guests. */
bool options_name_is_good(const char *name);

#endif
