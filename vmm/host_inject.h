/* Injecting faults, as the host does it: by order of the VM's process, or, where frames are nobody's alone, itself. */
#ifndef VMM_HOST_INJECT_H
#define VMM_HOST_INJECT_H

#include "vmm/host.h"

#define INJECT_VIEWERS 64

/* What came of one. */
struct inject_result {
	enum inject_outcome outcome;
	uint32_t id; /* its slot's, if it is armed */
	char words[INJECT_WORDS];
	struct inject_loss loss; /* power-cut */
	/* memory: which frame it was (UINT32_MAX: none), and who saw it, as far as there is room; in all. */
	uint32_t frame, viewers;
	vmid_t viewer[INJECT_VIEWERS];
};
typedef void host_injected_fn(void *ctx, const struct inject_result *r);

/* Do it. vm may be NULL for memory by its frame. `told` is called once, perhaps before this returns. -EBUSY: another is
 * under way for that VM, and `told` isn't called. */
int host_inject(struct host *h, struct host_vm *vm, const struct inject *f, host_injected_fn *told,
		void *ctx);
/* Whoever waits with that context waits no longer. */
void host_inject_forget(struct host *h, void *ctx);
/* There is news of the VM, or it ended. */
void host_inject_news(struct host_vm *vm);

#endif
