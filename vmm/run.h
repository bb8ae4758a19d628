/* `invisor run`: a host of its own, the guests that the options ask for, and their consoles. */
#ifndef VMM_RUN_H
#define VMM_RUN_H

#include "vmm/options.h"

enum { EXIT_CLEAN, EXIT_GUEST, EXIT_BAD_INPUT, EXIT_TIMEOUT, EXIT_INTERRUPTED = 130 };

#define RUN_READY "READY" /* how the line begins by which the made guest says so */

int run_command(int argc, char **argv);
/* Its part with --detach (detach.c): guests in the host that runs already. Exit status. */
int run_detached(const struct run_options *o);

/* What run and density share: kernel and initrd (the made guest's unless given), disks and sizes,
 * checked and open. -errno with words. */
struct run_setup {
	struct run_options options;
	struct boot_image image;
	struct vm_config config; /* of every guest but for its name */
	char cmdline[MACHINE_CMDLINE_MAX];
};
int run_setup_open(struct run_setup *s, char *error);
/* When no guest of it is left: its disks are free from here on. */
void run_setup_close(struct run_setup *s);
/* Wait a second at most for the disks of guests that were killed with their host, which let them go a moment later. Before
 * run_setup_open or a host's, which wait for nobody. */
void run_await_disks(const struct run_options *o);

#endif
