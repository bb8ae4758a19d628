/* The table's benchmarks: worlds to measure in, timing, and how a figure is told. */
#ifndef TESTS_BENCH_IPT_BENCH_H
#define TESTS_BENCH_IPT_BENCH_H

#include "ipt/ipt.h"

#define BENCH_VMS       64
#define BENCH_VM_FRAMES 32768 /* 128 MiB */
#define BENCH_FRAMES    (BENCH_VMS * BENCH_VM_FRAMES)
#define BENCH_ROUNDS    31

enum bench_shape {
	BENCH_GUESTS, /* as guests are: 2 MiB blocks, every fourth in 64 KiB clusters */
	BENCH_DENSE,  /* every frame mapped alone, gfns of 128 MiB in random order */
	BENCH_SPARSE, /* every frame mapped alone, at random gfns of 48-bit space */
};

/* Exit, with words, on an -errno. */
void bench_check(int err, const char *what);
/* A table, a VM of it called `what` and the number, and 2^order frames for it at g; exit on error. */
struct ipt *bench_make(enum ipt_kind kind, uint32_t max_vms, uint32_t frames);
vmid_t bench_add_vm(struct ipt *t, const char *what, unsigned i, vmid_t parent);
void bench_map(struct ipt *t, vmid_t vm, uint64_t g, unsigned order);
/* Does the subtree of a radix table's page, at that level (0: the last), hold the frame? Its entries are read in order. */
bool bench_search(const struct ipt *t, uint32_t page, unsigned level, uint32_t f);

/* A table with BENCH_VMS VMs, ids 1 to BENCH_VMS; exits on error. */
struct ipt *bench_table(enum ipt_kind kind);
/* Map `step` of `steps` of everything, in the same order for any kind. The pool is full after the
 * last. */
void bench_fill(struct ipt *t, enum bench_shape shape, unsigned step, unsigned steps);
/* bench_table, filled. */
struct ipt *bench_world(enum ipt_kind kind, enum bench_shape shape);

uint64_t bench_ns(void);
/* Fixed-seed random 64 bits. */
uint64_t bench_random(void);

/* A figure that is measured round by round. */
struct bench_samples {
	double v[4 * BENCH_ROUNDS];
	unsigned n;
};
void bench_add(struct bench_samples *s, double v);
/* The q-quantile (0 to 1) of the samples. */
double bench_quantile(struct bench_samples *s, double q);

/* Is the figure of that id asked for? */
bool bench_wanted(const char *id);
/* Is one asked for whose id begins so? */
bool bench_wanted_under(const char *prefix);
/* Tell a figure; bound < 0 is none. */
void bench_tell(const char *id, struct bench_samples *s, const char *unit, double bound);
void bench_tell_value(const char *id, double value, const char *unit, double bound);

void bench_lookups(void);
void bench_owner(void);
void bench_bytes(void);
void bench_fleet(void);
void bench_victim(void);

#endif
