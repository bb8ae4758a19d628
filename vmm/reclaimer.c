/*
 * The reclaimer's process. It sleeps until somebody finds the pool short, a user wishes for frames, or a VM is over its
 * limit; then it turns the clock's hand and asks until that is mended, or until nothing more can be taken out.
 * Now and then it has samples looked at, as long as the pool is so full that it may have to choose.
 *
 * Killed at any moment it leaves nothing undone that matters: desks that were asked are answered all the same, and the
 * next one collects that.
 */
#include "ipt/sealed.h"
#include "vmm/clock.h"
#include "vmm/reclaimer_private.h"
#include "vmm/store.h"
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#define TURN_FRAMES  16384 /* that the hand goes over before answers are looked at, at most */
#define TURN_LEAST   1024
#define BATCH_FRAMES 1024 /* that a VM is to free by one batch, at most */
#define SAMPLE_MS    2000
#define WRITES_MS \
	2000 /* that rounds which bring nothing may wait for files' pages being written back */
#define TRIM_MS      10000
#define SAMPLE_SHARE 128 /* of the pool */
#define FULL_MS      200 /* to wait, when nothing could be taken out in two rounds */
#define FUTILE_FRAMES \
	64 /* a round that frees less, and less than a part of what is missing, brings nothing */
#define FUTILE (RECLAIM_OLDEST / 2 + 2) /* rounds */
#define IDLE   8 /* rounds that free pages, and leave as many in use as before */

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
			reclaimer_ask_all(r, most, false);
		uint32_t bell = reclaimer_bell(r);
		/* With a batch at each VM's there is time to think. */
		reclaimer_wait_for_answers(r, around ? 0 : r->asked / 2);
		if (!around)
			continue;
		reclaimer_count(&r->links.board->counters.rounds, 1);
		/* Pages that come back at once can be taken out for ever. Where somebody waits for frames he gets
		 * them; where a user wants VMs to have less, they must come to have less. */
		uint32_t least = want / 8 + 1 < FUTILE_FRAMES ? want / 8 + 1 : FUTILE_FRAMES;
		bool little = r->freed < round_freed + least;
		if (little && may_wait(r, &waits_until)) {
			reclaimer_rest(r, bell, ANSWER_MS);
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
	reclaimer_ask_all(r, 0, false); /* what is left of batches is looked at */
	reclaimer_wait_for_answers(r, 0);
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
		reclaimer_ring_host(
			r, 0); /* each time, until the host has seen it: a ring may be lost */
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
	reclaimer_ask_all(r, 0, r->sample_again);
	reclaimer_wait_for_answers(r, 0);
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
	reclaimer_inherit(&r);
	for (;;) {
		uint32_t bell = reclaimer_bell(&r);
		atomic_store_explicit(&b->rung, 0, memory_order_release);
		reclaimer_collect(&r);
		fulfil_wish(&r);
		bool full = false;
		if (ipt_free_frames(links->table) < b->low) {
			const struct goal enough = {0};
			full = pursue(&r, &enough) != 0;
		}
		if (atomic_exchange_explicit(&b->full, full, memory_order_relaxed) != full)
			reclaimer_ring_host(&r, 0); /* which tells those who wait */
		reclaim_clock_survey(&r.clock);
		keep_limits(&r);
		sample(&r);
		trim_store(&r);
		reclaimer_rest(&r, bell,
			       full              ? FULL_MS
			       : r.turns.waiting ? RECLAIM_TURNS_MS
						 : SAMPLE_MS);
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
