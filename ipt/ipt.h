/*
 * The inverted page table: who owns each frame of the pool, and where each guest frame is.
 *
 * Words
 *   frame    a 4 KiB page of the pool, named by its index (frame_t)
 *   run      consecutive gfns at consecutive frames
 *   cluster  16 frames, aligned in both gfn and frame (64 KiB): one index element for all of them
 *   block    2^order free or allocated frames, naturally aligned, order 0 to IPT_MAX_ORDER
 *   limbo    a frame that left the free lists for a VM but backs no gfn (yet, or any more)
 *   bad      of a frame: its memory is said to be damaged; whoever frees it, it's never given out again
 *   retired  a bad frame that was freed, or was free: limbo of nobody, for good
 *   shared   of a frame: it belongs to no VM; those who see it have aliases
 *   slot     a word of the array beyond the pool's frames, for what a VM has at a gfn without owning a
 *            frame: an alias (of a shared frame), a tomb (void, whatever the ancestors have), or one that is
 *            out (its bytes are not in memory: the slot says where). A shared page that is out has a slot in
 *            its frame's place, which its aliases are of
 *   template a VM that was frozen: it changes no more, and other VMs begin as it was
 *   file     a VM to the registry that no process works for, whose gfns are page numbers
 *   region   gfns of a VM that are pages of a file
 *   lineage  a VM, its parent, that one's parent...: what a VM doesn't have itself it has from the
 *            nearest of them that does
 *
 * Three parts, all in one memfd that every process maps shared:
 *   array    ipt[frame], one atomic 64-bit word {state, vm, gfn}: the truth and the commit point of
 *            every change; 4 bytes beside it (pins, age) in an array of their own. As many words again
 *            for slots, with 12 bytes beside those that are aliases; what isn't used has no memory
 *   forward  (vm, gfn) -> frame, a cache of the array that can be rebuilt from it. Two kinds with
 *            one interface: the hash index (IPT_INDEX) and per-VM radix tables (IPT_RADIX, for which
 *            the array is the reverse map)
 *   zones    the frame allocator, one a NUMA node; its free lists run through the words of free frames
 *
 * Invariants (ipt_audit checks every one)
 *   I1  every frame is in exactly one of: beyond its zone's wilderness mark, a free block on a list,
 *       limbo, mapped, shared; every slot in the same (a spare one is in limbo)
 *   I2  word(f) = {PRIVATE, ALIAS, TOMB or OUT, vm, gfn}  <=>  forward(vm, gfn) = f, and at most one such frame
 *       or slot f per (vm, gfn)
 *   I3  zone.free = sum of the free blocks' sizes + frames beyond the wilderness mark
 *   I4  vm.frames[state] + vm.adopted[state] = number of words with that vm and state; only a live or dying
 *       VM, template or file has any
 *   I5  every forward element leads to a word that confirms it for at least one gfn; no element
 *       stands twice
 *   I6  a free frame has no pins
 *   I7  slot s is an ALIAS of frame or slot f  <=>  s is in the chain of f, once;
 *       f is SHARED  <=>  its chain is not empty
 *   I8  a granule or block is in use  <=>  one slot, OUT, SHARED or spare, has claimed it; every OUT or SHARED slot
 *       has a claim
 *   I9  a free frame isn't bad; a retired one is (I1: it counts as limbo, but of no VM)
 *
 * Concurrency
 *   Readers (lookup, owner) take no lock; writers lock the stripe of the key. Locks are process-shared
 *   and robust: whoever finds a holder dead rebuilds that part from the array before it goes on.
 *   A word's (vm, gfn) is changed only by that VM's process, or, once it is dead, by its reaper
 *   (ipt_vm_reap), and a template's by who collapses it (ipt_vm_collapse): so the only contention is for
 *   stripes and zones, never for one mapping. Shared frames' words change under their chain's lock,
 *   files' pages come from whoever is first.
 *   Lock order (checked at run time where NDEBUG is not defined; ipt/lock.h):
 *     registry  <  chain  <  stripe  <  zone  <  radix table pages  <  space
 *   one of each at a time, but two chains or stripes in the order of their numbers
 *
 * Functions return 0 or -errno and print nothing. A VM that is not registered is -ENOENT everywhere,
 * and so is a dying one where something would be given to it (ipt_alloc, ipt_map); what would change a
 * template or a file is -EPERM (but ipt_free); a count of 0 is -EINVAL.
 */
