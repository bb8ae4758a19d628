#include "vmm/requests.h"
#include "vmm/answer.h"
#include "vmm/balloon.h"
#include "vmm/clone_requests.h"
#include "vmm/exec.h"
#include "vmm/fail_requests.h"
#include "vmm/fleet.h"
#include "vmm/inject_requests.h"
#include "vmm/reclaim_requests.h"
#include "vmm/scenario_requests.h"
#include "vmm/stats.h"
#include <stdio.h>
#include <string.h>

static const char *vm_name(struct ipt *t, vmid_t id, struct ipt_vm_info *info)
{
	return ipt_vm_info(t, id, info) ? "(unknown)" : info->name;
}

/* Who sees a frame, as far as an answer has room for. */
#define VIEWERS_MOST 4096

struct viewers {
	struct ipt *table;
	json_t *list;
};

static bool add_viewer(void *ctx, vmid_t vm, gfn_t g, enum ipt_place_kind how)
{
	static const char *const words[] = {[IPT_OWN] = "own",
					    [IPT_INHERITED] = "inherited",
					    [IPT_MERGED] = "merged",
					    [IPT_FILE_PAGE] = "file"};
	struct viewers *v = ctx;
	struct ipt_vm_info info;
	const char *name = vm_name(v->table, vm, &info);
	bool known = (size_t)how < sizeof words / sizeof *words && words[how];
	json_array_append_new(v->list, json_pack("{s:s, s:s, s:I, s:I}", "vm", name, "how",
						 known ? words[how] : "shared", "gfn",
						 (json_int_t)g.v, "gpa", (json_int_t)gfn_gpa(g).v));
	return json_array_size(v->list) < VIEWERS_MOST;
}

static void take_owner(struct control_request *r, const json_t *o)
{
	static const char *const states[IPT_NSTATES] = {
		[IPT_FREE] = "free",
		[IPT_LIMBO] = "limbo",
		[IPT_SHARED] = "shared",
		[IPT_PRIVATE] = "private",
	};
	struct ipt *t = host_table(control_host(r));
	const json_t *f = json_object_get(o, "frame");
	json_int_t n = json_integer_value(f);
	struct ipt_owner owner;
	struct ipt_vm_info info;
	if (!json_is_integer(f)) {
		control_refuse(r, "owner: needs \"frame\", a number");
		return;
	}
	if (n < 0 || n >= ipt_config(t)->frames || ipt_owner(t, frame((uint32_t)n), &owner)) {
		control_refuse(r, "owner: frame %lld is outside the pool's %u frames", (long long)n,
			       ipt_config(t)->frames);
		return;
	}
	enum ipt_health health = ipt_health(t, frame((uint32_t)n));
	bool retired = health != IPT_GOOD && owner.state == IPT_LIMBO && !owner.vm.v;
	json_t *a = json_pack("{s:I, s:s, s:i}", "frame", n, "state",
			      retired ? "retired" : states[owner.state], "pins", (int)owner.pins);
	if (health != IPT_GOOD)
		json_object_set_new(a, "damaged", json_true());
	if (owner.vm.v) {
		answer_put_text(a, "vm", vm_name(t, owner.vm, &info));
		answer_put(a, "vm_id", owner.vm.v);
	}
	const struct pmem_file *file = host_file_by_id(control_host(r), owner.vm);
	if (file)
		answer_put_text(a, "file", file->path);
	if (owner.state == IPT_PRIVATE) {
		answer_put(a, "gfn", owner.gfn.v);
		answer_put(a, "gpa", gfn_gpa(owner.gfn).v);
	}
	struct viewers v = {t, json_array()};
	ipt_viewers(t, frame((uint32_t)n), add_viewer, &v);
	json_object_set_new(a, "viewers", v.list);
	control_reply(r, a);
}

/* Where the bytes of a page are that is out of memory; `at` has it, or (INVALID_VMID) several share it. */
static void say_away(json_t *answer, struct ipt *t, vmid_t vm, const struct ipt_out *out, vmid_t at)
{
	struct ipt_vm_info info;
	bool file = out->bytes && out->where & IPT_IN_FILE;
	answer_put_text(answer, "where",
			!out->bytes ? "zero"
			: file      ? "in the swap file"
				    : "packed");
	answer_put(answer, "bytes", out->bytes);
	if (file)
		answer_put(answer, "block", out->where & ~IPT_IN_FILE);
	else if (out->bytes)
		answer_put(answer, "granule", out->where);
	if (!at.v)
		answer_put_text(answer, "from", "merged");
	else if (at.v != vm.v)
		answer_put_text(answer, "from", vm_name(t, at, &info));
}

