#include "vmm/batch.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define ARGS_MAX 64

struct batch *batch_of(const struct run_setup *setup)
{
	struct batch *b = calloc(1, sizeof *b);
	if (b)
		*b = (struct batch){.setup = setup, .refs = 1};
	return b;
}

struct batch *batch_adopted(void)
{
	struct batch *b = batch_of(NULL);
	if (!b)
		return NULL;
	b->own.options = options_run_defaults;
	b->setup = &b->own;
	b->count = 1;
	return b;
}

void batch_hold(struct batch *b)
{
	b->refs++;
}

void batch_drop(struct batch *b)
{
	if (--b->refs)
		return;
	if (b->setup == &b->own)
		run_setup_close(&b->own);
	for (int i = 0; i < b->argc; i++)
		free(b->args[i]);
	free(b->args);
	json_decref(b->answer);
	free(b);
}

/* ---- from a request ------------------------------------------------------------------------ */

/* Copies, since parsing reorders and cuts them. */
static int copy_args(struct batch *b, const json_t *options, char *error)
{
	size_t i;
	json_t *value;
	if (!json_is_array(options) || json_array_size(options) > ARGS_MAX)
		return errorf(error, -EINVAL,
			      "run: needs \"options\", an array of at most %d strings", ARGS_MAX);
	b->args = calloc(json_array_size(options) + 2, sizeof *b->args);
	if (!b->args || !(b->args[b->argc++] = strdup("run")))
		return errorf(error, -ENOMEM, "run: no memory");
	json_array_foreach(options, i, value)
	{
		if (!json_is_string(value))
			return errorf(error, -EINVAL, "run: \"options\" are strings");
		if (!(b->args[b->argc] = strdup(json_string_value(value))))
			return errorf(error, -ENOMEM, "run: no memory");
		b->argc++;
	}
	return 0;
}

/* The host's own working directory is nobody's business: files are named from the root. */
static int check_paths(const struct run_options *o, char *error)
{
	const char *path[2 + VM_MAX_DISKS + VM_MAX_PMEM] = {o->kernel, o->initrd};
	unsigned n = 2;
	for (unsigned i = 0; i < o->disks; i++)
		path[n++] = o->disk[i].path;
	for (unsigned i = 0; i < o->pmems; i++)
		path[n++] = o->pmem[i].path;
	for (unsigned i = 0; i < n; i++)
		if (path[i] && *path[i] != '/')
			return errorf(error, -EINVAL, "run: '%.120s' doesn't begin with a /",
				      path[i]);
	return 0;
}

int batch_parse(struct batch **out, const json_t *options, const struct host_config *host,
		char *error)
{
	struct batch *b = batch_of(NULL);
	if (!b)
		return errorf(error, -ENOMEM, "run: no memory");
	struct run_options *o = &b->own.options;
	int rc = copy_args(b, options, error);
	if (!rc)
		rc = options_parse_guests(o, b->argc, b->args, error);
	if (!rc)
		rc = check_paths(o, error);
	if (!rc) {
		b->nameless = !o->name;
		if (b->nameless)
			o->name = options_run_defaults.name;
		o->pool_bytes = host->pool_bytes;
		o->reclaims = host->pack_bytes || host->swap_file;
		rc = run_setup_open(&b->own, error);
	}
	if (!rc)
		b->setup = &b->own;
	if (rc)
		batch_drop(b);
	else
		*out = b;
	return rc;
}

/* ---- waiting ------------------------------------------------------------------------------- */

static void client_gone(void *ctx)
{
	struct batch *b = ctx;
	b->request = NULL;
}

void batch_answer(struct batch *b, struct control_request *r, enum batch_wait wait)
{
	b->request = r;
	b->wait = wait;
	control_on_gone(r, client_gone, b);
	batch_progress(b);
}

void batch_progress(struct batch *b)
{
	struct control_request *r = b->request;
	if (!r || (b->wait == BATCH_UP ? b->up : b->ready) < b->count)
		return;
	b->request = NULL;
	control_reply(r, json_pack("{s:O}", "vms", b->answer));
}

void batch_lost(struct batch *b, const struct host_vm *vm, bool up, bool ready)
{
	struct control_request *r = b->request;
	if (!r || (b->wait == BATCH_UP ? up : ready))
		return;
	b->request = NULL;
	control_refuse(r, "%s ended before it was %s%s: %s", vm->config.machine.name,
		       b->wait == BATCH_UP ? "up" : "ready",
		       b->count > 1 ? " (those started with it go on)" : "", vm->mailbox->words);
}
