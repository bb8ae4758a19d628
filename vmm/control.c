#include "vmm/control.h"
#include "vmm/container.h"
#include "vmm/error.h"
#include "vmm/stats.h"
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

struct client {
	struct control *control;
	struct host_source source;
	char request[CONTROL_REQUEST_MAX];
	size_t held;
	char *reply; /* being sent */
	size_t reply_bytes, sent;
};

struct control {
	struct host *host;
	struct host_source listening;
	char path[sizeof((struct sockaddr_un *)0)->sun_path];
	struct client *client[CONTROL_CLIENTS_MAX];
};

/* ---- where sockets are --------------------------------------------------------------------- */

static void run_dir(char *out, size_t size)
{
	const char *own = getenv("INVISOR_RUN_DIR"), *xdg = getenv("XDG_RUNTIME_DIR");
	if (own && *own)
		snprintf(out, size, "%s", own);
	else if (geteuid() == 0)
		snprintf(out, size, "/run/invisor");
	else if (xdg && *xdg)
		snprintf(out, size, "%s/invisor", xdg);
	else
		snprintf(out, size, "/tmp/invisor-%u", (unsigned)geteuid());
}

static bool address(struct sockaddr_un *a, const char *path)
{
	*a = (struct sockaddr_un){.sun_family = AF_UNIX};
	return (size_t)snprintf(a->sun_path, sizeof a->sun_path, "%s", path) < sizeof a->sun_path;
}

/* A connection to the host at path; -1 with errno if there is none. */
static int dial(const char *path)
{
	struct sockaddr_un a;
	if (!address(&a, path)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd >= 0 && connect(fd, (struct sockaddr *)&a, sizeof a) < 0) {
		int saved = errno;
		close(fd);
		errno = saved;
		return -1;
	}
	return fd;
}

/* Look through the directory: connect to the hosts there, and remove sockets nobody listens at.
 * Returns how many answer; the first one's path goes to `found`. */
static unsigned find_hosts(char *found, size_t size)
{
	char dir[256], path[600];
	run_dir(dir, sizeof dir);
	DIR *d = opendir(dir);
	unsigned n = 0;
	struct dirent *e;
	while (d && (e = readdir(d))) {
		size_t len = strlen(e->d_name);
		if (strncmp(e->d_name, "host-", 5) || len < 10 ||
		    strcmp(e->d_name + len - 5, ".sock"))
			continue;
		snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
		int fd = dial(path);
		if (fd >= 0) {
			close(fd);
			if (!n++)
				snprintf(found, size, "%s", path);
		} else if (errno == ECONNREFUSED) {
			unlink(path);
		}
	}
	if (d)
		closedir(d);
	return n;
}

/* ---- answers ------------------------------------------------------------------------------- */

static json_t *refuse(const char *why)
{
	return json_pack("{s:s}", "error", why);
}

static const char *vm_name(struct ipt *t, vmid_t id, struct ipt_vm_info *info)
{
	return ipt_vm_info(t, id, info) ? "(unknown)" : info->name;
}

static json_t *answer_owner(struct host *h, const json_t *request)
{
	static const char *const states[IPT_NSTATES] = {"free", "limbo", "private"};
	struct ipt *t = host_table(h);
	const json_t *f = json_object_get(request, "frame");
	struct ipt_owner o;
	struct ipt_vm_info info;
	if (!json_is_integer(f))
		return refuse("owner: needs \"frame\", a number");
	json_int_t n = json_integer_value(f);
	if (n < 0 || n >= ipt_config(t)->frames || ipt_owner(t, frame((uint32_t)n), &o)) {
		char words[96];
		snprintf(words, sizeof words, "owner: frame %lld is outside the pool's %u frames",
			 (long long)n, ipt_config(t)->frames);
		return refuse(words);
	}
	json_t *a = json_pack("{s:I, s:s, s:i}", "frame", n, "state", states[o.state], "pins",
			      (int)o.pins);
	if (o.state != IPT_FREE) {
		json_object_set_new(a, "vm", json_string(vm_name(t, o.vm, &info)));
		json_object_set_new(a, "vm_id", json_integer(o.vm.v));
	}
	if (o.state == IPT_PRIVATE) {
		json_object_set_new(a, "gfn", json_integer((json_int_t)o.gfn.v));
		json_object_set_new(a, "gpa", json_integer((json_int_t)gfn_gpa(o.gfn).v));
	}
	return a;
}

