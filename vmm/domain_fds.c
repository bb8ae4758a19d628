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

const struct domain_fd *domain_fds_of(const struct domain_fds *d, uint32_t number)
{
	unsigned at = place_of(d, number);
	return at < d->n && d->of[at].number == number ? &d->of[at] : NULL;
}

int domain_fd(const struct domain_fds *d, uint32_t number)
{
	const struct domain_fd *of = domain_fds_of(d, number);
	return of ? of->fd : -1;
}

static void let_go(int fd, int packed)
{
	close(fd);
	if (packed >= 0)
		close(packed);
}

void domain_fds_put(struct domain_fds *d, uint32_t number, int fd, int packed)
{
	unsigned at = place_of(d, number);
	struct domain_fd *p = &d->of[at];
	if (at < d->n && p->number == number) {
		let_go(p->fd, p->packed);
		memmove(p, p + 1, (--d->n - at) * sizeof *p);
	}
	if (fd < 0)
		return;
	if (d->n == DOMAINS_MOST) { /* the host has no more, so this can't be */
		let_go(fd, packed);
		return;
	}
	memmove(p + 1, p, (d->n++ - at) * sizeof *p);
	*p = (struct domain_fd){number, fd, packed};
}

int domain_fds_hear(struct domain_fds *d, int link)
{
	struct domain_message m;
	int fds[LINK_FDS_MAX];
	ssize_t n;
	while ((n = link_receive(link, &m, sizeof m, fds)) > 0) {
		domain_fds_put(d, m.number, fds[0], fds[1]);
		fds[0] = fds[1] = -1;
		link_close(fds);
	}
	return n == 0 || n == -ECONNRESET ? -ESRCH : 0;
}
