/* `invisor clone`, `invisor pause` and `invisor resume`. */
#include "vmm/answer.h"
#include "vmm/cli.h"
#include "vmm/commands.h"
#include "vmm/size.h"
#include <stdio.h>
#include <string.h>

static void say_clones(const json_t *answer)
{
	size_t i;
	json_t *clone;
	json_array_foreach(json_object_get(answer, "clones"), i, clone)
		printf("%s\n", answer_text(clone, "name"));
}

static void say_nothing(const json_t *answer)
{
	(void)answer;
}

int command_clone(int argc, char **argv)
{
	enum { JSON, COUNT, NAME, PREDICT };
	static const struct cli_spec spec = {
		.command = "clone",
		.usage = "usage: invisor clone VM [-n COUNT] [--name NAME] [--predict on|off] "
			 "[--json] "
			 "[--host SOCKET]\n"
			 "Make copies of a running or paused guest, which go on from where it is. "
			 "They "
			 "share its memory\n"
			 "until they write to it. VM goes on too; what it was at that moment stays "
			 "as a "
			 "template (VM@N\n"
			 "in invisor ps), of which more clones can be made: invisor clone VM@N. "
			 "Prints "
			 "their names when\n"
			 "they run.\n"
			 "  -n, --count COUNT   how many (1); all or none\n"
			 "      --name NAME     their name; NAME-1, NAME-2 ... for several (VM.1 "
			 "...)\n"
			 "      --predict off   don't copy ahead what earlier clones of the "
			 "template wrote "
			 "to at once\n",
		.flag = {[JSON] = "json",
			 [COUNT] = "n,count=",
			 [NAME] = "name=",
			 [PREDICT] = "predict="},
		.least = 1,
		.most = 1,
		.operands = "takes the name of a VM"};
	struct cli c;
	uint64_t count = 1;
	int status = cli_parse(&c, &spec, argc, argv);
	if (status >= 0)
		return status;
	const char *predict = c.value[PREDICT] ? c.value[PREDICT] : "on";
	if (c.value[COUNT] && !number_parse(c.value[COUNT], 1, 1000000, &count))
		return cli_fail("clone: --count is a number from 1 on");
	if (strcmp(predict, "on") && strcmp(predict, "off"))
		return cli_fail("clone: --predict is on or off");
	json_t *request = json_pack("{s:s, s:s, s:I, s:b, s:s*}", "do", "clone", "vm", c.operand[0],
				    "count", (json_int_t)count, "predict", !strcmp(predict, "on"),
				    "name", c.value[NAME]);
	return cli_ask(&c, request, c.value[JSON], say_clones);
}

static int pause_or_resume(const char *what, const char *usage, int argc, char **argv)
{
	const struct cli_spec spec = {.command = what,
				      .usage = usage,
				      .flag = {"json"},
				      .least = 1,
				      .most = 1,
				      .operands = "takes the name of a VM"};
	return cli_just_ask(&spec, argc, argv, say_nothing);
}

int command_pause(int argc, char **argv)
{
	return pause_or_resume(
		"pause",
		"usage: invisor pause VM [--json] [--host SOCKET]\n"
		"Stop a guest in its tracks: its vCPUs stand still, its I/O is done. It "
		"keeps its memory.\n",
		argc, argv);
}

int command_resume(int argc, char **argv)
{
	return pause_or_resume("resume",
			       "usage: invisor resume VM [--json] [--host SOCKET]\n"
			       "Let a paused guest go on.\n",
			       argc, argv);
}
