#include "vmm/scenario_run.h"
#include "vmm/answer.h"
#include "vmm/clock.h"
#include "vmm/container.h"
#include "vmm/event.h"
#include "vmm/host_inject.h"
#include "vmm/inject_parse.h"
#include "vmm/inject_requests.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define WAIT_MS   10 /* between looks whether all guests are ready */
#define BUSY_MS   2  /* until the next try, while another fault is on its way to the VM */
#define BUSY_MOST 1500

/* What became of an event. */
struct done {
	struct scenario_run *run;
	bool asked, answered;
	unsigned busy;
	json_int_t actual_ms;
	uint64_t
		forked_ns; /* the VM's, which tells it from others that had its name; its id changes when it is frozen */
	struct inject_result result;
	uint64_t seen, hits;
};

/* A guest that was there at the beginning, and how it ended. */
struct watched {
	char name[IPT_NAME_LEN];
	json_t *end; /* NULL: it runs */
};

struct scenario_run {
	struct fleet *fleet;
	struct scenario *scenario;
	char *name;
	struct host_source timer;
	uint64_t zero_ns; /* CLOCK_MONOTONIC; 0: not yet */
	uint32_t next;    /* event */
	struct done *did; /* of each event */
	struct watched *guest;
	unsigned guests;
	bool over;
	void (*done)(void *ctx);
	void *ctx;
};

static void arm(struct scenario_run *r, uint64_t at_ns)
{
	struct itimerspec t = {
		.it_value = {(time_t)(at_ns / 1000000000), (long)(at_ns % 1000000000)}};
	timerfd_settime(r->timer.fd, TFD_TIMER_ABSTIME, &t, NULL);
}

static double now_ms(const struct scenario_run *r)
{
	return (double)(clock_ns() - r->zero_ns) / 1e6;
}

/* ---- what came of it ----------------------------------------------------------------------- */

/* How often what is armed has happened by now. Places are used again, so this is looked at often. `gone` is a VM that has
 * just ended, or NULL. */
static void refresh(struct scenario_run *r, const struct host_vm *gone)
{
	for (uint32_t i = 0; i < r->next; i++) {
		struct done *d = &r->did[i];
		const char *name = r->scenario->step[r->scenario->event[i].step].vm;
		const struct host_vm *vm = !d->result.id ? NULL
					   : gone && !strcmp(gone->config.machine.name, name)
						   ? gone
						   : host_vm_by_name(r->fleet->host, name);
		if (!vm || vm->forked_ns != d->forked_ns)
			continue;
		for (unsigned k = 0; k < INJECT_SLOTS; k++) {
			const struct inject_slot *s = &vm->mailbox->inject.slot[k];
			if (s->id == d->result.id) {
				d->seen = s->seen;
				d->hits = s->hits;
			}
		}
	}
}

/* The first line of the guest's console, as far as that is kept, in which a kernel says that it panics. */
static json_t *panic_line(const struct guest *g)
{
	static const char word[] = "Kernel panic";
	char line[200];
	size_t n = 0, got;
	const char *bytes;
	for (uint64_t at = ring_first(&g->ring); (got = ring_piece(&g->ring, at, &bytes));
	     at += got)
		for (size_t i = 0; i < got; i++) {
			if (bytes[i] != '\n' && bytes[i] != '\r') {
				if (n < sizeof line - 1)
					line[n++] = bytes[i];
				continue;
			}
			line[n] = 0;
			n = 0;
			const char *found = strstr(line, word);
			json_t *s = found ? json_string(found) : NULL;
			if (s)
				return s;
		}
	return json_null();
}

static json_t *describe(struct host_vm *vm, bool ended)
{
	const struct mailbox *mb = vm->mailbox;
	const struct guest *g = vm->user;
	json_t *o = json_pack("{s:s, s:s}", "vm", vm->config.machine.name, "state",
			      ended ? "ended" : vm_state_name(mb->state));
	if (ended) {
		answer_put_text(o, "end", vm_end_name(vm->end));
		answer_put_text(o, "words", mb->words);
	}
	answer_put(o, "machine_checks", mb->inject.machine_checks);
	if (g) {
		answer_put_text(o, "last_line", g->line.last);
		json_object_set_new(o, "panic", panic_line(g));
	}
	return o;
}

