/*
 * ACPI tables (ACPI specification 6.4): RSDP, XSDT, FADT, MADT, DSDT, in this order in one piece.
 *
 * The machine is hardware-reduced (4.1): no PM registers, no SCI, no legacy PIC and timer; sleep
 * control and reset registers are ports. Events from the host reach the guest by a generic event
 * device (5.6.9). There is no _S3 or _S4, and no PCI.
 */
#include "vmm/aml.h"
#include "vmm/boot.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define OEM_ID       "INVSOR"
#define OEM_TABLE_ID "INVISOR "
#define CREATOR_ID   "INVS"
#define ALIGN        16

struct rsdp { /* 5.2.5.3 */
	char signature[8];
	uint8_t checksum; /* of the first 20 bytes */
	char oem[6];
	uint8_t revision;
	uint32_t rsdt;
	uint32_t length;
	uint64_t xsdt;
	uint8_t extended_checksum; /* of all */
	uint8_t reserved[3];
} __attribute__((packed));

struct header { /* 5.2.6 */
	char signature[4];
	uint32_t length;
	uint8_t revision;
	uint8_t checksum;
	char oem[6];
	char oem_table[8];
	uint32_t oem_revision;
	char creator[4];
	uint32_t creator_revision;
} __attribute__((packed));

struct xsdt { /* 5.2.8 */
	struct header h;
	uint64_t table[2];
} __attribute__((packed));

struct gas { /* generic address structure: 5.2.3.2 */
	uint8_t space, bits, offset, access;
	uint64_t address;
} __attribute__((packed));
#define GAS_PORT(port)                                                \
	{                                                             \
		.space = 1, .bits = 8, .access = 1, .address = (port) \
	}

struct fadt { /* 5.2.9; what a hardware-reduced machine leaves zero has no names of its own */
	struct header h;
	uint32_t facs, dsdt;
	uint8_t reserved, pm_profile;
	uint16_t sci_int;
	uint8_t pm1[109 - 48];
	uint16_t boot_arch; /* offset 109 */
	uint8_t reserved2;
	uint32_t flags;
	struct gas reset;
	uint8_t reset_value;
	uint16_t arm_boot_arch;
	uint8_t minor;
	uint64_t x_facs, x_dsdt;
	struct gas pm2[8];
	struct gas sleep_control, sleep_status;
	char hypervisor[8];
} __attribute__((packed));
_Static_assert(sizeof(struct fadt) == 276, "FADT of revision 6");
_Static_assert(offsetof(struct fadt, boot_arch) == 109, "table 5.33");
_Static_assert(offsetof(struct fadt, reset) == 116, "table 5.33");
_Static_assert(offsetof(struct fadt, x_dsdt) == 140, "table 5.33");
_Static_assert(offsetof(struct fadt, sleep_control) == 244, "table 5.33");

#define FADT_WBINVD       (1u << 0)
#define FADT_SLEEP_BUTTON (1u << 5) /* none as a fixed feature */
#define FADT_POWER_BUTTON (1u << 4) /* a control method device, not a fixed feature */
#define FADT_RESET_REG    (1u << 10)
#define FADT_HEADLESS     (1u << 12)
#define FADT_HW_REDUCED   (1u << 20)
#define BOOT_ARCH_NO_VGA  (1u << 2) /* 5.2.9.3; no 8042 but its reset line: bit 1 is clear */
#define BOOT_ARCH_NO_RTC  (1u << 5)

struct madt { /* 5.2.12 */
	struct header h;
	uint32_t lapic;
	uint32_t flags;
} __attribute__((packed));
struct madt_lapic { /* 5.2.12.2 */
	uint8_t type, length, uid, apic_id;
	uint32_t flags;
} __attribute__((packed));
struct madt_ioapic { /* 5.2.12.3 */
	uint8_t type, length, id, reserved;
	uint32_t address, gsi_base;
} __attribute__((packed));
struct madt_nmi { /* 5.2.12.7 */
	uint8_t type, length, uid;
	uint16_t flags;
	uint8_t lint;
} __attribute__((packed));

#define MADT_LAPIC  0
#define MADT_IOAPIC 1
#define MADT_NMI    4
#define ALL_CPUS    0xff

/* The tables being laid out. */
struct area {
	uint8_t *bytes;
	size_t size, used;
	uint64_t base;
	bool full;
};

/* Room for a table of `bytes`, zeroed and aligned; NULL and full if there is none. */
static void *take(struct area *a, size_t bytes)
{
	size_t at = (a->used + ALIGN - 1) & ~(size_t)(ALIGN - 1);
	if (a->full || at > a->size || bytes > a->size - at) {
		a->full = true;
		return NULL;
	}
	memset(a->bytes + a->used, 0, at - a->used + bytes);
	a->used = at + bytes;
	return a->bytes + at;
}