static json_t *answer_translate(struct host *h, const json_t *request)
{
	struct ipt *t = host_table(h);
	const char *name = json_string_value(json_object_get(request, "vm"));
	const json_t *at = json_object_get(request, "gpa");
	vmid_t id;
	if (!name || !json_is_integer(at) || json_integer_value(at) < 0)
		return refuse("translate: needs \"vm\", a name, and \"gpa\", a number");
	if (ipt_vm_find(t, name, &id))
		return json_pack("{s:s+}", "error", "translate: no running VM is called ", name);
	struct host_vm *vm = host_vm_by_id(h, id);
	gpa_t a = gpa((uint64_t)json_integer_value(at));
	if (!vm || !machine_bank_of(&vm->config.machine, a, 1))
		return refuse("translate: the guest has no memory at that address");
	frame_t f = ipt_lookup(t, id, gpa_gfn(a));
	json_t *answer = json_pack("{s:s, s:I, s:I}", "vm", name, "gpa", (json_int_t)a.v, "gfn",
				   (json_int_t)gpa_gfn(a).v);
	json_object_set_new(answer, "state", json_string(frame_valid(f) ? "private" : "void"));
	if (frame_valid(f)) {
		json_object_set_new(answer, "frame", json_integer(f.v));
		json_object_set_new(answer, "pool_offset",
				    json_integer((json_int_t)(((uint64_t)f.v << PAGE_SHIFT) |
							      (a.v & PAGE_MASK))));
	}
	return answer;
}

static void audit_say(void *ctx, const char *line)
{
	json_t *lines = ctx;
	if (json_array_size(lines) < 20)
		json_array_append_new(lines, json_string(line));
}

static json_t *answer_audit(struct host *h)
{
	json_t *lines = json_array();
	int n = ipt_audit(host_table(h), audit_say, lines);
	return json_pack("{s:i, s:o}", "violations", n, "lines", lines);
}

json_t *control_answer(struct host *h, const json_t *request)
{
	const char *what = json_string_value(json_object_get(request, "do"));
	if (!what)
		return refuse("a request is an object with \"do\"");
	if (!strcmp(what, "owner"))
		return answer_owner(h, request);
	if (!strcmp(what, "translate"))
		return answer_translate(h, request);
	if (!strcmp(what, "stats"))
		return stats_take(h);
	if (!strcmp(what, "audit"))
		return answer_audit(h);
	return refuse("unknown \"do\"; there are owner, translate, stats, audit");
}

/* ---- serving ------------------------------------------------------------------------------- */

static void drop(struct client *cl)
{
	struct control *c = cl->control;
	host_remove_source(c->host, &cl->source);
	close(cl->source.fd);
	for (unsigned i = 0; i < CONTROL_CLIENTS_MAX; i++)
		if (c->client[i] == cl) {
			/* The listener was left out while all places were taken. */
			bool full = true;
			for (unsigned j = 0; j < CONTROL_CLIENTS_MAX; j++)
				full = full && c->client[j];
			c->client[i] = NULL;
			if (full)
				host_add_source(c->host, &c->listening, EPOLLIN);
		}
	free(cl->reply);
	free(cl);
}

static void send_reply(struct client *cl)
{
	while (cl->sent < cl->reply_bytes) {
		ssize_t n = send(cl->source.fd, cl->reply + cl->sent, cl->reply_bytes - cl->sent,
				 MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN) {
			/* Wait for room; hear nothing more of it meanwhile. */
			host_remove_source(cl->control->host, &cl->source);
			host_add_source(cl->control->host, &cl->source, EPOLLOUT);
			return;
		}
		if (n < 0) {
			drop(cl);
			return;
		}
		cl->sent += (size_t)n;
	}
	drop(cl); /* one request a connection */
}

static void handle(struct client *cl, size_t line)
{
	json_error_t where;
	json_t *request = json_loadb(cl->request, line, 0, &where), *answer;
	if (json_is_object(request))
		answer = control_answer(cl->control->host, request);
	else
		answer = refuse("a request is one JSON object on a line");
	cl->reply = answer ? json_dumps(answer, JSON_COMPACT) : NULL;
	json_decref(request);
	json_decref(answer);
	if (!cl->reply) {
		drop(cl);
		return;
	}
	cl->reply_bytes = strlen(cl->reply);
	cl->reply[cl->reply_bytes++] = '\n'; /* in the NUL's place: it is sent by length */
	send_reply(cl);
}

static void on_client(struct host_source *s, uint32_t events)
{
	struct client *cl = container(struct client, source, s);
	(void)events;
	if (cl->reply) {
		send_reply(cl);
		return;
	}
	ssize_t n =
		recv(s->fd, cl->request + cl->held, sizeof cl->request - cl->held, MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		drop(cl);
		return;
	}
	char *end = memchr(cl->request + cl->held, '\n', (size_t)n);
	cl->held += (size_t)n;
	if (end)
		handle(cl, (size_t)(end - cl->request));
	else if (cl->held == sizeof cl->request)
		drop(cl);
}

