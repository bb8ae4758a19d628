#include "vmm/sandbox.h"
#include "vmm/error.h"
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static const struct {
	const char *name;
	int flag;
} namespaces[SANDBOX_NAMESPACES] = {
	{"user", CLONE_NEWUSER}, /* first: it is what lets who isn't root enter the others */
	{"mnt", CLONE_NEWNS},
	{"net", CLONE_NEWNET},
	{"ipc", CLONE_NEWIPC},
	{"uts", CLONE_NEWUTS}};

static const char *const modes[] = {
	[SANDBOX_ON] = "on", [SANDBOX_LOG] = "log", [SANDBOX_OFF] = "off"};

/* The one that this process is in. */
static const struct sandbox *inside;

int sandbox_parse(const char *word, enum sandbox_mode *mode)
{
	for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
		if (!strcmp(word, modes[i])) {
			*mode = (enum sandbox_mode)i;
			return 0;
		}
	return -EINVAL;
}

/* ---- namespaces ---------------------------------------------------------------------------- */

/* Nothing is mounted any more but an empty directory that can't be written to. */
static int empty_root(void)
{
	const char *const at = "/proc"; /* a directory that is there, since we read from it */
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("none", at, "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC,
		  "size=4k,nr_inodes=2,mode=555") < 0 ||
	    chdir(at) < 0)
		return -errno;
	if (syscall(SYS_pivot_root, ".", ".") == 0)
		return umount2(".", MNT_DETACH) < 0 || chdir("/") < 0 ? -errno : 0;
	/* The root file system of an initramfs can't be put away (pivot_root(2)), only covered. */
	if (mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
		return -errno;
	return 0;
}

static int write_file(const char *path, const char *words)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : write(fd, words, strlen(words));
	int rc = n < 0 ? -errno : 0;
	if (fd >= 0)
		close(fd);
	return rc;
}

/* Who isn't root is himself in a user namespace of his, and nobody else is there. */
static int map_user(uid_t uid, gid_t gid)
{
	char line[64];
	int rc = write_file("/proc/self/setgroups", "deny");
	snprintf(line, sizeof line, "%u %u 1", uid, uid);
	if (!rc)
		rc = write_file("/proc/self/uid_map", line);
	snprintf(line, sizeof line, "%u %u 1", gid, gid);
	return rc ? rc : write_file("/proc/self/gid_map", line);
}

/* A process that makes them, says how that went, and waits until they have been opened. */
static _Noreturn void maker(bool root, int said, int heard)
{
	int flags = 0;
	char byte;
	uid_t uid = geteuid();
	gid_t gid = getegid();
	for (unsigned i = root; i < SANDBOX_NAMESPACES; i++)
		flags |= namespaces[i].flag;
	int rc = unshare(flags) < 0 ? -errno : 0;
	if (!rc && !root)
		rc = map_user(uid, gid);
	if (!rc)
		rc = empty_root();
	if (write(said, &rc, sizeof rc) != sizeof rc || read(heard, &byte, 1) < 0)
		_exit(1);
	_exit(0);
}

static int open_namespaces(struct sandbox *s, pid_t pid)
{
	char path[64];
	for (unsigned i = s->root; i < SANDBOX_NAMESPACES; i++) {
		snprintf(path, sizeof path, "/proc/%d/ns/%s", (int)pid, namespaces[i].name);
		s->ns[i] = open(path, O_RDONLY | O_CLOEXEC);
		if (s->ns[i] < 0)
			return -errno;
	}
	return 0;
}

/* One set for all, since a network namespace costs a millisecond and some hundred KiB: what they share is that nothing
 * is in them. */
