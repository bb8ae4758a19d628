/*
 * The table's memory: what the memfd holds, and one process's view of it.
 *
 *   header | VM slots | names | regions | stripes | zones | chains | array | side | links | arenas | space |
 *   bad frames | forward area
 *
 * Every part begins on a page. The layout follows from the configuration alone; all of it is zero
 * until used, and zero is a valid state of each part (no VM, an empty stripe, frames that were never
 * touched), so that a new table costs a few pages whatever its size.
 */
#ifndef IPT_TABLE_H
#define IPT_TABLE_H

#include "ipt/hash.h"
#include "ipt/lock.h"
#include "ipt/word.h"
#include <stdatomic.h>

#define TABLE_LINE 64 /* bytes of a cache line */

#define TABLE_MAGIC         UINT64_C(0x31454c4241545049) /* "IPTABLE1" */
#define TABLE_LAYOUT        UINT32_C(10)
#define TABLE_STRIPE_FRAMES 16384 /* pool frames to a stripe */
#define TABLE_MAX_STRIPES   512
#define TABLE_CHAINS        64 /* locks of chains of aliases */
#define TABLE_ARENAS        16 /* parts of the space for what isn't in memory */
#define TABLE_VM_STATES     (IPT_NSTATES - IPT_LIMBO)
#define TABLE_ORDERS        (IPT_MAX_ORDER + 1)

enum vm_state { VM_NONE, VM_LIVE, VM_DYING };

/* A VM's slot in the registry. gen is odd while the cold fields change (LOCK_REGISTRY). */
struct vm_slot {
	_Atomic uint32_t gen;
	_Atomic uint32_t parent;
	_Atomic uint32_t children;
	_Atomic uint32_t radix_root; /* page + 1 */
	_Atomic uint32_t name[IPT_NAME_LEN / 4];
	/* Changed by the VM's process alone (and by whoever reaps it)... */
	_Atomic uint32_t frames[TABLE_VM_STATES];
	/* ...and what others gave it (move.h), under LOCK_REGISTRY. It has the sum. */
	_Atomic uint32_t adopted[TABLE_VM_STATES];
	_Atomic uint8_t state;   /* enum vm_state */
	_Atomic uint8_t kind;    /* enum ipt_vm_kind */
	_Atomic uint8_t regions; /* how many it has */
	_Atomic uint8_t dropped; /* a file: pages of it were dropped */
};

/* A VM's count of words in a state, from LIMBO on. */
static inline _Atomic uint32_t *vm_frames(struct vm_slot *s, enum ipt_state state)
{
	return &s->frames[state - IPT_LIMBO];
}

static inline _Atomic uint32_t *vm_adopted(struct vm_slot *s, enum ipt_state state)
{
	return &s->adopted[state - IPT_LIMBO];
}

/* Gfns of a VM that are pages of a file. See region.h. */
struct region {
	_Atomic uint64_t first, count, file_first;
	_Atomic uint32_t file;
};

/* A stripe of the forward map: the lock in a line of its own, apart from what readers read. */
struct stripe {
	_Alignas(TABLE_LINE) struct lock lock;
	_Alignas(TABLE_LINE) _Atomic uint32_t seq; /* odd while elements are being moved */
	_Atomic uint32_t cluster_lines, clusters;  /* lines in use; elements in them */
	_Atomic uint32_t single_lines, singles;
};

/* The chains of the frames and slots that fall to this lock, and how many these are. */
struct chain {
	_Alignas(TABLE_LINE) struct lock lock;
	_Atomic uint32_t frames, slots; /* SHARED */
};

/* What an alias, or a slot with a claim, has beside its word. See slot.h. */
struct slot_link {
	_Atomic uint32_t target, next, prev;
};

/* A part of the space for what isn't in memory: see space.h. */
struct arena {
	_Alignas(TABLE_LINE) struct lock lock;
	_Atomic uint32_t granules, blocks; /* in use */
	_Atomic uint32_t block_at;         /* the word to look for a free block in first */
	/* No page of the arena before this one has i + 1 free granules in a row. */
	_Atomic uint32_t room[IPT_GRANULES];
};

/* A zone of the allocator; the last one's frames are the slots, see slot.h. Equation: free = sum of
 * the listed blocks' frames + (end - mark). */
struct zone {
	_Alignas(TABLE_LINE) struct lock lock;
	_Atomic uint32_t free; /* frames */
	_Atomic uint32_t mark; /* frames from here to the zone's end were never touched */
	_Atomic uint32_t lists[TABLE_ORDERS]; /* bit c: the list of colour c is not empty */
	uint32_t first[TABLE_ORDERS][IPT_MAX_COLOURS]; /* head frame + 1, 0 for an empty list */
};

