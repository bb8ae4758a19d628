/* Scenarios and faults as JSON: what is refused, in which words, and what a seed makes of them. */
#include "vmm/error.h"
#include "vmm/inject_parse.h"
#include "vmm/scenario.h"
#include "vmm/vm.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

static struct vm_config guest;

static const struct vm_config *find(void *ctx, const char *name)
{
	(void)ctx;
	return !strcmp(name, "vm") ? &guest : NULL;
}

static void set_up(void)
{
	guest = (struct vm_config){.disks = 2, .pmems = 1};
	snprintf(guest.machine.name, sizeof guest.machine.name, "vm");
	guest.machine.cpus = 2;
	guest.machine.banks = guest.machine.ram_banks = 1;
	guest.machine.bank[0] = (struct machine_bank){.base = gpa(0), .bytes = 64 * MiB};
}

static struct scenario *parse(const char *text, char *error)
{
	json_error_t why;
	json_t *root = json_loads(text, 0, &why);
	struct scenario *s = NULL;
	cr_assert(root, "%s: %s", text, why.text);
	*error = 0;
	if (scenario_parse(&s, root, "f.json", find, NULL, error))
		s = NULL;
	json_decref(root);
	return s;
}

#define STEP(s) "{\"steps\": [{\"at\": 1, \"vm\": \"vm\", " s "}]}"

Test(scenario, what_is_wrong_is_named_with_its_place, .init = set_up)
{
	static const struct {
		const char *text, *words;
	} cases[] = {
		{"[]", "f.json: a scenario is an object"},
		{"{}", "f.json: steps: needs an array"},
		{"{\"steps\": []}", "f.json: steps: needs"},
		{"{\"steps\": [1]}", "f.json: steps[0].at: needs an object"},
		{"{\"stebs\": []}", "f.json: stebs: not a member"},
		{"{\"seed\": -1, \"steps\": [{}]}", "f.json: seed: a whole number, 0 to"},
		{"{\"from\": \"boot\", \"steps\": [{}]}", "f.json: from: \"ready\" or \"start\""},
		{"{\"stop\": 1, \"steps\": [{}]}", "f.json: stop: true or false"},
		{"{\"for\": 0, \"steps\": [{}]}", "f.json: for: a whole number, 1 to"},
		{"{\"steps\": [{}]}", "f.json: steps[0].at: needs a number, 0 to 86400000"},
		{"{\"steps\": [{\"at\": 86400001}]}", "f.json: steps[0].at: a whole number"},
		{"{\"steps\": [{\"at\": 1.5}]}", "f.json: steps[0].at: a whole number"},
		{"{\"steps\": [{\"at\": 1, \"every\": 0}]}", "steps[0].every: a whole number, 1"},
		{"{\"steps\": [{\"at\": 1, \"every\": 5}]}", "steps[0].count: needs a number"},
		{"{\"steps\": [{\"at\": 1, \"count\": 5}]}", "steps[0].count: goes with \"every\""},
		{"{\"steps\": [{\"at\": 1, \"every\": 86400000, \"count\": 2}]}",
		 "steps[0].count: the last would come after"},
		{"{\"steps\": [{\"at\": 1, \"chance\": 1.1}]}",
		 "steps[0].chance: a number, 0 to 1"},
		{"{\"steps\": [{\"at\": 1}]}", "steps[0].vm: needs a guest's name"},
		{"{\"steps\": [{\"at\": 1, \"vm\": \"v\"}]}", "steps[0].vm: no guest is called v"},
		{STEP("\"fault\": \"flood\""), "steps[0].fault: one of memory, disk, irq"},
		{STEP("\"fault\": \"power-cut\", \"ms\": 4"), "steps[0].ms: not a member"},
		{STEP("\"fault\": \"power-cut\", \"lose\": \"all\""),
		 "steps[0].lose: vm has no disk with a volatile cache"},
		{STEP("\"fault\": \"power-cut\", \"lose\": 3"), "steps[0].lose: all, none or"},
		{STEP("\"fault\": \"power-cut\", \"seed\": 3"), "steps[0].seed: goes with"},
		{STEP("\"fault\": \"notice\""), "steps[0].gpa: needs an address"},
		{STEP("\"fault\": \"notice\", \"frame\": 1"), "steps[0].frame: not a member"},
		{STEP("\"fault\": \"notice\", \"gpa\": 67108864"),
		 "steps[0].gpa: vm has no memory"},
		{STEP("\"fault\": \"stall\""), "steps[0].ms: needs a number, 1 to 60000"},
		{STEP("\"fault\": \"stall\", \"ms\": 5, \"vcpu\": 2"), "steps[0].vcpu: vm has 2"},
		{STEP("\"fault\": \"clock\""), "steps[0].jump_ms: needs"},
		{STEP("\"fault\": \"clock\", \"jump_ms\": \"1\""), "steps[0].jump_ms: a whole"},
		{STEP("\"fault\": \"memory\""), "steps[0].gpa: needs either"},
		{STEP("\"fault\": \"memory\", \"gpa\": 1, \"frame\": 1"), "steps[0].gpa: needs"},
		{STEP("\"fault\": \"memory\", \"gpa\": 67108864"),
		 "steps[0].gpa: vm has no memory"},
		{STEP("\"fault\": \"memory\", \"gpa\": \"random\""), "steps[0].bytes: needs"},
		{STEP("\"fault\": \"memory\", \"gpa\": \"random\", \"bytes\": 68000000"),
		 "steps[0].from: vm has no such memory"},
		{STEP("\"fault\": \"disk\""), "steps[0].error: needs one of"},
		{STEP("\"fault\": \"disk\", \"error\": \"ENOENT\""), "steps[0].error: EIO or"},
		{STEP("\"fault\": \"disk\", \"error\": \"EIO\", \"disk\": 2"),
		 "steps[0].disk: vm has 2"},
		{STEP("\"fault\": \"disk\", \"error\": \"EIO\", \"on\": \"read,wirte\""),
		 "steps[0].on: some of"},
		{STEP("\"fault\": \"disk\", \"error\": \"EIO\", \"on\": 5"),
		 "steps[0].on: some of"},
		{STEP("\"fault\": \"disk\", \"error\": \"EIO\", \"on\": \"\""),
		 "steps[0].on: some of"},
		{STEP("\"fault\": \"disk\", \"torn\": 1, \"on\": \"read\""),
		 "steps[0].on: only writes"},
		{STEP("\"fault\": \"disk\", \"torn\": 1, \"latency_ms\": 1"),
		 "steps[0].error: needs one of"},
		{STEP("\"fault\": \"disk\", \"latency_ms\": 10001"),
		 "steps[0].latency_ms: a whole"},
		{STEP("\"fault\": \"disk\", \"error\": \"EIO\", \"probability\": -1"),
		 "steps[0].probability: a number"},
		{STEP("\"fault\": \"irq\""), "steps[0].device: console, rng"},
		{STEP("\"fault\": \"irq\", \"device\": \"disk2\", \"drop\": 1"),
		 "steps[0].device: console"},
		{STEP("\"fault\": \"irq\", \"device\": \"disk1\""), "steps[0].drop: needs either"},
		{STEP("\"fault\": \"irq\", \"device\": \"rng\", \"drop\": 1, \"times\": 1"),
		 "steps[0].times: of interrupts"},
	};
	char error[ERROR_MAX];
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		cr_assert_null(parse(cases[i].text, error), "%s was taken", cases[i].text);
		cr_assert(strstr(error, cases[i].words), "%s: said '%s', not '%s'", cases[i].text,
			  error, cases[i].words);
	}
}

