/* `invisor reclaim` and `invisor limit`. */
#include "vmm/answer.h"
#include "vmm/ask.h"
#include "vmm/cli.h"
#include "vmm/commands.h"
#include "vmm/error.h"
#include "vmm/run.h"
#include "vmm/size.h"
#include <stdio.h>
#include <string.h>

enum { JSON };

/* Ask and print; 1 if less came of it than was asked for. */
static int reclaim(const struct cli *c, json_t *request)
{
	char error[ERROR_MAX];
	if (!request)
		return cli_fail("a word of the command is no UTF-8 text");
	json_t *answer = ask_host(c->host, request, error);
	json_decref(request);
	if (!answer)
		return cli_fail(error);
	double wanted = answer_mib(answer, "bytes"), freed = answer_mib(answer, "freed_bytes");
	if (c->value[JSON])
		cli_json(answer);
	else
		printf("%.1f MiB taken out of memory\n", freed);
	json_decref(answer);
	if (freed >= wanted)
		return EXIT_CLEAN;
	fflush(stdout);
	fprintf(stderr,
		"invisor: reclaim: that is %.1f MiB less than asked for: the rest is in use, or "
		"there is nowhere to put it\n",
		wanted - freed);
	return EXIT_GUEST;
}

int command_reclaim(int argc, char **argv)
{
	static const struct cli_spec spec = {
		.command = "reclaim",
		.usage =
			"usage: invisor reclaim [--json] [--host SOCKET] VM|all SIZE\n"
			"Take so much of a guest's memory (or of all guests') out of memory now, "
			"needed or not:\n"
			"what is used least goes where the host's --pack and --swap say, and comes "
			"back when it is\n"
			"touched (docs/RECLAIM.md). Prints how much it was. Exit status 1 if that "
			"is less.\n",
		.flag = {[JSON] = "json"},
		.least = 2,
		.most = 2,
		.operands = "takes a VM's name, or all, and a size such as 64M"};
	struct cli c;
	uint64_t bytes;
	int status = cli_parse(&c, &spec, argc, argv);
	if (status >= 0)
		return status;
	if (!size_parse(c.operand[1], &bytes) || !bytes || bytes > INT64_MAX)
		return cli_fail("reclaim: takes a VM's name, or all, and a size such as 64M");
	bool all = !strcmp(c.operand[0], "all");
	json_t *request = all ? json_pack("{s:s, s:b, s:I}", "do", "reclaim", "all", 1, "bytes",
					  (json_int_t)bytes)
			      : json_pack("{s:s, s:s, s:I}", "do", "reclaim", "vm", c.operand[0],
					  "bytes", (json_int_t)bytes);
	return reclaim(&c, request);
}

static void say_limit(const json_t *a)
{
	const char *vm = json_string_value(json_object_get(a, "vm"));
	if (json_is_integer(json_object_get(a, "limit_bytes")))
		printf("%s has at most %.1f MiB in memory from now on\n", vm,
		       answer_mib(a, "limit_bytes"));
	else
		printf("%s has no limit any more\n", vm);
}

int command_limit(int argc, char **argv)
{
	static const struct cli_spec spec = {
		.command = "limit",
		.usage =
			"usage: invisor limit [--json] [--host SOCKET] VM SIZE|none\n"
			"The most of a guest's memory that may be in memory from now on; what is "
			"over that goes out\n"
			"within seconds (docs/RECLAIM.md). --mem-limit of invisor run says it from "
			"the start.\n",
		.flag = {[JSON] = "json"},
		.least = 2,
		.most = 2,
		.operands = "takes a VM's name, and a size such as 64M or none"};
	struct cli c;
	uint64_t bytes = 0;
	int status = cli_parse(&c, &spec, argc, argv);
	if (status >= 0)
		return status;
	bool none = !strcmp(c.operand[1], "none");
	if (!none && (!size_parse(c.operand[1], &bytes) || !bytes || bytes > INT64_MAX))
		return cli_fail("limit: takes a VM's name, and a size such as 64M or none");
	json_t *request = json_pack("{s:s, s:s, s:o}", "do", "limit", "vm", c.operand[0], "bytes",
				    none ? json_null() : json_integer((json_int_t)bytes));
	return cli_ask(&c, request, c.value[JSON], say_limit);
}
