/*
 * AML encoding: opcodes and grammar of ACPI 6.4, section 20.2; resource descriptors of 6.4.2
 * (small) and 6.4.3 (large).
 */
#include "vmm/aml.h"

#include <assert.h>
#include <string.h>

enum {
	OP_ZERO = 0x00,
	OP_ONE = 0x01,
	OP_NAME = 0x08,
	OP_BYTE = 0x0a,
	OP_WORD = 0x0b,
	OP_DWORD = 0x0c,
	OP_STRING = 0x0d,
	OP_QWORD = 0x0e,
	OP_SCOPE = 0x10,
	OP_BUFFER = 0x11,
	OP_PACKAGE = 0x12,
	OP_METHOD = 0x14,
	OP_DUAL_NAME = 0x2e,
	OP_EXT = 0x5b,
	OP_EXT_DEVICE = 0x82,
	OP_ARG0 = 0x68,
	OP_NOTIFY = 0x86,
	OP_LEQUAL = 0x93,
	OP_IF = 0xa0,
};

static void put(struct aml *a, const void *bytes, size_t n)
{
	if (a->full || n > a->size - a->used) {
		a->full = true;
		return;
	}
	memcpy(a->bytes + a->used, bytes, n);
	a->used += n;
}

static void put8(struct aml *a, uint8_t v)
{
	put(a, &v, 1);
}

static void put_le(struct aml *a, uint64_t v, unsigned bytes)
{
	for (unsigned i = 0; i < bytes; i++)
		put8(a, (uint8_t)(v >> 8 * i));
}

/* NameSeg: four characters, padded with underscores (20.2.2). */
static void put_segment(struct aml *a, const char *name, size_t n)
{
	char segment[4] = {'_', '_', '_', '_'};
	assert(n >= 1 && n <= 4);
	memcpy(segment, name, n);
	put(a, segment, 4);
}

static void put_path(struct aml *a, const char *path)
{
	if (*path == '\\') {
		put8(a, '\\');
		path++;
	}
	const char *dot = strchr(path, '.');
	if (dot) {
		put8(a, OP_DUAL_NAME);
		put_segment(a, path, (size_t)(dot - path));
		path = dot + 1;
	}
	put_segment(a, path, strlen(path));
}

static void put_int(struct aml *a, uint64_t v)
{
	if (v <= 1) {
		put8(a, v ? OP_ONE : OP_ZERO);
	} else if (v <= UINT8_MAX) {
		put8(a, OP_BYTE);
		put_le(a, v, 1);
	} else if (v <= UINT16_MAX) {
		put8(a, OP_WORD);
		put_le(a, v, 2);
	} else if (v <= UINT32_MAX) {
		put8(a, OP_DWORD);
		put_le(a, v, 4);
	} else {
		put8(a, OP_QWORD);
		put_le(a, v, 8);
	}
}

/* PkgLength (20.2.4) counts itself. The mark is where it will be put once it is known. */
void aml_close(struct aml *a, size_t mark)
{
	if (a->full)
		return;
	size_t body = a->used - mark;
	unsigned more = body + 1 <= 0x3f ? 0 : body + 2 <= 0xfff ? 1 : 2;
	size_t length = body + 1 + more;
	if (length > 0xfffff || more + 1 > a->size - a->used) {
		a->full = true;
		return;
	}
	memmove(a->bytes + mark + 1 + more, a->bytes + mark, body);
	a->used += 1 + more;
	if (!more) {
		a->bytes[mark] = (uint8_t)length;
		return;
	}
	a->bytes[mark] = (uint8_t)(more << 6 | (length & 0xf));
	for (unsigned i = 0; i < more; i++)
		a->bytes[mark + 1 + i] = (uint8_t)(length >> (4 + 8 * i));
}

size_t aml_open_scope(struct aml *a, const char *path)
{
	put8(a, OP_SCOPE);
	size_t mark = a->used;
	put_path(a, path);
	return mark;
}

size_t aml_open_device(struct aml *a, const char *name)
{
	put8(a, OP_EXT);
	put8(a, OP_EXT_DEVICE);
	size_t mark = a->used;
	put_path(a, name);
	return mark;
}