static const char *const rich =
	"{\"seed\": 5, \"steps\": ["
	"{\"at\": 1000, \"every\": 100, \"count\": 200, \"jitter\": 500, \"chance\": 0.5,"
	" \"vm\": \"vm\", \"fault\": \"memory\", \"gpa\": \"random\", \"from\": 1048576,"
	" \"bytes\": 16777216},"
	"{\"at\": 500, \"every\": 50, \"count\": 100, \"vm\": \"vm\", \"fault\": \"disk\","
	" \"error\": \"EIO\", \"from\": 4096, \"bytes\": 512, \"probability\": 0.25}]}";

Test(scenario, the_same_seed_makes_the_same_plan, .init = set_up)
{
	char error[ERROR_MAX];
	struct scenario *a = parse(rich, error), *b = parse(rich, error), *c = parse(rich, error);
	cr_assert(a && b && c, "%s", error);
	cr_assert_eq(scenario_plan(a, 5), 0);
	cr_assert_eq(scenario_plan(b, 5), 0);
	cr_assert_eq(scenario_plan(c, 6), 0);
	cr_assert_eq(a->events, b->events);
	cr_assert_eq(memcmp(a->event, b->event, a->events * sizeof *a->event), 0);
	cr_assert(a->events != c->events ||
		  memcmp(a->event, c->event, a->events * sizeof *a->event));
	/* About half of 200, and 100. */
	cr_assert(a->events > 100 + 60 && a->events < 100 + 140, "%u", a->events);
	for (uint32_t i = 0; i < a->events; i++) {
		const struct scenario_event *e = &a->event[i];
		uint64_t from = e->step ? 500 + 50 * e->occurrence : 1000 + 100 * e->occurrence;
		cr_assert(e->at_ms >= from && e->at_ms <= from + (e->step ? 0 : 500));
		cr_assert(!i || a->event[i - 1].at_ms <= e->at_ms, "in order");
		if (!e->step)
			cr_assert(e->fault.gpa >= MiB && e->fault.gpa < 17 * MiB &&
				  e->fault.gpa % PAGE_SIZE == 0);
		else
			cr_assert(e->fault.seed && e->fault.chance == 250000);
	}
	cr_assert_eq(a->for_ms, a->event[a->events - 1].at_ms + 1000);
	scenario_free(a);
	scenario_free(b);
	scenario_free(c);
}