#ifndef IPT_IPT_H
#define IPT_IPT_H

#include "ipt/addr.h"
#include <stddef.h>

#define IPT_MAX_ORDER      9 /* 2 MiB */
#define IPT_CLUSTER_ORDER  4 /* 64 KiB */
#define IPT_CLUSTER_FRAMES (1u << IPT_CLUSTER_ORDER)
#define IPT_MAX_FRAMES     (UINT32_C(1) << 28) /* 1 TiB of pool; and of frames and slots together */
#define IPT_MAX_GFN        (UINT64_C(1) << 36) /* 48 bits of gpa */
#define IPT_MAX_VMS        (UINT32_C(1) << 20)
#define IPT_MAX_NODES      8
#define IPT_MAX_COLOURS    16
#define IPT_NAME_LEN       32
#define IPT_MAX_REGIONS    8                   /* to a VM */
#define IPT_GRANULE        64                  /* bytes: the packed memory is given out in these */
#define IPT_GRANULES       64                  /* to a page of it */
#define IPT_MAX_PACKED     (UINT32_C(1) << 25) /* pages of packed memory, 128 GiB */
#define IPT_MAX_BLOCKS     (UINT32_C(1) << 30) /* blocks of the swap file, 4 TiB */

enum ipt_kind { IPT_INDEX, IPT_RADIX };

/* A frame's or slot's state, as its word holds it. FREE is 0 so that untouched, zero table memory says
 * free; a gfn leads to those from PRIVATE on. SPARE, ALIAS, TOMB and OUT are slots. */
enum ipt_state {
	IPT_FREE,
	IPT_SHARED,
	IPT_LIMBO, /* from here on they are of a VM, which counts them */
	IPT_SPARE,
	IPT_PRIVATE,
	IPT_ALIAS,
	IPT_TOMB,
	IPT_OUT,
	IPT_NSTATES
};

struct ipt; /* one process's handle on a table */

struct ipt_config {
	enum ipt_kind kind;
	uint32_t frames;  /* 1 to IPT_MAX_FRAMES; size of the pool */
	uint32_t max_vms; /* 1 to IPT_MAX_VMS - 1 live at once */
	unsigned nodes;   /* NUMA nodes, 1 to IPT_MAX_NODES; frames are split evenly among them */
	unsigned colours; /* page colours, a power of two, 1 to IPT_MAX_COLOURS */
	uint64_t seed;    /* of the hash; take it from getrandom(2) outside tests */
	/* Space for what isn't in memory: pages of packed memory, up to IPT_MAX_PACKED, and blocks of
	 * 4 KiB of the swap file, up to IPT_MAX_BLOCKS. Either may be 0; both are with radix tables. */
	uint32_t packed_pages, blocks;
};

/* Make a table in a new memfd. -EINVAL for a config out of range, else memfd_create's or mmap's. */
int ipt_create(struct ipt **out, const struct ipt_config *config);
/* Map the table that fd (a memfd made by ipt_create, from any process) holds. -EINVAL, -EPROTO for
 * what is no table or one of another layout. The fd is duplicated. */
int ipt_attach(struct ipt **out, int fd);
/* Unmap and close this process's handle; the table lives on while any process holds its memfd. */
void ipt_detach(struct ipt *t);
/* Give back what the kernel keeps for this process's use of the table: page tables, one page for each 2 MiB that it
 * touched. The table stays where it is, and other threads may be using it. -errno of mmap. */
int ipt_rest(const struct ipt *t);
int ipt_fd(const struct ipt *t);
const struct ipt_config *ipt_config(const struct ipt *t);

/* ---- VM registry: names, lineage ---------------------------------------------------------- */

enum ipt_vm_kind { IPT_VM, IPT_TEMPLATE, IPT_FILE };

