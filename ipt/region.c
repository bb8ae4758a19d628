/* Regions: gfns that are pages of a file. See region.h. */
#include "ipt/region.h"
#include "ipt/debug.h"
#include "ipt/registry.h"
#include <errno.h>

struct range {
	uint64_t first, count, file_first;
	uint32_t file;
};

static struct range get(const struct region *r)
{
	return (struct range){load_relaxed64(&r->first), load_relaxed64(&r->count),
			      load_relaxed64(&r->file_first), load_relaxed32(&r->file)};
}

/* Behind the last; there is room. The count makes it count. */
static void append(struct ipt *t, uint32_t vm, const struct range *a)
{
	uint32_t n = region_count(t, vm);
	struct region *r = &region_of(t, vm)[n];

	store_relaxed64(&r->first, a->first);
	store_relaxed64(&r->count, a->count);
	store_relaxed64(&r->file_first, a->file_first);
	store_relaxed32(&r->file, a->file);
	ipt_step();
	store_release8(&t->vms[vm].regions, (uint8_t)(n + 1));
	ipt_step();
}

bool region_uses(struct ipt *t, uint32_t file)
{
	for (vmid_t vm = ipt_vm_next(t, INVALID_VMID); vm.v; vm = ipt_vm_next(t, vm)) {
		for (uint32_t i = 0; i < region_count(t, vm.v); i++) {
			if (load_relaxed32(&region_of(t, vm.v)[i].file) == file)
				return true;
		}
	}
	return false;
}

static bool has_it(const struct ipt *t, uint32_t vm, const struct range *a)
{
	for (uint32_t i = 0; i < region_count(t, vm); i++) {
		struct range b = get(&region_of(t, vm)[i]);

		if (a->first == b.first && a->count == b.count && a->file == b.file &&
		    a->file_first == b.file_first)
			return true;
	}
	return false;
}

bool region_fits(const struct ipt *t, uint32_t from, uint32_t to)
{
	uint32_t n = region_count(t, to);

	for (uint32_t i = 0; i < region_count(t, from); i++) {
		struct range a = get(&region_of(t, from)[i]);

		n += !has_it(t, to, &a);
	}
	return n <= IPT_MAX_REGIONS;
}

void region_inherit(struct ipt *t, uint32_t from, uint32_t to)
{
	for (uint32_t i = 0; i < region_count(t, from); i++) {
		struct range a = get(&region_of(t, from)[i]);

		if (!has_it(t, to, &a))
			append(t, to, &a);
	}
}

static int region_add(struct ipt *t, vmid_t vm, const struct range *a)
{
	struct vm_slot *s, *file = registry_slot(t, vmid(a->file), VM_LIVE);
	int err = registry_changes(t, vm, &s);

	if (err)
		return err;
	if (!file || load_relaxed8(&file->kind) != IPT_FILE)
		return -ENOENT;
	for (uint32_t i = 0; i < region_count(t, vm.v); i++) {
		struct range b = get(&region_of(t, vm.v)[i]);

		if (a->first < b.first + b.count && b.first < a->first + a->count)
			return -EEXIST;
	}
	if (region_count(t, vm.v) == IPT_MAX_REGIONS)
		return -ENOSPC;
	append(t, vm.v, a);
	return 0;
}

static bool range_valid(uint64_t first, uint64_t count)
{
	return count && first < IPT_MAX_GFN && count <= IPT_MAX_GFN - first;
}

int ipt_vm_region(struct ipt *t, vmid_t vm, gfn_t first, uint64_t count, vmid_t file,
		  uint64_t file_first)
{
	struct range a = {first.v, count, file_first, file.v};

	if (!range_valid(first.v, count) || !range_valid(file_first, count))
		return -EINVAL;
	registry_lock(t);
	int err = region_add(t, vm, &a);
	registry_unlock(t);
	return err;
}
