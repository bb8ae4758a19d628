/*
 * Damaged memory, by who has the frame (ipt_owner, one read of the array):
 *   nobody            it is retired
 *   a running VM      its process does it (inject_memory.c), since only it can change its window
 *   a template, or    we do it: wherever such a frame is seen userfaultfd watches it, so that marking it and punching its
 *   it is shared      page out is enough. Whoever touches it is told; nobody has another copy
 *   a file            likewise, but what the file has is read again: the page becomes void in the table. Unless a guest has
 *                     written to it and not flushed
 */
#include "vmm/host_inject.h"
#include "vmm/error.h"
#include "vmm/host_domain.h"
#include "vmm/host_private.h"
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct inject_wait {
	struct host_vm *vm;
	struct inject_result result;
	host_injected_fn *told;
	void *ctx;
	bool is_power_cut;
};

static void __attribute__((format(printf, 3, 4)))
conclude(struct inject_result *r, enum inject_outcome outcome, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	vsnprintf(r->words, sizeof r->words, format, args);
	va_end(args);
	r->outcome = outcome;
}

/* ---- memory -------------------------------------------------------------------------------- */

static bool note_viewer(void *ctx, vmid_t vm, gfn_t g, enum ipt_place_kind how)
{
	struct inject_result *r = ctx;
	(void)g;
	(void)how;
	if (r->viewers < INJECT_VIEWERS)
		r->viewer[r->viewers] = vm;
	r->viewers++;
	return true;
}

/* Is it good, has it a page, and can guests be told? Then it is marked, and its bytes are gone. */
static bool destroy(struct host *h, frame_t f, enum ipt_health as, struct inject_result *r)
{
	char error[ERROR_MAX];
	if (!host_domain_has(h, f)) {
		conclude(r, INJECT_BLANK, "nobody ever wrote to the frame: nothing to lose");
		return false;
	}
	if (fault_can_poison(error)) {
		conclude(r, INJECT_REFUSED, "%.*s", INJECT_WORDS - 1, error);
		return false;
	}
	int rc = ipt_spoil(h->table, f, as);
	if (!rc)
		rc = host_domain_clean_all(h, f, 1);
	if (!rc)
		return true;
	conclude(r, INJECT_REFUSED, "%s",
		 rc == -EBUSY      ? "a device uses the frame at this moment; try again"
		 : rc == -EALREADY ? "the frame is damaged already"
		 : rc == -ESTALE   ? "the frame has changed hands meanwhile; try again"
				   : strerror(-rc));
	return false;
}

static void lose(struct host *h, frame_t f, struct inject_result *r)
{
	if (destroy(h, f, IPT_LOST, r))
		conclude(r, INJECT_LOST, "frame %u is out of use; its bytes are lost", f.v);
}

static bool in_set(const struct pageset *s, uint64_t page)
{
	uint64_t at = page;
	return pageset_next(s, &at, 1) && at == page;
}

/* Has a guest written to the file's page what isn't in the file yet? *writing: it is on its way. */
static bool is_dirty(struct host *h, vmid_t file, uint64_t page, bool *writing)
{
	bool dirty = false;
	*writing = false;
	for (unsigned i = 0; i < h->vms; i++)
		for (unsigned k = 0; k < VM_MAX_PMEM; k++) {
			const struct pmem_view *v = h->vm[i]->pmem[k];
			if (!v || !v->share || v->file->id.v != file.v || page >= v->pages)
				continue;
			dirty |= in_set(&v->dirty, page);
			*writing |= in_set(&v->writing, page);
		}
	const struct pmem_file *f = host_file_by_id(h, file);
	for (const struct pmem_view *v = f ? f->left : NULL; v; v = v->next) {
		dirty |= page < v->pages && in_set(&v->dirty, page);
		*writing |= page < v->pages && in_set(&v->writing, page);
	}
	return dirty;
}

static int settled(void *ctx)
{
	(void)ctx; /* its page is gone already, and who finds none looks whether it is bad */
	return 0;
}

