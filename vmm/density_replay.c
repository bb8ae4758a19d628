/*
 * The other side of the comparison: every VM has a radix table of its own in which all that it sees is
 * mapped, whoever owns the frame, and a reverse map names every (VM, gfn) that sees a frame, a word each.
 * In a table of kind IPT_RADIX the array is the reverse map, a word a frame, so each mapping gets a
 * frame number of its own there: as many words as the names would take.
 */
#include "vmm/density.h"
#include "vmm/proc.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MOST_MAPPINGS (UINT64_C(1) << 26)
/* Memory for one: a word, 4 bytes beside it, an entry, and some for tables that aren't full. */
#define MAPPING_BYTES 32

struct replay {
	struct ipt *live, *copy;
	const struct machine *machine;
	struct density_replay *out;
	uint32_t max_vms;
	vmid_t *in_copy; /* of each VM of the live table that is replayed, its id in the copy ... */
	vmid_t *in_live; /* ... and the other way round */
	uint64_t viewers; /* (VM, gfn) that the live table's frames are seen by */
	uint64_t wrong;
};

/* ---- what a VM sees ------------------------------------------------------------------------ */

typedef int run_fn(struct replay *r, vmid_t vm, gfn_t first, uint32_t count,
		   enum ipt_place_kind kind);

/* All runs of gfns with frames behind them, until one is -errno. */
static int walk(struct replay *r, vmid_t vm, run_fn *run)
{
	for (unsigned b = 0; b < r->machine->banks; b++) {
		const struct machine_bank *bank = &r->machine->bank[b];
		uint64_t g = bank->base.v / PAGE_SIZE, end = g + bank->bytes / PAGE_SIZE;
		while (g < end) {
			uint64_t left = end - g;
			struct ipt_place p;
			uint32_t max = left < UINT32_MAX ? (uint32_t)left : UINT32_MAX;
			uint32_t n = ipt_place(r->live, vm, gfn(g), max, &p);
			int rc = !n                   ? -ERANGE
				 : p.kind == IPT_VOID ? 0
						      : run(r, vm, gfn(g), n, p.kind);
			if (rc)
				return rc;
			g += n;
		}
	}
	return 0;
}

static int count_run(struct replay *r, vmid_t vm, gfn_t first, uint32_t count,
		     enum ipt_place_kind kind)
{
	(void)vm;
	(void)first;
	r->out->seen += count;
	r->out->inherited += kind == IPT_INHERITED ? count : 0;
	return 0;
}

/* A VM that runs: neither a template nor a file. */
static bool runs(struct replay *r, vmid_t vm, struct ipt_vm_info *info)
{
	return ipt_vm_info(r->live, vm, info) == 0 && info->kind == IPT_VM && !info->dying;
}

/* Counts what all see, and marks in in_copy the VMs that are to be replayed: the first ones, as many as
 * the limit allows. */
static int choose(struct replay *r, uint64_t limit)
{
	struct density_replay *o = r->out;
	struct ipt_vm_info info;
	uint64_t sum = 0;
	bool full = false;
	for (vmid_t v = ipt_vm_next(r->live, INVALID_VMID); v.v; v = ipt_vm_next(r->live, v)) {
		if (!runs(r, v, &info))
			continue;
		uint64_t before = o->seen;
		int rc = v.v > r->max_vms ? -ERANGE : walk(r, v, count_run);
		if (rc)
			return rc;
		o->vms++;
		full = full || sum + o->seen - before > limit;
		if (full)
			continue;
		sum += o->seen - before;
		r->in_copy[v.v] = v;
		o->vms_replayed++;
	}
	o->mappings = sum;
	return o->vms && !o->vms_replayed ? -E2BIG : 0;
}

/* ---- making the copy ----------------------------------------------------------------------- */

static int map_run(struct replay *r, vmid_t vm, gfn_t first, uint32_t count,
		   enum ipt_place_kind kind)
{
	vmid_t id = r->in_copy[vm.v];
	(void)kind;
	for (uint32_t done = 0; done < count;) {
		frame_t f;
		int order = IPT_MAX_ORDER, rc;
		while (1u << order > count - done)
			order--;
		do
			rc = ipt_alloc(r->copy, id, (unsigned)order, NULL, &f);
		while (rc == -ENOMEM && order-- > 0);
		if (!rc)
			rc = ipt_map(r->copy, id, gfn(first.v + done), f, 1u << order);
		if (rc)
			return rc;
		done += 1u << order;
	}
	return 0;
}

