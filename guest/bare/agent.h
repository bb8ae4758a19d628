/*
 * The guest's half of the agent's protocol (docs/AGENT.md), at the second virtio console.
 */
#ifndef BARE_AGENT_H
#define BARE_AGENT_H

#include <stdbool.h>
#include <stddef.h>

#define AGENT_COMMAND_MAX 1024 /* bytes with the NUL; the host sends more, to others */

/* False if the machine has no second console. */
bool agent_open(void);
/* Wait for the next command: *n bytes and a NUL, until the next call. */
const char *agent_next(size_t *n);
/* Part of the answer: bytes, or a line with its newline. */
void agent_write(const char *bytes, size_t n);
void agent_say(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* The end of the answer. */
void agent_done(unsigned status);
/* Wait until the answer is out. */
void agent_drain(void);

#endif
