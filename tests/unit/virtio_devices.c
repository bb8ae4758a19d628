/* The transport, the queues, the console and the entropy device, by a well-behaved driver. */
#include "virtio_fake.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <linux/virtio_config.h>
#include <linux/virtio_mmio.h>
#include <linux/virtio_ring.h>
#include <string.h>
#include <unistd.h>

#define ALL      UINT64_MAX
#define NO_EVENT (ALL & ~(1ull << VIRTIO_RING_F_EVENT_IDX))
#define STATUS   VIRTIO_MMIO_STATUS

struct sink {
	char bytes[65536];
	size_t n, room; /* room: bytes it still takes */
};

static size_t sink_take(void *ctx, const char *bytes, size_t n)
{
	struct sink *s = ctx;
	n = n < s->room ? n : s->room;
	memcpy(s->bytes + s->n, bytes, n);
	s->n += n;
	s->room -= n;
	return n;
}

static void rng(struct drv *t)
{
	drv_init(t);
	cr_assert_eq(virtio_rng_create(&t->dev, &t->env), 0);
}

static void console(struct drv *t, struct sink *s)
{
	memset(s, 0, sizeof(*s));
	s->room = sizeof(s->bytes);
	drv_init(t);
	cr_assert_eq(virtio_console_create(&t->dev, &t->env, sink_take, s), 0);
}

Test(virtio_mmio, identity)
{
	struct drv t;
	rng(&t);
	cr_assert_eq(drv_rd(&t, 0x000), 0x74726976);
	cr_assert_eq(drv_rd(&t, 0x004), 2);
	cr_assert_eq(drv_rd(&t, 0x008), 4);
	cr_assert_eq(virtio_id(t.dev), 4);
	cr_assert_str_eq(virtio_name(t.dev), "virtio-rng");
	drv_wr(&t, VIRTIO_MMIO_QUEUE_SEL, 1);
	cr_assert_eq(drv_rd(&t, VIRTIO_MMIO_QUEUE_NUM_MAX), 0, "the device has one queue");
	cr_assert_eq(drv_rd(&t, VIRTIO_MMIO_SHM_LEN_LOW), UINT32_MAX);
	cr_assert_eq(drv_rd(&t, VIRTIO_MMIO_CONFIG_GENERATION), 0);
	/* Only aligned accesses of 32 bits reach registers. */
	uint8_t b[16];
	memset(b, 0xaa, sizeof(b));
	virtio_mmio_access(t.dev, 0, b, 8, false);
	for (int i = 0; i < 8; i++)
		cr_assert_eq(b[i], 0);
	virtio_mmio_access(t.dev, 2, b, 4, false);
	cr_assert_eq(b[0] | b[1], 0);
	virtio_mmio_access(t.dev, UINT64_MAX, b, 8, false);
	virtio_mmio_access(t.dev, UINT64_MAX - 3, b, 4, true);
	drv_fini(&t);
}

