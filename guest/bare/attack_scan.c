/*
 * Attacks on what answers beside the virtqueues: register windows as a whole, I/O ports, the UART.
 *
 * What would rightly end the VM, or stop this vCPU for good, is left out: power and reset registers, the idle port,
 * writes to the interrupt chips (which could raise an NMI, and the bare guest has no handlers).
 */
#include "guest/bare/attack.h"
#include "guest/bare/board.h"
#include "guest/bare/cpu.h"
#include "guest/bare/vio.h"
#include "guest/bare/vio_regs.h"
#include "vmm/machine.h"
#include <string.h>

#define COM1 MACHINE_COM1_PORT

/* ---- register windows ------------------------------------------------------------------------ */

/* A ring's address register gets half of an address that may be one; see attack.h. */
static uint32_t half_an_address(struct attacker *a, unsigned reg)
{
	uint64_t part = reg < REG_QUEUE_DRIVER   ? a->desc
			: reg < REG_QUEUE_DEVICE ? a->avail
						 : a->used;
	if ((reg & 4) != 0)
		return attack_one_in(a, 4) ? UINT32_MAX : 0;
	return attack_one_in(a, 4) ? (uint32_t)attack_outside(a)
				   : (uint32_t)attack_place(a, part, 16 * 128, 16);
}

static void access(struct attacker *a, uint64_t at, uint64_t v)
{
	unsigned reg = at % MACHINE_MMIO_STRIDE;
	volatile uint8_t *p = (volatile uint8_t *)(uintptr_t)at;
	unsigned size = attack_below(a, 4);
	bool write = attack_one_in(a, 2);
	if (write && size == 2) {
		if (reg >= REG_QUEUE_DESC && reg < REG_QUEUE_DEVICE + 8)
			v = half_an_address(a, reg);
		*(volatile uint32_t *)p = (uint32_t)v;
	} else if (write) {
		if (size == 0)
			*p = (uint8_t)v;
		else if (size == 1)
			*(volatile uint16_t *)p = (uint16_t)v;
		else
			*(volatile uint64_t *)p = v;
	} else {
		if (size == 0)
			(void)*p;
		else if (size == 1)
			(void)*(volatile uint16_t *)p;
		else if (size == 2)
			(void)*(volatile uint32_t *)p;
		else
			(void)*(volatile uint64_t *)p;
	}
}

void attack_mmio(struct attacker *a)
{
	static const uint16_t often[] = {REG_STATUS,       REG_QUEUE_READY,     REG_QUEUE_SEL,
					 REG_QUEUE_NOTIFY, REG_DRIVER_FEATURES, REG_QUEUE_NUM};
	for (; !attack_is_over(a); a->tries++) {
		uint64_t at = machine_mmio_base(board.bank[0].bytes) +
			      attack_below(a, MACHINE_MAX_VIRTIO) * MACHINE_MMIO_STRIDE;
		uint64_t v = attack_number(a);
		if (attack_one_in(a, 2)) {
			at += often[attack_below(a, sizeof often / sizeof often[0])];
			v = attack_below(a, 16);
		} else if (attack_one_in(a, 4)) {
			at += attack_below(a, MACHINE_MMIO_STRIDE - 8);
		} else if (attack_one_in(a, 64)) { /* across two windows, or behind the last */
			at += MACHINE_MMIO_STRIDE - attack_below(a, 8);
		} else {
			at += attack_below(a, REG_CONFIG / 4 + 8) * 4;
		}
		access(a, at, v);
	}
}

/* ---- ports ----------------------------------------------------------------------------------- */

static bool may_write(unsigned port)
{
	static const struct {
		uint16_t from, to;
	} none[] = {
		{0x20, 0x21},     {0xa0, 0xa1}, /* interrupt controllers */
		{0x4d0, 0x4d1},   {MACHINE_I8042_PORT, MACHINE_I8042_PORT},
		{COM1, COM1 + 7}, {MACHINE_SLEEP_PORT, MACHINE_RESET_PORT + 3},
	};
	for (unsigned i = 0; i < sizeof none / sizeof none[0]; i++)
		if (port + 3 >= none[i].from && port <= none[i].to)
			return false;
	return true;
}

static void string_in(uint16_t port, void *to, uint64_t n)
{
	__asm__ volatile("rep insb" : "+D"(to), "+c"(n) : "d"(port) : "memory");
}

static void string_out(uint16_t port, const void *from, uint64_t n)
{
	__asm__ volatile("rep outsl" : "+S"(from), "+c"(n) : "d"(port) : "memory");
}

void attack_ports(struct attacker *a)
{
	for (uint32_t scan = attack_below(a, 0x10000); !attack_is_over(a); a->tries++) {
		uint16_t port =
			attack_one_in(a, 4) ? (uint16_t)attack_below(a, 0x700) : (uint16_t)scan++;
		unsigned what = attack_below(a, 16);
		if (port == MACHINE_IDLE_PORT)
			continue;
		if (what < 4)
			(void)cpu_in8(port);
		else if (what < 8)
			(void)cpu_in32(port);
		else if (what == 8)
			string_in(port, (void *)(uintptr_t)a->data, attack_below(a, 2000));
		else if (!may_write(port))
			continue;
		else if (what == 9)
			string_out(port, (const void *)(uintptr_t)a->data, attack_below(a, 500));
		else if (what < 12)
			cpu_out8(port, (uint8_t)attack_number(a));
		else
			cpu_out32(port, (uint32_t)attack_number(a));
	}
}

/* ---- the UART -------------------------------------------------------------------------------- */

void attack_serial(struct attacker *a)
{
	for (; !attack_is_over(a); a->tries++) {
		unsigned reg = attack_below(a, 8);
		if (attack_one_in(a, 2))
			(void)cpu_in8((uint16_t)(COM1 + reg));
		else if (reg != 0 || attack_one_in(a, 16)) /* not too much to read for people */
			cpu_out8((uint16_t)(COM1 + reg), (uint8_t)attack_random(a));
		if (attack_one_in(a, 64))
			cpu_out32((uint16_t)(COM1 + reg), (uint32_t)attack_random(a));
	}
	/* As it was: 8 bits, no divisor, no interrupts, no loopback, FIFOs on and empty. */
	cpu_out8(COM1 + 3, 0x03);
	cpu_out8(COM1 + 1, 0);
	cpu_out8(COM1 + 4, 0x03);
	cpu_out8(COM1 + 2, 0x07);
	cpu_out8(COM1, '\n');
}
