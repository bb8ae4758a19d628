/* Members of the host's answers, which are JSON objects, as commands read them. A member that isn't there,
 * or of another kind, reads as nothing: an answer of another build of invisor does no harm. */
#ifndef VMM_ANSWER_H
#define VMM_ANSWER_H

#include <jansson.h>

/* "-" where there is no text. */
const char *answer_text(const json_t *o, const char *key);
long long answer_integer(const json_t *o, const char *key);
double answer_number(const json_t *o, const char *key);
/* A number of bytes, in MiB. */
double answer_mib(const json_t *o, const char *key);

#endif
