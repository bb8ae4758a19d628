/* serial.c: every register of the 16550, and the order of events that Linux's driver relies on. */
#include "vmm/serial.h"

#include <criterion/criterion.h>
#include <linux/serial_reg.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static struct serial *s;
static bool line;
static unsigned edges, rooms;
static char out[8192];
static size_t out_n;

static void on_irq(void *ctx, bool level)
{
	cr_assert_eq(ctx, &s);
	cr_assert_neq(level, line, "told without a change");
	line = level;
	edges += level;
}

static void on_output(void *ctx, const char *bytes, size_t n)
{
	(void)ctx;
	cr_assert(out_n + n <= sizeof(out));
	memcpy(out + out_n, bytes, n);
	out_n += n;
}

static void on_room(void *ctx)
{
	(void)ctx;
	rooms++;
	serial_input(s, "", 0); /* the lock isn't held */
}

static uint8_t rd(unsigned offset)
{
	uint8_t v = 0x55;
	serial_access(s, offset, &v, false);
	return v;
}

static void wr(unsigned offset, uint8_t v)
{
	serial_access(s, offset, &v, true);
}

static void setup(void)
{
	static const struct serial_ops ops = {on_irq, on_output, on_room};
	cr_assert_eq(serial_create(&s, &ops, &s), 0);
}

static void teardown(void)
{
	serial_destroy(s);
}

/* As a driver leaves it: FIFOs on with trigger level 8, interrupt gate open, RTS and DTR set. */
static void open_port(uint8_t ier)
{
	wr(UART_FCR, UART_FCR_ENABLE_FIFO | UART_FCR_R_TRIG_10);
	wr(UART_MCR, UART_MCR_DTR | UART_MCR_RTS | UART_MCR_OUT2);
	wr(UART_IER, ier);
}

TestSuite(serial_uart, .init = setup, .fini = teardown);

Test(serial_uart, after_reset)
{
	cr_assert_eq(rd(UART_IER), 0);
	cr_assert_eq(rd(UART_IIR), UART_IIR_NO_INT);
	cr_assert_eq(rd(UART_LCR), 0);
	cr_assert_eq(rd(UART_MCR), 0);
	cr_assert_eq(rd(UART_LSR), UART_LSR_THRE | UART_LSR_TEMT);
	cr_assert_eq(rd(UART_MSR), UART_MSR_DCD | UART_MSR_DSR | UART_MSR_CTS);
	cr_assert_eq(rd(UART_RX), 0);
	cr_assert(!line);
}

Test(serial_uart, scratch_and_line_control)
{
	for (unsigned v = 0; v < 256; v++) {
		wr(UART_SCR, (uint8_t)v);
		cr_assert_eq(rd(UART_SCR), v);
		wr(UART_LCR, (uint8_t)v);
		cr_assert_eq(rd(UART_LCR), v);
	}
}

Test(serial_uart, divisor_latch)
{
	wr(UART_IER, UART_IER_RDI);
	wr(UART_LCR, UART_LCR_DLAB | UART_LCR_WLEN8);
	cr_assert_eq(rd(UART_DLL), 12);
	wr(UART_DLL, 0x34);
	wr(UART_DLM, 0x12);
	cr_assert_eq(rd(UART_DLL), 0x34);
	cr_assert_eq(rd(UART_DLM), 0x12);
	cr_assert_eq(out_n, 0, "a divisor isn't sent");
	wr(UART_LCR, UART_LCR_WLEN8);
	cr_assert_eq(rd(UART_IER), UART_IER_RDI, "IER lies under DLM unchanged");
	cr_assert_eq(rd(UART_RX), 0);
}

Test(serial_uart, read_only_and_reserved_bits)
{
	wr(UART_IER, 0xff);
	cr_assert_eq(rd(UART_IER), 0x0f);
	wr(UART_IER, 0);
	wr(UART_MCR, 0xff);
	cr_assert_eq(rd(UART_MCR), 0x1f);
	wr(UART_MCR, 0);
	wr(UART_LSR, 0xff);
	cr_assert_eq(rd(UART_LSR), UART_LSR_THRE | UART_LSR_TEMT);
	rd(UART_MSR);
	wr(UART_MSR, 0);
	cr_assert_eq(rd(UART_MSR), 0xb0);
	for (unsigned offset = 8; offset < 64; offset++) {
		wr(offset, 0xa5);
		cr_assert_eq(rd(offset), 0xff, "no register there");
	}
}

