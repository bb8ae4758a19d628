/*
 * Going on with what another host left: its records come from the keeper (host_keep.h). First the pool, the table and
 * the store; then, when nothing can fail any more, the files and the VMs. Half-made VMs are hung up on and end; what the
 * table says of VMs that are in no record is reaped.
 */
#include "ipt/fail.h"
#include "vmm/agent.h"
#include "vmm/error.h"
#include "vmm/host_domain.h"
#include "vmm/host_keep.h"
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
#include <unistd.h>

/* Names that configs point to, clones' too, for as long as this process lives: one copy of each. */
static const char *name_for_good(const char *name)
{
	static struct name {
		struct name *next;
		char text[KEPT_PATH];
	} * names;
	struct name *n = names;
	while (n && strncmp(n->text, name, KEPT_PATH - 1))
		n = n->next;
	if (n)
		return n->text;
	n = calloc(1, sizeof *n);
	if (!n)
		return "(a file)";
	n->next = names;
	names = n;
	snprintf(n->text, sizeof n->text, "%.*s", KEPT_PATH - 1, name);
	return n->text;
}

/* ---- the host's record --------------------------------------------------------------------- */

static const struct kept_record *host_record(const struct host *h)
{
	const struct host_keeper *k = h->keeper;
	for (unsigned i = 0; k && i < k->records; i++)
		if (k->record[i].head.kind == KEEPER_HOST &&
		    k->record[i].head.bytes == sizeof(struct kept_host))
			return &k->record[i];
	return NULL;
}

static int fd_of(const struct kept_record *r, int8_t which)
{
	return which >= 0 && which < LINK_FDS_MAX ? r->fd[which] : -1;
}

int host_adopt_fd(struct host *h, enum kept_host_fd which)
{
	const struct kept_record *r = h->unadopted ? host_record(h) : NULL;
	const struct kept_host *k = r ? (const void *)r->bytes : NULL;
	int fd = k ? fd_of(r, k->fd[which]) : -1;
	if (fd >= 0)
		((struct kept_record *)(uintptr_t)r)->fd[k->fd[which]] = -1;
	return fd;
}

bool host_adopt_store(struct host *h, struct store *s)
{
	const struct kept_record *r = h->unadopted ? host_record(h) : NULL;
	if (!r)
		return false;
	*s = ((const struct kept_host *)(const void *)r->bytes)->store;
	s->mem_fd = -1;
	s->file_fd = host_adopt_fd(h, KEPT_STORE_FILE);
	return true;
}

static int adopt_domains(struct host *h, uint32_t frames)
{
	struct host_keeper *keeper = h->keeper;
	int rc = 0;
	for (unsigned i = 0; !rc && i < keeper->records; i++) {
		struct kept_record *r = &keeper->record[i];
		struct kept_domain *k = (void *)r->bytes;
		if (r->head.kind != KEEPER_DOMAIN)
			continue;
		if (r->head.bytes != sizeof *k || r->fd[0] < 0)
			return -EPROTO;
		k->name[sizeof k->name - 1] = 0;
		rc = host_domain_add_kept(h, (uint32_t)r->head.key, k->name, r->fd, frames);
		r->fd[0] = r->fd[1] = -1;
	}
	return rc || host_domain_by_number(h, DOMAIN_DEFAULT) ? rc : -EPROTO;
}

