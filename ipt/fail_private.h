/* What fail.c and fail_parse.c share: a program as it is kept. See fail.h. */
#ifndef IPT_FAIL_PRIVATE_H
#define IPT_FAIL_PRIVATE_H

#include "ipt/fail.h"

enum fail_action {
	FAIL_OFF,
	FAIL_RETURN,
	FAIL_SLEEP,
	FAIL_DELAY,
	FAIL_YIELD,
	FAIL_PAUSE,
	FAIL_PRINT,
	FAIL_PANIC,
	FAIL_ACTIONS
};

#define FAIL_ALWAYS   1000000000u /* a chance: parts of this */
#define FAIL_NO_COUNT UINT32_MAX

struct fail_term {
	int32_t argument; /* errno, bytes, milliseconds */
	uint32_t chance, count;
	uint32_t pid;
	uint32_t action, role;
	char name[FAIL_NAME_MAX]; /* "": any */
};

struct fail_program {
	uint32_t terms; /* 0: off */
	uint32_t generation;
	struct fail_term term[FAIL_TERMS];
};

/* -EINVAL with words. */
int fail_parse(enum fail_id id, const char *text, struct fail_program *out, char *words);

#endif
