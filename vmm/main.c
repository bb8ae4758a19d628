/* invisor: the command line. */
#include "vmm/commands.h"
#include "vmm/density.h"
#include "vmm/kvm.h"
#include "vmm/run.h"
#include <stdio.h>
#include <string.h>

static const char help[] =
	"usage: invisor COMMAND [OPTION]...   (invisor COMMAND --help says more)\n"
	"\n"
	"  run         boot guests whose memory comes from one inverted page table\n"
	"  density     boot more and more guests and measure what they cost\n"
	"  owner       who owns a frame of a running host's pool\n"
	"  translate   which frame is behind a guest's physical address\n"
	"  clone       copy a running guest, sharing its memory\n"
	"  pause       stop a guest in its tracks; resume: let it go on\n"
	"  stats       a running host's numbers\n"
	"  audit       check a running host's table\n"
	"  probe       what this host's KVM can do for us\n";

static int probe(void)
{
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

int main(int argc, char **argv)
{
	const char *command = argc > 1 ? argv[1] : "";
	if (!strcmp(command, "run"))
		return run_command(argc - 1, argv + 1);
	if (!strcmp(command, "density"))
		return density_command(argc - 1, argv + 1);
	if (!strcmp(command, "owner"))
		return command_owner(argc - 1, argv + 1);
	if (!strcmp(command, "translate"))
		return command_translate(argc - 1, argv + 1);
	if (!strcmp(command, "audit"))
		return command_audit(argc - 1, argv + 1);
	if (!strcmp(command, "clone"))
		return command_clone(argc - 1, argv + 1);
	if (!strcmp(command, "pause"))
		return command_pause(argc - 1, argv + 1);
	if (!strcmp(command, "resume"))
		return command_resume(argc - 1, argv + 1);
	if (!strcmp(command, "stats"))
		return command_stats(argc - 1, argv + 1);
	if (!strcmp(command, "probe"))
		return probe();
	if (!strcmp(command, "--help") || !strcmp(command, "-h") || !strcmp(command, "help")) {
		fputs(help, stdout);
		return EXIT_CLEAN;
	}
	fprintf(stderr, "invisor: '%.80s': no such command; see invisor --help\n", command);
	return EXIT_BAD_INPUT;
}
