/*
 * A virtio driver without manners: rings anywhere, chains of any shape, registers and config space in any state,
 * notifications without end. Now and then it begins anew as a driver should, or nothing but "there is no such queue"
 * would be reached.
 */
#include "guest/bare/attack.h"
#include "guest/bare/cpu.h"
#include "guest/bare/vio.h"
#include "guest/bare/vio_regs.h"
#include <string.h>

#define QUEUES   5
#define STORM    200
#define RING_NUM 128

struct ring {
	uint64_t desc, avail, used;
	uint16_t num, idx;
};

struct driver {
	struct attacker *a;
	uint64_t regs;
	uint32_t id;
	struct ring ring[QUEUES];
};

/* Numbers of pages that a balloon may have: of the data, or none of ours. No device writes here. */
#define PAGES 8192
static uint32_t pages[PAGES];

static void put16(uint64_t at, uint16_t v)
{
	*(volatile uint16_t *)(uintptr_t)at = v;
}

static void wr(struct driver *d, unsigned reg, uint32_t v)
{
	cpu_mmio_write32(d->regs + reg, v);
}

static void reset(struct driver *d)
{
	wr(d, REG_STATUS, 0);
	d->a->resets++;
}

static void write_address(struct driver *d, unsigned reg, uint64_t at)
{
	wr(d, reg, (uint32_t)at);
	wr(d, reg + 4, (uint32_t)(at >> 32));
}

static void open_queue(struct driver *d, unsigned i, bool wild)
{
	struct attacker *a = d->a;
	struct ring *r = &d->ring[i];
	wr(d, REG_QUEUE_SEL, i);
	uint32_t max = cpu_mmio_read32(d->regs + REG_QUEUE_NUM_MAX);
	for (r->num = (uint16_t)(1u << attack_below(a, 8)); r->num > max && r->num > 1; r->num /= 2)
		;
	r->idx = 0;
	r->desc = attack_place(a, a->desc, 16 * RING_NUM, 16);
	r->avail = attack_place(a, a->avail, 6 + 2 * RING_NUM, 2);
	r->used = attack_place(a, a->used, 6 + 8 * RING_NUM, 4);
	memset((void *)(uintptr_t)r->avail, 0, 6);
	wr(d, REG_QUEUE_NUM, wild && attack_one_in(a, 4) ? (uint32_t)attack_number(a) : r->num);
	unsigned which = wild ? attack_below(a, 4) : 3;
	write_address(d, REG_QUEUE_DESC, which == 0 ? attack_outside(a) : r->desc);
	write_address(d, REG_QUEUE_DRIVER, which == 1 ? attack_address(a, 6) : r->avail);
	write_address(d, REG_QUEUE_DEVICE, which == 2 ? attack_outside(a) : r->used);
	wr(d, REG_QUEUE_READY, 1);
}

static void open(struct driver *d, bool wild)
{
	struct attacker *a = d->a;
	reset(d);
	wr(d, REG_STATUS, STATUS_ACKNOWLEDGE);
	wr(d, REG_STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER);
	uint64_t features = vio_offered(d->regs);
	if (wild || attack_one_in(a, 2))
		features &= attack_random(a) | attack_random(a) | VIO_F_VERSION_1;
	wr(d, REG_DRIVER_FEATURES_SEL, 0);
	wr(d, REG_DRIVER_FEATURES, (uint32_t)features);
	wr(d, REG_DRIVER_FEATURES_SEL, 1);
	wr(d, REG_DRIVER_FEATURES, (uint32_t)(features >> 32));
	wr(d, REG_STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK);
	for (unsigned i = 0; i < QUEUES; i++)
		open_queue(d, i, wild);
	wr(d, REG_STATUS,
	   STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK | STATUS_DRIVER_OK);
}

