/* The request "scenario" (requests.h, docs/CONTROL.md), and `invisor scenario`, which makes it. */
#include "vmm/scenario_requests.h"
#include "vmm/answer.h"
#include "vmm/cli.h"
#include "vmm/commands.h"
#include "vmm/error.h"
#include "vmm/inject_parse.h"
#include "vmm/scenario_run.h"
#include "vmm/size.h"
#include "vmm/stats.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the request --------------------------------------------------------------------------- */

static const struct vm_config *find(void *ctx, const char *name)
{
	const struct host_vm *vm = host_vm_by_name(ctx, name);
	return vm && !vm->is_template ? &vm->config : NULL;
}

/* Who asked for the one that is under way; NULL: he is gone, or there is none. One fleet a process. */
static struct control_request *asker;

static void over(void *ctx)
{
	struct fleet *f = ctx;
	if (asker)
		control_reply(asker, scenario_run_report(f));
	asker = NULL;
	scenario_run_close(f);
}

static void asker_gone(void *ctx)
{
	asker = NULL;
	scenario_run_close(ctx); /* nobody would read the report */
}

void take_scenario(struct control_request *r, const json_t *o)
{
	struct fleet *f = control_ctx(r);
	const json_t *root = json_object_get(o, "scenario");
	const char *name = json_string_value(json_object_get(o, "name"));
	char error[ERROR_MAX];
	struct scenario *s;
	int64_t seed;
	name = name ? name : "scenario";
	if (f->scenario) {
		control_refuse(r, "scenario: another is under way in this host");
		return;
	}
	if (inject_number(o, "seed", 0, INT64_MAX, 0, &seed, error) ||
	    scenario_parse(&s, root, name, find, f->host, error)) {
		control_refuse(r, "scenario: %s", error);
		return;
	}
	int rc = scenario_plan(s, json_object_get(o, "seed") ? (uint64_t)seed : s->seed);
	if (!rc && s->stop) {
		rc = -EINVAL;
		errorf(error, rc, "%.100s: stop: for `invisor run --scenario`; this host goes on",
		       name);
	} else if (rc) {
		errorf(error, rc, "%.100s: steps: %s", name,
		       rc == -E2BIG ? "more than 10000 faults in all" : strerror(-rc));
	}
	if (rc) {
		scenario_free(s);
		control_refuse(r, "scenario: %s", error);
		return;
	}
	rc = scenario_run_start(f, s, name, true, over, f);
	if (rc) {
		control_refuse(r, "scenario: %s", strerror(-rc));
		return;
	}
	asker = r;
	control_on_gone(r, asker_gone, f);
}

/* ---- the command --------------------------------------------------------------------------- */

enum { SEED, REPORT };

static const char *report_file;

void scenario_say(const json_t *report)
{
	size_t i;
	const json_t *e, *g;
	json_array_foreach(json_object_get(report, "injections"), i, e)
	{
		const json_t *what = json_object_get(e, "what");
		const char *words = json_string_value(json_object_get(e, "words"));
		printf("%8.0f ms  %-12s %-10s %s%s%s\n", answer_number(e, "actual_ms"),
		       answer_text(e, "vm"), answer_text(what, "fault"), answer_text(e, "outcome"),
		       words && *words ? ": " : "", words ? words : "");
	}
	json_array_foreach(json_object_get(report, "guests"), i, g)
	{
		const char *words = json_string_value(json_object_get(g, "words"));
		printf("%s: %s%s%s, %lld machine checks\n", answer_text(g, "vm"),
		       answer_text(g, "state"), words ? ": " : "", words ? words : "",
		       answer_integer(g, "machine_checks"));
	}
}

static void say(const json_t *report)
{
	int rc = report_file ? stats_write(report, report_file) : 0;
	if (rc)
		fprintf(stderr, "invisor: --report: %s: %s\n", report_file, strerror(-rc));
	scenario_say(report);
}

int command_scenario(int argc, char **argv)
{
	static const struct cli_spec spec = {
		.command = "scenario",
		.usage = "usage: invisor scenario [--seed N] [--report FILE] [--host SOCKET] FILE\n"
			 "Let faults happen to guests of a running host over time, as a file says "
			 "(docs/FAULTS.md);\n"
			 "its time begins now. Returns when it is over, and says what was injected "
			 "and what the\n"
			 "guests did.\n"
			 "      --seed N       another seed than the file's: the same seed, the "
			 "same "
			 "faults\n"
			 "      --report FILE  all of it as JSON\n",
		.flag = {[SEED] = "seed=", [REPORT] = "report="},
		.least = 1,
		.most = 1,
		.operands = "takes a file"};
	struct cli c;
	char error[ERROR_MAX];
	uint64_t seed = 0;
	int status = cli_parse(&c, &spec, argc, argv);
	if (status >= 0)
		return status;
	if (c.value[SEED] && !number_parse(c.value[SEED], 0, INT64_MAX, &seed))
		return cli_fail("scenario: --seed: takes a whole number from 0 on");
	json_t *root = scenario_read(c.operand[0], error);
	if (!root)
		return cli_fail(error);
	json_t *request = json_pack("{s:s, s:s, s:o}", "do", "scenario", "name", c.operand[0],
				    "scenario", root);
	if (request && c.value[SEED])
		json_object_set_new(request, "seed", json_integer((json_int_t)seed));
	report_file = c.value[REPORT];
	return cli_ask(&c, request, false, say);
}
