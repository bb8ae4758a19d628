/*
 * The array's 64-bit words, and the 32-bit side entries beside them.
 *
 *   mapped, limbo   gfn:40 | vm:20 | flag:1 | state:3      flag: backed by a cluster element
 *   shared          head:40 | 0:20 | flag:1 | state:3      head: slot of the first alias, see chain.h
 *   free            prev:28 | next:28 | order:4 | flag:1 | state:3 (0)
 *                   flag: head of a free block; the links are frames, a link to the block itself is
 *                   the end of the list. A free word that is no head is 0.
 *   side            gen:8 | moved:1 | age:7 | pins:16        gen: counts the frees, see pin.c; moved: see ipt_moved
 *
 * Memory order is in the names. On x86 an acquire load and a release store are plain moves.
 */
#ifndef IPT_WORD_H
#define IPT_WORD_H

#include "ipt/ipt.h"
#include <stdatomic.h>

#define WORD_STATE      UINT64_C(7)
#define WORD_FLAG       UINT64_C(8)
#define WORD_MAPPED     UINT64_C(4) /* of the state: a gfn leads here */
#define WORD_VM_SHIFT   4
#define WORD_GFN_SHIFT  24
#define WORD_NEXT_SHIFT 8
#define WORD_PREV_SHIFT 36
#define WORD_LINK_MASK  ((UINT64_C(1) << 28) - 1)

#define SIDE_PINS      UINT32_C(0xffff)
#define SIDE_AGE_SHIFT 16
#define SIDE_AGE       ((uint32_t)IPT_AGE_MOST << SIDE_AGE_SHIFT)
#define SIDE_MOVED     (UINT32_C(1) << 23)
#define SIDE_GEN       (UINT32_C(1) << 24)

static inline uint64_t load_acquire64(const _Atomic uint64_t *p)
{
	return atomic_load_explicit(p, memory_order_acquire);
}

static inline uint64_t load_relaxed64(const _Atomic uint64_t *p)
{
	return atomic_load_explicit(p, memory_order_relaxed);
}

static inline void store_release64(_Atomic uint64_t *p, uint64_t v)
{
	atomic_store_explicit(p, v, memory_order_release);
}

static inline void store_relaxed64(_Atomic uint64_t *p, uint64_t v)
{
	atomic_store_explicit(p, v, memory_order_relaxed);
}

static inline uint32_t load_acquire32(const _Atomic uint32_t *p)
{
	return atomic_load_explicit(p, memory_order_acquire);
}

static inline uint32_t load_relaxed32(const _Atomic uint32_t *p)
{
	return atomic_load_explicit(p, memory_order_relaxed);
}

static inline void store_release32(_Atomic uint32_t *p, uint32_t v)
{
	atomic_store_explicit(p, v, memory_order_release);
}

static inline void store_relaxed32(_Atomic uint32_t *p, uint32_t v)
{
	atomic_store_explicit(p, v, memory_order_relaxed);
}

static inline uint8_t load_acquire8(const _Atomic uint8_t *p)
{
	return atomic_load_explicit(p, memory_order_acquire);
}

static inline uint8_t load_relaxed8(const _Atomic uint8_t *p)
{
	return atomic_load_explicit(p, memory_order_relaxed);
}

static inline void store_release8(_Atomic uint8_t *p, uint8_t v)
{
	atomic_store_explicit(p, v, memory_order_release);
}

static inline void add_relaxed32(_Atomic uint32_t *p, uint32_t v)
{
	atomic_fetch_add_explicit(p, v, memory_order_relaxed);
}

static inline uint64_t word_limbo(uint32_t vm)
{
	return IPT_LIMBO | (uint64_t)vm << WORD_VM_SHIFT;
}

/* A frame that nobody is to have any more (bad.h): limbo of no VM. */
#define WORD_RETIRED ((uint64_t)IPT_LIMBO)

static inline uint64_t word_spare(uint32_t vm)
{
	return IPT_SPARE | (uint64_t)vm << WORD_VM_SHIFT;
}

static inline uint64_t word_mapped(enum ipt_state state, uint32_t vm, uint64_t g)
{
	return state | (uint64_t)vm << WORD_VM_SHIFT | g << WORD_GFN_SHIFT;
}

static inline uint64_t word_shared(uint32_t head)
{
	return IPT_SHARED | (uint64_t)head << WORD_GFN_SHIFT;
}

static inline enum ipt_state word_state(uint64_t w)
{
	return (enum ipt_state)(w & WORD_STATE);
}

static inline uint32_t word_vm(uint64_t w)
{
	return (uint32_t)(w >> WORD_VM_SHIFT) & (IPT_MAX_VMS - 1);
}

static inline uint64_t word_gfn(uint64_t w)
{
	return w >> WORD_GFN_SHIFT;
}

static inline bool word_is_mapped(uint64_t w)
{
	return w & WORD_MAPPED;
}

/* Is w the word of a frame or slot at (vm, g), whatever kind of element leads to it? */
static inline bool word_maps(uint64_t w, uint32_t vm, uint64_t g)
{
	const uint64_t any = WORD_FLAG | (WORD_STATE & ~WORD_MAPPED);

	return (w & ~any) == (WORD_MAPPED | (uint64_t)vm << WORD_VM_SHIFT | g << WORD_GFN_SHIFT);
}

/* Is w the word of a frame that a cluster element backs, of the 16 gfns from group * 16 on? */
static inline bool word_in_cluster(uint64_t w, uint32_t vm, uint64_t group)
{
	return (w & (WORD_MAPPED | WORD_FLAG)) == (WORD_MAPPED | WORD_FLAG) && word_vm(w) == vm &&
	       word_gfn(w) >> IPT_CLUSTER_ORDER == group;
}

static inline bool word_is_head(uint64_t w)
{
	return (w & (WORD_STATE | WORD_FLAG)) == WORD_FLAG;
}

static inline uint64_t word_head(unsigned order, uint32_t next, uint32_t prev)
{
	return WORD_FLAG | (uint64_t)order << WORD_VM_SHIFT | (uint64_t)next << WORD_NEXT_SHIFT |
	       (uint64_t)prev << WORD_PREV_SHIFT;
}

static inline unsigned word_order(uint64_t w)
{
	return (unsigned)(w >> WORD_VM_SHIFT) & 15;
}

static inline uint32_t word_next(uint64_t w)
{
	return (uint32_t)(w >> WORD_NEXT_SHIFT & WORD_LINK_MASK);
}

static inline uint32_t word_prev(uint64_t w)
{
	return (uint32_t)(w >> WORD_PREV_SHIFT & WORD_LINK_MASK);
}

#endif
