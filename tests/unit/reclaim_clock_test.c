/* The reclaimer's choice (vmm/reclaim_clock.c): who gives, at what age, and the hand's batches over a real table. */
#include "tests/unit/ipt_help.h"
#include "vmm/reclaim_clock.h"
#include <criterion/criterion.h>
#include <stdlib.h>

#define FRAMES 4096

static struct ipt *table;
static struct reclaim_board *board;
static struct reclaim_clock hand;

static void make(void)
{
	table = help_table(IPT_INDEX, FRAMES);
	board = reclaim_board_create(ipt_config(table)->max_vms, FRAMES, &(int){-1});
	cr_assert_not_null(board);
	cr_assert_eq(reclaim_clock_create(&hand, table, board), 0);
}

/* A VM with 2^order frames `times`, each block `apart` gfns from the one before. */
static uint32_t add_vm(const char *name, unsigned order, unsigned times, uint64_t apart)
{
	vmid_t id;
	cr_assert_eq(ipt_vm_add(table, name, INVALID_VMID, &id), 0);
	reclaim_desk_clear(board, id, RECLAIM_SHARES, 0, 0);
	for (unsigned i = 0; i < times; i++) {
		const struct ipt_hint any = {.goal = INVALID_FRAME};
		frame_t f;
		cr_assert_eq(ipt_alloc(table, id, order, &any, &f), 0);
		cr_assert_eq(ipt_map(table, id, gfn(i * apart), f, 1u << order), 0);
	}
	return id.v;
}

static uint32_t pages(uint32_t id)
{
	uint32_t n = 0;
	for (uint32_t i = 0; i < hand.vm[id].runs; i++)
		n += hand.vm[id].run[i].count;
	return n;
}

Test(reclaim_clock, idle_pages_and_few_shares_make_cheap)
{
	cr_expect_gt(reclaim_price(1000, 100, 1), reclaim_price(1000, 100, 0.5));
	cr_expect_gt(reclaim_price(1000, 100, 1), reclaim_price(1000, 200, 1));
	cr_expect_gt(reclaim_price(2000, 100, 1), reclaim_price(1000, 100, 1));
	/* An idle page counts as four. */
	cr_expect_float_eq(reclaim_price(1000, 99, 1) / reclaim_price(1000, 99, 0), 4, 1e-9);
	cr_expect_gt(reclaim_price(1000, 0, 1), 0);
}

Test(reclaim_clock, ages_grow_with_the_price_and_fall_with_urgency)
{
	cr_expect_eq(reclaim_age_of(1, 1, 0), 1);
	cr_expect_eq(reclaim_age_of(1.9, 1, 0), 2);
	cr_expect_eq(reclaim_age_of(3, 1, 0), 4);
	cr_expect_eq(reclaim_age_of(100, 1, 0), RECLAIM_OLDEST);
	cr_expect_eq(reclaim_age_of(100, 1, 1), RECLAIM_OLDEST / 2);
	cr_expect_eq(reclaim_age_of(100, 1, 1000), 1);
	cr_expect_eq(reclaim_age_of(100, 0, 0), 1);
}

Test(reclaim_clock, samples_teach)
{
	struct reclaim_vm v = {.active = 1, .frames = 10000};
	uint32_t before = reclaim_error(&v);
	reclaim_learn(&v, 0, 0);
	cr_expect_eq(v.active, 1);
	for (int i = 0; i < 10; i++)
		reclaim_learn(&v, 4096, 1024);
	cr_expect_float_eq(v.active, 0.25, 0.001);
	cr_expect_lt(reclaim_error(&v), before);
	cr_expect_gt(reclaim_error(&v), 0);
	reclaim_learn(&v, 4096, 4096); /* the newest counts most */
	cr_expect_gt(v.active, 0.5);
}

Test(reclaim_clock, the_hand_makes_runs_of_what_follows_each_other)
{
	bool around = false;
	make();
	uint32_t a = add_vm("a", 9, 2, 512), b = add_vm("b", 4, 10, 64);
	reclaim_clock_survey(&hand);
	cr_expect_eq(reclaim_clock_turn(&hand, FRAMES * 2, &around), 0);
	cr_expect(around);
	cr_expect_eq(hand.hand, 0);
	cr_expect_eq(pages(a), 1024);
	cr_expect_eq(pages(b), 160);
	cr_expect_leq(hand.vm[a].runs, 3);
	cr_expect_eq(hand.vm[b].runs, 10);
	for (uint32_t i = 0; i < hand.vm[a].runs; i++)
		cr_expect_leq(hand.vm[a].run[i].count, RECLAIM_PAGES);
}

