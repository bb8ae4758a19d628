/* link.c: messages with descriptors. */
#include "virtio_fake.h"
#include "vmm/link.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

static unsigned open_files(void)
{
	unsigned n = 0;
	DIR *d = opendir("/proc/self/fd");
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

static void pair(int fd[2])
{
	cr_assert_eq(link_pair(fd), 0);
	cr_assert(fcntl(fd[0], F_GETFD) & FD_CLOEXEC && fcntl(fd[1], F_GETFL) & O_NONBLOCK);
}

Test(link, messages_come_whole_and_in_order)
{
	int fd[2], fds[LINK_FDS_MAX];
	struct link_request out = {.op = LINK_CLONE, .id = 7, .name = "x"}, in;
	uint32_t bell = LINK_ORDERS;
	pair(fd);
	cr_assert_eq(link_receive(fd[1], &in, sizeof in, fds), -EAGAIN);
	cr_assert_eq(fds[0], -1);
	cr_assert_eq(link_send(fd[0], &out, sizeof out, NULL, 0), 0);
	cr_assert_eq(link_send(fd[0], &bell, sizeof bell, NULL, 0), 0);
	cr_assert_eq(link_receive(fd[1], &in, sizeof in, fds), (ssize_t)sizeof in);
	cr_assert(!memcmp(&in, &out, sizeof in));
	/* What a shorter one doesn't have is 0, not what was there. */
	memset(&in, 0xff, sizeof in);
	cr_assert_eq(link_receive(fd[1], &in, sizeof in, fds), (ssize_t)sizeof bell);
	cr_assert(in.op == LINK_ORDERS && !in.id && !in.name[0] && !in.name[IPT_NAME_LEN - 1]);
	/* Of a longer one the rest is dropped, and the next is itself. */
	char large[400];
	memset(large, 'l', sizeof large);
	cr_assert_eq(link_send(fd[0], large, sizeof large, NULL, 0), 0);
	cr_assert_eq(link_send(fd[0], &out, sizeof out, NULL, 0), 0);
	struct {
		struct link_request r;
		char guard[16];
	} small;
	memset(&small, 'g', sizeof small);
	cr_assert_eq(link_receive(fd[1], &small.r, sizeof small.r, fds), (ssize_t)sizeof small.r);
	cr_assert(small.guard[0] == 'g' && small.r.name[3] == 'l');
	cr_assert_eq(link_receive(fd[1], &in, sizeof in, fds), (ssize_t)sizeof in);
	cr_assert(!memcmp(&in, &out, sizeof in));
	cr_assert_eq(link_receive(fd[1], &in, sizeof in, fds), -EAGAIN);
}

Test(link, descriptors_are_copies)
{
	int fd[2], events[LINK_FDS_MAX], fds[LINK_FDS_MAX];
	struct link_request in;
	uint32_t bell = 0;
	pair(fd);
	for (unsigned i = 0; i < LINK_FDS_MAX; i++)
		events[i] = eventfd(0, EFD_CLOEXEC);
	unsigned before = open_files();
	for (unsigned n = 0; n <= LINK_FDS_MAX; n++) {
		cr_assert_eq(link_send(fd[0], &bell, sizeof bell, events, n), 0);
		cr_assert_eq(link_receive(fd[1], &in, sizeof in, fds), (ssize_t)sizeof bell);
		for (unsigned i = 0; i < LINK_FDS_MAX; i++) {
			uint64_t v = i + 1;
			if (i >= n) {
				cr_assert_eq(fds[i], -1);
				continue;
			}
			cr_assert(fds[i] >= 0 && fcntl(fds[i], F_GETFD) & FD_CLOEXEC);
			cr_assert_eq(write(fds[i], &v, 8), 8);
			cr_assert_eq(read(events[i], &v, 8), 8);
			cr_assert_eq(v, i + 1);
		}
		cr_assert_eq(open_files(), before + n);
		link_close(fds);
		cr_assert_eq(fds[0], -1);
		cr_assert_eq(open_files(), before);
	}
	/* Those of a message that nobody takes go with the link. */
	cr_assert_eq(link_send(fd[0], &bell, sizeof bell, events, 2), 0);
	close(fd[0]);
	close(fd[1]);
	cr_assert_eq(open_files(), before - 2);
}

/* More than fit are none of ours, and don't stay open. */
Test(link, too_many_descriptors)
{
	enum { MANY = LINK_FDS_MAX + 3 };
	int fd[2], fds[LINK_FDS_MAX + 1] = {[LINK_FDS_MAX] = 12345};
	uint32_t bell = 0, in;
	union {
		struct cmsghdr head;
		char bytes[CMSG_SPACE(MANY * sizeof(int))];
	} control = {.bytes = {0}};
	struct iovec iov = {&bell, sizeof bell};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = control.bytes,
			     .msg_controllen = sizeof control.bytes};
	pair(fd);
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
	*c = (struct cmsghdr){CMSG_LEN(MANY * sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
	for (unsigned i = 0; i < MANY; i++)
		((int *)CMSG_DATA(c))[i] = fd[0];
	unsigned before = open_files();
	cr_assert_eq(sendmsg(fd[0], &msg, 0), (ssize_t)sizeof bell);
	cr_assert_eq(link_receive(fd[1], &in, sizeof in, fds), (ssize_t)sizeof in);
	cr_assert(fds[LINK_FDS_MAX - 1] >= 0);
	cr_assert_eq(fds[LINK_FDS_MAX], 12345);
	cr_assert_leq(open_files(), before + LINK_FDS_MAX);
	link_close(fds);
	cr_assert_eq(open_files(), before);
}

Test(link, closed_ends)
{
	int fd[2], fds[LINK_FDS_MAX];
	struct link_answer a = {.id = 3}, in;
	pair(fd);
	/* What was said before is heard before the end. */
	cr_assert_eq(link_send(fd[0], &a, sizeof a, NULL, 0), 0);
	close(fd[0]);
	cr_assert_eq(link_receive(fd[1], &in, sizeof in, fds), (ssize_t)sizeof in);
	cr_assert_eq(in.id, 3);
	cr_assert_eq(link_receive(fd[1], &in, sizeof in, fds), 0);
	cr_assert_eq(link_receive(fd[1], &in, sizeof in, fds), 0);
	cr_assert_eq(link_send(fd[1], &a, sizeof a, NULL, 0), -EPIPE, "and no SIGPIPE");
	close(fd[1]);
	cr_assert_eq(link_receive(fd[1], &in, sizeof in, fds), -EBADF);
	cr_assert_eq(link_send(fd[1], &a, sizeof a, NULL, 0), -EBADF);
	/* One half: who shuts its sending side down can still be told things. */
	pair(fd);
	cr_assert_eq(shutdown(fd[0], SHUT_WR), 0);
	cr_assert_eq(link_receive(fd[1], &in, sizeof in, fds), 0);
	cr_assert_eq(link_send(fd[1], &a, sizeof a, NULL, 0), 0);
	cr_assert_eq(link_receive(fd[0], &in, sizeof in, fds), (ssize_t)sizeof in);
}

Test(link, full)
{
	int fd[2], fds[LINK_FDS_MAX], rc, sent = 0;
	struct link_request r = {.op = LINK_CLONE}, in;
	pair(fd);
	while (!(rc = link_send(fd[0], &r, sizeof r, &fd[1], 1)))
		r.id = (uint32_t)++sent;
	cr_assert_eq(rc, -EAGAIN);
	cr_assert_geq(sent, 16, "as many as the host asks a template for at once");
	for (int i = 0; i < sent; i++) {
		cr_assert_eq(link_receive(fd[1], &in, sizeof in, fds), (ssize_t)sizeof in);
		cr_assert_eq(in.id, (uint32_t)i);
		link_close(fds);
	}
	cr_assert_eq(link_send(fd[0], &r, sizeof r, NULL, 0), 0);
}
