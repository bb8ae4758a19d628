/* The table's memory: layout, creation, attachment, and how much of it is populated. */
#include "ipt/table.h"
#include "ipt/cluster.h"
#include "ipt/fail.h"
#include "ipt/sealed.h"
#include "ipt/single.h"
#include "ipt/zone.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static uint64_t round_up(uint64_t v, uint64_t to)
{
	return (v + to - 1) / to * to;
}

static bool config_valid(const struct ipt_config *c)
{
	return (c->kind == IPT_INDEX || c->kind == IPT_RADIX) && c->frames >= 1 &&
	       c->frames <= IPT_MAX_FRAMES && c->max_vms >= 1 && c->max_vms <= IPT_MAX_VMS - 1 &&
	       c->nodes >= 1 && c->nodes <= IPT_MAX_NODES && c->colours >= 1 &&
	       c->colours <= IPT_MAX_COLOURS && (c->colours & (c->colours - 1)) == 0 &&
	       c->packed_pages <= IPT_MAX_PACKED && c->blocks <= IPT_MAX_BLOCKS &&
	       (c->kind == IPT_INDEX || (!c->packed_pages && !c->blocks));
}

/* Zones begin at multiples of 2 MiB, or of less in pools too small for that to be an even split. */
static uint32_t zone_frames(const struct ipt_config *c)
{
	uint32_t grain = 1u << IPT_MAX_ORDER;

	while (grain > 1 && grain * c->nodes * 4 > c->frames)
		grain /= 2;
	return (uint32_t)round_up((c->frames + c->nodes - 1) / c->nodes, grain);
}

/* Slots are on pages of the array that they have for themselves, as many as numbers go: see slot.h. */
static void slots_layout(struct table_layout *l, const struct ipt_config *c)
{
	uint32_t first = (uint32_t)round_up(c->frames, PAGE_SIZE / 8);
	uint64_t wanted = (uint64_t)c->frames * (c->packed_pages || c->blocks ? 4 : 1);

	l->slot_first = c->kind == IPT_INDEX ? first : c->frames;
	l->slot_end = l->slot_first;
	if (c->kind == IPT_INDEX)
		l->slot_end +=
			wanted < IPT_MAX_FRAMES - first ? (uint32_t)wanted : IPT_MAX_FRAMES - first;
}

/* Room for twice a stripe's share of singles (every frame mapped alone, every slot used), and of half its
 * share in clusters of four frames; beyond that clusters go in as singles. A single stripe gets everything
 * that can come, so twice its share too. */
static void index_layout(struct table_layout *l, const struct ipt_config *c)
{
	const uint64_t lines_per_page = PAGE_SIZE / TABLE_LINE;
	uint64_t all = (uint64_t)c->frames + l->slot_end - l->slot_first;
	uint64_t share = (all + l->nstripes - 1) / l->nstripes;

	l->single_cap = (uint32_t)round_up(share * 2 / SINGLE_SLOTS + 1, lines_per_page);
	l->cluster_cap = (uint32_t)round_up(share / 4 * 2 / CLUSTER_SLOTS + 1, lines_per_page);
	l->stripe_bytes = ((uint64_t)l->single_cap + l->cluster_cap) * TABLE_LINE;
	/* An odd number of pages, or the stripes' first pages would share a few TLB sets. */
	l->stripe_bytes |= PAGE_SIZE;
	l->end = l->forward + l->stripe_bytes * l->nstripes;
}

/* Pages for the worst case of a page at each lower level for every frame. */
static void radix_layout(struct table_layout *l, const struct ipt_config *c)
{
	uint64_t pages = (uint64_t)c->frames * 3 + (uint64_t)c->max_vms * 4 + 64;

	l->page_cap = (uint32_t)round_up(pages, 64);
	l->page_base = l->forward + round_up(l->page_cap / 8, PAGE_SIZE);
	l->end = l->page_base + l->page_cap * PAGE_SIZE;
}

