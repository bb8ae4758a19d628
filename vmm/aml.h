/*
 * A small writer of ACPI Machine Language: what the DSDT of a VM needs (ACPI 6.4, chapter 20).
 *
 * Terms that hold others are opened and closed: aml_open_...() returns a mark for aml_close(),
 * which puts the package length in. What doesn't fit sets `full`; the caller looks once, at the
 * end.
 */
#ifndef VMM_AML_H
#define VMM_AML_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct aml {
	uint8_t *bytes;
	size_t size, used;
	bool full;
};

/* Paths are one name of up to 4 characters, perhaps behind a backslash, or two names with a dot. */
size_t aml_open_scope(struct aml *a, const char *path);
size_t aml_open_device(struct aml *a, const char *name);
size_t aml_open_method(struct aml *a, const char *name, unsigned args, bool serialized);
/* If (Arg0 == value) */
size_t aml_open_if_arg0(struct aml *a, uint64_t value);
void aml_close(struct aml *a, size_t mark);

void aml_name_int(struct aml *a, const char *name, uint64_t value);
void aml_name_string(struct aml *a, const char *name, const char *value);
/* A package of integers. */
void aml_name_package(struct aml *a, const char *name, const uint64_t *value, unsigned n);
/* An EISA id ("PNP0501") as the integer it is packed into (ACPI 6.4, 19.3.4). */
void aml_name_eisa(struct aml *a, const char *name, const char *id);
void aml_notify(struct aml *a, const char *path, uint8_t value);

/* _CRS: resource templates (ACPI 6.4, 6.4). */
struct aml_crs {
	uint8_t bytes[64];
	size_t used;
};
void aml_crs_memory(struct aml_crs *c, uint32_t base, uint32_t bytes);
void aml_crs_io(struct aml_crs *c, uint16_t port, uint8_t ports);
void aml_crs_interrupt(struct aml_crs *c, uint32_t gsi, bool edge);
void aml_name_crs(struct aml *a, struct aml_crs *c);

#endif
