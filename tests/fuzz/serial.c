/* The UART: register accesses, input, breaks. */
#include "vmm/serial.h"
#include "tests/fuzz/fuzz.h"
#include <stdlib.h>

static struct {
	bool level, cut, lines_anew;
	unsigned rooms;
	size_t bytes, writes;
} other;

static void irq(void *ctx, bool level)
{
	(void)ctx;
	cr_assert(other.level != level || other.lines_anew, "told of a level that didn't change");
	other.level = level;
}

static void output(void *ctx, const char *bytes, size_t n)
{
	static volatile char seen;
	(void)ctx;
	for (size_t i = 0; i < n; i++)
		seen = bytes[i];
	(void)seen;
	other.bytes += n;
	cr_assert_leq(other.bytes, other.writes, "more bytes than were written");
}

static void room(void *ctx)
{
	(void)ctx;
	cr_assert(other.cut, "room for nothing that was cut short");
	other.cut = false;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const struct serial_ops ops = {irq, output, room};
	static const char text[6000];
	struct fuzz_in in = {data, size};
	struct serial *s;
	memset(&other, 0, sizeof(other));
	cr_assert_eq(serial_create(&s, &ops, NULL), 0);
	while (in.left) {
		unsigned what = fuzz_u8(&in);
		uint8_t v = fuzz_u8(&in);
		if (what < 0x80) {
			other.writes++;
			serial_access(s, what & 7, &v, true);
		} else if (what < 0xe0) {
			serial_access(s, what & 7, &v, false);
		} else if (what < 0xf8) {
			size_t n = (size_t)v << (what & 7), took = serial_input(s, text, n);
			cr_assert_leq(took, n);
			other.cut = other.cut || took < n;
		} else if (what < 0xfc) {
			serial_break(s);
		} else {
			other.lines_anew = true;
			other.level = false;
			serial_resume(s);
			other.lines_anew = false;
		}
	}
	serial_destroy(s);
	return 0;
}
