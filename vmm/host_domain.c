#include "vmm/host_domain.h"
#include "ipt/fail.h"
#include "ipt/sealed.h"
#include "vmm/error.h"
#include "vmm/host_keep.h"
#include "vmm/pmem.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* How often, and how long each time, a worker is waited for that doesn't take what it is told. */
#define TELL_TRIES 50
#define TELL_MS    20

/* ---- workers ------------------------------------------------------------------------------- */

/* The merger gets what it may read, for reading only; where there is no /proc it is the descriptor itself. */
static int descriptor_for(const struct host_worker *w, const struct domain *d)
{
	char path[32];
	snprintf(path, sizeof path, "/proc/self/fd/%d", d->pool.fd);
	int fd = w->reads_only ? fail_call(POOL_REOPEN, open(path, O_RDONLY | O_CLOEXEC)) : -1;
	return fd >= 0 ? fd : fcntl(d->pool.fd, F_DUPFD_CLOEXEC, 0);
}

static int send_it(struct host_worker *w, uint32_t number, const int *fd, unsigned n)
{
	const struct domain_message m = {number};
	int rc = -EAGAIN;
	for (unsigned i = 0; rc == -EAGAIN || rc == -ENOMEM || rc == -ENOBUFS; i++) {
		if (i == TELL_TRIES)
			return rc;
		if (i && w->wake)
			w->wake(w);
		if (i)
			poll(&(struct pollfd){.fd = w->link_fd, .events = POLLOUT}, 1, TELL_MS);
		rc = link_send(w->link_fd, &m, sizeof m, fd, n);
	}
	return rc;
}

/* One that doesn't take what it is told is killed: the next one is told everything. */
static void tell(struct host_worker *w, const struct domain *d, bool is_there)
{
	if (!w || !host_worker_runs(w) || (w->reads_only && !host_domain_merged_as(d)))
		return;
	int fd[] = {is_there ? descriptor_for(w, d) : -1, w->reads_only ? -1 : d->packed_fd};
	int rc = is_there && fd[0] < 0 ? -errno
				       : send_it(w, d->number, fd, is_there ? 1 + (fd[1] >= 0) : 0);
	if (fd[0] >= 0)
		close(fd[0]);
	if (rc)
		syscall(SYS_pidfd_send_signal, w->pidfd, SIGKILL, NULL, 0);
}

static void tell_workers(struct host *h, const struct domain *d, bool is_there)
{
	tell(host_merge_worker(h), d, is_there);
	tell(host_reclaim_worker(h), d, is_there);
}

void host_domain_tell_all(struct host_worker *w)
{
	for (const struct domain *d = w->host->domains; d; d = d->next)
		tell(w, d, true);
}

/* ---- coming and going ---------------------------------------------------------------------- */

static struct domain *add(struct host *h, uint32_t number, const char *name)
{
	struct domain *d = fail_null(VM_MEMORY, calloc(1, sizeof *d));
	if (!d)
		return NULL;
	d->number = number;
	d->pool.fd = d->packed_fd = -1;
	snprintf(d->name, sizeof d->name, "%s", name);
	d->next = h->domains;
	h->domains = d;
	return d;
}

static void take_away(struct host *h, struct domain *d)
{
	struct domain **at = &h->domains;
	while (*at != d)
		at = &(*at)->next;
	*at = d->next;
	pool_destroy(&d->pool);
	if (d->packed_fd >= 0)
		close(d->packed_fd);
	free(d);
}

static int make(struct host *h, const char *name, uint32_t frames, struct domain **out, char *error)
{
	unsigned n = 0;
	for (const struct domain *d = h->domains; d; d = d->next)
		n++;
	if (n == DOMAINS_MOST)
		return errorf(
			error, -ENOSPC,
			"--share-domain: there are %u sharing domains, which is the most; each "
			"guest of --share-domain none is one",
			n);
	struct domain *d = add(h, ++h->domain_numbers, name);
	if (!d)
		return errorf(error, -ENOMEM, "--share-domain %s: no memory", name);
	host_keep_numbers(h);
	int rc = pool_create(&d->pool, frames, error);
	if (!rc)
		rc = host_reclaim_packed(h, &d->packed_fd, error);
	if (rc) {
		take_away(h, d);
		return rc;
	}
	host_keep_domain(h, d);
	tell_workers(h, d, true);
	*out = d;
	return 0;
}

