#include "guest/bare/vio.h"
#include "guest/bare/board.h"
#include "guest/bare/cpu.h"
#include "guest/bare/team.h"
#include "guest/bare/vio_regs.h"
#include <string.h>

#define WAIT_SECONDS 30

uint64_t vio_find(uint32_t id, unsigned k)
{
	for (unsigned i = 0; i < board.virtios; i++) {
		uint64_t regs = board.virtio[i];
		if (cpu_mmio_read32(regs + REG_MAGIC) == 0x74726976 &&
		    cpu_mmio_read32(regs + REG_VERSION) == 2 &&
		    cpu_mmio_read32(regs + REG_DEVICE_ID) == id && k-- == 0)
			return regs;
	}
	return 0;
}

uint64_t vio_offered(uint64_t regs)
{
	cpu_mmio_write32(regs + REG_DEVICE_FEATURES_SEL, 0);
	uint64_t low = cpu_mmio_read32(regs + REG_DEVICE_FEATURES);
	cpu_mmio_write32(regs + REG_DEVICE_FEATURES_SEL, 1);
	return (uint64_t)cpu_mmio_read32(regs + REG_DEVICE_FEATURES) << 32 | low;
}

static void add_status(uint64_t regs, uint32_t bit)
{
	cpu_mmio_write32(regs + REG_STATUS, cpu_mmio_read32(regs + REG_STATUS) | bit);
}

const char *vio_open(uint64_t regs, uint64_t want, uint64_t *features)
{
	vio_close(regs);
	add_status(regs, STATUS_ACKNOWLEDGE);
	add_status(regs, STATUS_DRIVER);
	*features = vio_offered(regs) & (want | VIO_F_VERSION_1);
	if ((*features & VIO_F_VERSION_1) == 0)
		return "the device doesn't offer VERSION_1";
	cpu_mmio_write32(regs + REG_DRIVER_FEATURES_SEL, 0);
	cpu_mmio_write32(regs + REG_DRIVER_FEATURES, (uint32_t)*features);
	cpu_mmio_write32(regs + REG_DRIVER_FEATURES_SEL, 1);
	cpu_mmio_write32(regs + REG_DRIVER_FEATURES, (uint32_t)(*features >> 32));
	add_status(regs, STATUS_FEATURES_OK);
	if ((cpu_mmio_read32(regs + REG_STATUS) & STATUS_FEATURES_OK) == 0)
		return "the device refuses the features that it offered";
	return NULL;
}

static void write_address(uint64_t reg, const void *at)
{
	cpu_mmio_write32(reg, (uint32_t)(uintptr_t)at);
	cpu_mmio_write32(reg + 4, (uint32_t)((uintptr_t)at >> 32));
}

const char *vio_queue_open(struct vio_queue *q, uint64_t regs, uint16_t number)
{
	memset(q, 0, sizeof *q);
	q->regs = regs;
	q->number = number;
	q->avail.flags = AVAIL_NO_INTERRUPT;
	cpu_mmio_write32(regs + REG_QUEUE_SEL, number);
	if (cpu_mmio_read32(regs + REG_QUEUE_READY) != 0)
		return "a queue is ready after reset";
	uint32_t max = cpu_mmio_read32(regs + REG_QUEUE_NUM_MAX);
	if (max == 0)
		return "a queue is missing";
	for (q->size = VIO_QUEUE_MAX; q->size > max; q->size /= 2)
		;
	cpu_mmio_write32(regs + REG_QUEUE_NUM, q->size);
	write_address(regs + REG_QUEUE_DESC, q->desc);
	write_address(regs + REG_QUEUE_DRIVER, &q->avail);
	write_address(regs + REG_QUEUE_DEVICE, &q->used);
	cpu_mmio_write32(regs + REG_QUEUE_READY, 1);
	return NULL;
}

void vio_interrupts(struct vio_queue *q, bool on)
{
	__atomic_store_n(&q->avail.flags, on ? 0 : AVAIL_NO_INTERRUPT, __ATOMIC_RELAXED);
	/* Before the next look at used.idx: the device looks at flags after it wrote that. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

bool vio_pending(const struct vio_queue *q)
{
	return __atomic_load_n(&q->used.idx, __ATOMIC_RELAXED) != q->seen;
}

void vio_acknowledge(uint64_t regs)
{
	uint32_t status = cpu_mmio_read32(regs + REG_INTERRUPT_STATUS);
	if (status != 0)
		cpu_mmio_write32(regs + REG_INTERRUPT_ACK, status);
}

void vio_go(uint64_t regs)
{
	add_status(regs, STATUS_DRIVER_OK);
}

void vio_close(uint64_t regs)
{
	cpu_mmio_write32(regs + REG_STATUS, 0);
	while (cpu_mmio_read32(regs + REG_STATUS) != 0)
		cpu_pause();
}

uint8_t vio_config8(uint64_t regs, unsigned offset)
{
	return cpu_mmio_read8(regs + REG_CONFIG + offset);
}

uint32_t vio_config32(uint64_t regs, unsigned offset)
{
	return cpu_mmio_read32(regs + REG_CONFIG + offset);
}

void vio_config_write32(uint64_t regs, unsigned offset, uint32_t v)
{
	cpu_mmio_write32(regs + REG_CONFIG + offset, v);
}

uint64_t vio_config64(uint64_t regs, unsigned offset)
{
	for (;;) {
		uint32_t before = cpu_mmio_read32(regs + REG_CONFIG_GENERATION);
		uint64_t low = vio_config32(regs, offset), high = vio_config32(regs, offset + 4);
		if (cpu_mmio_read32(regs + REG_CONFIG_GENERATION) == before)
			return high << 32 | low;
	}
}

void vio_begin(struct vio_queue *q)
{
	q->filled = 0;
}

uint16_t vio_add(struct vio_queue *q, const struct vio_piece *piece, unsigned n)
{
	uint16_t id = q->filled;
	for (unsigned i = 0; i < n; i++) {
		struct vio_desc *d = &q->desc[q->filled++];
		d->addr = (uintptr_t)piece[i].at;
		d->len = piece[i].len;
		d->flags = (uint16_t)((i + 1 < n ? DESC_NEXT : 0) |
				      (piece[i].device_writes ? DESC_WRITE : 0));
		d->next = i + 1 < n ? q->filled : 0;
	}
	q->avail.ring[q->avail.idx % q->size] = id;
	/* Release: the device that sees the index sees the descriptors and the ring. */
	__atomic_store_n(&q->avail.idx, (uint16_t)(q->avail.idx + 1), __ATOMIC_RELEASE);
	return id;
}

void vio_kick(struct vio_queue *q)
{
	cpu_mmio_write32(q->regs + REG_QUEUE_NOTIFY, q->number);
}

bool vio_poll(struct vio_queue *q, uint32_t *id, uint32_t *len)
{
	/* Acquire: with the index come the used element and what the device wrote. */
	if (__atomic_load_n(&q->used.idx, __ATOMIC_ACQUIRE) == q->seen)
		return false;
	*id = q->used.ring[q->seen % q->size].id;
	*len = q->used.ring[q->seen % q->size].len;
	q->seen++;
	return true;
}

bool vio_wait(struct vio_queue *q, uint32_t *id, uint32_t *len)
{
	uint64_t start = cpu_tsc(), limit = team_cycles(WAIT_SECONDS);
	while (!vio_poll(q, id, len)) {
		if (cpu_tsc() - start > limit)
			return false;
		cpu_pause();
	}
	return true;
}
