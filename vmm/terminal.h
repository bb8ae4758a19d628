/*
 * The user's terminal while one guest is interactive: raw, so that every key is the guest's, but
 * for Ctrl-C (power off) and the prefix Ctrl-A: Ctrl-A Ctrl-C is the guest's Ctrl-C, Ctrl-A Ctrl-A
 * its Ctrl-A, Ctrl-A x powers off.
 */
#ifndef VMM_TERMINAL_H
#define VMM_TERMINAL_H

#include <stdbool.h>
#include <stddef.h>

/* Make standard input raw if it is a terminal; false if it isn't. Undone by terminal_restore, which
 * may be called at any time, also when nothing was changed. */
bool terminal_raw(void);
void terminal_restore(void);

/* Take the escapes out of n typed bytes, in place: *n becomes what is left for the guest. Returns
 * how often power-off was asked for. */
unsigned terminal_keys(char *bytes, size_t *n);
/* The same where the terminal is lent to a guest that goes on without it: Ctrl-C is the guest's, and
 * Ctrl-A x detaches. True if that was typed; what comes behind it is dropped. */
bool terminal_detach(char *bytes, size_t *n);

#endif
