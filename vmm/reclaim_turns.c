#include "vmm/reclaim_turns.h"
#include <errno.h>
#include <math.h>
#include <stdlib.h>

#define PRESSED     0.25 /* of its time a VM waits for pages: from there on it takes part */
#define CALM        0.05 /* and below, it has what it needs */
#define AVERAGE_S   3.0  /* over which the share is taken */
#define WORTH_S     5e-3 /* less CPU time than that says nothing */
#define SETTLE_S    5.0  /* a VM's turn, or a new set, says nothing before */
#define TURN_S      2.0 /* that a turn lasts, at least; more if there is much to be brought back: */
#define TURN_MOST_S 10.0
#define FRAME_S \
	40e-6 /* for each frame that the next one needs: three times what changing them over takes */
#define MARGIN_MOST 4.0
#define MARGIN_UP   1.25
#define MARGIN_DOWN 0.999 /* at each look */

int reclaim_turns_create(struct reclaim_turns *t, uint32_t vms)
{
	*t = (struct reclaim_turns){.vms = vms, .margin = 1};
	t->vm = calloc(vms, sizeof *t->vm);
	return t->vm ? 0 : -ENOMEM;
}

void reclaim_turns_destroy(struct reclaim_turns *t)
{
	free(t->vm);
	t->vm = NULL;
}

static double seconds(uint64_t from_ns, uint64_t to_ns)
{
	return to_ns > from_ns ? (double)(to_ns - from_ns) / 1e9 : 0;
}

static bool runs(const struct reclaim_turn_vm *v)
{
	return v->member && !v->waits;
}

static double needs(const struct reclaim_turns *t, uint32_t id, const struct reclaim_fact *f)
{
	const struct reclaim_turn_vm *v = &t->vm[id];
	return v->need ? v->need * t->margin : (double)f->frames + f->out;
}

/* ---- what each has had, and how it fares ----------------------------------------------------- */

static double least_had(const struct reclaim_turns *t)
{
	double least = INFINITY;
	for (uint32_t id = 0; id < t->vms; id++)
		if (t->vm[id].member && t->vm[id].had < least)
			least = t->vm[id].had;
	return isinf(least) ? 0 : least;
}

static void join(const struct reclaim_turns *t, struct reclaim_turn_vm *v,
		 const struct reclaim_fact *f, uint64_t now)
{
	if (f->frames <= f->min)
		return;
	v->had = least_had(t);
	v->member = true;
	v->since_ns = now;
}

/* Who uses as much as those who take part has what they wait for, though it waits for nothing itself. */
static void draw_in(struct reclaim_turns *t, const struct reclaim_fact *fact, uint64_t now)
{
	double sum = 0;
	unsigned n = 0;
	for (uint32_t id = 1; id < t->vms; id++)
		if (t->vm[id].member) {
			sum += needs(t, id, &fact[id]);
			n++;
		}
	for (uint32_t id = 1; id < t->vms && t->waiting; id++)
		if (fact[id].live && !t->vm[id].member && fact[id].used > sum / n / 2)
			join(t, &t->vm[id], &fact[id], now);
}

static void look_at_one(struct reclaim_turns *t, uint32_t id, const struct reclaim_fact *f,
			double period, uint64_t now)
{
	struct reclaim_turn_vm *v = &t->vm[id];
	if (!f->live || v->born != f->born) {
		*v = (struct reclaim_turn_vm){.born = f->born,
					      .stalled_ns = f->stalled_ns,
					      .cpu_ns = f->cpu_ns,
					      .work_ns = f->work_ns};
		return;
	}
	double stalled = seconds(v->stalled_ns, f->stalled_ns);
	double worked = seconds(v->work_ns, f->work_ns), cpu = seconds(v->cpu_ns, f->cpu_ns);
	v->stalled_ns = f->stalled_ns;
	v->cpu_ns = f->cpu_ns;
	v->work_ns = f->work_ns;
	if (period <= 0)
		return;
	if (v->waits) { /* if it waits for no page, it wants none */
		v->member = v->waits = stalled > 0 || seconds(v->since_ns, now) < AVERAGE_S;
		return;
	}
	double share = stalled < period ? stalled / period : 1;
	if (cpu > WORTH_S && worked > share * cpu)
		share = worked < cpu ? worked / cpu : 1;
	v->stall += (share - v->stall) * (1 - exp(-period / AVERAGE_S));
	if (!v->member) {
		if (v->stall >= PRESSED)
			join(t, v, f, now);
		return;
	}
	v->had += period * 1000 / f->shares;
	if (seconds(v->since_ns, now) < SETTLE_S || v->stall > CALM)
		return;
	v->need = f->used;
	v->member = t->waiting > 0; /* for as long as others want what it has */
}

