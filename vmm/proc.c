#include "vmm/proc.h"
#include <errno.h>
#include <inttypes.h>
#include <linux/types.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static uint64_t key_kib(const char *path, const char *key)
{
	FILE *f = fopen(path, "re");
	char line[256];
	uint64_t value = 0;
	size_t n = strlen(key);
	while (f && fgets(line, sizeof line, f))
		if (!strncmp(line, key, n) && line[n] == ':' &&
		    sscanf(line + n + 1, "%" SCNu64, &value) == 1)
			break;
	if (f)
		fclose(f);
	return value;
}

/* linux/pidfd.h since 6.13; exit_code since 6.15. */
struct pidfd_info {
	__u64 mask, cgroup;
	__u32 pid, tgid, ppid, ruid, rgid, euid, egid, suid, sgid, fsuid, fsgid;
	__s32 exit_code;
};
#define GET_INFO  _IOWR(0xFF, 11, struct pidfd_info)
#define INFO_PID  (UINT64_C(1) << 0)
#define INFO_EXIT (UINT64_C(1) << 3)

int proc_exit_status(int pidfd)
{
	struct pidfd_info i = {.mask = INFO_EXIT};
	return ioctl(pidfd, GET_INFO, &i) == 0 && i.mask & INFO_EXIT ? i.exit_code : -1;
}

static enum proc_kin kin(uint64_t of, pid_t parent)
{
	return of == (uint64_t)parent || of == (uint64_t)getpid() ? PROC_CHILD : PROC_STRANGER;
}

/* Kernels before 6.13. */
static enum proc_kin read_kin(int pidfd, pid_t pid, pid_t parent)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/self/fdinfo/%d", pidfd);
	uint64_t is = key_kib(path, "Pid");
	if (is == UINT64_MAX) /* -1 */
		return PROC_GONE;
	if (is != (uint64_t)pid)
		return PROC_STRANGER;
	snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
	uint64_t of = key_kib(path, "PPid");
	return of ? kin(of, parent) : PROC_GONE;
}

enum proc_kin proc_kin(int pidfd, pid_t pid, pid_t parent)
{
	struct pidfd_info i = {.mask = INFO_PID};
	if (ioctl(pidfd, GET_INFO, &i) < 0)
		return errno == ESRCH ? PROC_GONE : read_kin(pidfd, pid, parent);
	if (!(i.mask & INFO_PID))
		return PROC_GONE;
	return i.pid == (__u32)pid ? kin(i.ppid, parent) : PROC_STRANGER;
}

uint64_t proc_meminfo_kib(const char *key)
{
	return key_kib("/proc/meminfo", key);
}

bool proc_slab(const char *cache, struct proc_slab *out)
{
	FILE *f = fopen("/proc/slabinfo", "re");
	char line[512], name[128];
	bool found = false;
	*out = (struct proc_slab){0, 0};
	/* name, objects in use, objects, bytes of one ... */
	while (f && !found && fgets(line, sizeof line, f))
		found = sscanf(line, "%127s %" SCNu64 " %*u %" SCNu64, name, &out->objects,
			       &out->object_bytes) == 3 &&
			!strcmp(name, cache);
	if (f)
		fclose(f);
	if (!found)
		*out = (struct proc_slab){0, 0};
	return found;
}

void proc_memory(pid_t pid, struct proc_memory *out)
{
	char path[64], line[512];
	*out = (struct proc_memory){0};
	snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
	out->page_table_kib = key_kib(path, "VmPTE");
	snprintf(path, sizeof path, "/proc/%d/smaps", (int)pid);
	FILE *f = fopen(path, "re");
	if (!f)
		return;
	bool ours = false; /* the mapping the lines are about is ours to leave out */
	uint64_t kib, start, end;
	while (fgets(line, sizeof line, f)) {
		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " ", &start, &end) == 2 &&
		    strchr(line, '-') < strchr(line, ' ')) {
			bool pool = strstr(line, "/memfd:invisor-pool") != NULL;
			out->pool_mappings += pool;
			/* That one is no VMA, but the kernel's own page for all. */
			out->mappings += strstr(line, "[vsyscall]") == NULL;
			/* Shared memory (pool, table, mailboxes) isn't this process's own. */
			ours = pool || strstr(line, "/memfd:") || strstr(line, "/dev/zero");
		} else if (!ours && sscanf(line, "Private_Dirty: %" SCNu64, &kib) == 1) {
			out->private_dirty_kib += kib;
		}
	}
	fclose(f);
	if (out->pool_mappings)
		out->pool_mappings--; /* the pool's own mapping, whole */
}
