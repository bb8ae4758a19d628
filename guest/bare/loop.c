/*
 * work=cpu: nothing but arithmetic. work=idle: nothing at all. work=smp: the vCPUs meet.
 */
#include "guest/bare/board.h"
#include "guest/bare/console.h"
#include "guest/bare/cpu.h"
#include "guest/bare/end.h"
#include "guest/bare/region.h"
#include "guest/bare/team.h"
#include "guest/bare/work.h"
#include <stdatomic.h>

struct loop {
	uint64_t loops;
	_Atomic uint64_t result;
};

static void loop_slice(void *arg, unsigned cpu, unsigned cpus)
{
	struct loop *l = arg;
	uint64_t x = cpu + 1, from, to;
	team_slice(l->loops, cpu, cpus, &from, &to);
	for (; from < to; from++) { /* each step needs the one before it (Marsaglia's xorshift) */
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
	}
	atomic_fetch_xor(&l->result, x);
}

void loop_run(const struct stage *s)
{
	struct loop l = {.loops = s->loops};
	struct team_time t = team_do(loop_slice, &l, s->smp);
	uint64_t us = team_us(t.cycles);
	console_say("cpu part=%u loops=%lu cpus=%u cycles=%lu us=%lu loops/s=%lu result=0x%lx",
		    t.part, s->loops, team_size(s->smp), t.cycles, us,
		    us == 0 ? 0 : s->loops / us * 1000000 + s->loops % us * 1000000 / us, l.result);
}

void idle_run(const struct stage *s)
{
	struct team_time t = team_start();
	uint64_t cycles = team_cycles(s->seconds != WORDS_UNSET ? s->seconds : 1);
	while (cpu_tsc() - t.cycles < cycles)
		cpu_pause();
	team_stop(&t);
	console_say("idle part=%u us=%lu", t.part, team_us(t.cycles));
}

/* All add to the same words, with and without turns: by atomic adds, and under a lock of ours. */
struct meeting {
	uint64_t loops;
	_Atomic uint64_t arrived; /* a bit each */
	_Atomic uint64_t adds;
	atomic_flag lock;
	uint64_t locked; /* guarded by lock */
};

static void meet(void *arg, unsigned cpu, unsigned cpus)
{
	struct meeting *m = arg;
	uint64_t from, to;
	atomic_fetch_or(&m->arrived, UINT64_C(1) << cpu);
	team_slice(m->loops, cpu, cpus, &from, &to);
	for (; from < to; from++) {
		atomic_fetch_add(&m->adds, 1);
		while (atomic_flag_test_and_set_explicit(&m->lock, memory_order_acquire))
			cpu_pause();
		m->locked++;
		atomic_flag_clear_explicit(&m->lock, memory_order_release);
	}
}

void smp_run(const struct stage *s)
{
	struct meeting m = {.loops = s->loops < 1000000 ? s->loops : 100000,
			    .lock = ATOMIC_FLAG_INIT};
	uint64_t all = board.cpus == 64 ? UINT64_MAX : (UINT64_C(1) << board.cpus) - 1;
	struct team_time t = team_do(meet, &m, 1);
	if (m.arrived != all || m.adds != m.loops || m.locked != m.loops)
		end_fail("smp: vCPUs 0x%lx of 0x%lx, %lu atomic and %lu locked adds of %lu",
			 m.arrived, all, m.adds, m.locked, m.loops);
	console_say("smp part=%u cpus=%u present=%u adds=%lu cycles=%lu us=%lu verified", t.part,
		    board.cpus, team_present(), m.adds, t.cycles, team_us(t.cycles));
}
