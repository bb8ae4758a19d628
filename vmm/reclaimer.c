/*
 * The reclaimer's process. It sleeps until somebody finds the pool short, a user wishes for frames, or a VM is over its
 * limit; then it turns the clock's hand and asks until that is mended, or until nothing more can be taken out.
 * Now and then it has samples looked at, as long as the pool is so full that it may have to choose.
 *
 * Killed at any moment it leaves nothing undone that matters: desks that were asked are answered all the same, and the
 * next one collects that.
 */
#include "ipt/fail.h"
#include "ipt/sealed.h"
#include "vmm/clock.h"
#include "vmm/link.h"
#include "vmm/reclaim_clock.h"
#include "vmm/reclaim_shared.h"
#include "vmm/reclaim_stall.h"
#include "vmm/reclaim_turns.h"
#include "vmm/store.h"
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define TURN_FRAMES  16384 /* that the hand goes over before answers are looked at, at most */
#define TURN_LEAST   1024
#define BATCH_FRAMES 1024 /* that a VM is to free by one batch, at most */
#define ANSWER_MS    20   /* between looks for answers that nobody rang for */
#define AGAIN_MS     100  /* after which it is rung once more: a ring may be lost on its way */
/* So long after the last sign of work from any VM those that didn't answer are left alone for now. With few CPUs for many
 * VMs all are slow. */
#define DEAF_MS   2000
#define SAMPLE_MS 2000
#define WRITES_MS \
	2000 /* that rounds which bring nothing may wait for files' pages being written back */
#define TRIM_MS 10000
#define SAMPLE_RUNS \
	16 /* of 2 MiB to a sample, at most: what is looked at costs the guest a fault a page */
#define SAMPLE_SHARE 128 /* of the pool */
#define FULL_MS      200 /* to wait, when nothing could be taken out in two rounds */
#define FUTILE_FRAMES \
	64 /* a round that frees less, and less than a part of what is missing, brings nothing */
#define FUTILE (RECLAIM_OLDEST / 2 + 2) /* rounds */
#define IDLE   8 /* rounds that free pages, and leave as many in use as before */

struct desk_note {
	uint64_t asked_ns; /* 0: nothing is asked */
	uint64_t rung_ns;
	uint64_t deaf_until_ns;
	uint32_t progress; /* the desk's, when it was looked at */
	bool sample;       /* what is asked tells of how much is used */
};

struct reclaimer {
	struct reclaimer_links links;
	struct reclaim_clock clock;
	struct reclaim_shared shared;
	struct desk_note *note; /* by id */
	uint64_t cpu_ns;
	uint64_t freed;              /* by answers, in all */
	unsigned asked;              /* desks that have something to do */
	uint64_t sign_ns;            /* when one of them was seen to do it */
	uint64_t sample_ns;          /* when the next sample is due */
	bool sample_again;           /* the sample's first look is done */
	struct reclaim_stall *stall; /* by id */
	uint64_t stalls_ns;          /* when they were looked at */
	struct reclaim_turns turns;
	struct reclaim_fact *fact; /* by id */
	uint32_t sample_at[SAMPLE_RUNS];
	unsigned short dice[3];
	uint64_t trim_ns; /* with several domains the packed memory isn't trimmed again before */
};

static void count(_Atomic uint64_t *counter, uint64_t n)
{
	atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

static void ring_host(const struct reclaimer *r, uint32_t id)
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
	return !n->asked_ns && state == RECLAIM_FREE &&
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
		if (!r->note[id].asked_ns)
			v->runs = 0; /* it doesn't hear: the hand goes on without it */
		return;
	}
	for (uint32_t i = 0; i < v->runs; i++)
		d->run[i] = v->run[i];
	d->runs = v->runs;
	d->most = most;
	count(&c->batches, 1);
	count(&c->batch_runs, v->runs);
	v->runs = 0;
	uint64_t now = clock_ns();
	r->note[id] = (struct desk_note){
		.asked_ns = now,
		.rung_ns = now,
		.progress = atomic_load_explicit(&d->progress, memory_order_relaxed),
		.sample = sample};
	r->sign_ns = now;
	r->asked++;
	atomic_store_explicit(&d->state, RECLAIM_ASKED, memory_order_release);
	ring_host(r, id);
}

