/*
 * 16550 UART. Names of registers and bits are the PC16550D data sheet's (table II and section 8),
 * in <linux/serial_reg.h>.
 *
 * Sending takes no time: the transmitter is always empty again once output() has returned. So THRE
 * is always set in LSR, and its interrupt is a flag: set when a byte has been sent and when the
 * guest enables the interrupt, cleared when IIR is read while it is the one reported. (Linux's
 * 8250 driver tests that enabling it again reports it again, and falls back to a timer if not.)
 *
 * Receiving takes no time either: bytes move from the input buffer into the FIFO as soon as there
 * is room, and the character timeout interrupt comes at once when fewer than the trigger level are
 * there.
 */
#include "vmm/serial.h"
#include "ipt/own.h"

#include <errno.h>
#include <linux/serial_reg.h>
#include <pthread.h>
#include <stdlib.h>

#define FIFO_SIZE    16
#define BACKLOG_SIZE 4096  /* input buffer beyond the FIFO, in characters */
#define CHAR_BREAK   0x100 /* on a character in either buffer: a break, data 0 */
#define DIVISOR      12    /* 9600 baud from 1.8432 MHz */
#define MSR_IDLE     (UART_MSR_DCD | UART_MSR_DSR | UART_MSR_CTS) /* a listening other end */
#define IER_MASK     (UART_IER_RDI | UART_IER_THRI | UART_IER_RLSI | UART_IER_MSI)
#define MCR_MASK     (UART_MCR_DTR | UART_MCR_RTS | UART_MCR_OUT1 | UART_MCR_OUT2 | UART_MCR_LOOP)
#define IIR_FIFO     0xc0 /* FIFOs are enabled */

struct serial {
	pthread_mutex_t lock; /* all below; a leaf lock but for what irq() takes */
	struct serial_ops ops;
	void *ctx;

	uint8_t ier, lcr, mcr, scr, dll, dlm;
	uint8_t msr;    /* with its delta bits */
	uint8_t fcr;    /* 0 or UART_FCR_ENABLE_FIFO and trigger bits */
	uint8_t errors; /* OE, PE, FE, BI since LSR was last read */
	bool thre;      /* the transmitter's interrupt waits to be seen */
	bool line;      /* what irq() was last told */
	bool want_room; /* serial_input was cut short */

	uint16_t fifo[FIFO_SIZE];
	unsigned fifo_first, fifo_count;
	uint16_t *backlog;
	unsigned backlog_first, backlog_count;
};

int serial_create(struct serial **out, const struct serial_ops *ops, void *ctx)
{
	struct serial *s = own_alloc(sizeof(*s));
	if (!s)
		return -ENOMEM;
	s->backlog = calloc(BACKLOG_SIZE, sizeof(*s->backlog));
	int err = s->backlog ? pthread_mutex_init(&s->lock, NULL) : ENOMEM;
	if (err) {
		free(s->backlog);
		own_free(s);
		return -err;
	}
	s->ops = *ops;
	s->ctx = ctx;
	s->dll = DIVISOR;
	s->msr = MSR_IDLE;
	*out = s;
	return 0;
}

void serial_destroy(struct serial *s)
{
	if (!s)
		return;
	pthread_mutex_destroy(&s->lock);
	free(s->backlog);
	own_free(s);
}

static unsigned fifo_limit(const struct serial *s)
{
	return s->fcr & UART_FCR_ENABLE_FIFO ? FIFO_SIZE : 1;
}

static unsigned fifo_trigger(const struct serial *s)
{
	static const uint8_t level[] = {1, 4, 8, 14};
	return s->fcr & UART_FCR_ENABLE_FIFO ? level[s->fcr >> 6] : 1;
}

/* A character reaches the receiver's end of the FIFO. Its errors show once it is at the other. */
static void fifo_top(struct serial *s)
{
	if (s->fifo_count && s->fifo[s->fifo_first] & CHAR_BREAK)
		s->errors |= UART_LSR_BI;
}

static void fifo_put(struct serial *s, uint16_t c)
{
	if (s->fifo_count >= fifo_limit(s)) {
		s->errors |= UART_LSR_OE;
		if (s->fcr & UART_FCR_ENABLE_FIFO)
			return;    /* the new character is lost */
		s->fifo_count = 0; /* the old one is */
	}
	s->fifo[(s->fifo_first + s->fifo_count) % FIFO_SIZE] = c;
	if (++s->fifo_count == 1)
		fifo_top(s);
}

