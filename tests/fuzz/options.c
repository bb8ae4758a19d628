/* Options: words between NULs and newlines, as `invisor run` and a request of the control socket give them; sizes and
 * numbers. No file that they name is looked at. */
#include "vmm/options.h"
#include "tests/fuzz/fuzz.h"
#include "vmm/size.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define WORDS 64

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	cr_assert(freopen("/dev/null", "w", stdout) != NULL); /* --help */
	return 0;
}

static void check(const struct run_options *o)
{
	cr_assert(o->count >= 1 && o->count <= RUN_MAX_GUESTS);
	cr_assert(o->cpus >= 1 && o->cpus <= MACHINE_MAX_CPUS);
	cr_assert(o->disks <= VM_MAX_DISKS && o->pmems <= VM_MAX_PMEM);
	cr_assert(!o->name || options_name_is_good(o->name));
	for (unsigned i = 0; i < o->disks; i++)
		cr_assert(*o->disk[i].path);
	for (unsigned i = 0; i < o->pmems; i++)
		cr_assert(*o->pmem[i].path);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char error[ERROR_MAX], *word[WORDS + 2];
	struct run_options o;
	uint64_t n;
	int argc = 0, rc;
	char *text = malloc(size + 1);
	cr_assert(text != NULL);
	memcpy(text, data, size);
	text[size] = 0;
	if (size_parse(text, &n)) {
		char again[32];
		uint64_t same;
		snprintf(again, sizeof again, "%" PRIu64, n);
		cr_assert(size_parse(again, &same) && same == n);
	}
	if (number_parse(text, 3, 1000, &n))
		cr_assert(n >= 3 && n <= 1000);
	bool run = size && data[0] & 1;
	word[argc++] = (char[]){"run"};
	for (size_t i = 1; i < size && argc < WORDS; i++) {
		word[argc++] = text + i;
		while (i < size && text[i] && text[i] != '\n')
			i++;
		text[i] = 0;
	}
	word[argc] = NULL;
	*error = 0;
	rc = run ? options_parse_run(&o, argc, word, error)
		 : options_parse_guests(&o, argc, word, error);
	cr_assert(rc == 0 || (rc == 1 && run) || rc == -EINVAL);
	if (rc < 0)
		cr_assert(*error && strlen(error) < sizeof error);
	if (rc == 0) {
		check(&o);
		rc = options_check_sizes(&o, error);
		cr_assert(rc == 0 || rc == -EINVAL || rc == -ENOMEM);
		if (rc == 0)
			cr_assert(o.pool_bytes && o.pool_bytes % PAGE_SIZE == 0 &&
				  o.mem_bytes % PAGE_SIZE == 0);
	}
	free(text);
	return 0;
}
