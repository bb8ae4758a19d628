#include "vmm/ask.h"
#include "vmm/error.h"
#include "vmm/rundir.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define ANSWER_MAX (64u << 20) /* bytes; thousands of VMs' statistics have a few MiB */

static void send_line(int fd, char *text)
{
	size_t n = strlen(text), sent = 0;
	text[n++] = '\n'; /* in the NUL's place: it is sent by length */
	while (sent < n) {
		ssize_t w = send(fd, text + sent, n - sent, MSG_NOSIGNAL);
		if (w < 0 && errno != EINTR)
			return;
		if (w > 0)
			sent += (size_t)w;
	}
}

/* One line, and not a byte of what comes behind it. */
static json_t *read_line(int fd)
{
	char *line = NULL;
	size_t held = 0, room = 0;
	bool whole = false;
	while (!whole && held < ANSWER_MAX) {
		if (room - held < 4096) {
			room = room ? room * 2 : 16384;
			char *more = realloc(line, room);
			if (!more)
				break;
			line = more;
		}
		ssize_t n = recv(fd, line + held, room - held, MSG_PEEK);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		char *end = memchr(line + held, '\n', (size_t)n);
		size_t take = end ? (size_t)(end - line) + 1 - held : (size_t)n;
		whole = end;
		if (recv(fd, line + held, take, 0) != (ssize_t)take)
			break;
		held += take;
	}
	json_error_t where;
	json_t *answer = whole ? json_loadb(line, held, 0, &where) : NULL;
	free(line);
	return answer;
}

json_t *ask_on(int fd, const json_t *request, char *error)
{
	char *text = json_dumps(request, JSON_COMPACT);
	/* A host that hears no more of a request may have said why. */
	if (text)
		send_line(fd, text);
	json_t *answer = text ? read_line(fd) : NULL;
	free(text);
	const char *refused = json_string_value(json_object_get(answer, "error"));
	if (answer && !refused)
		return answer;
	errorf(error, -EPROTO, "%s", refused ? refused : "the host gave no answer");
	json_decref(answer);
	return NULL;
}

json_t *ask_host(const char *socket_path, const json_t *request, char *error)
{
	int fd = rundir_connect(socket_path, error);
	if (fd < 0)
		return NULL;
	json_t *answer = ask_on(fd, request, error);
	close(fd);
	return answer;
}