static uint8_t fifo_get(struct serial *s)
{
	if (!s->fifo_count)
		return 0;
	uint8_t c = (uint8_t)s->fifo[s->fifo_first];
	s->fifo_first = (s->fifo_first + 1) % FIFO_SIZE;
	s->fifo_count--;
	fifo_top(s);
	return c;
}

/* Is the guest ready for what comes from outside? (In loopback the receiver hears itself only.) */
static bool listening(const struct serial *s)
{
	return !(s->mcr & UART_MCR_LOOP) && (s->mcr & UART_MCR_RTS || s->ier & UART_IER_RDI);
}

static void refill(struct serial *s)
{
	while (listening(s) && s->backlog_count && s->fifo_count < fifo_limit(s)) {
		fifo_put(s, s->backlog[s->backlog_first]);
		s->backlog_first = (s->backlog_first + 1) % BACKLOG_SIZE;
		s->backlog_count--;
	}
}

/* The interrupt of highest priority, as IIR shows it (data sheet, table IV). */
static uint8_t pending(const struct serial *s)
{
	if (s->ier & UART_IER_RLSI && s->errors)
		return UART_IIR_RLSI;
	if (s->ier & UART_IER_RDI && s->fifo_count)
		return s->fifo_count >= fifo_trigger(s) ? UART_IIR_RDI : UART_IIR_RX_TIMEOUT;
	if (s->ier & UART_IER_THRI && s->thre)
		return UART_IIR_THRI;
	if (s->ier & UART_IER_MSI && s->msr & UART_MSR_ANY_DELTA)
		return UART_IIR_MSI;
	return UART_IIR_NO_INT;
}

/* After any change: fill the FIFO, set the line. In loopback the OUT2 pin is inactive. */
static void update(struct serial *s)
{
	refill(s);
	bool gate = (s->mcr & (UART_MCR_OUT2 | UART_MCR_LOOP)) == UART_MCR_OUT2;
	bool line = gate && pending(s) != UART_IIR_NO_INT;
	if (line == s->line)
		return;
	s->line = line;
	if (s->ops.irq)
		s->ops.irq(s->ctx, line);
}

static void write_fcr(struct serial *s, uint8_t v)
{
	uint8_t keep =
		v & UART_FCR_ENABLE_FIFO ? v & (UART_FCR_ENABLE_FIFO | UART_FCR_TRIGGER_MASK) : 0;
	/* Switching the FIFOs on or off empties them; so does the reset bit. Sent bytes are gone
	 * already, so that there's no transmit FIFO to reset. */
	if ((keep ^ s->fcr) & UART_FCR_ENABLE_FIFO || (keep && v & UART_FCR_CLEAR_RCVR))
		s->fifo_count = 0;
	s->fcr = keep;
}

/* Inputs of the modem: the outputs in loopback, a ready other end otherwise. */
static void modem_lines(struct serial *s)
{
	uint8_t now = MSR_IDLE, old = s->msr;
	if (s->mcr & UART_MCR_LOOP)
		now = (s->mcr & UART_MCR_RTS ? UART_MSR_CTS : 0) |
		      (s->mcr & UART_MCR_DTR ? UART_MSR_DSR : 0) |
		      (s->mcr & UART_MCR_OUT1 ? UART_MSR_RI : 0) |
		      (s->mcr & UART_MCR_OUT2 ? UART_MSR_DCD : 0);
	uint8_t delta = (old ^ now) >> 4 & (UART_MSR_DCTS | UART_MSR_DDSR | UART_MSR_DDCD);
	if (old & ~now & UART_MSR_RI)
		delta |= UART_MSR_TERI;
	s->msr = now | (old & UART_MSR_ANY_DELTA) | delta;
}

static uint8_t read_lsr(struct serial *s)
{
	uint8_t v = UART_LSR_THRE | UART_LSR_TEMT | s->errors;
	if (s->fifo_count)
		v |= UART_LSR_DR;
	if (s->fcr & UART_FCR_ENABLE_FIFO)
		for (unsigned i = 0; i < s->fifo_count; i++)
			if (s->fifo[(s->fifo_first + i) % FIFO_SIZE] & CHAR_BREAK)
				v |= UART_LSR_FIFOE;
	s->errors = 0;
	return v;
}

static uint8_t read_iir(struct serial *s)
{
	uint8_t v = pending(s);
	if (v == UART_IIR_THRI)
		s->thre = false;
	return v | (s->fcr & UART_FCR_ENABLE_FIFO ? IIR_FIFO : 0);
}

