#include "vmm/daemon.h"
#include "ipt/fail.h"
#include "vmm/answer.h"
#include "vmm/ask.h"
#include "vmm/cli.h"
#include "vmm/error.h"
#include "vmm/filelock.h"
#include "vmm/fleet.h"
#include "vmm/run.h"
#include "vmm/rundir.h"
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
#include <sys/wait.h>
#include <unistd.h>

#define LOG     "host.log"
#define LOCK_MS 2000
#define UP      "up" /* what the new host tells the command that waits for it */

int daemon_dial(void)
{
	char dir[256], path[300];
	rundir_path(dir, sizeof dir);
	snprintf(path, sizeof path, "%s/%s", dir, RUNDIR_HOST);
	return rundir_dial(path);
}

int daemon_ask_keeper(enum keeper_op op, uint64_t *vms)
{
	char dir[256], path[300];
	rundir_path(dir, sizeof dir);
	snprintf(path, sizeof path, "%s/%s", dir, KEEPER_SOCKET);
	return keeper_ask(path, op, vms);
}

static void report(const struct daemon *d, const char *words)
{
	if (d->report >= 0 && write(d->report, words, strlen(words)) < 0)
		fleet_say("nobody waits for this host to start");
}

/* Be the host, to its end. */
static int serve(const struct daemon *d)
{
	char error[ERROR_MAX] = "";
	struct fleet f;
	const struct fleet_config config = {
		.host = d->host, .file = RUNDIR_HOST, .ready = RUN_READY, .keep = true};
	int status = EXIT_BAD_INPUT;
	if (fleet_open(&f, &config, &(struct fleet_events){.ctx = NULL}, error)) {
		report(d, error);
		fleet_say("%s", error);
	} else {
		fleet_say("host %d: a pool of %" PRIu64 " MiB, %u VMs at most", (int)getpid(),
			  f.config.host.pool_bytes / MiB, f.config.host.max_vms);
		if (host_predecessors(f.host))
			fleet_say("adopted from a host that died: %u VMs, with pool, table and "
				  "options",
				  f.adopted);
		report(d, UP);
		if (d->report >= 0)
			close(d->report);
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
	int fd = daemon_dial();
	if (fd < 0)
		return false;
	struct pollfd p = {.fd = fd, .events = POLLIN};
	bool answers = send(fd, request, sizeof request - 1, MSG_NOSIGNAL) > 0 &&
		       poll(&p, 1, LOCK_MS) > 0 && recv(fd, &byte, 1, 0) == 1;
	close(fd);
	return answers;
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
	/* A host that was killed while it forked leaves its lock and its socket to the child, for a moment. */
	rc = filelock_take(fd, LOCK_EX, LOCK_MS, host_answers);
	if (rc) {
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
static _Noreturn void become_daemon(const struct daemon *d, int lock, const char *log)
{
	setsid();
	/* No leader of the session: it can't get a terminal again. */
	pid_t pid = fail_call(DAEMON_FORK, fork());
	if (pid < 0) {
		char error[ERROR_MAX];
		errorf(error, 0, "fork: %s", strerror(errno));
		report(d, error);
	}
	if (pid)
		_exit(pid < 0);
	umask(077);
	close_all_but(d->report, lock);
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	/* What the host said that died is of use still, if there is something to adopt. */
	uint64_t left;
	int fresh = daemon_ask_keeper(KEEPER_COUNT, &left) ? O_TRUNC : 0;
	int out = fail_call(DAEMON_LOG,
			    open(log, O_WRONLY | O_CREAT | fresh | O_APPEND | O_CLOEXEC, 0600));
	if (null < 0 || out < 0 || dup2(null, STDIN_FILENO) < 0 || dup2(out, STDOUT_FILENO) < 0 ||
	    dup2(out, STDERR_FILENO) < 0 || chdir("/") < 0) {
		char error[ERROR_MAX];
		errorf(error, 0, "%.180s: %s", log, strerror(errno));
		report(d, error);
		_exit(EXIT_BAD_INPUT);
	}
	if (null > STDERR_FILENO)
		close(null);
	if (out > STDERR_FILENO)
		close(out);
	fleet_say_when();
	exit(serve(d));
}

/* Start it and hear what becomes of it. */
static int start_in_background(struct daemon *d, int lock, const char *dir)
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
		d->report = pipes[1];
		become_daemon(d, lock, log);
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
		       d->pool_given && d->host.pool_bytes != (uint64_t)bytes
			       ? "; --pool is for a new one"
			       : "");
	json_decref(answer);
	return EXIT_CLEAN;
}

int daemon_start(struct daemon *d, bool foreground)
{
	char error[ERROR_MAX] = "", dir[PATH_MAX];
	int lock = lock_run_dir(dir, sizeof dir, error);
	if (lock < 0)
		return cli_fail(error);
	d->report = -1;
	int status = foreground ? serve(d) : start_in_background(d, lock, dir);
	close(lock);
	return status;
}
