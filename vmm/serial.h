/*
 * The 16550 UART at COM1, as far as Linux's 8250 driver and early console use it (PC16550D data
 * sheet): registers, 16-byte FIFOs, THRE and RDA interrupts, loopback for the driver's probe.
 */
#ifndef VMM_SERIAL_H
#define VMM_SERIAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct serial;

struct serial_ops {
	/* Level of the interrupt line; called with the UART's lock held, only on change. */
	void (*irq)(void *ctx, bool level);
	/* Bytes the guest sent. Called without the lock, in order, on the vCPU's thread. */
	void (*output)(void *ctx, const char *bytes, size_t n);
	/* The guest made room for input (so serial_input can be called again); any thread. */
	void (*room)(void *ctx);
};

int serial_create(struct serial **out, const struct serial_ops *ops, void *ctx);
void serial_destroy(struct serial *s);
/* Port access, offset 0 to 7 from the base, one byte; any vCPU thread. */
void serial_access(struct serial *s, unsigned offset, uint8_t *data, bool write);
/* Bytes for the guest; returns how many were taken. Any thread. */
size_t serial_input(struct serial *s, const char *bytes, size_t n);

#endif