static uint8_t read_msr(struct serial *s)
{
	uint8_t v = s->msr;
	s->msr &= (uint8_t)~UART_MSR_ANY_DELTA;
	return v;
}

static uint8_t read_register(struct serial *s, unsigned offset)
{
	bool dlab = s->lcr & UART_LCR_DLAB;
	switch (offset) {
	case UART_RX:
		return dlab ? s->dll : fifo_get(s);
	case UART_IER:
		return dlab ? s->dlm : s->ier;
	case UART_IIR:
		return read_iir(s);
	case UART_LCR:
		return s->lcr;
	case UART_MCR:
		return s->mcr;
	case UART_LSR:
		return read_lsr(s);
	case UART_MSR:
		return read_msr(s);
	case UART_SCR:
		return s->scr;
	}
	return 0xff;
}

static void write_ier(struct serial *s, uint8_t v)
{
	v &= IER_MASK;
	if (v & ~s->ier & UART_IER_THRI)
		s->thre = true;
	s->ier = v;
}

static void write_register(struct serial *s, unsigned offset, uint8_t v)
{
	bool dlab = s->lcr & UART_LCR_DLAB;
	switch (offset) {
	case UART_TX: /* without DLAB in loopback; with neither it is serial_access's */
		if (dlab) {
			s->dll = v;
		} else {
			fifo_put(s, v);
			s->thre = true;
		}
		break;
	case UART_IER:
		if (dlab)
			s->dlm = v;
		else
			write_ier(s, v);
		break;
	case UART_FCR:
		write_fcr(s, v);
		break;
	case UART_LCR:
		s->lcr = v;
		break;
	case UART_MCR:
		s->mcr = v & MCR_MASK;
		modem_lines(s);
		break;
	case UART_SCR:
		s->scr = v;
		break;
	default: /* LSR and MSR: writing is for the factory's tests */
		break;
	}
}

/* Does this write send a byte to the outside? */
static bool sends(const struct serial *s, unsigned offset)
{
	return offset == UART_TX && !(s->lcr & UART_LCR_DLAB) && !(s->mcr & UART_MCR_LOOP);
}

void serial_access(struct serial *s, unsigned offset, uint8_t *data, bool write)
{
	bool room = false;
	pthread_mutex_lock(&s->lock);
	if (write && sends(s, offset)) {
		/* Output first, the interrupt after it: what another vCPU sends because of the
		 * interrupt comes later in the output, too. */
		pthread_mutex_unlock(&s->lock);
		if (s->ops.output)
			s->ops.output(s->ctx, (const char *)data, 1);
		pthread_mutex_lock(&s->lock);
		s->thre = true;
	} else if (write) {
		write_register(s, offset, *data);
	} else {
		*data = read_register(s, offset);
	}
	update(s);
	if (s->want_room && s->backlog_count < BACKLOG_SIZE) {
		s->want_room = false;
		room = true;
	}
	pthread_mutex_unlock(&s->lock);
	if (room && s->ops.room)
		s->ops.room(s->ctx);
}

/* Under the lock. */
static bool backlog_put(struct serial *s, uint16_t c)
{
	if (s->backlog_count == BACKLOG_SIZE)
		return false;
	s->backlog[(s->backlog_first + s->backlog_count++) % BACKLOG_SIZE] = c;
	return true;
}

size_t serial_input(struct serial *s, const char *bytes, size_t n)
{
	size_t taken = 0;
	pthread_mutex_lock(&s->lock);
	while (taken < n && backlog_put(s, (uint8_t)bytes[taken])) {
		taken++;
		if (s->backlog_count == BACKLOG_SIZE)
			update(s); /* the FIFO may take some */
	}
	s->want_room |= taken < n;
	update(s);
	pthread_mutex_unlock(&s->lock);
	return taken;
}

bool serial_waits(struct serial *s)
{
	pthread_mutex_lock(&s->lock);
	bool waits = s->fifo_count || s->backlog_count;
	pthread_mutex_unlock(&s->lock);
	return waits;
}

bool serial_break(struct serial *s)
{
	pthread_mutex_lock(&s->lock);
	bool taken = backlog_put(s, CHAR_BREAK);
	update(s);
	pthread_mutex_unlock(&s->lock);
	return taken;
}

void serial_resume(struct serial *s)
{
	pthread_mutex_lock(&s->lock);
	if (s->line && s->ops.irq)
		s->ops.irq(s->ctx, true);
	pthread_mutex_unlock(&s->lock);
}
