/*
 * The numbers of a host as JSON, units in the names. docs/STATS.md documents the schema.
 */
#ifndef VMM_STATS_H
#define VMM_STATS_H

#include "vmm/host.h"
#include <jansson.h>

#define STATS_SCHEMA "invisor-stats-1"

/* Everything now; what /proc says of VMs' processes, which takes a while, only if wanted. NULL only
 * without memory. The caller owns it. */
json_t *stats_take(struct host *h, bool processes);
/* One VM's part. */
json_t *stats_vm(struct host_vm *vm, bool processes);
/* Write to a file by way of a temporary one beside it, so that a reader sees all or nothing.
 * -errno. */
int stats_write(const json_t *stats, const char *path);

#endif
