#include "vmm/proc.h"
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

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

uint64_t proc_meminfo_kib(const char *key)
{
	return key_kib("/proc/meminfo", key);
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
