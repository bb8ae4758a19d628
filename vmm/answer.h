/* Members of the host's answers, which are JSON objects, as the host puts them in and as commands read them. A member that
 * isn't there, or of another kind, reads as nothing: an answer of another build of invisor does no harm. */
#ifndef VMM_ANSWER_H
#define VMM_ANSWER_H

#include <jansson.h>
#include <stdint.h>

void answer_put(json_t *o, const char *key, uint64_t value);
/* A text; what comes from elsewhere and isn't UTF-8 becomes "(not text)". */
void answer_put_text(json_t *o, const char *key, const char *text);

/* "-" where there is no text. */
const char *answer_text(const json_t *o, const char *key);
long long answer_integer(const json_t *o, const char *key);
double answer_number(const json_t *o, const char *key);
/* A number of bytes, in MiB. */
double answer_mib(const json_t *o, const char *key);

#endif