static void ask_all(struct reclaimer *r, uint32_t most, bool sample)
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
	count(&c->looked, a.looked);
	count(&c->touched, a.touched);
	reclaim_count(r->links.board, &a.evicted);
	count(&c->vms_ns, a.ns);
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
		count(&r->links.board->counters.turns, 1);
		ring_host(r, id); /* its faults wait */
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
		ring_host(r, id);
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
		if (!n->asked_ns)
			continue;
		uint32_t progress = atomic_load_explicit(&d->progress, memory_order_relaxed);
		if (progress != n->progress)
			r->sign_ns = now;
		n->progress = progress;
	}
}

/* What there is of answers. VMs that say nothing are left alone for a while; those that are gone, for good. */
static void collect(struct reclaimer *r)
{
	uint64_t now = clock_ns(), before = r->freed;
	bool ask = reclaim_shared_ask(&r->shared);
	r->freed += r->shared.freed;
	r->shared.freed = 0;
	look_for_signs(r, now);
	for (uint32_t id = 1; id < r->clock.vms && r->asked; id++) {
		struct desk_note *n = &r->note[id];
		uint32_t state = RECLAIM_FREE;
		if (!n->asked_ns)
			continue;
		state = atomic_load_explicit(&r->links.board->desk[id].state, memory_order_acquire);
		bool waits = state == RECLAIM_ASKED || state == RECLAIM_TAKEN;
		if (waits && is_gone(r, id))
			waits = false;
		else if (waits && now - r->sign_ns < DEAF_MS * UINT64_C(1000000)) {
			if (state == RECLAIM_ASKED &&
			    now - n->rung_ns >= AGAIN_MS * UINT64_C(1000000)) {
				n->rung_ns = now;
				ring_host(r, id);
			}
			continue;
		}
		if (state == RECLAIM_DONE)
			take_answer(r, id);
		if (waits) {
			count(&r->links.board->counters.unheard, 1);
			n->deaf_until_ns = now + DEAF_MS * UINT64_C(1000000);
		}
		n->asked_ns = 0;
		r->asked--;
	}
	for (uint32_t id = 1; id < r->clock.vms; id++)
		if (r->note[id].deaf_until_ns && !r->note[id].asked_ns)
			hear_late(r, id, now);
	look_at_stalls(r);
	look_at_turns(r);
	if (r->freed != before || ask)
		ring_host(r, 0); /* feed the hungry */
}

/* Sleep until the bell rings, at most so long; end when the host has gone. */
static void rest(struct reclaimer *r, uint32_t bell, uint64_t ms)
{
	const struct timespec t = {(time_t)(ms / 1000), (long)(ms % 1000) * 1000000};
	struct pollfd p = {.fd = r->links.link, .events = POLLIN};
	uint64_t cpu = clock_cpu_ns();
	count(&r->links.board->counters.reclaimer_ns, cpu - r->cpu_ns);
	r->cpu_ns = cpu;
	syscall(SYS_futex, &r->links.board->bell, FUTEX_WAIT, bell, &t, NULL, 0);
	if (poll(&p, 1, 0) > 0 && domain_fds_hear(&r->shared.files, r->links.link))
		_exit(0);
}

/* Desks that another reclaimer, which died, had asked are as if they had been given up. */
static void inherit(struct reclaimer *r)
{
	for (uint32_t id = 1; id < r->clock.vms; id++)
		if (atomic_load_explicit(&r->links.board->desk[id].state, memory_order_acquire) !=
		    RECLAIM_FREE)
			r->note[id].deaf_until_ns = 1;
	ring_host(r, 0); /* it may not have heard what it was asked for */
}

static uint32_t bell_of(const struct reclaimer *r)
{
	return atomic_load_explicit(&r->links.board->bell, memory_order_acquire);
}

static void wait_for_answers(struct reclaimer *r, unsigned left)
{
	for (;;) {
		uint32_t bell = bell_of(r);
		collect(r);
		if (r->asked <= left)
			return;
		rest(r, bell, ANSWER_MS);
	}
}

/* ---- until there is enough ----------------------------------------------------------------- */

struct goal {
	uint32_t vm;    /* 0: any */
	uint64_t freed; /* r->freed is to reach that; 0: there are to be board->high free frames */
	bool force;
};

static uint32_t missing(const struct reclaimer *r, const struct goal *g)
{
	uint32_t free = ipt_free_frames(r->links.table), high = r->links.board->high;
	if (g->freed)
		return g->freed > r->freed ? (uint32_t)(g->freed - r->freed) : 0;
	return free < high ? high - free : 0;
}

/* Frames that those have from whom they are wanted. */
static uint32_t held(const struct reclaimer *r, const struct goal *g)
{
	struct ipt_vm_info info;
	if (!g->vm)
		return ipt_config(r->links.table)->frames - ipt_free_frames(r->links.table);
	return ipt_vm_info(r->links.table, vmid(g->vm), &info) ? 0 : info.frames[IPT_PRIVATE];
}

