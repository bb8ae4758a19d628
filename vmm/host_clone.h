/*
 * Clones, as the host makes them: a job a request. It asks a VM to freeze, if there is no template of what it is
 * now; then it registers the clones and asks the template for them, a few at a time; then it waits until they run.
 * The processes answer on their links, in order. All on the host's one thread, nothing waits.
 *
 * A clone that was asked for and not answered (FORKING) may have a process, which uses the table under its id: when
 * its template is gone, only the end of its link says that there is none.
 */
#ifndef VMM_HOST_CLONE_H
#define VMM_HOST_CLONE_H

#include "vmm/error.h"
#include "vmm/host_private.h"

struct clone_job {
	struct clone_job *next;
	struct host *host;
	struct host_clone_request request;
	char name[IPT_NAME_LEN];
	struct host_vm *source; /* the VM while it is being frozen, then the template */
	struct host_vm *template;
	/* [0, running) run, [running, answered) have processes, [answered, made) are FORKING; NULL: gone again */
	struct host_vm **clones;
	unsigned made, answered, running;
	uint64_t asked_ns;
	bool failed;
	char words[ERROR_MAX];
};

/* Go on with a job whose template is there. It may be gone afterwards. */
void host_clone_step(struct clone_job *job);
/* All or none: what was made goes again. The first words count. */
void host_clone_fail(struct clone_job *job, const char *format, ...)
	__attribute__((format(printf, 2, 3)));
/* Tell who asked, free the job, and let the next one of its template go on. */
void host_clone_finish(struct clone_job *job);

#endif
