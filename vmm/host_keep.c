/* The keeper as its host sees it: its start and its end, and what is put into it. */
#include "vmm/host_keep.h"
#include "ipt/fail.h"
#include "vmm/clock.h"
#include "vmm/error.h"
#include "vmm/host_domain.h"
#include "vmm/merge.h"
#include "vmm/reclaim.h"
#include "vmm/rundir.h"
#include "vmm/shared.h"
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* One that ends sooner than this after its start has failed; after so many in a row there is none any more. */
#define LIVES_S  10
#define FAILS_IN 5

_Static_assert(sizeof(struct kept_vm) <= KEEPER_RECORD_MAX, "a record has room for it");
_Static_assert(sizeof(struct kept_host) <= KEEPER_RECORD_MAX, "a record has room for it");

static struct keeper_message message; /* being made; the host has one thread */

static struct keeper_head head(uint32_t op, uint32_t kind, uint64_t key)
{
	return (struct keeper_head){.op = op,
				    .kind = kind,
				    .key = key,
				    .link = -1,
				    .console = -1,
				    .ring = -1,
				    .pidfd = -1};
}

/* One that doesn't take what it is given is as good as gone: on_link finds that out. */
static void send_message(struct host *h, const int *fds)
{
	struct host_keeper *k = h->keeper;
	if (k && k->link >= 0 && keeper_send(k->link, &message, fds) && k->pidfd >= 0)
		syscall(SYS_pidfd_send_signal, k->pidfd, SIGKILL, NULL, 0);
}

/* The message with what is to be kept. */
static void send_record(struct host *h, const void *record, uint32_t bytes, const int *fds)
{
	memcpy(message.record, record, bytes);
	message.head.bytes = bytes;
	send_message(h, fds);
}

static int8_t add_fd(int *fds, int fd)
{
	if (fd < 0)
		return -1;
	fds[message.head.fds] = fd;
	return (int8_t)message.head.fds++;
}

/* ---- records ------------------------------------------------------------------------------- */

void host_keep_sizes(uint32_t bytes[KEPT_SIZES])
{
	bytes[0] = sizeof(struct mailbox);
	bytes[1] = sizeof(struct merge_board);
	bytes[2] = sizeof(struct reclaim_desk);
	bytes[3] = sizeof(struct kept_vm);
	bytes[4] = fail_bytes();
}

void host_keep_host(struct host *h)
{
	int fds[LINK_FDS_MAX];
	const struct store *s = host_store(h);
	if (!h->keeper)
		return;
	message.head = head(KEEPER_PUT, KEEPER_HOST, 0);
	struct kept_host r = {.version = KEPT_VERSION, .config = h->config};
	host_keep_sizes(r.bytes);
	if (h->config.swap_file)
		snprintf(r.swap_file, sizeof r.swap_file, "%s", h->config.swap_file);
	r.config.swap_file = NULL;
	r.store = s ? *s : (struct store){.mem_fd = -1, .file_fd = -1};
	r.fd[KEPT_TABLE] = add_fd(fds, ipt_fd(h->table));
	r.fd[KEPT_NEWS] = add_fd(fds, h->news_fd);
	r.fd[KEPT_LEDGER] = add_fd(fds, h->keeper->ledger_fd);
	r.fd[KEPT_MERGE] = add_fd(fds, host_merge_board_fd(h));
	r.fd[KEPT_RECLAIM] = add_fd(fds, host_reclaim_board_fd(h));
	r.fd[KEPT_STORE_FILE] = add_fd(fds, r.store.file_fd);
	r.fd[KEPT_FAIL] = add_fd(fds, fail_fd());
	send_record(h, &r, sizeof r, fds);
}

void host_keep_domain(struct host *h, const struct domain *d)
{
	int fds[LINK_FDS_MAX];
	struct kept_domain r;
	message.head = head(KEEPER_PUT, KEEPER_DOMAIN, d->number);
	memcpy(r.name, d->name, sizeof r.name);
	add_fd(fds, d->pool.fd);
	add_fd(fds, d->packed_fd);
	send_record(h, &r, sizeof r, fds);
}

void host_keep_drop_domain(struct host *h, uint32_t number)
{
	message.head = head(KEEPER_DROP, KEEPER_DOMAIN, number);
	send_message(h, NULL);
}

