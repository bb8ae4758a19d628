/* Files: pages that VMs see by their regions. A file is a VM to the registry and the forward map; its
 * gfns are page numbers, and nobody works for it. */
#include "ipt/map.h"
#include "ipt/move.h"
#include <errno.h>

/* n limbo frames of vm become pages of the file, all in one group, or none does. */
static int map_piece(struct ipt *t, uint32_t vm, vmid_t file, uint64_t page, uint32_t f, unsigned n)
{
	struct vm_slot *s = registry_slot(t, file, VM_LIVE);

	if (!s || load_relaxed8(&s->kind) != IPT_FILE)
		return -ENOENT;
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