size_t aml_open_method(struct aml *a, const char *name, unsigned args, bool serialized)
{
	put8(a, OP_METHOD);
	size_t mark = a->used;
	put_path(a, name);
	put8(a, (uint8_t)(args | serialized << 3));
	return mark;
}

size_t aml_open_if_arg0(struct aml *a, uint64_t value)
{
	put8(a, OP_IF);
	size_t mark = a->used;
	put8(a, OP_LEQUAL);
	put8(a, OP_ARG0);
	put_int(a, value);
	return mark;
}

static void put_name(struct aml *a, const char *name)
{
	put8(a, OP_NAME);
	put_path(a, name);
}

void aml_name_int(struct aml *a, const char *name, uint64_t value)
{
	put_name(a, name);
	put_int(a, value);
}

void aml_name_string(struct aml *a, const char *name, const char *value)
{
	put_name(a, name);
	put8(a, OP_STRING);
	put(a, value, strlen(value) + 1);
}

void aml_name_package(struct aml *a, const char *name, const uint64_t *value, unsigned n)
{
	put_name(a, name);
	put8(a, OP_PACKAGE);
	size_t mark = a->used;
	put8(a, (uint8_t)n);
	for (unsigned i = 0; i < n; i++)
		put_int(a, value[i]);
	aml_close(a, mark);
}

static unsigned hex_digit(char c)
{
	return c <= '9' ? (unsigned)(c - '0') : (unsigned)(c - 'A' + 10);
}

void aml_name_eisa(struct aml *a, const char *name, const char *id)
{
	assert(strlen(id) == 7);
	uint32_t v = 0;
	for (unsigned i = 0; i < 3; i++)
		v = v << 5 | (unsigned)(id[i] - 0x40);
	for (unsigned i = 3; i < 7; i++)
		v = v << 4 | hex_digit(id[i]);
	/* Put together big-endian, stored the other way round. */
	aml_name_int(a, name, __builtin_bswap32(v));
}

void aml_notify(struct aml *a, const char *path, uint8_t value)
{
	put8(a, OP_NOTIFY);
	put_path(a, path);
	put_int(a, value);
}

static void crs_put(struct aml_crs *c, uint64_t v, unsigned bytes)
{
	assert(c->used + bytes <= sizeof(c->bytes) - 2); /* the end tag's two */
	for (unsigned i = 0; i < bytes; i++)
		c->bytes[c->used++] = (uint8_t)(v >> 8 * i);
}

/* Memory32Fixed, read-write: 6.4.3.4. */
void aml_crs_memory(struct aml_crs *c, uint32_t base, uint32_t bytes)
{
	crs_put(c, 0x86, 1);
	crs_put(c, 9, 2);
	crs_put(c, 1, 1);
	crs_put(c, base, 4);
	crs_put(c, bytes, 4);
}

/* I/O port descriptor, 16-bit decoding: 6.4.2.5. */
void aml_crs_io(struct aml_crs *c, uint16_t port, uint8_t ports)
{
	crs_put(c, 0x47, 1);
	crs_put(c, 1, 1);
	crs_put(c, port, 2); /* the least base */
	crs_put(c, port, 2); /* the greatest */
	crs_put(c, 0, 1);    /* alignment: it has one place only */
	crs_put(c, ports, 1);
}

/* Extended interrupt, consumer, active high, exclusive: 6.4.3.6. */
void aml_crs_interrupt(struct aml_crs *c, uint32_t gsi, bool edge)
{
	crs_put(c, 0x89, 1);
	crs_put(c, 6, 2);
	crs_put(c, 1 | (unsigned)edge << 1, 1);
	crs_put(c, 1, 1);
	crs_put(c, gsi, 4);
}

void aml_name_crs(struct aml *a, struct aml_crs *c)
{
	/* End tag, 6.4.2.9; a checksum of 0 is taken as right. */
	c->bytes[c->used++] = 0x79;
	c->bytes[c->used++] = 0;
	put_name(a, "_CRS");
	put8(a, OP_BUFFER);
	size_t mark = a->used;
	put_int(a, c->used);
	put(a, c->bytes, c->used);
	aml_close(a, mark);
}