static void keep_file(struct host *h, const struct pmem_file *f, uint32_t domain)
{
	int fds[LINK_FDS_MAX];
	struct kept_file r = {.device = (uint64_t)f->device,
			      .inode = (uint64_t)f->inode,
			      .bytes = f->bytes,
			      .domain = domain};
	message.head = head(KEEPER_PUT, KEEPER_FILE, f->id.v);
	snprintf(r.path, sizeof r.path, "%s", f->path);
	add_fd(fds, f->fd);
	add_fd(fds, f->write_fd);
	send_record(h, &r, sizeof r, fds);
}

static void fill(struct kept_vm *r, const struct host_vm *vm)
{
	struct vm_config *c = &r->config;
	r->pid = vm->pid;
	r->number = vm->number;
	r->domain = vm->domain ? vm->domain->number : 0;
	r->kind = vm->config.image ? vm->config.image->kind : BOOT_BARE;
	r->is_template = vm->is_template;
	r->born = vm->pidfd >= 0;
	r->forked_ns = vm->forked_ns;
	r->ready_ns = vm->ready_ns;
	*c = vm->config;
	c->image = NULL;
	c->machine.cmdline = NULL;
	for (unsigned i = 0; i < c->disks; i++) {
		snprintf(r->disk[i], sizeof r->disk[i], "%s", c->disk[i].path);
		c->disk[i].path = NULL;
	}
	for (unsigned i = 0; i < c->pmems; i++) {
		const struct pmem_view *v = vm->pmem[i];
		c->pmem[i].path = NULL;
		if (!v)
			continue;
		r->pmem[i].file = v->file->id.v;
		r->pmem[i].first = v->first.v;
		r->pmem[i].pages = v->pages;
	}
}

void host_keep_vm(struct host_vm *vm)
{
	static struct kept_vm r;
	struct host *h = vm->host;
	int fds[LINK_FDS_MAX];
	if (!h->keeper)
		return;
	for (unsigned i = 0; i < vm->config.pmems; i++)
		if (vm->pmem[i])
			keep_file(h, vm->pmem[i]->file, vm->domain->number);
	message.head = head(KEEPER_PUT, KEEPER_VM, vm->key);
	r = (struct kept_vm){.pid = 0};
	fill(&r, vm);
	message.head.link = add_fd(fds, vm->link_fd);
	message.head.console = add_fd(fds, vm->console_fd);
	message.head.ring = add_fd(fds, vm->ring_fd);
	message.head.pidfd = add_fd(fds, vm->pidfd);
	r.mailbox = add_fd(fds, vm->mailbox_fd);
	r.agent = add_fd(fds, vm->agent_fd);
	for (unsigned i = 0; i < VM_MAX_PMEM; i++) {
		const struct pmem_view *v = i < vm->config.pmems ? vm->pmem[i] : NULL;
		r.sets[i] = add_fd(fds, v && v->share ? v->sets_fd : -1);
		message.head.writes |= r.sets[i] >= 0;
	}
	send_record(h, &r, sizeof r, fds);
}

void host_keep_drop_key(struct host *h, uint64_t key)
{
	message.head = head(KEEPER_DROP, KEEPER_VM, key);
	send_message(h, NULL);
}

void host_keep_drop(struct host_vm *vm)
{
	if (vm->key)
		host_keep_drop_key(vm->host, vm->key);
}

void host_keep_drop_file(struct host *h, vmid_t id)
{
	message.head = head(KEEPER_DROP, KEEPER_FILE, id.v);
	send_message(h, NULL);
}

uint64_t host_keep_key(struct host *h)
{
	return h->keeper ? atomic_fetch_add(&h->keeper->ledger->keys, 1) + 1 : 0;
}

void host_keep_numbers(struct host *h)
{
	if (!h->keeper)
		return;
	h->keeper->ledger->clones = h->clones;
	h->keeper->ledger->templates = h->templates;
	h->keeper->ledger->domains = h->domain_numbers;
	h->keeper->ledger->ids = h->sandbox.given;
}

/* ---- its process --------------------------------------------------------------------------- */

static int bind_socket(struct host_keeper *k, char *error)
{
	struct sockaddr_un a;
	if (!rundir_address(&a, k->path))
		return errorf(error, -ENAMETOOLONG, "keeper's socket %.150s: %s", k->path,
			      strerror(ENAMETOOLONG));
	unlink(k->path);
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof a) < 0) {
		int rc = -errno;
		if (fd >= 0)
			close(fd);
		return errorf(error, rc, "keeper's socket %.150s: %s", k->path, strerror(-rc));
	}
	return fd;
}

