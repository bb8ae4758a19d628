#include "guest/bare/team.h"
#include "guest/bare/board.h"
#include "guest/bare/cpu.h"
#include "guest/bare/end.h"
#include "guest/bare/idle.h"
#include <stdatomic.h>
#include <stdbool.h>

#define GATHER_SECONDS 20

static struct {
	_Atomic uint32_t task;    /* counts tasks given out */
	_Atomic uint32_t go;      /* equals task once all are at the line */
	_Atomic uint32_t ready;   /* vCPUs at the line */
	_Atomic uint32_t done;    /* vCPUs that have finished */
	_Atomic bool resting;     /* no task comes any more */
	_Atomic uint32_t present; /* vCPUs but 0 that have checked in */
	team_fn *fn;              /* written before task, read after it */
	void *arg;
	unsigned parts; /* vCPU 0 only */
} team;

void team_serve(unsigned cpu)
{
	uint32_t seen = 0;
	atomic_fetch_add(&team.present, 1);
	for (;;) {
		while (atomic_load_explicit(&team.task, memory_order_acquire) == seen) {
			if (atomic_load_explicit(&team.resting, memory_order_relaxed))
				idle_wait();
			else
				cpu_pause();
		}
		seen++;
		atomic_fetch_add(&team.ready, 1);
		while (atomic_load_explicit(&team.go, memory_order_acquire) != seen)
			cpu_pause();
		team.fn(team.arg, cpu, board.cpus);
		atomic_fetch_add_explicit(&team.done, 1, memory_order_release);
	}
}

void team_rest(void)
{
	atomic_store_explicit(&team.resting, true, memory_order_relaxed);
}

unsigned team_present(void)
{
	return 1 + atomic_load(&team.present);
}

void team_gather(void)
{
	uint64_t end = cpu_tsc() + team_cycles(GATHER_SECONDS);
	while (team_present() < board.cpus) {
		if (cpu_tsc() > end)
			end_fail("smp: %u of %u vCPUs checked in within %u s", team_present(),
				 board.cpus, GATHER_SECONDS);
		cpu_pause();
	}
}

unsigned team_size(uint64_t all)
{
	return all != 0 ? board.cpus : 1;
}

struct team_time team_start(void)
{
	struct team_time t = {.part = team.parts++};
	cpu_out32(MACHINE_EVENT_PORT, t.part << 1 | 1);
	t.cycles = cpu_tsc();
	return t;
}

void team_stop(struct team_time *t)
{
	t->cycles = cpu_tsc() - t->cycles;
	cpu_out32(MACHINE_EVENT_PORT, t->part << 1);
}

struct team_time team_do(team_fn *fn, void *arg, uint64_t all)
{
	uint32_t others = team_size(all) - 1;
	uint32_t number = 0;
	if (others > 0) {
		team_gather();
		team.fn = fn;
		team.arg = arg;
		atomic_store(&team.ready, 0);
		atomic_store(&team.done, 0);
		number = atomic_load(&team.task) + 1;
		atomic_store_explicit(&team.task, number, memory_order_release);
		while (atomic_load(&team.ready) < others)
			cpu_pause();
	}
	struct team_time t = team_start();
	if (others > 0)
		atomic_store_explicit(&team.go, number, memory_order_release);
	fn(arg, 0, others + 1);
	while (others > 0 && atomic_load_explicit(&team.done, memory_order_acquire) < others)
		cpu_pause();
	team_stop(&t);
	return t;
}

void team_slice(uint64_t n, unsigned cpu, unsigned cpus, uint64_t *from, uint64_t *to)
{
	*from = n / cpus * cpu + n % cpus * cpu / cpus;
	*to = n / cpus * (cpu + 1) + n % cpus * (cpu + 1) / cpus;
}

uint64_t team_us(uint64_t cycles)
{
	uint64_t khz = board.tsc_hz / 1000;
	return khz == 0 ? 0 : cycles / khz * 1000 + cycles % khz * 1000 / khz;
}

uint64_t team_cycles(uint64_t seconds)
{
	return seconds * board.tsc_hz;
}
