/* What /proc says of a process and of the host. All 0 where it can't be read. */
#ifndef VMM_PROC_H
#define VMM_PROC_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct proc_memory {
	uint64_t private_dirty_kib; /* outside pool, table and mailboxes: what one more process
				       costs */
	uint64_t page_table_kib;    /* the process's own page tables (VmPTE) */
	uint64_t pool_mappings;     /* VMAs of the pool in its window */
	uint64_t mappings;          /* all VMAs */
};

/* A cache of the kernel's slab allocator. */
struct proc_slab {
	uint64_t objects, object_bytes;
};

void proc_memory(pid_t pid, struct proc_memory *out);
/* The wait status of a process that ended and isn't our child, by its pidfd; -1: the kernel doesn't tell (before 6.15), or
 * it hasn't ended. */
int proc_exit_status(int pidfd);
/* What `pid`, with that pidfd, is to `parent`, who says to have made it; one whose parent died is ours. Who names another
 * process than its own may be in others' hands. */
enum proc_kin { PROC_STRANGER, PROC_CHILD, PROC_GONE };
enum proc_kin proc_kin(int pidfd, pid_t pid, pid_t parent);
/* A line of /proc/meminfo, such as "MemTotal", in KiB. */
uint64_t proc_meminfo_kib(const char *key);
/* False, and zeroes, if /proc/slabinfo (root's) can't be read or has no cache of that name. */
bool proc_slab(const char *cache, struct proc_slab *out);

#endif