/* The round brought little. Are pages being written back that can go then? Not for ever: guests may write to them again at
 * once. */
static bool may_wait(struct reclaimer *r, uint64_t *until)
{
	uint64_t now = clock_ns();
	*until = *until ? *until : now + WRITES_MS * UINT64_C(1000000);
	return !r->clock.only && now < *until && reclaim_shared_waits(&r->shared);
}

/* 0; -ENOSPC: nothing more can be taken out. */
static int pursue(struct reclaimer *r, const struct goal *g)
{
	struct reclaim_clock *c = &r->clock;
	unsigned futile = 0, idle = 0;
	uint64_t round_freed = r->freed, waits_until = 0;
	uint32_t fewest = held(r, g);
	c->only = g->vm;
	c->urgency = 0;
	for (uint32_t want; (want = missing(r, g)) && futile < FUTILE && idle < IDLE;) {
		bool around;
		c->force = g->force && futile > 1;
		reclaim_clock_survey(c);
		uint32_t most = want < BATCH_FRAMES ? want : BATCH_FRAMES;
		/* Looking at much more than is to be freed only makes what is used look unused. */
		uint32_t turn = want < TURN_FRAMES / 4 ? want * 4 : TURN_FRAMES;
		uint32_t full =
			reclaim_clock_turn(c, turn > TURN_LEAST ? turn : TURN_LEAST, &around);
		if (full || around || turn < TURN_FRAMES)
			ask_all(r, most, false);
		uint32_t bell = bell_of(r);
		/* With a batch at each VM's there is time to think. */
		wait_for_answers(r, around ? 0 : r->asked / 2);
		if (!around)
			continue;
		count(&r->links.board->counters.rounds, 1);
		/* Pages that come back at once can be taken out for ever. Where somebody waits for frames he gets
		 * them; where a user wants VMs to have less, they must come to have less. */
		uint32_t least = want / 8 + 1 < FUTILE_FRAMES ? want / 8 + 1 : FUTILE_FRAMES;
		bool little = r->freed < round_freed + least;
		if (little && may_wait(r, &waits_until)) {
			rest(r, bell, ANSWER_MS);
			continue;
		}
		waits_until = little ? waits_until : 0;
		futile = little ? futile + 1 : 0;
		c->urgency += little;
		round_freed = r->freed;
		uint32_t now = held(r, g);
		idle = g->freed && now + least > fewest ? idle + 1 : 0;
		fewest = now < fewest ? now : fewest;
	}
	ask_all(r, 0, false); /* what is left of batches is looked at */
	wait_for_answers(r, 0);
	c->only = 0;
	c->force = false;
	return missing(r, g) ? -ENOSPC : 0;
}

static void keep_limits(struct reclaimer *r)
{
	struct reclaim_board *b = r->links.board;
	for (uint32_t id = 1; id < r->clock.vms; id++) {
		uint32_t limit = atomic_load_explicit(&b->desk[id].limit, memory_order_relaxed);
		if (!limit || !r->clock.vm[id].live || r->clock.vm[id].frames <= limit)
			continue;
		const struct goal g = {id, r->freed + r->clock.vm[id].frames - limit, true};
		pursue(r, &g);
	}
}

static void fulfil_wish(struct reclaimer *r)
{
	struct reclaim_wish *w = &r->links.board->wish;
	uint32_t state = atomic_load_explicit(&w->state, memory_order_acquire);
	if (state == RECLAIM_ASKED) {
		uint64_t before = r->freed;
		const struct goal g = {w->vm, before + w->frames, true};
		pursue(r, &g);
		atomic_store_explicit(&w->freed, (uint32_t)(r->freed - before),
				      memory_order_relaxed);
		atomic_store_explicit(&w->state, state = RECLAIM_DONE, memory_order_release);
	}
	if (state == RECLAIM_DONE)
		ring_host(r, 0); /* each time, until the host has seen it: a ring may be lost */
}

/* ---- samples ------------------------------------------------------------------------------- */

/* Have the frames of a sample looked at: a first time, so that they begin anew, and a second time to see which were
 * touched meanwhile. */
