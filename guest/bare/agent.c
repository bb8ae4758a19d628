#include "guest/bare/agent.h"
#include "guest/bare/console.h"
#include "guest/bare/text.h"
#include "guest/bare/vcon.h"
#include "vmm/base64.h"
#include <string.h>

#define LINE_MAX  1024 /* of the protocol, without the newline */
#define NONCE_MAX 32
#define OUT_PIECE 384 /* bytes in a line of output */

static struct {
	struct vcon console;
	char line[LINE_MAX];
	size_t held;
	bool too_long;
	char nonce[NONCE_MAX];
	size_t nonce_n;
	char command[AGENT_COMMAND_MAX];
	size_t command_n; /* of the parts so far */
	bool command_too_long;
	char out[OUT_PIECE]; /* of the answer, not sent yet */
	size_t out_n;
} agent;

bool agent_open(void)
{
	if (!vcon_open(&agent.console, 1, true))
		return false;
	vcon_write(&agent.console, "\n", 1); /* now the host may send */
	return true;
}

static void send(const char *verb, const char *bytes, size_t n)
{
	char line[NONCE_MAX + 16 + BASE64_CHARS(OUT_PIECE)];
	size_t at = agent.nonce_n, verb_n = strlen(verb);
	memcpy(line, agent.nonce, at);
	memcpy(line + at, verb, verb_n);
	at += verb_n;
	memcpy(line + at, bytes, n);
	at += n;
	line[at++] = '\n';
	vcon_write(&agent.console, line, at);
}

static void flush(void)
{
	char chars[BASE64_CHARS(OUT_PIECE)];
	if (agent.out_n > 0)
		send(" out ", chars, base64_encode(chars, agent.out, agent.out_n));
	agent.out_n = 0;
}

void agent_write(const char *bytes, size_t n)
{
	while (n > 0) {
		size_t now = OUT_PIECE - agent.out_n;
		if (now > n)
			now = n;
		memcpy(agent.out + agent.out_n, bytes, now);
		agent.out_n += now;
		bytes += now;
		n -= now;
		if (agent.out_n == OUT_PIECE)
			flush();
	}
}

void agent_say(const char *format, ...)
{
	char line[CONSOLE_LINE_MAX];
	va_list args;
	va_start(args, format);
	size_t n = text_format(line, sizeof line - 1, format, args);
	va_end(args);
	line[n++] = '\n';
	agent_write(line, n);
}

static void say_status(const char *format, ...)
{
	char text[16];
	va_list args;
	va_start(args, format);
	size_t n = text_format(text, sizeof text, format, args);
	va_end(args);
	send(" status ", text, n);
}

void agent_done(unsigned status)
{
	flush();
	say_status("%u", status);
}

void agent_drain(void)
{
	vcon_drain(&agent.console);
}

/* The next word of a line, which the words and the rest are cut from. */
static const char *word(const char **at, size_t *left, size_t *n)
{
	const char *begin = *at, *space = memchr(begin, ' ', *left);
	*n = space != NULL ? (size_t)(space - begin) : *left;
	size_t used = *n + (space != NULL);
	*at += used;
	*left -= used;
	return begin;
}

/* A line NONCE VERB BASE64 NONCE: another part of a command, and whether it was the last. What isn't
 * such a line, one that was cut off for instance, is dropped. */
static bool take(const char *line, size_t left)
{
	size_t nonce_n, verb_n, part_n, again_n;
	const char *nonce = word(&line, &left, &nonce_n), *verb = word(&line, &left, &verb_n);
	const char *part = word(&line, &left, &part_n), *again = word(&line, &left, &again_n);
	if (left != 0 || nonce_n == 0 || nonce_n > NONCE_MAX || nonce_n != again_n ||
	    memcmp(nonce, again, nonce_n) != 0)
		return false;
	bool last = text_is(verb, verb_n, "exec");
	if (!last && !text_is(verb, verb_n, "more"))
		return false; /* "cancel" comes too late here: commands run to their end */
	if (agent.nonce_n != nonce_n || memcmp(agent.nonce, nonce, nonce_n) != 0) {
		agent.command_n = 0;
		agent.command_too_long = false;
	}
	memcpy(agent.nonce, nonce, nonce_n);
	agent.nonce_n = nonce_n;
	if (part_n / 4 * 3 > AGENT_COMMAND_MAX - 1 - agent.command_n)
		agent.command_too_long = true;
	if (!agent.command_too_long) {
		long got = base64_decode(agent.command + agent.command_n, part, part_n);
		if (got < 0)
			return false;
		agent.command_n += (size_t)got;
	}
	return last;
}

/* A whole line from the console, or false if it isn't there yet. */
static bool read_line(void)
{
	char c;
	while (vcon_read(&agent.console, &c, 1) == 1) {
		if (c == '\n')
			return true;
		if (agent.held == LINE_MAX)
			agent.too_long = true;
		else
			agent.line[agent.held++] = c;
	}
	return false;
}

const char *agent_next(size_t *n)
{
	for (;;) {
		if (!read_line()) {
			vcon_rest(&agent.console);
			continue;
		}
		bool whole = !agent.too_long && take(agent.line, agent.held);
		agent.held = 0;
		agent.too_long = false;
		if (!whole)
			continue;
		*n = agent.command_n;
		agent.command[*n] = '\0';
		agent.command_n = 0;
		/* Ends what a command before a clone may have left unfinished. */
		vcon_write(&agent.console, "\n", 1);
		if (!agent.command_too_long)
			return agent.command;
		agent.command_too_long = false;
		agent_say("at most %u bytes of command", AGENT_COMMAND_MAX - 1);
		agent_done(2);
	}
}