Test(reclaim_clock, a_full_batch_stops_the_hand_where_it_is)
{
	bool around = false;
	make();
	uint32_t a = add_vm("a", 0, RECLAIM_RUNS + 10, 2);
	reclaim_clock_survey(&hand);
	cr_expect_eq(reclaim_clock_turn(&hand, FRAMES, &around), a);
	cr_expect_not(around);
	cr_expect_eq(pages(a), RECLAIM_RUNS);
	hand.vm[a].runs = 0; /* it was asked */
	cr_expect_eq(reclaim_clock_turn(&hand, FRAMES, &around), 0);
	cr_expect_eq(pages(a), 10);
}

Test(reclaim_clock, who_may_give)
{
	bool around;
	make();
	uint32_t a = add_vm("a", 9, 1, 512), b = add_vm("b", 9, 1, 512);
	board->desk[b].min = 512;
	reclaim_clock_survey(&hand);
	reclaim_clock_turn(&hand, FRAMES, &around);
	cr_expect_eq(pages(a), 512);
	cr_expect_eq(pages(b), 0, "it has no more than it keeps");
	cr_expect_eq(board->desk[b].gives, RECLAIM_LOOK);
	hand.vm[a].runs = 0;
	hand.only = b; /* whatever it keeps */
	hand.force = true;
	reclaim_clock_survey(&hand);
	reclaim_clock_turn(&hand, FRAMES, &around);
	cr_expect_eq(pages(a), 0);
	cr_expect_eq(pages(b), 512);
	cr_expect_eq(hand.vm[b].run[0].age, 0);
	hand.vm[b].runs = 0;
	hand.only = 0;
	hand.force = false;
	hand.sampling = true;
	reclaim_clock_survey(&hand);
	reclaim_clock_turn(&hand, FRAMES, &around);
	cr_expect_eq(pages(a) + pages(b), 1024, "all are looked at");
	cr_expect_eq(hand.vm[a].run[0].age, RECLAIM_LOOK);
	cr_expect_eq(hand.vm[b].run[0].age, RECLAIM_LOOK);
}

Test(reclaim_clock, who_pays_least_gives_first)
{
	make();
	uint32_t a = add_vm("a", 9, 1, 512), b = add_vm("b", 9, 1, 512);
	board->desk[a].shares = 10 * RECLAIM_SHARES;
	reclaim_clock_survey(&hand);
	cr_expect_eq(hand.vm[b].age, 1);
	cr_expect_eq(hand.vm[a].age, RECLAIM_OLDEST);
	hand.urgency = 3;
	reclaim_clock_survey(&hand);
	cr_expect_eq(hand.vm[a].age, 1);
	hand.urgency = 0;
	hand.vm[a].active = 0; /* not used at all, against all used: 10 shares become 2.5 */
	reclaim_clock_survey(&hand);
	cr_expect_eq(hand.vm[a].age, 4);
}

Test(reclaim_clock, who_has_much_more_than_one_who_waits_gives_what_it_uses)
{
	make();
	uint32_t rich = add_vm("rich", 9, 4, 512), poor = add_vm("poor", 4, 4, 16);
	reclaim_clock_survey(&hand);
	cr_expect_eq(hand.vm[rich].age, 1);
	cr_expect_eq(hand.vm[poor].age, RECLAIM_OLDEST);
	/* The poor one needs no more, as far as is known; then it does. */
	board->desk[poor].stall10 = RECLAIM_STALLED + 1;
	reclaim_clock_survey(&hand);
	cr_expect_eq(hand.vm[rich].age, 0);
	cr_expect_eq(hand.vm[poor].age, RECLAIM_OLDEST);
	/* Waiting makes nobody give to himself, nor to one who has as much. */
	board->desk[poor].stall10 = 0;
	board->desk[rich].stall10 = RECLAIM_STALLED + 1;
	reclaim_clock_survey(&hand);
	cr_expect_eq(hand.vm[rich].age, 1);
	board->desk[rich].min = 4 * 512;
	board->desk[poor].stall10 = RECLAIM_STALLED + 1;
	reclaim_clock_survey(&hand);
	cr_expect_eq(hand.vm[rich].age, RECLAIM_LOOK);
}
