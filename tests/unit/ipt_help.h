/* What the table's unit tests share. */
#ifndef TESTS_UNIT_IPT_HELP_H
#define TESTS_UNIT_IPT_HELP_H

#include "ipt/debug.h"
#include "ipt/ipt.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <sys/types.h>

#define UNDER_TSAN IPT_TSAN
#if defined(__SANITIZE_ADDRESS__) || UNDER_TSAN
#define UNDER_SLOW 1 /* a sanitizer that makes everything several times slower */
#else
#define UNDER_SLOW 0
#endif

/* One test for each kind of forward map: static void name(enum ipt_kind kind). */
#define BOTH_KINDS(suite, name)               \
	static void name(enum ipt_kind kind); \
	Test(suite, name##_index)             \
	{                                     \
		name(IPT_INDEX);              \
	}                                     \
	Test(suite, name##_radix)             \
	{                                     \
		name(IPT_RADIX);              \
	}                                     \
	static void name(enum ipt_kind kind)

struct ipt *help_table_config(const struct ipt_config *config);
struct ipt *help_table(enum ipt_kind kind, uint32_t frames);
struct ipt *help_table_of(enum ipt_kind kind, uint32_t frames, unsigned nodes, unsigned colours);
/* With space for what isn't in memory; 64 VMs, one node. */
struct ipt *help_table_space(uint32_t frames, uint32_t packed_pages, uint32_t blocks);
vmid_t help_vm(struct ipt *t, const char *name);
/* A block in limbo; the test fails if there is none. */
frame_t help_alloc(struct ipt *t, vmid_t vm, unsigned order);
/* A block mapped at g. */
frame_t help_mapped(struct ipt *t, vmid_t vm, uint64_t g, unsigned order);
/* The test fails, with the violations in its output, if the audit finds any. */
void help_audit(struct ipt *t);
/* The same but for I4: a dead VM's counters may be wrong until it is reaped; all else is mended by whoever
 * takes the lock. */
void help_audit_unreaped(struct ipt *t);
/* The same but for what one VM counts. */
void help_audit_but(struct ipt *t, vmid_t vm);
/* The test fails if not just this much space is in use. */
void help_space_used(struct ipt *t, uint64_t granules, uint32_t blocks);
/* Claim space for one page; its slot. */
uint32_t help_claim(struct ipt *t, vmid_t vm, uint32_t where, uint32_t bytes, struct ipt_out *out);
/* vm's frames at n gfns, in one group, go out, each with that many bytes and its gfn as the sum. */
void help_out(struct ipt *t, vmid_t vm, uint64_t g, uint32_t n, uint32_t where, uint32_t bytes);
/* Reap, and see that it worked. */
void help_reap(struct ipt *t, vmid_t vm);

/* Random numbers from a fixed seed. */
struct help_random {
	uint64_t s;
};
uint64_t help_next(struct help_random *r);
static inline uint32_t help_below(struct help_random *r, uint32_t n)
{
	return (uint32_t)((help_next(r) >> 32) * n >> 32);
}

/* fork for tests: the child dies with the test, also when that is killed for taking too long. */
pid_t help_fork(void);
/* This process, a child, is killed at a step (ipt/debug.h): the first if k is 0. */
void help_die_at(unsigned k);
/* One step towards that, for who does something else at steps, too. */
void help_die_step(void);
/* Wait for such a child: true if it died so, false if it got through; what else becomes of it fails the test. */
bool help_died(pid_t pid, unsigned k);

#endif
