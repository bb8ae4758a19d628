/*
 * The merger's process: passes over the pool, at the speed that its share of a CPU allows. What VMs spend on what they
 * are asked for counts as its own.
 *
 * It has the table, the pool's files in which frames are merged (for reading only), the board, and a link to the host,
 * which rings VMs for it and sends it those files.
 * Killed at any moment it leaves nothing undone that matters: what it knows can be found out again.
 */
#include "vmm/clock.h"
#include "vmm/merge_scan.h"
#include <errno.h>
#include <poll.h>
#include <sys/prctl.h>
#include <unistd.h>

#define PASS_MS      1000  /* from a pass's begin to the next one's, at least */
#define PASS_MOST_MS 16000 /* the same, when there is nothing to do for long */
#define CREDIT_MS    50    /* of a CPU that wasn't used and may be, later */

struct merger {
	struct merge_scan scan;
	int link;
	unsigned percent;
	uint64_t since_ns, spent_ns; /* the share is to be kept from then on; spent since */
	uint64_t cpu_ns;             /* of this thread, when it was last looked at */
};

static void count(_Atomic uint64_t *counter, uint64_t n)
{
	atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

/* Hear what the host says; end when it has gone. */
static void hear(struct merger *m)
{
	if (domain_fds_hear(&m->scan.files, m->link))
		_exit(0);
}

/* Sleep, or hear of domains. */
static void rest(struct merger *m, uint64_t ns)
{
	struct pollfd p = {.fd = m->link, .events = POLLIN};
	const uint64_t until = clock_ns() + ns;
	for (uint64_t now; (now = clock_ns()) < until;) {
		const struct timespec t = {(time_t)((until - now) / 1000000000u),
					   (long)((until - now) % 1000000000u)};
		if (ppoll(&p, 1, &t, NULL) > 0)
			hear(m);
	}
}

/* Note what was spent, and rest until that is within our share. */
static void pace(struct merger *m)
{
	struct merge_counters *c = &m->scan.board->counters;
	uint64_t cpu = clock_cpu_ns(), now = clock_ns(), mine = cpu - m->cpu_ns;
	m->cpu_ns = cpu;
	m->spent_ns += mine;
	count(&c->merger_ns, mine);
	count(&c->scanned_bytes, m->scan.scanned_bytes);
	m->scan.scanned_bytes = 0;
	uint64_t due = m->since_ns + m->spent_ns * 100 / m->percent;
	if (due > now + 1000000)
		rest(m, due - now);
	else if (now > due + CREDIT_MS * UINT64_C(1000000)) {
		m->since_ns = now;
		m->spent_ns = 0;
	}
}

static uint64_t ask(void *ctx, const struct merge_request *r)
{
	struct merger *m = ctx;
	struct merge_counters *c = &m->scan.board->counters;
	struct merge_answer a = {.status = 0};
	int rc = merge_ask(m->scan.board, m->scan.table, m->link, r, &a);
	count(&c->requests, 1);
	count(&c->unheard, rc != 0);
	count(&c->still, a.still);
	count(&c->refused, a.status == -ENOSPC);
	bool refuses = rc;
	uint64_t left = a.done;
	for (uint32_t i = 0; !rc && i < r->pieces; i++) {
		const struct merge_piece *p = &r->piece[i];
		uint64_t these = p->count < 64 ? left & ((UINT64_C(1) << p->count) - 1) : left;
		unsigned done = (unsigned)__builtin_popcountll(these);
		left = p->count < 64 ? left >> p->count : 0;
		count(&c->pages_done[p->op], done);
		count(&c->pages_refused, p->count - done);
		refuses |= a.status == -ENOSPC && !done && p->count >= MERGE_RUN / 4;
	}
	if (refuses)
		merge_scan_leave(&m->scan, r->vm);
	count(&c->vms_ns, a.ns);
	m->spent_ns += a.ns;
	pace(m);
	return a.done;
}

static _Noreturn void run(struct merger *m)
{
	uint64_t period = PASS_MS;
	for (;;) {
		uint64_t began = clock_ns(), done = m->scan.pages_done;
		hear(m);
		m->scan.now_ns = began;
		merge_scan_begin(&m->scan);
		for (uint32_t f = 0; f != UINT32_MAX;) {
			f = merge_scan_step(&m->scan, f);
			pace(m);
		}
		count(&m->scan.board->counters.passes, 1);
		period = m->scan.pages_done != done   ? PASS_MS
			 : period * 2 <= PASS_MOST_MS ? period * 2
						      : PASS_MOST_MS;
		uint64_t next = began + period * 1000000, now = clock_ns();
		if (next > now)
			rest(m, next - now);
	}
}

_Noreturn void merger_process(const struct merger_links *l)
{
	static struct merger m;
	prctl(PR_SET_NAME, "merger");
	prctl(PR_SET_THP_DISABLE, 1); /* what is kept for each frame is used here and there */
	m = (struct merger){.scan = {.table = l->table,
				     .board = l->board,
				     .ask = ask,
				     .ctx = &m,
				     .young_ns = LEARN_MS * UINT64_C(1000000)},
			    .link = l->link,
			    .percent = l->percent,
			    .since_ns = clock_ns(),
			    .cpu_ns = clock_cpu_ns()};
	if (merge_scan_create(&m.scan))
		_exit(1);
	l->confine(l->worker);
	merge_settle(l->board, l->table);
	run(&m);
}
