/*
 * The reclaimer and the VMs' desks: what is asked of whom, what is answered, who says nothing; and by what it learns there,
 * stalls and turns.
 */
#include "ipt/fail.h"
#include "vmm/clock.h"
#include "vmm/link.h"
#include "vmm/reclaimer_private.h"
#include <linux/futex.h>
#include <poll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define AGAIN_MS 100 /* after which it is rung once more: a ring may be lost on its way */
/* So long after the last sign of work from any VM those that didn't answer are left alone for now. With few CPUs for many
 * VMs all are slow. */
#define DEAF_MS 2000

void reclaimer_ring_host(const struct reclaimer *r, uint32_t id)
{
	fail_point(FAIL_WORKER_BATCH);
	link_send(r->links.link, &id, sizeof id, NULL, 0);
}

/* ---- asking and answers -------------------------------------------------------------------- */

static bool may_ask(const struct reclaimer *r, uint32_t id)
{
	const struct desk_note *n = &r->note[id];
	uint32_t state =
		atomic_load_explicit(&r->links.board->desk[id].state, memory_order_acquire);
	return !n->asked && state == RECLAIM_FREE &&
	       (!n->deaf_until_ns || clock_ns() >= n->deaf_until_ns);
}

/* Give a VM its next batch, if it has none. */
static void ask(struct reclaimer *r, uint32_t id, uint32_t most, bool sample)
{
	struct reclaim_vm *v = &r->clock.vm[id];
	struct reclaim_desk *d = &r->links.board->desk[id];
	struct reclaim_counters *c = &r->links.board->counters;
	if (!v->runs)
		return;
	if (!may_ask(r, id)) {
		if (!r->note[id].asked)
			v->runs = 0; /* it doesn't hear: the hand goes on without it */
		return;
	}
	for (uint32_t i = 0; i < v->runs; i++)
		d->run[i] = v->run[i];
	d->runs = v->runs;
	d->most = most;
	reclaimer_count(&c->batches, 1);
	reclaimer_count(&c->batch_runs, v->runs);
	v->runs = 0;
	uint64_t now = clock_ns();
	r->note[id] = (struct desk_note){
		.asked = true,
		.rung_ns = now,
		.progress = atomic_load_explicit(&d->progress, memory_order_relaxed),
		.sample = sample};
	r->sign_ns = now;
	r->asked++;
	atomic_store_explicit(&d->state, RECLAIM_ASKED, memory_order_release);
	reclaimer_ring_host(r, id);
}

void reclaimer_ask_all(struct reclaimer *r, uint32_t most, bool sample)
{
	for (uint32_t id = 1; id < r->clock.vms; id++)
		ask(r, id, most, sample);
}

static void take_answer(struct reclaimer *r, uint32_t id)
{
	struct reclaim_desk *d = &r->links.board->desk[id];
	struct reclaim_counters *c = &r->links.board->counters;
	const struct reclaim_answer a = d->answer;
	atomic_store_explicit(&d->state, RECLAIM_FREE, memory_order_release);
	reclaimer_count(&c->looked, a.looked);
	reclaimer_count(&c->touched, a.touched);
	reclaim_count(r->links.board, &a.evicted);
	reclaimer_count(&c->vms_ns, a.ns);
	r->freed += a.evicted.freed;
	if (r->note[id].sample)
		reclaim_learn(&r->clock.vm[id], a.looked, a.touched);
}

static void look_at_stalls(struct reclaimer *r)
{
	uint64_t now = clock_ns(), period = now - r->stalls_ns;
	if (period < RECLAIM_STALL_MS * UINT64_C(1000000))
		return;
	for (uint32_t id = 1; id < r->clock.vms; id++)
		if (r->clock.vm[id].live)
			reclaim_stall_look(&r->stall[id], &r->links.board->desk[id], now, period);
	r->stalls_ns = now;
}

/* ---- turns --------------------------------------------------------------------------------- */

static void collect_facts(struct reclaimer *r, uint64_t now)
{
	for (uint32_t id = 1; id < r->clock.vms; id++) {
		const struct reclaim_vm *v = &r->clock.vm[id];
		const struct reclaim_desk *d = &r->links.board->desk[id];
		uint32_t used = d->working_set + d->working_set_error;
		r->fact[id] = (struct reclaim_fact){.live = v->live,
						    .born = d->born,
						    .shares = d->shares ? d->shares : 1,
						    .min = d->min,
						    .frames = v->frames,
						    .used = used < v->frames ? used : v->frames,
						    .out = v->out,
						    .stalled_ns = reclaim_stalled_ns(d, now),
						    .cpu_ns = d->cpu_ns,
						    .work_ns = d->work_ns};
	}
}

/* Frames that those who take part may share: all that aren't others', and aren't to stay free. */
static uint32_t room_for_turns(const struct reclaimer *r)
{
	uint32_t used = ipt_config(r->links.table)->frames - ipt_free_frames(r->links.table);
	uint32_t room = ipt_config(r->links.table)->frames;
	for (uint32_t id = 1; id < r->clock.vms; id++)
		if (r->turns.vm[id].member)
			used -= r->clock.vm[id].frames < used ? r->clock.vm[id].frames : used;
	used += r->links.board->high;
	return room > used ? room - used : 0;
}