/* A step that is added behind others changes nothing of what these do. */
Test(scenario, choices_hang_on_nothing_else, .init = set_up)
{
	char error[ERROR_MAX], more[2048];
	snprintf(more, sizeof more, "%.*s, {\"at\": 3, \"vm\": \"vm\", \"fault\": \"power-cut\"}]}",
		 (int)strlen(rich) - 2, rich);
	struct scenario *a = parse(rich, error), *b = parse(more, error);
	cr_assert(a && b, "%s", error);
	cr_assert_eq(scenario_plan(a, 5), 0);
	cr_assert_eq(scenario_plan(b, 5), 0);
	cr_assert_eq(b->events, a->events + 1);
	cr_assert_eq(b->event[0].fault.kind, INJECT_POWER_CUT);
	cr_assert_eq(memcmp(a->event, b->event + 1, a->events * sizeof *a->event), 0);
	scenario_free(a);
	scenario_free(b);
}

Test(scenario, too_many_faults, .init = set_up)
{
	char error[ERROR_MAX];
	struct scenario *s =
		parse("{\"steps\": [{\"at\": 0, \"every\": 1, \"count\": 10000, \"vm\": \"vm\", "
		      "\"fault\": \"power-cut\"}, {\"at\": 0, \"vm\": \"vm\", \"fault\": "
		      "\"power-cut\"}]}",
		      error);
	cr_assert(s, "%s", error);
	cr_assert_eq(scenario_plan(s, 1), -E2BIG);
	scenario_free(s);
}

Test(scenario, chances_are_even)
{
	unsigned bin[16] = {0};
	for (uint64_t n = 0; n < 16000; n++)
		bin[chance_below(1, 2, 3, n, 16)]++;
	for (unsigned i = 0; i < 16; i++)
		cr_assert(bin[i] > 850 && bin[i] < 1150, "%u of 1000", bin[i]);
	cr_assert_neq(chance_number(1, 2, 3, 4), chance_number(1, 2, 4, 3));
	cr_assert_neq(chance_number(1, 2, 3, 4), chance_number(2, 1, 3, 4));
	cr_assert_eq(chance_number(1, 2, 3, 4), chance_number(1, 2, 3, 4));
	cr_assert_eq(chance_below(9, 9, 9, 9, 1), 0);
}

/* What is said of a fault is what it was made from. */
Test(scenario, faults_as_json_and_back, .init = set_up)
{
	static const char *const texts[] = {
		"{\"fault\": \"memory\", \"gpa\": 4096}",
		"{\"fault\": \"memory\", \"frame\": 77}",
		"{\"fault\": \"disk\", \"disk\": 1, \"from\": 512, \"bytes\": 1024, \"on\": "
		"\"read,flush\", \"error\": \"EOPNOTSUPP\", \"probability\": 0.5, \"seed\": 3, "
		"\"times\": 2}",
		"{\"fault\": \"disk\", \"disk\": 0, \"from\": 0, \"on\": \"write\", \"torn\": 0, "
		"\"error\": \"EIO\"}",
		"{\"fault\": \"disk\", \"disk\": 0, \"from\": 0, \"on\": \"read,write\", "
		"\"latency_ms\": 7}",
		"{\"fault\": \"irq\", \"device\": \"balloon\", \"drop\": 3}",
		"{\"fault\": \"irq\", \"device\": \"pmem0\", \"delay_ms\": 3, \"times\": 4}",
		"{\"fault\": \"stall\", \"vcpu\": 1, \"ms\": 60000}",
		"{\"fault\": \"clock\", \"jump_ms\": -5}",
		"{\"fault\": \"power-cut\"}",
	};
	for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
		json_error_t why;
		char error[ERROR_MAX];
		struct inject f;
		json_t *o = json_loads(texts[i], 0, &why);
		cr_assert(o, "%s", why.text);
		cr_assert_eq(inject_parse(o, NULL, &guest, &f, error), 0, "%s: %s", texts[i],
			     error);
		json_t *back = inject_json(&f);
		cr_assert(json_equal(o, back), "%s became %s", texts[i],
			  json_dumps(back, JSON_COMPACT));
		json_decref(o);
		json_decref(back);
	}
}
