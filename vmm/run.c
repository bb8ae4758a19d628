#include "vmm/run.h"
#include "vmm/clock.h"
#include "vmm/control.h"
#include "vmm/host.h"
#include "vmm/screen.h"
#include "vmm/stats.h"
#include "vmm/terminal.h"
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define GRACE_SECONDS 5  /* from being told to power off to being killed */
#define RESUME_MS     20 /* between looks at a standard output that was full */
#define SAMPLE_MS     100

struct run {
	struct run_setup setup;
	struct host *host;
	struct control *control;
	struct screen_line *line; /* of every guest */
	struct host_source on_signal, on_timeout, on_kill, on_resume, on_input;
	bool interactive, stopping, reading_input;
	int status;
	unsigned ready, clean, starved;
	json_t *at_ready, *ended;
};

#define container(type, member, pointer) ((type *)((char *)(pointer)-offsetof(type, member)))

static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void say(const char *format, ...)
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

static void stop_all(struct run *r, int status)
{
	struct host_vm *vm;
	if (!r->stopping)
		r->status = status;
	bool again = r->stopping;
	r->stopping = true;
	for (unsigned i = 0; (vm = host_vm_at(r->host, i)); i++)
		if (again)
			host_kill(vm);
		else
			host_order(vm, ORDER_POWER_OFF);
	if (!again)
		arm(&r->on_kill, GRACE_SECONDS * 1000);
	if (!host_alive(r->host))
		host_stop(r->host);
}

static void interrupt(struct run *r)
{
	say(r->stopping ? "killing %u guests" : "powering %u guests off; Ctrl-C again kills them",
	    host_alive(r->host));
	stop_all(r, EXIT_INTERRUPTED);
}

static void on_signal(struct host_source *s, uint32_t events)
{
	struct signalfd_siginfo info;
	(void)events;
	if (read(s->fd, &info, sizeof info) == (ssize_t)sizeof info)
		interrupt(container(struct run, on_signal, s));
}

static void drain(int fd)
{
	uint64_t n;
	ssize_t got = read(fd, &n, sizeof n);
	(void)got;
}

static void on_timeout(struct host_source *s, uint32_t events)
{
	struct run *r = container(struct run, on_timeout, s);
	(void)events;
	drain(s->fd);
	if (r->stopping)
		return;
	say("timeout: %u of %u guests still run after %" PRIu64 " s; powering them off",
	    host_alive(r->host), r->setup.options.count, r->setup.options.timeout_seconds);
	stop_all(r, EXIT_TIMEOUT);
}

static void on_kill(struct host_source *s, uint32_t events)
{
	struct run *r = container(struct run, on_kill, s);
	(void)events;
	drain(s->fd);
	if (host_alive(r->host))
		stop_all(r, r->status);
}

/* ---- consoles ------------------------------------------------------------------------------ */

/* Have every VM refresh its sampled numbers, and wait a moment for them. */
static void sample_all(struct run *r)
{
	struct host_vm *vm;
	for (unsigned i = 0; (vm = host_vm_at(r->host, i)); i++)
		host_order(vm, ORDER_SAMPLE);
	uint64_t until = clock_ns() + SAMPLE_MS * UINT64_C(1000000);
	for (unsigned i = 0; (vm = host_vm_at(r->host, i)); i++)
		while (vm->phase == HOST_VM_ALIVE && !vm->mailbox->sampled && clock_ns() < until)
			usleep(500);
}

static void became_ready(struct run *r, struct host_vm *vm)
{
	vm->ready_ns = clock_ns();
	r->ready++;
	unsigned count = r->setup.options.count;
	if (!r->interactive)
		say("%s ready after %.2f s (%u of %u)", name_of(vm),
		    (double)(vm->ready_ns - vm->forked_ns) / 1e9, r->ready, count);
	if (r->ready == count && r->setup.options.stats) {
		sample_all(r);
		r->at_ready = stats_take(r->host);
	}
}

