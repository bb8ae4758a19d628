/*
 * Errors with words: functions that can fail for reasons a user must understand take a
 * char[ERROR_MAX] and leave one line in it that says what, where, and what to do. Nothing is
 * printed on the way; the command line prints it once.
 */
#ifndef VMM_ERROR_H
#define VMM_ERROR_H

#include <stddef.h>

#define ERROR_MAX 256 /* bytes with the NUL */

/* Format into error (may be NULL) and return code, so that `return errorf(...)` reads well. */
int errorf(char *error, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* Words that came from a process of a VM's: with a NUL at the end, and '?' for what would move a terminal's cursor or begin
 * a line of its own. */
void error_plain(char *words, size_t size);

#endif