struct ipt_vm_info {
	vmid_t id;
	enum ipt_vm_kind kind;
	vmid_t parent; /* the template this VM was cloned from, or INVALID_VMID */
	char name[IPT_NAME_LEN];
	bool dying;
	uint32_t children;            /* VMs whose parent this is */
	uint32_t frames[IPT_NSTATES]; /* and slots */
};

/* Register a VM. Names are unique among the registered: -EEXIST. -ENOENT for an unknown parent
 * (a file is none),
 * -ENAMETOOLONG, -EINVAL for an empty name, -ENOSPC when max_vms are registered. Ids are reused only
 * after ipt_vm_reap finished. Takes the registry lock. */
int ipt_vm_add(struct ipt *t, const char *name, vmid_t parent, vmid_t *out);
/*
 * Freeze vm, whose process lets nobody change it meanwhile: its id becomes a template's, named
 * template_name, which owns all that vm owned and takes no more (ipt_alloc, ipt_map, ipt_unmap: -EPERM);
 * the VM goes on under a new id, *out, with its old name, and the template is its parent. No word
 * changes, so this takes the same time whatever the VM has. -EPERM if vm is a template, -EEXIST for a
 * name that is taken, -EINVAL, -ENAMETOOLONG, -ENOSPC. Takes the registry lock; a registrar's death
 * leaves it done or not done.
 */
int ipt_vm_freeze(struct ipt *t, vmid_t vm, const char *template_name, vmid_t *out);
/* What the registry says of vm: -ENOENT if it is not registered. No lock. */
int ipt_vm_info(struct ipt *t, vmid_t vm, struct ipt_vm_info *out);
/* The registered VM of that name, or -ENOENT. Takes the registry lock. */
int ipt_vm_find(struct ipt *t, const char *name, vmid_t *out);
/* Next registered VM after `after` (start with INVALID_VMID); INVALID_VMID when there is none. */
vmid_t ipt_vm_next(struct ipt *t, vmid_t after);

/*
 * Free everything that a VM which no process works for any more still owns: mapped, limbo, pinned.
 * `clean` is called for runs of frames before they become free (the pool punches holes there, so that
 * no guest ever sees another's bytes); if it fails with -errno the run stays in limbo and the error is
 * returned after the rest was freed; call again to retry. The VM is marked dying at the start and
 * unregistered at the end. Repairs whatever the dead left half done. -EBUSY if it has children, or is
 * a file in use.
 */
typedef int ipt_clean_fn(void *ctx, frame_t first, uint32_t count);
int ipt_vm_reap(struct ipt *t, vmid_t vm, ipt_clean_fn *clean, void *ctx);

/* Repair what dead holders of locks left half done, now instead of when their lock is taken next: every part of the table.
 * Takes each lock. */
void ipt_mend(struct ipt *t);

/*
 * Do away with a template that has one child: what it owns becomes the child's where that has nothing
 * of its own, the rest is cleaned (as by ipt_vm_reap) and freed; the child's parent becomes the
 * template's parent. With no child it is reaped. The child and its descendants work on meanwhile, and
 * no look-up of theirs misses or sees an older frame; ipt_map by the child of what it just inherited
 * for good is -EEXIST. -ENOENT, -EPERM if vm is no template, -ENOSPC and -ENOMEM as ipt_map (-ENOSPC
 * also if the child would have too many regions), clean's error, -EBUSY if it has more children, if
 * the child is dying, or if a frame to be freed is pinned. The template is marked dying at the start;
 * whoever dies at this, or whatever error came, calling it again goes on where it stopped; one at a
 * time for one template. Locks: the registry for each 64 KiB, and within it the stripes of both.
 * A frame that the child overrides while this goes on is freed at once: whoever replaces what it inherited
 * holds a pin on it until its window doesn't show it any more.
 */
int ipt_vm_collapse(struct ipt *t, vmid_t vm, ipt_clean_fn *clean, void *ctx);
/*
 * The same, but frames that are pinned become limbo of the child instead, and are freed when that is reaped. For pins that
 * nobody will take off: whoever held them was killed, and of a pin nothing tells whose it is.
 */
int ipt_vm_collapse_pinned(struct ipt *t, vmid_t vm, ipt_clean_fn *clean, void *ctx);

