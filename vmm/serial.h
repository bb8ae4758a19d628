/*
 * The 16550 UART at COM1, as far as Linux's 8250 driver and early console use it (PC16550D data
 * sheet): registers, 16-byte FIFOs, THRE and RDA interrupts, loopback for the driver's probe.
 *
 * As on a PC, the interrupt line is gated by MCR's OUT2. Input waits in a buffer of its own (4 KiB)
 * until the guest is ready for it, which it says by RTS in MCR or by enabling the received data
 * interrupt: what is typed or piped in before a driver has started isn't lost to its resets.
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
	/* The guest made room for input (so serial_input can be called again); any thread. Called
	 * without the lock, once after a serial_input that took less than it was given. */
	void (*room)(void *ctx);
};

int serial_create(struct serial **out, const struct serial_ops *ops, void *ctx);
void serial_destroy(struct serial *s);
/* Port access, offset 0 to 7 from the base, one byte; any vCPU thread. */
void serial_access(struct serial *s, unsigned offset, uint8_t *data, bool write);
/* Bytes for the guest; returns how many were taken. Any thread. */
size_t serial_input(struct serial *s, const char *bytes, size_t n);
/* Are there bytes that the guest hasn't read? Any thread. */
bool serial_waits(struct serial *s);
/* Go on in a VM whose interrupt chip is new: the line is raised again where it was high. Any thread. */
void serial_resume(struct serial *s);
/* A break condition, in order with the bytes: Linux takes the next byte as a SysRq command ('s'
 * sync, 'u' remount read-only, 'o' power off). False if the buffer is full. */
bool serial_break(struct serial *s);

#endif
