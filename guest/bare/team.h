/*
 * The vCPUs as a team: vCPU 0 gives out a piece of work, all start it together, and vCPU 0 measures
 * from the start to the last one's end. Each measured part is also told to the VM monitor by two
 * writes to the event port.
 */
#ifndef BARE_TEAM_H
#define BARE_TEAM_H

#include <stdint.h>

/* 32-bit writes: part number << 1 | 1 at its start, part number << 1 at its end. Nothing need be
 * behind this port. */
#define MACHINE_EVENT_PORT 0x610

#define TEAM_MAX 64

/* The slice of vCPU `cpu` of `cpus`. */
typedef void team_fn(void *arg, unsigned cpu, unsigned cpus);

struct team_time {
	unsigned part;   /* number of the measured part, from 0 */
	uint64_t cycles; /* of the TSC */
};

/* Every vCPU but 0: doesn't return. */
_Noreturn void team_serve(unsigned cpu);
/* Wait until all vCPUs of the machine have checked in; ends the run if one is missing. */
void team_gather(void);
/* All vCPUs but 0 rest at the idle port from now on, for good: no more team_do. */
void team_rest(void);
/* vCPUs that have checked in, with vCPU 0. */
unsigned team_present(void);
/* Do it, on all vCPUs if `all`, else on vCPU 0 alone. */
struct team_time team_do(team_fn *fn, void *arg, uint64_t all);
/* How many vCPUs team_do would use. */
unsigned team_size(uint64_t all);
/* A measured part of vCPU 0's own: start gives its number. */
struct team_time team_start(void);
void team_stop(struct team_time *t);
/* The part of `n` things that is a vCPU's. */
void team_slice(uint64_t n, unsigned cpu, unsigned cpus, uint64_t *from, uint64_t *to);

/* TSC cycles as microseconds and the reverse. */
uint64_t team_us(uint64_t cycles);
uint64_t team_cycles(uint64_t seconds);

#endif
