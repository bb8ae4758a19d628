/* Sizes as people write them: 4096, 64K, 256M, 8G, 1T (powers of 1024; an optional trailing B or
 * iB). */
#ifndef VMM_SIZE_H
#define VMM_SIZE_H

#include <stdbool.h>
#include <stdint.h>

/* False for anything else, negative numbers and overflow included. */
bool size_parse(const char *text, uint64_t *bytes);
/* A whole number within [min, max]. */
bool number_parse(const char *text, uint64_t min, uint64_t max, uint64_t *out);

#endif
