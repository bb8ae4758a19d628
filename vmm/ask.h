/* The other end of the control socket: what commands ask a running host (docs/CONTROL.md). */
#ifndef VMM_ASK_H
#define VMM_ASK_H

#include <jansson.h>

/* Ask the host at socket_path, or (NULL) the one that rundir_connect finds. NULL with words if there
 * is none, or if it refuses. */
json_t *ask_host(const char *socket_path, const json_t *request, char *error);
/* The same on a connection of the caller's, which stays open: what follows the answer (a stream's
 * bytes) is left in it. */
json_t *ask_on(int fd, const json_t *request, char *error);

#endif