int host_adopt_pool(struct host *h, char *error)
{
	const struct kept_record *r = host_record(h);
	struct kept_host *k = r ? (void *)r->bytes : NULL;
	struct host_keeper *keeper = h->keeper;
	uint32_t bytes[KEPT_SIZES];
	host_keep_sizes(bytes);
	if (!k || k->version != KEPT_VERSION || memcmp(k->bytes, bytes, sizeof bytes))
		return errorf(error, -EPROTO,
			      "VMs go on here that another build of invisor started; that one can "
			      "adopt them, and invisor host stop --kill ends them");
	const struct host_config own = h->config;
	h->config = k->config;
	h->config.sandbox = own.sandbox; /* of what is started from now on */
	h->config.first_id = own.first_id;
	k->swap_file[KEPT_PATH - 1] = 0;
	h->config.swap_file = *k->swap_file ? name_for_good(k->swap_file) : NULL;
	keeper->ledger_fd = host_adopt_fd(h, KEPT_LEDGER);
	keeper->ledger = shared_attach(keeper->ledger_fd, sizeof *keeper->ledger);
	if (!keeper->ledger)
		return errorf(error, -errno, "the ledger of the host that died: %s",
			      strerror(errno));
	int fail = host_adopt_fd(h, KEPT_FAIL);
	int rc = fail_take(fail);
	if (rc) {
		close(fail);
		return errorf(error, rc, "the failpoints of the host that died: %s", strerror(-rc));
	}
	int table = host_adopt_fd(h, KEPT_TABLE);
	rc = ipt_attach(&h->table, table);
	close(table);
	if (rc)
		return errorf(error, rc, "the table of the host that died: %s", strerror(-rc));
	struct ipt_config c = *ipt_config(h->table);
	rc = adopt_domains(h, c.frames);
	if (rc)
		return errorf(error, rc, "the pool of the host that died: %s", strerror(-rc));
	atomic_fetch_add(&keeper->ledger->hosts, 1);
	h->clones = keeper->ledger->clones;
	h->templates = keeper->ledger->templates;
	h->domain_numbers = keeper->ledger->domains;
	h->sandbox.given = keeper->ledger->ids;
	return host_reclaim_open(h, &c, error);
}

unsigned host_predecessors(const struct host *h)
{
	return h->keeper ? atomic_load(&h->keeper->ledger->hosts) - 1 : 0;
}

/* ---- files --------------------------------------------------------------------------------- */

static void adopt_file(struct host *h, struct kept_record *r)
{
	struct kept_file *k = (void *)r->bytes;
	struct pmem_file *f;
	struct domain *d = r->head.bytes == sizeof *k ? host_domain_by_number(h, k->domain) : NULL;
	if (!d)
		return;
	k->path[KEPT_PATH - 1] = 0;
	f = pmem_file_adopt(&h->pmem_files, &d->pool, vmid((uint32_t)r->head.key), k->path,
			    k->bytes, r->fd[0], r->fd[1]);
	if (!f)
		return;
	f->device = (dev_t)k->device;
	f->inode = (ino_t)k->inode;
	r->fd[0] = r->fd[1] = -1;
}

static int adopt_views(struct host_vm *vm, const struct kept_vm *k, struct kept_record *r)
{
	struct host *h = vm->host;
	int rc = 0;
	for (unsigned i = 0; !rc && i < vm->config.pmems; i++) {
		struct pmem_file *f = h->pmem_files;
		while (f && f->id.v != k->pmem[i].file)
			f = f->next;
		int sets = fd_of(r, k->sets[i]);
		if (!k->pmem[i].file)
			continue; /* the host died before it was joined */
		if (!f)
			return -ENOENT;
		vm->config.pmem[i].path = name_for_good(f->path);
		if (sets >= 0)
			rc = pool_map_alone(&vm->domain->pool, NULL);
		if (!rc)
			rc = pmem_view_adopt(f, h->table, gfn(k->pmem[i].first), k->pmem[i].pages,
					     sets, &vm->pmem[i]);
		if (!rc && sets >= 0)
			r->fd[k->sets[i]] = -1;
	}
	return rc;
}

/* ---- VMs ----------------------------------------------------------------------------------- */

static int take_fd(struct kept_record *r, int8_t which)
{
	int fd = fd_of(r, which);
	if (fd >= 0)
		r->fd[which] = -1;
	return fd;
}

/* What is known of its image and disks is enough for what a host asks of a VM that runs. */
static void fill_in(struct host_vm *vm, const struct kept_vm *k)
{
	static const struct boot_image image[] = {[BOOT_BZIMAGE] = {.kind = BOOT_BZIMAGE},
						  [BOOT_PVH] = {.kind = BOOT_PVH},
						  [BOOT_BARE] = {.kind = BOOT_BARE}};
	struct vm_config *c = &vm->config;
	c->image = &image[k->kind <= BOOT_BARE ? k->kind : BOOT_BARE];
	c->machine.cmdline = "";
	for (unsigned i = 0; i < c->disks; i++) {
		c->disk[i].fd = -1;
		c->disk[i].path = name_for_good(k->disk[i]);
	}
	for (unsigned i = 0; i < c->pmems; i++) {
		c->pmem[i].fd = -1;
		c->pmem[i].path = "";
	}
}

