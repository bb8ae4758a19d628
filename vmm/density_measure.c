#include "vmm/density.h"
#include "vmm/proc.h"
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define FREEZE_MS 1000
/* Memory of the fleet before comes back a while after its processes are gone. */
#define CALM_MS    100
#define CALM_KIB   256
#define CALM_LOOKS 20

/* What the kernel keeps for guests outside their processes and page tables: vCPUs, VMAs, threads'
 * stacks (in vmalloc), memory slots, files. */
static uint64_t kernel_kib(void)
{
	return proc_meminfo_kib("Slab") + proc_meminfo_kib("VmallocUsed") +
	       proc_meminfo_kib("Percpu");
}

/* Kernels before 6.1 don't tell, which isn't the same as none. */
static bool tells_second_stage(void)
{
	FILE *f = fopen("/proc/meminfo", "re");
	char line[256];
	bool found = false;
	while (f && !found && fgets(line, sizeof line, f))
		found = !strncmp(line, "SecPageTables:", 14);
	if (f)
		fclose(f);
	return found;
}

static void look(struct density_before *b)
{
	b->available = proc_meminfo_kib("MemAvailable");
	b->second_stage = proc_meminfo_kib("SecPageTables");
	b->kernel = kernel_kib();
}

void density_before(struct density_before *b)
{
	look(b);
	for (unsigned looks = 0, calm = 0; calm < 2 && looks < CALM_LOOKS; looks++) {
		uint64_t was = b->available;
		usleep(CALM_MS * 1000);
		look(b);
		uint64_t moved = b->available > was ? b->available - was : was - b->available;
		calm = moved <= CALM_KIB ? calm + 1 : 0;
	}
}

/* ---- holding guests still ------------------------------------------------------------------ */

/* Is the process' first thread, the only one that changes its mappings, stopped (or gone)? */
static bool is_stopped(pid_t pid)
{
	char path[64], line[512] = "";
	snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
	FILE *f = fopen(path, "re");
	if (!f)
		return true;
	bool read = fgets(line, sizeof line, f) != NULL;
	fclose(f);
	const char *state = strrchr(line, ')');
	return !read || !state || state[1] != ' ' || strchr("TtZX", state[2]) != NULL;
}

static void signal_all(struct fleet *f, int signal)
{
	struct host_vm *vm;
	for (unsigned i = 0; (vm = host_vm_at(f->host, i)); i++)
		if (vm->phase == HOST_VM_ALIVE)
			syscall(SYS_pidfd_send_signal, vm->pidfd, signal, NULL, 0);
}

void density_freeze(struct fleet *f)
{
	struct host_vm *vm;
	unsigned waited = 0;
	signal_all(f, SIGSTOP);
	for (unsigned i = 0; (vm = host_vm_at(f->host, i)); i++)
		while (vm->phase == HOST_VM_ALIVE && !is_stopped(vm->pid) && waited++ < FREEZE_MS)
			usleep(1000);
}

void density_thaw(struct fleet *f)
{
	signal_all(f, SIGCONT);
}

/* ---- numbers ------------------------------------------------------------------------------- */

/*
 * Bytes of kernel memory for a VMA, page tables apart: its object; its lock's, where kernels keep that
 * beside it; and its share of the nodes of the trees that VMAs are found by, which is the host's average,
 * since nobody tells how many nodes a process has. What only some VMAs have (anonymous memory's
 * anon_vma, userfaultfd's context) isn't in it. 0: the kernel doesn't tell.
 */
static double vma_bytes(void)
{
	struct proc_slab vma, lock, node;
	if (!proc_slab("vm_area_struct", &vma) || !vma.objects)
		return 0;
	proc_slab("vma_lock", &lock);
	proc_slab("maple_node", &node);
	double nodes = (double)node.objects * (double)node.object_bytes;
	return (double)(vma.object_bytes + lock.object_bytes) + nodes / (double)vma.objects;
}

uint64_t density_mapping_bytes(const struct density_run *r)
{
	return r->vma_bytes + r->page_table_kib * KiB;
}

static void measure_processes(struct density_run *r, struct fleet *f)
{
	struct host_vm *vm;
	for (unsigned i = 0; (vm = host_vm_at(f->host, i)); i++) {
		struct proc_memory m;
		proc_memory(vm->pid, &m);
		r->page_table_kib += m.page_table_kib;
		r->private_kib += m.private_dirty_kib;
		r->window_mappings += m.pool_mappings;
		r->vmas += m.mappings;
		r->templates += vm->is_template;
		if (vm->number || vm->is_template)
			continue; /* it came ready */
		double seconds = (double)(vm->ready_ns - vm->forked_ns) / 1e9;
		if (seconds > r->ready_seconds)
			r->ready_seconds = seconds;
	}
}

void density_measure(struct density_run *r, struct fleet *f, const struct density_before *b)
{
	struct ipt_counts counts;
	struct density_before now;
	double vma = vma_bytes();
	*r = (struct density_run){.measured = true};
	/* The whole host first, before looking at it takes memory. */
	look(&now);
	ipt_bytes(host_table(f->host), &r->table);
	ipt_counts(host_table(f->host), &counts);
	r->frames = counts.frames[IPT_PRIVATE];
	r->aliases = counts.frames[IPT_ALIAS];
	r->tombs = counts.frames[IPT_TOMB];
	r->pool_bytes = host_populated_bytes(f->host);
	r->available_kib = (int64_t)(b->available - now.available);
	r->has_second_stage = tells_second_stage();
	r->second_stage_kib = (int64_t)(now.second_stage - b->second_stage);
	r->kernel_kib = (int64_t)(now.kernel - b->kernel);
	measure_processes(r, f);
	r->has_vma_bytes = vma > 0;
	r->vma_bytes = (uint64_t)(vma * (double)r->vmas);
	r->parts_kib = (int64_t)((r->pool_bytes + density_table_bytes(&r->table)) / KiB +
				 r->private_kib + r->page_table_kib) +
		       r->second_stage_kib + r->kernel_kib;
}
