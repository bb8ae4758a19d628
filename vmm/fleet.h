/*
 * A number of guests of one kind under one host of their own: started together, their consoles
 * shown line by line, heard when they are ready, stopped by a timeout, a signal or the caller. What
 * `invisor run` and `invisor density` are made of.
 */
#ifndef VMM_FLEET_H
#define VMM_FLEET_H

#include "vmm/control.h"
#include "vmm/run.h"
#include "vmm/screen.h"

struct fleet;

/* How hard the guests are being stopped. Only ever upwards. */
enum fleet_stop {
	FLEET_RUNS,
	FLEET_BUTTON, /* the power button was pressed; orders to power off follow after a while */
	FLEET_OFF,    /* powered off by order; kills follow after a while */
	FLEET_KILLED,
};

/* All may be NULL. */
struct fleet_events {
	void (*all_ready)(void *ctx); /* the last guest's console said the ready word */
	void (*starved)(void *ctx, struct host_vm *vm); /* it waits for frames (said already) */
	void (*ended)(void *ctx, struct host_vm *vm);   /* it is gone (said already) */
	void *ctx;
};

struct fleet_config {
	const struct run_setup *setup; /* what they are, how many; stays the caller's */
	const char *ready;             /* a console line that begins so means ready */
	bool quiet;                    /* consoles aren't shown, nor each guest's becoming ready */
};

struct fleet {
	struct fleet_config config;
	struct fleet_events events;
	unsigned count;
	struct host *host;
	struct control *control;
	struct screen_line *line; /* of every guest */
	struct host_source on_signal, on_timeout, on_grace, on_resume;
	enum fleet_stop stop;
	unsigned ready, clean; /* guests that were ready / that powered off by themselves */
	unsigned starved;      /* guests that wait for frames now */
	int status;            /* set by whoever stopped the fleet first; EXIT_CLEAN if nobody */
	bool interactive;      /* the caller's: the only guest has the terminal, so don't chat */
};

/* Make the host and start every guest. *f is filled in also when this fails with -errno and words;
 * then fleet_close stops what was started. */
int fleet_open(struct fleet *f, const struct fleet_config *config,
	       const struct fleet_events *events, char *error);
/* Handle events until the last guest is gone. 0 or -errno. */
int fleet_run(struct fleet *f);
/* Kill what still runs, free everything. */
void fleet_close(struct fleet *f);

/* Stop all guests; does nothing if they are being stopped as hard already. Guests that know no power
 * button are powered off at once. The first call's status becomes the fleet's. */
void fleet_stop(struct fleet *f, enum fleet_stop how, int status);
/* What Ctrl-C does: the power button, the second time kill. */
void fleet_interrupt(struct fleet *f);
/* Have every VM refresh the numbers that it samples, and wait a moment for them. */
void fleet_sample(struct fleet *f);
/* EXIT_CLEAN if every guest powered off by itself, EXIT_GUEST if not, or why the fleet was stopped. */
int fleet_status(const struct fleet *f);

/* One line for the user, on standard error. */
void fleet_say(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
