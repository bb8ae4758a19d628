/*
 * The host's control socket: one JSON object a line in, one a line out (docs/CONTROL.md). It lies
 * in a directory that only its user may enter ($INVISOR_RUN_DIR, /run/invisor for root, else
 * $XDG_RUNTIME_DIR/invisor or /tmp/invisor-UID), named after the host's process.
 */
#ifndef VMM_CONTROL_H
#define VMM_CONTROL_H

#include "vmm/host.h"
#include <jansson.h>

struct control;

#define CONTROL_REQUEST_MAX 4096 /* bytes of one request */
#define CONTROL_CLIENTS_MAX 16   /* at once; more wait in the backlog */

/* Serve h. Sockets of hosts that died are removed on the way. -errno with words. */
int control_create(struct control **out, struct host *h, char *error);
void control_destroy(struct control *c);

/* The answer to one request (never NULL but without memory): what the socket does, without it. */
json_t *control_answer(struct host *h, const json_t *request);

/* Ask the running host; NULL with words if there is none, or several and `socket_path` is NULL. */
json_t *control_ask(const char *socket_path, const json_t *request, char *error);

/* `invisor owner`, `invisor translate`, `invisor audit`, `invisor stats` (query.c): exit status. */
int control_command_owner(int argc, char **argv);
int control_command_translate(int argc, char **argv);
int control_command_audit(int argc, char **argv);
int control_command_stats(int argc, char **argv);

#endif
