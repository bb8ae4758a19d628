/* What there is, in numbers. */
#include "ipt/registry.h"
#include <string.h>

void ipt_counts(struct ipt *t, struct ipt_counts *out)
{
	uint32_t high = load_acquire32(&t->header->vm_high);

	memset(out, 0, sizeof(*out));
	out->frames[IPT_FREE] = ipt_free_frames(t);
	for (uint32_t vm = 1; vm <= high; vm++) {
		for (int state = IPT_LIMBO; state < IPT_NSTATES; state++)
			out->frames[state] += registry_count(t, vm, (enum ipt_state)state);
	}
	for (unsigned c = 0; c < TABLE_CHAINS; c++) {
		out->frames[IPT_SHARED] += load_relaxed32(&t->chains[c].frames);
		out->shared_out += load_relaxed32(&t->chains[c].slots);
	}
	for (uint32_t s = 0; s < t->layout.nstripes; s++) {
		out->cluster_elements += load_relaxed32(&t->stripes[s].clusters);
		out->single_elements += load_relaxed32(&t->stripes[s].singles);
	}
	out->radix_pages = load_relaxed32(&t->header->pages_used);
	out->repairs = load_relaxed32(&t->header->repairs);
	out->bad = ipt_bad_frames(t);
	uint32_t in_use = out->frames[IPT_FREE] + out->frames[IPT_LIMBO] + out->frames[IPT_SHARED] +
			  out->frames[IPT_PRIVATE];
	out->retired = out->bad && in_use < t->frames ? t->frames - in_use : 0;
}
