#include "vmm/density.h"
#include "vmm/clock.h"
#include "vmm/container.h"
#include "vmm/memory.h"
#include "vmm/proc.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define TICK_MS        250
#define STILL_TICKS    2  /* without a new mapping: the guests have settled */
#define SETTLE_TICKS   20 /* or they never will */
#define PROGRESS_TICKS 80

/* One count with one table: from its start until its guests are gone. */
struct trial {
	struct density *density;
	struct density_row *row;
	struct density_run *run; /* of the row */
	struct fleet fleet;
	struct density_before before;
	struct host_source on_tick;
	enum { NO_CLONES, CLONES_ASKED, CLONES_RUN } clones;
	unsigned ticks, settling, still;
	uint32_t frames;
	bool over; /* measured, or will never be */
};

static const char *table_name(const struct trial *t)
{
	return t->run == &t->row->radix ? "radix" : "ipt";
}

static void give_up(struct trial *t, int status)
{
	t->over = true;
	fleet_stop(&t->fleet, FLEET_OFF, status);
}

static void measure(struct trial *t)
{
	char error[ERROR_MAX] = "";
	int rc = 0;
	density_freeze(&t->fleet);
	density_measure(t->run, &t->fleet, &t->before);
	if (t->run == &t->row->ipt)
		rc = density_replay(&t->row->replay, host_table(t->fleet.host),
				    &t->density->setup.config.machine, density_replay_limit(),
				    error);
	density_thaw(&t->fleet);
	if (!rc && t->row->replay.mismatches) {
		rc = -EIO;
		errorf(error, rc, "radix tables to compare: %" PRIu64 " mappings differ",
		       t->row->replay.mismatches);
	}
	if (rc) {
		t->run->measured = false;
		fleet_say("%s", error);
	} else {
		fleet_say("%u guests, table %s: up after %.1f s, %.1f MiB mapped", t->row->guests,
			  table_name(t), t->run->ready_seconds,
			  (double)t->run->frames * PAGE_SIZE / MiB);
	}
	give_up(t, rc ? EXIT_GUEST : EXIT_CLEAN);
}

/* All are up; what they still load in the background belongs to them, so wait until it is there. */
static bool settled(struct trial *t)
{
	struct ipt_counts c;
	ipt_counts(host_table(t->fleet.host), &c);
	t->still = c.frames[IPT_PRIVATE] == t->frames ? t->still + 1 : 0;
	t->frames = c.frames[IPT_PRIVATE];
	return t->still >= STILL_TICKS || ++t->settling >= SETTLE_TICKS;
}

/* ---- clones -------------------------------------------------------------------------------- */

static void clones_run(void *ctx, struct host_vm **clones, unsigned n)
{
	struct trial *t = ctx;
	(void)clones;
	(void)n;
	t->clones = CLONES_RUN;
	t->settling = t->still = 0;
}

static void clones_failed(void *ctx, const char *words)
{
	struct trial *t = ctx;
	if (t->over || t->fleet.stop != FLEET_RUNS)
		return;
	fleet_say("%s", words);
	give_up(t, EXIT_GUEST);
}

/* The guest that was booted, and as many clones as the count lacks. */
static void make_clones(struct trial *t)
{
	char error[ERROR_MAX];
	const struct host_clone_request request = {.count = t->row->guests - 1,
						   .predict = true,
						   .done = clones_run,
						   .failed = clones_failed,
						   .ctx = t};
	t->clones = CLONES_ASKED;
	int rc = host_clone(host_vm_at(t->fleet.host, 0), &request, error);
	if (!rc)
		return;
	fleet_say("%s", error);
	give_up(t, rc == -ENOMEM ? EXIT_BAD_INPUT : EXIT_GUEST);
}

static void go_on(struct trial *t)
{
	bool clones = t->row->guests > t->fleet.count;
	if ((clones && t->clones == CLONES_ASKED) || !settled(t))
		return;
	if (clones && t->clones == NO_CLONES)
		make_clones(t);
	else
		measure(t);
}

static void on_tick(struct host_source *s, uint32_t events)
{
	struct trial *t = container(struct trial, on_tick, s);
	uint64_t n;
	(void)events;
	ssize_t got = read(s->fd, &n, sizeof n);
	(void)got;
	if (t->over || t->fleet.stop != FLEET_RUNS)
		return;
	if (t->fleet.ready == t->fleet.count)
		go_on(t);
	else if (++t->ticks % PROGRESS_TICKS == 0)
		fleet_say("%u guests, table %s: %u are up after %u s", t->row->guests,
			  table_name(t), t->fleet.ready, t->ticks * TICK_MS / 1000);
}

static void starved(void *ctx, struct host_vm *vm)
{
	struct trial *t = ctx;
	(void)vm;
	if (t->over || t->fleet.stop != FLEET_RUNS)
		return;
	fleet_say("%u guests don't fit into the pool of %" PRIu64
		  " MiB; give a larger --pool, or fewer --guests",
		  t->row->guests, t->density->options.run.pool_bytes / MiB);
	give_up(t, EXIT_BAD_INPUT);
}

static void ended(void *ctx, struct host_vm *vm)
{
	struct trial *t = ctx;
	const struct guest *g = vm->user;
	const char *last = g ? g->line.last : "";
	if (t->over || t->fleet.stop != FLEET_RUNS)
		return;
	fleet_say("%s ended (%s) before all %u guests were measured%s%s", vm->config.machine.name,
		  vm_end_name(vm->end), t->row->guests, *last ? "; its last line: " : "", last);
	give_up(t, EXIT_GUEST);
}

