/*
 * Pages that guests left in files they shared, since these couldn't be written to when the guests ended (pmem.h). They stay in
 * the pool. Where frames are short they are tried again: as a VM's process does with what it wrote, by io_uring, so that the
 * host waits for no disk.
 */
#include "virtio/loop.h"
#include "vmm/host_private.h"
#include "vmm/reclaim.h"
#include <stdlib.h>

#define ENTRIES 8

struct host_left {
	struct host *h;
	struct loop *loop;
	struct host_source on_ring;
	struct loop_op op;
	struct pmem_view *at; /* whose pages are being written; NULL: none are */
};

static void cleaned(void *ctx, uint64_t pages, int error)
{
	reclaim_cleaned(host_reclaim_board(ctx), pages, error);
}

/* The next that has wanted pages, if there is one. */
static void go_on(struct host_left *l)
{
	for (struct pmem_file *f = l->h->pmem_files; f; f = f->next)
		for (struct pmem_view *v = f->left; v; v = v->next) {
			v->loop = l->loop;
			v->cleaned = cleaned;
			v->ctx = l->h;
			l->at = v;
			if (pmem_clean(v, &l->op, true, 0) > 0)
				return;
			l->at = NULL;
		}
}

static void done(struct loop_op *op, int res, uint32_t flags)
{
	struct host_left *l = container(struct host_left, op, op);
	(void)flags;
	if (pmem_clean(l->at, op, false, res) > 0)
		return;
	l->at = NULL;
	go_on(l);
}

static void ready(struct host_source *s, uint32_t events)
{
	struct host_left *l = container(struct host_left, on_ring, s);
	(void)events;
	loop_step(l->loop, NULL, 0);
	host_left_rest(l->h);
}

static struct host_left *make(struct host *h)
{
	struct host_left *l = calloc(1, sizeof *l);
	if (!l || loop_create(&l->loop, ENTRIES)) {
		free(l);
		return NULL;
	}
	l->h = h;
	l->op.done = done;
	l->on_ring = (struct host_source){loop_fd(l->loop), ready};
	if (loop_keep(l->loop) || host_add_source(h, &l->on_ring, EPOLLIN)) {
		loop_destroy(l->loop);
		free(l);
		return NULL;
	}
	return l;
}

uint32_t host_left_want(const struct pmem_file *f, uint64_t page, uint32_t n)
{
	bool any = false;
	for (struct pmem_view *v = f->left; v; v = v->next)
		any |= pmem_want_clean(v, page, n);
	return any ? n : 0;
}

void host_left_clean(struct host *h)
{
	h->left = h->left ? h->left : make(h);
	if (!h->left)
		return; /* when it is asked for again */
	if (!h->left->at)
		go_on(h->left);
	loop_step(h->left->loop, NULL, 0);
	host_left_rest(h);
}

void host_left_rest(struct host *h)
{
	if (!h->left || h->left->at)
		return;
	host_remove_source(h, &h->left->on_ring);
	loop_destroy(h->left->loop);
	free(h->left);
	h->left = NULL;
}