static bool is_whole(const struct kept_record *r)
{
	const struct kept_vm *k = (const void *)r->bytes;
	return r->head.bytes == sizeof *k && k->config.disks <= VM_MAX_DISKS &&
	       k->config.pmems <= VM_MAX_PMEM && fd_of(r, k->mailbox) >= 0 &&
	       fd_of(r, r->head.link) >= 0 && (!k->born || fd_of(r, r->head.pidfd) >= 0);
}

/* One whose record makes no sense, or that there is no memory for: it must not work on, and then what it had is reaped. False
 * if it doesn't end. */
static bool end_unadopted(struct host *h, const struct kept_record *r)
{
	int process = fd_of(r, r->head.pidfd), link = fd_of(r, r->head.link);
	struct pollfd p = {.fd = process >= 0 ? process : link, .events = POLLIN | POLLRDHUP};
	if (process >= 0)
		syscall(SYS_pidfd_send_signal, process, SIGKILL, NULL, 0);
	else if (link >= 0)
		shutdown(link, SHUT_WR);
	if (p.fd >= 0 && poll(&p, 1, KEEPER_PATIENCE_MS) != 1)
		return false;
	host_keep_drop_key(h, r->head.key);
	return true;
}

/* It can't be looked after: end it, and give back what it had, though nobody was told of it. -ETIME: it doesn't end. */
static int give_up(struct host_vm *vm, int rc)
{
	struct host *h = vm->host;
	struct pollfd p = {.fd = vm->pidfd >= 0 ? vm->pidfd : vm->link_fd,
			   .events = POLLIN | POLLRDHUP};
	if (vm->phase == HOST_VM_ALIVE && !vm->is_template)
		h->alive--;
	vm->phase = HOST_VM_FORKING;
	if (vm->pidfd >= 0) {
		syscall(SYS_pidfd_send_signal, vm->pidfd, SIGKILL, NULL, 0);
		host_remove_source(h, &vm->on_exit);
	}
	if (vm->console_fd >= 0)
		host_remove_source(h, &vm->on_console);
	shutdown(vm->link_fd, SHUT_WR);
	if (poll(&p, 1, KEEPER_PATIENCE_MS) != 1)
		return -ETIME;
	host_adopt_link_ended(vm);
	return rc;
}

/* 1: it is ours; 0: it was never finished, and is about to end. -errno: it couldn't be adopted; -ETIME: and lives. */
static int adopt_vm(struct host *h, struct kept_record *r)
{
	const struct kept_vm *k = (const void *)r->bytes;
	struct host_vm *vm;
	int rc = 0;
	vm = is_whole(r) ? host_vm_bare(h, &k->config, k->is_template) : NULL;
	if (!vm)
		return end_unadopted(h, r) ? -EPROTO : -ETIME;
	fill_in(vm, k);
	vm->adopted = true;
	vm->key = r->head.key;
	vm->pid = k->pid;
	vm->number = k->number;
	vm->forked_ns = k->forked_ns;
	vm->ready_ns = k->ready_ns;
	vm->mailbox_fd = take_fd(r, k->mailbox);
	vm->link_fd = vm->on_link.fd = take_fd(r, r->head.link);
	vm->console_fd = vm->on_console.fd = take_fd(r, r->head.console);
	vm->ring_fd = take_fd(r, r->head.ring);
	vm->agent_fd = take_fd(r, k->agent);
	vm->pidfd = take_fd(r, r->head.pidfd);
	vm->mailbox = shared_attach(vm->mailbox_fd, sizeof *vm->mailbox);
	if (!vm->mailbox || madvise(vm->mailbox, sizeof *vm->mailbox, MADV_DONTFORK) < 0)
		rc = -errno;
	host_vm_find_id(vm);
	struct domain *domain = host_domain_by_number(h, k->domain);
	if (domain)
		host_domain_follow(vm, domain);
	else if (!rc)
		rc = -ENOENT;
	if (!rc)
		rc = adopt_views(vm, k, r);
	vm->phase = HOST_VM_FORKING;
	if (!rc)
		rc = host_add_source(h, &vm->on_link, EPOLLIN);
	if (!rc && k->born)
		rc = host_vm_supervise(vm);
	if (rc)
		return give_up(vm, rc);
	if (!k->born) { /* its link's end tells when there is no process */
		shutdown(vm->link_fd, SHUT_WR);
		return 0;
	}
	if (h->events.adopted)
		h->events.adopted(h->events.ctx, vm);
	return 1;
}

