#include "vmm/guest.h"
#include "ipt/fail.h"
#include "vmm/fleet.h"
#include <stdlib.h>

struct guest_reader {
	struct guest_reader *next;
	struct guest *guest;
	struct control_request *request;
	uint64_t at, until; /* positions in the ring */
	bool held_back;     /* the guest had no room for its input */
};

struct guest *guest_create(struct fleet *f, struct host_vm *vm, struct batch *b)
{
	struct guest *g = fail_null(GUEST_MEMORY, calloc(1, sizeof *g));
	if (!g)
		return NULL;
	*g = (struct guest){.fleet = f, .batch = b, .vm = vm};
	batch_hold(b);
	if (vm->ring_fd >= 0 && ring_open(&g->ring, vm->ring_fd))
		g->ring = (struct ring){.bytes = NULL}; /* in memory of our own, then */
	vm->user = g;
	return g;
}

static void free_if_done(struct guest *g)
{
	if (g->vm || g->reader)
		return;
	ring_free(&g->ring);
	free(g);
}

/* ---- readers ------------------------------------------------------------------------------- */

static void remove_reader(struct guest_reader *reader)
{
	struct guest_reader **at = &reader->guest->reader;
	while (*at != reader)
		at = &(*at)->next;
	*at = reader->next;
	free(reader);
}

/* Send what it hasn't seen, as far as there is room; end it when it has seen all it ever will. */
static void pump(struct guest_reader *reader)
{
	struct guest *g = reader->guest;
	const char *bytes;
	size_t n, took;
	if (reader->at < ring_first(&g->ring))
		reader->at = ring_first(&g->ring);
	while ((n = ring_piece(&g->ring, reader->at, &bytes))) {
		took = control_stream_send(reader->request, bytes, n);
		reader->at += took;
		if (took < n)
			break;
	}
	if (reader->at >= reader->until || (!g->vm && reader->at == g->ring.written)) {
		control_stream_end(reader->request);
		remove_reader(reader);
	}
}

static void pump_all(struct guest *g)
{
	for (struct guest_reader *r = g->reader, *next; r; r = next) {
		next = r->next;
		pump(r);
	}
}

static size_t reader_input(void *ctx, const char *bytes, size_t n)
{
	struct guest_reader *reader = ctx;
	struct guest *g = reader->guest;
	if (!g->vm)
		return n;
	size_t took = host_console_input(g->vm, bytes, n);
	if (took < n) {
		reader->held_back = true;
		fleet_retry(g->fleet);
	}
	return took;
}

static void reader_room(void *ctx)
{
	struct guest_reader *reader = ctx;
	struct guest *g = reader->guest;
	pump(reader);
	free_if_done(g);
}

static void reader_gone(void *ctx)
{
	struct guest_reader *reader = ctx;
	struct guest *g = reader->guest;
	remove_reader(reader);
	free_if_done(g);
}

void guest_console(struct guest *g, struct control_request *r, bool follow)
{
	static const struct control_stream stream = {
		.input = reader_input, .room = reader_room, .gone = reader_gone};
	struct guest_reader *reader = calloc(1, sizeof *reader);
	if (!reader) {
		control_refuse(r, "console: no memory");
		return;
	}
	*reader = (struct guest_reader){.next = g->reader,
					.guest = g,
					.request = r,
					.until = follow ? UINT64_MAX : g->ring.written};
	g->reader = reader;
	control_stream(r, json_pack("{s:s}", "vm", g->vm->config.machine.name), &stream, reader);
	pump(reader);
}

void guest_resume(struct guest *g)
{
	for (struct guest_reader *r = g->reader; r; r = r->next)
		if (r->held_back) {
			r->held_back = false;
			control_stream_resume(r->request);
		}
}

/* ---- the guest ----------------------------------------------------------------------------- */

void guest_end(struct guest *g)
{
	g->vm->user = NULL;
	g->vm = NULL;
	batch_drop(g->batch); /* its disks don't wait for who reads its last words */
	g->batch = NULL;
	pump_all(g);
	free_if_done(g);
}

size_t guest_output(struct guest *g, const char *bytes, size_t n)
{
	size_t took = screen_feed(&g->line, bytes, n);
	if (g->keep) {
		ring_put(&g->ring, bytes, took);
		pump_all(g);
	}
	return took;
}

enum vm_order guest_polite_order(const struct guest *g)
{
	const struct vm_config *c = &g->vm->config;
	if (c->image->kind == BOOT_BARE)
		return ORDER_POWER_OFF;
	/* The made guest hears the button only from READY on, and has nothing to lose before. */
	return c->made_guest && !g->vm->ready_ns ? ORDER_POWER_OFF : ORDER_PRESS_POWER;
}
