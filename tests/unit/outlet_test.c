/* A VM's way out (vmm/outlet.h), with a loop that can't be asked to wait. */
#include "ipt/fail.h"
#include "vmm/outlet.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define WATCHES 16 /* more than a loop has without a ring */

static struct {
	struct loop *loop;
	struct outlet outlet;
	struct loop_op ops[WATCHES];
	char buffer[OUTLET_BYTES];
	int fd[2], rooms;
} at;

static void room(void *ctx)
{
	cr_assert_eq(ctx, &at);
	at.rooms++;
}

static void nothing(struct loop_op *op, int res, uint32_t flags)
{
	(void)op;
	(void)res;
	(void)flags;
}

static void set_up(void)
{
	char words[FAIL_WORDS_MAX];
	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, at.fd), 0);
	cr_assert_eq(loop_create(&at.loop, 4), 0);
	outlet_init(&at.outlet, at.buffer, at.fd[1], at.loop, room, &at);
	/* Without a ring, and none can be made. */
	loop_forget(at.loop);
	cr_assert_eq(loop_renew(at.loop, 4), 0);
	cr_assert_eq(fail_set(FAIL_LOOP_CREATE, "return(ENOMEM)", words), 0, "%s", words);
}

static void tear_down(void)
{
	fail_clear();
	loop_destroy(at.loop);
	close(at.fd[0]);
	close(at.fd[1]);
}

static size_t received(char *out, size_t size)
{
	size_t n = 0;
	for (int turn = 0; turn < 50 && n < size; turn++) {
		ssize_t got;
		cr_assert_eq(loop_step(at.loop, NULL, 1), 0);
		while (n < size && (got = recv(at.fd[0], out + n, size - n, MSG_DONTWAIT)) > 0)
			n += (size_t)got;
	}
	return n;
}

Test(vmm_outlet, what_is_no_line_goes_out_without_a_timer, .init = set_up, .fini = tear_down)
{
	char got[8] = "";
	outlet_write(&at.outlet, "login: ", 7);
	cr_assert_eq(received(got, 7), 7);
	cr_assert_str_eq(got, "login: ");
	outlet_write(&at.outlet, "$ ", 2);
	cr_assert_eq(received(got, 2), 2, "a second time");
}

Test(vmm_outlet, a_slow_host_is_waited_for_without_a_watch, .init = set_up, .fini = tear_down)
{
	static char bytes[4096], got[4096];
	size_t all = 0, back = 0;
	/* All that the loop can watch by poll it watches already. */
	for (unsigned i = 0; i < WATCHES; i++) {
		at.ops[i].done = nothing;
		if (loop_watch(at.loop, &at.ops[i], at.fd[0], POLLPRI) < 0)
			break;
		cr_assert_neq(i, WATCHES - 1, "it watches any number");
	}
	memset(bytes, 'x', sizeof bytes);
	for (size_t took = 1; took; all += took)
		took = outlet_offer(&at.outlet, bytes, sizeof bytes);
	cr_assert_eq(at.rooms, 0);
	while (back < all) {
		size_t n = received(got, sizeof got);
		cr_assert_gt(n, 0, "%zu of %zu came", back, all);
		back += n;
	}
	received(got, 1);
	cr_assert_gt(at.rooms, 0, "nobody was told that there is room");
	cr_assert_gt(outlet_offer(&at.outlet, bytes, 1), 0);
}
