/*
 * How a run ends. Any vCPU may call these; the first one wins.
 */
#ifndef BARE_END_H
#define BARE_END_H

#include <stdint.h>

/* Prints "FAIL <words>" and powers off. */
_Noreturn void end_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Prints "DONE" and ends as asked (enum words_end). */
_Noreturn void end_done(uint64_t how);

#endif
