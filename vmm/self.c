/*
 * What /proc says of a VM's own process. In a sandbox no file can be opened by its name: a VM that boots opens these before
 * it enters, a clone gets them from the host (LINK_SELF), which comes a little later than its first instruction. Who
 * needs them meanwhile does without: nothing is merged, taken out or given back that would take them.
 */
#include "vmm/memory.h"
#include "vmm/sandbox.h"
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

static int self(int *fd, const char *path)
{
	if (*fd < 0 && !sandbox_confined())
		*fd = open(path, O_RDONLY | O_CLOEXEC);
	return *fd;
}

int memory_pagemap(struct memory *m)
{
	return self(&m->pagemap, "/proc/self/pagemap");
}

static int maps(struct memory *m)
{
	return self(&m->maps, "/proc/self/maps");
}

uint32_t memory_allowed_mappings(void)
{
	static uint32_t allowed;
	static bool looked;
	FILE *f = looked || sandbox_confined() ? NULL : fopen("/proc/sys/vm/max_map_count", "re");
	if (f) {
		if (fscanf(f, "%u", &allowed) != 1)
			allowed = 0;
		fclose(f);
	}
	looked = true;
	return allowed;
}

uint32_t memory_count_mappings(struct memory *m)
{
	char bytes[4096];
	uint32_t lines = 0;
	ssize_t n;
	int fd = maps(m);
	if (fd < 0 || lseek(fd, 0, SEEK_SET) < 0)
		return UINT32_MAX;
	while ((n = read(fd, bytes, sizeof bytes)) > 0)
		for (ssize_t i = 0; i < n; i++)
			lines += bytes[i] == '\n';
	return n < 0 ? UINT32_MAX : lines;
}

void memory_open_self(struct memory *m, bool pagemap)
{
	maps(m);
	if (pagemap)
		memory_pagemap(m);
	memory_allowed_mappings();
}

void memory_take_self(struct memory *m, int pagemap, int maps_fd)
{
	if (m->pagemap >= 0)
		close(m->pagemap);
	if (m->maps >= 0)
		close(m->maps);
	m->pagemap = pagemap;
	m->maps = maps_fd;
}
