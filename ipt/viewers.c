/* Who sees a frame. */
#include "ipt/chain.h"
#include "ipt/region.h"
#include "ipt/registry.h"
#include "ipt/zone.h"
#include <errno.h>
#include <stdlib.h>

struct telling {
	struct ipt *t;
	frame_t f;
	ipt_viewer_fn *fn;
	void *ctx;
};

/* Tell vm if it sees the frame at g; false to stop. */
static bool tell(const struct telling *c, vmid_t vm, gfn_t g)
{
	struct ipt_place p;

	return !ipt_place(c->t, vm, g, 1, &p) || p.frame.v != c->f.v ||
	       c->fn(c->ctx, vm, g, p.kind);
}

/* Tell the VM that has the frame at g, and its descendants. */
static bool tell_family(const struct telling *c, vmid_t owner, gfn_t g)
{
	struct ipt_vm_info info;

	if (!tell(c, owner, g))
		return false;
	if (ipt_vm_info(c->t, owner, &info) || !info.children)
		return true;
	for (vmid_t vm = ipt_vm_next(c->t, INVALID_VMID); vm.v; vm = ipt_vm_next(c->t, vm)) {
		struct ipt_place p;

		if (vm.v == owner.v || !ipt_place(c->t, vm, g, 1, &p) || p.at.v != owner.v)
			continue;
		if (!tell(c, vm, g))
			return false;
	}
	return true;
}

/* The aliases of f, as keys: their number, or -ENOMEM. */
static int gather(struct ipt *t, uint32_t f, struct ipt_key **out)
{
	uint32_t n = 0, room = 0;
	int err = 0;

	*out = NULL;
	chain_lock(t, f);
	uint64_t w = load_relaxed64(&t->words[f]);
	uint32_t slot = word_state(w) == IPT_SHARED ? (uint32_t)word_gfn(w) : 0;
	for (; slot; slot = slot_next(t, slot)) {
		uint64_t s = load_relaxed64(&t->words[slot]);

		if (n == room) {
			struct ipt_key *more;

			room = room ? room * 2 : 16;
			more = realloc(*out, room * sizeof(*more));
			if (!more) {
				err = -ENOMEM;
				break;
			}
			*out = more;
		}
		(*out)[n++] = (struct ipt_key){vmid(word_vm(s)), gfn(word_gfn(s))};
	}
	chain_unlock(t, f);
	return err ? err : (int)n;
}

/* Has one of vm's lineage before `at` a region at g? Then `at`'s doesn't count there. */
static bool is_covered(struct ipt *t, uint32_t vm, uint32_t at, uint64_t g)
{
	while (vm != at && !(region_count(t, vm) && region_covers(t, vm, g)))
		vm = registry_parent(t, vm);
	return vm != at;
}

/* Tell those who see the frame, page `page` of a file, by regions of vm or its ancestors. */
static bool tell_regions(const struct telling *c, vmid_t vm, uint32_t file, uint64_t page)
{
	for (uint32_t at = vm.v; at; at = registry_parent(c->t, at)) {
		const struct region *r = region_of(c->t, at);

		for (uint32_t n = region_count(c->t, at); n--; r++) {
			uint64_t off = page - load_relaxed64(&r->file_first);
			uint64_t g = load_relaxed64(&r->first) + off;

			if (load_relaxed32(&r->file) == file && off < load_relaxed64(&r->count) &&
			    !is_covered(c->t, vm.v, at, g) && !tell(c, vm, gfn(g)))
				return false;
		}
	}
	return true;
}

static void tell_file(const struct telling *c, vmid_t file, gfn_t page)
{
	vmid_t vm = ipt_vm_next(c->t, INVALID_VMID);

	while (vm.v && tell_regions(c, vm, file.v, page.v))
		vm = ipt_vm_next(c->t, vm);
}

int ipt_viewers(struct ipt *t, frame_t f, ipt_viewer_fn *fn, void *ctx)
{
	struct telling c = {t, f, fn, ctx};
	struct ipt_key *keys;
	struct ipt_owner o;
	int err = ipt_owner(t, f, &o);

	if (err)
		return err;
	if (o.state == IPT_PRIVATE && load_relaxed8(&t->vms[o.vm.v].kind) == IPT_FILE)
		tell_file(&c, o.vm, o.gfn);
	else if (o.state == IPT_PRIVATE)
		tell_family(&c, o.vm, o.gfn);
	if (o.state != IPT_SHARED)
		return 0;
	int n = gather(t, f.v, &keys);
	for (int i = 0; i < n && tell_family(&c, keys[i].vm, keys[i].gfn); i++)
		;
	free(keys);
	return n < 0 ? n : 0;
}