static uint64_t address(const struct area *a, const void *table)
{
	return a->base + (uint64_t)((const uint8_t *)table - a->bytes);
}

static uint8_t checksum(const void *bytes, size_t n)
{
	uint8_t sum = 0;
	for (size_t i = 0; i < n; i++)
		sum += ((const uint8_t *)bytes)[i];
	return (uint8_t)-sum;
}

static void head(struct header *h, const char *signature, uint8_t revision, size_t length)
{
	memcpy(h->signature, signature, 4);
	h->length = (uint32_t)length;
	h->revision = revision;
	memcpy(h->oem, OEM_ID, 6);
	memcpy(h->oem_table, OEM_TABLE_ID, 8);
	h->oem_revision = 1;
	memcpy(h->creator, CREATOR_ID, 4);
	h->creator_revision = 1;
}

/* Last, once nothing in the table changes any more. */
static void seal(struct header *h)
{
	h->checksum = 0;
	h->checksum = checksum(h, h->length);
}

static void *madt_entry(uint8_t **at, uint8_t type, uint8_t length)
{
	uint8_t *entry = *at;
	entry[0] = type;
	entry[1] = length;
	*at += length;
	return entry;
}

static struct header *build_madt(struct area *a, const struct machine *m)
{
	size_t length = sizeof(struct madt) + m->cpus * sizeof(struct madt_lapic) +
			sizeof(struct madt_ioapic) + sizeof(struct madt_nmi);
	struct madt *t = take(a, length);
	if (!t)
		return NULL;
	head(&t->h, "APIC", 5, length);
	t->lapic = (uint32_t)MACHINE_LAPIC_BASE;
	uint8_t *at = (uint8_t *)(t + 1);
	for (unsigned i = 0; i < m->cpus; i++) {
		struct madt_lapic *e = madt_entry(&at, MADT_LAPIC, sizeof(*e));
		e->uid = (uint8_t)i;
		e->apic_id = (uint8_t)i;
		e->flags = 1; /* enabled */
	}
	/* Id 0 is what KVM's IOAPIC has after reset. */
	struct madt_ioapic *io = madt_entry(&at, MADT_IOAPIC, sizeof(*io));
	io->address = (uint32_t)MACHINE_IOAPIC_BASE;
	struct madt_nmi *nmi = madt_entry(&at, MADT_NMI, sizeof(*nmi));
	nmi->uid = ALL_CPUS;
	nmi->lint = 1;
	seal(&t->h);
	return &t->h;
}

static void add_virtio(struct aml *a, uint64_t base, unsigned slot)
{
	char name[5];
	struct aml_crs crs = {0};
	snprintf(name, sizeof(name), "VR%02X", slot & 0xff);
	size_t device = aml_open_device(a, name);
	aml_name_string(a, "_HID", "LNRO0005");
	aml_name_int(a, "_UID", slot);
	aml_name_int(a, "_CCA", 1); /* its DMA is cache-coherent: 6.2.17 */
	aml_crs_memory(&crs, (uint32_t)(base + slot * MACHINE_MMIO_STRIDE),
		       (uint32_t)MACHINE_MMIO_BYTES);
	aml_crs_interrupt(&crs, MACHINE_VIRTIO_GSI + slot, false);
	aml_name_crs(a, &crs);
	aml_close(a, device);
}

static void add_serial(struct aml *a)
{
	struct aml_crs crs = {0};
	size_t device = aml_open_device(a, "COM1");
	aml_name_eisa(a, "_HID", "PNP0501");
	aml_name_int(a, "_UID", 0);
	aml_name_int(a, "_STA", 0xf); /* present, enabled, shown, working: 6.3.7 */
	aml_crs_io(&crs, MACHINE_COM1_PORT, 8);
	aml_crs_interrupt(&crs, MACHINE_COM1_GSI, true);
	aml_name_crs(a, &crs);
	aml_close(a, device);
}

static void add_power_button(struct aml *a)
{
	size_t device = aml_open_device(a, "PWRB");
	aml_name_eisa(a, "_HID", "PNP0C0C");
	aml_name_int(a, "_UID", 0);
	aml_close(a, device);
}

/* "Virtual Machine Generation ID", Microsoft 2012. ADDR: low and high half of the GUID's address. */
static void add_generation_id(struct aml *a)
{
	size_t device = aml_open_device(a, "VGEN");
	aml_name_string(a, "_HID", "INVS0001");
	aml_name_string(a, "_CID", "VM_Gen_Counter");
	aml_name_string(a, "_DDN", "VM_Gen_Counter");
	aml_name_int(a, "_UID", 0);
	aml_name_package(a, "ADDR", (const uint64_t[]){BOOT_IDENTITY, 0}, 2);
	aml_close(a, device);
}