/* The process is gone, or is to go. */
static void wait_for_end(const struct host_keeper *k)
{
	siginfo_t info;
	if (k->pidfd < 0)
		return;
	struct pollfd p = {.fd = k->pidfd, .events = POLLIN};
	if (poll(&p, 1, KEEPER_PATIENCE_MS) == 0)
		syscall(SYS_pidfd_send_signal, k->pidfd, SIGKILL, NULL, 0);
	waitid(P_PIDFD, (id_t)k->pidfd, &info, WEXITED); /* unless it is no child of ours */
}

static void let_go(struct host_keeper *k)
{
	if (k->on_link.fd >= 0)
		host_remove_source(k->host, &k->on_link);
	if (k->link >= 0)
		close(k->link);
	if (k->pidfd >= 0)
		close(k->pidfd);
	k->on_link.fd = k->link = k->pidfd = -1;
}

static int start(struct host_keeper *k, char *error)
{
	struct keeper_message m;
	int fds[LINK_FDS_MAX], link[2];
	int listening = bind_socket(k, error);
	if (listening < 0)
		return listening;
	int rc = link_pair(link);
	if (rc) {
		close(listening);
		return errorf(error, rc, "the keeper's link: %s", strerror(-rc));
	}
	fflush(NULL);
	pid_t pid = fork();
	if (pid == 0)
		keeper_process(listening, link[1], k->path);
	rc = pid < 0 ? -errno : 0;
	close(listening);
	close(link[1]);
	k->link = link[0];
	k->pidfd = rc ? -1 : (int)syscall(SYS_pidfd_open, pid, 0);
	if (!rc && k->pidfd < 0)
		rc = -errno;
	if (!rc) {
		rc = keeper_receive(k->link, &m, fds, KEEPER_PATIENCE_MS);
		rc = rc == 1 ? 0 : rc < 0 ? rc : -ESRCH;
	}
	k->started_ns = clock_ns();
	if (!rc)
		return 0;
	if (pid > 0) {
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
	}
	let_go(k);
	return errorf(error, rc, "the keeper's process: %s", strerror(-rc));
}

/* It says nothing: it is gone. Another gets everything. */
static void on_link(struct host_source *s, uint32_t events)
{
	struct host_keeper *k = container(struct host_keeper, on_link, s);
	struct host *h = k->host;
	char error[ERROR_MAX] = "", words[ERROR_MAX + 80];
	(void)events;
	if (clock_ns() - k->started_ns >= LIVES_S * UINT64_C(1000000000))
		k->failed = 0;
	syscall(SYS_pidfd_send_signal, k->pidfd, SIGKILL, NULL, 0);
	wait_for_end(k);
	let_go(k);
	int rc = ++k->failed < FAILS_IN ? start(k, error) : -ESRCH;
	if (!rc) {
		host_keep_all(h);
		rc = host_keep_watch(h, error);
		if (rc) { /* one whose end we don't hear of would be none */
			k->on_link.fd = -1;
			syscall(SYS_pidfd_send_signal, k->pidfd, SIGKILL, NULL, 0);
			wait_for_end(k);
			let_go(k);
		}
	}
	snprintf(words, sizeof words, "the keeper ended%s%s%s",
		 rc ? "; the guests end with this host from now on" : ", and there is another",
		 *error ? ": " : "", error);
	if (h->events.said)
		h->events.said(h->events.ctx, words);
}

static struct host_keeper *make(struct host *h, char *error)
{
	char dir[256];
	struct host_keeper *k = h->keeper;
	if (k)
		return k;
	k = calloc(1, sizeof *k);
	if (!k) {
		errorf(error, -ENOMEM, "no memory for the keeper");
		return NULL;
	}
	*k = (struct host_keeper){
		.host = h, .link = -1, .pidfd = -1, .ledger_fd = -1, .on_link = {-1, on_link}};
	rundir_path(dir, sizeof dir);
	snprintf(k->path, sizeof k->path, "%.230s/%s", dir, KEEPER_SOCKET);
	h->keeper = k;
	return k;
}

