/* Requests about guests as a whole: starting and ending them, their consoles, and the host itself. */
#include "vmm/clock.h"
#include "vmm/fleet.h"
#include "vmm/requests.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *text(const json_t *o, const char *key)
{
	return json_string_value(json_object_get(o, key));
}

/* "how", from the gentlest to the hardest; `otherwise` without one. False for anything else. */
static bool parse_how(const json_t *o, enum fleet_stop otherwise, enum fleet_stop *how)
{
	static const char *const names[] = {
		[FLEET_BUTTON] = "button", [FLEET_OFF] = "off", [FLEET_KILLED] = "kill"};
	const json_t *value = json_object_get(o, "how");
	*how = otherwise;
	if (!value)
		return true;
	for (unsigned i = FLEET_BUTTON; i <= FLEET_KILLED; i++)
		if (json_is_string(value) && !strcmp(json_string_value(value), names[i])) {
			*how = i;
			return true;
		}
	return false;
}

void requests_run(struct control_request *r, const json_t *o)
{
	struct fleet *f = control_ctx(r);
	const char *wait = text(o, "wait");
	char error[ERROR_MAX] = "";
	struct batch *b;
	if (f->config.setup) {
		control_refuse(r, "this host is an invisor run's own, and starts no others; there "
				  "is invisor host start");
		return;
	}
	if (wait && strcmp(wait, "up") && strcmp(wait, "ready")) {
		control_refuse(r, "run: \"wait\" is up or ready");
		return;
	}
	if (batch_parse(&b, json_object_get(o, "options"), &f->config.host, error)) {
		control_refuse(r, "%s", error);
		return;
	}
	unsigned room = f->config.host.max_vms - host_alive(f->host);
	if (b->setup->options.count > room)
		control_refuse(r, "-n: the host has room for %u more guests; see --max-vms", room);
	else if (fleet_start(f, b, error))
		control_refuse(r, "%s", error);
	else
		batch_answer(b, r, wait && !strcmp(wait, "ready") ? BATCH_READY : BATCH_UP);
	batch_drop(b);
}

/* ---- ending -------------------------------------------------------------------------------- */

void requests_stop(struct control_request *r, const json_t *o)
{
	struct fleet *f = control_ctx(r);
	enum fleet_stop how;
	unsigned n;
	if (!parse_how(o, FLEET_BUTTON, &how)) {
		control_refuse(r, "stop: \"how\" is button, off or kill");
		return;
	}
	struct guest **all = fleet_guests(f, &n);
	fleet_say("asked to stop (%u running)", n);
	fleet_answer_when_gone(f, r, json_pack("{s:i, s:i}", "pid", (int)getpid(), "vms", (int)n),
			       all, n);
	free(all);
	fleet_stop(f, how, f->config.setup ? EXIT_INTERRUPTED : EXIT_CLEAN);
}

/* The guests that "vms" names, each once: NULL if it was refused. */
static struct guest **named_guests(struct control_request *r, const json_t *names, unsigned *n)
{
	struct fleet *f = control_ctx(r);
	struct guest **guests = calloc(json_array_size(names), sizeof *guests);
	size_t i;
	json_t *value;
	*n = 0;
	json_array_foreach(names, i, value)
	{
		const char *name = json_string_value(value);
		struct guest *g = name ? fleet_find(f, name) : NULL;
		unsigned j = 0;
		if (!g || !guests) {
			control_refuse(r, "kill: no running VM is called %s",
				       name ? name : "(not a string)");
			free(guests);
			return NULL;
		}
		while (j < *n && guests[j] != g)
			j++;
		if (j == *n)
			guests[(*n)++] = g;
	}
	return guests;
}

void requests_kill(struct control_request *r, const json_t *o)
{
	struct fleet *f = control_ctx(r);
	const json_t *names = json_object_get(o, "vms");
	bool all = json_is_true(json_object_get(o, "all"));
	enum fleet_stop how;
	unsigned n;
	if (!parse_how(o, FLEET_KILLED, &how)) {
		control_refuse(r, "kill: \"how\" is button, off or kill");
		return;
	}
	if (all == (json_array_size(names) > 0)) {
		control_refuse(r, "kill: needs either \"vms\", an array of names, or \"all\":true");
		return;
	}
	struct guest **guests = all ? fleet_guests(f, &n) : named_guests(r, names, &n);
	if (!guests)
		return;
	json_t *killed = json_array();
	for (unsigned i = 0; i < n; i++)
		json_array_append_new(killed, json_string(guests[i]->line.name));
	fleet_answer_when_gone(f, r, json_pack("{s:o}", "vms", killed), guests, n);
	for (unsigned i = 0; i < n; i++)
		fleet_stop_guest(guests[i], how);
	free(guests);
}

/* ---- looking ------------------------------------------------------------------------------- */

void requests_console(struct control_request *r, const json_t *o)
{
	const char *name = text(o, "vm");
	struct guest *g = name ? fleet_find(control_ctx(r), name) : NULL;
	if (!name)
		control_refuse(r, "console: needs \"vm\", a name");
	else if (!g)
		control_refuse(r, "console: no running VM is called %s", name);
	else
		guest_console(g, r, !json_is_false(json_object_get(o, "follow")));
}

void requests_status(struct control_request *r, const json_t *o)
{
	struct fleet *f = control_ctx(r);
	const struct host_config *c = &f->config.host;
	(void)o;
	control_reply(r,
		      json_pack("{s:s, s:i, s:s, s:f, s:i, s:i, s:i, s:i, s:I, s:s, s:i, s:i}",
				"kind", f->config.setup ? "run" : "host", "pid", (int)getpid(),
				"state", f->stop == FLEET_RUNS ? "running" : "stopping",
				"uptime_seconds", (double)(clock_ns() - f->began_ns) / 1e9, "vms",
				(int)host_alive(f->host), "max_vms", (int)c->max_vms,
				"frames_total", (int)host_frames(f->host), "frames_free",
				(int)ipt_free_frames(host_table(f->host)), "pool_bytes",
				(json_int_t)c->pool_bytes, "table",
				c->kind == IPT_RADIX ? "radix" : "ipt", "adopted", (int)f->adopted,
				"hosts_before", (int)host_predecessors(f->host)));
}
