/*
 * How many mappings a window may get for the sake of saving memory: taking pages away from the midst of a mapping costs
 * two more, and a process may have only so many (vm.max_map_count), which faults need too.
 */
#include "vmm/memory.h"
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#define MAPPINGS_MOST  16384 /* of a window */
#define MAPPINGS_SHORT 16    /* shorter runs than this are refused from three quarters of it on */
#define COUNT_EVERY    2048  /* changes, at least, between counting mappings */

static uint32_t mappings_most(void)
{
	static uint32_t most;
	unsigned allowed;
	FILE *f = most ? NULL : fopen("/proc/sys/vm/max_map_count", "re");
	if (f) {
		if (fscanf(f, "%u", &allowed) == 1)
			most = allowed / 2 < MAPPINGS_MOST ? allowed / 2 : MAPPINGS_MOST;
		fclose(f);
	}
	return most ? most : MAPPINGS_MOST;
}

static uint32_t count_mappings(void)
{
	char bytes[4096];
	uint32_t lines = 0;
	ssize_t n;
	int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	while (fd >= 0 && (n = read(fd, bytes, sizeof bytes)) > 0)
		for (ssize_t i = 0; i < n; i++)
			lines += bytes[i] == '\n';
	if (fd >= 0)
		close(fd);
	return fd >= 0 ? lines : UINT32_MAX;
}

bool memory_has_room(struct memory *m, uint32_t count)
{
	uint32_t most = mappings_most();
	if (!m->mappings_left) {
		m->mappings = count_mappings();
		uint32_t left = m->mappings < most ? (most - m->mappings) / 2 : 0;
		m->mappings_left = left < COUNT_EVERY ? left : COUNT_EVERY;
	}
	if (!m->mappings_left || (m->mappings > most / 4 * 3 && count < MAPPINGS_SHORT))
		return false;
	m->mappings_left--;
	return true;
}
