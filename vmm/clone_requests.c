#include "vmm/clone_requests.h"
#include "vmm/error.h"
#include "vmm/fleet.h"
#include "vmm/options.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static struct host_vm *named(struct control_request *r, const json_t *o, const char *what)
{
	const char *name = json_string_value(json_object_get(o, "vm"));
	struct host_vm *vm = name ? host_vm_by_name(control_host(r), name) : NULL;
	if (!name)
		control_refuse(r, "%s: needs \"vm\", a name", what);
	else if (!vm)
		control_refuse(r, "%s: no running VM is called %.80s", what, name);
	return vm;
}

/* ---- pause and resume ---------------------------------------------------------------------- */

static void told(void *ctx, struct host_vm *vm, int rc)
{
	struct control_request *r = ctx;
	const char *name = vm->config.machine.name;
	if (rc == -EBUSY)
		control_refuse(r, "%s doesn't stand still: a vCPU waits for memory", name);
	else if (rc == -EINTR)
		control_refuse(r, "%s was told otherwise meanwhile", name);
	else if (rc)
		control_refuse(r, "%s ended", name);
	else
		control_reply(r, json_pack("{s:s, s:s}", "vm", name, "state",
					   vm_state_name(vm->mailbox->state)));
}

static void client_gone(void *ctx)
{
	host_pause_forget(ctx);
}

static void pause_or_resume(struct control_request *r, const json_t *o, bool pause)
{
	struct host_vm *vm = named(r, o, pause ? "pause" : "resume");
	if (!vm)
		return;
	uint32_t state = vm->mailbox->state;
	if (vm->is_template) {
		control_refuse(r, "%s is a template, which doesn't run", vm->config.machine.name);
	} else if (state != VM_RUNNING && state != VM_PAUSED) {
		control_refuse(r, "%s is %s", vm->config.machine.name, vm_state_name(state));
	} else {
		control_on_gone(r, client_gone, vm);
		host_pause(vm, pause, told, r);
		if ((state == VM_PAUSED) == pause) /* it is so already, and there will be no news */
			told(r, vm, (host_pause_forget(vm), 0));
	}
}

void take_pause(struct control_request *r, const json_t *o)
{
	pause_or_resume(r, o, true);
}

void take_resume(struct control_request *r, const json_t *o)
{
	pause_or_resume(r, o, false);
}

/* ---- clone --------------------------------------------------------------------------------- */

struct wait {
	struct control_request *request;
	struct host *host;
};

static void done(void *ctx, struct host_vm **clones, unsigned n)
{
	struct wait *w = ctx;
	json_t *list = json_array();
	for (unsigned i = 0; i < n; i++) {
		const struct host_vm *c = clones[i];
		if (!c) /* it has ended already */
			continue;
		uint64_t ran = c->mailbox ? c->mailbox->run_started_ns : 0;
		json_array_append_new(
			list, json_pack("{s:s, s:I, s:I, s:I, s:f}", "name", c->config.machine.name,
					"id", (json_int_t)c->id.v, "pid", (json_int_t)c->pid,
					"number", (json_int_t)c->number, "milliseconds",
					ran > c->asked_ns ? (double)(ran - c->asked_ns) / 1e6 : 0));
	}
	control_reply(w->request, json_pack("{s:o}", "clones", list));
	free(w);
}

static void failed(void *ctx, const char *words)
{
	struct wait *w = ctx;
	control_refuse(w->request, "%s", words);
	free(w);
}

static void nobody_waits(void *ctx)
{
	struct wait *w = ctx;
	host_clone_forget(w->host, w);
	free(w);
}

void take_clone(struct control_request *r, const json_t *o)
{
	const json_t *count = json_object_get(o, "count"), *name = json_object_get(o, "name");
	const json_t *predict = json_object_get(o, "predict");
	json_int_t n = count ? json_integer_value(count) : 1;
	if ((count && !json_is_integer(count)) || n < 1 || n > INT32_MAX) {
		control_refuse(r, "clone: \"count\" is a number from 1 on");
		return;
	}
	if (name && (!json_is_string(name) || !options_name_is_good(json_string_value(name)))) {
		control_refuse(
			r,
			"clone: \"name\" has 1 to 26 letters, digits, '-', '_' or '.', and isn't "
			"'all'");
		return;
	}
	if (((struct fleet *)control_ctx(r))->stop != FLEET_RUNS) {
		control_refuse(r, "clone: the host is being stopped");
		return;
	}
	struct host_vm *vm = named(r, o, "clone");
	struct wait *w = vm ? malloc(sizeof *w) : NULL;
	if (!vm)
		return;
	if (!w) {
		control_refuse(r, "clone: no memory");
		return;
	}
	*w = (struct wait){r, control_host(r)};
	const struct host_clone_request request = {
		.count = (unsigned)n,
		.name = json_string_value(name),
		.predict = !predict || json_is_true(predict),
		.done = done,
		.failed = failed,
		.ctx = w,
	};
	char error[ERROR_MAX];
	control_on_gone(r, nobody_waits, w);
	if (host_clone(vm, &request, error))
		failed(w, error);
}
