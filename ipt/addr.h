/*
 * The kinds of number that name memory, each a type of its own so that the compiler refuses to mix
 * them (a guest frame number is not a host frame number, although both count 4 KiB pages).
 *
 *   gpa    guest physical address, bytes
 *   gfn    guest frame number: gpa >> 12
 *   frame  index of a 4 KiB page of the pool
 *   vmid   a VM's number in the registry; 0 is no VM
 */
#ifndef IPT_ADDR_H
#define IPT_ADDR_H

#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>

#define PAGE_SHIFT 12
#define PAGE_SIZE  (UINT64_C(1) << PAGE_SHIFT)
#define PAGE_MASK  (PAGE_SIZE - 1)

#define KiB (UINT64_C(1) << 10)
#define MiB (UINT64_C(1) << 20)
#define GiB (UINT64_C(1) << 30)

typedef struct {
	uint64_t v;
} gpa_t;
typedef struct {
	uint64_t v;
} gfn_t;
typedef struct {
	uint32_t v;
} frame_t;
typedef struct {
	uint32_t v;
} vmid_t;

#define PRIgpa "0x%" PRIx64

#define INVALID_GFN   ((gfn_t){UINT64_MAX})
#define INVALID_FRAME ((frame_t){UINT32_MAX})
#define INVALID_VMID  ((vmid_t){0})

static inline gpa_t gpa(uint64_t v)
{
	return (gpa_t){v};
}

static inline gfn_t gfn(uint64_t v)
{
	return (gfn_t){v};
}

static inline frame_t frame(uint32_t v)
{
	return (frame_t){v};
}

static inline vmid_t vmid(uint32_t v)
{
	return (vmid_t){v};
}

static inline gfn_t gpa_gfn(gpa_t a)
{
	return (gfn_t){a.v >> PAGE_SHIFT};
}

static inline gpa_t gfn_gpa(gfn_t g)
{
	return (gpa_t){g.v << PAGE_SHIFT};
}

static inline gfn_t gfn_add(gfn_t g, uint64_t n)
{
	return (gfn_t){g.v + n};
}

static inline frame_t frame_add(frame_t f, uint32_t n)
{
	return (frame_t){f.v + n};
}

static inline bool frame_valid(frame_t f)
{
	return f.v != UINT32_MAX;
}

#endif
