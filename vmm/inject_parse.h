/* Faults as JSON objects: in requests ("do":"inject"), in the steps of scenarios, and in reports. */
#ifndef VMM_INJECT_PARSE_H
#define VMM_INJECT_PARSE_H

#include "vmm/inject.h"
#include <jansson.h>

struct vm_config;

/* The fault that an object names by "fault" and describes by its other members. Members that no fault of this kind has
 * are an error but for those in `others` (NULL-terminated). vm: whom it is for, so that disks, devices and vCPUs can be
 * checked; NULL: not known yet. A random address (memory, "gpa": "random") leaves gpa INJECT_ANYWHERE, and from and bytes
 * say among which. 0; -EINVAL with words that begin with the member's name: "bytes: ...". */
int inject_parse(const json_t *o, const char *const *others, const struct vm_config *vm,
		 struct inject *out, char *error);
/* As an object with "fault" and its members. */
json_t *inject_json(const struct inject *f);
/* A whole number of that member, from lo to hi; `otherwise` if it isn't there (lo - 1: it must be). As inject_parse. */
int inject_number(const json_t *o, const char *key, int64_t lo, int64_t hi, int64_t otherwise,
		  int64_t *out, char *error);
/* A probability, 0 to 1, in parts per million; 1 if it isn't there. */
int inject_probability(const json_t *o, const char *key, uint32_t *out, char *error);
/* Is every member of o in one of the lists? */
int inject_members(const json_t *o, const char *const *a, const char *const *b, char *error);

#endif
