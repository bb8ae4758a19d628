#include "vmm/rundir.h"
#include "ipt/fail.h"
#include "vmm/error.h"
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

void rundir_path(char *out, size_t size)
{
	const char *own = getenv("INVISOR_RUN_DIR"), *xdg = getenv("XDG_RUNTIME_DIR");
	if (own && *own)
		snprintf(out, size, "%s", own);
	else if (geteuid() == 0)
		snprintf(out, size, "/run/invisor");
	else if (xdg && *xdg)
		snprintf(out, size, "%s/invisor", xdg);
	else
		snprintf(out, size, "/tmp/invisor-%u", (unsigned)geteuid());
}

int rundir_make(char *error)
{
	char dir[256];
	struct stat st;
	rundir_path(dir, sizeof dir);
	if (fail_call(CONTROL_DIRECTORY, mkdir(dir, 0700)) < 0 && errno != EEXIST)
		return errorf(error, -errno,
			      "%.150s: %s; set INVISOR_RUN_DIR to a directory of yours", dir,
			      strerror(errno));
	if (stat(dir, &st) < 0 || !S_ISDIR(st.st_mode) || st.st_uid != geteuid() ||
	    st.st_mode & 022)
		return errorf(error, -EPERM,
			      "%.150s: must be a directory of yours that nobody else may write",
			      dir);
	return 0;
}

bool rundir_address(struct sockaddr_un *a, const char *path)
{
	*a = (struct sockaddr_un){.sun_family = AF_UNIX};
	return (size_t)snprintf(a->sun_path, sizeof a->sun_path, "%s", path) < sizeof a->sun_path;
}

int rundir_dial(const char *path)
{
	struct sockaddr_un a;
	if (!rundir_address(&a, path))
		return -ENAMETOOLONG;
	int fd = fail_call(ASK_SOCKET, socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
	if (fd < 0)
		return -errno;
	if (connect(fd, (struct sockaddr *)&a, sizeof a) < 0) {
		int rc = -errno;
		close(fd);
		return rc;
	}
	return fd;
}

static bool is_hosts(const char *file)
{
	size_t n = strlen(file);
	return !strcmp(file, RUNDIR_HOST) ||
	       (n >= 10 && !strncmp(file, "host-", 5) && !strcmp(file + n - 5, ".sock"));
}

/* Connect to every host there is, and remove the sockets that nobody listens at. Returns how many
 * answer; the long-running host's path, or else the first's, goes to `found`. *why: -errno, why another couldn't be
 * asked, else 0. */
static unsigned look(char *found, size_t size, int *why)
{
	char dir[256], path[600];
	unsigned n = 0;
	struct dirent *e;
	*why = 0;
	rundir_path(dir, sizeof dir);
	DIR *d = opendir(dir);
	while (d && (e = readdir(d))) {
		if (!is_hosts(e->d_name))
			continue;
		snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
		int fd = rundir_dial(path);
		if (fd >= 0) {
			close(fd);
			if (!n++ || !strcmp(e->d_name, RUNDIR_HOST))
				snprintf(found, size, "%s", path);
		} else if (fd == -ECONNREFUSED) {
			unlink(path);
		} else if (fd != -ENOENT) {
			*why = fd;
		}
	}
	if (d)
		closedir(d);
	return n;
}

void rundir_tidy(void)
{
	char ignored[600];
	int why;
	look(ignored, sizeof ignored, &why);
}

int rundir_connect(const char *socket_path, char *error)
{
	char path[600] = "";
	unsigned n = 1;
	int why = 0;
	if (socket_path)
		snprintf(path, sizeof path, "%s", socket_path);
	else
		n = look(path, sizeof path, &why);
	const char *file = strrchr(path, '/');
	if (!n && why)
		return errorf(error, why, "a host can't be asked: %s", strerror(-why));
	if (!n)
		return errorf(error, -ENOENT, "no host runs");
	if (n > 1 && !(file && !strcmp(file + 1, RUNDIR_HOST)))
		return errorf(error, -ENOENT, "%u hosts run; name one's socket with --host", n);
	int fd = rundir_dial(path);
	if (fd < 0)
		return errorf(error, fd, "%.180s: %s", path, strerror(-fd));
	return fd;
}