Test(serial_uart, output_is_immediate_and_in_order)
{
	for (unsigned i = 0; i < 256; i++) {
		wr(UART_TX, (uint8_t)i);
		cr_assert_eq(out_n, i + 1);
		cr_assert_eq((uint8_t)out[i], i);
		cr_assert(rd(UART_LSR) & UART_LSR_THRE);
	}
}

Test(serial_uart, thre_interrupt)
{
	open_port(0);
	cr_assert(!line);
	wr(UART_IER, UART_IER_THRI); /* the transmitter is empty: at once */
	cr_assert(line);
	cr_assert_eq(rd(UART_IIR), UART_IIR_THRI | 0xc0);
	cr_assert(!line, "reading IIR acknowledges it");
	cr_assert_eq(rd(UART_IIR), UART_IIR_NO_INT | 0xc0);
	/* Enabling it again reports it again (the driver's test for a broken THRE). */
	wr(UART_IER, 0);
	wr(UART_IER, UART_IER_THRI);
	cr_assert(line);
	cr_assert_eq(rd(UART_IIR) & 0xf, UART_IIR_THRI);
	/* Writing it when it is set already doesn't. */
	wr(UART_IER, UART_IER_THRI);
	cr_assert(!line);
	/* Each byte sent does. */
	edges = 0;
	for (unsigned i = 0; i < 100; i++) {
		wr(UART_TX, 'x');
		cr_assert(line);
		cr_assert_eq(rd(UART_IIR) & 0xf, UART_IIR_THRI);
		cr_assert(!line);
	}
	cr_assert_eq(edges, 100);
	/* Sent while disabled, it waits. */
	wr(UART_IER, 0);
	wr(UART_TX, 'y');
	cr_assert(!line);
	wr(UART_IER, UART_IER_THRI);
	cr_assert(line);
}

/* What Linux does in serial8250_do_startup to tell a UART with a THRE bug. */
Test(serial_uart, linux_thre_probe)
{
	open_port(0);
	wr(UART_IER, UART_IER_THRI);
	uint8_t first = rd(UART_IIR);
	wr(UART_IER, 0);
	wr(UART_IER, UART_IER_THRI);
	uint8_t second = rd(UART_IIR);
	wr(UART_IER, 0);
	cr_assert(!(first & UART_IIR_NO_INT));
	cr_assert(!(second & UART_IIR_NO_INT));
}

/* What Linux's autoconfig does to find a 16550A. */
Test(serial_uart, linux_autoconfig)
{
	wr(UART_IER, 0);
	cr_assert_eq(rd(UART_IER) & 0xf, 0);
	wr(UART_IER, 0xf);
	cr_assert_eq(rd(UART_IER) & 0xf, 0xf);
	wr(UART_IER, 0);
	wr(UART_MCR, UART_MCR_LOOP | UART_MCR_OUT2 | UART_MCR_RTS);
	cr_assert_eq(rd(UART_MSR) & 0xf0, UART_MSR_DCD | UART_MSR_CTS);
	wr(UART_MCR, 0);
	wr(UART_FCR, UART_FCR_ENABLE_FIFO);
	cr_assert_eq(rd(UART_IIR) >> 6, 3);
	wr(UART_LCR, 0xbf); /* no enhanced features register: still IIR */
	cr_assert_neq(rd(UART_IIR), 0);
	wr(UART_LCR, 0);
	wr(UART_FCR, 0);
	cr_assert_eq(rd(UART_IIR) >> 6, 0);
}

