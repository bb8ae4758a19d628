/* Files: pages that VMs see by their regions. A file is a VM to the registry and the forward map; its
 * gfns are page numbers, and nobody works for it. */
#include "ipt/bad.h"
#include "ipt/map.h"
#include "ipt/move.h"
#include "ipt/template.h"
#include <errno.h>

/* n limbo frames of vm become pages of the file, all in one group, or none does. */
static int map_piece(struct ipt *t, uint32_t vm, vmid_t file, uint64_t page, uint32_t f, unsigned n)
{
	struct vm_slot *s = registry_slot(t, file, VM_LIVE);

	if (!s || load_relaxed8(&s->kind) != IPT_FILE)
		return -ENOENT;
	for (unsigned i = 0; i < n && load_relaxed8(&s->dropped); i++)
		atomic_fetch_or_explicit(&t->side[f + i], SIDE_MOVED, memory_order_release);
	move_begin(t, vm, file.v, f, n, IPT_PRIVATE);
	int err = forward_map(t, file.v, page, f, n, IPT_PRIVATE);
	move_end(t);
	return err;
}

int ipt_file_map(struct ipt *t, vmid_t vm, vmid_t file, uint64_t first, frame_t fr, uint32_t count,
		 uint32_t *done)
{
	int err = map_check(t, vm, gfn(first), fr, count);

	*done = 0;
	while (!err && *done < count) {
		unsigned n = map_piece_len(first + *done, count - *done);

		registry_lock(t);
		err = map_piece(t, vm.v, file, first + *done, fr.v + *done, n);
		registry_unlock(t);
		if (!err) {
			add_relaxed32(vm_frames(&t->vms[vm.v], IPT_LIMBO), -n);
			*done += n;
		}
	}
	return err;
}

/* ---- dropping -------------------------------------------------------------------------------- */

static bool are_pages(struct ipt *t, vmid_t file, uint64_t page, uint32_t f, uint32_t n)
{
	struct vm_slot *s = registry_slot(t, file, VM_LIVE);

	return s && load_relaxed8(&s->kind) == IPT_FILE && forward_has_run(t, file.v, page, f, n);
}

static int drop_locked(struct ipt *t, vmid_t file, uint64_t page, uint32_t f, uint32_t n,
		       const struct ipt_out_ops *ops, void *ctx)
{
	uint32_t frames[IPT_CLUSTER_FRAMES];

	if (!are_pages(t, file, page, f, n))
		return -ESTALE;
	store_release8(&t->vms[file.v].dropped, 1);
	recount_begin(t, file);
	undo_begin(t, page, f, n);
	forward_unmap(t, file.v, page, n, frames);
	slot_count(t, file, IPT_PRIVATE, IPT_LIMBO, n);
	int err = ops->settle(ctx);
	bool repaired = n == 1 && bad_holds(t, f, load_relaxed32(&t->side[f])) &&
			bad_read(t, f) == IPT_RETIRING;
	if (!err && frames_pinned(t, f, n) && !repaired)
		err = -EBUSY;
	undo_end(t);
	if (!err)
		err = ops->clean(ctx, frame(f), n);
	if (err) {
		/* There was room for it before. */
		forward_map(t, file.v, page, f, n, IPT_PRIVATE);
		slot_count(t, file, IPT_LIMBO, IPT_PRIVATE, n);
	}
	if (!err)
		template_free(t, file, f, n);
	recount_end(t);
	return err;
}

int ipt_file_drop(struct ipt *t, vmid_t file, uint64_t page, frame_t f, uint32_t n,
		  const struct ipt_out_ops *ops, void *ctx)
{
	if (!map_range_valid(gfn(page), n) || n > map_piece_len(page, n) || f.v >= t->frames ||
	    n > t->frames - f.v)
		return -EINVAL;
	registry_lock(t);
	int err = drop_locked(t, file, page, f.v, n, ops, ctx);
	registry_unlock(t);
	return err;
}
