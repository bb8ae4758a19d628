/* Who sees a frame. */
#include "ipt/ipt.h"
#include <errno.h>

/* Tell vm if it sees f at g; false to stop. */
static bool tell(struct ipt *t, vmid_t vm, gfn_t g, frame_t f, ipt_viewer_fn *fn, void *ctx)
{
	struct ipt_place p;

	return !ipt_place(t, vm, g, 1, &p) || p.frame.v != f.v || fn(ctx, vm, g, p.kind);
}

int ipt_viewers(struct ipt *t, frame_t f, ipt_viewer_fn *fn, void *ctx)
{
	struct ipt_owner o;
	int err = ipt_owner(t, f, &o);

	if (err || o.state != IPT_PRIVATE)
		return err;
	if (!tell(t, o.vm, o.gfn, f, fn, ctx))
		return 0;
	for (vmid_t vm = ipt_vm_next(t, INVALID_VMID); vm.v; vm = ipt_vm_next(t, vm)) {
		if (vm.v != o.vm.v && !tell(t, vm, o.gfn, f, fn, ctx))
			break;
	}
	return 0;
}