/* ---- frames: allocation ------------------------------------------------------------------- */

struct ipt_hint {
	frame_t goal;    /* wanted first frame, INVALID_FRAME for any; keeping frame - gfn constant
			    from run to run lets mappings merge */
	unsigned node;   /* preferred NUMA node; others are used when it is empty */
	unsigned colour; /* preferred colour of the first frame, for orders below log2(colours) */
};

/* Take a naturally aligned block of 2^order frames out of the free lists, for vm, into limbo.
 * -ENOMEM when there is no block of that order (a smaller one may exist). Takes one zone lock. */
int ipt_alloc(struct ipt *t, vmid_t vm, unsigned order, const struct ipt_hint *hint, frame_t *out);
/* Give `count` limbo frames of vm back (any alignment; they coalesce). Their bytes must be clean
 * already: the next owner sees them. -EPERM if one isn't vm's limbo, -EBUSY if one is pinned; then
 * nothing has changed. */
int ipt_free(struct ipt *t, vmid_t vm, frame_t first, uint32_t count);
/* Free frames now: in all, and the largest order that could be allocated (-1 for none). */
uint32_t ipt_free_frames(struct ipt *t);
int ipt_largest_order(struct ipt *t);

/* ---- mappings ----------------------------------------------------------------------------- */

/*
 * Map `count` gfns of vm at consecutive limbo frames of vm, as PRIVATE. Aligned runs of 16 go in as
 * clusters. Tombs of vm's there give way. Prepare/commit: on any error nothing has changed. -EPERM if
 * a frame isn't vm's limbo, -EEXIST if a gfn is mapped already, has an alias or is out, -EINVAL out of range,
 * -ENOSPC/-ENOMEM when the forward map can't grow. Lock: stripes, one at a time.
 */
int ipt_map(struct ipt *t, vmid_t vm, gfn_t first, frame_t frame, uint32_t count);
/* Take what vm itself has at `count` gfns away, so that they are what the ancestors have there; its
 * frames, and shared ones whose last alias went, go to its limbo. `gone` is told each run of these
 * (may be NULL). */
typedef void ipt_run_fn(void *ctx, gfn_t gfn, frame_t frame, uint32_t count);
int ipt_unmap(struct ipt *t, vmid_t vm, gfn_t first, uint32_t count, ipt_run_fn *gone, void *ctx);

/* The frame behind (vm, gfn) or INVALID_FRAME, also for a page that is out. No lock; about one line of index and one of array. */
frame_t ipt_lookup(struct ipt *t, vmid_t vm, gfn_t gfn);
/* The same for n keys at once, with the memory accesses of all of them in flight together. */
struct ipt_key {
	vmid_t vm;
	gfn_t gfn;
};
void ipt_lookup_batch(struct ipt *t, const struct ipt_key *keys, frame_t *out, unsigned n);
/* How many gfns from `first` on (at most max) are mapped at consecutive frames, and the first of
 * these frames: 0 and INVALID_FRAME if `first` is void or out. */
uint32_t ipt_lookup_run(struct ipt *t, vmid_t vm, gfn_t first, uint32_t max, frame_t *out);

/* ---- sharing beside the lineage ------------------------------------------------------------
 *
 * Needs the index: a table of kind IPT_RADIX has no slots, and these functions, where they would need
 * one, are -EOPNOTSUPP. All are for vm's own process alone; a template is -EPERM. *done is how many of
 * the gfns, from the first on, were done before the error; each is done or not done. -ENOSPC when
 * slots or the index run out. Locks: for each page a chain, and within it a stripe.
 */

/* Make [first, first+count) of vm void, whatever its ancestors have: own frames, and shared ones whose
 * last alias went, go to limbo of vm (`gone` is told, may be NULL); tombs come where an ancestor has
 * something. */
int ipt_drop(struct ipt *t, vmid_t vm, gfn_t first, uint32_t count, uint32_t *done,
	     ipt_run_fn *gone, void *ctx);
/* Map over what is there: as ipt_map, but vm's aliases at these gfns, and what is out, give way too. Shared frames that
 * lost their last alias go to limbo of vm and `gone` is told. On -ENOSPC and -ENOMEM some may be done:
 * ipt_place tells. */
