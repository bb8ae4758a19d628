#include "vmm/density.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Steps in which the copy's allocator is brought up to the last frame: it takes goals only so far
 * beyond what it gave out before. */
#define REACH (UINT32_C(1) << 16)

struct replay {
	struct ipt *live, *copy;
	vmid_t *id; /* the copy's id of each VM of the live table */
	uint32_t frames;
};

/* The same VMs. Lineage isn't copied: every mapping is made in the VM that owns its frame. */
static int copy_vms(struct replay *r)
{
	r->id = calloc((size_t)ipt_config(r->live)->max_vms + 1, sizeof *r->id);
	if (!r->id)
		return -ENOMEM;
	for (vmid_t v = ipt_vm_next(r->live, INVALID_VMID); v.v; v = ipt_vm_next(r->live, v)) {
		struct ipt_vm_info info;
		int rc = ipt_vm_info(r->live, v, &info);
		if (!rc && v.v > ipt_config(r->live)->max_vms)
			rc = -ERANGE;
		if (!rc)
			rc = ipt_vm_add(r->copy, info.name, INVALID_VMID, &r->id[v.v]);
		if (rc)
			return rc;
	}
	return 0;
}

static int reach(struct replay *r, vmid_t any)
{
	for (uint32_t f = 0; f < r->frames; f += REACH) {
		struct ipt_hint hint = {.goal = frame(f)};
		frame_t got;
		int rc = ipt_alloc(r->copy, any, 0, &hint, &got);
		if (!rc)
			rc = ipt_free(r->copy, any, got, 1);
		if (rc)
			return rc;
	}
	return 0;
}

/* Exactly the frames [first, first + count), in the largest blocks that fit. */
static int take(struct replay *r, vmid_t vm, uint32_t first, uint32_t count)
{
	for (uint32_t f = first, end = first + count; f < end;) {
		unsigned order = 0;
		while (order < IPT_MAX_ORDER && !(f & 1u << order) && end - f >= 2u << order)
			order++;
		struct ipt_hint hint = {.goal = frame(f)};
		frame_t got;
		int rc = ipt_alloc(r->copy, vm, order, &hint, &got);
		if (rc)
			return rc;
		if (got.v != f)
			return -EADDRINUSE;
		f += 1u << order;
	}
	return 0;
}

static bool owned(struct ipt *t, uint32_t f, struct ipt_owner *o)
{
	return ipt_owner(t, frame(f), o) == 0 && o->state == IPT_PRIVATE;
}

/* How far the run of frames that begins at f, whose owner is o, goes on. */
static uint32_t run_length(struct replay *r, uint32_t f, const struct ipt_owner *o)
{
	struct ipt_owner next;
	uint32_t n = 1;
	while (f + n < r->frames && owned(r->live, f + n, &next) && next.vm.v == o->vm.v &&
	       next.gfn.v == o->gfn.v + n)
		n++;
	return n;
}

static uint32_t last_owned(struct replay *r)
{
	struct ipt_owner o;
	uint32_t end = ipt_config(r->live)->frames;
	while (end && !owned(r->live, end - 1, &o))
		end--;
	return end;
}

static int copy_mappings(struct replay *r, uint64_t *mapped)
{
	struct ipt_owner o;
	vmid_t first = ipt_vm_next(r->copy, INVALID_VMID);
	r->frames = last_owned(r);
	int rc = r->frames ? reach(r, first) : 0;
	for (uint32_t f = 0; !rc && f < r->frames;) {
		if (!owned(r->live, f, &o)) {
			f++;
			continue;
		}
		uint32_t n = run_length(r, f, &o);
		rc = take(r, r->id[o.vm.v], f, n);
		if (!rc)
			rc = ipt_map(r->copy, r->id[o.vm.v], o.gfn, frame(f), n);
		*mapped += n;
		f += n;
	}
	return rc;
}

/* Every frame of the pool, both ways. */
static uint64_t compare(struct replay *r)
{
	uint64_t wrong = 0;
	for (uint32_t f = 0; f < ipt_config(r->live)->frames; f++) {
		struct ipt_owner a, b;
		bool in_live = owned(r->live, f, &a), in_copy = owned(r->copy, f, &b);
		if (in_live != in_copy ||
		    (in_live && (r->id[a.vm.v].v != b.vm.v || a.gfn.v != b.gfn.v ||
				 ipt_lookup(r->live, a.vm, a.gfn).v != f ||
				 ipt_lookup(r->copy, b.vm, b.gfn).v != f)))
			wrong++;
	}
	return wrong + (uint64_t)ipt_audit(r->copy, NULL, NULL);
}

int density_replay(struct density_replay *out, struct ipt *live, char *error)
{
	struct replay r = {.live = live};
	struct ipt_config config = *ipt_config(live);
	struct ipt_counts counts;
	*out = (struct density_replay){.frames = 0};
	config.kind = IPT_RADIX;
	int rc = ipt_create(&r.copy, &config);
	if (rc)
		return errorf(error, rc, "radix tables to compare: %s", strerror(-rc));
	rc = copy_vms(&r);
	if (!rc)
		rc = copy_mappings(&r, &out->frames);
	if (!rc)
		rc = ipt_bytes(r.copy, &out->bytes);
	if (!rc) {
		ipt_counts(r.copy, &counts);
		out->table_pages = counts.radix_pages;
		out->mismatches = compare(&r);
	}
	ipt_detach(r.copy);
	free(r.id);
	return rc ? errorf(error, rc, "radix tables to compare: the mappings can't be replayed: %s",
			   strerror(-rc))
		  : 0;
}