int host_keep_start(struct host *h, char *error)
{
	struct host_keeper *k = make(h, error);
	if (!k)
		return -ENOMEM;
	if (!k->ledger)
		k->ledger = shared_create("invisor-ledger", sizeof *k->ledger, &k->ledger_fd);
	if (!k->ledger)
		return errorf(error, -errno, "the keeper's ledger: %s", strerror(errno));
	atomic_fetch_add(&k->ledger->hosts, 1);
	return start(k, error);
}

int host_keep_watch(struct host *h, char *error)
{
	struct host_keeper *k = h->keeper;
	if (!k)
		return 0;
	k->on_link.fd = k->link;
	int rc = host_add_source(h, &k->on_link, EPOLLIN | EPOLLRDHUP);
	return rc ? errorf(error, rc, "the host can't listen to its keeper: %s", strerror(-rc)) : 0;
}

void host_keep_all(struct host *h)
{
	host_keep_host(h);
	for (const struct domain *d = h->domains; d; d = d->next)
		host_keep_domain(h, d);
	for (unsigned i = 0; i < h->vms; i++)
		if (h->vm[i]->phase == HOST_VM_ALIVE || h->vm[i]->phase == HOST_VM_FORKING)
			host_keep_vm(h->vm[i]);
}

void host_keep_destroy(struct host *h, bool for_good)
{
	struct host_keeper *k = h->keeper;
	if (!k)
		return;
	if (for_good && k->link >= 0) {
		message.head = head(KEEPER_END, KEEPER_HOST, 0);
		keeper_send(k->link, &message, NULL);
		wait_for_end(k);
		unlink(k->path);
	}
	let_go(k);
	host_keep_forget(k);
	if (k->ledger)
		munmap(k->ledger, sizeof *k->ledger);
	if (k->ledger_fd >= 0)
		close(k->ledger_fd);
	free(k);
	h->keeper = NULL;
}

/* ---- another host's ------------------------------------------------------------------------ */

static int note(struct host_keeper *k, const int fds[LINK_FDS_MAX])
{
	struct kept_record *more = realloc(k->record, (k->records + 1) * sizeof *more);
	if (!more)
		return -ENOMEM;
	k->record = more;
	struct kept_record *r = &more[k->records];
	r->bytes = malloc(message.head.bytes + 1);
	if (!r->bytes)
		return -ENOMEM;
	memcpy(r->bytes, message.record, message.head.bytes);
	memcpy(r->fd, fds, sizeof r->fd);
	r->head = message.head;
	k->records++;
	return 0;
}

/* 0; -ENOENT: it ended before it gave everything. */
static int take(struct host_keeper *k)
{
	int fds[LINK_FDS_MAX], rc;
	message.head = head(KEEPER_TAKE, KEEPER_HOST, 0);
	rc = keeper_send(k->link, &message, NULL);
	while (!rc) {
		/* It may have to wait for the last words of the host before. */
		rc = keeper_receive(k->link, &message, fds, 2 * KEEPER_PATIENCE_MS);
		if (rc == 1 && message.head.op == KEEPER_DONE)
			return 0;
		if (rc == 1) {
			rc = note(k, fds);
			if (rc)
				link_close(fds);
		} else if (rc == 0) {
			rc = -ENOENT; /* and what it had is lost with it */
		}
	}
	return rc == -EPIPE || rc == -ECONNRESET ? -ENOENT : rc;
}

void host_keep_forget(struct host_keeper *k)
{
	for (unsigned i = 0; i < k->records; i++) {
		link_close(k->record[i].fd);
		free(k->record[i].bytes);
	}
	free(k->record);
	k->record = NULL;
	k->records = 0;
}

int host_keep_find(struct host *h, char *error)
{
	struct host_keeper *k = make(h, error);
	if (!k)
		return -ENOMEM;
	int rc = keeper_dial(k->path), pid = 0;
	if (rc == -ENOENT)
		return rc;
	if (rc >= 0) {
		k->link = rc;
		rc = pid = keeper_peer(k->link);
	}
	if (rc > 0) {
		k->pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
		rc = k->pidfd < 0 ? -ENOENT : take(k);
	}
	k->started_ns = clock_ns();
	if (rc) {
		let_go(k);
		host_keep_forget(k);
	}
	return rc && rc != -ENOENT
		       ? errorf(error, rc, "keeper's socket %.150s: %s", k->path, strerror(-rc))
		       : rc;
}
