/* `invisor host`: starting the long-running host, and what is said to it. */
#include "vmm/ask.h"
#include "vmm/cli.h"
#include "vmm/commands.h"
#include "vmm/daemon.h"
#include "vmm/error.h"
#include "vmm/memory.h"
#include "vmm/options.h"
#include "vmm/run.h"
#include "vmm/rundir.h"
#include "vmm/size.h"
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_VMS       1024 /* unless asked for otherwise */
#define MERGE_PERCENT 10   /* of a CPU, unless asked for otherwise */

static const char host_help[] =
	"usage: invisor host start [--pool SIZE] [--max-vms N] [--table KIND] [--merge SHARE]\n"
	"                          [--pack SIZE] [--swap FILE,SIZE] [--sandbox MODE]\n"
	"                          [--foreground]\n"
	"       invisor host stop [--kill] [--host SOCKET]\n"
	"       invisor host status [--json] [--host SOCKET]\n"
	"The long-running host, under which invisor run --detach starts guests: one a run "
	"directory\n"
	"($INVISOR_RUN_DIR, else /run/invisor, $XDG_RUNTIME_DIR/invisor or /tmp/invisor-UID).\n"
	"\n"
	"start         return once it answers; its messages go to host.log in the run directory.\n"
	"              VMs of a host that was killed go on without it, and are adopted, with "
	"their\n"
	"              pool; the options of the host that died hold then\n"
	"  --pool SIZE     host memory for all guests together (9 tenths of what there is); it is\n"
	"                  taken as guests use it\n"
	"  --max-vms N     guests at once, 1 to 4096 (1024)\n"
	"  --table KIND    ipt (inverted page table) or radix (per-VM tables, to compare)\n"
	"  --merge SHARE   merge guests' equal frames, with at most so many per cent of a CPU, "
	"or off (10)\n"
	"  --pack SIZE     pages that are little used go into so much compressed memory, besides "
	"the\n"
	"                  pool, when that is short (off)\n"
	"  --swap FILE,SIZE  and into this file, which is made if there is none (off)\n"
	"  --sandbox MODE  on, log or off: see invisor run --help (on)\n"
	"  --fail NAME=PROGRAM  set a failpoint (docs/FAULTS.md); repeat for more; --fail-seed N\n"
	"  --foreground    stay on the terminal; Ctrl-C powers the guests off and ends it\n"
	"stop          power the guests off (by their power button, then by order, then kill), "
	"end\n"
	"              the host, and return when it is gone\n"
	"  --kill          kill the guests at once; also those of a host that was killed\n"
	"status        is it there, and what does it have\n"
	"\n"
	"Exit status: 0, 1 if the host ended otherwise than asked to, 2 bad input or no host.\n";

struct start {
	struct daemon daemon;
	int merge; /* per cent of a CPU; -1: not given */
	bool foreground;
};

static int start_one(void *ctx, int option, char *value, char *error)
{
	struct start *s = ctx;
	struct run_options o = options_run_defaults;
	uint64_t n;
	int rc = 0;
	switch (option) {
	case 'p':
	case 't':
	case 'g':
	case 'K':
	case 'w':
	case 'B':
	case 'f':
	case 'x':
		rc = options_run_one(&o, option, value, error);
		if (option == 'p') {
			s->daemon.host.pool_bytes = o.pool_bytes;
			s->daemon.pool_given = true;
		} else if (option == 'K') {
			s->daemon.host.pack_bytes = o.pack_bytes;
		} else if (option == 'w') {
			s->daemon.host.swap_file = o.swap_file;
			s->daemon.host.swap_bytes = o.swap_bytes;
		} else if (option == 'B') {
			s->daemon.host.sandbox = o.sandbox;
			s->daemon.host.first_id = o.first_id;
		} else if (option == 'g')
			s->merge = (int)o.merge_percent;
		else if (option == 't')
			s->daemon.host.kind = o.table;
		return rc;
	case 'M':
		if (!number_parse(value, 1, RUN_MAX_GUESTS, &n))
			return errorf(error, -EINVAL,
				      "--max-vms: '%.80s' is no number from 1 to 4096", value);
		s->daemon.host.max_vms = (uint32_t)n;
		return 0;
	case 'F':
		s->foreground = true;
		return 0;
	}
	return -EINVAL;
}

