/*
 * A damaged page of a VM's own (inject.h). Its bytes are gone for good: the pool's page is punched out. The window's page
 * is watched by userfaultfd from before that on, so the guest's touch comes to us, and is answered with a poisoned page
 * table entry (fault.c); KVM then sends the vCPU's thread a SIGBUS as the kernel does for memory that is really bad
 * (Documentation/admin-guide/mm/userfaultfd.rst, UFFDIO_POISON), and mce.c makes a machine check of it.
 */
#include "vmm/evict.h"
#include "vmm/inject.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static enum inject_outcome refused(char *words, const char *why)
{
	snprintf(words, INJECT_WORDS, "%s", why);
	return INJECT_REFUSED;
}

/* With memory.lock held. */
static enum inject_outcome damage(struct memory *m, gfn_t g, frame_t f, char *words)
{
	struct ipt_place p;
	if (!ipt_place(m->table, m->vm, g, 1, &p) || p.kind != IPT_OWN || p.frame.v != f.v)
		return refused(words, "the page has changed hands meanwhile; try again");
	if (!memory_has_room(m, 1, memory_splits(m, g, 1, f)))
		return refused(words, "the process has as many mappings as it may have "
				      "(vm.max_map_count)");
	/* Mapped before, or of nobody's; either way a touch waits for us from here on. */
	if (memory_hide(m, g, 1))
		return refused(words, "userfaultfd can't watch the page");
	if (!pool_has(m->pool, f)) {
		snprintf(words, INJECT_WORDS, "the page was never written to: nothing to lose");
		return INJECT_BLANK;
	}
	int rc = ipt_spoil(m->table, f, IPT_LOST);
	if (!rc)
		rc = pool_clean((void *)(uintptr_t)m->pool, f, 1);
	if (rc == -EBUSY)
		return refused(words, "a device uses the page at this moment; try again");
	if (rc == -EALREADY)
		return refused(words, "the frame is damaged already");
	if (rc)
		return refused(words, strerror(-rc));
	snprintf(words, INJECT_WORDS, "frame %u is out of use; its bytes are lost", f.v);
	return INJECT_LOST;
}

enum inject_outcome inject_memory(struct memory *m, gfn_t g, frame_t f, char words[INJECT_WORDS])
{
	if (!memory_bank(m, g))
		return refused(words, "the guest has no memory there");
	memory_enter(m);
	enum inject_outcome o = damage(m, g, f, words);
	memory_leave(m);
	return o;
}
