/*
 * A virtio console (virtio 1.2, section 5.3): port 0, receive queue 0, transmit queue 1.
 */
#ifndef BARE_VCON_H
#define BARE_VCON_H

#include "guest/bare/vio.h"

#define VCON_OUT_MAX 512
#define VCON_IN_MAX  256

struct vcon {
	struct vio_queue receive, transmit;
	uint64_t regs;
	char out[VCON_OUT_MAX], in[VCON_IN_MAX];
	bool resting; /* waits at the idle port, not in a loop */
	bool sending; /* out is the device's */
	uint32_t in_at,
		in_n; /* what isn't read yet of in, which is the device's when all is read */
};

/* The k-th console, from 0. False if there is none. */
bool vcon_open(struct vcon *v, unsigned k, bool resting);
void vcon_write(struct vcon *v, const char *bytes, size_t n);
size_t vcon_read(struct vcon *v, char *out, size_t size);
void vcon_drain(struct vcon *v);
/* Wait a while, at most until input comes. */
void vcon_rest(struct vcon *v);

#endif