Test(virtio_mmio, status_goes_in_order)
{
	struct drv t;
	rng(&t);
	drv_wr(&t, STATUS, 2);
	cr_assert_eq(drv_rd(&t, STATUS), 0, "DRIVER without ACKNOWLEDGE");
	drv_wr(&t, STATUS, 1);
	drv_wr(&t, STATUS, 4 | 1);
	cr_assert_eq(drv_rd(&t, STATUS), 1, "DRIVER_OK too early");
	drv_wr(&t, STATUS, 3);
	/* FEATURES_OK is refused without VERSION_1, and with what isn't offered. */
	drv_wr(&t, STATUS, 0xb);
	cr_assert_eq(drv_rd(&t, STATUS), 3);
	drv_wr(&t, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
	drv_wr(&t, VIRTIO_MMIO_DRIVER_FEATURES, 1 | 1u << 2);
	drv_wr(&t, STATUS, 0xb);
	cr_assert_eq(drv_rd(&t, STATUS), 3, "the packed ring isn't offered");
	drv_wr(&t, VIRTIO_MMIO_DRIVER_FEATURES, 1);
	/* Queues can't be set up yet. */
	drv_wr(&t, VIRTIO_MMIO_QUEUE_READY, 1);
	cr_assert_eq(drv_rd(&t, VIRTIO_MMIO_QUEUE_READY), 0);
	drv_wr(&t, STATUS, 0xb);
	cr_assert_eq(drv_rd(&t, STATUS), 0xb);
	/* No bit can be taken back but all. */
	drv_wr(&t, STATUS, 1);
	cr_assert_eq(drv_rd(&t, STATUS), 0xb);
	drv_wr(&t, VIRTIO_MMIO_QUEUE_NUM, 3);
	drv_wr(&t, VIRTIO_MMIO_QUEUE_READY, 1);
	cr_assert_eq(drv_rd(&t, VIRTIO_MMIO_QUEUE_READY), 0, "3 is no queue size");
	cr_assert_eq(atomic_load(&t.said), 1);
	drv_wr(&t, VIRTIO_MMIO_QUEUE_NUM, 16);
	drv_wr(&t, VIRTIO_MMIO_QUEUE_DESC_LOW, 8);
	drv_wr(&t, VIRTIO_MMIO_QUEUE_READY, 1);
	cr_assert_eq(drv_rd(&t, VIRTIO_MMIO_QUEUE_READY), 0, "misaligned");
	drv_wr(&t, VIRTIO_MMIO_QUEUE_DESC_LOW, 0xfffffff0);
	drv_wr(&t, VIRTIO_MMIO_QUEUE_DESC_HIGH, 0xffffffff);
	drv_wr(&t, VIRTIO_MMIO_QUEUE_READY, 1);
	cr_assert_eq(drv_rd(&t, VIRTIO_MMIO_QUEUE_READY), 0, "wraps");
	drv_wr(&t, STATUS, 0x8b);
	cr_assert_eq(drv_rd(&t, STATUS), 0x8b);
	drv_wr(&t, STATUS, 0);
	cr_assert_eq(drv_rd(&t, STATUS), 0);
	drv_fini(&t);
}

Test(virtio_rng, fills)
{
	struct drv t;
	uint8_t got[8000], zero[64] = {0};
	rng(&t);
	for (int pass = 0; pass < 4; pass++) {
		drv_start(&t, pass & 1 ? ALL : NO_EVENT, 1);
		for (int i = 0; i < 300; i++) {
			uint32_t len;
			uint16_t id, head;
			struct seg s[2] = {{0x20000 - 32, 64, true}, {0x30000, 100, true}};
			head = drv_add(&t, 0, s, 2, pass & 2 ? 0x40000 : 0);
			drv_kick(&t, 0);
			drv_wait(&t, 0, &id, &len);
			cr_assert_eq(len, 164);
			cr_assert_eq(id, head);
		}
		fake_get(&t.mem, 0x20000 - 32, got, 64);
		cr_assert(memcmp(got, zero, 64));
		struct seg large = {0x20000, 8000, true};
		uint32_t len;
		drv_add(&t, 0, &large, 1, 0);
		drv_kick(&t, 0);
		drv_wait(&t, 0, NULL, &len);
		cr_assert_eq(len, 4096);
		drv_reset(&t);
	}
	cr_assert_eq(atomic_load(&t.said), 0);
	drv_fini(&t);
}

/* Interrupts: level, acknowledgement, suppression by flag and by event index. */
Test(virtio_queue, interrupts)
{
	struct drv t;
	struct seg s = {0x20000, 16, true};
	rng(&t);
	drv_start(&t, NO_EVENT, 1);
	drv_add(&t, 0, &s, 1, 0);
	drv_kick(&t, 0);
	drv_wait(&t, 0, NULL, NULL);
	cr_assert(atomic_load(&t.irq));
	cr_assert_eq(drv_rd(&t, VIRTIO_MMIO_INTERRUPT_STATUS), 1);
	drv_wr(&t, VIRTIO_MMIO_INTERRUPT_ACK, 2);
	cr_assert(atomic_load(&t.irq));
	drv_wr(&t, VIRTIO_MMIO_INTERRUPT_ACK, 1);
	cr_assert(!atomic_load(&t.irq));
	fake_store16(&t.mem, t.q[0].avail, VRING_AVAIL_F_NO_INTERRUPT);
	drv_add(&t, 0, &s, 1, 0);
	drv_kick(&t, 0);
	drv_wait(&t, 0, NULL, NULL);
	cr_assert(!atomic_load(&t.irq));
	drv_reset(&t);

	drv_start(&t, ALL, 1);
	uint64_t used_event = t.q[0].avail + 4 + 2 * DRV_NUM;
	uint64_t avail_event = t.q[0].used + 4 + 8 * DRV_NUM;
	int before = atomic_load(&t.irqs);
	for (int i = 0; i < 1000; i++) {
		/* An interrupt only for every tenth. */
		if (i % 10 == 0)
			fake_store16(&t.mem, used_event, (uint16_t)(i + 9));
		drv_add(&t, 0, &s, 1, 0);
		drv_kick(&t, 0);
		drv_wait(&t, 0, NULL, NULL);
		drv_step(&t, 0);
		cr_assert_eq(fake_load16(&t.mem, avail_event), (uint16_t)(i + 1));
		/* The very first one comes unasked. */
		cr_assert_eq(atomic_load(&t.irq), i % 10 == 9 || !i, "%d", i);
		drv_wr(&t, VIRTIO_MMIO_INTERRUPT_ACK, 1);
	}
	cr_assert_eq(atomic_load(&t.irqs) - before, 101);
	drv_fini(&t);
}

/* Each way a driver can break the rules stops the device, says so once, and is healed by a reset. */
Test(virtio_queue, broken_rings)
{
	struct drv t;
	struct seg ok = {0x20000, 16, true};
	rng(&t);
	for (int what = 0; what < 18; what++) {
		struct drv_queue *q = &t.q[0];
		struct vring_desc d = {0x20000, 16, VRING_DESC_F_WRITE, 0};
		struct vring_desc table[4] = {
			{0x20000, 16, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, 1},
			{0x21000, 16, VRING_DESC_F_WRITE, 0}};
		int said = atomic_load(&t.said);
		uint16_t idx = 1, head = 0;
		uint64_t mask = NO_EVENT;
		switch (what) {
		case 0: /* a loop */
			d.flags |= VRING_DESC_F_NEXT;
			break;
		case 1:
			d.flags |= VRING_DESC_F_NEXT;
			d.next = DRV_NUM;
			break;
		case 2:
			d.len = 0;
			break;
		case 3:
			d.addr = FAKE_BYTES - 8;
			break;
		case 4:
			d.addr = UINT64_MAX - 8;
			break;
		case 5:
			idx = DRV_NUM + 1;
			break;
		case 6:
			head = DRV_NUM;
			break;
		case 7: /* a table of an odd size */
			d = (struct vring_desc){0x40000, 24, VRING_DESC_F_INDIRECT, 0};
			break;
		case 8:
			d = (struct vring_desc){0x40000, 0, VRING_DESC_F_INDIRECT, 0};
			break;
		case 9:
			d = (struct vring_desc){0x40000, 16 * 257, VRING_DESC_F_INDIRECT, 0};
			break;
		case 10:
			d = (struct vring_desc){FAKE_BYTES, 32, VRING_DESC_F_INDIRECT, 0};
			break;
		case 11: /* table in table */
			d = (struct vring_desc){0x40000, 32, VRING_DESC_F_INDIRECT, 0};
			table[1].flags = VRING_DESC_F_INDIRECT;
			break;
		case 12: /* loop in table */
			d = (struct vring_desc){0x40000, 32, VRING_DESC_F_INDIRECT, 0};
			table[1].flags |= VRING_DESC_F_NEXT;
			break;
		case 13: /* next outside the table */
			d = (struct vring_desc){0x40000, 32, VRING_DESC_F_INDIRECT, 0};
			table[0].next = 2;
			break;
		case 14: /* readable after writable */
			d = (struct vring_desc){0x40000, 32, VRING_DESC_F_INDIRECT, 0};
			table[1].flags = 0;
			break;
		case 15: /* indirect and next */
			d = (struct vring_desc){0x40000, 32,
						VRING_DESC_F_INDIRECT | VRING_DESC_F_NEXT, 1};
			break;
		case 16: /* indirect, not agreed on */
			d = (struct vring_desc){0x40000, 32, VRING_DESC_F_INDIRECT, 0};
			mask &= ~(1ull << VIRTIO_RING_F_INDIRECT_DESC);
			break;
		case 17: /* more than a chain may have */
			d = (struct vring_desc){0x40000, 32, VRING_DESC_F_INDIRECT, 0};
			table[0].addr = table[1].addr = 0;
			table[0].len = table[1].len = 4 * MiB;
			break;
		}
		drv_start(&t, mask, 1);
		fake_put(&t.mem, q->desc, &d, sizeof(d));
		fake_put(&t.mem, 0x40000, table, sizeof(table));
		fake_put(&t.mem, q->avail + 4, &head, 2);
		fake_store16(&t.mem, q->avail + 2, idx);
		drv_kick(&t, 0);
		drv_step(&t, 0);
		cr_assert_eq(drv_rd(&t, STATUS), 0x4f, "case %d", what);
		cr_assert_eq(drv_rd(&t, VIRTIO_MMIO_INTERRUPT_STATUS), 2, "case %d", what);
		cr_assert(atomic_load(&t.irq));
		/* After 16 lines and the word that there are more it says nothing. */
		cr_assert_eq(atomic_load(&t.said), what < 17 ? said + 1 : said);
		drv_kick(&t, 0);
		drv_step(&t, 0);
		cr_assert_eq(drv_rd(&t, STATUS), 0x4f);
		drv_reset(&t);
		/* Healed. */
		drv_start(&t, ALL, 1);
		drv_add(&t, 0, &ok, 1, 0);
		drv_kick(&t, 0);
		drv_wait(&t, 0, NULL, NULL);
		drv_reset(&t);
	}
	drv_fini(&t);
}

/* -EAGAIN at every single access to guest memory: nothing is lost, nothing done twice. */
Test(virtio_queue, no_frame_at_any_point)
{
	struct drv t;
	struct sink s;
	console(&t, &s);
	for (int pass = 0; pass < 2; pass++) {
		drv_start(&t, pass ? ALL : NO_EVENT, 2);
		fake_put(&t.mem, 0x20000, "hello world", 11);
		struct seg seg[2] = {{0x20000, 6, false}, {0x20006, 5, false}};
		bool hit = true;
		for (int at = 0; hit; at++) {
			s.n = 0;
			uint64_t maps = t.mem.maps;
			drv_add(&t, 1, seg, 2, at & 1 ? 0x40000 : 0);
			t.mem.skip = at;
			t.mem.fail = 3;
			t.mem.error = -EAGAIN;
			drv_kick(&t, 1);
			for (int i = 0; i < 5; i++) {
				drv_step(&t, 0);
				virtio_retry(t.dev);
			}
			drv_wait(&t, 1, NULL, NULL);
			drv_step(&t, 0);
			cr_assert(!drv_used(&t, 1, NULL, NULL));
			cr_assert_eq(s.n, 11, "at %d: %zu", at, s.n);
			cr_assert(!memcmp(s.bytes, "hello world", 11));
			hit = t.mem.fail < 3;
			t.mem.fail = 0;
			cr_assert_lt(t.mem.maps - maps, 100);
			cr_assert_lt(at, 100);
		}
		drv_reset(&t);
	}
	cr_assert_eq(atomic_load(&t.said), 0);
	drv_fini(&t);
}

Test(virtio_console, output_with_back_pressure)
{
	struct drv t;
	struct sink s;
	char text[20000], got[20000];
	console(&t, &s);
	drv_start(&t, ALL, 2);
	for (size_t i = 0; i < sizeof(text); i++)
		text[i] = (char)fill_byte(i);
	fake_put(&t.mem, 0x20123, text, sizeof(text));
	s.room = 0;
	struct seg seg[2] = {{0x20123, 12345, false}, {0x20123 + 12345, 20000 - 12345, false}};
	drv_add(&t, 1, seg, 2, 0);
	drv_kick(&t, 1);
	size_t given = 0;
	for (int i = 0; given < sizeof(text); i++) {
		cr_assert_eq(s.n, given);
		cr_assert(!drv_used(&t, 1, NULL, NULL));
		cr_assert_eq(atomic_load(&t.mem.pinned), 0, "a stalled console pins nothing");
		s.room = 700;
		given = given + 700 < sizeof(text) ? given + 700 : sizeof(text);
		virtio_retry(t.dev);
		for (int j = 0; j < 3; j++)
			drv_step(&t, 0);
		s.room = 0;
	}
	drv_wait(&t, 1, NULL, NULL);
	memcpy(got, s.bytes, sizeof(got));
	cr_assert(!memcmp(got, text, sizeof(text)));
	/* A reset forgets what was half given. */
	s.room = 10;
	drv_add(&t, 1, seg, 1, 0);
	drv_kick(&t, 1);
	drv_step(&t, 0);
	drv_step(&t, 0);
	drv_reset(&t);
	drv_start(&t, ALL, 2);
	s.n = 0;
	s.room = sizeof(s.bytes);
	drv_add(&t, 1, seg, 1, 0);
	drv_kick(&t, 1);
	drv_wait(&t, 1, NULL, NULL);
	cr_assert_eq(s.n, 12345);
	cr_assert(!memcmp(s.bytes, text, 12345));
	drv_fini(&t);
}

static void on_room(void *ctx)
{
	++*(int *)ctx;
}

Test(virtio_console, input)
{
	struct drv t;
	struct sink s;
	char text[6000], got[6000];
	int room = 0;
	uint32_t len;
	console(&t, &s);
	virtio_console_on_room(t.dev, on_room, &room);
	for (size_t i = 0; i < sizeof(text); i++)
		text[i] = (char)fill_byte(i);
	/* Before there is a driver, 4 KiB are kept. */
	cr_assert_eq(virtio_console_input(t.dev, text, sizeof(text)), 4096);
	cr_assert_eq(virtio_console_input(t.dev, text, 1), 0);
	drv_step(&t, 0);
	drv_start(&t, ALL, 2);
	struct seg seg[2] = {{0x20ff0, 1000, true}, {0x30000, 4000, true}};
	drv_add(&t, 0, seg, 1, 0);
	drv_add(&t, 0, seg + 1, 1, 0);
	drv_kick(&t, 0);
	drv_wait(&t, 0, NULL, &len);
	cr_assert_eq(len, 1000);
	drv_wait(&t, 0, NULL, &len);
	cr_assert_eq(len, 3096);
	cr_assert_eq(room, 1);
	fake_get(&t.mem, 0x20ff0, got, 1000);
	fake_get(&t.mem, 0x30000, got + 1000, 3096);
	cr_assert(!memcmp(text, got, 4096));
	/* And byte by byte, the ring of 4 KiB running around. */
	for (int i = 0; i < 5000; i++) {
		char c = (char)i, back;
		cr_assert_eq(virtio_console_input(t.dev, &c, 1), 1);
		drv_add(&t, 0, seg, 1, 0);
		if (i & 1)
			drv_kick(&t, 0);
		drv_wait(&t, 0, NULL, &len);
		fake_get(&t.mem, 0x20ff0, &back, 1);
		cr_assert_eq(back, c);
		cr_assert_eq(len, 1);
	}
	drv_fini(&t);
}
