/*
 * What `invisor top` shows, as text: a host's status and statistics, twice for the rates between, into
 * lines. No terminal in it.
 */
#ifndef VMM_TOP_H
#define VMM_TOP_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#define TOP_LINE    160 /* bytes of a line with its NUL */
#define TOP_HEADERS 5   /* lines above the VMs: host, frames, table, reclaim, titles */

enum top_column {
	TOP_NAME,
	TOP_STATE,
	TOP_PARENT,
	TOP_CPUS,
	TOP_PROMISED,
	TOP_MAPPED,
	TOP_OWN,
	TOP_SHARED,
	TOP_OUT,
	TOP_STALL,
	TOP_FAULTS,
	TOP_STARVED,
	TOP_P99,
	TOP_PID,
	TOP_COLUMNS
};

struct top_vm {
	char name[32], state[12], parent[32];
	uint64_t id, faults;
	double value[TOP_COLUMNS]; /* of the columns that are numbers, in their unit */
};

struct top {
	enum top_column column; /* sorted by: numbers from the largest on, words by the alphabet */
	bool reverse;
	struct top_vm *vm;
	unsigned vms;
	uint64_t at_ns; /* when it was told, CLOCK_MONOTONIC */
	bool rates;     /* there was an earlier sample */
	char header[TOP_HEADERS - 1][TOP_LINE];
};

/* Take answers to "status" and "stats" in; rates are against those before. False without memory. */
bool top_update(struct top *t, const json_t *status, const json_t *stats, uint64_t now_ns);
void top_sort(struct top *t);
/* The line with the columns' titles: those of the sorted one have a mark. */
void top_titles(const struct top *t, char *line);
/* One VM's line. */
void top_line(const struct top *t, unsigned i, char *line);
void top_free(struct top *t);

#endif
