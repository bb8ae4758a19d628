/* `invisor clone`, `invisor pause` and `invisor resume`. */
#include "ipt/ipt.h"
#include "vmm/ask.h"
#include "vmm/commands.h"
#include "vmm/error.h"
#include "vmm/options.h"
#include "vmm/size.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

struct clone_options {
	const char *host, *name;
	uint64_t count;
	bool json, predict;
};

static int one(void *ctx, int option, char *value, char *error)
{
	struct clone_options *o = ctx;
	switch (option) {
	case 'H':
		o->host = value;
		return 0;
	case 'N':
		o->name = value;
		return 0;
	case 'j':
		o->json = true;
		return 0;
	case 'n':
		if (!number_parse(value, 1, 1000000, &o->count))
			return errorf(error, -EINVAL, "-n: '%.80s' is no count from 1 on", value);
		return 0;
	case 'p':
		o->predict = !strcmp(value, "on");
		if (!o->predict && strcmp(value, "off"))
			return errorf(error, -EINVAL, "--predict: '%.80s' is neither on nor off",
				      value);
		return 0;
	}
	return -EINVAL;
}

static int say(const char *words)
{
	fprintf(stderr, "invisor: %s\n", words);
	return 2;
}

/* Ask, and print the answer as it is or as `print` has it. */
static int ask(const struct clone_options *o, json_t *request, void (*print)(const json_t *answer))
{
	char error[ERROR_MAX];
	if (!request)
		return say("the name is no UTF-8 text");
	json_t *answer = ask_host(o->host, request, error);
	json_decref(request);
	if (!answer)
		return say(error);
	if (o->json) {
		json_dumpf(answer, stdout, JSON_COMPACT);
		putchar('\n');
	} else {
		print(answer);
	}
	json_decref(answer);
	return 0;
}

static void print_clones(const json_t *answer)
{
	size_t i;
	json_t *clone;
	json_array_foreach(json_object_get(answer, "clones"), i, clone)
		printf("%s\n", json_string_value(json_object_get(clone, "name")));
}

static void print_nothing(const json_t *answer)
{
	(void)answer;
}

static const struct option longs[] = {
	{"count", 1, NULL, 'n'}, {"name", 1, NULL, 'N'},    {"host", 1, NULL, 'H'},
	{"json", 0, NULL, 'j'},  {"predict", 1, NULL, 'p'}, {"help", 0, NULL, 'h'},
	{NULL, 0, NULL, 0},
};

int command_clone(int argc, char **argv)
{
	static const char help[] =
		"usage: invisor clone VM [OPTION]...\n"
		"Make copies of a running or paused guest, which go on from where it is. They "
		"share its "
		"memory until\n"
		"they write to it. VM goes on too; what it was at that moment stays as a template "
		"(VM@N in invisor ps),\n"
		"of which more clones can be made: invisor clone VM@N. Prints their names when "
		"they "
		"run.\n"
		"\n"
		"  -n, --count COUNT   how many (1); all or none\n"
		"      --name NAME     their name; NAME-1, NAME-2 ... for several (VM.1 ...)\n"
		"      --predict on|off  copy pages that earlier clones of the template wrote to "
		"at "
		"once before it runs (on)\n"
		"      --host SOCKET   the host, if several run\n"
		"      --json          the answer as the host gives it (docs/CONTROL.md)\n";
	static const struct options_spec spec = {"clone", help, ":n:h", longs, one};
	struct clone_options o = {.count = 1, .predict = true};
	char error[ERROR_MAX], *vm = NULL;
	if (argc > 1 && argv[1][0] != '-') {
		vm = argv[1];
		argv++;
		argc--;
	}
	int rc = options_parse(&spec, &o, argc, argv, error);
	if (rc)
		return rc > 0 ? 0 : say(error);
	if (!vm)
		return say("clone: needs a VM's name first; see invisor clone --help");
	json_t *request = json_pack("{s:s, s:s, s:I, s:b}", "do", "clone", "vm", vm, "count",
				    (json_int_t)o.count, "predict", o.predict);
	if (request && o.name)
		json_object_set_new(request, "name", json_string(o.name));
	return ask(&o, request, print_clones);
}

static int pause_or_resume(int argc, char **argv, const char *what, const char *help)
{
	const struct options_spec spec = {what, help, ":h", longs + 2, one};
	struct clone_options o = {.count = 1};
	char error[ERROR_MAX], *vm = NULL;
	if (argc > 1 && argv[1][0] != '-') {
		vm = argv[1];
		argv++;
		argc--;
	}
	int rc = options_parse(&spec, &o, argc, argv, error);
	if (rc)
		return rc > 0 ? 0 : say(error);
	if (!vm) {
		fprintf(stderr, "invisor: %s: needs a VM's name first; see invisor %s --help\n",
			what, what);
		return 2;
	}
	return ask(&o, json_pack("{s:s, s:s}", "do", what, "vm", vm), print_nothing);
}

int command_pause(int argc, char **argv)
{
	return pause_or_resume(
		argc, argv, "pause",
		"usage: invisor pause VM [--host SOCKET] [--json]\n"
		"Stop a guest in its tracks: its vCPUs stand still, its I/O is done. It "
		"keeps its memory.\n");
}

int command_resume(int argc, char **argv)
{
	return pause_or_resume(argc, argv, "resume",
			       "usage: invisor resume VM [--host SOCKET] [--json]\n"
			       "Let a paused guest go on.\n");
}
