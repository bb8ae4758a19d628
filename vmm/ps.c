/* `invisor ps`: a running host's VMs, one a line. */
#include "ipt/addr.h"
#include "vmm/answer.h"
#include "vmm/ask.h"
#include "vmm/cli.h"
#include "vmm/commands.h"
#include "vmm/error.h"
#include "vmm/run.h"
#include <stdio.h>

static double frames_mib(long long frames)
{
	return (double)frames * PAGE_SIZE / (double)MiB;
}

static void say_vms(const json_t *vms)
{
	size_t i;
	json_t *vm;
	printf("%-20s %-9s %-20s %4s %12s %12s %12s %12s %8s\n", "NAME", "STATE", "PARENT", "CPUS",
	       "PROMISED MiB", "MAPPED MiB", "OWN MiB", "OUT MiB", "PID");
	json_array_foreach(vms, i, vm)
	{
		long long own = answer_integer(vm, "frames_private");
		long long shared =
			answer_integer(vm, "frames_inherited") + answer_integer(vm, "aliases");
		printf("%-20s %-9s %-20s %4lld %12.1f %12.1f %12.1f %12.1f %8lld\n",
		       answer_text(vm, "name"), answer_text(vm, "state"), answer_text(vm, "parent"),
		       answer_integer(vm, "cpus"), answer_mib(vm, "memory_bytes"),
		       frames_mib(own + shared), frames_mib(own),
		       frames_mib(answer_integer(vm, "frames_out")), answer_integer(vm, "pid"));
	}
}

int command_ps(int argc, char **argv)
{
	static const struct cli_spec spec = {
		.command = "ps",
		.usage = "usage: invisor ps [--json] [--host SOCKET]\n"
			 "The running host's VMs, one a line: name, state, the VM it was cloned "
			 "from, processors,\n"
			 "memory promised, mapped (of its own, and at most what it shares with "
			 "templates "
			 "and files),\n"
			 "of that its own, out of memory (docs/RECLAIM.md), process.\n",
		.flag = {"json"},
		.operands = "takes no arguments"};
	struct cli c;
	char error[ERROR_MAX] = "";
	int status = cli_parse(&c, &spec, argc, argv);
	if (status >= 0)
		return status;
	json_t *request = json_pack("{s:s, s:b}", "do", "stats", "processes", 0);
	json_t *answer = ask_host(c.host, request, error);
	json_decref(request);
	if (!answer)
		return cli_fail(error);
	const json_t *vms = json_object_get(answer, "vms");
	if (c.value[0])
		cli_json(vms);
	else
		say_vms(vms);
	json_decref(answer);
	return EXIT_CLEAN;
}
