/*
 * Memory figures: populated bytes of the table's memfd, by ipt_bytes. At full occupancy everything is
 * counted, the side array too (it is touched here where the run didn't).
 */
#include "tests/bench/ipt_bench.h"
#include <stdio.h>
#include <string.h>

#define STEPS 64

static uint64_t total(const struct ipt_bytes *b)
{
	return b->array + b->side + b->forward + b->other;
}

/* Pin a gfn of every page of side entries, so that all of them are populated. */
static void touch_side(struct ipt *t)
{
	struct ipt_owner o;

	for (uint32_t f = 0; f < BENCH_FRAMES; f++) {
		frame_t pinned;

		ipt_owner(t, frame(f), &o);
		if (o.state == IPT_PRIVATE && !ipt_pin(t, o.vm, o.gfn, &pinned))
			ipt_unpin(t, pinned);
	}
}

static void per_frame(const char *id, enum bench_shape shape, double bound)
{
	struct ipt_bytes b;

	if (!bench_wanted(id))
		return;
	struct ipt *t = bench_world(IPT_INDEX, shape);
	touch_side(t);
	ipt_bytes(t, &b);
	fprintf(stderr, "  %-32s array %.3f, side %.3f, forward %.3f, other %.3f\n", id,
		(double)b.array / BENCH_FRAMES, (double)b.side / BENCH_FRAMES,
		(double)b.forward / BENCH_FRAMES, (double)b.other / BENCH_FRAMES);
	bench_tell_value(id, (double)total(&b) / BENCH_FRAMES, "bytes", bound);
	ipt_detach(t);
}

/* The share of the pool from which `ipt` stays below `radix`; -1 if it isn't at the end either. */
static double crossing(const uint64_t *ipt, const uint64_t *radix)
{
	int i = STEPS;

	while (i > 0 && ipt[i - 1] < radix[i - 1])
		i--;
	return i == STEPS ? -1 : (double)(i + 1) / STEPS;
}

static void break_even(void)
{
	uint64_t ipt[STEPS], both[STEPS], forward[STEPS];

	if (!bench_wanted("break-even") && !bench_wanted("break-even-forward-only") &&
	    !bench_wanted("break-even-full-ratio"))
		return;
	struct ipt *a = bench_table(IPT_INDEX), *b = bench_table(IPT_RADIX);
	for (unsigned i = 0; i < STEPS; i++) {
		struct ipt_bytes x, y;

		bench_fill(a, BENCH_GUESTS, i, STEPS);
		bench_fill(b, BENCH_GUESTS, i, STEPS);
		ipt_bytes(a, &x);
		ipt_bytes(b, &y);
		ipt[i] = total(&x);
		both[i] = total(&y);
		forward[i] = y.forward;
		if (!(i & (i + 1)))
			fprintf(stderr,
				"  %5.1f%% of the pool mapped: ipt %6.2f MiB, radix and reverse "
				"map "
				"%6.2f MiB, radix alone %6.2f MiB\n",
				100.0 * (i + 1) / STEPS, (double)ipt[i] / MiB,
				(double)both[i] / MiB, (double)forward[i] / MiB);
	}
	bench_tell_value("break-even", crossing(ipt, both), "share of the pool", 0.75);
	bench_tell_value("break-even-full-ratio", (double)ipt[STEPS - 1] / (double)both[STEPS - 1],
			 "ratio", -1);
	bench_tell_value("break-even-forward-only", crossing(ipt, forward),
			 "share of the pool, -1 for never", -1);
	ipt_detach(a);
	ipt_detach(b);
}

void bench_bytes(void)
{
	per_frame("table-bytes-per-frame-clustered", BENCH_GUESTS, 14);
	per_frame("table-bytes-per-frame-single", BENCH_SPARSE, 20);
	break_even();
}