int ipt_map_over(struct ipt *t, vmid_t vm, gfn_t first, frame_t frame, uint32_t count,
		 ipt_run_fn *gone, void *ctx);
/* vm's own frames at these gfns become shared ones, each with vm's alias as its first. -EBUSY if one
 * is pinned, -ENOENT if there is no frame of vm's own. Nobody may write to them from before the call
 * on. */
int ipt_publish(struct ipt *t, vmid_t vm, gfn_t first, uint32_t count, uint32_t *done);
/* vm's own frames at these gfns give way to aliases of the shared frames from `frame` on, whose bytes
 * are the same, and go to limbo of vm; `gone` is told. -EBUSY if an own one is pinned, -ENOENT if
 * there is none, -ESTALE if a target isn't shared (any more). */
int ipt_merge(struct ipt *t, vmid_t vm, gfn_t first, frame_t frame, uint32_t count, uint32_t *done,
	      ipt_run_fn *gone, void *ctx);

/* ---- pages that are not in memory ------------------------------------------------------------
 *
 * The bytes of a page that is out are kept elsewhere: packed, in granules of the packed memory, or in a
 * block of the swap file. The table says where, and accounts for the space; the bytes are the caller's
 * business. Needs the index (-EOPNOTSUPP). All but ipt_out_read are for vm's own process alone, as sharing
 * is. ipt_map_over, ipt_drop and ipt_unmap do away with what was out, and its space.
 */

#define IPT_IN_FILE (UINT32_C(1) << 31) /* in `where`: a block's number, not a granule's */
#define IPT_NOWHERE UINT32_MAX
struct ipt_out {
	uint32_t
		where; /* the first granule, or IPT_IN_FILE | block; IPT_NOWHERE for a page of zeroes */
	uint32_t bytes; /* as they are kept: 0 for a page of zeroes, at most PAGE_SIZE */
	uint32_t sum;   /* the caller's checksum of them */
};

/* Space for n pages (1 to IPT_CLUSTER_FRAMES), each with a slot. Given are bytes and sum of each, and
 * IPT_IN_FILE or 0 as `where`, which is filled in. -ENOSPC, and nothing is claimed. Locks: an arena, one at
 * a time. */
int ipt_out_claim(struct ipt *t, vmid_t vm, struct ipt_out *pages, uint32_t n, uint32_t *slots);
/* Give back the slots that ipt_out_claim gave, and their space. */
void ipt_out_cancel(struct ipt *t, vmid_t vm, const uint32_t *slots, uint32_t n);
/* vm's own frames at n gfns, all in one group of 16, are out from now on, at these slots; they go to limbo of
 * vm, and `gone` is told. Their bytes are kept already, and nobody may write to them from before they were
 * on. *done pages were dealt with before the error, -EBUSY (pinned), -ENOENT (no frame of vm's own) or
 * -ENOSPC (of the index); the slots from there on are still the caller's. Locks: a stripe. */
int ipt_out_commit(struct ipt *t, vmid_t vm, gfn_t first, const uint32_t *slots, uint32_t n,
		   uint32_t *done, ipt_run_fn *gone, void *ctx);
/* Where the page is that vm sees at g, its own or an ancestor's; *at is whose it is, INVALID_VMID for a shared one.
 * -ENOENT if it is not out (any more). But for vm's own it may change at any time: read the bytes, then ask again. No
 * lock. */
int ipt_out_read(struct ipt *t, vmid_t vm, gfn_t g, struct ipt_out *out, vmid_t *at);

/*
 * A template's own frames from f on, at n gfns (1, or a group of 16) from first on, are out from now on, for all
 * who see them. In this order, all with the registry locked: `keep` stores page i's bytes (of those that have
 * any) at *where; the table says OUT; `settle` makes sure that nobody is at a frame that he looked up before
 * (-EBUSY: somebody is); `clean` cleans the frames (as ipt_clean_fn), which are free then. If any of these
 * fails, all is as it was, and the error is returned. -ESTALE: the frames aren't there (any more); -EBUSY:
 * one is pinned; -ENOSPC. Locks: the registry, and within it an arena, a stripe and a zone.
 */
