/* Turns: guests that want more than there is, in a model of memory where a page that is missing takes time. */
#include "vmm/reclaim_turns.h"
#include <criterion/criterion.h>
#include <math.h>

#define VMS    13 /* ids 1 to 12 */
#define SECOND UINT64_C(1000000000)
#define STEP   (RECLAIM_TURNS_MS * UINT64_C(1000000))

/* Frames go to those whose turn it is, as far as there are any, and from the others; who lacks some stalls in proportion. */
struct model {
	struct reclaim_turns turns;
	struct reclaim_fact fact[VMS];
	uint32_t wants[VMS]; /* frames that it uses */
	double ran[VMS];     /* seconds without a stall */
	uint32_t pool;
	uint64_t now;
};

static struct model make(uint32_t pool, uint32_t guests, uint32_t wants)
{
	struct model m = {.pool = pool, .now = SECOND};
	cr_assert_eq(reclaim_turns_create(&m.turns, VMS), 0);
	for (uint32_t id = 1; id <= guests; id++) {
		m.fact[id] = (struct reclaim_fact){.live = true, .born = 1, .shares = 1000};
		m.wants[id] = wants;
	}
	return m;
}

/* Up to `most` frames more for id in one step, from free ones and from those that wait, then from all. */
static void give(struct model *m, uint32_t id, uint32_t most)
{
	uint32_t used = 0;
	for (uint32_t i = 1; i < VMS; i++)
		used += m->fact[i].frames;
	for (int from_all = 0; from_all < 2; from_all++)
		for (uint32_t i = 1; i < VMS && used + most > m->pool; i++) {
			struct reclaim_fact *f = &m->fact[i];
			if (i == id || (!from_all && !m->turns.vm[i].waits))
				continue;
			uint32_t n = used + most - m->pool;
			n = n < f->frames / 4 ? n : f->frames / 4;
			f->frames -= n;
			f->out += n;
			used -= n;
		}
	if (used + most <= m->pool) {
		m->fact[id].frames += most;
		m->fact[id].out -= most < m->fact[id].out ? most : m->fact[id].out;
	}
}

static void step(struct model *m)
{
	for (uint32_t id = 1; id < VMS; id++) {
		struct reclaim_fact *f = &m->fact[id];
		if (!f->live)
			continue;
		double stall = 1;
		if (!m->turns.vm[id].waits) {
			uint32_t lacks = m->wants[id] > f->frames ? m->wants[id] - f->frames : 0;
			stall = lacks * 3.0 / (m->wants[id] + lacks * 3.0 + 1);
			give(m, id, lacks < 20000 ? lacks : 20000);
		}
		f->stalled_ns += (uint64_t)(stall * (double)STEP);
		m->ran[id] += (1 - stall) * (double)STEP / 1e9;
	}
	for (uint32_t id = 1; id < VMS; id++)
		m->fact[id].used =
			m->fact[id].frames < m->wants[id] ? m->fact[id].frames : m->wants[id];
	m->now += STEP;
	reclaim_turns_look(&m->turns, m->fact, m->pool, m->now);
}

static void run(struct model *m, double seconds)
{
	for (double s = 0; s < seconds; s += (double)STEP / 1e9)
		step(m);
}

static uint32_t waiting(const struct model *m)
{
	uint32_t n = 0;
	for (uint32_t id = 1; id < VMS; id++)
		n += m->turns.vm[id].waits;
	cr_assert_eq(n, m->turns.waiting);
	return n;
}

Test(reclaim_turns, nobody_waits_while_there_is_enough)
{
	struct model m = make(100000, 12, 8000);
	for (int i = 0; i < 200; i++) {
		step(&m);
		cr_assert_eq(waiting(&m), 0);
	}
	reclaim_turns_destroy(&m.turns);
}

Test(reclaim_turns, one_that_is_too_large_goes_on)
{
	struct model m = make(10000, 1, 20000);
	for (int i = 0; i < 200; i++) {
		step(&m);
		cr_assert_eq(waiting(&m), 0);
	}
	reclaim_turns_destroy(&m.turns);
}

Test(reclaim_turns, as_many_run_as_fit_and_all_get_as_much)
{
	struct model m = make(100000, 12, 16000);
	run(&m, 60);
	for (uint32_t id = 1; id < VMS; id++)
		m.ran[id] = 0;
	double most = 0, least = INFINITY, sum = 0;
	for (int i = 0; i < 1200; i++) {
		step(&m);
		cr_assert(waiting(&m) >= 3 && waiting(&m) <= 9, "%u wait", waiting(&m));
	}
	for (uint32_t id = 1; id < VMS; id++) {
		most = m.ran[id] > most ? m.ran[id] : most;
		least = m.ran[id] < least ? m.ran[id] : least;
		sum += m.ran[id];
	}
	/* 600 s in which six fit: without turns all would stall for two thirds of the time. */
	cr_expect_gt(sum, 600 * 6 * 0.6);
	cr_expect_gt(least, most * 0.7, "%f to %f", least, most);
	reclaim_turns_destroy(&m.turns);
}

Test(reclaim_turns, turns_follow_shares)
{
	struct model m = make(64000, 8, 16000);
	for (uint32_t id = 1; id <= 4; id++)
		m.fact[id].shares = 3000;
	run(&m, 1200);
	double rich = m.ran[1] + m.ran[2] + m.ran[3] + m.ran[4];
	double poor = m.ran[5] + m.ran[6] + m.ran[7] + m.ran[8];
	cr_expect(rich > 1.8 * poor && rich < 4.5 * poor, "%f and %f", rich, poor);
	reclaim_turns_destroy(&m.turns);
}

Test(reclaim_turns, who_uses_little_or_keeps_what_it_has_is_left_alone)
{
	struct model m = make(100000, 12, 16000);
	m.wants[1] = 0;
	for (int i = 0; i < 400; i++) {
		step(&m);
		cr_assert(!m.turns.vm[1].member);
	}
	cr_assert_gt(waiting(&m), 0);
	reclaim_turns_destroy(&m.turns);
	m = make(100000, 12, 16000);
	m.fact[2].min = 1000000;
	for (int i = 0; i < 400; i++) {
		step(&m);
		cr_assert(!m.turns.vm[2].waits);
	}
	reclaim_turns_destroy(&m.turns);
}

Test(reclaim_turns, an_end_lets_others_in_and_turns_end_with_the_need)
{
	struct model m = make(100000, 12, 16000);
	run(&m, 60);
	cr_assert_gt(waiting(&m), 0);
	for (uint32_t id = 1; id <= 7; id++) {
		m.fact[id] = (struct reclaim_fact){0};
		m.wants[id] = 0;
	}
	run(&m, 60);
	cr_expect_eq(waiting(&m), 0);
	for (uint32_t id = 1; id < VMS; id++)
		cr_expect(!m.turns.vm[id].member, "VM %u", id);
	/* Another VM under an id of before begins anew. */
	m.fact[3] = (struct reclaim_fact){.live = true, .born = 2, .shares = 1000, .stalled_ns = 5};
	step(&m);
	cr_expect(!m.turns.vm[3].waits && m.turns.vm[3].stall == 0);
	reclaim_turns_destroy(&m.turns);
}
