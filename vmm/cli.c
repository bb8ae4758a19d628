#include "vmm/cli.h"
#include "vmm/options.h"
#include "vmm/run.h"
#include <stdio.h>
#include <string.h>

#define FIRST_FLAG 256 /* beyond all letters */

static int one(void *ctx, int option, char *value, char *error)
{
	struct cli *c = ctx;
	(void)error;
	if (option == 'H')
		c->host = value;
	else
		c->value[option - FIRST_FLAG] = value ? value : "";
	return 0;
}

int cli_fail(const char *words)
{
	fprintf(stderr, "invisor: %s\n", words);
	return EXIT_BAD_INPUT;
}

void cli_json(const json_t *answer)
{
	json_dumpf(answer, stdout, JSON_COMPACT);
	putchar('\n');
}

int cli_parse(struct cli *c, const struct cli_spec *spec, int argc, char **argv)
{
	char name[CLI_FLAGS][16], error[ERROR_MAX] = "";
	struct option longs[CLI_FLAGS + 3] = {{"help", 0, NULL, 'h'}, {"host", 1, NULL, 'H'}};
	for (int i = 0; i < CLI_FLAGS && spec->flag[i]; i++) {
		size_t n = strcspn(spec->flag[i], "=");
		snprintf(name[i], sizeof name[i], "%.*s", (int)n, spec->flag[i]);
		longs[2 + i] =
			(struct option){name[i], spec->flag[i][n] == '=', NULL, FIRST_FLAG + i};
	}
	const struct options_spec options = {.command = spec->command,
					     .help = spec->usage,
					     .shorts = ":h",
					     .longs = longs,
					     .operands = true,
					     .one = one};
	*c = (struct cli){.host = NULL};
	int rc = options_parse(&options, c, argc, argv, error);
	if (rc)
		return rc > 0 ? EXIT_CLEAN : cli_fail(error);
	c->operand = argv + optind;
	c->operands = argc - optind;
	if (c->operands >= spec->least && c->operands <= spec->most)
		return -1;
	errorf(error, 0, "%s: %s; see invisor %s --help", spec->command, spec->operands,
	       spec->command);
	return cli_fail(error);
}
