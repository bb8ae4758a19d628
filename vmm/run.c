#include "vmm/run.h"
#include "vmm/container.h"
#include "vmm/fleet.h"
#include "vmm/scenario_requests.h"
#include "vmm/scenario_run.h"
#include "vmm/stats.h"
#include "vmm/terminal.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct run {
	struct run_setup setup;
	struct fleet fleet;
	struct host_source on_input;
	json_t *at_ready, *ended; /* with --stats */
	struct scenario
		*scenario; /* checked and planned; NULL: none, or it is the fleet's by now */
};

static void all_ready(void *ctx)
{
	struct run *r = ctx;
	if (!r->setup.options.stats)
		return;
	fleet_sample(&r->fleet);
	r->at_ready = stats_take(r->fleet.host, true);
}

static void ended(void *ctx, struct host_vm *vm)
{
	struct run *r = ctx;
	if (r->ended)
		json_array_append_new(r->ended, stats_vm(vm, true));
}

/* ---- the terminal -------------------------------------------------------------------------- */

static void on_input(struct host_source *s, uint32_t events)
{
	struct run *r = container(struct run, on_input, s);
	(void)events;
	char bytes[256];
	ssize_t got = read(s->fd, bytes, sizeof bytes);
	if (got <= 0) {
		host_remove_source(r->fleet.host, s);
		return;
	}
	size_t n = (size_t)got;
	unsigned off = r->fleet.interactive ? terminal_keys(bytes, &n) : 0;
	/* A guest that doesn't read loses keys typed ahead, as on a real line. */
	struct host_vm *vm = host_vm_at(r->fleet.host, 0);
	if (n && vm)
		host_console_input(vm, bytes, n);
	while (off--)
		fleet_interrupt(&r->fleet);
}

static void take_input(struct run *r)
{
	if (r->setup.options.count > 1)
		return;
	r->on_input = (struct host_source){STDIN_FILENO, on_input};
	/* Only terminals, pipes and sockets can be watched; other input is left alone. */
	bool watched = host_add_source(r->fleet.host, &r->on_input, EPOLLIN) == 0;
	r->fleet.interactive = watched && terminal_raw();
	if (r->fleet.interactive)
		fleet_say("the terminal is the guest's; Ctrl-C powers it off, Ctrl-A Ctrl-C is its "
			  "own Ctrl-C");
}

/* ---- a scenario ---------------------------------------------------------------------------- */

/* What a guest will be, by the name that it will have. */
struct expected {
	const struct run_setup *setup;
	struct vm_config config;
};

static const struct vm_config *find_expected(void *ctx, const char *name)
{
	struct expected *e = ctx;
	const struct run_options *o = &e->setup->options;
	char one[IPT_NAME_LEN];
	unsigned i = 0, n = o->count;
	do
		snprintf(one, sizeof one, n == 1 ? "%.26s" : "%.26s-%u", o->name, ++i);
	while (strcmp(one, name) && i < n);
	if (strcmp(one, name))
		return NULL;
	snprintf(e->config.machine.name, sizeof e->config.machine.name, "%s", name);
	return &e->config;
}

/* Read, check and plan it, before anything is made. */
static int prepare_scenario(struct run *r, char *error)
{
	const struct run_options *o = &r->setup.options;
	if (!o->scenario)
		return 0;
	json_t *root = scenario_read(o->scenario, error);
	struct expected *e = root ? calloc(1, sizeof *e) : NULL;
	int rc = !root ? -EINVAL : e ? 0 : errorf(error, -ENOMEM, "no memory");
	if (!rc) {
		*e = (struct expected){&r->setup, r->setup.config};
		rc = scenario_parse(&r->scenario, root, o->scenario, find_expected, e, error);
	}
	if (!rc) {
		rc = scenario_plan(r->scenario, o->has_seed ? o->seed : r->scenario->seed);
		if (rc)
			errorf(error, rc, "%.100s: steps: %s", o->scenario,
			       rc == -E2BIG ? "more than 10000 faults in all" : strerror(-rc));
	}
	json_decref(root);
	free(e);
	return rc;
}

static void start_scenario(struct run *r)
{
	struct scenario *s = r->scenario;
	r->scenario = NULL;
	int rc = s ? scenario_run_start(&r->fleet, s, r->setup.options.scenario, false, NULL, NULL)
		   : 0;
	if (rc)
		fleet_say("--scenario: %s", strerror(-rc));
}

static int write_report(struct run *r)
{
	json_t *report = scenario_run_report(&r->fleet);
	const char *path = r->setup.options.report;
	int rc = report && path ? stats_write(report, path) : 0;
	if (rc)
		fleet_say("--report: %s: %s", path, strerror(-rc));
	if (report && !path)
		scenario_say(report);
	json_decref(report);
	return rc;
}

/* ---- the command --------------------------------------------------------------------------- */

static int write_stats(struct run *r)
{
	const char *path = r->setup.options.stats;
	if (!path)
		return 0;
	json_t *end = json_object();
	json_t *now = stats_take(r->fleet.host, true);
	json_object_update(end, now);
	json_object_set(end, "vms", r->ended);
	json_decref(now);
	json_t *all = json_pack("{s:s, s:O?, s:o}", "schema", STATS_SCHEMA, "at_ready", r->at_ready,
				"at_end", end);
	int rc = all ? stats_write(all, path) : -ENOMEM;
	json_decref(all);
	if (rc)
		fleet_say("--stats: %s: %s", path, strerror(-rc));
	return rc;
}

static int run_to_the_end(struct run *r)
{
	take_input(r);
	start_scenario(r);
	int rc = fleet_run(&r->fleet);
	if (rc)
		fleet_say("the host's event loop: %s", strerror(-rc));
	terminal_restore();
	int status = rc ? EXIT_GUEST : fleet_status(&r->fleet);
	if ((write_stats(r) | write_report(r)) && status == EXIT_CLEAN)
		status = EXIT_GUEST;
	return status;
}

int run_command(int argc, char **argv)
{
	char error[ERROR_MAX] = "";
	struct run r = {.at_ready = NULL};
	int rc = options_parse_run(&r.setup.options, argc, argv, error);
	if (rc > 0)
		return EXIT_CLEAN;
	if (!rc)
		run_await_disks(&r.setup.options);
	if (!rc && r.setup.options.detach)
		return run_detached(&r.setup.options);
	if (!rc)
		rc = run_setup_open(&r.setup, error);
	if (!rc)
		rc = prepare_scenario(&r, error);
	if (rc) {
		fleet_say("%s", error);
		return EXIT_BAD_INPUT;
	}
	if (r.setup.options.stats)
		r.ended = json_array();
	const struct fleet_config config = {.setup = &r.setup, .ready = RUN_READY, .keep = true};
	const struct fleet_events events = {.all_ready = all_ready, .ended = ended, .ctx = &r};
	int status = EXIT_BAD_INPUT;
	if (fleet_open(&r.fleet, &config, &events, error))
		fleet_say("%s", error);
	else
		status = run_to_the_end(&r);
	fleet_close(&r.fleet);
	run_setup_close(&r.setup);
	scenario_free(r.scenario);
	json_decref(r.at_ready);
	json_decref(r.ended);
	return status;
}
