/*
 * A kind of work and the table of all of them. A workload prints its lines and returns, or ends the
 * run with end_fail.
 */
#ifndef BARE_WORK_H
#define BARE_WORK_H

#include "guest/bare/words.h"

struct work {
	const char *name;
	void (*run)(const struct stage *s);
};

extern const struct work work_table[]; /* ends with a NULL name */

void touch_run(const struct stage *s);
void pattern_run(const struct stage *s);
void zero_run(const struct stage *s);
void dirty_run(const struct stage *s);
void check_run(const struct stage *s);
void loop_run(const struct stage *s);
void idle_run(const struct stage *s);
void smp_run(const struct stage *s);
void disk_run(const struct stage *s);
void pmem_run(const struct stage *s);
void rng_run(const struct stage *s);
/* Do these bytes lie in the memory of one virtio-pmem device? */
bool pmem_has(uint64_t at, uint64_t bytes);
void echo_run(const struct stage *s);
void serve_run(const struct stage *s);
void attack_run(const struct stage *s);

#endif
