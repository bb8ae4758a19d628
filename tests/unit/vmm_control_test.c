/* The control socket without a VM: requests answered at once, later and never, and streams. */
#include "vmm/control.h"
#include "vmm/error.h"
#include "vmm/host_private.h"
#include "vmm/rundir.h"
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static struct host host;
static struct control *control;
static char dir[] = "/tmp/invisor-unit-XXXXXX", path[64];
static struct control_request *kept; /* the last request that wasn't answered at once */
static unsigned goes, rooms, ends;
static char input[64];
static size_t input_held, input_room = sizeof input;

static void gone(void *ctx)
{
	cr_expect_eq(ctx, &goes);
	goes++;
	kept = NULL;
}

static size_t take_input(void *ctx, const char *bytes, size_t n)
{
	(void)ctx;
	if (n > input_room - input_held)
		n = input_room - input_held;
	memcpy(input + input_held, bytes, n);
	input_held += n;
	if (n && input[input_held - 1] == '!') {
		control_stream_end(kept);
		kept = NULL;
	}
	return n;
}

static void input_end(void *ctx)
{
	(void)ctx;
	ends++;
}

static void room(void *ctx)
{
	(void)ctx;
	rooms++;
}

static void handler(struct control_request *r, const json_t *o)
{
	static const struct control_stream stream = {take_input, input_end, room, gone};
	const char *what = json_string_value(json_object_get(o, "do"));
	cr_expect_eq(control_ctx(r), &control);
	if (!strcmp(what, "now")) {
		control_reply(r, json_pack("{s:i}", "n", 1));
	} else if (!strcmp(what, "refuse")) {
		control_refuse(r, "no %s", "way");
	} else if (!strcmp(what, "later")) {
		kept = r;
		control_on_gone(r, gone, &goes);
	} else if (!strcmp(what, "stream")) {
		kept = r;
		control_stream(r, json_pack("{s:b}", "stream", 1), &stream, &goes);
	}
}

/* Handle what there is to handle. */
static void turn(void)
{
	struct epoll_event e;
	for (int i = 0; i < 1000 && epoll_wait(host.epoll, &e, 1, 0) == 1; i++) {
		struct host_source *s = e.data.ptr;
		s->ready(s, e.events);
	}
}

static void open_control(void)
{
	char error[ERROR_MAX] = "";
	cr_assert(mkdtemp(dir));
	setenv("INVISOR_RUN_DIR", dir, 1);
	host.epoll = epoll_create1(0);
	const struct control_config config = {
		.host = &host, .file = RUNDIR_HOST, .handler = handler, .ctx = &control};
	cr_assert_eq(control_create(&control, &config, error), 0, "%s", error);
	snprintf(path, sizeof path, "%s/%s", dir, RUNDIR_HOST);
}

static void close_control(void)
{
	control_destroy(control);
	cr_expect_neq(access(path, F_OK), 0, "the socket stays");
	rmdir(dir);
	close(host.epoll);
}

TestSuite(vmm_control, .init = open_control, .fini = close_control);

static int ask(const char *text)
{
	int fd = rundir_dial(path);
	cr_assert_geq(fd, 0);
	cr_assert_eq(send(fd, text, strlen(text), MSG_NOSIGNAL), (ssize_t)strlen(text));
	turn();
	return fd;
}

/* What has come; "" if the connection is closed. */
static const char *got(int fd)
{
	static char bytes[4096];
	ssize_t n = recv(fd, bytes, sizeof bytes - 1, MSG_DONTWAIT);
	if (n < 0)
		return NULL;
	bytes[n] = 0;
	return bytes;
}