/* A half-made one has no process any more, if it ever had: give back what it had. */
void host_adopt_link_ended(struct host_vm *vm)
{
	host_vm_find_id(vm);
	host_vm_unmake(vm);
}

void host_adopt_answer(struct host_vm *vm, const struct link_answer *a)
{
	/* It was frozen after all, for a template that nobody keeps. What is true of that says the table. */
	if (!vm->is_template && a->template_id)
		host_vm_find_id(vm);
}

/* ---- what is in the table and nobody's ------------------------------------------------------ */

static bool is_somebodys(const struct host *h, const char *name)
{
	for (unsigned i = 0; i < h->vms; i++)
		if (!strcmp(h->vm[i]->config.machine.name, name))
			return true;
	return false;
}

static void reap_leftover(struct host *h, const struct ipt_vm_info *info)
{
	struct vm_config config = {.disks = 0};
	snprintf(config.machine.name, sizeof config.machine.name, "%s", info->name);
	struct host_vm *vm = host_vm_bare(h, &config, info->kind == IPT_TEMPLATE);
	if (!vm)
		return;
	vm->adopted = true;
	vm->id = info->id;
	vm->phase = HOST_VM_REAPING;
	int rc = host_end_reap(vm);
	if (rc && rc != -EBUSY)
		host_want_tick(h);
}

/* Guests first, then templates, whose frames may be theirs now, then files that nobody uses any more. */
static void reap_leftovers(struct host *h)
{
	struct ipt_vm_info info;
	for (int kind = IPT_VM; kind <= IPT_FILE; kind++)
		for (vmid_t id = ipt_vm_next(h->table, INVALID_VMID), next; id.v; id = next) {
			next = ipt_vm_next(h->table, id);
			if (ipt_vm_info(h->table, id, &info) || info.kind != (unsigned)kind)
				continue;
			if (kind != IPT_FILE && !is_somebodys(h, info.name)) {
				reap_leftover(h, &info);
			} else if (kind == IPT_FILE && !host_file_by_id(h, id)) {
				ipt_vm_reap(h->table, id, host_domain_clean_all, h);
			}
		}
}

/* Files of which the last user died with the host. */
static void leave_files(struct host *h)
{
	for (struct pmem_file *f = h->pmem_files, *next; f; f = next) {
		next = f->next;
		vmid_t id = f->id;
		if (f->users)
			continue;
		pmem_file_leave(&h->pmem_files, f, h->table);
		host_keep_drop_file(h, id);
	}
}

unsigned host_adopt(struct host *h)
{
	struct host_keeper *k = h->keeper;
	unsigned n = 0;
	bool may_reap = true;
	if (!h->unadopted)
		return 0;
	h->unadopted = false;
	for (unsigned i = 0; i < k->records; i++)
		if (k->record[i].head.kind == KEEPER_FILE)
			adopt_file(h, &k->record[i]);
	for (unsigned i = 0; i < k->records; i++) {
		struct kept_record *r = &k->record[i];
		int rc = r->head.kind == KEEPER_VM ? adopt_vm(h, r) : 0;
		n += rc == 1;
		may_reap = may_reap && rc != -ETIME;
		if (rc < 0 && h->events.said) {
			char words[ERROR_MAX];
			errorf(words, rc, "a VM of the host that died can't be adopted: %s",
			       strerror(-rc));
			h->events.said(h->events.ctx, words);
		}
	}
	host_keep_forget(k);
	ipt_mend(h->table);
	if (may_reap)
		reap_leftovers(h);
	leave_files(h);
	host_domain_let_go_unused(h);
	host_want_tick(h); /* somebody may have waited for frames all the while */
	return n;
}
