/* A run of frames that is being reported as it grows. */
#ifndef IPT_RUN_H
#define IPT_RUN_H

#include "ipt/ipt.h"

struct run {
	ipt_run_fn *gone; /* may be NULL */
	void *ctx;
	uint64_t g;
	uint32_t f, n;
};

static inline void run_flush(struct run *r)
{
	if (r->n && r->gone)
		r->gone(r->ctx, gfn(r->g), frame(r->f), r->n);
	r->n = 0;
}

/* Frame f was at g; UINT32_MAX for none. */
static inline void run_add(struct run *r, uint64_t g, uint32_t f)
{
	if (r->n && (f == UINT32_MAX || f != r->f + r->n || g != r->g + r->n))
		run_flush(r);
	if (f == UINT32_MAX)
		return;
	if (!r->n) {
		r->g = g;
		r->f = f;
	}
	r->n++;
}

#endif
