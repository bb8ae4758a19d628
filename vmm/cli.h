/* The command lines of what asks a running host: --host, --help, a few flags of its own, operands. */
#ifndef VMM_CLI_H
#define VMM_CLI_H

#include <jansson.h>
#include <stdbool.h>

#define CLI_FLAGS 4

struct cli_spec {
	const char *command; /* as it is typed behind "invisor" */
	const char *usage;
	const char *flag
		[CLI_FLAGS]; /* without the dashes; "name=" takes a value, "n,name=" has a short form */
	int least, most;     /* operands */
	const char *operands; /* in words: "takes a VM's name and an address" */
};

struct cli {
	const char *host;             /* --host, or NULL */
	const char *value[CLI_FLAGS]; /* of each flag; "" for one without; NULL: not given */
	char **operand;
	int operands;
};

/* -1 to go on; else the exit status: help was printed, or one line said what is wrong. */
int cli_parse(struct cli *c, const struct cli_spec *spec, int argc, char **argv);
/* Print an answer as JSON (if `json`) or as `say` has it, and let it go; NULL: why there is none is in `words`. The exit
 * status. */
int cli_answer(json_t *answer, bool json, void (*say)(const json_t *answer), const char *words);
/* Ask the host that was meant, then print its answer as JSON (if `json`) or as `say` has it. Takes the reference to
 * the request; NULL: it couldn't be made, since a word is no UTF-8 text. The exit status. */
int cli_ask(const struct cli *c, json_t *request, bool json, void (*say)(const json_t *answer));
/* A whole command that is its request: {"do": its name}, with "vm" if it takes an operand. Its first flag is --json.
 * The exit status. */
int cli_just_ask(const struct cli_spec *spec, int argc, char **argv,
		 void (*say)(const json_t *answer));
/* Print an answer as one line of JSON. */
void cli_json(const json_t *answer);
/* Say it on standard error, as all of the program's lines. Returns the exit status of bad input. */
int cli_fail(const char *words);

#endif