/* A buffer; what the device may write to is of the arena or of no memory. */
static struct vio_desc buffer(struct driver *d, bool write)
{
	struct attacker *a = d->a;
	uint32_t len = 1 + attack_below(a, 512);
	if (attack_one_in(a, 4))
		len = 512 * (1 + attack_below(a, 16));
	if (attack_one_in(a, 10))
		len = (uint32_t)attack_number(a);
	/* Where a console's output goes, megabytes are of no use. */
	if (d->id == VIO_ID_CONSOLE && len > 0x10000 && len < 0x800000)
		len = 0x10000;
	uint64_t at = attack_address(a, len);
	/* What a balloon reads are numbers of pages that it takes. */
	if (d->id == VIO_ID_BALLOON && !write)
		at = attack_one_in(a, 8)
			     ? attack_outside(a)
			     : (uint64_t)(uintptr_t)(pages + attack_below(a, PAGES / 2));
	return (struct vio_desc){at, len, write ? DESC_WRITE : 0, 0};
}

/* A chain in a table of `num` descriptors at `table`: straight, in a loop, or with one that is out of order. */
static void write_chain(struct driver *d, uint64_t table, unsigned num)
{
	struct attacker *a = d->a;
	unsigned n = 1 + attack_below(a, attack_one_in(a, 8) ? num : 4),
		 wrong = attack_below(a, 40);
	unsigned readable = attack_below(a, n + 1);
	for (unsigned i = 0; i < n && i < num; i++) {
		struct vio_desc v = buffer(d, i >= readable);
		v.flags |= i + 1 < n ? DESC_NEXT : 0;
		v.next = (uint16_t)(i + 1);
		if (wrong == i)
			v.next = (uint16_t)attack_number(a);
		if (wrong == i + 10) {
			v.flags |= DESC_NEXT; /* back to one before: a loop */
			v.next = (uint16_t)attack_below(a, i + 1);
		}
		if (wrong == i + 20) { /* a table, out of place */
			v.addr = attack_place(a, a->desc, 16, 16);
			v.flags = DESC_INDIRECT | (attack_one_in(a, 2) ? DESC_NEXT : 0);
		}
		memcpy((void *)(uintptr_t)(table + 16 * i), &v, sizeof v);
	}
}

static void send(struct driver *d, unsigned i, uint16_t head)
{
	struct ring *r = &d->ring[i];
	put16(r->avail + 4 + 2u * (r->idx % r->num), head);
	r->idx++;
	__atomic_thread_fence(__ATOMIC_RELEASE); /* the index after what it tells of */
	put16(r->avail + 2, r->idx);
	wr(d, REG_QUEUE_NOTIFY, i);
}

static void chain(struct driver *d, unsigned i)
{
	struct attacker *a = d->a;
	struct ring *r = &d->ring[i];
	if (attack_one_in(a, 3)) { /* by a table of its own */
		unsigned n = 1 + attack_below(a, 300);
		struct vio_desc v = {attack_place(a, a->desc, 16 * 300, 16), 16 * n, DESC_INDIRECT,
				     0};
		write_chain(d, v.addr, n);
		if (attack_one_in(a, 10))
			v.len = (uint32_t)attack_number(a);
		memcpy((void *)(uintptr_t)r->desc, &v, sizeof v);
	} else {
		write_chain(d, r->desc, r->num);
	}
	send(d, i, attack_one_in(a, 20) ? (uint16_t)attack_number(a) : 0);
}

/* Nearly a request of the device's kind: a head that makes sense, then buffers. */
static void request(struct driver *d, unsigned i)
{
	struct attacker *a = d->a;
	uint64_t at = (a->data + attack_random(a) % (a->bytes - 8192)) & ~UINT64_C(15);
	uint32_t *words = (uint32_t *)(uintptr_t)at;
	struct vio_desc v[3] = {{at, 16, DESC_NEXT, 1},
				buffer(d, attack_one_in(a, 2)),
				{at + 4096, 1, DESC_WRITE, 0}};
	v[1].flags |= DESC_NEXT;
	v[1].next = 2;
	if (d->id == VIO_ID_BLK) {
		static const uint32_t type[] = {0, 0, 1, 1, 4, 8, 11, 13};
		words[0] = type[attack_below(a, 8)];
		words[2] = attack_one_in(a, 4) ? (uint32_t)attack_number(a) : attack_below(a, 256);
		words[3] = attack_one_in(a, 20) ? (uint32_t)attack_number(a) : 0;
	} else if (d->id == VIO_ID_PMEM) {
		words[0] = attack_one_in(a, 8) ? (uint32_t)attack_number(a) : 0;
		v[0].len = 4;
		v[0].next = 2;
		v[2].len = 4;
	} else if (d->id == VIO_ID_BALLOON) {
		v[0] = buffer(d, false);
		v[0].len = attack_one_in(a, 8) ? v[0].len : 4 * (1 + attack_below(a, 256));
	} else {
		v[0] = v[1] = buffer(d, i == 0);
		v[0].flags &= (uint16_t)~DESC_NEXT;
	}
	if (d->ring[i].num < 3)
		return;
	memcpy((void *)(uintptr_t)d->ring[i].desc, v, sizeof v);
	send(d, i, 0);
}

