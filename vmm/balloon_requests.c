#include "vmm/answer.h"
#include "vmm/balloon.h"
#include "vmm/cli.h"
#include "vmm/clock.h"
#include "vmm/commands.h"
#include "vmm/container.h"
#include "vmm/size.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timerfd.h>

#define WAIT_SECONDS 10
#define OLD_SECONDS  2 /* the guest's numbers; older ones are asked for anew */

/* ---- the request --------------------------------------------------------------------------- */

/* Someone who waits until a guest has what it shall have. */
struct balloon_wait {
	struct balloon_wait *next;
	struct control_request *request;
	struct host_vm *vm;
	struct host_source timer;
	uint32_t pages;
};

static uint64_t left(const struct host_vm *vm, uint32_t pages)
{
	uint64_t all = vm->config.machine.mem_bytes, held = (uint64_t)pages << PAGE_SHIFT;
	return held < all ? all - held : 0;
}

static void answer(struct control_request *r, const struct host_vm *vm, uint32_t pages)
{
	const struct mailbox_balloon *b = &vm->mailbox->balloon;
	bool driver = b->driver;
	control_reply(r,
		      json_pack("{s:s, s:b, s:I, s:I, s:b}", "vm", vm->config.machine.name,
				"driver", (int)driver, "target_bytes", (json_int_t)left(vm, pages),
				"actual_bytes", (json_int_t)left(vm, b->actual), "reached",
				driver && b->actual == pages));
}

static void forget(struct balloon_wait *w)
{
	struct balloon_wait **at = &w->vm->balloon_waits;
	while (*at != w)
		at = &(*at)->next;
	*at = w->next;
	host_remove_source(w->vm->host, &w->timer);
	close(w->timer.fd);
	free(w);
}

static void on_time(struct host_source *s, uint32_t events)
{
	struct balloon_wait *w = container(struct balloon_wait, timer, s);
	(void)events;
	answer(w->request, w->vm, w->pages);
	forget(w);
}

static void on_gone(void *ctx)
{
	forget(ctx);
}

void balloon_news(struct host_vm *vm)
{
	bool alive = vm->phase == HOST_VM_ALIVE;
	for (struct balloon_wait *w = vm->balloon_waits, *next; w; w = next) {
		next = w->next;
		if (!alive)
			control_refuse(w->request, "balloon: %s ended", vm->config.machine.name);
		else if (vm->mailbox->balloon_wanted != w->pages)
			control_refuse(w->request, "balloon: %s was told otherwise meanwhile",
				       vm->config.machine.name);
		else if (vm->mailbox->balloon.driver && vm->mailbox->balloon.actual == w->pages)
			answer(w->request, vm, w->pages);
		else
			continue;
		forget(w);
	}
}

static int wait_for(struct control_request *r, struct host_vm *vm, uint32_t pages)
{
	struct balloon_wait *w = calloc(1, sizeof *w);
	const struct itimerspec t = {.it_value.tv_sec = WAIT_SECONDS};
	if (!w)
		return -ENOMEM;
	*w = (struct balloon_wait){vm->balloon_waits, r, vm, {-1, on_time}, pages};
	w->timer.fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	int rc = w->timer.fd < 0 || timerfd_settime(w->timer.fd, 0, &t, NULL) < 0 ? -errno : 0;
	if (!rc)
		rc = host_add_source(vm->host, &w->timer, EPOLLIN);
	if (rc) {
		if (w->timer.fd >= 0)
			close(w->timer.fd);
		free(w);
		return rc;
	}
	vm->balloon_waits = w;
	control_on_gone(r, on_gone, w);
	return 0;
}

void take_balloon(struct control_request *r, const json_t *o)
{
	const char *name = json_string_value(json_object_get(o, "vm"));
	const json_t *size = json_object_get(o, "bytes");
	struct host_vm *vm = name ? host_vm_by_name(control_host(r), name) : NULL;
	json_int_t bytes = json_integer_value(size);
	if (!name || !json_is_integer(size)) {
		control_refuse(r, "balloon: needs \"vm\", a name, and \"bytes\", a number");
		return;
	}
	if (!vm) {
		control_refuse(r, "balloon: no running VM is called %.80s", name);
		return;
	}
	if (vm->is_template) {
		control_refuse(r, "balloon: %s is a template, which doesn't run", name);
		return;
	}
	uint64_t all = vm->config.machine.mem_bytes;
	if (bytes < BALLOON_LEAST || (uint64_t)bytes > all) {
		control_refuse(r, "balloon: %s can be left with 1 MiB to its %" PRIu64 " MiB", name,
			       all / MiB);
		return;
	}
	uint32_t pages = (uint32_t)((all - (uint64_t)bytes) >> PAGE_SHIFT);
	atomic_store_explicit(&vm->mailbox->balloon_wanted, pages, memory_order_relaxed);
	balloon_news(vm); /* who waits for another size */
	host_order(vm, ORDER_BALLOON);
	bool driver = vm->mailbox->balloon.driver;
	if (!driver || json_is_false(json_object_get(o, "wait")) ||
	    vm->mailbox->balloon.actual == pages)
		answer(r, vm, pages);
	else if (wait_for(r, vm, pages))
		control_refuse(r, "balloon: no memory to wait with; %s was told", name);
}