static void release(struct host *h, struct domain *d)
{
	tell_workers(h, d, false);
	host_keep_drop_domain(h, d->number);
	take_away(h, d);
}

int host_domain_create(struct host *h, uint32_t frames, char *error)
{
	struct domain *d;
	int rc = make(h, HOST_DOMAIN_DEFAULT, frames, &d, error);
	if (!rc)
		d->users = 1; /* it stays */
	return rc;
}

int host_domain_add_kept(struct host *h, uint32_t number, const char *name, const int fd[2],
			 uint32_t frames)
{
	struct domain *d = add(h, number, name);
	if (!d) {
		close(fd[0]);
		if (fd[1] >= 0)
			close(fd[1]);
		return -ENOMEM;
	}
	d->users = number == DOMAIN_DEFAULT;
	d->packed_fd = fd[1];
	return pool_attach(&d->pool, fd[0], frames);
}

void host_domain_let_go_unused(struct host *h)
{
	for (struct domain *d = h->domains, *next; d; d = next) {
		next = d->next;
		if (!d->users)
			release(h, d);
	}
}

void host_domain_destroy(struct host *h)
{
	while (h->domains)
		take_away(h, h->domains);
}

struct domain *host_domain_by_number(const struct host *h, uint32_t number)
{
	struct domain *d = h->domains;
	while (d && d->number != number)
		d = d->next;
	return d;
}

/* ---- for VMs ------------------------------------------------------------------------------- */

void host_domain_follow(struct host_vm *vm, struct domain *d)
{
	vm->domain = d;
	d->users++;
}

static bool is_for_one(const char *name)
{
	return !strcmp(name, HOST_DOMAIN_NONE);
}

int host_domain_join(struct host_vm *vm, char *error)
{
	struct host *h = vm->host;
	const char *name = *vm->config.share_domain ? vm->config.share_domain : HOST_DOMAIN_DEFAULT;
	struct domain *d = is_for_one(name) ? NULL : h->domains;
	while (d && strcmp(d->name, name))
		d = d->next;
	int rc = d ? 0 : make(h, name, host_frames(h), &d, error);
	if (!rc)
		host_domain_follow(vm, d);
	return rc;
}

void host_domain_leave(struct host_vm *vm)
{
	struct domain *d = vm->domain;
	vm->domain = NULL;
	if (d && --d->users == 0)
		release(vm->host, d);
}

uint32_t host_domain_merged_as(const struct domain *d)
{
	return is_for_one(d->name) ? 0 : d->number;
}

/* ---- frames -------------------------------------------------------------------------------- */

int host_domain_clean_all(void *host, frame_t first, uint32_t count)
{
	const struct host *h = host;
	int rc = 0;
	for (struct domain *d = h->domains; d && !rc; d = d->next)
		rc = pool_clean(&d->pool, first, count);
	return rc;
}

int host_domain_clean_vm(void *host_vm, frame_t first, uint32_t count)
{
	struct host_vm *vm = host_vm;
	return vm->domain ? pool_clean(&vm->domain->pool, first, count)
			  : host_domain_clean_all(vm->host, first, count);
}

bool host_domain_has(const struct host *h, frame_t f)
{
	const struct domain *d = h->domains;
	while (d && !pool_has(&d->pool, f))
		d = d->next;
	return d != NULL;
}

uint64_t host_domain_packed_bytes(const struct host *h)
{
	uint64_t bytes = 0;
	for (const struct domain *d = h->domains; d; d = d->next)
		bytes += sealed_populated_bytes(d->packed_fd);
	return bytes;
}

uint64_t host_populated_bytes(const struct host *h)
{
	uint64_t bytes = 0;
	for (const struct domain *d = h->domains; d; d = d->next)
		bytes += pool_populated_bytes(&d->pool);
	return bytes;
}