int table_layout(struct table_layout *l, const struct ipt_config *c)
{
	if (!config_valid(c))
		return -EINVAL;
	memset(l, 0, sizeof(*l));
	l->nstripes = 1;
	while (l->nstripes < TABLE_MAX_STRIPES &&
	       (uint64_t)l->nstripes * TABLE_STRIPE_FRAMES < c->frames)
		l->nstripes *= 2;
	l->zone_frames = zone_frames(c);
	slots_layout(l, c);

	l->vms = round_up(sizeof(struct table_header), PAGE_SIZE);
	l->names = l->vms + round_up((c->max_vms + 1) * sizeof(struct vm_slot), PAGE_SIZE);
	l->regions = l->names + round_up((c->max_vms + 1) * sizeof(uint32_t), PAGE_SIZE);
	l->stripes = l->regions +
		     round_up((uint64_t)(c->max_vms + 1) * IPT_MAX_REGIONS * sizeof(struct region),
			      PAGE_SIZE);
	l->zones = l->stripes + round_up(l->nstripes * sizeof(struct stripe), PAGE_SIZE);
	l->chains = l->zones + round_up((c->nodes + 1) * sizeof(struct zone), PAGE_SIZE);
	l->words = l->chains + round_up(TABLE_CHAINS * sizeof(struct chain), PAGE_SIZE);
	l->side = l->words + round_up((uint64_t)l->slot_end * 8, PAGE_SIZE);
	l->links = l->side + round_up((uint64_t)c->frames * 4, PAGE_SIZE);
	l->arenas = l->links +
		    round_up((uint64_t)(l->slot_end - l->slot_first) * sizeof(struct slot_link),
			     PAGE_SIZE);
	l->packed = l->arenas + round_up(TABLE_ARENAS * sizeof(struct arena), PAGE_SIZE);
	l->blocks = l->packed + round_up((uint64_t)c->packed_pages * 8, PAGE_SIZE);
	l->bad = l->blocks + round_up(((uint64_t)c->blocks + 63) / 64 * 8, PAGE_SIZE);
	l->forward = l->bad + round_up((uint64_t)c->frames / 4 + 8, PAGE_SIZE);
	if (c->kind == IPT_INDEX)
		index_layout(l, c);
	else
		radix_layout(l, c);
	return 0;
}

static int header_init(struct ipt *t)
{
	struct table_header *h = t->header;
	int err;

	h->magic = TABLE_MAGIC;
	h->layout = TABLE_LAYOUT;
	h->config = t->config;
	h->bytes = t->layout.end;
	err = lock_init(&h->registry);
	if (!err)
		err = lock_init(&h->pages);
	for (uint32_t s = 0; !err && s < t->layout.nstripes; s++)
		err = lock_init(&t->stripes[s].lock);
	for (unsigned z = 0; !err && z < zone_count(t); z++) {
		err = lock_init(&t->zones[z].lock);
		zone_init(t, z);
	}
	for (unsigned c = 0; !err && c < TABLE_CHAINS; c++)
		err = lock_init(&t->chains[c].lock);
	/* Without space nobody takes these, and their page stays away. */
	for (unsigned i = 0;
	     !err && i < TABLE_ARENAS && (t->config.packed_pages || t->config.blocks); i++)
		err = lock_init(&t->arenas[i].lock);
	return err;
}

/* Map the whole of t->fd and point at its parts. */
static int map_parts(struct ipt *t)
{
	uint8_t *base = sealed_map_apart(t->fd, t->layout.end, NULL);

	if (!base)
		return -errno;
	t->header = (struct table_header *)base;
	t->vms = (struct vm_slot *)(base + t->layout.vms);
	t->names = (_Atomic uint32_t *)(base + t->layout.names);
	t->stripes = (struct stripe *)(base + t->layout.stripes);
	t->zones = (struct zone *)(base + t->layout.zones);
	t->regions = (struct region *)(base + t->layout.regions);
	t->chains = (struct chain *)(base + t->layout.chains);
	t->links = (struct slot_link *)(base + t->layout.links);
	t->arenas = (struct arena *)(base + t->layout.arenas);
	t->packed = (_Atomic uint64_t *)(base + t->layout.packed);
	t->blocks = (_Atomic uint64_t *)(base + t->layout.blocks);
	t->bad = (_Atomic uint64_t *)(base + t->layout.bad);
	t->words = (_Atomic uint64_t *)(base + t->layout.words);
	t->side = (_Atomic uint32_t *)(base + t->layout.side);
	t->forward = base + t->layout.forward;
	t->stripe_mask = t->layout.nstripes - 1;
	t->frames = t->config.frames;
	t->max_vms = t->config.max_vms;
	t->kind = t->config.kind;
	hash_init(&t->keys, t->config.seed);
	return 0;
}

int ipt_rest(const struct ipt *t)
{
	return sealed_map_apart(t->fd, t->layout.end, t->header) ? 0 : -errno;
}

