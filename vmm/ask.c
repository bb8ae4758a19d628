#include "vmm/ask.h"
#include "ipt/fail.h"
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
		ssize_t w = fail_call(ASK_SEND, send(fd, text + sent, n - sent, MSG_NOSIGNAL));
		if (w < 0 && errno != EINTR) {
			shutdown(fd, SHUT_WR); /* so that nobody waits for the rest */
			return;
		}
		if (w > 0)
			sent += (size_t)w;
	}
}

/* One line, and not a byte of what comes behind it. *line is to be freed, whatever comes of it. 0; -ENOMEM; -errno of recv;
 * -EPROTO: it ends before. */
static int read_line(int fd, char **line, size_t *held)
{
	size_t room = 0;
	while (*held < ANSWER_MAX) {
		if (room - *held < 4096) {
			room = room ? room * 2 : 16384;
			char *more = fail_null(ASK_MEMORY, realloc(*line, room));
			if (!more)
				return -ENOMEM;
			*line = more;
		}
		ssize_t n = fail_call(ASK_RECEIVE, recv(fd, *line + *held, room - *held, MSG_PEEK));
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -EPROTO;
		char *end = memchr(*line + *held, '\n', (size_t)n);
		size_t take = end ? (size_t)(end - *line) + 1 - *held : (size_t)n;
		if (recv(fd, *line + *held, take, 0) != (ssize_t)take)
			return -EPROTO;
		*held += take;
		if (end)
			return 0;
	}
	return -EPROTO;
}

json_t *ask_on(int fd, const json_t *request, char *error)
{
	char *text = json_dumps(request, JSON_COMPACT), *line = NULL;
	size_t n = 0;
	int rc = text ? 0 : -ENOMEM;
	/* A host that hears no more of a request may have said why. */
	if (text)
		send_line(fd, text);
	if (!rc)
		rc = read_line(fd, &line, &n);
	json_t *answer = rc ? NULL : json_loadb(line, n, 0, NULL);
	free(line);
	free(text);
	const char *refused = json_string_value(json_object_get(answer, "error"));
	if (answer && !refused)
		return answer;
	if (!refused)
		errorf(error, -EPROTO, "the host gave no answer%s%s",
		       rc && rc != -EPROTO ? ": " : "", rc && rc != -EPROTO ? strerror(-rc) : "");
	else
		errorf(error, -EPROTO, "%s", refused);
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
