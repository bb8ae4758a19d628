/* `invisor host`: the long-running host, in the background, and what is said to it. */
#include "ipt/fail.h"
#include "vmm/answer.h"
#include "vmm/ask.h"
#include "vmm/cli.h"
#include "vmm/commands.h"
#include "vmm/fleet.h"
#include "vmm/keeper.h"
#include "vmm/rundir.h"
#include "vmm/size.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_VMS       1024 /* unless asked for otherwise */
#define LOG           "host.log"
#define MERGE_PERCENT 10 /* of a CPU, unless asked for otherwise */
#define LOCK_MS       2000
#define LOCK_LOOK_MS  10
#define UP            "up" /* what the new host tells the command that waits for it */

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
	struct host_config host;
	bool pool_given;
	int merge; /* per cent of a CPU; -1: not given */
	bool foreground;
	int report; /* a pipe to the command that waits; -1: none */
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
			s->host.pool_bytes = o.pool_bytes;
			s->pool_given = true;
		} else if (option == 'K') {
			s->host.pack_bytes = o.pack_bytes;
		} else if (option == 'w') {
			s->host.swap_file = o.swap_file;
			s->host.swap_bytes = o.swap_bytes;
		} else if (option == 'B') {
			s->host.sandbox = o.sandbox;
			s->host.first_id = o.first_id;
		} else if (option == 'g')
			s->merge = (int)o.merge_percent;
		else if (option == 't')
			s->host.kind = o.table;
		return rc;
	case 'M':
		if (!number_parse(value, 1, RUN_MAX_GUESTS, &n))
			return errorf(error, -EINVAL,
				      "--max-vms: '%.80s' is no number from 1 to 4096", value);
		s->host.max_vms = (uint32_t)n;
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
	const char *file = s->host.swap_file;
	if (!file || *file == '/')
		return 0;
	if (!getcwd(here, sizeof here) ||
	    (size_t)snprintf(path, sizeof path, "%s/%s", here, file) >= sizeof path)
		return errorf(error, -ENAMETOOLONG, "--swap: %.100s: too long a name", file);
	s->host.swap_file = path;
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
	*s = (struct start){.host = {.kind = IPT_INDEX, .max_vms = MAX_VMS, .keeps = true},
			    .merge = -1,
			    .report = -1};
	int rc = options_parse(&spec, s, argc, argv, error);
	if (!rc)
		rc = find_swap_file(s, error);
	if (rc)
		return rc;
	char why[ERROR_MAX]; /* not asked for, so it may as well be missing */
	bool can_merge = s->host.kind == IPT_INDEX && fault_can_share(why) == 0;
	s->host.merge_percent = s->merge >= 0 ? (unsigned)s->merge : can_merge ? MERGE_PERCENT : 0;
	struct run_options o = options_run_defaults;
	o.pool_bytes = s->host.pool_bytes ? s->host.pool_bytes : options_most_pool();
	o.mem_bytes = o.pool_bytes; /* which is to be checked alone */
	rc = options_check_sizes(&o, error);
	s->host.pool_bytes = o.pool_bytes;
	return rc;
}

/* ---- the host ------------------------------------------------------------------------------ */

/* A connection to the host of the run directory; -errno. */
static int dial_host(void)
{
	char dir[256], path[300];
	rundir_path(dir, sizeof dir);
	snprintf(path, sizeof path, "%s/%s", dir, RUNDIR_HOST);
	return rundir_dial(path);
}

/* VMs that go on without a host, as their keeper is asked: how many there are. -ENOENT: there is none. */
static int ask_keeper(enum keeper_op op, uint64_t *vms)
{
	char dir[256], path[300];
	rundir_path(dir, sizeof dir);
	snprintf(path, sizeof path, "%s/%s", dir, KEEPER_SOCKET);
	return keeper_ask(path, op, vms);
}

static void report(const struct start *s, const char *words)
{
	if (s->report >= 0 && write(s->report, words, strlen(words)) < 0)
		fleet_say("nobody waits for this host to start");
}