Test(vmm_control, answers_at_once_and_closes)
{
	struct stat st;
	cr_assert_eq(stat(path, &st), 0);
	cr_expect_eq(st.st_mode & 0777, 0600);
	int fd = ask("{\"do\":\"now\"}\n");
	cr_expect_str_eq(got(fd), "{\"n\":1}\n");
	cr_expect_str_eq(got(fd), "");
	close(fd);
	fd = ask("{\"do\":");
	cr_expect_null(got(fd));
	cr_assert_eq(send(fd, "\"refuse\"}\n", 10, 0), 10);
	turn();
	cr_expect_str_eq(got(fd), "{\"error\":\"no way\"}\n");
	close(fd);
}

Test(vmm_control, refuses_what_is_no_request)
{
	static const char *const bad[] = {"\n", "nonsense\n", "[]\n", "{\"do\":\"now\"\n",
					  "\"\xff\"\n"};
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		int fd = ask(bad[i]);
		cr_expect(strstr(got(fd), "\"error\""), "%s", bad[i]);
		close(fd);
	}
	char *much = malloc(CONTROL_REQUEST_MAX + 1);
	memset(much, ' ', CONTROL_REQUEST_MAX);
	much[CONTROL_REQUEST_MAX] = 0;
	int fd = ask(much);
	cr_expect(strstr(got(fd), "at most"));
	close(fd);
	free(much);
}

Test(vmm_control, answers_later_and_hears_of_the_client_that_left)
{
	int fd = ask("{\"do\":\"later\"}\n");
	cr_expect_null(got(fd));
	cr_assert(kept);
	/* Only its sending side is shut: it still waits. */
	shutdown(fd, SHUT_WR);
	turn();
	cr_expect_eq(goes, 0);
	control_reply(kept, json_pack("{s:i}", "n", 2));
	cr_expect_str_eq(got(fd), "{\"n\":2}\n");
	close(fd);
	turn();
	cr_expect_eq(goes, 0);
	fd = ask("{\"do\":\"later\"}\n");
	close(fd);
	turn();
	cr_expect_eq(goes, 1);
	fd = ask("{\"do\":\"later\"}\n");
	control_destroy(control); /* a host that goes tells, too */
	cr_expect_eq(goes, 2);
	cr_expect_str_eq(got(fd), "");
	close(fd);
	rmdir(dir);
	const struct control_config config = {
		.host = &host, .file = RUNDIR_HOST, .handler = handler, .ctx = &control};
	char error[ERROR_MAX];
	cr_assert_eq(control_create(&control, &config, error), 0);
}

Test(vmm_control, serves_many_at_once_and_the_next_when_one_leaves)
{
	int fd[CONTROL_CLIENTS_MAX + 1];
	for (int i = 0; i <= CONTROL_CLIENTS_MAX; i++)
		fd[i] = ask(i < CONTROL_CLIENTS_MAX ? "{" : "{\"do\":\"now\"}\n");
	cr_expect_null(got(fd[CONTROL_CLIENTS_MAX]));
	close(fd[3]);
	turn();
	cr_expect_str_eq(got(fd[CONTROL_CLIENTS_MAX]), "{\"n\":1}\n");
	for (int i = 0; i <= CONTROL_CLIENTS_MAX; i++)
		if (i != 3)
			close(fd[i]);
	turn();
}

Test(vmm_control, a_request_that_does_not_come_makes_room)
{
	struct timespec most = {.tv_sec = 2, .tv_nsec = 500000000};
	control_destroy(control);
	const struct control_config config = {.host = &host,
					      .file = RUNDIR_HOST,
					      .handler = handler,
					      .ctx = &control,
					      .hear_ms = 100};
	char error[ERROR_MAX];
	cr_assert_eq(control_create(&control, &config, error), 0);
	int slow = ask("{\"do\":"), later = ask("{\"do\":\"later\"}\n");
	turn();
	cr_expect_null(got(slow));
	nanosleep(&most, NULL);
	turn();
	const char *words = got(slow);
	cr_expect(words && strstr(words, "within 100 ms"), "%s", words);
	cr_expect_str_eq(got(slow), "");
	cr_expect_null(got(later)); /* that one came in time, and waits as long as it takes */
	control_reply(kept, json_pack("{s:i}", "n", 3));
	cr_expect_str_eq(got(later), "{\"n\":3}\n");
	close(slow);
	close(later);
}