struct table_header {
	uint64_t magic;
	uint32_t layout, ready;
	struct ipt_config config;
	uint64_t bytes;           /* of the whole memfd */
	struct lock registry;     /* LOCK_REGISTRY */
	_Atomic uint32_t vm_high; /* highest id ever used */
	_Atomic uint32_t vm_low;  /* every id from 1 up to here, not including, is in use */
	_Atomic uint32_t repairs;
	/* A freeze under way, from the moment on at which it can't be undone: the template's id << 32
	 * | the VM's new id, else 0; and the template's name. See ipt_vm_freeze. */
	_Atomic uint64_t freeze;
	_Atomic uint32_t freeze_name[IPT_NAME_LEN / 4];
	/* What is being given (move.h): `count` frames from `first` on, by VM `from` (0: nothing) to VM
	 * `to`, which had adopted `base` of that state before. LOCK_REGISTRY. */
	struct {
		_Atomic uint32_t from, to, first, count, state, base;
	} move;
	/* The template whose pages go out or come back at this moment, else 0 (template.h). LOCK_REGISTRY. */
	_Atomic uint32_t recount;
	/* Of it: `count` frames from `first` on that stand at its gfns from `gfn` on, whatever the words say at this
	 * moment (0: none do). Of `swap`: under the lock of their stripe; if the holder dies, whoever mends that makes the
	 * words say so. Of `undo`: with LOCK_REGISTRY, when that is mended. */
	struct table_stand {
		_Atomic uint64_t gfn;
		_Atomic uint32_t first, count;
	} swap, undo;
	/* Who holds what is in between while a shared page goes out or comes back (shared.c), 0 for nobody; and what its
	 * aliases leave and where they go, each + 1, 0 for none. LOCK_REGISTRY. */
	_Atomic uint32_t holder, leaving, reached;
	struct lock pages;          /* LOCK_PAGES */
	_Atomic uint32_t page_low;  /* no free radix page below this one */
	_Atomic uint32_t page_high; /* radix pages from here on were never used */
	_Atomic uint32_t pages_used;
	/* Odd while what one VM has becomes another's, or a VM gets another parent. In a line that is
	 * hardly ever written, as every look-up reads it. */
	_Alignas(TABLE_LINE) _Atomic uint32_t lineage;
	/* Frames with a mark in `bad` (bad.h); counted before it is made. Every pin reads it. */
	_Atomic uint32_t bad;
	_Alignas(TABLE_LINE) uint8_t end[];
};

/* Byte offsets and sizes within the memfd. */
struct table_layout {
	uint64_t vms, names, regions, stripes, zones, chains, words, side, links, arenas, packed,
		blocks, bad, forward, end;
	uint32_t slot_first, slot_end; /* numbers of the slots, see slot.h */
	uint32_t nstripes;
	uint32_t zone_frames;             /* frames to a zone, the last may have fewer */
	uint32_t cluster_cap, single_cap; /* lines to a stripe, at most */
	uint64_t stripe_bytes;            /* of forward area to a stripe */
	uint32_t page_cap;                /* radix table pages, at most */
	uint64_t page_base;               /* radix: the first page's offset, after the bitmap */
};

struct ipt {
	_Atomic uint64_t *words;
	_Atomic uint32_t *side;
	struct stripe *stripes;
	uint8_t *forward;
	uint32_t stripe_mask;
	uint32_t frames, max_vms;
	enum ipt_kind kind;
	struct hash_keys keys;
	struct vm_slot *vms;
	_Atomic uint32_t *names; /* a hash of each VM's name, 0 for none */
	struct region *regions;  /* IPT_MAX_REGIONS for each VM */
	struct zone *zones;
	struct chain *chains;
	struct slot_link *links; /* of the slots, from the first on */
	struct arena *arenas;
	_Atomic uint64_t
		*packed; /* bitmaps: the granules of a page in a word; 64 blocks in a word */
	_Atomic uint64_t *blocks;
	_Atomic uint64_t *bad; /* 2 bits a frame: bad.h */
	struct table_header *header;
	struct table_layout layout;
	struct ipt_config config;
	int fd;
};

/* The layout that config leads to. -EINVAL if config is out of range. */
int table_layout(struct table_layout *out, const struct ipt_config *config);
/* The next populated byte of the memfd in [from, to), and where that populated piece ends (at most
 * `to`); false if there is none. */
bool table_populated(const struct ipt *t, uint64_t from, uint64_t to, uint64_t *start,
		     uint64_t *end);
/* Give the memory of [from, to), whole pages, back: it reads as zero again. 0 or -errno. */
int table_punch(const struct ipt *t, uint64_t from, uint64_t to);

#endif