static void sample(struct reclaimer *r)
{
	struct reclaim_clock *c = &r->clock;
	uint32_t frames = ipt_config(r->links.table)->frames, hand = c->hand;
	bool around;
	if (clock_ns() < r->sample_ns)
		return;
	r->sample_ns = clock_ns() + SAMPLE_MS * UINT64_C(1000000);
	if (!r->sample_again && ipt_free_frames(r->links.table) > frames / 2)
		return; /* there won't be anything to choose for a while */
	c->sampling = true;
	reclaim_clock_survey(c);
	unsigned runs = frames / SAMPLE_SHARE / RECLAIM_PAGES + 1;
	for (unsigned i = 0; i < runs && i < SAMPLE_RUNS; i++) {
		if (!r->sample_again)
			r->sample_at[i] =
				(uint32_t)(erand48(r->dice) * frames) & ~(RECLAIM_PAGES - 1u);
		c->hand = r->sample_at[i];
		uint32_t n = frames - c->hand < RECLAIM_PAGES ? frames - c->hand : RECLAIM_PAGES;
		reclaim_clock_turn(c, n, &around);
	}
	c->hand = hand;
	c->sampling = false;
	ask_all(r, 0, r->sample_again);
	wait_for_answers(r, 0);
	r->sample_again = !r->sample_again;
}

static void trim_store(struct reclaimer *r);

_Noreturn void reclaimer_process(const struct reclaimer_links *links)
{
	static struct reclaimer r;
	prctl(PR_SET_NAME, "reclaimer");
	r = (struct reclaimer){.links = *links, .cpu_ns = clock_cpu_ns(), .dice = {1, 2, 3}};
	struct reclaim_board *b = links->board;
	if (reclaim_clock_create(&r.clock, links->table, b))
		_exit(1);
	r.shared = (struct reclaim_shared){.links = &r.links};
	r.clock.shared = reclaim_shared_out;
	r.clock.merged = reclaim_merged_out;
	r.clock.ctx = &r.shared;
	r.note = calloc(r.clock.vms, sizeof *r.note);
	r.stall = calloc(r.clock.vms, sizeof *r.stall);
	r.fact = calloc(r.clock.vms, sizeof *r.fact);
	if (!r.note || !r.stall || !r.fact || reclaim_turns_create(&r.turns, r.clock.vms))
		_exit(1);
	links->confine(links->worker);
	r.stalls_ns = clock_ns();
	inherit(&r);
	for (;;) {
		uint32_t bell = bell_of(&r);
		atomic_store_explicit(&b->rung, 0, memory_order_release);
		collect(&r);
		fulfil_wish(&r);
		bool full = false;
		if (ipt_free_frames(links->table) < b->low) {
			const struct goal enough = {0};
			full = pursue(&r, &enough) != 0;
		}
		if (atomic_exchange_explicit(&b->full, full, memory_order_relaxed) != full)
			ring_host(&r, 0); /* which tells those who wait */
		reclaim_clock_survey(&r.clock);
		keep_limits(&r);
		sample(&r);
		trim_store(&r);
		rest(&r, bell, full ? FULL_MS : r.turns.waiting ? RECLAIM_TURNS_MS : SAMPLE_MS);
	}
}

/* ---- what the store doesn't need any more -------------------------------------------------- */

/* The packed memory of one domain. */
static struct store store_of(const struct reclaimer *r, const struct domain_fd *d)
{
	struct store s = *r->links.store;
	s.mem_fd = d->packed;
	return s;
}

/* Nobody has an item in these pages, in whichever domain. */
static int trim(void *ctx, uint32_t first, uint32_t n)
{
	const struct reclaimer *r = ctx;
	int rc = 0;
	for (unsigned i = 0; i < r->shared.files.n && !rc; i++) {
		struct store s = store_of(r, &r->shared.files.of[i]);
		rc = store_mem_trim(&s, first, n);
	}
	return rc;
}

/* Give empty pages of the packed memory back. */
static void trim_store(struct reclaimer *r)
{
	const struct domain_fds *d = &r->shared.files;
	struct ipt_space_info info;
	uint64_t has = 0;
	/* With several domains a page may be there several times over, and trimming not help. */
	if (!r->links.store->mem_pages || (d->n > 1 && clock_ns() < r->trim_ns))
		return;
	ipt_space(r->links.table, &info);
	uint64_t needed = info.granules_used * IPT_GRANULE;
	for (unsigned i = 0; i < d->n; i++)
		has += sealed_populated_bytes(d->of[i].packed);
	if (has <= needed + needed / 4 + MiB)
		return;
	ipt_packed_trim(r->links.table, 0, r->links.store->mem_pages, trim, r);
	r->trim_ns = clock_ns() + TRIM_MS * UINT64_C(1000000);
}
