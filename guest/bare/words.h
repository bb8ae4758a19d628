/*
 * The boot arguments: key=value words, and the stages of work they ask for (main.c lists them).
 */
#ifndef BARE_WORDS_H
#define BARE_WORDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum words_order { ORDER_SEQ, ORDER_RAND };
enum words_console { CONSOLE_COM1, CONSOLE_VIRTIO };
enum words_end { END_OFF, END_REBOOT, END_TRIPLE, END_SPIN, END_HALT, END_WILD, END_PARK };
enum words_mode {
	MODE_RW,
	MODE_WRITE,
	MODE_VERIFY,
	MODE_RO,
	MODE_DISCARD,
	MODE_ZEROES,
	MODE_FLUSH,
	MODE_INFO,
	MODE_READ,
	MODE_CHECK,
};
enum words_target {
	TARGET_BLK,
	TARGET_CONSOLE,
	TARGET_RNG,
	TARGET_PMEM,
	TARGET_BALLOON,
	TARGET_MMIO,
	TARGET_PORTS,
	TARGET_SERIAL,
	TARGET_ALL,
};

#define WORDS_STAGES    32
#define WORDS_UNSET     UINT64_MAX
#define WORDS_ERROR_MAX 96

/* Each member is one word's value; WORDS_UNSET where the workload has a default of its own. */
struct stage {
	const struct work *work;
	uint64_t pages, base, passes, write, seed, order, seconds, smp;
	uint64_t verify_only, words, distinct;
	uint64_t set, rounds, writes, ratio, init;
	uint64_t loops, bytes;
	uint64_t disk, pmem, sectors, from, chunk, depth, mode, target, flush;
};

struct words {
	unsigned stages;
	struct stage stage[WORDS_STAGES];
	uint64_t console, end, tsc, mce;
};

extern struct words words;

/* Read the arguments into `words`. False with words in `error` if any of them is wrong; the console
 * and the end asked for are set as far as they were understood. */
bool words_read(const char *args, char error[WORDS_ERROR_MAX]);

#endif
