#include "vmm/fleet.h"
#include "vmm/clock.h"
#include "vmm/container.h"
#include "vmm/event.h"
#include "vmm/requests.h"
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define BUTTON_SECONDS 20 /* from the power button to the order to power off */
#define OFF_SECONDS    5  /* from the order to being killed */
#define RESUME_MS      20 /* between looks at a standard output that was full */
#define SAMPLE_MS      100
#define FLEET_CLONES   4096 /* room for so many clones besides the guests that were asked for */

void fleet_say(const char *format, ...)
{
	char line[MAILBOX_WORDS + 256];
	va_list args;
	va_start(args, format);
	int n = vsnprintf(line, sizeof line - 1, format, args);
	va_end(args);
	if (n < 0)
		return;
	if ((size_t)n >= sizeof line - 1)
		n = sizeof line - 2;
	line[n++] = '\n';
	fprintf(stderr, "invisor: %.*s", n, line); /* in one piece: VMs write there too */
}

static void arm(struct host_source *s, uint64_t ms)
{
	struct itimerspec t = {.it_value = {(time_t)(ms / 1000), (long)(ms % 1000) * 1000000}};
	timerfd_settime(s->fd, 0, &t, NULL);
}

static const char *name_of(const struct host_vm *vm)
{
	return vm->config.machine.name;
}

/* ---- stopping ------------------------------------------------------------------------------ */

static bool knows_power_button(const struct fleet *f)
{
	return f->config.setup->image.kind != BOOT_BARE;
}

/* The made guest hears the button only from READY on, and has nothing to lose before. */
static enum vm_order polite_order(const struct fleet *f, const struct host_vm *vm)
{
	const struct run_options *o = &f->config.setup->options;
	return !o->kernel && !o->initrd && !vm->ready_ns ? ORDER_POWER_OFF : ORDER_PRESS_POWER;
}

void fleet_stop(struct fleet *f, enum fleet_stop how, int status)
{
	struct host_vm *vm;
	if (how == FLEET_BUTTON && !knows_power_button(f))
		how = FLEET_OFF;
	if (how <= f->stop)
		return;
	if (f->stop == FLEET_RUNS)
		f->status = status;
	f->stop = how;
	for (unsigned i = 0; (vm = host_vm_at(f->host, i)); i++)
		if (how == FLEET_KILLED)
			host_kill(vm);
		else
			host_order(vm, how == FLEET_BUTTON ? polite_order(f, vm) : ORDER_POWER_OFF);
	if (how == FLEET_BUTTON)
		arm(&f->on_grace, BUTTON_SECONDS * 1000);
	else if (how == FLEET_OFF)
		arm(&f->on_grace, OFF_SECONDS * 1000);
	if (!host_alive(f->host))
		host_stop(f->host);
}

void fleet_interrupt(struct fleet *f)
{
	bool again = f->stop != FLEET_RUNS;
	fleet_say(again ? "killing what still runs (%u)"
			: "powering off (%u running); Ctrl-C again kills",
		  host_alive(f->host));
	fleet_stop(f, again ? FLEET_KILLED : FLEET_BUTTON, EXIT_INTERRUPTED);
}

static void on_signal(struct host_source *s, uint32_t events)
{
	struct signalfd_siginfo info;
	(void)events;
	if (read(s->fd, &info, sizeof info) == (ssize_t)sizeof info)
		fleet_interrupt(container(struct fleet, on_signal, s));
}

static void on_timeout(struct host_source *s, uint32_t events)
{
	struct fleet *f = container(struct fleet, on_timeout, s);
	(void)events;
	event_drain(s->fd);
	if (f->stop != FLEET_RUNS)
		return;
	fleet_say("timeout: %u of %u guests still run after %" PRIu64 " s; powering them off",
		  host_alive(f->host), f->count, f->config.setup->options.timeout_seconds);
	fleet_stop(f, FLEET_OFF, EXIT_TIMEOUT);
}

