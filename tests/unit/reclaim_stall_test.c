/* The averages of how much VMs stall for memory (vmm/reclaim_stall.c). */
#include "vmm/reclaim_stall.h"
#include <criterion/criterion.h>
#include <math.h>

#define S UINT64_C(1000000000)

static void near(double is, double should, double by)
{
	cr_expect(fabs(is - should) <= by, "%f, not %f", is, should);
}

Test(reclaim_stall, a_share_that_stays_becomes_the_average)
{
	struct reclaim_stall s = {.born = 0};
	for (int i = 0; i < 300; i++)
		reclaim_stall_add(&s, S / 2, 2 * S);
	near(s.avg10, 0.25, 1e-6);
	near(s.avg60, 0.25, 1e-3);
}

Test(reclaim_stall, averages_rise_and_fall_by_their_window)
{
	struct reclaim_stall s = {.born = 0};
	for (int i = 0; i < 5; i++)
		reclaim_stall_add(&s, 2 * S, 2 * S);
	near(s.avg10, 1 - exp(-1), 1e-9); /* a window's time takes it to 63 % */
	near(s.avg60, 1 - exp(-10 / 60.0), 1e-9);
	double avg10 = s.avg10, avg60 = s.avg60;
	reclaim_stall_add(&s, 0, 10 * S); /* one long period is as good as five short ones */
	near(s.avg10, avg10 * exp(-1), 1e-9);
	near(s.avg60, avg60 * exp(-10 / 60.0), 1e-9);
}

Test(reclaim_stall, nonsense_stays_a_share)
{
	struct reclaim_stall s = {.born = 0};
	reclaim_stall_add(&s, 5 * S, 0);
	cr_expect(s.avg10 == 0 && s.avg60 == 0);
	reclaim_stall_add(&s, 500 * S, 2 * S); /* more than there was time */
	near(s.avg10, 1 - exp(-0.2), 1e-9);
}

Test(reclaim_stall, a_desk_is_looked_at)
{
	static struct reclaim_desk d;
	struct reclaim_stall s = {.born = 0}, other = {.born = 0};
	d.born = 1;
	d.stall_ns = 7 * S; /* before anybody looked */
	reclaim_stall_look(&s, &d, 10 * S, 2 * S);
	cr_expect_eq(d.stall10, 0);
	d.stall_ns = 8 * S;
	reclaim_stall_look(&s, &d, 12 * S, 2 * S);
	near(d.stall10 / 1e6, 0.5 * (1 - exp(-0.2)), 1e-6);
	near(d.stall60 / 1e6, 0.5 * (1 - exp(-2 / 60.0)), 1e-6);
	/* One that goes on counts as it goes. */
	d.stalled_since_ns = 13 * S;
	reclaim_stall_look(&s, &d, 14 * S, 2 * S);
	cr_expect_eq(s.seen_ns, 9 * S);
	reclaim_stall_look(&s, &d, 16 * S, 2 * S);
	cr_expect_eq(s.seen_ns, 11 * S);
	/* It ends, and for a moment isn't in the sum: nothing is counted twice. */
	d.stalled_since_ns = 0;
	reclaim_stall_look(&s, &d, 16 * S, 0);
	d.stall_ns = 8 * S + 3 * S;
	reclaim_stall_look(&s, &d, 18 * S, 2 * S);
	cr_expect_eq(s.seen_ns, 11 * S);
	/* Another reclaimer goes on from what the desk says. */
	uint32_t avg10 = d.stall10;
	reclaim_stall_look(&other, &d, 20 * S, 2 * S);
	cr_expect_eq(d.stall10, avg10);
	near(other.avg10, avg10 / 1e6, 1e-9);
	/* Another VM gets the desk. */
	d.born = 2;
	d.stall_ns = 1 * S;
	d.stall10 = d.stall60 = 0;
	reclaim_stall_look(&s, &d, 22 * S, 2 * S);
	cr_expect(s.avg10 == 0 && s.seen_ns == S);
}