/* Be the host, to its end. */
static int serve(const struct start *s)
{
	char error[ERROR_MAX] = "";
	struct fleet f;
	const struct fleet_config config = {
		.host = s->host, .file = RUNDIR_HOST, .ready = RUN_READY, .keep = true};
	int status = EXIT_BAD_INPUT;
	if (fleet_open(&f, &config, &(struct fleet_events){.ctx = NULL}, error)) {
		report(s, error);
		fleet_say("%s", error);
	} else {
		fleet_say("host %d: a pool of %" PRIu64 " MiB, %u VMs at most", (int)getpid(),
			  f.config.host.pool_bytes / MiB, f.config.host.max_vms);
		if (host_predecessors(f.host))
			fleet_say("adopted from a host that died: %u VMs, with pool, table and "
				  "options",
				  f.adopted);
		report(s, UP);
		if (s->report >= 0)
			close(s->report);
		int rc = fleet_run(&f);
		if (rc)
			fleet_say("the host's event loop: %s", strerror(-rc));
		status = rc ? EXIT_GUEST : fleet_status(&f);
		fleet_say("host %d ends", (int)getpid());
	}
	fleet_close(&f);
	return status;
}

/* Does whoever holds the lock answer? */
static bool host_answers(void)
{
	static const char request[] = "{\"do\":\"status\"}\n";
	char byte;
	int fd = dial_host();
	if (fd < 0)
		return false;
	struct pollfd p = {.fd = fd, .events = POLLIN};
	bool answers = send(fd, request, sizeof request - 1, MSG_NOSIGNAL) > 0 &&
		       poll(&p, 1, LOCK_MS) > 0 && recv(fd, &byte, 1, 0) == 1;
	close(fd);
	return answers;
}

/* A host that was killed while it forked leaves its lock and its socket to the child, for a moment. */
static int take_lock(int fd)
{
	for (unsigned ms = 0; flock(fd, LOCK_EX | LOCK_NB) < 0; ms += LOCK_LOOK_MS) {
		if (errno != EWOULDBLOCK)
			return -1;
		if (ms >= LOCK_MS || host_answers()) {
			errno = EWOULDBLOCK;
			return -1;
		}
		usleep(LOCK_LOOK_MS * 1000);
	}
	return 0;
}

/* Whoever holds the directory's lock is its host, so that of two started at once one gives way. No
 * descriptor of it reaches a VM's process. */
static int lock_run_dir(char *dir, size_t size, char *error)
{
	char path[256];
	rundir_path(path, sizeof path);
	int rc = rundir_make(error);
	if (rc)
		return rc;
	/* The host will have another working directory. */
	char *real = realpath(path, NULL);
	if (!real || strlen(real) >= size || setenv("INVISOR_RUN_DIR", real, 1) < 0) {
		free(real);
		return errorf(error, -ENAMETOOLONG, "%.150s: too long a name", path);
	}
	strcpy(dir, real);
	free(real);
	int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return errorf(error, -errno, "%.180s: %s", dir, strerror(errno));
	if (take_lock(fd) < 0) {
		rc = -errno;
		close(fd);
		return errorf(error, rc, "a host runs already in %.150s; see invisor host status",
			      dir);
	}
	return fd;
}

/* Nothing of whoever started the host is kept open but these two. */
static void close_all_but(int a, int b)
{
	int low = a < b ? a : b, high = a < b ? b : a;
	close_range(STDERR_FILENO + 1, (unsigned)low - 1, 0);
	close_range((unsigned)low + 1, (unsigned)high - 1, 0);
	close_range((unsigned)high + 1, ~0u, 0);
}