static bool may_ask(int fd)
{
	struct ucred peer;
	socklen_t len = sizeof peer;
	return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) == 0 &&
	       (peer.uid == 0 || peer.uid == geteuid());
}

static void on_listening(struct host_source *s, uint32_t events)
{
	struct control *c = container(struct control, listening, s);
	(void)events;
	unsigned place = 0;
	while (place < CONTROL_CLIENTS_MAX && c->client[place])
		place++;
	if (place == CONTROL_CLIENTS_MAX) {
		host_remove_source(c->host, s); /* drop() takes it in again */
		return;
	}
	int fd = accept4(s->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd < 0)
		return;
	struct client *cl = may_ask(fd) ? calloc(1, sizeof *cl) : NULL;
	if (cl) {
		*cl = (struct client){.control = c, .source = {fd, on_client}};
		if (host_add_source(c->host, &cl->source, EPOLLIN) == 0) {
			c->client[place] = cl;
			return;
		}
		free(cl);
	}
	close(fd);
}

int control_create(struct control **out, struct host *h, char *error)
{
	char dir[256], ignored[600];
	run_dir(dir, sizeof dir);
	if (mkdir(dir, 0700) < 0 && errno != EEXIST)
		return errorf(error, -errno,
			      "%.150s: %s; set INVISOR_RUN_DIR to a directory of yours", dir,
			      strerror(errno));
	struct stat st;
	if (stat(dir, &st) < 0 || !S_ISDIR(st.st_mode) || st.st_uid != geteuid() ||
	    st.st_mode & 022)
		return errorf(error, -EPERM,
			      "%.150s: must be a directory of yours that nobody else may write",
			      dir);
	find_hosts(ignored, sizeof ignored);
	struct control *c = calloc(1, sizeof *c);
	if (!c)
		return errorf(error, -ENOMEM, "no memory for the control socket");
	*c = (struct control){.host = h, .listening = {-1, on_listening}};
	struct sockaddr_un a;
	char path[600];
	snprintf(path, sizeof path, "%s/host-%d.sock", dir, (int)getpid());
	int rc = 0;
	if (!address(&a, path))
		rc = -ENAMETOOLONG;
	else {
		unlink(path); /* of a dead process with our number */
		c->listening.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		if (c->listening.fd < 0 ||
		    bind(c->listening.fd, (struct sockaddr *)&a, sizeof a) < 0 ||
		    chmod(path, 0600) < 0 || listen(c->listening.fd, 32) < 0)
			rc = -errno;
		else
			rc = host_add_source(h, &c->listening, EPOLLIN);
		snprintf(c->path, sizeof c->path, "%s", a.sun_path);
	}
	if (rc) {
		control_destroy(c);
		return errorf(error, rc, "control socket %.150s: %s", path, strerror(-rc));
	}
	*out = c;
	return 0;
}

void control_destroy(struct control *c)
{
	for (unsigned i = 0; i < CONTROL_CLIENTS_MAX; i++)
		if (c->client[i])
			drop(c->client[i]);
	if (c->listening.fd >= 0) {
		host_remove_source(c->host, &c->listening);
		close(c->listening.fd);
	}
	if (*c->path)
		unlink(c->path);
	free(c);
}

/* ---- asking -------------------------------------------------------------------------------- */

json_t *control_ask(const char *socket_path, const json_t *request, char *error)
{
	char path[600];
	if (socket_path) {
		snprintf(path, sizeof path, "%s", socket_path);
	} else {
		unsigned n = find_hosts(path, sizeof path);
		if (n != 1) {
			errorf(error, -ENOENT,
			       n ? "%u hosts run; name one's socket with --host" : "no host runs",
			       n);
			return NULL;
		}
	}
	int fd = dial(path);
	if (fd < 0) {
		errorf(error, -errno, "%.180s: %s", path, strerror(errno));
		return NULL;
	}
	char *text = json_dumps(request, JSON_COMPACT);
	FILE *f = fdopen(fd, "r+");
	json_t *answer = NULL;
	if (f && text && fprintf(f, "%s\n", text) > 0 && fflush(f) == 0) {
		json_error_t where;
		answer = json_loadf(f, JSON_DISABLE_EOF_CHECK, &where);
	}
	free(text);
	if (f)
		fclose(f);
	else
		close(fd);
	if (!answer)
		errorf(error, -EPROTO, "%.180s: no answer", path);
	else if (json_string_value(json_object_get(answer, "error"))) {
		errorf(error, -EINVAL, "%s", json_string_value(json_object_get(answer, "error")));
		json_decref(answer);
		answer = NULL;
	}
	return answer;
}
