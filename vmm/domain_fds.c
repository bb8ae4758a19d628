#include "vmm/domain_fds.h"
#include "vmm/link.h"
#include <errno.h>
#include <string.h>
#include <unistd.h>

/* Where the domain is, or would be. */
static unsigned place_of(const struct domain_fds *d, uint32_t number)
{
	unsigned low = 0, high = d->n;
	while (low < high) {
		unsigned middle = (low + high) / 2;
		if (d->of[middle].number < number)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

int domain_fd(const struct domain_fds *d, uint32_t number)
{
	unsigned at = place_of(d, number);
	return at < d->n && d->of[at].number == number ? d->of[at].fd : -1;
}

void domain_fds_put(struct domain_fds *d, uint32_t number, int fd)
{
	unsigned at = place_of(d, number);
	struct domain_fd *p = &d->of[at];
	if (at < d->n && p->number == number) {
		close(p->fd);
		memmove(p, p + 1, (--d->n - at) * sizeof *p);
	}
	if (fd < 0)
		return;
	if (d->n == DOMAINS_MOST) { /* the host has no more, so this can't be */
		close(fd);
		return;
	}
	memmove(p + 1, p, (d->n++ - at) * sizeof *p);
	*p = (struct domain_fd){number, fd};
}

int domain_fds_hear(struct domain_fds *d, int link)
{
	struct domain_message m;
	int fds[LINK_FDS_MAX];
	ssize_t n;
	while ((n = link_receive(link, &m, sizeof m, fds)) > 0) {
		domain_fds_put(d, m.number, fds[0]);
		fds[0] = -1;
		link_close(fds);
	}
	return n == 0 || n == -ECONNRESET ? -ESRCH : 0;
}
