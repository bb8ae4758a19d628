#include "vmm/reclaim_clock.h"
#include <errno.h>
#include <math.h>
#include <stdlib.h>

int reclaim_clock_create(struct reclaim_clock *c, struct ipt *table, struct reclaim_board *b)
{
	*c = (struct reclaim_clock){.table = table, .board = b, .vms = b->desks};
	c->vm = calloc(c->vms, sizeof *c->vm);
	return c->vm ? 0 : -ENOMEM;
}

/* ---- who gives ----------------------------------------------------------------------------- */

double reclaim_price(uint32_t shares, uint32_t frames, double active)
{
	double idle_costs = 1 / (1 - RECLAIM_TAX);
	return shares / (((double)frames + 1) * (active + idle_costs * (1 - active)));
}

uint32_t reclaim_age_of(double price, double least, unsigned urgency)
{
	double times = least > 0 ? price / least : 1;
	uint32_t age = times <= 1.25 ? 1 : times <= 2 ? 2 : times <= 4 ? 4 : RECLAIM_OLDEST;
	age >>= urgency < 8 ? urgency : 8;
	return age ? age : 1;
}

void reclaim_learn(struct reclaim_vm *v, uint32_t looked, uint32_t touched)
{
	if (!looked)
		return;
	double n = v->active_n / 2; /* what was learned before counts half */
	v->active = (v->active * n + touched) / (n + looked);
	v->active_n = n + looked;
}

uint32_t reclaim_error(const struct reclaim_vm *v)
{
	/* Neighbours are touched together: as if each cluster were one sample. And never surer than one in that many. */
	double n = v->active_n / IPT_CLUSTER_FRAMES + 1;
	double p = (v->active * n + 1) / (n + 2);
	double error = 1.96 * sqrt(p * (1 - p) / n);
	return (uint32_t)(v->frames * (error < 1 ? error : 1));
}

static void survey_vm(struct reclaim_clock *c, uint32_t id)
{
	struct reclaim_vm *v = &c->vm[id];
	struct reclaim_desk *d = &c->board->desk[id];
	struct ipt_vm_info info;
	bool known = ipt_vm_info(c->table, vmid(id), &info) == 0 && !info.dying;
	bool live = known && info.kind == IPT_VM;
	v->is_file = known && info.kind == IPT_FILE;
	v->is_shared = known && (info.kind == IPT_TEMPLATE || v->is_file);
	if (live && !v->live)
		*v = (struct reclaim_vm){.active = 1};
	if (!live)
		v->runs = 0;
	v->live = live;
	if (!live)
		return;
	v->frames = info.frames[IPT_PRIVATE];
	v->out = info.frames[IPT_OUT];
	v->turn = atomic_load_explicit(&d->turn, memory_order_relaxed);
	v->price = reclaim_price(d->shares, v->frames, v->active);
	d->working_set = (uint32_t)(v->frames * v->active);
	d->working_set_error = reclaim_error(v);
}

/* May it be asked for pages? */
static bool may_give(const struct reclaim_clock *c, uint32_t id)
{
	const struct reclaim_vm *v = &c->vm[id];
	if (c->only)
		return id == c->only;
	return v->live && v->frames > c->board->desk[id].min;
}

/* How old a VM's pages must be to go, where the least that anybody who may give pays is `least`, and the most that
 * anybody pays who waits for memory is `dearest`. */
static uint32_t age_of(const struct reclaim_clock *c, uint32_t id, double least, double dearest)
{
	const struct reclaim_vm *v = &c->vm[id];
	double price = v->price;
	if (c->sampling || !may_give(c, id))
		return RECLAIM_LOOK;
	if (v->turn == RECLAIM_WAITS_FOR_TURN) /* it can't use them now */
		return 0;
	if (v->turn == RECLAIM_HAS_TURN && c->turns)
		price = INFINITY;
	if (c->force || (!c->only && dearest > price * RECLAIM_UNFAIR))
		return 0;
	return reclaim_age_of(price, least, c->urgency);
}