static void handle_free(struct ipt *t)
{
	if (t->header)
		sealed_unmap_apart(t->header, t->layout.end);
	if (t->fd >= 0)
		close(t->fd);
	free(t);
}

int ipt_create(struct ipt **out, const struct ipt_config *config)
{
	struct table_layout layout;
	int err = table_layout(&layout, config);

	if (err)
		return err;
	struct ipt *t = aligned_alloc(TABLE_LINE, round_up(sizeof(*t), TABLE_LINE));
	if (!t)
		return -ENOMEM;
	memset(t, 0, sizeof(*t));
	t->layout = layout;
	t->config = *config;
	t->fd = fail_call(IPT_CREATE, sealed_memfd("invisor-table", layout.end));
	if (t->fd < 0)
		err = -errno;
	if (!err)
		err = map_parts(t);
	if (!err)
		err = header_init(t);
	if (err) {
		handle_free(t);
		return err;
	}
	__atomic_store_n(&t->header->ready, 1, __ATOMIC_RELEASE);
	*out = t;
	return 0;
}

/* Read and check the header of a table that somebody else made. */
static int header_read(int fd, struct ipt_config *config, struct table_layout *layout)
{
	struct table_header h;
	struct stat st;
	ssize_t n = pread(fd, &h, sizeof(h), 0);

	if (n < 0)
		return -errno;
	if (n != sizeof(h) || h.magic != TABLE_MAGIC || h.layout != TABLE_LAYOUT || !h.ready)
		return -EPROTO;
	if (table_layout(layout, &h.config) || h.bytes != layout->end)
		return -EPROTO;
	if (fstat(fd, &st))
		return -errno;
	if ((uint64_t)st.st_size != layout->end)
		return -EPROTO;
	*config = h.config;
	return 0;
}

int ipt_attach(struct ipt **out, int fd)
{
	struct table_layout layout;
	struct ipt_config config;
	int err = header_read(fd, &config, &layout);

	if (err)
		return err == -ESPIPE || err == -EISDIR ? -EPROTO : err;
	struct ipt *t = aligned_alloc(TABLE_LINE, round_up(sizeof(*t), TABLE_LINE));
	if (!t)
		return -ENOMEM;
	memset(t, 0, sizeof(*t));
	t->layout = layout;
	t->config = config;
	t->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	err = t->fd < 0 ? -errno : map_parts(t);
	if (err) {
		handle_free(t);
		return err;
	}
	*out = t;
	return 0;
}

void ipt_detach(struct ipt *t)
{
	if (t)
		handle_free(t);
}

int ipt_fd(const struct ipt *t)
{
	return t->fd;
}

const struct ipt_config *ipt_config(const struct ipt *t)
{
	return &t->config;
}

bool table_populated(const struct ipt *t, uint64_t from, uint64_t to, uint64_t *start,
		     uint64_t *end)
{
	off_t data, hole;

	if (from >= to)
		return false;
	data = lseek(t->fd, (off_t)from, SEEK_DATA);
	if (data < 0 || (uint64_t)data >= to)
		return false;
	hole = lseek(t->fd, data, SEEK_HOLE);
	*start = (uint64_t)data;
	*end = hole < 0 || (uint64_t)hole > to ? to : (uint64_t)hole;
	return true;
}

int table_punch(const struct ipt *t, uint64_t from, uint64_t to)
{
	if (from >= to)
		return 0;
	return fallocate(t->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)from,
			 (off_t)(to - from))
		       ? -errno
		       : 0;
}

static uint64_t populated_bytes(const struct ipt *t, uint64_t from, uint64_t to)
{
	uint64_t sum = 0, start, end;

	while (table_populated(t, from, to, &start, &end)) {
		sum += end - start;
		from = end;
	}
	return sum;
}

int ipt_bytes(struct ipt *t, struct ipt_bytes *out)
{
	const struct table_layout *l = &t->layout;

	uint64_t slots = l->words + (uint64_t)l->slot_first * 8;

	out->array = populated_bytes(t, l->words, slots < l->side ? slots : l->side);
	out->side = populated_bytes(t, l->side, l->links);
	out->slots = populated_bytes(t, slots, l->side) + populated_bytes(t, l->links, l->bad);
	out->forward =
		populated_bytes(t, l->forward, l->end) + populated_bytes(t, l->stripes, l->zones);
	out->other = populated_bytes(t, 0, l->stripes) + populated_bytes(t, l->zones, l->words) +
		     populated_bytes(t, l->bad, l->forward);
	return 0;
}