static int make_namespaces(struct sandbox *s)
{
	int say[2], hear[2], rc = 0;
	if (pipe2(say, O_CLOEXEC) < 0)
		return -errno;
	if (pipe2(hear, O_CLOEXEC) < 0) {
		rc = -errno;
		close(say[0]);
		close(say[1]);
		return rc;
	}
	fflush(NULL);
	pid_t pid = fork();
	if (pid == 0) {
		close(hear[1]);
		maker(s->root, say[1], hear[0]);
	}
	if (pid < 0)
		rc = -errno;
	close(say[1]);
	close(hear[0]);
	if (!rc && read(say[0], &rc, sizeof rc) != sizeof rc)
		rc = -EIO;
	if (!rc)
		rc = open_namespaces(s, pid);
	close(say[0]);
	close(hear[1]);
	if (pid > 0)
		waitpid(pid, NULL, 0);
	return rc;
}

/* ---- in the host --------------------------------------------------------------------------- */

static void close_namespaces(struct sandbox *s)
{
	for (unsigned i = 0; i < SANDBOX_NAMESPACES; i++) {
		if (s->ns[i] >= 0)
			close(s->ns[i]);
		s->ns[i] = -1;
	}
}

int sandbox_create(struct sandbox *s, enum sandbox_mode mode, uid_t first_id, char *error)
{
	*s = SANDBOX_NONE;
	s->mode = mode;
	s->root = geteuid() == 0;
	s->first_id = first_id ? first_id : SANDBOX_FIRST_ID;
	/* Other hosts' VMs have ids of the same range. With those of VMs that are adopted it goes on (host_adopt.c). */
	if (getrandom(&s->given, sizeof s->given, GRND_NONBLOCK) < 0)
		s->given = 0;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	s->sanitized = mode != SANDBOX_OFF;
	s->mode = mode = SANDBOX_OFF;
#endif
	if (mode == SANDBOX_OFF)
		return 0;
	s->null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (s->null_fd < 0)
		return errorf(error, -errno, "sandbox: /dev/null: %s", strerror(errno));
	int rc = seccomp_make(&s->filters, mode == SANDBOX_LOG);
	if (rc) {
		sandbox_destroy(s);
		return errorf(error, rc, "sandbox: libseccomp: %s; --sandbox off goes without it",
			      strerror(-rc));
	}
	rc = make_namespaces(s);
	if (rc)
		close_namespaces(s);
	/* Root in a container, or a host that lets nobody else make them: they are left out. */
	if (rc && rc != -EPERM && (s->root || (rc != -ENOSPC && rc != -EACCES))) {
		sandbox_destroy(s);
		return errorf(error, rc, "sandbox: namespaces: %s; --sandbox off goes without it",
			      strerror(-rc));
	}
	return 0;
}

void sandbox_destroy(struct sandbox *s)
{
	close_namespaces(s);
	if (s->null_fd >= 0)
		close(s->null_fd);
	s->null_fd = -1;
	seccomp_free(&s->filters);
}

const char *sandbox_notice(const struct sandbox *s)
{
	if (s->sanitized)
		return "built with a sanitizer, which makes system calls of its own: guests' "
		       "processes are "
		       "in no sandbox";
	if (s->mode != SANDBOX_OFF && s->ns[1] < 0)
		return "this host may not make namespaces: guests' "
		       "processes stay in "
		       "its own";
	return NULL;
}

uid_t sandbox_next_id(struct sandbox *s)
{
	return s->first_id + s->given++ % SANDBOX_IDS;
}

/* ---- in the process ------------------------------------------------------------------------ */

void sandbox_streams(const struct sandbox *s)
{
	char path[] = "/proc/self/fd/2";
	if (s->mode == SANDBOX_OFF)
		return;
	dup2(s->null_fd, STDIN_FILENO);
	dup2(s->null_fd, STDOUT_FILENO);
	/* Assertions are written there, so it stays. */
	int fd = isatty(STDERR_FILENO) ? open(path, O_WRONLY | O_NOCTTY | O_CLOEXEC) : -1;
	if (isatty(STDERR_FILENO))
		dup2(fd >= 0 ? fd : s->null_fd, STDERR_FILENO);
	if (fd >= 0)
		close(fd);
}

unsigned sandbox_fds(const struct sandbox *s, int fds[SANDBOX_FDS])
{
	unsigned n = 0;
	if (s->mode == SANDBOX_OFF)
		return 0;
	for (unsigned i = 0; i < SANDBOX_NAMESPACES; i++)
		fds[n++] = s->ns[i];
	fds[n++] = s->null_fd;
	return n;
}

