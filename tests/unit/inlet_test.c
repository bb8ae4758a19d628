/* A VM's way in (vmm/inlet.h), with a sink that takes what it is told to, and a loop that fails. */
#include "ipt/fail.h"
#include "vmm/error.h"
#include "vmm/inlet.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static struct {
	struct loop *loop;
	struct inlet inlet;
	char buffer[INLET_BYTES], got[256];
	size_t room, n;
	int host, lost, rc;
} at;

static size_t sink(void *ctx, const char *bytes, size_t n)
{
	cr_assert_eq(ctx, &at);
	if (n > at.room)
		n = at.room;
	memcpy(at.got + at.n, bytes, n);
	at.n += n;
	at.room -= n;
	return n;
}

static void lost(void *ctx, int rc)
{
	cr_assert_eq(ctx, &at);
	at.lost++;
	at.rc = rc;
}

static void set_up(void)
{
	int fd[2];
	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fd), 0);
	at.host = fd[0];
	at.room = sizeof at.got;
	cr_assert_eq(loop_create(&at.loop, 4), 0);
	inlet_init(&at.inlet, at.buffer, fd[1], at.loop, sink, lost, &at);
}

static void tear_down(void)
{
	fail_clear();
	loop_destroy(at.loop);
	close(at.host);
	close(at.inlet.fd);
}

static void turn(void)
{
	for (int i = 0; i < 50; i++)
		cr_assert_eq(loop_step(at.loop, NULL, 1), 0);
}

static void say(const char *words)
{
	cr_assert_eq(write(at.host, words, strlen(words)), (ssize_t)strlen(words));
	turn();
}

static void have_fail(const char *program)
{
	char words[ERROR_MAX];
	cr_assert_eq(fail_set(FAIL_LOOP_POLL, program, words), 0, "%s", words);
}

TestSuite(inlet, .init = set_up, .fini = tear_down);

Test(inlet, what_has_no_room_waits)
{
	at.room = 3;
	say("hello");
	cr_expect_eq(at.n, 3);
	say(" you");
	cr_expect_eq(at.n, 3);
	at.room = 100;
	inlet_wanted(&at.inlet);
	turn();
	cr_expect_eq(at.n, 9);
	cr_expect_eq(memcmp(at.got, "hello you", 9), 0);
	cr_expect_eq(at.lost, 0);
}

Test(inlet, an_error_of_watching_loses_nothing)
{
	for (int i = 0; i < 20; i++) {
		have_fail("3*return(EIO)");
		say("x");
		cr_assert_eq(at.n, (size_t)i + 1, "%zu came", at.n);
	}
	cr_expect_eq(at.lost, 0);
}

Test(inlet, one_that_cant_be_watched_says_so)
{
	int fd = dup(at.inlet.fd);
	close(at.inlet.fd);
	turn();
	have_fail("return(EIO)"); /* of the wait that is under way, for a descriptor that is gone */
	say("x");
	cr_expect_eq(at.lost, 1);
	cr_expect_lt(at.rc, 0);
	turn();
	cr_expect_eq(at.lost, 1, "once");
	cr_assert_eq(dup2(fd, at.inlet.fd), at.inlet.fd);
	close(fd);
}
