#include "vmm/inlet.h"
#include "vmm/container.h"
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

static void watch(struct inlet *i)
{
	if (i->watched)
		return;
	i->watched = loop_wait(i->loop, &i->readable, i->fd, POLLIN | POLLRDHUP) == 0;
}

/* Give the sink what is held, then wait for more. */
static void give(struct inlet *i)
{
	while (i->held) {
		size_t took = i->sink(i->ctx, i->buffer, i->held);
		if (!took)
			return; /* inlet_wanted comes when there is room */
		memmove(i->buffer, i->buffer + took, i->held - took);
		i->held -= took;
	}
	watch(i);
}

static void on_readable(struct loop_op *op, int res, uint32_t flags)
{
	struct inlet *i = container(struct inlet, readable, op);
	(void)flags;
	i->watched = false;
	if (res < 0)
		return;
	ssize_t n = recv(i->fd, i->buffer, INLET_BYTES, MSG_DONTWAIT);
	if (n == 0)
		return; /* the host sends no more */
	i->held = n > 0 ? (size_t)n : 0;
	give(i);
}

static void run_wanted(struct loop_work *w)
{
	give(container(struct inlet, wanted, w));
}

void inlet_wanted(struct inlet *i)
{
	loop_post(i->loop, &i->wanted);
}

void inlet_init(struct inlet *i, char *buffer, int fd, struct loop *loop, inlet_sink_fn *sink,
		void *ctx)
{
	*i = (struct inlet){.fd = fd,
			    .buffer = buffer,
			    .loop = loop,
			    .sink = sink,
			    .ctx = ctx,
			    .readable = {.done = on_readable},
			    .wanted = {.run = run_wanted}};
	watch(i);
}
