/* A fleet's guests: how they come in, and who is there. */
#include "vmm/fleet.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

struct guest *fleet_find(struct fleet *f, const char *name)
{
	vmid_t id;
	struct host_vm *vm =
		ipt_vm_find(host_table(f->host), name, &id) ? NULL : host_vm_by_id(f->host, id);
	return vm ? vm->user : NULL;
}

struct guest **fleet_guests(struct fleet *f, unsigned *n)
{
	struct guest **all = calloc(host_alive(f->host) + 1, sizeof *all);
	struct host_vm *vm;
	*n = 0;
	for (unsigned i = 0; all && (vm = host_vm_at(f->host, i)); i++)
		if (vm->phase == HOST_VM_ALIVE && vm->user && !vm->is_template)
			all[(*n)++] = vm->user;
	return all;
}

/* The name of the i-th guest of a batch: as asked for, or the next that nobody has. */
static int name_guest(struct fleet *f, const struct batch *b, unsigned i, char *name, size_t size,
		      char *error)
{
	const struct run_options *o = &b->setup->options;
	vmid_t id;
	if (b->nameless)
		do
			snprintf(name, size, "%s-%u", o->name, ++f->named);
		while (ipt_vm_find(host_table(f->host), name, &id) == 0);
	else if (b->count == 1)
		snprintf(name, size, "%s", o->name);
	else if ((size_t)snprintf(name, size, "%.26s-%u", o->name, i + 1) >= size)
		return errorf(error, -ENAMETOOLONG, "--name: too long");
	return 0;
}

int fleet_adopt(struct fleet *f, struct host_vm *vm, struct batch *b)
{
	struct guest *g = guest_create(f, vm, b);
	if (!g)
		return -ENOMEM;
	struct screen_line *l = &g->line;
	snprintf(l->name, sizeof l->name, "%.31s", vm->config.machine.name);
	l->how = f->config.quiet || !f->config.setup ? SCREEN_HIDDEN
		 : b->count > 1                      ? SCREEN_LINES
						     : SCREEN_PLAIN;
	l->ready_word = f->config.ready;
	g->keep = f->config.keep;
	f->count++;
	return 0;
}

static int start_one(struct fleet *f, struct batch *b, unsigned i, char *error)
{
	struct vm_config c = b->setup->config;
	struct host_vm *vm;
	int rc = name_guest(f, b, i, c.machine.name, sizeof c.machine.name, error);
	if (!rc)
		rc = host_start_vm(f->host, &c, &vm, error);
	if (rc)
		return rc;
	rc = fleet_adopt(f, vm, b);
	if (rc) {
		host_kill(vm);
		return errorf(error, rc, "%s: no memory", c.machine.name);
	}
	json_array_append_new(b->answer, json_pack("{s:s, s:I, s:i}", "name", c.machine.name, "id",
						   (json_int_t)vm->id.v, "pid", (int)vm->pid));
	return 0;
}

int fleet_start(struct fleet *f, struct batch *b, char *error)
{
	int rc = 0;
	unsigned first = 0;
	b->count = b->setup->options.count;
	b->answer = json_array();
	while (host_vm_at(f->host, first))
		first++;
	if (f->stop != FLEET_RUNS)
		return errorf(error, -ESHUTDOWN, "the host is being stopped");
	for (unsigned i = 0; !rc && i < b->count; i++)
		rc = start_one(f, b, i, error);
	if (!rc)
		return 0;
	struct host_vm *vm;
	for (unsigned i = first; (vm = host_vm_at(f->host, i)); i++)
		host_kill(vm);
	return rc;
}
