/*
 * What a worker (merger, reclaimer) knows of the sharing domains: the file of the pool that each has, and its packed
 * memory, by number. Its host sends it one message for each that comes or goes (host_domain.c), over the link on which the
 * worker has VMs rung.
 */
#ifndef VMM_DOMAIN_FDS_H
#define VMM_DOMAIN_FDS_H

#include <stdint.h>

#define DOMAINS_MOST 1024 /* at once */

/* With descriptors, of the domain's file of the pool and perhaps its packed memory: that is what it has. Without: the
 * domain is no more. */
struct domain_message {
	uint32_t number; /* from 1; never used again in the pool's life */
};

struct domain_fds {
	unsigned n;
	struct domain_fd {
		uint32_t number;
		int fd, packed; /* packed: -1 where there is none, or we have nothing to do with it */
	} of[DOMAINS_MOST];     /* by number */
};

/* The file of that domain, -1 if none is known (yet). All that there is of it, or NULL. */
int domain_fd(const struct domain_fds *d, uint32_t number);
const struct domain_fd *domain_fds_of(const struct domain_fds *d, uint32_t number);
/* Take in what the host has said so far, without waiting. 0; -ESRCH: the host is gone. */
int domain_fds_hear(struct domain_fds *d, int link);
/* What a message does: the descriptors become ours; fd -1: close and forget what that domain has. */
void domain_fds_put(struct domain_fds *d, uint32_t number, int fd, int packed);

#endif