Test(serial_uart, loopback)
{
	open_port(UART_IER_RDI);
	wr(UART_MCR, UART_MCR_LOOP | UART_MCR_OUT2);
	wr(UART_TX, 'q');
	cr_assert_eq(out_n, 0, "nothing leaves");
	cr_assert(!line, "OUT2 is inactive in loopback");
	cr_assert_eq(rd(UART_IIR) & 0xf, UART_IIR_RX_TIMEOUT);
	cr_assert(rd(UART_LSR) & UART_LSR_DR);
	serial_input(s, "z", 1);
	cr_assert_eq(rd(UART_RX), 'q', "the outside isn't heard");
	cr_assert(!(rd(UART_LSR) & UART_LSR_DR));
	wr(UART_MCR, UART_MCR_OUT2);
	cr_assert_eq(rd(UART_RX), 'z');

	static const uint8_t mcr[] = {UART_MCR_DTR, UART_MCR_RTS, UART_MCR_OUT1, UART_MCR_OUT2};
	static const uint8_t msr[] = {UART_MSR_DSR, UART_MSR_CTS, UART_MSR_RI, UART_MSR_DCD};
	for (unsigned i = 0; i < 4; i++) {
		wr(UART_MCR, UART_MCR_LOOP | mcr[i]);
		cr_assert_eq(rd(UART_MSR) & 0xf0, msr[i]);
	}
}

Test(serial_uart, loopback_overrun)
{
	open_port(0);
	wr(UART_MCR, UART_MCR_LOOP);
	for (unsigned i = 0; i < 17; i++)
		wr(UART_TX, (uint8_t)i);
	cr_assert(rd(UART_LSR) & UART_LSR_OE);
	cr_assert(!(rd(UART_LSR) & UART_LSR_OE), "cleared by reading");
	for (unsigned i = 0; i < 16; i++)
		cr_assert_eq(rd(UART_RX), i);
	wr(UART_FCR, 0); /* one character only, the newest stays */
	wr(UART_TX, 'a');
	wr(UART_TX, 'b');
	cr_assert(rd(UART_LSR) & UART_LSR_OE);
	cr_assert_eq(rd(UART_RX), 'b');
}

Test(serial_uart, modem_status)
{
	open_port(UART_IER_MSI);
	rd(UART_MSR);
	cr_assert(!line);
	wr(UART_MCR, UART_MCR_LOOP | UART_MCR_OUT1); /* CTS, DSR, DCD fall; RI rises */
	cr_assert_eq(rd(UART_IIR) & 0xf, UART_IIR_MSI);
	cr_assert_eq(rd(UART_MSR), UART_MSR_RI | UART_MSR_DCTS | UART_MSR_DDSR | UART_MSR_DDCD);
	cr_assert_eq(rd(UART_IIR) & 0xf, UART_IIR_NO_INT);
	wr(UART_MCR, UART_MCR_LOOP); /* trailing edge of RI */
	cr_assert_eq(rd(UART_MSR), UART_MSR_TERI);
	wr(UART_MCR, UART_MCR_OUT2);
	cr_assert(line);
	cr_assert_eq(rd(UART_MSR) & 0xf0, 0xb0);
	cr_assert(!line);
}

Test(serial_uart, receive_and_trigger_levels)
{
	static const uint8_t trigger[] = {UART_FCR_R_TRIG_00, UART_FCR_R_TRIG_01,
					  UART_FCR_R_TRIG_10, UART_FCR_R_TRIG_11};
	static const unsigned level[] = {1, 4, 8, 14};
	open_port(UART_IER_RDI);
	for (unsigned i = 0; i < 4; i++) {
		wr(UART_FCR, UART_FCR_ENABLE_FIFO | trigger[i]);
		for (unsigned n = 1; n <= 16; n++) {
			cr_assert_eq(serial_input(s, "k", 1), 1);
			cr_assert(line);
			cr_assert_eq(rd(UART_IIR) & 0xf,
				     n >= level[i] ? UART_IIR_RDI : UART_IIR_RX_TIMEOUT);
		}
		for (unsigned n = 16; n; n--) {
			cr_assert(rd(UART_LSR) & UART_LSR_DR);
			cr_assert(line);
			cr_assert_eq(rd(UART_RX), 'k');
		}
		cr_assert(!line);
		cr_assert(!(rd(UART_LSR) & UART_LSR_DR));
	}
}

Test(serial_uart, without_fifo)
{
	wr(UART_MCR, UART_MCR_RTS | UART_MCR_OUT2);
	wr(UART_IER, UART_IER_RDI);
	serial_input(s, "abc", 3);
	for (unsigned i = 0; i < 3; i++) {
		cr_assert_eq(rd(UART_IIR), UART_IIR_RDI);
		cr_assert_eq(rd(UART_RX), "abc"[i]);
	}
	cr_assert(!line);
}