/* Even where the directory and the socket let everyone in. */
Test(vmm_control, another_user_is_turned_away)
{
	int said[2];
	char words[256] = "";
	if (geteuid())
		cr_skip_test("it takes root to be another user");
	cr_assert_eq(chmod(dir, 0755) | chmod(path, 0666) | pipe(said), 0);
	pid_t pid = fork();
	if (pid == 0) {
		if (setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534))
			_exit(2);
		int fd = rundir_dial(path);
		if (fd < 0 || send(fd, "{\"do\":\"now\"}\n", 13, MSG_NOSIGNAL) != 13)
			_exit(3);
		ssize_t n = recv(fd, words, sizeof words, 0);
		_exit(n <= 0 || write(said[1], words, (size_t)n) != n || recv(fd, words, 1, 0) > 0);
	}
	int status = -1;
	for (int tries = 0; tries < 500 && waitpid(pid, &status, WNOHANG) == 0; tries++) {
		turn();
		nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
	}
	cr_expect_eq(status, 0, "status %x", status);
	close(said[1]);
	cr_assert_gt(read(said[0], words, sizeof words - 1), 0);
	cr_expect_str_eq(words, "{\"error\":\"this host is another user's\"}\n");
	close(said[0]);
	/* Root is let in wherever it comes from; we are it. */
	int fd = ask("{\"do\":\"now\"}\n");
	cr_expect_str_eq(got(fd), "{\"n\":1}\n");
	close(fd);
}

Test(vmm_control, a_stream_carries_bytes_both_ways_with_back_pressure)
{
	int fd = ask("{\"do\":\"stream\"}\nabc");
	cr_expect_str_eq(got(fd), "{\"stream\":true}\n");
	cr_expect(input_held == 3 && !memcmp(input, "abc", 3), "bytes behind the request");
	cr_expect_eq(control_stream_send(kept, "xyz", 3), 3);
	cr_expect_str_eq(got(fd), "xyz");
	/* Input that isn't taken waits. */
	input_room = 5;
	cr_assert_eq(send(fd, "defg", 4, 0), 4);
	turn();
	cr_expect(input_held == 5 && !memcmp(input, "abcde", 5));
	input_room = 7;
	turn();
	cr_expect_eq(input_held, 5);
	control_stream_resume(kept);
	turn();
	cr_expect(input_held == 7 && !memcmp(input, "abcdefg", 7));
	/* Output for which there is no room is not taken, and room is told of once. */
	static char much[65536];
	size_t sent = 0, n;
	while ((n = control_stream_send(kept, much, sizeof much)) == sizeof much)
		sent += n;
	sent += n;
	turn();
	cr_expect_eq(rooms, 0);
	for (size_t seen = 0; seen < sent;) {
		ssize_t r = recv(fd, much, sizeof much, 0);
		cr_assert_gt(r, 0);
		seen += (size_t)r;
	}
	turn();
	cr_expect_eq(rooms, 1);
	/* The end of its input is no end of the stream. */
	shutdown(fd, SHUT_WR);
	turn();
	cr_expect_eq(ends, 1);
	cr_expect_eq(goes, 0);
	cr_expect_eq(control_stream_send(kept, "still", 5), 5);
	cr_expect_str_eq(got(fd), "still");
	close(fd);
	turn();
	cr_expect_eq(goes, 1);
}

Test(vmm_control, a_stream_may_be_ended_while_it_gives_input)
{
	int fd = ask("{\"do\":\"stream\"}\n");
	got(fd);
	control_stream_send(kept, "last", 4);
	cr_assert_eq(send(fd, "bye!", 4, 0), 4);
	turn();
	cr_expect_null(kept);
	cr_expect_eq(goes, 0);
	cr_expect_str_eq(got(fd), "last");
	close(fd);
}
