#include "vmm/reclaim_requests.h"
#include "vmm/options.h"
#include <errno.h>
#include <stdlib.h>

#define REFUSE_OFF                                                                           \
	"this host keeps all memory where it is; give it somewhere to put pages when it is " \
	"started: --pack or --swap"

static bool is_on(struct control_request *r, const char *what)
{
	struct host_reclaim info;
	host_reclaim_info(control_host(r), &info);
	if (!info.on)
		control_refuse(r, "%s: " REFUSE_OFF, what);
	else if (!info.running)
		control_refuse(r, "%s: the host's reclaimer has failed", what);
	return info.on && info.running;
}

static struct host_vm *named_guest(struct control_request *r, const json_t *o, const char *what)
{
	const char *name = json_string_value(json_object_get(o, "vm"));
	struct host_vm *vm = name ? host_vm_by_name(control_host(r), name) : NULL;
	if (!name)
		control_refuse(r, "%s: needs \"vm\", a name", what);
	else if (!vm)
		control_refuse(r, "%s: no running VM is called %.80s", what, name);
	else if (vm->is_template)
		control_refuse(r, "%s: %s is a template; this is for guests", what, name);
	return vm && !vm->is_template ? vm : NULL;
}

/* ---- reclaim -------------------------------------------------------------------------------- */

struct wish {
	struct control_request *request;
	struct host *host;
	json_t *answer;
};

static void wished(void *ctx, uint32_t freed)
{
	struct wish *w = ctx;
	json_object_set_new(w->answer, "freed_bytes",
			    json_integer((json_int_t)((uint64_t)freed << PAGE_SHIFT)));
	control_reply(w->request, w->answer);
	free(w);
}

static void nobody_waits(void *ctx)
{
	struct wish *w = ctx;
	host_wish_forget(w->host);
	json_decref(w->answer);
	free(w);
}

/* Bytes that can be asked for: of the guest, or of all (NULL). 0: it was refused. */
static uint64_t wanted_bytes(struct control_request *r, const json_t *o, const struct host_vm *vm)
{
	const json_t *bytes = json_object_get(o, "bytes");
	uint64_t most = vm ? vm->config.machine.mem_bytes
			   : (uint64_t)host_frames(control_host(r)) << PAGE_SHIFT;
	uint64_t n = json_is_integer(bytes) && json_integer_value(bytes) > 0
			     ? (uint64_t)json_integer_value(bytes)
			     : 0;
	if (!n)
		control_refuse(r, "reclaim: needs \"bytes\", a number from 1 on");
	else if (n > most)
		control_refuse(r, "reclaim: %" PRIu64 " MiB, but %s has %" PRIu64 " MiB", n / MiB,
			       vm ? vm->config.machine.name : "the pool", most / MiB);
	return n <= most ? n : 0;
}

void take_reclaim(struct control_request *r, const json_t *o)
{
	struct host *h = control_host(r);
	bool all = json_is_true(json_object_get(o, "all"));
	if (!is_on(r, "reclaim"))
		return;
	struct host_vm *vm = all ? NULL : named_guest(r, o, "reclaim");
	uint64_t bytes = all || vm ? wanted_bytes(r, o, vm) : 0;
	if (!bytes)
		return;
	struct wish *w = malloc(sizeof *w);
	if (!w) {
		control_refuse(r, "reclaim: no memory");
		return;
	}
	*w = (struct wish){r, h,
			   json_pack("{s:s?, s:I}", "vm", vm ? vm->config.machine.name : NULL,
				     "bytes", (json_int_t)bytes)};
	int rc = host_wish(h, vm, (uint32_t)((bytes + PAGE_MASK) >> PAGE_SHIFT), wished, w);
	if (!rc) {
		control_on_gone(r, nobody_waits, w);
		return;
	}
	json_decref(w->answer);
	free(w);
	if (rc == -EBUSY)
		control_refuse(r,
			       "reclaim: another reclaim is under way; try again when it is done");
	else
		control_refuse(r, "reclaim: the host's reclaimer has failed");
}

/* ---- limit ---------------------------------------------------------------------------------- */

void take_limit(struct control_request *r, const json_t *o)
{
	const json_t *bytes = json_object_get(o, "bytes");
	struct host_vm *vm = is_on(r, "limit") ? named_guest(r, o, "limit") : NULL;
	if (!vm)
		return;
	uint64_t most = vm->config.machine.mem_bytes;
	uint64_t least = (uint64_t)vm->config.memory_share.min << PAGE_SHIFT;
	uint64_t n = json_is_integer(bytes) && json_integer_value(bytes) > 0
			     ? (uint64_t)json_integer_value(bytes)
			     : 0;
	if (!json_is_null(bytes) && !n) {
		control_refuse(r, "limit: needs \"bytes\", a number from 1 on, or null for none");
	} else if (n && n < OPTIONS_MEM_LIMIT_LEAST) {
		control_refuse(
			r, "limit: %" PRIu64 " KiB is too little for any guest; 1M is the least",
			n / KiB);
	} else if (n > most) {
		control_refuse(
			r, "limit: %" PRIu64 " MiB, but %s has %" PRIu64 " MiB; give less, or none",
			n / MiB, vm->config.machine.name, most / MiB);
	} else if (n && n < least) {
		control_refuse(r, "limit: %s keeps %" PRIu64 " MiB (--mem-min); give more",
			       vm->config.machine.name, least / MiB);
	} else {
		host_limit(vm, (uint32_t)(n >> PAGE_SHIFT));
		control_reply(r,
			      json_pack("{s:s, s:o}", "vm", vm->config.machine.name, "limit_bytes",
					n ? json_integer((json_int_t)n) : json_null()));
	}
}