static int make(struct replay *r)
{
	struct ipt_config config = *ipt_config(r->live);
	config.kind = IPT_RADIX;
	config.frames = r->out->mappings ? (uint32_t)r->out->mappings : 1;
	config.nodes = config.colours = 1;
	int rc = ipt_create(&r->copy, &config);
	for (uint32_t v = 1; !rc && v <= r->max_vms; v++) {
		struct ipt_vm_info info;
		vmid_t id;
		if (!r->in_copy[v].v)
			continue;
		rc = ipt_vm_info(r->live, vmid(v), &info);
		if (!rc)
			rc = ipt_vm_add(r->copy, info.name, INVALID_VMID, &id);
		if (rc)
			break;
		r->in_copy[v] = id;
		r->in_live[id.v] = vmid(v);
		rc = walk(r, vmid(v), map_run);
	}
	return rc;
}

/* ---- comparing ----------------------------------------------------------------------------- */

static bool seen_by(void *ctx, vmid_t vm, gfn_t g, enum ipt_place_kind how)
{
	struct replay *r = ctx;
	(void)how;
	if (!r->in_copy[vm.v].v)
		return true;
	r->viewers++;
	r->wrong += !frame_valid(ipt_lookup(r->copy, r->in_copy[vm.v], g));
	return true;
}

/*
 * Every mapping of the copy leads there and back, and to a frame in the live table; every (VM, gfn) that
 * the live table says sees one of its frames is mapped in the copy; and there are as many of these as of
 * those, so that none is missing on either side.
 */
static int compare(struct replay *r)
{
	uint64_t mapped = 0;
	struct ipt_owner o;
	for (uint32_t m = 0; m < ipt_config(r->copy)->frames; m++) {
		if (ipt_owner(r->copy, frame(m), &o) || o.state != IPT_PRIVATE)
			continue;
		mapped++;
		r->wrong += ipt_lookup(r->copy, o.vm, o.gfn).v != m ||
			    !frame_valid(ipt_lookup(r->live, r->in_live[o.vm.v], o.gfn));
	}
	for (uint32_t f = 0; f < ipt_config(r->live)->frames; f++) {
		int rc = ipt_viewers(r->live, frame(f), seen_by, r);
		if (rc)
			return rc;
	}
	r->wrong += mapped > r->viewers ? mapped - r->viewers : r->viewers - mapped;
	r->wrong += mapped != r->out->mappings;
	r->wrong += (uint64_t)ipt_audit(r->copy, NULL, NULL);
	r->out->mismatches = r->wrong;
	return 0;
}

/* ---- the whole ----------------------------------------------------------------------------- */

static int replay(struct replay *r, uint64_t limit)
{
	struct ipt_counts counts;
	r->in_copy = calloc((size_t)r->max_vms + 1, sizeof *r->in_copy);
	r->in_live = calloc((size_t)r->max_vms + 1, sizeof *r->in_live);
	if (!r->in_copy || !r->in_live)
		return -ENOMEM;
	int rc = choose(r, limit < MOST_MAPPINGS ? limit : MOST_MAPPINGS);
	if (!rc)
		rc = make(r);
	if (!rc)
		rc = ipt_bytes(r->copy, &r->out->bytes);
	if (rc)
		return rc;
	ipt_counts(r->copy, &counts);
	r->out->table_pages = counts.radix_pages;
	return compare(r);
}

uint64_t density_replay_limit(void)
{
	uint64_t half = proc_meminfo_kib("MemAvailable") * KiB / 2 / MAPPING_BYTES;
	return half < MOST_MAPPINGS ? half : MOST_MAPPINGS;
}

int density_replay(struct density_replay *out, struct ipt *live, const struct machine *machine,
		   uint64_t limit, char *error)
{
	struct replay r = {
		.live = live, .machine = machine, .out = out, .max_vms = ipt_config(live)->max_vms};
	*out = (struct density_replay){.vms = 0};
	int rc = replay(&r, limit);
	if (r.copy)
		ipt_detach(r.copy);
	free(r.in_copy);
	free(r.in_live);
	if (rc == -E2BIG)
		return errorf(error, rc,
			      "radix tables to compare: a guest's frames are more than the %" PRIu64
			      " that can be replayed",
			      limit);
	return rc ? errorf(error, rc, "radix tables to compare: the mappings can't be replayed: %s",
			   strerror(-rc))
		  : 0;
}
