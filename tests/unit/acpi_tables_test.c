/* acpi.c: every pointer, every checksum, and what iasl says of the tables. */
#include "vmm/aml.h"
#include "vmm/boot.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint8_t area[BOOT_ACPI_SIZE];
static int64_t used;

static struct machine machine(unsigned cpus, unsigned slots)
{
	struct machine m = {.name = "acpi", .cpus = cpus, .virtio_slots = slots};
	cr_assert_eq(machine_set_memory(&m, 64 * MiB), 0);
	return m;
}

static void build(unsigned cpus, unsigned slots)
{
	struct machine m = machine(cpus, slots);
	memset(area, 0xaa, sizeof(area));
	used = acpi_build(&m, gpa(BOOT_ACPI_BASE), area, sizeof(area));
	cr_assert_gt(used, 0);
	for (size_t i = (size_t)used; i < sizeof(area); i++)
		cr_assert_eq(area[i], 0xaa, "written behind its end");
}

static uint64_t le(const uint8_t *p, unsigned bytes)
{
	uint64_t v = 0;
	memcpy(&v, p, bytes);
	return v;
}

static uint8_t sum(const uint8_t *p, size_t n)
{
	uint8_t s = 0;
	while (n--)
		s += *p++;
	return s;
}

/* A table by its address: signature, length, checksum checked. */
static const uint8_t *table(uint64_t address, const char *signature)
{
	cr_assert(address >= BOOT_ACPI_BASE && address + 36 <= BOOT_ACPI_BASE + (uint64_t)used);
	const uint8_t *t = area + (address - BOOT_ACPI_BASE);
	cr_assert_eq(memcmp(t, signature, 4), 0, "%.4s instead of %s", t, signature);
	uint64_t length = le(t + 4, 4);
	cr_assert_leq(address + length, BOOT_ACPI_BASE + (uint64_t)used);
	cr_assert_eq(sum(t, length), 0, "checksum of %s", signature);
	return t;
}

static const uint8_t *xsdt(void)
{
	cr_assert_eq(memcmp(area, "RSD PTR ", 8), 0);
	cr_assert_eq(area[15], 2, "revision");
	cr_assert_eq(le(area + 20, 4), 36);
	cr_assert_eq(sum(area, 20), 0);
	cr_assert_eq(sum(area, 36), 0);
	const uint8_t *x = table(le(area + 24, 8), "XSDT");
	cr_assert_eq(le(x + 4, 4), 36 + 16, "two tables");
	return x;
}

Test(acpi_tables, fadt)
{
	build(2, 4);
	const uint8_t *f = table(le(xsdt() + 36, 8), "FACP");
	cr_assert_eq(le(f + 4, 4), 276);
	cr_assert_eq(f[8], 6);
	cr_assert_eq(le(f + 109, 2), 1 << 2 | 1 << 5, "no VGA, no CMOS clock, no 8042");
	uint64_t flags = le(f + 112, 4);
	cr_assert(flags & 1 << 20, "hardware-reduced");
	cr_assert(flags & 1 << 10, "reset register");
	static const struct {
		unsigned offset;
		uint64_t port;
	} gas[] = {{116, MACHINE_RESET_PORT},
		   {244, MACHINE_SLEEP_PORT},
		   {256, MACHINE_SLEEP_PORT + 1}};
	for (unsigned i = 0; i < 3; i++) {
		const uint8_t *g = f + gas[i].offset;
		cr_assert_eq(g[0], 1, "an I/O port");
		cr_assert_eq(g[1], 8);
		cr_assert_eq(g[2], 0);
		cr_assert_eq(g[3], 1);
		cr_assert_eq(le(g + 4, 8), gas[i].port);
	}
	cr_assert_eq(f[128], MACHINE_RESET_VALUE);
	cr_assert_eq(le(f + 40, 4), le(f + 140, 8));
	table(le(f + 140, 8), "DSDT");
}

Test(acpi_tables, madt)
{
	for (unsigned cpus = 1; cpus <= MACHINE_MAX_CPUS; cpus++) {
		build(cpus, 0);
		const uint8_t *m = table(le(xsdt() + 44, 8), "APIC");
		cr_assert_eq(le(m + 36, 4), MACHINE_LAPIC_BASE);
		const uint8_t *p = m + 44, *end = m + le(m + 4, 4);
		unsigned lapics = 0, ioapics = 0;
		for (; p < end; p += p[1]) {
			cr_assert_geq(p[1], 2);
			if (p[0] == 0) {
				cr_assert_eq(p[1], 8);
				cr_assert_eq(p[2], lapics);
				cr_assert_eq(p[3], lapics);
				cr_assert_eq(le(p + 4, 4), 1);
				lapics++;
			}
			if (p[0] == 1) {
				cr_assert_eq(p[1], 12);
				cr_assert_eq(le(p + 4, 4), MACHINE_IOAPIC_BASE);
				cr_assert_eq(le(p + 8, 4), 0);
				ioapics++;
			}
		}
		cr_assert_eq(p, end);
		cr_assert_eq(lapics, cpus);
		cr_assert_eq(ioapics, 1);
	}
}

Test(acpi_tables, alignment_and_base)
{
	struct machine m = machine(3, 5);
	uint8_t *other = calloc(1, BOOT_ACPI_SIZE);
	build(3, 5);
	cr_assert_eq(acpi_build(&m, gpa(0xF0000), other, BOOT_ACPI_SIZE), used);
	cr_assert_eq(le(other + 24, 8) - 0xF0000, le(area + 24, 8) - BOOT_ACPI_BASE);
	cr_assert_eq(le(area + 24, 8) % 16, 0);
	free(other);
}

