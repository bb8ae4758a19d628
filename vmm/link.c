#include "vmm/link.h"
#include "ipt/fail.h"
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

union control {
	struct cmsghdr head; /* for its alignment */
	char bytes[CMSG_SPACE(LINK_FDS_MAX * sizeof(int))];
};

int link_pair(int fd[2])
{
	return fail_call(VM_LINK, socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK,
					     0, fd)) < 0
		       ? -errno
		       : 0;
}

int link_send(int fd, const void *message, size_t bytes, const int *fds, unsigned n)
{
	struct iovec iov = {(void *)message, bytes};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
	union control control = {.bytes = {0}};
	if (n) {
		msg.msg_control = control.bytes;
		msg.msg_controllen = CMSG_SPACE(n * sizeof(int));
		struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(n * sizeof(int));
		memcpy(CMSG_DATA(c), fds, n * sizeof(int));
	}
	ssize_t sent;
	do
		sent = fail_call(LINK_SEND, sendmsg(fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT));
	while (sent < 0 && errno == EINTR);
	return sent < 0 ? -errno : 0;
}

int link_send_surely(int fd, const void *message, size_t bytes, const int *fds, unsigned n)
{
	for (;;) {
		int rc = link_send(fd, message, bytes, fds, n);
		if (rc != -EAGAIN && rc != -ENOMEM && rc != -ENOBUFS)
			return rc;
		struct pollfd p = {.fd = fd, .events = POLLOUT};
		poll(&p, 1, -1);
		if (rc != -EAGAIN) /* the socket has room, the kernel had none */
			nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	}
}

static void take_fds(struct msghdr *msg, int fds[LINK_FDS_MAX])
{
	unsigned n = 0;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		size_t have = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < have && n < LINK_FDS_MAX; i++)
			memcpy(&fds[n++], CMSG_DATA(c) + i * sizeof(int), sizeof(int));
	}
}

ssize_t link_receive(int fd, void *message, size_t bytes, int fds[LINK_FDS_MAX])
{
	struct iovec iov = {message, bytes};
	union control control;
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = control.bytes,
			     /* CMSG_SPACE is rounded up, and one more would fit. */
			     .msg_controllen = CMSG_LEN(LINK_FDS_MAX * sizeof(int))};
	ssize_t n;
	for (unsigned i = 0; i < LINK_FDS_MAX; i++)
		fds[i] = -1;
	do
		n = fail_call(LINK_RECEIVE, recvmsg(fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC));
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	take_fds(&msg, fds);
	memset((char *)message + n, 0, bytes - (size_t)n);
	return n;
}

void link_close(int fds[LINK_FDS_MAX])
{
	for (unsigned i = 0; i < LINK_FDS_MAX; i++) {
		if (fds[i] >= 0)
			close(fds[i]);
		fds[i] = -1;
	}
}
