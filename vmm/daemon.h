/* The long-running host of a run directory: begun, in the background or not, and found. */
#ifndef VMM_DAEMON_H
#define VMM_DAEMON_H

#include "vmm/host.h"
#include "vmm/keeper.h"
#include <stdbool.h>
#include <stdint.h>

struct daemon {
	struct host_config host;
	bool pool_given; /* by the user: to be told if another one is adopted */
	int report;      /* a pipe to the command that waits; -1: none; daemon_start sets it */
};

/* Be the host, to its end; or start one in the background, and wait until it answers. Says what becomes of it. The exit
 * status. */
int daemon_start(struct daemon *d, bool foreground);
/* A connection to the host of the run directory; -errno. */
int daemon_dial(void);
/* VMs that go on without a host, as their keeper is asked: how many there are. -ENOENT: there is none. */
int daemon_ask_keeper(enum keeper_op op, uint64_t *vms);

#endif
