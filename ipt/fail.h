/*
 * Failpoints: places where the program can be told to fail, wait or die, in the grammar of FreeBSD's fail(9).
 *
 *   program  := term ("->" term)*                            the first term that fires is what happens
 *   term     := [NUMBER "%"] [COUNT "*"] action ["[" who "]"]
 *   action   := off | return | sleep | delay | yield | pause | print | panic, each with or without "(" argument ")"
 *   who      := host | merger | reclaimer | vm | vm NAME | pid NUMBER
 *
 * All processes share one area, made before the first of them is forked: who sets a failpoint sets it for all. One
 * process sets (the host); all read, without locks, under a sequence count.
 *
 * Off, a failpoint costs a load of a word at a fixed address and a branch: see fail_armed. What a term with a per
 * cent does at its n-th evaluation is a hash of (seed, name, term, n): the same seed decides alike.
 */
#ifndef IPT_FAIL_H
#define IPT_FAIL_H

#include "ipt/fail_points.h"
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum fail_id {
#define FAIL_ID(id, name, kind, usual, what) FAIL_##id,
	FAIL_POINTS(FAIL_ID)
#undef FAIL_ID
		FAIL_IDS
};

enum fail_kind { FAIL_ERROR, FAIL_RESULT, FAIL_BYTES, FAIL_STEP, FAIL_DEATH };

struct fail_about {
	const char *name, *what;
	enum fail_kind kind;
	int usual;
};

#define FAIL_TERMS     8   /* of a program */
#define FAIL_TEXT_MAX  256 /* bytes of a program with the NUL */
#define FAIL_WORDS_MAX 224 /* bytes of an error with the NUL */
#define FAIL_SLEEP_MAX 60000
#define FAIL_DELAY_MAX 1000
#define FAIL_NAME_MAX  32 /* as IPT_NAME_LEN */

/* The words that are read where nothing is set. */
#define FAIL_ARMED_WORDS ((FAIL_IDS + 63) / 64)
extern struct fail_area fail_area;
struct fail_armed_words {
	uint64_t word[FAIL_ARMED_WORDS];
};

/* Is anything set at that point? Relaxed: who sets one doesn't wait for those who are past it. */
static inline bool fail_armed(enum fail_id id)
{
#ifdef FAIL_NONE /* a build to compare with: make bench ONLY=fault-failpoints */
	(void)id;
	return false;
#else
	const struct fail_armed_words *a = (const struct fail_armed_words *)&fail_area;
	uint64_t word = __atomic_load_n(&a->word[id / 64], __ATOMIC_RELAXED);
	return __builtin_expect(word >> (id % 64) & 1, 0);
#endif
}

/* What is set there happens now. 0: go on; else what `return` says, from 1 on, or FAIL_NOTHING for return(0). errno
 * stays. May not come back. */
#define FAIL_NOTHING (-1)
int fail_hit(enum fail_id id);

/* 0: go on; else the errno to fail with. */
static inline int fail_point(enum fail_id id)
{
	int e = fail_armed(id) ? fail_hit(id) : 0;
	return e > 0 ? e : 0;
}

/* A call that returns -1 (or MAP_FAILED) with errno. */
#define fail_call(id, call)                                                         \
	__extension__({                                                             \
		int fail_errno_ = fail_point(FAIL_##id);                            \
		fail_errno_ ? (errno = fail_errno_, (__typeof__(call))-1) : (call); \
	})
/* One that returns NULL with errno. */
#define fail_null(id, call)                                                 \
	__extension__({                                                     \
		int fail_errno_ = fail_point(FAIL_##id);                    \
		fail_errno_ ? (errno = fail_errno_, (void *)NULL) : (call); \
	})
/* One that returns 0 or more, or -errno. */
#define fail_rc(id, call)                                              \
	__extension__({                                                \
		int fail_errno_ = fail_point(FAIL_##id);               \
		fail_errno_ ? (__typeof__(call))-fail_errno_ : (call); \
	})

/* What a request that was made came to, bytes or -errno, after what is set at a RESULT and a BYTES point (id, or
 * FAIL_IDS for neither). */
static inline int fail_result(enum fail_id result, enum fail_id bytes, int res)
{
	int e = result < FAIL_IDS && fail_armed(result) ? fail_hit(result) : 0;
	if (e > 0)
		return -e;
	int n = res > 0 && bytes < FAIL_IDS && fail_armed(bytes) ? fail_hit(bytes) : 0;
	n = n == FAIL_NOTHING ? 0 : n ? n : res;
	return n < res ? n : res;
}

/* ---- setting: one process at a time ---------------------------------------------------------- */

const struct fail_about *fail_about(enum fail_id id);
/* By its name. -ENOENT with words that name those like it. words: FAIL_WORDS_MAX bytes. */
int fail_find(const char *name, enum fail_id *id, char *words);
/* Share the area with processes forked from now on. 0 or -errno. */
int fail_share(void);
/* By which descriptor another process can have it, which isn't the caller's; -1: it isn't shared. And its size. */
int fail_fd(void);
uint32_t fail_bytes(void);
/* The area of one who is dead takes the place of ours: its processes hear us from now on. What was set there is off, what
 * was here is set there. Takes fd. -EPROTO: it isn't such an area; -errno; then fd stays the caller's. */
int fail_take(int fd);
/* For terms with a per cent; what was set begins anew. */
void fail_seed(uint64_t seed);
uint64_t fail_seed_now(void);
/* Set a program; its counts begin at 0. -EINVAL with words that say at which character it is wrong: then it stays as
 * it was. */
int fail_set(enum fail_id id, const char *program, char *words);
/* Would it be right? */
int fail_check(enum fail_id id, const char *program, char *words);
/* The same as fail_set for "NAME=PROGRAM", or several with ',' between. */
int fail_set_words(const char *text, char *words);
void fail_clear(void); /* all off */

struct fail_state {
	char program[FAIL_TEXT_MAX]; /* "off" */
	uint64_t hits, fired; /* since it was set; kept when it is set off, until it is set again */
};
void fail_read(enum fail_id id, struct fail_state *out);

/* ---- who we are, for terms with [who] --------------------------------------------------------- */

enum fail_role { FAIL_ANYONE, FAIL_HOST, FAIL_MERGER, FAIL_RECLAIMER, FAIL_VM, FAIL_PID };
/* name: a VM's or template's, else NULL. */
void fail_be(enum fail_role role, const char *name);

#endif