static int limit(int what, uint64_t most)
{
	struct rlimit r = {most, most}, now;
	if (getrlimit((__rlimit_resource_t)what, &now) < 0)
		return -errno;
	if (now.rlim_max < most) /* less than we need perhaps, but it was wanted so */
		r = (struct rlimit){now.rlim_max, now.rlim_max};
	return setrlimit((__rlimit_resource_t)what, &r) < 0 ? -errno : 0;
}

static int set_limits(const struct sandbox_limits *l)
{
	int rc = limit(RLIMIT_CORE, 0);
	if (!rc && l->data_bytes)
		rc = limit(RLIMIT_DATA, l->data_bytes);
	if (!rc && l->lock_bytes)
		rc = limit(RLIMIT_MEMLOCK, l->lock_bytes);
	if (!rc && l->files)
		rc = limit(RLIMIT_NOFILE, l->files);
	if (!rc && l->tasks)
		rc = limit(RLIMIT_NPROC, l->tasks);
	return rc;
}

static int enter_namespaces(const struct sandbox *s)
{
	for (unsigned i = 0; i < SANDBOX_NAMESPACES; i++) {
		if (s->ns[i] < 0)
			continue;
		if (setns(s->ns[i], namespaces[i].flag) < 0)
			return -errno;
		close(s->ns[i]);
	}
	return 0;
}

/* Where we have no capabilities it fails, and there is nothing to lose. The kernel says where those that it knows end:
 * -EINVAL (prctl(2), PR_CAPBSET_DROP). */
static void drop_bounding_set(void)
{
	unsigned long cap = 0;
	while (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) == 0)
		cap++;
}

static int drop_ids(uid_t id)
{
	return setgroups(0, NULL) < 0 || setresgid(id, id, id) < 0 || setresuid(id, id, id) < 0
		       ? -errno
		       : 0;
}

static int drop_capabilities(void)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct none[2] = {{0}};
	prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	return syscall(SYS_capset, &head, none) < 0 ? -errno : 0;
}

int sandbox_enter(const struct sandbox *s, enum seccomp_kind kind, uid_t id,
		  const struct sandbox_limits *limits, char *error)
{
	int signal = 0;
	const char *what = "limits";
	if (s->mode == SANDBOX_OFF)
		return 0;
	prctl(PR_GET_PDEATHSIG, &signal);
	int rc = set_limits(limits);
	if (!rc) {
		what = "namespaces";
		rc = enter_namespaces(s);
	}
	close(s->null_fd);
	drop_bounding_set();
	if (!rc && s->root) {
		what = "ids (on,ID names others)";
		rc = drop_ids(id);
	}
	if (!rc) {
		what = "capabilities";
		rc = drop_capabilities();
	}
	/* The host, of the same user, reads of us in /proc. As root it may anyway, and nobody else of our id is to. */
	if (!rc && !s->root && prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) < 0)
		rc = -errno;
	/* A change of ids forgets it (prctl(2)); a host that died meanwhile is heard of by the link. */
	if (!rc && signal && prctl(PR_SET_PDEATHSIG, signal) < 0)
		rc = -errno;
	if (!rc && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		rc = -errno;
	if (!rc) {
		what = "seccomp";
		rc = seccomp_enter(&s->filters, kind);
	}
	if (rc)
		return errorf(error, rc, "sandbox: %s: %s; --sandbox off goes without it", what,
			      strerror(-rc));
	inside = s;
	return 0;
}

int sandbox_narrow(enum seccomp_kind kind)
{
	return inside ? seccomp_enter(&inside->filters, kind) : 0;
}

bool sandbox_confined(void)
{
	return inside;
}

uint64_t sandbox_data_bytes(void)
{
	unsigned long long pages = 0;
	FILE *f = fopen("/proc/self/statm", "re");
	if (f) {
		if (fscanf(f, "%*u %*u %*u %*u %*u %llu", &pages) != 1)
			pages = 0;
		fclose(f);
	}
	return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}
