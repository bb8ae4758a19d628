#include "vmm/fds.h"
#include <linux/close_range.h>
#include <stdlib.h>
#include <unistd.h>

static int compare_int(const void *a, const void *b)
{
	return *(const int *)a - *(const int *)b;
}

void fds_close_all_but(int *keep, unsigned n)
{
	qsort(keep, n, sizeof *keep, compare_int);
	int from = STDERR_FILENO + 1;
	for (unsigned i = 0; i < n; i++) {
		if (keep[i] > from)
			close_range((unsigned)from, (unsigned)keep[i] - 1, 0);
		if (keep[i] >= from)
			from = keep[i] + 1;
	}
	close_range((unsigned)from, ~0u, 0);
}

void fds_close(int *fds, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		if (fds[i] >= 0)
			close(fds[i]);
		fds[i] = -1;
	}
}
