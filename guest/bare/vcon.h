/*
 * The first virtio console (virtio 1.2, section 5.3): port 0, receive queue 0, transmit queue 1.
 */
#ifndef BARE_VCON_H
#define BARE_VCON_H

#include <stdbool.h>
#include <stddef.h>

bool vcon_open(void);
void vcon_write(const char *bytes, size_t n);
size_t vcon_read(char *out, size_t size);
void vcon_drain(void);

#endif