static void on_grace(struct host_source *s, uint32_t events)
{
	struct fleet *f = container(struct fleet, on_grace, s);
	(void)events;
	event_drain(s->fd);
	if (host_alive(f->host))
		fleet_stop(f, f->stop + 1, f->status);
}

/* ---- consoles ------------------------------------------------------------------------------ */

void fleet_sample(struct fleet *f)
{
	struct host_vm *vm;
	for (unsigned i = 0; (vm = host_vm_at(f->host, i)); i++)
		host_order(vm, ORDER_SAMPLE);
	uint64_t until = clock_ns() + SAMPLE_MS * UINT64_C(1000000);
	for (unsigned i = 0; (vm = host_vm_at(f->host, i)); i++)
		while (vm->phase == HOST_VM_ALIVE && !vm->mailbox->sampled && clock_ns() < until)
			usleep(500);
}

static void became_ready(struct fleet *f, struct host_vm *vm)
{
	vm->ready_ns = clock_ns();
	f->ready++;
	if (!f->interactive && !f->config.quiet)
		fleet_say("%s ready after %.2f s (%u of %u)", name_of(vm),
			  (double)(vm->ready_ns - vm->forked_ns) / 1e9, f->ready, f->count);
	if (f->ready == f->count && f->events.all_ready)
		f->events.all_ready(f->events.ctx);
}

static size_t console(void *ctx, struct host_vm *vm, const char *bytes, size_t n)
{
	struct fleet *f = ctx;
	struct screen_line *l = vm->user;
	if (!l) /* a template, or no memory for a clone's lines */
		return n;
	bool was_ready = l->ready;
	size_t took = screen_feed(l, bytes, n);
	if (l->ready && !was_ready && !vm->number)
		became_ready(f, vm);
	if (took < n)
		arm(&f->on_resume, RESUME_MS);
	return took;
}

static void on_resume(struct host_source *s, uint32_t events)
{
	struct fleet *f = container(struct fleet, on_resume, s);
	(void)events;
	event_drain(s->fd);
	host_console_resume(f->host);
}

/* ---- guests -------------------------------------------------------------------------------- */

static void starved(void *ctx, struct host_vm *vm, bool now)
{
	struct fleet *f = ctx;
	if (!now) {
		f->starved--;
		fleet_say("%s goes on: the pool has frames again", name_of(vm));
		return;
	}
	f->starved++;
	fleet_say("%s waits for memory: all %u frames of the pool are in use%s", name_of(vm),
		  host_pool(f->host)->frames,
		  f->starved == host_alive(f->host)
			  ? ", and no guest is left that could go on; give a larger "
			    "--pool"
			  : "");
	if (f->events.starved)
		f->events.starved(f->events.ctx, vm);
}

static void ended(void *ctx, struct host_vm *vm)
{
	struct fleet *f = ctx;
	if (vm->user)
		screen_finish(vm->user);
	if (vm->number)
		free(vm->user);
	if (vm->is_template)
		return;
	if (vm->said_starved)
		f->starved--;
	if (vm->end == END_POWER_OFF)
		f->clean += !vm->number;
	else if (!(f->stop != FLEET_RUNS && vm->end == END_ORDERED))
		fleet_say("%s: %s", name_of(vm), vm->mailbox->words);
	if (f->events.ended)
		f->events.ended(f->events.ctx, vm);
	if (!host_alive(f->host))
		host_stop(f->host);
}

static void cloned(void *ctx, struct host_vm *vm, struct host_vm *of)
{
	struct fleet *f = ctx;
	(void)of;
	struct screen_line *l = vm->is_template ? NULL : calloc(1, sizeof *l);
	if (!l)
		return;
	snprintf(l->name, sizeof l->name, "%.31s", vm->config.machine.name);
	l->how = f->config.quiet ? SCREEN_HIDDEN : SCREEN_LINES;
	l->ready_word = f->config.ready;
	vm->user = l;
}

