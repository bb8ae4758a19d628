/*
 * A host and all the guests under it, as its owner sees them: started in batches, their consoles shown
 * line by line or kept, heard when they are ready, stopped by a timeout, a signal, a request or the
 * caller. What `invisor run`, `invisor density` and `invisor host` are made of.
 */
#ifndef VMM_FLEET_H
#define VMM_FLEET_H

#include "vmm/guest.h"

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
	const struct run_setup
		*setup;          /* of the guests to begin with, which stays the caller's; NULL:
					  none, and the fleet lives until it is stopped */
	struct host_config host; /* without a setup: what the host is made with */
	const char *file;        /* the control socket's name; NULL: host-PID.sock */
	const char *ready;       /* a console line that begins so means ready */
	bool quiet;              /* consoles aren't shown, nor each guest's becoming ready */
	bool keep; /* consoles' last output is kept, so that `invisor console` can show it */
};

struct fleet {
	struct fleet_config config;
	struct fleet_events events;
	struct host *host;
	struct control *control;
	struct host_source on_signal, on_timeout, on_grace, on_resume;
	struct fleet_leaving *leaving; /* who waits for guests' ends */
	struct scenario_run *scenario; /* NULL: none is under way; scenario_run.h */
	enum fleet_stop stop;
	unsigned count, ready, clean; /* guests started in all, those that were ready, those that
					 powered off by themselves */
	unsigned starved;             /* guests that wait for frames now */
	unsigned named;               /* names given to guests that came without */
	unsigned adopted;             /* VMs of a host that died, templates included */
	uint64_t began_ns;
	int status;       /* set by whoever stopped the fleet first; EXIT_CLEAN if nobody */
	bool interactive; /* the caller's: the only guest has the terminal, so don't chat */
};

/* Make the host and start the setup's guests. *f is filled in also when this fails with -errno and
 * words; then fleet_close stops what was started. */
int fleet_open(struct fleet *f, const struct fleet_config *config,
	       const struct fleet_events *events, char *error);
/* Handle events until the last guest is gone; without a setup, until the fleet is stopped and the last
 * guest is gone. 0 or -errno. */
int fleet_run(struct fleet *f);
/* Kill what still runs, free everything. */
void fleet_close(struct fleet *f);

/* Start a batch's guests: all or none. -errno with words. */
int fleet_start(struct fleet *f, struct batch *b, char *error);
/* Take in a VM that was started some other way, as one more guest of the batch: its console, its end.
 * -ENOMEM. */
int fleet_adopt(struct fleet *f, struct host_vm *vm, struct batch *b);
/* The guest of that name which runs; NULL if there is none. */
struct guest *fleet_find(struct fleet *f, const char *name);
/* Take up again in a moment what somebody had no room for. */
void fleet_retry(struct fleet *f);
/* Answer r with `answer` when all of the n guests are gone. Takes the reference. */
void fleet_answer_when_gone(struct fleet *f, struct control_request *r, json_t *answer,
			    struct guest *const *guests, unsigned n);
/* The living guests, in order of start; *n of them. To be freed; NULL without memory. */
struct guest **fleet_guests(struct fleet *f, unsigned *n);

/* Stop all guests; does nothing if they are being stopped as hard already. Guests that know no power
 * button are powered off at once. The first call's status becomes the fleet's. */
void fleet_stop(struct fleet *f, enum fleet_stop how, int status);
/* Stop one guest. Those that can't hear the power button are powered off. */
void fleet_stop_guest(struct guest *g, enum fleet_stop how);
/* What Ctrl-C and SIGTERM do: the power button, the second time kill. */
void fleet_interrupt(struct fleet *f);
/* Have every VM refresh the numbers that it samples, and wait a moment for them. */
void fleet_sample(struct fleet *f);
/* EXIT_CLEAN if every guest powered off by itself, EXIT_GUEST if not, or why the fleet was stopped. */
int fleet_status(const struct fleet *f);

/* One line for the user, on standard error. */
void fleet_say(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* From now on with the time in front: standard error is a log. */
void fleet_say_when(void);

#endif