/* In the new process: leave session, terminal and working directory; messages go to the log. */
static _Noreturn void become_daemon(const struct start *s, int lock, const char *log)
{
	setsid();
	/* No leader of the session: it can't get a terminal again. */
	pid_t pid = fail_call(DAEMON_FORK, fork());
	if (pid < 0) {
		char error[ERROR_MAX];
		errorf(error, 0, "fork: %s", strerror(errno));
		report(s, error);
	}
	if (pid)
		_exit(pid < 0);
	umask(077);
	close_all_but(s->report, lock);
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	/* What the host said that died is of use still, if there is something to adopt. */
	uint64_t left;
	int fresh = ask_keeper(KEEPER_COUNT, &left) ? O_TRUNC : 0;
	int out = fail_call(DAEMON_LOG,
			    open(log, O_WRONLY | O_CREAT | fresh | O_APPEND | O_CLOEXEC, 0600));
	if (null < 0 || out < 0 || dup2(null, STDIN_FILENO) < 0 || dup2(out, STDOUT_FILENO) < 0 ||
	    dup2(out, STDERR_FILENO) < 0 || chdir("/") < 0) {
		char error[ERROR_MAX];
		errorf(error, 0, "%.180s: %s", log, strerror(errno));
		report(s, error);
		_exit(EXIT_BAD_INPUT);
	}
	if (null > STDERR_FILENO)
		close(null);
	if (out > STDERR_FILENO)
		close(out);
	fleet_say_when();
	exit(serve(s));
}

/* Start it and hear what becomes of it. */
static int start_daemon(struct start *s, int lock, const char *dir)
{
	char log[PATH_MAX + 16], words[ERROR_MAX] = "";
	int pipes[2];
	size_t n = 0;
	ssize_t got;
	snprintf(log, sizeof log, "%s/%s", dir, LOG);
	if (fail_call(DAEMON_PIPE, pipe2(pipes, O_CLOEXEC)) < 0)
		return cli_fail(strerror(errno));
	fflush(NULL);
	pid_t pid = fail_call(DAEMON_FORK, fork());
	if (pid < 0)
		snprintf(words, sizeof words, "fork: %s", strerror(errno));
	if (pid == 0) {
		close(pipes[0]);
		s->report = pipes[1];
		become_daemon(s, lock, log);
	}
	close(pipes[1]);
	while (pid > 0 && n < sizeof words - 1 &&
	       ((got = read(pipes[0], words + n, sizeof words - 1 - n)) > 0 ||
		(got < 0 && errno == EINTR)))
		n += got > 0 ? (size_t)got : 0;
	close(pipes[0]);
	if (pid > 0)
		waitpid(pid, NULL, 0);
	if (strcmp(words, UP)) {
		fleet_say("%s%s", *words ? words : "the host ended before it answered; see ",
			  *words ? "" : log);
		return EXIT_BAD_INPUT;
	}
	json_t *request = json_pack("{s:s}", "do", "status"), *answer;
	snprintf(log, sizeof log, "%s/%s", dir, RUNDIR_HOST);
	answer = ask_host(log, request, words);
	json_decref(request);
	if (!answer)
		return cli_fail(words);
	long long bytes = answer_integer(answer, "pool_bytes");
	printf("host %lld runs: a pool of %lld MiB, %lld VMs at most; messages in %s/%s\n",
	       answer_integer(answer, "pid"), bytes / (long long)MiB,
	       answer_integer(answer, "max_vms"), dir, LOG);
	if (answer_integer(answer, "hosts_before"))
		printf("adopted from a host that died: %lld VMs, with its pool and options%s\n",
		       answer_integer(answer, "adopted"),
		       s->pool_given && s->host.pool_bytes != (uint64_t)bytes
			       ? "; --pool is for a new one"
			       : "");
	json_decref(answer);
	return EXIT_CLEAN;
}

static int command_start(int argc, char **argv)
{
	char error[ERROR_MAX] = "", dir[PATH_MAX];
	struct start s;
	int rc = parse_start(&s, argc, argv, error);
	if (rc > 0)
		return EXIT_CLEAN;
	if (rc)
		return cli_fail(error);
	int lock = lock_run_dir(dir, sizeof dir, error);
	if (lock < 0)
		return cli_fail(error);
	int status = s.foreground ? serve(&s) : start_daemon(&s, lock, dir);
	close(lock);
	return status;
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
		if (ask_keeper(KEEPER_COUNT, &left) == 0)
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
	int fd = dial_host();
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
	if (c.value[0] && !c.host && !host_runs() && ask_keeper(KEEPER_END, &left) == 0)
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
	if (!answer)
		return cli_fail(error);
	if (c.value[0])
		cli_json(answer);
	else
		say_status(answer);
	json_decref(answer);
	return EXIT_CLEAN;
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
