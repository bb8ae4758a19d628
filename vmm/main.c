/* invisor: the command line. */
#include "vmm/commands.h"
#include "vmm/density.h"
#include "vmm/first_stack.h"
#include "vmm/kvm.h"
#include "vmm/nook.h"
#include "vmm/run.h"
#include <stdio.h>
#include <string.h>

static const char help[] =
	"usage: invisor COMMAND [OPTION]...   (invisor COMMAND --help says more)\n"
	"\n"
	"  run         boot guests whose memory comes from one inverted page table\n"
	"  density     boot more and more guests and measure what they cost\n"
	"  host        start, stop or look at the long-running host\n"
	"  probe       what this host's KVM can do for us\n"
	"\n"
	"of a running host:\n"
	"  ps          its VMs\n"
	"  top         its VMs, frames and faults, live\n"
	"  console     a VM's console\n"
	"  kill        end VMs\n"
	"  stats       its numbers, also for Prometheus\n"
	"  owner       who owns a frame of its pool\n"
	"  translate   which frame is behind a guest's physical address\n"
	"  clone       copy a running guest, sharing its memory\n"
	"  pause       stop a guest in its tracks\n"
	"  resume      let a paused guest go on\n"
	"  balloon     leave a guest with less of its memory, or more again\n"
	"  exec        run a command in a guest\n"
	"  reclaim     take pages of a guest out of memory\n"
	"  limit       the most of a guest that may be in memory\n"
	"  inject      let something go wrong for a guest: memory, disks, interrupts, clocks\n"
	"  scenario    let faults happen over time, as a file says\n"
	"  renew       give a guest a new generation id: it reseeds its random numbers\n"
	"  audit       check its table\n"
	"  fail        set failpoints, for tests\n";

static int probe(int argc, char **argv)
{
	(void)argc;
	(void)argv;
	char error[ERROR_MAX];
	struct kvm_host k;
	if (kvm_open(&k, error)) {
		fprintf(stderr, "invisor: %s\n", error);
		return EXIT_BAD_INPUT;
	}
	double rate[2];
	int native = kvm_is_native(&k, rate);
	kvm_close(&k);
	if (native < 0) {
		fprintf(stderr, "invisor: /dev/kvm: a test loop did not run: %s\n",
			strerror(-native));
		return EXIT_BAD_INPUT;
	}
	printf("%s: a privileged loop runs at %.3f times the speed of an unprivileged one\n",
	       native ? "native" : "software", rate[0] / rate[1]);
	return native ? EXIT_CLEAN : EXIT_GUEST;
}

static const struct {
	const char *name;
	int (*run)(int argc, char **argv);
} commands[] = {
	{"run", run_command},
	{"density", density_command},
	{"host", command_host},
	{"probe", probe},
	{"ps", command_ps},
	{"top", command_top},
	{"console", command_console},
	{"kill", command_kill},
	{"stats", command_stats},
	{"owner", command_owner},
	{"translate", command_translate},
	{"audit", command_audit},
	{"clone", command_clone},
	{"pause", command_pause},
	{"resume", command_resume},
	{"exec", command_exec},
	{"renew", command_renew},
	{"balloon", command_balloon},
	{"reclaim", command_reclaim},
	{"limit", command_limit},
	{"fail", command_fail},
	{"inject", command_inject},
	{"scenario", command_scenario},
};

static int obey(int argc, char **argv)
{
	const char *command = argc > 1 ? argv[1] : "";
	for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
		if (!strcmp(command, commands[i].name))
			return commands[i].run(argc - 1, argv + 1);
	if (!strcmp(command, "--help") || !strcmp(command, "-h") || !strcmp(command, "help")) {
		fputs(help, stdout);
		return EXIT_CLEAN;
	}
	fprintf(stderr, "invisor: '%.80s': no such command; see invisor --help\n", command);
	return EXIT_BAD_INPUT;
}

/* Which may become a host, and VMs' processes. */
int main(int argc, char **argv)
{
	nook_take();
	first_stack_leave(argc, argv, obey);
}