Test(acpi_tables, no_space)
{
	struct machine m = machine(8, 16);
	build(8, 16);
	for (int64_t n = 0; n < used; n++) {
		uint8_t *small = malloc((size_t)n + 1); /* exact, for the address sanitizer */
		small[n] = 0x5a;
		cr_assert_eq(acpi_build(&m, gpa(BOOT_ACPI_BASE), small, (size_t)n), -ENOSPC);
		cr_assert_eq(small[n], 0x5a);
		free(small);
	}
	m.cpus = MACHINE_MAX_CPUS + 1;
	cr_assert_eq(acpi_build(&m, gpa(BOOT_ACPI_BASE), area, sizeof(area)), -EINVAL);
}

/* PkgLength (ACPI 6.4, 20.2.4) around the sizes where it grows: scope, length, name of 4, body. */
Test(acpi_tables, package_length)
{
	static const struct {
		unsigned body, bytes;
		uint8_t expect[3];
	} cases[] = {
		{0x3e, 1, {0x3f}},
		{0x3f, 2, {0x41, 0x04}},
		{0x50, 2, {0x42, 0x05}},
		{0xffd, 2, {0x4f, 0xff}},
		{0xffe, 3, {0x81, 0x00, 0x01}},
		{0x1234, 3, {0x87, 0x23, 0x01}},
	};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct aml a = {.bytes = area, .size = sizeof(area)};
		size_t mark = aml_open_scope(&a, "_SB");
		while (a.used - mark < cases[i].body)
			a.bytes[a.used++] = 0xa3; /* noop */
		aml_close(&a, mark);
		cr_assert_eq(a.used, 1 + cases[i].bytes + cases[i].body);
		cr_assert_eq(memcmp(a.bytes + 1, cases[i].expect, cases[i].bytes), 0, "case %zu",
			     i);
		cr_assert_eq(memcmp(a.bytes + 1 + cases[i].bytes, "_SB_", 4), 0);
		cr_assert(!a.full);
	}
}

static int run(const char *dir, const char *command)
{
	char line[512];
	snprintf(line, sizeof(line), "cd %s && { %s; } >>log 2>&1", dir, command);
	return system(line);
}

static void write_table(const char *dir, const char *name, const uint8_t *t)
{
	char path[128];
	snprintf(path, sizeof(path), "%s/%s.aml", dir, name);
	FILE *f = fopen(path, "w");
	cr_assert_not_null(f);
	cr_assert_eq(fwrite(t, 1, le(t + 4, 4), f), le(t + 4, 4));
	fclose(f);
}

static bool log_has(const char *dir, const char *words)
{
	char command[256];
	snprintf(command, sizeof(command), "grep -q '%s' %s/log", words, dir);
	return system(command) == 0;
}

/* Disassemble each table and compile it again: no error, no warning. `grep` looks for what must be
 * in the source. */
Test(acpi_tables, iasl)
{
	if (system("iasl -v >/dev/null 2>&1"))
		cr_skip_test("iasl isn't there: install acpica-tools");
	static const unsigned slots[] = {0, 1, 16};
	for (unsigned i = 0; i < 3; i++) {
		char dir[] = "/tmp/acpi-test-XXXXXX", clean[64];
		cr_assert_not_null(mkdtemp(dir));
		build(slots[i] ? 8 : 1, slots[i]);
		const uint8_t *x = xsdt();
		const uint8_t *f = table(le(x + 36, 8), "FACP");
		write_table(dir, "xsdt", x);
		write_table(dir, "facp", f);
		write_table(dir, "apic", table(le(x + 44, 8), "APIC"));
		write_table(dir, "dsdt", table(le(f + 140, 8), "DSDT"));
		cr_assert_eq(run(dir, "iasl -d dsdt.aml facp.aml apic.aml xsdt.aml"), 0);
		cr_assert(!log_has(dir, "[Ee]rror\\|[Ww]arning"), "see %s/log", dir);
		cr_assert_eq(run(dir, "for t in dsdt facp apic xsdt; do iasl $t.dsl || exit; done"),
			     0, "see %s/log", dir);
		cr_assert(!log_has(dir, "[1-9][0-9]* \\(Errors\\|Warnings\\)"), "see %s/log", dir);
		char count[128];
		snprintf(count, sizeof(count), "test $(grep -c LNRO0005 dsdt.dsl) = %u", slots[i]);
		cr_assert_eq(run(dir, count), 0);
		cr_assert_eq(run(dir, "grep -q 'EisaId (\"PNP0501\")' dsdt.dsl"), 0);
		cr_assert_eq(run(dir, "grep -q 'EisaId (\"PNP0C0C\")' dsdt.dsl"), 0);
		cr_assert_eq(run(dir, "grep -q 'Name (._S5, Package' dsdt.dsl"), 0);
		cr_assert_eq(run(dir, "grep -q 'Notify (._SB.PWRB, 0x80)' dsdt.dsl"), 0);
		cr_assert_eq(run(dir, "grep -q 'Notify (._SB.VGEN, 0x80)' dsdt.dsl"), 0);
		cr_assert_eq(run(dir, "grep -q 'Name (_CID, \"VM_Gen_Counter\")' dsdt.dsl"), 0);
		cr_assert_eq(
			run(dir, "grep -A 5 'Name (ADDR, Package' dsdt.dsl | grep -q 0x000EF000"),
			0);
		snprintf(clean, sizeof(clean), "rm -rf %s", dir);
		cr_assert_eq(system(clean), 0);
	}
}
