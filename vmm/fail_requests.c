#include "vmm/fail_requests.h"
#include "ipt/fail.h"
#include "vmm/answer.h"
#include "vmm/cli.h"
#include "vmm/commands.h"
#include "vmm/error.h"
#include "vmm/run.h"
#include "vmm/size.h"
#include <stdio.h>
#include <string.h>

/* ---- the request ----------------------------------------------------------------------------- */

/* All that are set are right, or it was refused. */
static bool check(struct control_request *r, const json_t *set)
{
	char words[FAIL_WORDS_MAX];
	const char *name;
	json_t *value;
	json_object_foreach((json_t *)(uintptr_t)set, name, value)
	{
		enum fail_id id = FAIL_IDS;
		const char *program = json_string_value(value);
		if (!program) {
			control_refuse(r, "fail: \"set\" has names, and programs as texts");
			return false;
		}
		if (fail_find(name, &id, words) || fail_check(id, program, words)) {
			control_refuse(r, "fail: %s", words);
			return false;
		}
	}
	return true;
}

static json_t *point(enum fail_id id)
{
	const struct fail_about *about = fail_about(id);
	struct fail_state s;
	fail_read(id, &s);
	return json_pack("{s:s, s:s, s:s, s:I, s:I}", "name", about->name, "what", about->what,
			 "program", s.program, "hits", (json_int_t)s.hits, "fired",
			 (json_int_t)s.fired);
}

void take_fail(struct control_request *r, const json_t *o)
{
	const json_t *set = json_object_get(o, "set"), *seed = json_object_get(o, "seed");
	char words[FAIL_WORDS_MAX];
	const char *name;
	json_t *value;
	if (set && !json_is_object(set)) {
		control_refuse(r, "fail: \"set\" is an object of names and programs");
		return;
	}
	if (seed && (!json_is_integer(seed) || json_integer_value(seed) < 0)) {
		control_refuse(r, "fail: \"seed\" is a number from 0 on");
		return;
	}
	if (set && !check(r, set))
		return;
	if (json_is_true(json_object_get(o, "off")))
		fail_clear();
	if (seed)
		fail_seed((uint64_t)json_integer_value(seed));
	json_object_foreach((json_t *)(uintptr_t)set, name, value)
	{
		enum fail_id id = FAIL_IDS;
		if (fail_find(name, &id, words) == 0)
			fail_set(id, json_string_value(value), words);
	}
	json_t *points = json_array();
	for (unsigned i = 0; i < FAIL_IDS; i++)
		json_array_append_new(points, point((enum fail_id)i));
	control_reply(r, json_pack("{s:I, s:o}", "seed", (json_int_t)fail_seed_now(), "failpoints",
				   points));
}

/* ---- the command ----------------------------------------------------------------------------- */

enum { JSON, LIST, SEED, OFF };

static int list(void)
{
	static const char *const kinds[] = {[FAIL_RESULT] = " (its answer)",
					    [FAIL_BYTES] = " (return: how many bytes)",
					    [FAIL_STEP] = " (no return)",
					    [FAIL_DEATH] = " (return: its last holder died)"};
	for (unsigned i = 0; i < FAIL_IDS; i++) {
		const struct fail_about *a = fail_about((enum fail_id)i);
		const char *kind = kinds[a->kind];
		printf("%-18s %s%s", a->name, a->what, kind ? kind : "");
		if (a->kind == FAIL_ERROR || a->kind == FAIL_RESULT)
			printf("; %s", strerrorname_np(a->usual));
		putchar('\n');
	}
	return EXIT_CLEAN;
}

static void say(const json_t *answer)
{
	size_t i;
	bool some = false;
	json_t *p;
	json_array_foreach(json_object_get(answer, "failpoints"), i, p)
	{
		const char *program = json_string_value(json_object_get(p, "program"));
		long long hits = answer_integer(p, "hits");
		if (!program || (!strcmp(program, "off") && !hits))
			continue;
		some = true;
		printf("%-18s %-32s %lld hits, %lld fired\n", answer_text(p, "name"), program, hits,
		       answer_integer(p, "fired"));
	}
	if (!some)
		printf("no failpoint is set\n");
}

static json_t *request_of(const struct cli *c, char *error)
{
	json_t *request = json_pack("{s:s}", "do", "fail"), *set = json_object();
	uint64_t seed;
	*error = 0;
	for (int i = 0; i < c->operands; i++) {
		char *equals = strchr(c->operand[i], '=');
		if (!equals || equals == c->operand[i]) {
			errorf(error, 0,
			       "fail: '%.80s' is no NAME=PROGRAM, such as "
			       "window.map=1*return(ENOMEM)",
			       c->operand[i]);
			break;
		}
		*equals = 0;
		if (json_object_set_new(set, c->operand[i], json_string(equals + 1)))
			errorf(error, 0, "fail: '%.80s': no UTF-8 text", c->operand[i]);
	}
	if (c->operands)
		json_object_set(request, "set", set);
	json_decref(set);
	if (c->value[OFF])
		json_object_set_new(request, "off", json_true());
	if (c->value[SEED] && !number_parse(c->value[SEED], 0, INT64_MAX, &seed))
		errorf(error, 0, "fail: --seed: '%.80s' is no number from 0 on", c->value[SEED]);
	else if (c->value[SEED])
		json_object_set_new(request, "seed", json_integer((json_int_t)seed));
	return request;
}

int command_fail(int argc, char **argv)
{
	static const struct cli_spec spec = {
		.command = "fail",
		.usage =
			"usage: invisor fail [--json] [--host SOCKET] [--off] [--seed N] "
			"[NAME=PROGRAM]...\n"
			"       invisor fail --list\n"
			"Set failpoints of a running host and all its processes, and say which are "
			"set, how often\n"
			"they were hit, and how often something was done there. Programs are those "
			"of FreeBSD's\n"
			"fail(9): 5*return(ENOMEM)->0.1%return(EIO), off, sleep(MS), delay(MS), "
			"pause, print, panic;\n"
			"[host], [vm], [vm NAME], [merger], [reclaimer] or [pid N] behind a term "
			"restricts it\n"
			"(docs/FAULTS.md). --fail of invisor run sets them from the start.\n"
			"\n"
			"  --list    all failpoints, with what happens there and what return "
			"fails with\n"
			"  --off     first, set all off\n"
			"  --seed N  of what happens by per cent: the same seed decides alike "
			"(0)\n",
		.flag = {[JSON] = "json", [LIST] = "list", [SEED] = "seed=", [OFF] = "off"},
		.least = 0,
		.most = FAIL_IDS,
		.operands = "takes NAME=PROGRAM, at most once for each failpoint"};
	struct cli c;
	char error[ERROR_MAX];
	int status = cli_parse(&c, &spec, argc, argv);
	if (status >= 0)
		return status;
	if (c.value[LIST])
		return list();
	json_t *request = request_of(&c, error);
	if (*error) {
		json_decref(request);
		return cli_fail(error);
	}
	return cli_ask(&c, request, c.value[JSON], say);
}