struct ipt_out_ops {
	int (*keep)(void *ctx, uint32_t i, const struct ipt_out *where);
	int (*settle)(void *ctx);
	int (*clean)(void *ctx, frame_t first, uint32_t n);
};
int ipt_template_out(struct ipt *t, vmid_t vm, gfn_t first, frame_t f, struct ipt_out *pages,
		     uint32_t n, const struct ipt_out_ops *ops, void *ctx);
/* n limbo frames of `by`, from f on, which hold what is out at n gfns of the template vm (all in one group), are
 * the template's frames there from now on. -ESTALE: one isn't out (any more); then, and for all other errors
 * (as ipt_map), nothing has changed. Locks as above. */
int ipt_template_in(struct ipt *t, vmid_t by, vmid_t vm, gfn_t first, frame_t f, uint32_t n);

/*
 * Shared pages going out and coming back, for all who see them by aliases. Somebody must hold what is in between: a file
 * without pages. ipt_holder_add registers it, unless there is one; -errno as ipt_file_add. ipt_holder: who it is;
 * INVALID_VMID: nobody, and the rest is -EOPNOTSUPP.
 */
int ipt_holder_add(struct ipt *t, const char *name);
vmid_t ipt_holder(struct ipt *t);
/* One who sees a shared frame by an alias, and what tells that the frame wasn't freed since. -EINVAL; -ENOENT: it isn't
 * shared (any more). No lock. */
struct ipt_sharer {
	vmid_t vm;
	uint32_t stamp;
};
int ipt_sharer(struct ipt *t, frame_t f, struct ipt_sharer *out);
/* The frame's page, which was read after ipt_sharer told the stamp, is out from now on. As ipt_template_out; -ESTALE: the
 * frame isn't shared any more, or again. If all others let it go while it can't be cleaned, it waits at the holder's. */
int ipt_shared_out(struct ipt *t, frame_t f, uint32_t stamp, struct ipt_out *page,
		   const struct ipt_out_ops *ops, void *ctx);
/* The limbo frame of `by`, which holds what is out at g as by sees it, and is shared, is all sharers' from now on. As
 * ipt_template_in. */
int ipt_shared_in(struct ipt *t, vmid_t by, gfn_t g, frame_t f);
/* Free what waits at the holder's, if `settle` of ops says that nobody is at it, and `clean` works. Registry lock. */
int ipt_holder_sweep(struct ipt *t, const struct ipt_out_ops *ops, void *ctx);

struct ipt_space_info {
	uint64_t granules, granules_used;
	uint32_t blocks, blocks_used;
};
void ipt_space(struct ipt *t, struct ipt_space_info *out);
/* Of the n pages of packed memory from `first` on, tell those of which no granule is in use, in runs; none
 * comes into use before `trim` returns. Its error ends it. Locks: an arena, one at a time. */
typedef int ipt_trim_fn(void *ctx, uint32_t first, uint32_t n);
int ipt_packed_trim(struct ipt *t, uint32_t first, uint32_t n, ipt_trim_fn *trim, void *ctx);

/* ---- files ---------------------------------------------------------------------------------
 *
 * A file's pages are there once for all VMs that have a region of it: who looks up a gfn of a region,
 * and has nothing of its own there, finds the file's page, or void if nobody has brought it in yet. A
 * file is registered like a VM, in the same names; nothing but ipt_file_map is for it (-EPERM), and
 * ipt_vm_reap, which is -EBUSY while a VM or template has a region of it. Works with either kind of
 * forward map.
 */

/* Register a file. Errors as ipt_vm_add. */
int ipt_file_add(struct ipt *t, const char *name, vmid_t *out);
/* Gfns of vm from `first` on, `count` of them, are pages of the file from file_first on; for good, so
 * before vm's guest runs. Descendants inherit it. -ENOENT if there is no such VM or file, -EPERM for a
 * template, -EINVAL, -EEXIST if it overlaps another region of vm, -ENOSPC beyond IPT_MAX_REGIONS.
 * Registry lock. */
int ipt_vm_region(struct ipt *t, vmid_t vm, gfn_t first, uint64_t count, vmid_t file,
		  uint64_t file_first);
