#include "vmm/fleet.h"
#include "vmm/clock.h"
#include "vmm/container.h"
#include "vmm/event.h"
#include "vmm/requests.h"
#include "vmm/scenario_run.h"
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

static bool say_when;

void fleet_say_when(void)
{
	say_when = true;
}

void fleet_say(const char *format, ...)
{
	char line[MAILBOX_WORDS + 256], when[32] = "";
	time_t now = time(NULL);
	struct tm t;
	if (say_when && localtime_r(&now, &t))
		strftime(when, sizeof when, "%Y-%m-%d %H:%M:%S ", &t);
	va_list args;
	va_start(args, format);
	int n = vsnprintf(line, sizeof line - 1, format, args);
	va_end(args);
	if (n < 0)
		return;
	if ((size_t)n >= sizeof line - 1)
		n = sizeof line - 2;
	line[n++] = '\n';
	fprintf(stderr, "%sinvisor: %.*s", when, n, line); /* in one piece: VMs write there too */
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

void fleet_stop_guest(struct guest *g, enum fleet_stop how)
{
	if (how == FLEET_KILLED)
		host_kill(g->vm);
	else
		host_order(g->vm, how == FLEET_BUTTON ? guest_polite_order(g) : ORDER_POWER_OFF);
}

/* With nobody there who can hear the button, there is no use in waiting for what it does. */
static bool any_hears_button(struct fleet *f)
{
	struct host_vm *vm;
	for (unsigned i = 0; (vm = host_vm_at(f->host, i)); i++)
		if (vm->user && guest_polite_order(vm->user) == ORDER_PRESS_POWER)
			return true;
	return false;
}

void fleet_stop(struct fleet *f, enum fleet_stop how, int status)
{
	struct host_vm *vm;
	if (how == FLEET_BUTTON && !any_hears_button(f))
		how = FLEET_OFF;
	if (how <= f->stop)
		return;
	if (f->stop == FLEET_RUNS)
		f->status = status;
	f->stop = how;
	for (unsigned i = 0; (vm = host_vm_at(f->host, i)); i++)
		if (vm->user)
			fleet_stop_guest(vm->user, how);
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
	fleet_stop(f, again ? FLEET_KILLED : FLEET_BUTTON,
		   f->config.setup ? EXIT_INTERRUPTED : EXIT_CLEAN);
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

static void became_ready(struct fleet *f, struct guest *g)
{
	struct host_vm *vm = g->vm;
	struct batch *b = g->batch;
	vm->ready_ns = clock_ns();
	host_keep_vm(vm);
	f->ready++;
	b->ready++;
	if (!f->interactive && !f->config.quiet)
		fleet_say("%s ready after %.2f s (%u of %u)", name_of(vm),
			  (double)(vm->ready_ns - vm->forked_ns) / 1e9, b->ready, b->count);
	batch_progress(b);
	if (f->ready == f->count && f->events.all_ready)
		f->events.all_ready(f->events.ctx);
}

static size_t console(void *ctx, struct host_vm *vm, const char *bytes, size_t n)
{
	struct fleet *f = ctx;
	struct guest *g = vm->user;
	if (!g)
		return n;
	bool was_ready = g->line.ready;
	size_t took = guest_output(g, bytes, n);
	if (g->line.ready && !was_ready && !g->is_clone)
		became_ready(f, g);
	if (took < n)
		fleet_retry(f);
	return took;
}

void fleet_retry(struct fleet *f)
{
	arm(&f->on_resume, RESUME_MS);
}

static void on_resume(struct host_source *s, uint32_t events)
{
	struct fleet *f = container(struct fleet, on_resume, s);
	(void)events;
	struct host_vm *vm;
	event_drain(s->fd);
	host_console_resume(f->host);
	for (unsigned i = 0; (vm = host_vm_at(f->host, i)); i++)
		if (vm->user)
			guest_resume(vm->user);
}

/* ---- ends ---------------------------------------------------------------------------------- */

/* A request that is answered when these guests are gone. */
struct fleet_leaving {
	struct fleet_leaving *next;
	struct fleet *fleet;
	struct control_request *request;
	json_t *answer;
	unsigned guests, left;
	struct guest *guest[]; /* NULL: gone */
};

static void remove_leaving(struct fleet_leaving *l)
{
	struct fleet_leaving **at = &l->fleet->leaving;
	while (*at != l)
		at = &(*at)->next;
	*at = l->next;
	free(l);
}

static void nobody_waits(void *ctx)
{
	struct fleet_leaving *l = ctx;
	json_decref(l->answer);
	remove_leaving(l);
}

void fleet_answer_when_gone(struct fleet *f, struct control_request *r, json_t *answer,
			    struct guest *const *guests, unsigned n)
{
	struct fleet_leaving *l = n ? malloc(sizeof *l + n * sizeof(struct guest *)) : NULL;
	if (!l) {
		control_reply(r, answer);
		return;
	}
	*l = (struct fleet_leaving){f->leaving, f, r, answer, n, n};
	memcpy(l->guest, guests, n * sizeof *guests);
	f->leaving = l;
	control_on_gone(r, nobody_waits, l);
}

static void tell_leaving(struct fleet *f, const struct guest *gone)
{
	for (struct fleet_leaving *l = f->leaving, *next; l; l = next) {
		next = l->next;
		for (unsigned i = 0; i < l->guests; i++)
			if (l->guest[i] == gone) {
				l->guest[i] = NULL;
				l->left--;
			}
		if (!l->left) {
			control_reply(l->request, l->answer);
			remove_leaving(l);
		}
	}
}

/* ---- guests -------------------------------------------------------------------------------- */

static void news(void *ctx, struct host_vm *vm)
{
	struct guest *g = vm->user;
	(void)ctx;
	if (!g || g->up || !atomic_load(&vm->mailbox->run_started_ns))
		return;
	g->up = true;
	g->batch->up++;
	batch_progress(g->batch);
}

static void starved(void *ctx, struct host_vm *vm, bool now)
{
	struct fleet *f = ctx;
	if (!now) {
		f->starved--;
		fleet_say("%s goes on: the pool has frames again", name_of(vm));
		return;
	}
	f->starved++;
	bool reclaims = f->config.host.pack_bytes || f->config.host.swap_file;
	fleet_say("%s waits for memory: all %u frames of the pool are in use%s%s", name_of(vm),
		  host_frames(f->host), reclaims ? ", and nothing more can be taken out" : "",
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
	struct guest *g = vm->user;
	if (vm->said_starved)
		f->starved--;
	bool in_order =
		vm->end == END_POWER_OFF || (f->stop != FLEET_RUNS && vm->end == END_ORDERED);
	if (vm->end == END_POWER_OFF)
		f->clean += !vm->number;
	/* A log tells of every end, a terminal of those that nobody expects. */
	if (!vm->is_template && (!in_order || !f->config.setup))
		fleet_say("%s: %s", name_of(vm), vm->mailbox->words);
	if (g)
		screen_finish(&g->line);
	if (f->events.ended)
		f->events.ended(f->events.ctx, vm);
	scenario_run_ended(f, vm);
	if (g) {
		if (!g->is_clone)
			batch_lost(g->batch, vm, g->up, g->line.ready);
		tell_leaving(f, g);
		guest_end(g);
	}
	if (!host_alive(f->host) && (f->config.setup || f->stop != FLEET_RUNS))
		host_stop(f->host);
}

/* A clone, or the template of clones, comes with what it was made from: the same batch, heard as it was. */
static int cloned(void *ctx, struct host_vm *vm, struct host_vm *of)
{
	struct fleet *f = ctx;
	const struct guest *from = of->user;
	struct guest *g = from ? guest_create(f, vm, from->batch) : NULL;
	if (!g)
		return from ? -ENOMEM : 0;
	vm->ready_ns = of->ready_ns;
	g->is_clone = true;
	g->keep = from->keep;
	snprintf(g->line.name, sizeof g->line.name, "%.31s", vm->config.machine.name);
	g->line.how = from->line.how == SCREEN_HIDDEN ? SCREEN_HIDDEN : SCREEN_LINES;
	g->line.ready_word = f->config.ready;
	if (f->stop != FLEET_RUNS) /* too late */
		fleet_stop_guest(g, f->stop);
	return 0;
}

static void adopted(void *ctx, struct host_vm *vm)
{
	struct fleet *f = ctx;
	struct batch *b = batch_adopted();
	const char *bytes;
	size_t n;
	int rc = b ? fleet_adopt(f, vm, b) : -ENOMEM;
	if (b)
		batch_drop(b);
	if (rc) {
		fleet_say("%s: no memory for its console", name_of(vm));
		return;
	}
	struct guest *g = vm->user;
	g->is_clone = vm->is_template || vm->number;
	g->line.how = SCREEN_HIDDEN;
	g->line.ready = vm->ready_ns > 0;
	g->up = atomic_load(&vm->mailbox->run_started_ns) > 0;
	f->count -= g->is_clone;
	f->ready += g->line.ready && !g->is_clone;
	/* It may have said so while nobody listened. */
	for (uint64_t at = ring_first(&g->ring);
	     !g->line.ready && (n = ring_piece(&g->ring, at, &bytes)); at += n)
		screen_feed(&g->line, bytes, n);
	if (g->line.ready && !vm->ready_ns && !g->is_clone)
		became_ready(f, g);
}

static void said(void *ctx, const char *words)
{
	(void)ctx;
	fleet_say("%s", words);
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
	if (f->config.setup && f->config.setup->options.timeout_seconds)
		arm(&f->on_timeout, f->config.setup->options.timeout_seconds * 1000);
	return 0;
}

static int start_first(struct fleet *f, char *error)
{
	struct batch *b = batch_of(f->config.setup);
	if (!b)
		return errorf(error, -ENOMEM, "no memory for the guests");
	int rc = fleet_start(f, b, error);
	batch_drop(b);
	return rc;
}

int fleet_open(struct fleet *f, const struct fleet_config *config,
	       const struct fleet_events *events, char *error)
{
	*f = (struct fleet){.config = *config, .events = *events, .began_ns = clock_ns()};
	f->on_signal.fd = f->on_timeout.fd = f->on_grace.fd = f->on_resume.fd = -1;
	if (config->setup) {
		const struct run_options *o = &config->setup->options;
		f->config.host = (struct host_config){.pool_bytes = o->pool_bytes,
						      .kind = o->table,
						      .merge_percent = o->merge_percent,
						      .pack_bytes = o->pack_bytes,
						      .swap_file = o->swap_file,
						      .swap_bytes = o->swap_bytes,
						      .sandbox = o->sandbox,
						      .first_id = o->first_id,
						      .max_vms = o->count + FLEET_CLONES};
	}
	f->config.host.nodes = f->config.host.colours = 1;
	const struct host_events he = {.console = console,
				       .starved = starved,
				       .ended = ended,
				       .cloned = cloned,
				       .news = news,
				       .adopted = adopted,
				       .said = said,
				       .ctx = f};
	int rc = host_create(&f->host, &f->config.host, &he, error);
	if (!rc && host_notice(f->host))
		fleet_say("%s", host_notice(f->host));
	if (!rc)
		f->config.host = *host_settings(f->host);
	if (!rc)
		rc = add_sources(f, error);
	const struct control_config cc = {
		.host = f->host, .file = config->file, .handler = requests_handle, .ctx = f};
	if (!rc)
		rc = control_create(&f->control, &cc, error);
	if (!rc && config->setup)
		rc = start_first(f, error);
	if (!rc)
		f->adopted = host_adopt(f->host);
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
	scenario_run_close(f);
	struct host_vm *vm;
	for (unsigned i = 0; f->host && (vm = host_vm_at(f->host, i)); i++)
		if (vm->user)
			guest_end(vm->user);
	if (f->host)
		host_destroy(f->host);
	for (size_t i = 0; i < sizeof fds / sizeof *fds; i++)
		if (fds[i] >= 0)
			close(fds[i]);
	*f = (struct fleet){.status = f->status};
	f->on_signal.fd = f->on_timeout.fd = f->on_grace.fd = f->on_resume.fd = -1;
}

int fleet_status(const struct fleet *f)
{
	if (f->stop != FLEET_RUNS)
		return f->status;
	return f->clean == f->count ? EXIT_CLEAN : EXIT_GUEST;
}
