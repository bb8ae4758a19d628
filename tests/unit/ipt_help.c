#include "tests/unit/ipt_help.h"
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

struct ipt *help_table_config(const struct ipt_config *config)
{
	struct ipt *t = NULL;

	cr_assert_eq(ipt_create(&t, config), 0);
	return t;
}

struct ipt *help_table_of(enum ipt_kind kind, uint32_t frames, unsigned nodes, unsigned colours)
{
	const struct ipt_config config = {.kind = kind,
					  .frames = frames,
					  .max_vms = 64,
					  .nodes = nodes,
					  .colours = colours,
					  .seed = 4711};

	return help_table_config(&config);
}

struct ipt *help_table_space(uint32_t frames, uint32_t packed_pages, uint32_t blocks)
{
	const struct ipt_config config = {.kind = IPT_INDEX,
					  .frames = frames,
					  .max_vms = 64,
					  .nodes = 1,
					  .colours = 1,
					  .seed = 4711,
					  .packed_pages = packed_pages,
					  .blocks = blocks};

	return help_table_config(&config);
}

struct ipt *help_table(enum ipt_kind kind, uint32_t frames)
{
	return help_table_of(kind, frames, 1, 1);
}

vmid_t help_vm(struct ipt *t, const char *name)
{
	vmid_t vm = INVALID_VMID;

	cr_assert_eq(ipt_vm_add(t, name, INVALID_VMID, &vm), 0);
	return vm;
}

frame_t help_alloc(struct ipt *t, vmid_t vm, unsigned order)
{
	frame_t f = INVALID_FRAME;

	cr_assert_eq(ipt_alloc(t, vm, order, NULL, &f), 0);
	return f;
}

frame_t help_mapped(struct ipt *t, vmid_t vm, uint64_t g, unsigned order)
{
	frame_t f = help_alloc(t, vm, order);

	cr_assert_eq(ipt_map(t, vm, gfn(g), f, 1u << order), 0);
	return f;
}

static void say(void *ctx, const char *line)
{
	int *lines = ctx;

	if ((*lines)++ < 10)
		cr_log_error("audit: %s", line);
}

void help_audit(struct ipt *t)
{
	int lines = 0;

	cr_assert_eq(ipt_audit(t, say, &lines), 0, "the audit found violations");
}

static void say_unless_i4(void *ctx, const char *line)
{
	if (strncmp(line, "I4", 2))
		say(ctx, line);
}

void help_audit_unreaped(struct ipt *t)
{
	int lines = 0;

	ipt_audit(t, say_unless_i4, &lines);
	cr_assert_eq(lines, 0, "the audit found violations");
}

struct but {
	int lines;
	uint32_t vm;
};

static void say_but(void *ctx, const char *line)
{
	struct but *b = ctx;
	unsigned vm;

	if (sscanf(line, "I4: VM %u counts", &vm) != 1 || vm != b->vm)
		say(&b->lines, line);
}

void help_audit_but(struct ipt *t, vmid_t vm)
{
	struct but b = {0, vm.v};

	ipt_audit(t, say_but, &b);
	cr_assert_eq(b.lines, 0, "the audit found violations");
}

void help_space_used(struct ipt *t, uint64_t granules, uint32_t blocks)
{
	struct ipt_space_info info;

	ipt_space(t, &info);
	cr_assert_eq(info.granules_used, granules, "%lu granules in use, not %lu",
		     (unsigned long)info.granules_used, (unsigned long)granules);
	cr_assert_eq(info.blocks_used, blocks, "%u blocks in use, not %u", info.blocks_used,
		     blocks);
}

uint32_t help_claim(struct ipt *t, vmid_t vm, uint32_t where, uint32_t bytes, struct ipt_out *out)
{
	uint32_t slot = 0;

	*out = (struct ipt_out){.where = where, .bytes = bytes, .sum = bytes * 31 + 1};
	cr_assert_eq(ipt_out_claim(t, vm, out, 1, &slot), 0);
	return slot;
}

void help_out(struct ipt *t, vmid_t vm, uint64_t g, uint32_t n, uint32_t where, uint32_t bytes)
{
	struct ipt_out pages[IPT_CLUSTER_FRAMES];
	uint32_t slots[IPT_CLUSTER_FRAMES], done;

	for (uint32_t i = 0; i < n; i++)
		pages[i] = (struct ipt_out){where, bytes, (uint32_t)g + i};
	cr_assert_eq(ipt_out_claim(t, vm, pages, n, slots), 0);
	cr_assert_eq(ipt_out_commit(t, vm, gfn(g), slots, n, &done, NULL, NULL), 0);
	cr_assert_eq(done, n);
}

void help_reap(struct ipt *t, vmid_t vm)
{
	cr_assert_eq(ipt_vm_reap(t, vm, NULL, NULL), 0);
}

uint64_t help_next(struct help_random *r)
{
	uint64_t z = r->s += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ z >> 29) * UINT64_C(0xff51afd7ed558ccd);
	return z ^ z >> 32;
}

pid_t help_fork(void)
{
	pid_t parent = getpid(), pid = fork();

	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(1);
	}
	return pid;
}

static unsigned steps_left;

void help_die_step(void)
{
	if (steps_left-- == 0)
		kill(getpid(), SIGKILL);
}

void help_die_at(unsigned k)
{
	steps_left = k;
	ipt_step_do(help_die_step);
}

bool help_died(pid_t pid, unsigned k)
{
	int status;

	cr_assert_gt(pid, 0);
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	bool died = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
	cr_assert(died || (WIFEXITED(status) && WEXITSTATUS(status) == 0), "step %u: status %x", k,
		  status);
	return died;
}