/* `count` limbo frames of vm become the file's pages from `first` on: *done of them, each piece of 16
 * aligned pages as a whole. -EEXIST if another was quicker with one of the next piece (these frames
 * stay limbo). For any VM with a region of the file. Else as ipt_map. Takes the registry lock for each
 * piece. */
int ipt_file_map(struct ipt *t, vmid_t vm, vmid_t file, uint64_t first, frame_t frame,
		 uint32_t count, uint32_t *done);

/* The file's n pages (all in one group of 16) at frames from f on are void again, and these frames free (or retired, if
 * it is one that is RETIRING; a LOST one counts as pinned). `settle` and
 * `clean` of ops as in ipt_template_out; if one fails all is as it was, and that is returned. -ESTALE: the frames aren't
 * there (any more); -EBUSY: one is pinned. Registry lock. */
int ipt_file_drop(struct ipt *t, vmid_t file, uint64_t page, frame_t f, uint32_t n,
		  const struct ipt_out_ops *ops, void *ctx);

/* ---- looking up ---------------------------------------------------------------------------- */

enum ipt_place_kind {
	IPT_VOID,      /* no frame */
	IPT_OWN,       /* a frame of vm's own */
	IPT_INHERITED, /* what an ancestor has there, whether its own frame or an alias */
	IPT_MERGED,    /* a shared frame, by vm's own alias */
	IPT_FILE_PAGE, /* a file's, by a region of vm's or an ancestor's */
	IPT_AWAY,      /* no frame: the page is out (ipt_out_read), vm's own or an ancestor's */
};
struct ipt_place {
	enum ipt_place_kind kind;
	vmid_t at; /* who has it, or the region: vm itself or an ancestor; INVALID_VMID for VOID, and for what is
		      away and shared */
	frame_t frame; /* of the first gfn; INVALID_FRAME for VOID and AWAY */
};
/*
 * What gfn `first` of vm is, and for how many gfns (1 to max) the same holds: at consecutive frames, or
 * nothing at all, or away. May be fewer than there are. 0, and VOID, for a key out of range or a max of 0. No lock.
 */
uint32_t ipt_place(struct ipt *t, vmid_t vm, gfn_t first, uint32_t max, struct ipt_place *out);

/* Who owns a frame: one array read. -EINVAL for a frame outside the pool. */
struct ipt_owner {
	enum ipt_state state;
	vmid_t vm; /* INVALID_VMID when free or shared */
	gfn_t gfn; /* INVALID_GFN unless mapped */
	uint32_t pins;
};
int ipt_owner(struct ipt *t, frame_t f, struct ipt_owner *out);
/* The first frame from f on that is, or ever was, in use: for who looks at all of them. INVALID_FRAME: none. No lock. */
frame_t ipt_next_used(struct ipt *t, frame_t f);

/*
 * Tell everyone who sees a frame, that is, to whose gfn a look-up gives it: its owner (OWN) or those
 * who have an alias of it (MERGED), and the descendants of these without something of their own there
 * (INHERITED), or, for a file's page, those with a region there (FILE_PAGE); VMs and templates alike.
 * `fn` says whether to go on. -EINVAL for a frame outside the pool, -ENOMEM. Costs a look-up for each
 * VM, and again for each alias that a template has. Others' changes meanwhile may or may not be seen;
 * no lock is held.
 */
typedef bool ipt_viewer_fn(void *ctx, vmid_t vm, gfn_t gfn, enum ipt_place_kind how);
int ipt_viewers(struct ipt *t, frame_t f, ipt_viewer_fn *fn, void *ctx);

/* ---- pins: I/O in flight ------------------------------------------------------------------ */

/* Look (vm, gfn) up and count one more user of the frame, so that it is neither freed nor moved until
 * ipt_unpin. -ENOENT if void or out, -EOVERFLOW at 65535 pins, -EHWPOISON if its bytes are lost. No lock. */
int ipt_pin(struct ipt *t, vmid_t vm, gfn_t gfn, frame_t *out);
void ipt_unpin(struct ipt *t, frame_t f);

