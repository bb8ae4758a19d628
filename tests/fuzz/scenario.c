/* Scenario files (vmm/scenario.c): JSON of any kind, and the list of faults that is made of what is taken. */
#include "vmm/scenario.h"
#include "tests/fuzz/fuzz.h"
#include "vmm/error.h"
#include "vmm/vm.h"
#include <stdio.h>
#include <string.h>

static struct vm_config guest;

static const struct vm_config *find(void *ctx, const char *name)
{
	(void)ctx;
	return strcmp(name, "vm") ? NULL : &guest;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	guest = (struct vm_config){.disks = 2, .pmems = 1};
	snprintf(guest.machine.name, sizeof guest.machine.name, "vm");
	guest.machine.cpus = 2;
	guest.machine.banks = guest.machine.ram_banks = 1;
	guest.machine.bank[0] = (struct machine_bank){.base = gpa(0), .bytes = 64 * MiB};
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char error[ERROR_MAX] = "";
	json_error_t why;
	json_t *root = json_loadb((const char *)data, size, JSON_REJECT_DUPLICATES, &why);
	struct scenario *s = NULL;
	if (!root)
		return 0;
	int rc = scenario_parse(&s, root, "f.json", find, NULL, error);
	json_decref(root);
	cr_assert(rc ? *error != 0 : s && s->steps <= SCENARIO_STEPS);
	if (!rc && scenario_plan(s, s->seed) == 0) {
		cr_assert(s->events <= SCENARIO_EVENTS);
		for (uint32_t i = 0; i < s->events; i++)
			cr_assert(s->event[i].step < s->steps &&
				  (!i || s->event[i - 1].at_ms <= s->event[i].at_ms));
	}
	if (!rc)
		scenario_free(s);
	return 0;
}
