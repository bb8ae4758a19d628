/* `invisor run --detach`: asks the host that runs to start guests. */
#include "vmm/answer.h"
#include "vmm/ask.h"
#include "vmm/fleet.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int add(json_t *options, const char *option, const char *value, char *error)
{
	json_t *text = json_string(value);
	if (!text)
		return errorf(error, -EINVAL, "%s: the running host takes UTF-8 text only", option);
	json_array_append_new(options, json_string(option));
	json_array_append_new(options, text);
	return 0;
}

static int add_number(json_t *options, const char *option, uint64_t value)
{
	char text[24];
	snprintf(text, sizeof text, "%" PRIu64, value);
	return add(options, option, text, NULL);
}

/* A file, by its name from the root, as the host has a working directory of its own. */
static int add_file(json_t *options, const char *option, const char *path, const char *behind,
		    char *error)
{
	char whole[PATH_MAX + 8];
	char *real = realpath(path, NULL);
	if (!real)
		return errorf(error, -errno, "%s: %.150s: %s", option, path, strerror(errno));
	snprintf(whole, sizeof whole, "%s%s", real, behind);
	free(real);
	return add(options, option, whole, error);
}

static int collect(json_t *options, const struct run_options *o, char *error)
{
	int rc = add_number(options, "--count", o->count);
	if (!rc)
		rc = add_number(options, "--mem", o->mem_bytes);
	if (!rc)
		rc = add_number(options, "--cpus", o->cpus);
	if (!rc && o->mem_min)
		rc = add_number(options, "--mem-min", o->mem_min);
	if (!rc && o->mem_limit)
		rc = add_number(options, "--mem-limit", o->mem_limit);
	if (!rc && o->mem_shares)
		rc = add_number(options, "--mem-shares", o->mem_shares);
	if (!rc && o->name != options_run_defaults.name)
		rc = add(options, "--name", o->name, error);
	if (!rc && o->append)
		rc = add(options, "--append", o->append, error);
	if (!rc && o->share_domain)
		rc = add(options, "--share-domain", o->share_domain, error);
	if (!rc && o->kernel)
		rc = add_file(options, "--kernel", o->kernel, "", error);
	if (!rc && o->initrd)
		rc = add_file(options, "--initrd", o->initrd, "", error);
	for (unsigned i = 0; !rc && i < o->disks; i++)
		rc = add_file(options, "--disk", o->disk[i].path,
			      o->disk[i].read_only     ? ",ro"
			      : o->disk[i].is_volatile ? ",rw,cache=volatile"
						       : ",rw",
			      error);
	for (unsigned i = 0; !rc && i < o->pmems; i++)
		rc = add_file(options, "--pmem", o->pmem[i].path,
			      o->pmem[i].share ? ",share" : ",private", error);
	return rc;
}

int run_detached(const struct run_options *o)
{
	char error[ERROR_MAX] = "";
	const char *known = o->kernel || o->initrd ? "up" : "ready"; /* how far it surely comes */
	const char *wait = o->wait ? o->wait : known;
	json_t *options = json_array(), *answer = NULL, *vm;
	if (!collect(options, o, error)) {
		json_t *request =
			json_pack("{s:s, s:O, s:s}", "do", "run", "options", options, "wait", wait);
		answer = ask_host(o->host, request, error);
		json_decref(request);
	}
	json_decref(options);
	if (!answer) {
		bool none = !strcmp(error, "no host runs");
		fleet_say("%s%s", error, none ? "; start one: invisor host start" : "");
		return EXIT_BAD_INPUT;
	}
	size_t i;
	json_array_foreach(json_object_get(answer, "vms"), i, vm) puts(answer_text(vm, "name"));
	json_decref(answer);
	return EXIT_CLEAN;
}
