/* Bad frames. See bad.h. */
#include "ipt/bad.h"
#include "ipt/debug.h"
#include "ipt/zone.h"
#include <errno.h>
#include <sched.h>

#define PIN_TRIES 1000 /* who pins a frame for a moment only to look lets it go again */

void bad_mark(struct ipt *t, uint32_t f, enum ipt_health h)
{
	unsigned shift = f % BAD_PER_WORD * BAD_BITS;
	_Atomic uint64_t *at = &t->bad[f / BAD_PER_WORD];
	uint64_t old = atomic_load(at);

	/* Counted first: who sees that none is bad need not look. */
	if ((old >> shift & BAD_MASK) == IPT_GOOD && h != IPT_GOOD)
		atomic_fetch_add(&t->header->bad, 1);
	ipt_step();
	while (!atomic_compare_exchange_weak(at, &old,
					     (old & ~(BAD_MASK << shift)) | (uint64_t)h << shift))
		;
	ipt_step();
	if ((old >> shift & BAD_MASK) != IPT_GOOD && h == IPT_GOOD)
		atomic_fetch_sub(&t->header->bad, 1);
}

enum ipt_health ipt_health(struct ipt *t, frame_t f)
{
	return f.v < t->frames && bad_any(t) ? bad_read(t, f.v) : IPT_GOOD;
}

uint32_t ipt_bad_frames(struct ipt *t)
{
	return atomic_load(&t->header->bad);
}

/* Count the pin that a bad frame keeps, if it has none. */
static bool take_pin(struct ipt *t, uint32_t f)
{
	uint32_t side = load_relaxed32(&t->side[f]);

	for (int tries = 0; tries < PIN_TRIES; tries++) {
		if (side & SIDE_PINS) {
			sched_yield();
			side = load_relaxed32(&t->side[f]);
		} else if (atomic_compare_exchange_weak(&t->side[f], &side, side + 1)) {
			return true;
		}
	}
	return false;
}

int ipt_spoil(struct ipt *t, frame_t fr, enum ipt_health h)
{
	uint32_t f = fr.v;

	if (f >= t->frames || (h != IPT_RETIRING && h != IPT_LOST))
		return -EINVAL;
	if (f >= zone_mark(t, zone_of(t, f)) ||
	    word_state(load_acquire64(&t->words[f])) == IPT_FREE)
		return -ESTALE;
	enum ipt_health was = bad_read(t, f);
	if (was >= h)
		return -EALREADY;
	if (was == IPT_GOOD) {
		bad_mark(t, f, IPT_RETIRING);
		if (!take_pin(t, f)) {
			bad_mark(t, f, IPT_GOOD);
			return -EBUSY;
		}
		/* Freed before it had the pin: then it is on a list. */
		if (word_state(load_acquire64(&t->words[f])) == IPT_FREE) {
			bad_mark(t, f, IPT_GOOD);
			ipt_unpin(t, fr);
			return -ESTALE;
		}
	}
	if (h == IPT_LOST)
		bad_mark(t, f, IPT_LOST);
	return 0;
}