/* ---- bad frames ------------------------------------------------------------------------------
 *
 * A frame whose memory is damaged (or is to be taken for that: vmm/inject.h). It stays where it is mapped, so that
 * those who see it can be told, but it can't be pinned, and so neither moves nor goes out nor is merged. When it is
 * freed it is retired: no allocation gives it again, until the table ends.
 */
enum ipt_health {
	IPT_GOOD,
	IPT_RETIRING, /* what it holds is kept elsewhere: who looks waits until it is replaced */
	IPT_LOST,     /* nobody has what it held */
};
/* What is the frame like? GOOD outside the pool. No lock; two loads while no frame is bad. */
enum ipt_health ipt_health(struct ipt *t, frame_t f);
/* A mapped, shared or limbo frame is bad from now on, as h says (RETIRING or LOST; a RETIRING one may become LOST).
 * From then on ipt_pin fails for LOST ones and waits for RETIRING ones. Whoever took bytes of it, unpinned, and finds it
 * GOOD after that has good ones, if they are destroyed after this call. -EINVAL: no frame of the pool; -EBUSY: pinned;
 * -ESTALE: it is free; -EALREADY: it is LOST, or as h says. No lock. */
int ipt_spoil(struct ipt *t, frame_t f, enum ipt_health h);
/* A free frame is bad, and retired. -EINVAL; -ESTALE: it isn't free (any more); -ERANGE: it lies far beyond all that was
 * ever used, and keeping a record of it would cost too much. Takes its zone's lock. */
int ipt_retire_free(struct ipt *t, frame_t f);
/* Frames that are bad, the retired ones among them. */
uint32_t ipt_bad_frames(struct ipt *t);

/* ---- ages ----------------------------------------------------------------------------------
 *
 * A number beside each frame's word that the table keeps and doesn't understand: how many times somebody looked
 * and found the frame unused. A frame that is freed begins anew at 0. No lock.
 */
#define IPT_AGE_MOST 127
uint8_t ipt_age(struct ipt *t, frame_t f);
void ipt_set_age(struct ipt *t, frame_t first, uint32_t n, uint8_t age);
/* Did the frame come to its template by ipt_template_in, to its sharers by ipt_shared_in, or to a file of which pages
 * were dropped? Then windows that show the page may have another frame there. */
bool ipt_moved(struct ipt *t, frame_t f);

/* ---- looking at the whole ----------------------------------------------------------------- */

struct ipt_bytes {      /* memory the table really has (populated pages of the memfd), bytes */
	uint64_t array; /* the words */
	uint64_t side;  /* the 4 bytes beside each */
	uint64_t slots; /* the words of slots, the 12 bytes beside aliases and what is out, space */
	uint64_t forward; /* index or radix tables, with their stripes' headers and locks */
	uint64_t other;   /* header, registry, zones */
};
int ipt_bytes(struct ipt *t, struct ipt_bytes *out);

struct ipt_counts {
	uint32_t frames[IPT_NSTATES];
	uint32_t shared_out;                        /* shared pages that are out, each once */
	uint64_t cluster_elements, single_elements; /* of the index; 0 for radix */
	uint64_t radix_pages;                       /* 4 KiB table pages; 0 for the index */
	uint32_t repairs; /* times a dead holder's stripe or zone was rebuilt */
	uint32_t
		bad; /* frames, in use or retired; and those that are retired, exact if nobody is at work */
	uint32_t retired;
};
void ipt_counts(struct ipt *t, struct ipt_counts *out);

/* Check I1 to I9 over everything. Takes every lock in turn, so may run beside others only if they
 * are quiet (it reports in-between states otherwise). Returns the number of violations; each is told
 * to `say` as one line of text (may be NULL). */
typedef void ipt_say_fn(void *ctx, const char *line);
int ipt_audit(struct ipt *t, ipt_say_fn *say, void *ctx);
/* The same beside others at work: up to six audits over 0.2 s, until one finds nothing that those before it
 * found. What all of them found, in the same words, is told and counted, each once, up to 1,024. A wrong count
 * of a VM that is busy meanwhile may be missed. */
int ipt_audit_live(struct ipt *t, ipt_say_fn *say, void *ctx);

#endif
