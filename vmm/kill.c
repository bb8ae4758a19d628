/* `invisor kill`: ends guests of a running host. */
#include "vmm/ask.h"
#include "vmm/cli.h"
#include "vmm/commands.h"
#include "vmm/error.h"
#include "vmm/run.h"
#include <limits.h>
#include <stdio.h>

int command_kill(int argc, char **argv)
{
	enum { ALL, OFF, BUTTON };
	static const struct cli_spec spec = {
		.command = "kill",
		.usage = "usage: invisor kill [--off | --button] [--host SOCKET] VM...|--all\n"
			 "End guests, and return when they are gone.\n"
			 "  --off      power them off by order, disks flushed, without asking the "
			 "guest\n"
			 "  --button   press the power button, and wait for the guest to do it\n"
			 "  --all      all guests of the host\n"
			 "Without --off or --button their processes are killed.\n",
		.flag = {[ALL] = "all", [OFF] = "off", [BUTTON] = "button"},
		.most = INT_MAX,
		.operands = ""};
	struct cli c;
	char error[ERROR_MAX] = "";
	int status = cli_parse(&c, &spec, argc, argv);
	if (status >= 0)
		return status;
	if (!c.value[ALL] == !c.operands)
		return cli_fail("kill: takes either VMs' names or --all; see invisor kill --help");
	if (c.value[OFF] && c.value[BUTTON])
		return cli_fail("kill: either --off or --button");
	json_t *request = json_pack("{s:s, s:s, s:b}", "do", "kill", "how",
				    c.value[OFF]      ? "off"
				    : c.value[BUTTON] ? "button"
						      : "kill",
				    "all", !c.operands);
	json_t *names = json_array();
	for (int i = 0; i < c.operands; i++)
		if (json_array_append_new(names, json_string(c.operand[i])) < 0)
			errorf(error, 0, "kill: a VM's name is no UTF-8 text");
	json_object_set_new(request, "vms", names);
	json_t *answer = *error ? NULL : ask_host(c.host, request, error);
	json_decref(request);
	if (!answer)
		return cli_fail(error);
	json_decref(answer);
	return EXIT_CLEAN;
}
