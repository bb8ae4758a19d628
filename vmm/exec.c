#include "vmm/exec.h"
#include "ipt/fail.h"
#include "vmm/agent.h"
#include "vmm/answer.h"
#include "vmm/ask.h"
#include "vmm/base64.h"
#include "vmm/commands.h"
#include "vmm/error.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- the host's side ----------------------------------------------------------------------- */

/* A command under way, and what it wrote so far. */
struct exec {
	struct control_request *request;
	struct host_vm *vm;
	char *output;
	size_t bytes, room;
};

static void release(struct exec *e)
{
	free(e->output);
	free(e);
}

static void on_output(void *ctx, const void *bytes, size_t n)
{
	struct exec *e = ctx;
	if (e->room - e->bytes < n) {
		size_t room = e->room ? e->room * 2 : 4096;
		char *more = room <= EXEC_OUTPUT_MAX ? realloc(e->output, room) : NULL;
		if (!more) {
			agent_cancel(e->vm);
			control_refuse(e->request, "exec: the command wrote more than %u bytes",
				       EXEC_OUTPUT_MAX);
			release(e);
			return;
		}
		e->output = more;
		e->room = room;
	}
	memcpy(e->output + e->bytes, bytes, n);
	e->bytes += n;
}

static void on_done(void *ctx, unsigned status)
{
	struct exec *e = ctx;
	char *chars = malloc(BASE64_CHARS(e->bytes) + 1);
	json_t *answer = NULL;
	if (chars) {
		size_t n = base64_encode(chars, e->output, e->bytes);
		answer = json_pack("{s:i, s:s%}", "status", (int)status, "output", chars, n);
	}
	control_reply(e->request, answer);
	free(chars);
	release(e);
}

static void on_failed(void *ctx, const char *words)
{
	struct exec *e = ctx;
	control_refuse(e->request, "exec: %s", words);
	release(e);
}

static void on_gone(void *ctx)
{
	struct exec *e = ctx;
	agent_cancel(e->vm);
	release(e);
}

void exec_take(struct control_request *r, const json_t *object)
{
	static const struct agent_events events = {on_output, on_done, on_failed};
	const char *name = json_string_value(json_object_get(object, "vm"));
	const json_t *command = json_object_get(object, "command");
	struct host *h = control_host(r);
	char error[ERROR_MAX];
	if (!name || !json_is_string(command)) {
		control_refuse(r, "exec: needs \"vm\", a name, and \"command\", a text");
		return;
	}
	struct host_vm *vm = host_vm_by_name(h, name);
	if (!vm) {
		control_refuse(r, "exec: no running VM is called %s", name);
		return;
	}
	if (vm->is_template) {
		control_refuse(r, "exec: %s is a template, which doesn't run", name);
		return;
	}
	struct exec *e = fail_null(EXEC_MEMORY, calloc(1, sizeof *e));
	if (!e) {
		control_refuse(r, "exec: no memory");
		return;
	}
	*e = (struct exec){.request = r, .vm = vm};
	if (agent_exec(vm, json_string_value(command), json_string_length(command), &events, e,
		       error)) {
		control_refuse(r, "exec: %s", error);
		release(e);
		return;
	}
	control_on_gone(r, on_gone, e);
}

/* ---- the command --------------------------------------------------------------------------- */

#define EXIT_OURS 255 /* no status of the command: it didn't run, or not to its end */

static const char usage[] =
	"usage: invisor exec [--host SOCKET] VM [--] COMMAND...\n"
	"\n"
	"Runs a command in a guest whose agent listens, as the made guest's does (docs/AGENT.md). "
	"Its\n"
	"words are put together with spaces and given to the guest's shell. Prints what it wrote, "
	"and\n"
	"ends with its status; 255 if it could not be run. Ended early, it ends the command too.\n";

static bool write_all(const char *bytes, size_t n)
{
	while (n) {
		ssize_t w = write(STDOUT_FILENO, bytes, n);
		if (w < 0 && errno != EINTR)
			return false;
		if (w > 0) {
			bytes += w;
			n -= (size_t)w;
		}
	}
	return true;
}

/* The words with spaces between them; NULL without memory. */
static char *join(int n, char **words)
{
	size_t bytes = 1;
	for (int i = 0; i < n; i++)
		bytes += strlen(words[i]) + 1;
	char *text = malloc(bytes), *to = text;
	for (int i = 0; text && i < n; i++)
		to += sprintf(to, "%s%s", i ? " " : "", words[i]);
	return text;
}

static int print_answer(const json_t *answer)
{
	const json_t *output = json_object_get(answer, "output");
	size_t n = json_string_length(output);
	char *bytes = malloc(n + 1);
	long got = bytes && output ? base64_decode(bytes, json_string_value(output), n) : -1;
	bool ok = got >= 0 && write_all(bytes, (size_t)got);
	free(bytes);
	if (got < 0)
		fprintf(stderr, "invisor: the host's answer has no output in it\n");
	else if (!ok)
		fprintf(stderr, "invisor: standard output: %s\n", strerror(errno));
	return ok ? (int)answer_integer(answer, "status") : EXIT_OURS;
}

int command_exec(int argc, char **argv)
{
	const char *host = NULL;
	int at = 1;
	for (; at < argc && argv[at][0] == '-'; at++) {
		if (!strcmp(argv[at], "--help") || !strcmp(argv[at], "-h")) {
			fputs(usage, stdout);
			return 0;
		}
		if (strcmp(argv[at], "--host") || at + 1 == argc) {
			fprintf(stderr, "invisor: %s: no such option, or it needs a value\n",
				argv[at]);
			return EXIT_OURS;
		}
		host = argv[++at];
	}
	if (argc - at < 2) {
		fprintf(stderr, "invisor: exec needs a VM's name and a command\n");
		return EXIT_OURS;
	}
	char error[ERROR_MAX] = "exec: no memory, or the command is no UTF-8 text";
	int first = at + 1 + (at + 2 < argc && !strcmp(argv[at + 1], "--"));
	char *command = join(argc - first, argv + first);
	json_t *request = command ? json_pack("{s:s, s:s, s:s}", "do", "exec", "vm", argv[at],
					      "command", command)
				  : NULL;
	json_t *answer = request ? ask_host(host, request, error) : NULL;
	int status = EXIT_OURS;
	if (answer)
		status = print_answer(answer);
	else
		fprintf(stderr, "invisor: %s\n", error);
	json_decref(answer);
	json_decref(request);
	free(command);
	return status;
}
