/*
 * The run directory: where hosts' control sockets are ($INVISOR_RUN_DIR, /run/invisor for root, else
 * $XDG_RUNTIME_DIR/invisor or /tmp/invisor-UID). Only its user may enter it. The long-running host
 * (`invisor host start`) listens at host.sock, any other at host-PID.sock. Sockets that nobody
 * listens at any more are removed by whoever looks.
 */
#ifndef VMM_RUNDIR_H
#define VMM_RUNDIR_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/un.h>

#define RUNDIR_HOST "host.sock" /* the long-running host's */

/* Its path; cut short where it doesn't fit, and then no socket of it can be made. */
void rundir_path(char *out, size_t size);
/* Make it unless it is there, and check that it is ours alone. -errno with words. */
int rundir_make(char *error);
/* The address of a socket. False if the path is too long for one. */
bool rundir_address(struct sockaddr_un *a, const char *path);
/* A connection to the socket; -errno. */
int rundir_dial(const char *path);
/* Connect to the host at socket_path; or, where that is NULL, to the long-running one, or the only one
 * there is. Returns the connection, or -errno with words. */
int rundir_connect(const char *socket_path, char *error);
/* Remove the sockets of hosts that died. */
void rundir_tidy(void);

#endif