void scenario_run_ended(struct fleet *f, struct host_vm *vm)
{
	struct scenario_run *r = f->scenario;
	if (!r)
		return;
	refresh(r, vm);
	for (unsigned i = 0; i < r->guests; i++)
		if (!r->guest[i].end && !strcmp(r->guest[i].name, vm->config.machine.name))
			r->guest[i].end = describe(vm, true);
}

static json_t *report_event(struct scenario_run *r, uint32_t i)
{
	const struct scenario_event *e = &r->scenario->event[i];
	const struct done *d = &r->did[i];
	json_t *o = json_pack("{s:i, s:i, s:I, s:s}", "step", (int)e->step, "occurrence",
			      (int)e->occurrence, "planned_ms", (json_int_t)e->at_ms, "vm",
			      r->scenario->step[e->step].vm);
	json_object_set_new(o, "actual_ms", d->asked ? json_integer(d->actual_ms) : json_null());
	json_object_set_new(o, "what", inject_json(&e->fault));
	if (d->answered)
		inject_put_result(o, r->fleet->host, &d->result);
	else
		answer_put_text(o, "outcome", d->asked ? "unanswered" : "not reached");
	if (d->result.id) {
		answer_put(o, "seen", d->seen);
		answer_put(o, "hits", d->hits);
	}
	return o;
}

json_t *scenario_run_report(struct fleet *f)
{
	struct scenario_run *r = f->scenario;
	if (!r)
		return NULL;
	json_t *events = json_array(), *guests = json_array();
	refresh(r, NULL);
	for (uint32_t i = 0; i < r->scenario->events; i++)
		json_array_append_new(events, report_event(r, i));
	for (unsigned i = 0; i < r->guests; i++) {
		struct host_vm *vm = host_vm_by_name(f->host, r->guest[i].name);
		if (r->guest[i].end)
			json_array_append(guests, r->guest[i].end);
		else if (vm)
			json_array_append_new(guests, describe(vm, false));
	}
	json_t *name = json_string(r->name); /* a file's, which may be any bytes */
	return json_pack("{s:s, s:o, s:I, s:b, s:o, s:o}", "schema", SCENARIO_SCHEMA, "scenario",
			 name ? name : json_string("(not text)"), "seed",
			 (json_int_t)r->scenario->seed, "finished", r->over, "injections", events,
			 "guests", guests);
}

/* ---- time ---------------------------------------------------------------------------------- */

static void injected(void *ctx, const struct inject_result *result)
{
	struct done *d = ctx;
	d->result = *result;
	d->answered = true;
}

/* False: it has to be tried again. */
static bool fire(struct scenario_run *r, uint32_t i)
{
	const struct scenario_event *e = &r->scenario->event[i];
	struct done *d = &r->did[i];
	struct host_vm *vm = host_vm_by_name(r->fleet->host, r->scenario->step[e->step].vm);
	double at = now_ms(r);
	if (vm) {
		/* Its answer may come before this returns. */
		int rc = host_inject(r->fleet->host, vm, &e->fault, injected, d);
		if (rc == -EBUSY && d->busy++ < BUSY_MOST)
			return false;
		if (rc)
			snprintf(d->result.words, sizeof d->result.words, "%s",
				 rc == -EBUSY ? "the guest's process doesn't answer"
					      : strerror(-rc));
		d->answered = d->answered || rc;
		d->forked_ns = vm->forked_ns;
	} else {
		*d = (struct done){.run = r, .answered = true};
		snprintf(d->result.words, sizeof d->result.words, "the guest isn't there any more");
		d->result.frame = UINT32_MAX;
	}
	d->asked = true;
	d->actual_ms = (json_int_t)at;
	return true;
}

