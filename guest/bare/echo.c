/*
 * work=console: says what it is told, line by line, until the line "quit".
 */
#include "guest/bare/console.h"
#include "guest/bare/cpu.h"
#include "guest/bare/end.h"
#include "guest/bare/team.h"
#include "guest/bare/text.h"
#include "guest/bare/work.h"

#define POLLS_A_SECOND 2000

void echo_run(const struct stage *s)
{
	char line[CONSOLE_LINE_MAX], in[32];
	size_t n = 0, lines = 0, bytes = 0;
	uint64_t poll = team_cycles(1) / POLLS_A_SECOND;
	uint64_t end = s->seconds != WORDS_UNSET ? cpu_tsc() + team_cycles(s->seconds) : UINT64_MAX;

	console_say("console echoes lines, quit ends it");
	for (;;) {
		size_t got = console_read(in, sizeof in);
		for (size_t i = 0; i < got; i++) {
			char c = in[i];
			bytes++;
			if (c != '\r' && c != '\n') {
				if (n < sizeof line - 1)
					line[n++] = c;
				continue;
			}
			if (text_is(line, n, "quit")) {
				console_say("console lines=%lu bytes=%lu", lines, bytes);
				return;
			}
			if (n > 0) {
				line[n] = '\n';
				console_write(line, n + 1);
				lines++;
			}
			n = 0;
		}
		uint64_t now = cpu_tsc();
		if (now > end)
			end_fail("console: no quit within %lu s; %lu lines, %lu bytes came",
				 s->seconds, lines, bytes);
		while (got == 0 && cpu_tsc() - now < poll)
			cpu_pause();
	}
}
