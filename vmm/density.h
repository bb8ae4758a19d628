/*
 * `invisor density`: boots more and more guests and measures what they cost the host, with the
 * inverted page table and with per-VM radix tables. docs/DENSITY.md says what each number is.
 *
 *   density.c          the command: one fleet for each count and table
 *   density_options.c  its options
 *   density_measure.c  the numbers of one fleet whose guests are all up
 *   density_replay.c   what every VM sees in per-VM radix tables
 *   density_report.c   the tables for people, the break-even, the CSV
 *   density_plot.c     the plot
 */
#ifndef VMM_DENSITY_H
#define VMM_DENSITY_H

#include "vmm/fleet.h"

#define DENSITY_MAX_COUNTS 32

struct density_options {
	struct run_options run; /* count is the largest, so that the pool suits all */
	unsigned count[DENSITY_MAX_COUNTS], counts; /* ascending, none twice */
	const char *out;
	bool quick;  /* no second run with radix tables */
	bool clones; /* one guest is booted, the others are clones of it; no second run */
};

/* 0; 1 if --help was asked for (and printed); -EINVAL with words. */
int density_options_parse(struct density_options *o, int argc, char **argv, char *error);

/* The host before a fleet, to subtract. KiB of /proc/meminfo. */
struct density_before {
	uint64_t available, second_stage, kernel;
};

/* A fleet whose guests are all up. Differences to before may be negative on a busy host. */
struct density_run {
	bool measured;
	double ready_seconds; /* fork to ready, of the slowest guest */
	uint64_t frames;      /* mapped by guests */
	uint32_t templates, aliases, tombs;
	struct ipt_bytes table;
	uint64_t pool_bytes;      /* of the pool that have memory behind them */
	uint64_t window_mappings; /* VMAs of all windows */
	uint64_t vmas;            /* all of all VM processes, templates' too */
	bool has_vma_bytes;       /* the kernel tells: */
	uint64_t vma_bytes;       /* what it keeps for these, besides page tables */
	uint64_t page_table_kib;  /* VmPTE of all VM processes */
	uint64_t private_kib;     /* private dirty memory of all VM processes */
	bool has_second_stage;    /* the kernel tells: */
	int64_t second_stage_kib; /* second-stage page tables */
	int64_t kernel_kib;       /* slab, vmalloc, per-CPU: KVM's and the kernel's own objects */
	int64_t available_kib;    /* by which MemAvailable fell */
	int64_t parts_kib;        /* sum of the parts above */
};

/* What every VM sees, in radix tables of its own, with a reverse map that has a word for each of these
 * mappings. If there are too many, of the first VMs only. */
struct density_replay {
	struct ipt_bytes bytes; /* forward: the radix tables; array: the reverse map */
	uint64_t table_pages;
	unsigned vms, vms_replayed;
	uint64_t seen;       /* gfns with a frame, of all VMs */
	uint64_t inherited;  /* of them without a record of the VM's */
	uint64_t mappings;   /* made in the radix tables; of all VMs: seen */
	uint64_t mismatches; /* mappings of which the two tables say different things; 0 */
};

struct density_row {
	unsigned guests;
	struct density_run ipt, radix;
	struct density_replay replay;
};

struct density {
	struct density_options options;
	struct run_setup setup;
	struct density_row row[DENSITY_MAX_COUNTS];
	unsigned rows;             /* measured, with the inverted table at least */
	char dir[4096], stem[256]; /* of the files that are written */
};

/* Waits up to two seconds until the host's memory is calm. */
void density_before(struct density_before *b);
/* Hold all guests still, so that the numbers belong together; let them go on. */
void density_freeze(struct fleet *f);
void density_thaw(struct fleet *f);
void density_measure(struct density_run *out, struct fleet *f, const struct density_before *b);

/* Mappings that this host has memory to replay. */
uint64_t density_replay_limit(void);
/* For VMs that are such machines; templates aren't replayed, since without lineage nobody needs them.
 * -errno with words, -E2BIG if one VM alone sees more than `limit` frames. The live table must not change
 * meanwhile, and none of those who stand still may hold its registry or a chain: nobody collapses or merges. */
int density_replay(struct density_replay *out, struct ipt *live, const struct machine *machine,
		   uint64_t limit, char *error);

/* Sum over a table's parts. */
uint64_t density_table_bytes(const struct ipt_bytes *b);
/* If only some VMs' were made, as if the others' were like these. */
uint64_t density_radix_tables_bytes(const struct density_row *r);
uint64_t density_reverse_map_bytes(const struct density_row *r);
/* What the kernel keeps for VM processes' mappings: VMAs and page tables. */
uint64_t density_mapping_bytes(const struct density_run *r);

/*
 * The number of guests from which cost[i] <= other[i], between the rows by straight lines; -1 if that
 * isn't reached by the last row, the first row's count if it is so throughout.
 */
double density_break_even(const unsigned *guests, const uint64_t *cost, const uint64_t *other,
			  unsigned rows);

/* Where --out leads: checks that files can be made there. -errno with words. */
int density_out(struct density *d, char *error);
void density_print(const struct density *d);
/* DIR/STEM.csv. -errno with words. */
int density_write_csv(const struct density *d, char *error);
/* DIR/STEM.gp, and DIR/STEM.svg by gnuplot. 0; 1 if there is no gnuplot; -errno. With words. */
int density_plot(const struct density *d, char *error);

int density_command(int argc, char **argv);

#endif