Test(serial_uart, fifo_reset)
{
	open_port(0);
	serial_input(s, "0123456789abcdefXY", 18);
	wr(UART_FCR, UART_FCR_ENABLE_FIFO | UART_FCR_CLEAR_RCVR);
	cr_assert_eq(rd(UART_RX), 'X', "the FIFO's 16 are gone, what was on the wire isn't");
	wr(UART_FCR, 0); /* switching it off empties it, too */
	cr_assert_eq(rd(UART_RX), 0);
	/* Without the enable bit the other bits aren't looked at. */
	serial_input(s, "q", 1);
	wr(UART_FCR, UART_FCR_CLEAR_RCVR | UART_FCR_R_TRIG_11);
	cr_assert_eq(rd(UART_RX), 'q');
}

/* Input from before the driver is there survives the driver's start (8250's startup order). */
Test(serial_uart, early_input_is_kept)
{
	serial_input(s, "ls\n", 3);
	cr_assert(!(rd(UART_LSR) & UART_LSR_DR));
	wr(UART_FCR, UART_FCR_ENABLE_FIFO);
	wr(UART_FCR, UART_FCR_ENABLE_FIFO | UART_FCR_CLEAR_RCVR | UART_FCR_CLEAR_XMIT);
	wr(UART_FCR, 0);
	rd(UART_LSR);
	rd(UART_RX);
	rd(UART_IIR);
	rd(UART_MSR);
	wr(UART_LCR, UART_LCR_WLEN8);
	wr(UART_MCR, UART_MCR_OUT2);
	rd(UART_LSR);
	rd(UART_RX);
	rd(UART_IIR);
	rd(UART_MSR);
	wr(UART_IER, UART_IER_RLSI | UART_IER_RDI);
	cr_assert(line);
	cr_assert_eq(rd(UART_RX), 'l');
	cr_assert_eq(rd(UART_RX), 's');
	cr_assert_eq(rd(UART_RX), '\n');
}

Test(serial_uart, priorities)
{
	open_port(0);
	serial_break(s);
	wr(UART_MCR, UART_MCR_RTS | UART_MCR_OUT2 | UART_MCR_LOOP);
	wr(UART_MCR, UART_MCR_RTS | UART_MCR_OUT2);
	wr(UART_IER, UART_IER_RDI | UART_IER_THRI | UART_IER_RLSI | UART_IER_MSI);
	cr_assert_eq(rd(UART_IIR) & 0xf, UART_IIR_RLSI);
	cr_assert_eq(rd(UART_IIR) & 0xf, UART_IIR_RLSI, "IIR doesn't acknowledge this one");
	cr_assert_eq(rd(UART_LSR) & 0x9f, UART_LSR_DR | UART_LSR_BI | UART_LSR_FIFOE);
	cr_assert_eq(rd(UART_IIR) & 0xf, UART_IIR_RX_TIMEOUT);
	cr_assert_eq(rd(UART_RX), 0, "a break reads as a zero");
	cr_assert_eq(rd(UART_IIR) & 0xf, UART_IIR_THRI);
	cr_assert_eq(rd(UART_IIR) & 0xf, UART_IIR_MSI);
	cr_assert(line);
	rd(UART_MSR);
	cr_assert_eq(rd(UART_IIR) & 0xf, UART_IIR_NO_INT);
	cr_assert(!line);
}

Test(serial_uart, break_in_order)
{
	open_port(UART_IER_RDI | UART_IER_RLSI);
	serial_input(s, "a", 1);
	cr_assert(serial_break(s));
	serial_input(s, "s", 1);
	cr_assert_eq(rd(UART_LSR) & UART_LSR_BI, 0);
	cr_assert_eq(rd(UART_RX), 'a');
	cr_assert_eq(rd(UART_LSR) & UART_LSR_BI, UART_LSR_BI);
	cr_assert_eq(rd(UART_LSR) & UART_LSR_BI, 0);
	cr_assert_eq(rd(UART_RX), 0);
	cr_assert_eq(rd(UART_RX), 's');
}