/* The host will have another working directory than the command that starts it. */
static int find_swap_file(struct start *s, char *error)
{
	static char path[PATH_MAX];
	char here[PATH_MAX];
	const char *file = s->daemon.host.swap_file;
	if (!file || *file == '/')
		return 0;
	if (!getcwd(here, sizeof here) ||
	    (size_t)snprintf(path, sizeof path, "%s/%s", here, file) >= sizeof path)
		return errorf(error, -ENAMETOOLONG, "--swap: %.100s: too long a name", file);
	s->daemon.host.swap_file = path;
	return 0;
}

static int parse_start(struct start *s, int argc, char **argv, char *error)
{
	static const struct option longs[] = {
		{"pool", 1, NULL, 'p'},      {"max-vms", 1, NULL, 'M'},    {"table", 1, NULL, 't'},
		{"merge", 1, NULL, 'g'},     {"foreground", 0, NULL, 'F'}, {"help", 0, NULL, 'h'},
		{"pack", 1, NULL, 'K'},      {"swap", 1, NULL, 'w'},       {"fail", 1, NULL, 'f'},
		{"fail-seed", 1, NULL, 'x'}, {"sandbox", 1, NULL, 'B'},    {NULL, 0, NULL, 0},
	};
	static const struct options_spec spec = {.command = "host",
						 .help = host_help,
						 .shorts = ":h",
						 .longs = longs,
						 .one = start_one};
	*s = (struct start){.daemon.host = {.kind = IPT_INDEX, .max_vms = MAX_VMS, .keeps = true},
			    .merge = -1};
	int rc = options_parse(&spec, s, argc, argv, error);
	if (!rc)
		rc = find_swap_file(s, error);
	if (rc)
		return rc;
	char why[ERROR_MAX]; /* not asked for, so it may as well be missing */
	bool can_merge = s->daemon.host.kind == IPT_INDEX && fault_can_share(why) == 0;
	s->daemon.host.merge_percent = s->merge >= 0 ? (unsigned)s->merge
				       : can_merge   ? MERGE_PERCENT
						     : 0;
	struct run_options o = options_run_defaults;
	o.pool_bytes = s->daemon.host.pool_bytes ? s->daemon.host.pool_bytes : options_most_pool();
	o.mem_bytes = o.pool_bytes; /* which is to be checked alone */
	rc = options_check_sizes(&o, error);
	s->daemon.host.pool_bytes = o.pool_bytes;
	return rc;
}

static int command_start(int argc, char **argv)
{
	char error[ERROR_MAX] = "";
	struct start s;
	int rc = parse_start(&s, argc, argv, error);
	if (rc)
		return rc > 0 ? EXIT_CLEAN : cli_fail(error);
	return daemon_start(&s.daemon, s.foreground);
}

/* ---- saying something to it ---------------------------------------------------------------- */

/* A handle on the process at the other end of a socket; -1 if it can't be had. */
static int process_at(int fd)
{
	struct ucred peer = {.pid = 0};
	socklen_t n = sizeof peer;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &n) < 0 || peer.pid <= 0)
		return -1;
	return (int)syscall(SYS_pidfd_open, peer.pid, 0);
}

/* Ask the long-running host, unless another is named: no host of an invisor run is meant. *process
 * becomes a handle on it, if wanted. Takes the reference to the request. */