/* ---- statistics ---------------------------------------------------------------------------- */

static json_t *guest_numbers(const struct mailbox_balloon *b)
{
	static const char *const names[MAILBOX_NUMBERS] = {
		"swap_in_bytes", "swap_out_bytes",      "major_faults",    "minor_faults",
		"free_bytes",    "total_bytes",         "available_bytes", "cache_bytes",
		"huge_pages",    "huge_pages_failures",
	};
	if (!b->known)
		return json_null();
	json_t *o = json_object();
	json_object_set_new(o, "age_seconds",
			    json_real((double)(clock_ns() - b->numbers_ns) / 1e9));
	for (unsigned i = 0; i < MAILBOX_NUMBERS; i++)
		if (b->known >> i & 1)
			answer_put(o, names[i], b->number[i]);
	return o;
}

void balloon_stats(struct host_vm *vm, json_t *o)
{
	const struct mailbox *mb = vm->mailbox;
	const struct mailbox_balloon *b = &mb->balloon;
	json_t *balloon = json_object();
	json_object_set_new(balloon, "driver", json_boolean(b->driver));
	json_object_set_new(balloon, "reports", json_boolean(b->reports));
	answer_put(balloon, "target_bytes", left(vm, b->target));
	answer_put(balloon, "actual_bytes", left(vm, b->actual));
	answer_put(balloon, "inflated_pages", b->inflated);
	answer_put(balloon, "deflated_pages", b->deflated);
	answer_put(balloon, "refused_pages", b->refused);
	answer_put(balloon, "reported_bytes", b->reported);
	answer_put(balloon, "given_back_bytes", mb->given_frames << PAGE_SHIFT);
	json_object_set_new(o, "balloon", balloon);
	json_object_set_new(o, "guest", guest_numbers(b));
	if (b->driver && (!b->known || clock_ns() - b->numbers_ns > OLD_SECONDS * 1000000000ull))
		host_order(vm, ORDER_SAMPLE);
}

/* ---- the command --------------------------------------------------------------------------- */

static void say(const json_t *a)
{
	const char *name = answer_text(a, "vm");
	double has = answer_mib(a, "actual_bytes");
	double shall = answer_mib(a, "target_bytes");
	if (json_is_true(json_object_get(a, "reached")))
		printf("%s has %.1f MiB\n", name, has);
	else if (json_is_true(json_object_get(a, "driver")))
		printf("%s has %.1f MiB so far, and is to have %.1f MiB\n", name, has, shall);
	else
		printf("%s is to have %.1f MiB as soon as its guest has a driver for it\n", name,
		       shall);
}

int command_balloon(int argc, char **argv)
{
	enum { JSON, NO_WAIT };
	static const struct cli_spec spec = {
		.command = "balloon",
		.usage =
			"usage: invisor balloon VM SIZE [--no-wait] [--json] [--host SOCKET]\n"
			"Leave a guest with SIZE of its memory (such as 64M; its whole size undoes "
			"it): its kernel\n"
			"gives the rest back to the pool. Waits up to 10 s for the guest to be "
			"there, and says\n"
			"how much it has; a guest gives what it can spare, and takes some back "
			"before it runs\n"
			"out of memory.\n"
			"      --no-wait   don't wait for the guest\n",
		.flag = {[JSON] = "json", [NO_WAIT] = "no-wait"},
		.least = 2,
		.most = 2,
		.operands = "takes a VM's name and a size such as 64M"};
	struct cli c;
	uint64_t bytes;
	int status = cli_parse(&c, &spec, argc, argv);
	if (status >= 0)
		return status;
	if (!size_parse(c.operand[1], &bytes) || bytes > INT64_MAX)
		return cli_fail("balloon: takes a VM's name and a size such as 64M; see invisor "
				"balloon --help");
	return cli_ask(&c,
		       json_pack("{s:s, s:s, s:I, s:b}", "do", "balloon", "vm", c.operand[0],
				 "bytes", (json_int_t)bytes, "wait", !c.value[NO_WAIT]),
		       c.value[JSON], say);
}