void reclaim_clock_survey(struct reclaim_clock *c)
{
	double least = 0, dearest = 0;
	c->turns = false;
	for (uint32_t id = 1; id < c->vms; id++) {
		const struct reclaim_vm *v = &c->vm[id];
		survey_vm(c, id);
		if (!v->live)
			continue;
		if (may_give(c, id) && (least == 0 || v->price < least))
			least = v->price;
		c->turns |= v->turn == RECLAIM_WAITS_FOR_TURN;
		if (v->turn == RECLAIM_NO_TURNS && c->board->desk[id].stall10 > RECLAIM_STALLED &&
		    v->price > dearest)
			dearest = v->price;
	}
	for (uint32_t id = 1; id < c->vms; id++)
		c->vm[id].age = age_of(c, id, least, dearest);
	for (uint32_t id = 1; id < c->vms && !c->only && !c->sampling; id++)
		atomic_store_explicit(&c->board->desk[id].gives, c->vm[id].age,
				      memory_order_relaxed);
}

/* ---- the hand ------------------------------------------------------------------------------ */

/* Frame f goes on where the VM's last run ends, or begins a new one. False: the batch is full. */
static bool add(struct reclaim_vm *v, gfn_t g)
{
	struct reclaim_run *last = v->runs ? &v->run[v->runs - 1] : NULL;
	if (last && last->gfn + last->count == g.v && last->count < RECLAIM_PAGES) {
		last->count++;
		return true;
	}
	if (v->runs == RECLAIM_RUNS)
		return false;
	v->run[v->runs++] = (struct reclaim_run){g.v, 1, v->age};
	return true;
}

static bool is_asked(const struct reclaim_clock *c, uint32_t id)
{
	return id < c->vms && c->vm[id].live && (c->sampling || c->vm[id].age != RECLAIM_LOOK);
}

/* The hand comes by n frames that several see. Was that often enough? Not if they don't pack (reclaim_shared.c). */
static bool grow_old(const struct reclaim_clock *c, frame_t f, uint32_t n, uint32_t oldest)
{
	uint8_t age = ipt_age(c->table, f);
	if (age == IPT_AGE_MOST)
		return false;
	ipt_set_age(c->table, f, n, age < IPT_AGE_MOST - 1 ? age + 1 : age);
	return age + 1u >= oldest >> (c->urgency < 3 ? c->urgency : 3);
}

/* A template's or a file's frame under the hand: with the others of its cluster if they follow it. How many the hand goes past. */
static uint32_t pass_shared(const struct reclaim_clock *c, const struct ipt_owner *o, uint32_t most)
{
	frame_t f = frame(c->hand);
	uint32_t n = 1;
	while (n < most && n < IPT_CLUSTER_FRAMES && (o->gfn.v + n) % IPT_CLUSTER_FRAMES) {
		struct ipt_owner next;
		if (ipt_owner(c->table, frame_add(f, n), &next) || next.state != IPT_PRIVATE ||
		    next.vm.v != o->vm.v || next.gfn.v != o->gfn.v + n)
			break;
		n++;
	}
	n = n < IPT_CLUSTER_FRAMES ? 1 : n;
	if (grow_old(c, f, n, c->vm[o->vm.v].is_file ? RECLAIM_OLDEST_FILE : RECLAIM_OLDEST))
		c->shared(c->ctx, o->vm, o->gfn, f, n);
	return n;
}

/* The frame under the hand. How many the hand goes past; 0: the batch of *full is full. */
static uint32_t pass(struct reclaim_clock *c, uint32_t most, uint32_t *full)
{
	bool all = !c->sampling && !c->only;
	frame_t f = frame(c->hand);
	struct ipt_owner o;
	if (ipt_owner(c->table, f, &o) || o.pins)
		return 1;
	if (o.state == IPT_SHARED && c->merged && all && grow_old(c, f, 1, RECLAIM_OLDEST))
		c->merged(c->ctx, f);
	if (o.state != IPT_PRIVATE || o.vm.v >= c->vms)
		return 1;
	if (is_asked(c, o.vm.v) && !add(&c->vm[o.vm.v], o.gfn)) {
		*full = o.vm.v;
		return 0;
	}
	return c->vm[o.vm.v].is_shared && c->shared && all ? pass_shared(c, &o, most) : 1;
}

uint32_t reclaim_clock_turn(struct reclaim_clock *c, uint32_t n, bool *around)
{
	uint32_t frames = ipt_config(c->table)->frames;
	*around = false;
	while (n) {
		uint32_t full, step = pass(c, frames - c->hand, &full);
		if (!step)
			return full;
		n -= step < n ? step : n;
		c->hand += step;
		if (c->hand >= frames) {
			c->hand = 0;
			*around = true;
			return 0;
		}
	}
	return 0;
}
