#include "guest/bare/console.h"
#include "guest/bare/cpu.h"
#include "guest/bare/text.h"
#include "guest/bare/vcon.h"
#include "vmm/machine.h"

#define COM1_DATA MACHINE_COM1_PORT
/* PC16550D: FIFO control, modem control, line status. */
#define COM1_FCR       (MACHINE_COM1_PORT + 2)
#define COM1_FCR_ON    0x07 /* both FIFOs, empty */
#define COM1_MCR       (MACHINE_COM1_PORT + 4)
#define COM1_MCR_READY 0x03 /* DTR and RTS: who sends to us may begin */
#define COM1_LSR       (MACHINE_COM1_PORT + 5)
#define COM1_LSR_DATA  0x01

static struct vcon vcon;
static bool by_virtio;
static bool listening; /* COM1 is set up for input */

void console_write(const char *bytes, size_t n)
{
	if (by_virtio) {
		vcon_write(&vcon, bytes, n);
		return;
	}
	/* Each byte is an exit. A string instruction wouldn't help: KVM makes an exit of each of
	 * its bytes too. */
	for (size_t i = 0; i < n; i++)
		cpu_out8(COM1_DATA, (uint8_t)bytes[i]);
}

void console_say(const char *format, ...)
{
	char line[CONSOLE_LINE_MAX];
	va_list args;
	va_start(args, format);
	size_t n = text_format(line, sizeof line - 1, format, args);
	va_end(args);
	line[n++] = '\n';
	console_write(line, n);
}

size_t console_read(char *out, size_t size)
{
	size_t n = 0;
	if (by_virtio)
		return vcon_read(&vcon, out, size);
	if (!listening) {
		cpu_out8(COM1_FCR, COM1_FCR_ON);
		cpu_out8(COM1_MCR, COM1_MCR_READY);
		listening = true;
	}
	while (n < size && (cpu_in8(COM1_LSR) & COM1_LSR_DATA) != 0)
		out[n++] = (char)cpu_in8(COM1_DATA);
	return n;
}

bool console_use_virtio(void)
{
	by_virtio = vcon_open(&vcon, 0, false);
	return by_virtio;
}

void console_drain(void)
{
	if (by_virtio)
		vcon_drain(&vcon);
}