static json_t *ask(const struct cli *c, json_t *request, int *process, char *error)
{
	char dir[256], path[300];
	json_t *answer = NULL;
	rundir_path(dir, sizeof dir);
	snprintf(path, sizeof path, "%s/%s", dir, RUNDIR_HOST);
	int fd = rundir_connect(c->host ? c->host : path, error);
	uint64_t left;
	if (fd < 0 && !c->host && (fd == -ENOENT || fd == -ECONNREFUSED)) {
		if (daemon_ask_keeper(KEEPER_COUNT, &left) == 0)
			errorf(error, fd,
			       "no host runs; %" PRIu64 " VMs of one that died go on: invisor host "
			       "start adopts them, invisor host stop --kill ends them",
			       left);
		else
			errorf(error, fd, "no host runs");
	}
	if (fd >= 0) {
		if (process)
			*process = process_at(fd);
		answer = ask_on(fd, request, error);
		close(fd);
	}
	json_decref(request);
	return answer;
}

static bool host_runs(void)
{
	int fd = daemon_dial();
	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

static int command_stop(int argc, char **argv)
{
	static const struct cli_spec spec = {.command = "host stop",
					     .usage = host_help,
					     .flag = {"kill"},
					     .operands = "takes no arguments"};
	struct cli c;
	char error[ERROR_MAX] = "";
	int process = -1, status = cli_parse(&c, &spec, argc, argv);
	if (status >= 0)
		return status;
	uint64_t left;
	if (c.value[0] && !c.host && !host_runs() && daemon_ask_keeper(KEEPER_END, &left) == 0)
		return EXIT_CLEAN; /* VMs of a host that died */
	json_t *answer = ask(
		&c, json_pack("{s:s, s:s}", "do", "stop", "how", c.value[0] ? "kill" : "button"),
		&process, error);
	if (answer && process >= 0)
		poll(&(struct pollfd){.fd = process, .events = POLLIN}, 1, -1);
	if (process >= 0)
		close(process);
	if (!answer)
		return cli_fail(error);
	json_decref(answer);
	return EXIT_CLEAN;
}

static void say_status(const json_t *a)
{
	const char *state, *table;
	json_int_t pid, vms, max, bytes, frames, free_;
	double up;
	if (json_unpack((json_t *)a, "{s:I, s:s, s:F, s:I, s:I, s:I, s:I, s:I, s:s}", "pid", &pid,
			"state", &state, "uptime_seconds", &up, "vms", &vms, "max_vms", &max,
			"pool_bytes", &bytes, "frames_total", &frames, "frames_free", &free_,
			"table", &table) < 0) {
		puts("(an answer of another kind than expected)");
		return;
	}
	printf("host %lld: %s, up %.0f s, %lld of %lld VMs; pool %lld MiB, %lld of %lld frames "
	       "free; "
	       "table %s\n",
	       (long long)pid, state, up, (long long)vms, (long long)max,
	       (long long)(bytes / (json_int_t)MiB), (long long)free_, (long long)frames, table);
}

static int command_status(int argc, char **argv)
{
	static const struct cli_spec spec = {.command = "host status",
					     .usage = host_help,
					     .flag = {"json"},
					     .operands = "takes no arguments"};
	struct cli c;
	char error[ERROR_MAX] = "";
	int status = cli_parse(&c, &spec, argc, argv);
	if (status >= 0)
		return status;
	json_t *answer = ask(&c, json_pack("{s:s}", "do", "status"), NULL, error);
	return cli_answer(answer, c.value[0], say_status, error);
}

int command_host(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	if (!strcmp(what, "start"))
		return command_start(argc - 1, argv + 1);
	if (!strcmp(what, "stop"))
		return command_stop(argc - 1, argv + 1);
	if (!strcmp(what, "status"))
		return command_status(argc - 1, argv + 1);
	if (!strcmp(what, "--help") || !strcmp(what, "-h")) {
		fputs(host_help, stdout);
		return EXIT_CLEAN;
	}
	return cli_fail("host: takes start, stop or status; see invisor host --help");
}