static void damage_file(struct host *h, frame_t f, const struct ipt_owner *o,
			struct inject_result *r)
{
	static const struct ipt_out_ops ops = {NULL, settled, host_domain_clean_all};
	bool writing;
	is_dirty(h, o->vm, o->gfn.v, &writing);
	if (writing) {
		conclude(r, INJECT_REFUSED, "the page is being written to its file; try again");
		return;
	}
	if (!destroy(h, f, IPT_RETIRING, r))
		return;
	/* Nobody can write to it from here on without being refused; so now it counts. */
	bool dirty = is_dirty(h, o->vm, o->gfn.v, &writing) || writing;
	int rc = dirty ? 0 : ipt_file_drop(h->table, o->vm, o->gfn.v, f, 1, &ops, h);
	const struct pmem_file *file = host_file_by_id(h, o->vm);
	if (!dirty && !rc) {
		conclude(r, INJECT_REPAIRED, "frame %u is out of use; %.90s has what it held", f.v,
			 file ? file->path : "the file");
		return;
	}
	ipt_spoil(h->table, f, IPT_LOST);
	conclude(r, INJECT_LOST, "frame %u is out of use; its bytes are lost%s", f.v,
		 dirty ? ", which a guest wrote and did not flush" : "");
}

/* True: it is done, or refused. False: the VM *owner has to do it. */
static bool damage(struct host *h, frame_t f, struct inject_result *r, struct host_vm **owner,
		   gfn_t *g)
{
	struct ipt_owner o;
	struct ipt_vm_info info;
	int rc = ipt_owner(h->table, f, &o);
	r->frame = f.v;
	*owner = NULL;
	if (!rc)
		rc = ipt_viewers(h->table, f, note_viewer, r);
	if (rc) {
		conclude(r, INJECT_REFUSED, "frame %u is outside the pool's %u frames", f.v,
			 host_frames(h));
	} else if (ipt_health(h->table, f) != IPT_GOOD) {
		conclude(r, INJECT_REFUSED, "frame %u is damaged already", f.v);
	} else if (o.state == IPT_FREE) {
		rc = ipt_retire_free(h->table, f);
		if (rc)
			conclude(r, INJECT_REFUSED, "%s",
				 rc == -ERANGE
					 ? "the frame is free, and far from all that were "
					   "ever used"
					 : "the frame has changed hands meanwhile; try again");
		else
			conclude(r, INJECT_RETIRED, "frame %u was free, and is out of use", f.v);
	} else if (o.state == IPT_LIMBO) {
		conclude(r, INJECT_REFUSED, "the frame is changing hands; try again");
	} else if (o.state == IPT_SHARED) {
		lose(h, f, r);
	} else if (ipt_vm_info(h->table, o.vm, &info) || info.dying) {
		conclude(r, INJECT_REFUSED, "the frame is changing hands; try again");
	} else if (info.kind == IPT_FILE) {
		damage_file(h, f, &o, r);
	} else if (info.kind == IPT_TEMPLATE) {
		lose(h, f, r);
	} else {
		char error[ERROR_MAX];
		*owner = host_vm_by_id(h, o.vm);
		*g = o.gfn;
		if (*owner && !fault_can_poison(error))
			return false;
		conclude(r, INJECT_REFUSED, "%.*s", INJECT_WORDS - 1,
			 *owner ? error : "the frame's VM isn't there any more");
	}
	return true;
}

/* The frame behind an address: false, and it is said why there is none. */
static bool find_frame(struct host *h, const struct host_vm *vm, uint64_t at, frame_t *f,
		       struct inject_result *r)
{
	struct ipt_place p;
	if (!machine_bank_of(&vm->config.machine, gpa(at), 1)) {
		conclude(r, INJECT_REFUSED, "the guest has no memory at that address");
		return false;
	}
	if (!ipt_place(h->table, vm->id, gpa_gfn(gpa(at)), 1, &p) || !frame_valid(p.frame)) {
		conclude(r, INJECT_BLANK, "%s: nothing to lose",
			 p.kind == IPT_AWAY ? "the page is out of memory"
					    : "the guest has never used the page");
		return false;
	}
	*f = p.frame;
	return true;
}