/* Tell the VMs whose turn it is. */
static void announce_turns(struct reclaimer *r)
{
	for (uint32_t id = 1; id < r->clock.vms; id++) {
		const struct reclaim_turn_vm *v = &r->turns.vm[id];
		struct reclaim_desk *d = &r->links.board->desk[id];
		uint32_t turn = !v->member ? RECLAIM_NO_TURNS
				: v->waits ? RECLAIM_WAITS_FOR_TURN
					   : RECLAIM_HAS_TURN;
		uint32_t was = atomic_exchange_explicit(&d->turn, turn, memory_order_acq_rel);
		if (was != RECLAIM_WAITS_FOR_TURN || turn == was)
			continue;
		reclaimer_count(&r->links.board->counters.turns, 1);
		reclaimer_ring_host(r, id); /* its faults wait */
	}
}

static void look_at_turns(struct reclaimer *r)
{
	uint64_t now = clock_ns();
	if (now - r->turns.looked_ns < RECLAIM_TURNS_MS * UINT64_C(1000000))
		return;
	collect_facts(r, now);
	reclaim_turns_look(&r->turns, r->fact, room_for_turns(r), now);
	announce_turns(r);
}

/* One that had been given up: its late answer; or it is rung again, since a clone that was being made wasn't. */
static void hear_late(struct reclaimer *r, uint32_t id, uint64_t now)
{
	struct desk_note *n = &r->note[id];
	uint32_t state =
		atomic_load_explicit(&r->links.board->desk[id].state, memory_order_acquire);
	if (state == RECLAIM_DONE) {
		n->deaf_until_ns = 0;
		take_answer(r, id);
	} else if (state == RECLAIM_ASKED && now >= n->deaf_until_ns) {
		n->deaf_until_ns = now + DEAF_MS * UINT64_C(1000000);
		reclaimer_ring_host(r, id);
	}
}

/* Its process is gone, or goes on under another id: it won't answer. Nobody clears its desk before somebody gets it. */
static bool is_gone(const struct reclaimer *r, uint32_t id)
{
	struct ipt_vm_info info;
	return ipt_vm_info(r->links.table, vmid(id), &info) || info.dying || info.kind != IPT_VM;
}

/* Is somebody at work on what was asked? */
static void look_for_signs(struct reclaimer *r, uint64_t now)
{
	for (uint32_t id = 1; id < r->clock.vms; id++) {
		struct desk_note *n = &r->note[id];
		struct reclaim_desk *d = &r->links.board->desk[id];
		if (!n->asked)
			continue;
		uint32_t progress = atomic_load_explicit(&d->progress, memory_order_relaxed);
		if (progress != n->progress)
			r->sign_ns = now;
		n->progress = progress;
	}
}

/* VMs that say nothing are left alone for a while; those that are gone, for good. */
void reclaimer_collect(struct reclaimer *r)
{
	uint64_t now = clock_ns(), before = r->freed;
	bool ask = reclaim_shared_ask(&r->shared);
	r->freed += r->shared.freed;
	r->shared.freed = 0;
	look_for_signs(r, now);
	for (uint32_t id = 1; id < r->clock.vms && r->asked; id++) {
		struct desk_note *n = &r->note[id];
		uint32_t state = RECLAIM_FREE;
		if (!n->asked)
			continue;
		state = atomic_load_explicit(&r->links.board->desk[id].state, memory_order_acquire);
		bool waits = state == RECLAIM_ASKED || state == RECLAIM_TAKEN;
		if (waits && is_gone(r, id))
			waits = false;
		else if (waits && now - r->sign_ns < DEAF_MS * UINT64_C(1000000)) {
			if (state == RECLAIM_ASKED &&
			    now - n->rung_ns >= AGAIN_MS * UINT64_C(1000000)) {
				n->rung_ns = now;
				reclaimer_ring_host(r, id);
			}
			continue;
		}
		if (state == RECLAIM_DONE)
			take_answer(r, id);
		if (waits) {
			reclaimer_count(&r->links.board->counters.unheard, 1);
			n->deaf_until_ns = now + DEAF_MS * UINT64_C(1000000);
		}
		n->asked = false;
		r->asked--;
	}
	for (uint32_t id = 1; id < r->clock.vms; id++)
		if (r->note[id].deaf_until_ns && !r->note[id].asked)
			hear_late(r, id, now);
	look_at_stalls(r);
	look_at_turns(r);
	if (r->freed != before || ask)
		reclaimer_ring_host(r, 0); /* feed the hungry */
}

void reclaimer_rest(struct reclaimer *r, uint32_t bell, uint64_t ms)
{
	const struct timespec t = {(time_t)(ms / 1000), (long)(ms % 1000) * 1000000};
	struct pollfd p = {.fd = r->links.link, .events = POLLIN};
	uint64_t cpu = clock_cpu_ns();
	reclaimer_count(&r->links.board->counters.reclaimer_ns, cpu - r->cpu_ns);
	r->cpu_ns = cpu;
	syscall(SYS_futex, &r->links.board->bell, FUTEX_WAIT, bell, &t, NULL, 0);
	if (poll(&p, 1, 0) > 0 && domain_fds_hear(&r->shared.files, r->links.link))
		_exit(0);
}

void reclaimer_inherit(struct reclaimer *r)
{
	for (uint32_t id = 1; id < r->clock.vms; id++)
		if (atomic_load_explicit(&r->links.board->desk[id].state, memory_order_acquire) !=
		    RECLAIM_FREE)
			r->note[id].deaf_until_ns = 1;
	reclaimer_ring_host(r, 0); /* it may not have heard what it was asked for */
}

uint32_t reclaimer_bell(const struct reclaimer *r)
{
	return atomic_load_explicit(&r->links.board->bell, memory_order_acquire);
}

void reclaimer_wait_for_answers(struct reclaimer *r, unsigned left)
{
	for (;;) {
		uint32_t bell = reclaimer_bell(r);
		reclaimer_collect(r);
		if (r->asked <= left)
			return;
		reclaimer_rest(r, bell, ANSWER_MS);
	}
}
