#include "vmm/inject_requests.h"
#include "vmm/answer.h"
#include "vmm/error.h"
#include "vmm/inject_parse.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct injecting {
	struct control_request *request; /* NULL: nobody waits */
	struct host *host;
	json_t *answer;
};

static void put_loss(json_t *o, const struct inject_loss *l)
{
	answer_put(o, "unflushed_writes", l->writes);
	answer_put(o, "unflushed_bytes", l->bytes);
	answer_put(o, "lost_writes", l->lost_writes);
	answer_put(o, "lost_bytes", l->lost_bytes);
}

void inject_put_result(json_t *o, struct host *h, const struct inject_result *r)
{
	answer_put_text(o, "outcome", inject_outcome_name(r->outcome));
	answer_put_text(o, "words", r->words);
	if (r->id)
		answer_put(o, "id", r->id);
	if (r->loss.disks)
		put_loss(o, &r->loss);
	if (r->frame == UINT32_MAX)
		return;
	json_t *seen = json_array();
	for (uint32_t i = 0; i < r->viewers && i < INJECT_VIEWERS; i++) {
		struct ipt_vm_info info;
		if (ipt_vm_info(host_table(h), r->viewer[i], &info) == 0)
			json_array_append_new(seen, json_string(info.name));
	}
	answer_put(o, "frame", r->frame);
	answer_put(o, "viewers", r->viewers);
	json_object_set_new(o, "seen_by", seen);
}

static void injected(void *ctx, const struct inject_result *result)
{
	struct injecting *i = ctx;
	if (!i->request) {
		json_decref(i->answer);
	} else if (result->outcome == INJECT_REFUSED) {
		control_refuse(i->request, "inject: %s", result->words);
		json_decref(i->answer);
	} else {
		inject_put_result(i->answer, i->host, result);
		control_reply(i->request, i->answer);
	}
	free(i);
}

static void nobody_waits(void *ctx)
{
	struct injecting *i = ctx;
	host_inject_forget(i->host, i);
	json_decref(i->answer);
	free(i);
}

static void list(struct control_request *r, const struct host_vm *vm)
{
	const struct inject_box *b = &vm->mailbox->inject;
	json_t *faults = json_array();
	for (unsigned i = 0; i < INJECT_SLOTS; i++) {
		const struct inject_slot *s = &b->slot[i];
		uint32_t id = atomic_load_explicit(&s->id, memory_order_acquire);
		struct inject f = s->fault;
		if (!id || (f.kind != INJECT_DISK && f.kind != INJECT_IRQ))
			continue;
		f.name[sizeof f.name - 1] = 0;
		json_t *o = inject_json(&f);
		answer_put(o, "id", id);
		answer_put(o, "seen", s->seen);
		answer_put(o, "hits", s->hits);
		json_array_append_new(faults, o);
	}
	control_reply(r, json_pack("{s:s, s:o, s:I, s:I}", "vm", vm->config.machine.name, "faults",
				   faults, "machine_checks", (json_int_t)b->machine_checks,
				   "bad_frames", (json_int_t)ipt_bad_frames(host_table(vm->host))));
}

static void go(struct control_request *r, struct host_vm *vm, const struct inject *f)
{
	struct host *h = control_host(r);
	struct injecting *i = malloc(sizeof *i);
	json_t *answer = json_object();
	if (!i) {
		json_decref(answer);
		control_refuse(r, "inject: no memory");
		return;
	}
	*i = (struct injecting){r, h, answer};
	if (vm)
		answer_put_text(answer, "vm", vm->config.machine.name);
	if (f->kind != INJECT_CLEAR) /* not beside the rest: it may have an "error" */
		json_object_set_new(answer, "what", inject_json(f));
	/* Before it may be answered, and gone. */
	control_on_gone(r, nobody_waits, i);
	int rc = host_inject(h, vm, f, injected, i);
	if (!rc)
		return;
	json_decref(answer);
	free(i);
	control_refuse(r, "inject: %s",
		       rc == -EBUSY ? "another fault is on its way to that VM; try again"
				    : strerror(-rc));
}

void take_inject(struct control_request *r, const json_t *o)
{
	static const char *const others[] = {"do", "vm", NULL};
	const char *name = json_string_value(json_object_get(o, "vm"));
	const char *fault = json_string_value(json_object_get(o, "fault"));
	struct host_vm *vm = name ? host_vm_by_name(control_host(r), name) : NULL;
	struct inject f = {.kind = INJECT_CLEAR};
	char error[ERROR_MAX];
	bool by_frame = !name && json_object_get(o, "frame");
	if (!name && !by_frame)
		control_refuse(r, "inject: needs \"vm\", a name (or, for memory, \"frame\")");
	else if (!vm && !by_frame)
		control_refuse(r, "inject: no running VM is called %.80s", name);
	else if (vm && vm->is_template)
		control_refuse(r,
			       "inject: %s is a template, which doesn't run; its frames can be "
			       "damaged by their numbers",
			       name);
	else if (vm && fault && !strcmp(fault, "list"))
		list(r, vm);
	else if (vm && fault && !strcmp(fault, "clear"))
		go(r, vm, &f);
	else if (inject_parse(o, others, vm ? &vm->config : NULL, &f, error))
		control_refuse(r, "inject: %s", error);
	else if (inject_has_page(f.kind) && f.bytes)
		control_refuse(r, "inject: gpa: random is for scenarios");
	else
		go(r, vm, &f);
}