static bool has_begun(struct scenario_run *r)
{
	struct host_vm *vm;
	if (r->zero_ns)
		return true;
	for (unsigned i = 0; (vm = host_vm_at(r->fleet->host, i)); i++) {
		const struct guest *g = vm->user;
		if (g && vm->phase == HOST_VM_ALIVE && !vm->is_template && !g->is_clone &&
		    !(r->scenario->from_start ? g->up : g->line.ready))
			return false;
	}
	return true;
}

static void finish(struct scenario_run *r)
{
	refresh(r, NULL);
	r->over = true;
	if (r->scenario->stop)
		fleet_stop(r->fleet, FLEET_BUTTON, EXIT_CLEAN);
	if (r->done)
		r->done(r->ctx);
}

static void on_timer(struct host_source *s, uint32_t events)
{
	struct scenario_run *r = container(struct scenario_run, timer, s);
	const struct scenario *sc = r->scenario;
	(void)events;
	event_drain(s->fd);
	if (!has_begun(r)) {
		arm(r, clock_ns() + WAIT_MS * UINT64_C(1000000));
		return;
	}
	if (!r->zero_ns)
		r->zero_ns = clock_ns();
	refresh(r, NULL);
	while (r->next < sc->events && (double)sc->event[r->next].at_ms <= now_ms(r)) {
		if (!fire(r, r->next)) {
			arm(r, clock_ns() + BUSY_MS * UINT64_C(1000000));
			return;
		}
		r->next++;
	}
	if (r->next == sc->events && (double)sc->for_ms <= now_ms(r))
		finish(r);
	else
		arm(r, r->zero_ns + (r->next < sc->events ? sc->event[r->next].at_ms : sc->for_ms) *
					    UINT64_C(1000000));
}

static int watch_guests(struct scenario_run *r)
{
	unsigned n;
	struct guest **all = fleet_guests(r->fleet, &n);
	r->guest = calloc(n + 1, sizeof *r->guest);
	for (unsigned i = 0; all && r->guest && i < n; i++)
		snprintf(r->guest[r->guests++].name, IPT_NAME_LEN, "%s",
			 all[i]->vm->config.machine.name);
	free(all);
	return all && r->guest ? 0 : -ENOMEM;
}

int scenario_run_start(struct fleet *f, struct scenario *s, const char *name, bool now,
		       void (*done)(void *ctx), void *ctx)
{
	struct scenario_run *r = f->scenario ? NULL : calloc(1, sizeof *r);
	if (!r) {
		scenario_free(s);
		return f->scenario ? -EBUSY : -ENOMEM;
	}
	*r = (struct scenario_run){.fleet = f, .scenario = s, .done = done, .ctx = ctx};
	r->timer = (struct host_source){timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK),
					on_timer};
	f->scenario = r;
	r->name = strdup(name);
	r->did = calloc(s->events + 1, sizeof *r->did);
	int rc = r->timer.fd < 0 ? -errno : r->name && r->did ? watch_guests(r) : -ENOMEM;
	if (!rc)
		rc = host_add_source(f->host, &r->timer, EPOLLIN);
	for (uint32_t i = 0; !rc && i < s->events; i++)
		r->did[i] = (struct done){.run = r, .result.frame = UINT32_MAX};
	if (rc) {
		scenario_run_close(f);
		return rc;
	}
	r->zero_ns = now ? clock_ns() : 0;
	arm(r, clock_ns() + 1);
	return 0;
}

void scenario_run_close(struct fleet *f)
{
	struct scenario_run *r = f->scenario;
	if (!r)
		return;
	f->scenario = NULL;
	for (uint32_t i = 0; r->did && i < r->scenario->events; i++)
		host_inject_forget(f->host, &r->did[i]);
	if (r->timer.fd >= 0) {
		host_remove_source(f->host, &r->timer);
		close(r->timer.fd);
	}
	for (unsigned i = 0; i < r->guests; i++)
		json_decref(r->guest[i].end);
	scenario_free(r->scenario);
	free(r->guest);
	free(r->did);
	free(r->name);
	free(r);
}