Test(serial_uart, gate)
{
	open_port(UART_IER_THRI);
	cr_assert(line);
	wr(UART_MCR, UART_MCR_RTS);
	cr_assert(!line, "without OUT2 nothing reaches the interrupt controller");
	wr(UART_MCR, UART_MCR_OUT2);
	cr_assert(line);
}

Test(serial_uart, input_is_bounded)
{
	static char bytes[10000];
	for (size_t i = 0; i < sizeof(bytes); i++)
		bytes[i] = (char)(i * 31);
	open_port(0);
	size_t taken = serial_input(s, bytes, sizeof(bytes));
	cr_assert_eq(taken, 4096 + 16);
	cr_assert_eq(serial_input(s, bytes + taken, 1), 0);
	cr_assert(!serial_break(s));
	cr_assert_eq(rooms, 0);
	cr_assert_eq((char)rd(UART_RX), bytes[0]);
	cr_assert_eq(rooms, 1, "told once that there is room");
	cr_assert_eq((char)rd(UART_RX), bytes[1]);
	cr_assert_eq(rooms, 1);
	cr_assert_eq(serial_input(s, bytes + taken, 5), 2);
	taken += 2;
	for (size_t i = 2; i < taken; i++)
		cr_assert_eq((char)rd(UART_RX), bytes[i]);
	cr_assert(!(rd(UART_LSR) & UART_LSR_DR));
	cr_assert_eq(rooms, 2);
}

/* An edge-triggered interrupt controller and Linux's handler: nothing may be left waiting when the
 * handler has returned with the line low. A model of both, on random events with a fixed seed. */
Test(serial_uart, no_lost_interrupt)
{
	uint64_t seed = 42;
	size_t sent = 0, queued = 0, given = 0, got = 0;
	bool thri = false;
	open_port(UART_IER_RDI | UART_IER_RLSI);
	unsigned seen = edges;
	for (unsigned i = 0; i < 200000; i++) {
		seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407;
		switch (seed >> 61) {
		case 0: /* the guest queues output and enables THRI, as start_tx does */
			queued += seed >> 50 & 63;
			if (queued && !thri) {
				thri = true;
				wr(UART_IER, UART_IER_RDI | UART_IER_RLSI | UART_IER_THRI);
			}
			break;
		case 1:
			given += serial_input(s, "0123456789", seed >> 50 & 7);
			break;
		default:
			if (edges == seen)
				break;
			seen = edges;
			for (uint8_t iir; !((iir = rd(UART_IIR)) & UART_IIR_NO_INT);) {
				uint8_t lsr = rd(UART_LSR);
				for (unsigned n = 0; lsr & UART_LSR_DR && n < 256; n++) {
					rd(UART_RX);
					got++;
					lsr = rd(UART_LSR);
				}
				if (!(lsr & UART_LSR_THRE) || !thri)
					continue;
				for (unsigned n = 0; n < 16 && queued; n++) {
					wr(UART_TX, 'o');
					out_n = 0;
					queued--;
					sent++;
				}
				if (!queued) {
					thri = false;
					wr(UART_IER, UART_IER_RDI | UART_IER_RLSI);
				}
			}
			break;
		}
		if (edges == seen)
			cr_assert(!line && !queued && given == got, "work left, no interrupt");
	}
	cr_assert_gt(sent, 10000);
	cr_assert_gt(got, 10000);
}

static void *reader(void *arg)
{
	size_t *got = arg;
	while (*got < 200000)
		if (rd(UART_LSR) & UART_LSR_DR) {
			cr_assert_eq(rd(UART_RX), (uint8_t)*got);
			++*got;
		}
	return NULL;
}

/* Input from one thread, register access from another: nothing lost, nothing twice. */
Test(serial_uart, two_threads, .timeout = 60)
{
	pthread_t t;
	size_t got = 0, put = 0;
	open_port(UART_IER_RDI);
	cr_assert_eq(pthread_create(&t, NULL, reader, &got), 0);
	while (put < 200000) {
		char bytes[64];
		size_t n = 200000 - put < 64 ? 200000 - put : 64;
		for (size_t i = 0; i < n; i++)
			bytes[i] = (char)(put + i);
		put += serial_input(s, bytes, n);
	}
	pthread_join(t, NULL);
	cr_assert_eq(got, 200000);
}