/* ---- orders -------------------------------------------------------------------------------- */

static int order(struct host_vm *vm, const struct inject *f, const struct inject_result *so_far,
		 host_injected_fn *told, void *ctx)
{
	struct inject_box *b = &vm->mailbox->inject;
	if (vm->mailbox->state == VM_STARTING) {
		struct inject_result r = *so_far;
		conclude(&r, INJECT_REFUSED, "the guest is just starting; try again");
		told(ctx, &r);
		return 0;
	}
	struct inject_wait *w = calloc(1, sizeof *w);
	if (!w)
		return -ENOMEM;
	*w = (struct inject_wait){.vm = vm,
				  .result = *so_far,
				  .told = told,
				  .ctx = ctx,
				  .is_power_cut = f->kind == INJECT_POWER_CUT};
	vm->injecting = w;
	b->wanted = *f;
	atomic_fetch_add_explicit(&b->asked, 1, memory_order_release);
	host_order(vm, ORDER_INJECT);
	return 0;
}

void host_inject_news(struct host_vm *vm)
{
	struct inject_wait *w = vm->injecting;
	const struct inject_box *b = &vm->mailbox->inject;
	bool alive = vm->phase == HOST_VM_ALIVE;
	bool answered = w && atomic_load_explicit(&b->answered, memory_order_acquire) ==
				     atomic_load_explicit(&b->asked, memory_order_relaxed);
	if (!w || (alive && !answered))
		return;
	vm->injecting = NULL;
	if (answered) {
		w->result.outcome = b->outcome;
		w->result.id = b->id;
		w->result.loss = b->loss;
		snprintf(w->result.words, sizeof w->result.words, "%.*s", INJECT_WORDS - 1,
			 b->words);
		error_plain(w->result.words, sizeof w->result.words);
	} else {
		conclude(&w->result, INJECT_REFUSED, "the VM ended before");
	}
	if (w->told)
		w->told(w->ctx, &w->result);
	free(w);
}

void host_inject_forget(struct host *h, void *ctx)
{
	for (unsigned i = 0; i < h->vms; i++)
		if (h->vm[i]->injecting && h->vm[i]->injecting->ctx == ctx)
			h->vm[i]->injecting->told = NULL;
}

/* Is a fault on its way to it? One that a host asked for which died may be, too; the VM is told of that once more, in case
 * nobody did. */
static bool is_busy(struct host_vm *vm)
{
	const struct inject_box *b = &vm->mailbox->inject;
	if (vm->injecting)
		return true;
	if (b->asked == b->answered)
		return false;
	host_order(vm, ORDER_INJECT);
	return true;
}

int host_inject(struct host *h, struct host_vm *vm, const struct inject *f, host_injected_fn *told,
		void *ctx)
{
	struct inject_result r = {.frame = UINT32_MAX};
	struct inject now = *f;
	if (f->kind == INJECT_MEMORY) {
		frame_t at = frame(f->frame);
		gfn_t g = INVALID_GFN;
		bool done = vm && f->gpa != INJECT_ANYWHERE && !find_frame(h, vm, f->gpa, &at, &r);
		/* What has to wait must find nothing changed by us. */
		struct ipt_owner o;
		if (!done && ipt_owner(h->table, at, &o) == 0 && o.vm.v) {
			struct host_vm *of = host_vm_by_id(h, o.vm);
			if (of && is_busy(of))
				return -EBUSY;
		}
		if (done || damage(h, at, &r, &vm, &g)) {
			told(ctx, &r);
			return 0;
		}
		now.gpa = gfn_gpa(g).v;
		now.frame = at.v;
	}
	return is_busy(vm) ? -EBUSY : order(vm, &now, &r, told, ctx);
}
