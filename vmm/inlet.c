#include "vmm/inlet.h"
#include "vmm/container.h"
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#define ERRORS_MOST 16 /* in a row */

static void watch(struct inlet *i)
{
	if (i->watched)
		return;
	int rc = loop_wait(i->loop, &i->readable, i->fd, POLLIN | POLLRDHUP);
	i->watched = rc == 0;
	if (rc)
		i->lost(i->ctx, rc);
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
	if (res == -ECANCELED)
		return;
	/* Whatever went wrong with waiting, something may be there. */
	ssize_t n = recv(i->fd, i->buffer, INLET_BYTES, MSG_DONTWAIT);
	if (n == 0)
		return; /* the host sends no more */
	i->held = n > 0 ? (size_t)n : 0;
	i->errors = res < 0 && n < 0 ? i->errors + 1 : 0;
	if (i->errors == ERRORS_MOST)
		i->lost(i->ctx, res);
	else
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
		inlet_lost_fn *lost, void *ctx)
{
	*i = (struct inlet){.fd = fd,
			    .buffer = buffer,
			    .loop = loop,
			    .sink = sink,
			    .lost = lost,
			    .ctx = ctx,
			    .readable = {.done = on_readable},
			    .wanted = {.run = run_wanted}};
	watch(i);
}