static void take_translate(struct control_request *r, const json_t *o)
{
	struct host *h = control_host(r);
	struct ipt *t = host_table(h);
	const char *name = json_string_value(json_object_get(o, "vm"));
	const json_t *at = json_object_get(o, "gpa");
	vmid_t id;
	if (!name || !json_is_integer(at) || json_integer_value(at) < 0) {
		control_refuse(r, "translate: needs \"vm\", a name, and \"gpa\", a number");
		return;
	}
	if (ipt_vm_find(t, name, &id)) {
		control_refuse(r, "translate: no running VM is called %s", name);
		return;
	}
	struct host_vm *vm = host_vm_by_name(h, name);
	gpa_t a = gpa((uint64_t)json_integer_value(at));
	if (!vm || !machine_bank_of(&vm->config.machine, a, 1)) {
		control_refuse(r, "translate: the guest has no memory at that address");
		return;
	}
	struct ipt_place p;
	struct ipt_out out = {.where = 0};
	vmid_t out_at = INVALID_VMID;
	int tries = 8; /* it may come back into memory while we look */
	do
		ipt_place(t, id, gpa_gfn(a), 1, &p);
	while (p.kind == IPT_AWAY && ipt_out_read(t, id, gpa_gfn(a), &out, &out_at) && --tries);
	frame_t f = p.frame;
	json_t *answer = json_pack("{s:s, s:I, s:I, s:s}", "vm", name, "gpa", (json_int_t)a.v,
				   "gfn", (json_int_t)gpa_gfn(a).v, "state",
				   p.kind == IPT_VOID   ? "void"
				   : p.kind == IPT_OWN  ? "private"
				   : p.kind == IPT_AWAY ? "away"
							: "shared");
	if (p.kind == IPT_AWAY && tries)
		say_away(answer, t, id, &out, out_at);
	struct ipt_owner owner;
	if (p.kind == IPT_FILE_PAGE && ipt_owner(t, f, &owner) == 0) {
		const struct pmem_file *file = host_file_by_id(h, owner.vm);
		answer_put_text(answer, "file", file ? file->path : "");
	}
	if (p.kind == IPT_INHERITED) {
		struct ipt_vm_info info;
		answer_put_text(answer, "from", vm_name(t, p.at, &info));
	}
	if (frame_valid(f)) {
		answer_put(answer, "frame", f.v);
		json_object_set_new(answer, "pool_offset",
				    json_integer((json_int_t)(((uint64_t)f.v << PAGE_SHIFT) |
							      (a.v & PAGE_MASK))));
	}
	control_reply(r, answer);
}

static void audit_say(void *ctx, const char *line)
{
	json_t *lines = ctx;
	if (json_array_size(lines) < 20)
		json_array_append_new(lines, json_string(line));
}

static void take_audit(struct control_request *r, const json_t *o)
{
	(void)o;
	json_t *lines = json_array();
	int n = ipt_audit_live(host_table(control_host(r)), audit_say, lines);
	control_reply(r, json_pack("{s:i, s:o}", "violations", n, "lines", lines));
}

static void take_stats(struct control_request *r, const json_t *o)
{
	bool processes = !json_is_false(json_object_get(o, "processes"));
	control_reply(r, stats_take(control_host(r), processes));
}

static void take_renew(struct control_request *r, const json_t *o)
{
	struct host *h = control_host(r);
	const char *name = json_string_value(json_object_get(o, "vm"));
	struct host_vm *vm = name ? host_vm_by_name(h, name) : NULL;
	if (!vm) {
		control_refuse(r, "renew: needs \"vm\", the name of a running VM");
		return;
	}
	host_order(vm, ORDER_RENEW);
	control_reply(r, json_pack("{s:s}", "vm", name));
}

/* ---- the table ----------------------------------------------------------------------------- */

static const struct request_kind kinds[] = {
	{"owner", take_owner},         {"translate", take_translate}, {"stats", take_stats},
	{"audit", take_audit},         {"run", requests_run},         {"kill", requests_kill},
	{"console", requests_console}, {"status", requests_status},   {"stop", requests_stop},
	{"pause", take_pause},         {"resume", take_resume},       {"clone", take_clone},
	{"exec", exec_take},           {"renew", take_renew},         {"balloon", take_balloon},
	{"reclaim", take_reclaim},     {"limit", take_limit},         {"fail", take_fail},
	{"inject", take_inject},       {"scenario", take_scenario},
};

void requests_handle(struct control_request *r, const json_t *object)
{
	const struct fleet *f = control_ctx(r);
	const char *what = json_string_value(json_object_get(object, "do"));
	char names[512] = "";
	size_t n = 0;
	/* Here nobody goes through the VMs. A host that ends with its guests tells of them all at last. */
	if (!f->config.setup)
		host_forget_gone(f->host);
	for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
		if (what && !strcmp(what, kinds[i].name)) {
			kinds[i].handler(r, object);
			return;
		}
		if (n < sizeof names)
			n += (size_t)snprintf(names + n, sizeof names - n, "%s%s", i ? ", " : "",
					      kinds[i].name);
	}
	control_refuse(r, "a request is an object with \"do\", one of: %s", names);
}