static void add_event(struct aml *a, unsigned gsi, const char *device)
{
	size_t test = aml_open_if_arg0(a, gsi);
	aml_notify(a, device, 0x80);
	aml_close(a, test);
}

/* A pulse on an interrupt runs _EVT, which tells the device. */
static void add_events(struct aml *a)
{
	struct aml_crs crs = {0};
	size_t device = aml_open_device(a, "GED");
	aml_name_string(a, "_HID", "ACPI0013");
	aml_name_int(a, "_UID", 0);
	aml_crs_interrupt(&crs, MACHINE_POWER_GSI, true);
	aml_crs_interrupt(&crs, MACHINE_GENERATION_GSI, true);
	aml_name_crs(a, &crs);
	size_t method = aml_open_method(a, "_EVT", 1, true);
	add_event(a, MACHINE_POWER_GSI, "\\_SB.PWRB");
	add_event(a, MACHINE_GENERATION_GSI, "\\_SB.VGEN");
	aml_close(a, method);
	aml_close(a, device);
}

static struct header *build_dsdt(struct area *area, const struct machine *m)
{
	struct header *h = take(area, sizeof(*h));
	if (!h)
		return NULL;
	struct aml a = {.bytes = area->bytes + area->used, .size = area->size - area->used};
	size_t scope = aml_open_scope(&a, "\\_SB");
	for (unsigned i = 0; i < m->virtio_slots; i++)
		add_virtio(&a, machine_mmio_base(m->bank[0].bytes), i);
	add_serial(&a);
	add_power_button(&a);
	add_generation_id(&a);
	add_events(&a);
	aml_close(&a, scope);
	/* SLP_TYP for the sleep control register (7.4.2); the rest is for PM1b and reserved. */
	aml_name_package(&a, "\\_S5", (const uint64_t[]){MACHINE_SLEEP_S5, 0, 0, 0}, 4);
	if (a.full) {
		area->full = true;
		return NULL;
	}
	area->used += a.used;
	head(h, "DSDT", 2, sizeof(*h) + a.used); /* revision 2: integers have 64 bits */
	seal(h);
	return h;
}

static void fill_fadt(struct fadt *t, uint64_t dsdt)
{
	head(&t->h, "FACP", 6, sizeof(*t));
	t->dsdt = (uint32_t)dsdt;
	t->x_dsdt = dsdt;
	t->boot_arch = BOOT_ARCH_NO_VGA | BOOT_ARCH_NO_RTC;
	t->flags = FADT_WBINVD | FADT_POWER_BUTTON | FADT_SLEEP_BUTTON | FADT_RESET_REG |
		   FADT_HEADLESS | FADT_HW_REDUCED;
	t->reset = (struct gas)GAS_PORT(MACHINE_RESET_PORT);
	t->reset_value = MACHINE_RESET_VALUE;
	t->minor = 4;
	t->sleep_control = (struct gas)GAS_PORT(MACHINE_SLEEP_PORT);
	t->sleep_status = (struct gas)GAS_PORT(MACHINE_SLEEP_PORT + 1);
	memcpy(t->hypervisor, "INVISOR", 8);
	seal(&t->h);
}

int64_t acpi_build(const struct machine *m, gpa_t base, void *out, size_t size)
{
	if (m->cpus > MACHINE_MAX_CPUS || m->virtio_slots > MACHINE_MAX_VIRTIO)
		return -EINVAL;
	struct area a = {.bytes = out, .size = size, .base = base.v};
	struct rsdp *rsdp = take(&a, sizeof(*rsdp));
	struct xsdt *xsdt = take(&a, sizeof(*xsdt));
	struct fadt *fadt = take(&a, sizeof(*fadt));
	struct header *madt = build_madt(&a, m);
	struct header *dsdt = build_dsdt(&a, m);
	if (a.full)
		return -ENOSPC;

	fill_fadt(fadt, address(&a, dsdt));
	head(&xsdt->h, "XSDT", 1, sizeof(*xsdt));
	xsdt->table[0] = address(&a, fadt);
	xsdt->table[1] = address(&a, madt);
	seal(&xsdt->h);

	memcpy(rsdp->signature, "RSD PTR ", 8);
	memcpy(rsdp->oem, OEM_ID, 6);
	rsdp->revision = 2;
	rsdp->length = sizeof(*rsdp);
	rsdp->xsdt = address(&a, xsdt);
	rsdp->checksum = checksum(rsdp, 20);
	rsdp->extended_checksum = checksum(rsdp, sizeof(*rsdp));
	return (int64_t)a.used;
}