/* ---- whose turn it is ------------------------------------------------------------------------- */

static void begin(struct reclaim_turns *t, uint32_t id, bool waits, uint64_t now)
{
	struct reclaim_turn_vm *v = &t->vm[id];
	v->waits = waits;
	v->since_ns = now;
	v->stall = 0;
	t->waiting += waits ? 1 : -1u;
	t->changed_ns = now;
}

/* Of those whose turn it is, or of those who wait: who had the most, or the least. 0: there is none. */
static uint32_t pick(const struct reclaim_turns *t, bool waits, bool most)
{
	uint32_t best = 0;
	for (uint32_t id = 1; id < t->vms; id++) {
		const struct reclaim_turn_vm *v = &t->vm[id], *b = &t->vm[best];
		if (v->member && v->waits == waits &&
		    (!best || (most ? v->had > b->had : v->had < b->had)))
			best = id;
	}
	return best;
}

static double needed(const struct reclaim_turns *t, const struct reclaim_fact *fact)
{
	double sum = 0;
	for (uint32_t id = 1; id < t->vms; id++)
		if (runs(&t->vm[id]))
			sum += needs(t, id, &fact[id]);
	return sum;
}

static unsigned running(const struct reclaim_turns *t)
{
	unsigned n = 0;
	for (uint32_t id = 1; id < t->vms; id++)
		n += runs(&t->vm[id]);
	return n;
}

/* Put off whoever had most until the others fit; one goes on in any case. */
static bool put_off(struct reclaim_turns *t, const struct reclaim_fact *fact, uint32_t room,
		    uint64_t now)
{
	bool any = false;
	while (running(t) > 1 && needed(t, fact) > room) {
		begin(t, pick(t, false, true), true, now);
		any = true;
	}
	return any;
}

/* Do those whose turn it is wait for pages all the same, after they had time to get what they need? */
static bool is_pressed(const struct reclaim_turns *t, uint64_t now)
{
	double sum = 0;
	unsigned n = 0;
	if (seconds(t->changed_ns, now) < SETTLE_S)
		return false;
	for (uint32_t id = 1; id < t->vms; id++)
		if (runs(&t->vm[id])) {
			sum += t->vm[id].stall;
			n++;
		}
	return n > 1 && sum / n > PRESSED;
}

/* Who waits and fits besides gets its turn. */
static bool let_in(struct reclaim_turns *t, const struct reclaim_fact *fact, uint32_t room,
		   uint64_t now)
{
	uint32_t id = pick(t, true, false);
	if (!id || (running(t) && needed(t, fact) + needs(t, id, &fact[id]) > room))
		return false;
	begin(t, id, false, now);
	return true;
}

/* Who has waited longest for its shares changes places with who had most, once that one's turn was long enough. */
static bool change_over(struct reclaim_turns *t, const struct reclaim_fact *fact, uint32_t room,
			uint64_t now)
{
	uint32_t in = pick(t, true, false), out = pick(t, false, true);
	if (!in || !out || t->vm[in].had >= t->vm[out].had)
		return false;
	double lasts = needs(t, in, &fact[in]) * FRAME_S;
	lasts = lasts < TURN_S ? TURN_S : lasts < TURN_MOST_S ? lasts : TURN_MOST_S;
	if (seconds(t->vm[out].since_ns, now) < lasts || seconds(t->changed_ns, now) < lasts)
		return false;
	begin(t, out, true, now);
	begin(t, in, false, now);
	put_off(t, fact, room, now);
	return true;
}

bool reclaim_turns_look(struct reclaim_turns *t, const struct reclaim_fact *fact, uint32_t room,
			uint64_t now)
{
	double period = t->looked_ns ? seconds(t->looked_ns, now) : 0;
	bool any = false;
	t->looked_ns = now;
	t->waiting = 0;
	for (uint32_t id = 1; id < t->vms; id++) {
		look_at_one(t, id, &fact[id], period, now);
		t->waiting += t->vm[id].waits;
	}
	draw_in(t, fact, now);
	t->margin = t->margin * MARGIN_DOWN > 1 ? t->margin * MARGIN_DOWN : 1;
	if (is_pressed(t, now)) {
		/* What was thought to be needed isn't enough; without numbers, all that a VM ever had is. */
		t->margin =
			t->waiting && t->margin < MARGIN_MOST ? t->margin * MARGIN_UP : t->margin;
		any = put_off(t, fact, room, now);
	}
	while (t->waiting && let_in(t, fact, room, now))
		any = true;
	return change_over(t, fact, room, now) || any;
}
