/*
 * Marks of bad frames: 2 bits each, 0 as long as the frame is good (enum ipt_health). While no frame of the table is
 * bad nobody looks at them, and they have no memory.
 *
 * A bad frame in use has one pin, which nobody takes off: so it is left alone by all that leave pinned frames alone
 * (merging, reclaim, giving back, moving). Freeing it takes the pin off, and retires it. Marks stay for ever.
 */
#ifndef IPT_BAD_H
#define IPT_BAD_H

#include "ipt/table.h"

#define BAD_BITS     2u
#define BAD_PER_WORD (64u / BAD_BITS)
#define BAD_MASK     UINT64_C(3)

static inline bool bad_any(const struct ipt *t)
{
	return atomic_load_explicit(&t->header->bad, memory_order_seq_cst) != 0;
}

static inline enum ipt_health bad_read(const struct ipt *t, uint32_t f)
{
	uint64_t w = atomic_load_explicit(&t->bad[f / BAD_PER_WORD], memory_order_seq_cst);

	return (enum ipt_health)(w >> f % BAD_PER_WORD * BAD_BITS & BAD_MASK);
}

/* With that side entry: is the only pin that of a bad frame? */
static inline bool bad_holds(const struct ipt *t, uint32_t f, uint32_t side)
{
	return (side & SIDE_PINS) == 1 && bad_any(t) && bad_read(t, f) != IPT_GOOD;
}

/* Mark a frame, which has no mark or a lesser one; GOOD takes a mark back that ipt_spoil made. */
void bad_mark(struct ipt *t, uint32_t f, enum ipt_health h);

#endif
