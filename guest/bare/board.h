/*
 * The machine as its device tree describes it.
 */
#ifndef BARE_BOARD_H
#define BARE_BOARD_H

#include <stddef.h>
#include <stdint.h>

#define BOARD_MAX_BANKS  8
#define BOARD_MAX_VIRTIO 32
#define BOARD_ARGS_MAX   2048

struct board {
	unsigned banks;
	struct {
		uint64_t base, bytes;
	} bank[BOARD_MAX_BANKS]; /* by address */
	uint64_t mem_bytes;
	unsigned cpus;
	unsigned virtios;
	uint64_t virtio[BOARD_MAX_VIRTIO]; /* register windows, by address */
	uint64_t tsc_hz;
	const char *tsc_from; /* who says so */
	char args[BOARD_ARGS_MAX];
};

extern struct board board;

/* Read the device tree. NULL, or what is wrong with it. */
const char *board_read(const void *fdt);

#endif
