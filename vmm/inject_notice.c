/*
 * A guest is told in advance that a page's memory is bad, as by a scrubber that found it (action optional): it may do
 * without the page before anybody needs what was there.
 */
#include "vmm/inject.h"
#include "vmm/mce.h"
#include "vmm/vm.h"
#include <stdio.h>

#define PENDING 1u /* beside the address of a page */

enum inject_outcome inject_notice(struct vm *vm, const struct inject *f, char words[INJECT_WORDS])
{
	uint64_t none = 0;
	const char *why = NULL;
	if (!memory_bank(&vm->memory, gpa_gfn(gpa(f->gpa))))
		why = "the guest has no memory there";
	else if (!atomic_compare_exchange_strong(&vm->inject.notice, &none,
						 (f->gpa & ~PAGE_MASK) | PENDING))
		why = "the guest hasn't taken the one before yet; try again";
	if (why) {
		snprintf(words, INJECT_WORDS, "%s", why);
		return INJECT_REFUSED;
	}
	atomic_fetch_or_explicit(&vm->inject.attention, 1u, memory_order_release);
	vcpu_kick_all(vm);
	return INJECT_DONE;
}

bool inject_give_notice(struct vm *vm)
{
	struct inject_box *b = &vm->links.mailbox->inject;
	uint64_t notice = atomic_load_explicit(&vm->inject.notice, memory_order_relaxed);
	if (!notice)
		return true;
	bool amd = mce_is_amd(vm->kvm.host);
	enum mce_room room = mce_room(vm->kvm.vcpu[0].fd, amd);
	if (room == MCE_LATER)
		return false;
	gpa_t at = gpa(notice & ~PAGE_MASK);
	if (room == MCE_NEVER || mce_notify(vm->kvm.vcpu[0].fd, amd, at)) {
		atomic_fetch_add_explicit(&b->undelivered, 1, memory_order_relaxed);
	} else {
		b->last_gpa = at.v;
		atomic_fetch_add_explicit(&b->machine_checks, 1, memory_order_relaxed);
		if (!amd)
			inject_tell_others(vm, 0);
	}
	atomic_store_explicit(&vm->inject.notice, 0, memory_order_release);
	return true;
}
