#include "vmm/cli.h"
#include "vmm/ask.h"
#include "vmm/options.h"
#include "vmm/run.h"
#include <stdio.h>
#include <string.h>

#define FIRST_FLAG 256 /* beyond all letters */
#define ALWAYS     4   /* options that all commands have */

struct parsing {
	struct cli *cli;
	const struct cli_spec *spec;
};

static int one(void *ctx, int option, char *value, char *error)
{
	struct parsing *p = ctx;
	int i = option - FIRST_FLAG;
	struct run_options o = options_run_defaults;
	if (option == 'F' || option == 'X') /* of this process (docs/FAULTS.md) */
		return options_run_one(&o, option == 'F' ? 'f' : 'x', value, error);
	if (option == 'H') {
		p->cli->host = value;
		return 0;
	}
	if (i < 0) /* a short form */
		for (i = 0; p->spec->flag[i][0] != option || p->spec->flag[i][1] != ','; i++)
			;
	p->cli->value[i] = value ? value : "";
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
	struct option longs[CLI_FLAGS + ALWAYS + 1] = {{"help", 0, NULL, 'h'},
						       {"host", 1, NULL, 'H'},
						       {"fail", 1, NULL, 'F'},
						       {"fail-seed", 1, NULL, 'X'}};
	char shorts[2 + 2 * CLI_FLAGS + 1] = ":h";
	for (int i = 0; i < CLI_FLAGS && spec->flag[i]; i++) {
		const char *flag = spec->flag[i];
		bool value = flag[strcspn(flag, "=")];
		int code = FIRST_FLAG + i;
		if (flag[1] == ',') {
			code = flag[0];
			strncat(shorts, (char[]){flag[0], value ? ':' : 0, 0}, 2);
			flag += 2;
		}
		snprintf(name[i], sizeof name[i], "%.*s", (int)strcspn(flag, "="), flag);
		longs[ALWAYS + i] = (struct option){name[i], value, NULL, code};
	}
	const struct options_spec options = {.command = spec->command,
					     .help = spec->usage,
					     .shorts = shorts,
					     .longs = longs,
					     .operands = true,
					     .one = one};
	*c = (struct cli){.host = NULL};
	struct parsing parsing = {c, spec};
	int rc = options_parse(&options, &parsing, argc, argv, error);
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

int cli_answer(json_t *answer, bool json, void (*say)(const json_t *answer), const char *words)
{
	if (!answer)
		return cli_fail(words);
	if (json)
		cli_json(answer);
	else
		say(answer);
	json_decref(answer);
	return EXIT_CLEAN;
}

int cli_ask(const struct cli *c, json_t *request, bool json, void (*say)(const json_t *answer))
{
	char error[ERROR_MAX];
	if (!request)
		return cli_fail("a word of the command is no UTF-8 text");
	json_t *answer = ask_host(c->host, request, error);
	json_decref(request);
	return cli_answer(answer, json, say, error);
}

int cli_just_ask(const struct cli_spec *spec, int argc, char **argv,
		 void (*say)(const json_t *answer))
{
	struct cli c;
	int status = cli_parse(&c, spec, argc, argv);
	if (status >= 0)
		return status;
	json_t *request = c.operands
				  ? json_pack("{s:s, s:s}", "do", spec->command, "vm", c.operand[0])
				  : json_pack("{s:s}", "do", spec->command);
	return cli_ask(&c, request, c.value[0], say);
}