static size_t console(void *ctx, struct host_vm *vm, const char *bytes, size_t n)
{
	struct run *r = ctx;
	struct screen_line *l = vm->user;
	bool was_ready = l->ready;
	size_t took = screen_feed(l, r->setup.options.count > 1, bytes, n);
	if (l->ready && !was_ready)
		became_ready(r, vm);
	if (took < n)
		arm(&r->on_resume, RESUME_MS);
	return took;
}

static void on_resume(struct host_source *s, uint32_t events)
{
	struct run *r = container(struct run, on_resume, s);
	(void)events;
	drain(s->fd);
	host_console_resume(r->host);
}

static void on_input(struct host_source *s, uint32_t events)
{
	struct run *r = container(struct run, on_input, s);
	(void)events;
	char bytes[256];
	ssize_t got = read(s->fd, bytes, sizeof bytes);
	if (got <= 0) {
		host_remove_source(r->host, s);
		r->reading_input = false;
		return;
	}
	size_t n = (size_t)got;
	unsigned off = r->interactive ? terminal_keys(bytes, &n) : 0;
	/* A guest that doesn't read loses keys typed ahead, as on a real line. */
	struct host_vm *vm = host_vm_at(r->host, 0);
	if (n && vm)
		host_console_input(vm, bytes, n);
	while (off--)
		interrupt(r);
}

/* ---- guests -------------------------------------------------------------------------------- */

static void starved(void *ctx, struct host_vm *vm, bool now)
{
	struct run *r = ctx;
	if (!now) {
		r->starved--;
		say("%s goes on: the pool has frames again", name_of(vm));
		return;
	}
	r->starved++;
	say("%s waits for memory: all %u frames of the pool are in use%s", name_of(vm),
	    host_pool(r->host)->frames,
	    r->starved == host_alive(r->host)
		    ? ", and no guest is left that could go on; give a larger "
		      "--pool"
		    : "");
}

static void ended(void *ctx, struct host_vm *vm)
{
	struct run *r = ctx;
	struct screen_line *l = vm->user;
	screen_finish(l, r->setup.options.count > 1);
	if (vm->said_starved)
		r->starved--;
	if (vm->end == END_POWER_OFF)
		r->clean++;
	else if (!(r->stopping && vm->end == END_ORDERED))
		say("%s: %s", name_of(vm), vm->mailbox->words);
	if (r->ended)
		json_array_append_new(r->ended, stats_vm(vm));
	if (!host_alive(r->host))
		host_stop(r->host);
}

static int start_all(struct run *r, char *error)
{
	unsigned count = r->setup.options.count;
	r->line = calloc(count, sizeof *r->line);
	if (!r->line)
		return errorf(error, -ENOMEM, "no memory for %u consoles", count);
	for (unsigned i = 0; i < count; i++) {
		struct vm_config c = r->setup.config;
		if (count > 1)
			snprintf(c.machine.name, sizeof c.machine.name, "%.26s-%u",
				 r->setup.options.name, i + 1);
		snprintf(r->line[i].name, sizeof r->line[i].name, "%.31s", c.machine.name);
		struct host_vm *vm;
		int rc = host_start_vm(r->host, &c, &vm, error);
		if (rc)
			return rc;
		vm->user = &r->line[i];
	}
	return 0;
}

/* ---- the command --------------------------------------------------------------------------- */

static int add_timer(struct run *r, struct host_source *s,
		     void (*ready)(struct host_source *, uint32_t))
{
	*s = (struct host_source){timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK),
				  ready};
	return s->fd < 0 ? -errno : host_add_source(r->host, s, EPOLLIN);
}