static int add_tick(struct trial *t, char *error)
{
	const struct timespec every = {.tv_nsec = TICK_MS * 1000000};
	t->on_tick = (struct host_source){
		timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK), on_tick};
	if (t->on_tick.fd < 0)
		return errorf(error, -errno, "timer: %s", strerror(errno));
	timerfd_settime(t->on_tick.fd, 0, &(struct itimerspec){every, every}, NULL);
	int rc = host_add_source(t->fleet.host, &t->on_tick, EPOLLIN);
	return rc ? errorf(error, rc, "timer: %s", strerror(-rc)) : 0;
}

/* With --append 'invisor.run="..."' a Linux guest is up when that command has ended. */
static const char *ready_word(const struct density *d)
{
	if (d->setup.image.kind == BOOT_BARE) /* one that serves is never done */
		return strstr(d->setup.cmdline, "work=serve") ? "serve" : "DONE";
	return strstr(d->setup.cmdline, "invisor.run=") ? "EXIT" : "READY";
}

static int run_trial(struct density *d, struct density_row *row, enum ipt_kind kind)
{
	struct trial t = {.density = d,
			  .row = row,
			  .run = kind == IPT_RADIX ? &row->radix : &row->ipt,
			  .on_tick = {.fd = -1}};
	const struct fleet_config config = {
		.setup = &d->setup, .ready = ready_word(d), .quiet = true};
	const struct fleet_events events = {.starved = starved, .ended = ended, .ctx = &t};
	char error[ERROR_MAX] = "";
	d->setup.options.count = d->options.clones ? 1 : row->guests;
	d->setup.options.table = kind;
	density_before(&t.before);
	int status = EXIT_BAD_INPUT, rc = fleet_open(&t.fleet, &config, &events, error);
	if (!rc)
		rc = add_tick(&t, error);
	if (rc) {
		fleet_say("%s", error);
	} else if ((rc = fleet_run(&t.fleet))) {
		fleet_say("the host's event loop: %s", strerror(-rc));
		status = EXIT_GUEST;
	} else {
		status = fleet_status(&t.fleet);
	}
	fleet_close(&t.fleet);
	if (t.on_tick.fd >= 0)
		close(t.on_tick.fd);
	return status;
}

/* What the last count took says whether this one can fit, before the host runs out of memory. */
static int check_memory(const struct density *d, unsigned guests)
{
	if (!d->rows)
		return EXIT_CLEAN;
	const struct density_row *last = &d->row[d->rows - 1];
	int64_t need = last->ipt.parts_kib / last->guests * (int64_t)guests;
	if (d->options.clones) {
		/* A clone takes what it has of its own: by how much the last count took more. */
		if (d->rows < 2)
			return EXIT_CLEAN;
		int64_t more = last->ipt.parts_kib - last[-1].ipt.parts_kib;
		need = last->ipt.parts_kib +
		       more / (last->guests - last[-1].guests) * (int64_t)(guests - last->guests);
	}
	int64_t have = (int64_t)proc_meminfo_kib("MemAvailable");
	if (need <= have)
		return EXIT_CLEAN;
	fleet_say("%u guests would take about %" PRId64 " MiB, but this host has %" PRId64
		  " MiB available; give fewer --guests",
		  guests, need / (int64_t)KiB, have / (int64_t)KiB);
	return EXIT_BAD_INPUT;
}

static int run_all(struct density *d)
{
	int status = EXIT_CLEAN;
	for (unsigned i = 0; status == EXIT_CLEAN && i < d->options.counts; i++) {
		struct density_row *row = &d->row[i];
		row->guests = d->options.count[i];
		status = check_memory(d, row->guests);
		if (status == EXIT_CLEAN)
			status = run_trial(d, row, IPT_INDEX);
		d->rows += row->ipt.measured;
		if (status == EXIT_CLEAN && !d->options.quick && !d->options.clones)
			status = run_trial(d, row, IPT_RADIX);
	}
	return status;
}

/* ---- the command --------------------------------------------------------------------------- */

/* Guests must stay up to be measured. The last of several such words counts, so the user's own
 * can't undo it. */
static int make_them_stay(struct run_setup *s, char *error)
{
	const char *word = s->image.kind == BOOT_BARE ? " end=spin" : " invisor.stay=1";
	size_t used = strlen(s->cmdline);
	if (used + strlen(word) >= sizeof s->cmdline)
		return errorf(error, -E2BIG, "--append: too long by %zu bytes",
			      used + strlen(word) + 1 - sizeof s->cmdline);
	strcpy(s->cmdline + used, word);
	return 0;
}

static int report(struct density *d, int status)
{
	char error[ERROR_MAX] = "";
	if (!d->rows)
		return status;
	density_print(d);
	int rc = density_write_csv(d, error);
	if (!rc)
		rc = density_plot(d, error);
	if (rc)
		fleet_say("%s", error);
	return rc < 0 && status == EXIT_CLEAN ? EXIT_GUEST : status;
}

int density_command(int argc, char **argv)
{
	static struct density d;
	char error[ERROR_MAX] = "";
	int rc = density_options_parse(&d.options, argc, argv, error);
	if (rc > 0)
		return EXIT_CLEAN;
	if (!rc)
		rc = density_out(&d, error);
	if (!rc && d.options.clones)
		rc = fault_can_share(error); /* before a guest is booted for nothing */
	if (!rc) {
		d.setup.options = d.options.run;
		rc = run_setup_open(&d.setup, error);
	}
	if (rc) {
		fleet_say("%s", error);
		return EXIT_BAD_INPUT;
	}
	d.options.run = d.setup.options; /* with the pool's size */
	rc = make_them_stay(&d.setup, error);
	int status = EXIT_BAD_INPUT;
	if (rc)
		fleet_say("%s", error);
	else
		status = report(&d, run_all(&d));
	run_setup_close(&d.setup);
	return status;
}