/* Any register but the rings' addresses, whose places matter to us; any width. */
static void registers(struct driver *d)
{
	struct attacker *a = d->a;
	unsigned reg = attack_below(a, 0x48) * 4;
	uint64_t v = attack_number(a);
	if (reg >= REG_QUEUE_DESC && reg < REG_QUEUE_DEVICE + 8)
		return;
	if (reg == REG_STATUS && (uint32_t)v == 0)
		d->a->resets++;
	if (attack_one_in(a, 4))
		(void)cpu_mmio_read32(d->regs + reg);
	else
		wr(d, reg, (uint32_t)v);
}

static void config(struct driver *d)
{
	struct attacker *a = d->a;
	volatile uint8_t *at =
		(uint8_t *)(uintptr_t)(d->regs + REG_CONFIG + attack_below(a, 0x100));
	uint64_t v = attack_random(a);
	switch (attack_below(a, 6)) {
	case 0:
		*at = (uint8_t)v;
		break;
	case 1:
		*(volatile uint16_t *)at = (uint16_t)v;
		break;
	case 2:
		*(volatile uint32_t *)at = (uint32_t)v;
		break;
	case 3:
		*(volatile uint64_t *)at = v;
		break;
	case 4:
		(void)*at;
		break;
	case 5:
		(void)*(volatile uint64_t *)at;
		break;
	}
}

static void storm(struct driver *d)
{
	for (unsigned i = 0; i < STORM; i++)
		wr(d, REG_QUEUE_NOTIFY,
		   attack_one_in(d->a, 8) ? (uint32_t)attack_number(d->a)
					  : attack_below(d->a, QUEUES));
}

void attack_device(struct attacker *a, uint64_t regs, uint32_t id)
{
	struct driver d = {.a = a, .regs = regs, .id = id};
	if (id == VIO_ID_BALLOON && pages[0] == 0)
		for (unsigned i = 0; i < PAGES; i++)
			pages[i] =
				i % 64 == 5
					? UINT32_MAX - attack_below(a, 0x10000)
					: (uint32_t)((a->data >> 12) +
						     attack_below(a, (uint32_t)(a->bytes >> 12)));
	open(&d, false);
	for (; !attack_is_over(a); a->tries++) {
		unsigned i = attack_one_in(a, 3) ? attack_below(a, QUEUES) : id == VIO_ID_CONSOLE;
		struct ring *r = &d.ring[i];
		switch (attack_below(a, 32)) {
		case 0:
			open(&d, true);
			break;
		case 1:
			registers(&d);
			break;
		case 2:
		case 3:
			config(&d);
			break;
		case 4:
			storm(&d);
			break;
		case 5: /* the index jumps, or goes back */
			r->idx = (uint16_t)(r->idx + attack_number(a));
			put16(r->avail + 2, r->idx);
			wr(&d, REG_QUEUE_NOTIFY, i);
			break;
		case 6: /* into the rings, while the device may be at work on them */
			put16(attack_one_in(a, 2) ? r->used + attack_below(a, 1030)
						  : r->avail + attack_below(a, 262),
			      (uint16_t)attack_number(a));
			break;
		default:
			if (attack_one_in(a, 2))
				request(&d, i);
			else
				chain(&d, i);
		}
		if (a->tries % 8 == 7 && (cpu_mmio_read32(regs + REG_STATUS) &
					  (STATUS_NEEDS_RESET | STATUS_FAILED)) != 0) {
			a->stops++;
			open(&d, false);
		}
	}
	reset(&d);
}