static int start_all(struct fleet *f, char *error)
{
	const struct run_setup *s = f->config.setup;
	f->line = calloc(f->count, sizeof *f->line);
	if (!f->line)
		return errorf(error, -ENOMEM, "no memory for %u consoles", f->count);
	for (unsigned i = 0; i < f->count; i++) {
		struct vm_config c = s->config;
		struct screen_line *l = &f->line[i];
		if (f->count > 1 &&
		    (size_t)snprintf(c.machine.name, sizeof c.machine.name, "%.26s-%u",
				     s->options.name, i + 1) >= sizeof c.machine.name)
			return errorf(error, -ENAMETOOLONG, "--name: too long");
		snprintf(l->name, sizeof l->name, "%.31s", c.machine.name);
		l->how = f->config.quiet ? SCREEN_HIDDEN
			 : f->count > 1  ? SCREEN_LINES
					 : SCREEN_PLAIN;
		l->ready_word = f->config.ready;
		struct host_vm *vm;
		int rc = host_start_vm(f->host, &c, &vm, error);
		if (rc)
			return rc;
		vm->user = l;
	}
	return 0;
}

/* ---- the whole ----------------------------------------------------------------------------- */

static int add_timer(struct fleet *f, struct host_source *s,
		     void (*ready)(struct host_source *, uint32_t))
{
	*s = (struct host_source){timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK),
				  ready};
	return s->fd < 0 ? -errno : host_add_source(f->host, s, EPOLLIN);
}

static int add_sources(struct fleet *f, char *error)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	f->on_signal =
		(struct host_source){signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK), on_signal};
	int rc = f->on_signal.fd < 0 ? -errno : host_add_source(f->host, &f->on_signal, EPOLLIN);
	if (!rc)
		rc = add_timer(f, &f->on_timeout, on_timeout);
	if (!rc)
		rc = add_timer(f, &f->on_grace, on_grace);
	if (!rc)
		rc = add_timer(f, &f->on_resume, on_resume);
	if (rc)
		return errorf(error, rc, "event sources: %s", strerror(-rc));
	if (f->config.setup->options.timeout_seconds)
		arm(&f->on_timeout, f->config.setup->options.timeout_seconds * 1000);
	return 0;
}

int fleet_open(struct fleet *f, const struct fleet_config *config,
	       const struct fleet_events *events, char *error)
{
	const struct run_options *o = &config->setup->options;
	*f = (struct fleet){.config = *config, .events = *events, .count = o->count};
	f->on_signal.fd = f->on_timeout.fd = f->on_grace.fd = f->on_resume.fd = -1;
	const struct host_config hc = {.pool_bytes = o->pool_bytes,
				       .kind = o->table,
				       .max_vms = o->count + FLEET_CLONES,
				       .nodes = 1,
				       .colours = 1};
	const struct host_events he = {
		.console = console, .starved = starved, .ended = ended, .cloned = cloned, .ctx = f};
	int rc = host_create(&f->host, &hc, &he, error);
	if (!rc)
		rc = add_sources(f, error);
	if (!rc)
		rc = control_create(&f->control,
				    &(struct control_config){
					    .host = f->host, .handler = requests_handle, .ctx = f},
				    error);
	if (!rc)
		rc = start_all(f, error);
	return rc;
}

int fleet_run(struct fleet *f)
{
	return host_run(f->host);
}

void fleet_close(struct fleet *f)
{
	const int fds[] = {f->on_signal.fd, f->on_timeout.fd, f->on_grace.fd, f->on_resume.fd};
	if (f->control)
		control_destroy(f->control);
	if (f->host)
		host_destroy(f->host);
	for (size_t i = 0; i < sizeof fds / sizeof *fds; i++)
		if (fds[i] >= 0)
			close(fds[i]);
	free(f->line);
	*f = (struct fleet){.status = f->status};
	f->on_signal.fd = f->on_timeout.fd = f->on_grace.fd = f->on_resume.fd = -1;
}

int fleet_status(const struct fleet *f)
{
	if (f->stop != FLEET_RUNS)
		return f->status;
	return f->clean == f->count ? EXIT_CLEAN : EXIT_GUEST;
}