static int add_sources(struct run *r, char *error)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	r->on_signal =
		(struct host_source){signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK), on_signal};
	int rc = r->on_signal.fd < 0 ? -errno : host_add_source(r->host, &r->on_signal, EPOLLIN);
	if (!rc)
		rc = add_timer(r, &r->on_timeout, on_timeout);
	if (!rc)
		rc = add_timer(r, &r->on_kill, on_kill);
	if (!rc)
		rc = add_timer(r, &r->on_resume, on_resume);
	if (rc)
		return errorf(error, rc, "event sources: %s", strerror(-rc));
	if (r->setup.options.timeout_seconds)
		arm(&r->on_timeout, r->setup.options.timeout_seconds * 1000);
	return 0;
}

static void take_input(struct run *r)
{
	if (r->setup.options.count > 1)
		return;
	r->on_input = (struct host_source){STDIN_FILENO, on_input};
	/* Only terminals, pipes and sockets can be watched; other input is left alone. */
	r->reading_input = host_add_source(r->host, &r->on_input, EPOLLIN) == 0;
	r->interactive = r->reading_input && terminal_raw();
	if (r->interactive)
		say("the terminal is the guest's; Ctrl-C powers it off, Ctrl-A Ctrl-C is its own "
		    "Ctrl-C");
}

static int write_stats(struct run *r)
{
	const char *path = r->setup.options.stats;
	if (!path)
		return 0;
	json_t *end = json_object();
	json_t *now = stats_take(r->host);
	json_object_update(end, now);
	json_object_set(end, "vms", r->ended);
	json_decref(now);
	json_t *all = json_pack("{s:s, s:O?, s:o}", "schema", STATS_SCHEMA, "at_ready", r->at_ready,
				"at_end", end);
	int rc = all ? stats_write(all, path) : -ENOMEM;
	json_decref(all);
	if (rc)
		say("--stats: %s: %s", path, strerror(-rc));
	return rc;
}

static int guests_status(struct run *r)
{
	if (r->status)
		return r->status;
	return r->clean == r->setup.options.count ? EXIT_CLEAN : EXIT_GUEST;
}

int run_command(int argc, char **argv)
{
	char error[ERROR_MAX] = "";
	struct run r = {.status = 0};
	struct host_source *sources[] = {&r.on_signal, &r.on_timeout, &r.on_kill, &r.on_resume};
	for (size_t i = 0; i < sizeof sources / sizeof *sources; i++)
		sources[i]->fd = -1;
	int rc = options_parse_run(&r.setup.options, argc, argv, error);
	if (rc > 0)
		return EXIT_CLEAN;
	if (!rc)
		rc = run_setup_open(&r.setup, error);
	if (rc) {
		say("%s", error);
		return EXIT_BAD_INPUT;
	}
	if (r.setup.options.stats)
		r.ended = json_array();
	const struct host_config config = {.pool_bytes = r.setup.options.pool_bytes,
					   .kind = r.setup.options.table,
					   .max_vms = r.setup.options.count,
					   .nodes = 1,
					   .colours = 1};
	const struct host_events events = {
		.console = console, .starved = starved, .ended = ended, .ctx = &r};
	rc = host_create(&r.host, &config, &events, error);
	if (!rc)
		rc = add_sources(&r, error);
	if (!rc)
		rc = control_create(&r.control, r.host, error);
	if (!rc)
		rc = start_all(&r, error);
	if (rc) {
		say("%s", error);
		r.status = EXIT_BAD_INPUT;
	} else {
		take_input(&r);
		rc = host_run(r.host);
		if (rc)
			say("the host's event loop: %s", strerror(-rc));
		terminal_restore();
		if (write_stats(&r))
			r.status = r.status ? r.status : EXIT_GUEST;
		r.status = rc ? EXIT_GUEST : guests_status(&r);
	}
	if (r.control)
		control_destroy(r.control);
	if (r.host)
		host_destroy(r.host);
	for (size_t i = 0; i < sizeof sources / sizeof *sources; i++)
		if (sources[i]->fd >= 0)
			close(sources[i]->fd);
	run_setup_close(&r.setup);
	json_decref(r.at_ready);
	json_decref(r.ended);
	free(r.line);
	return r.status;
}
