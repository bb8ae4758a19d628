/*
 * What the parts of work=attack share: a vCPU's attacker, with numbers of its own, and the memory of the attack.
 *
 * The guest is to outlive it, so no device is ever told to write to other memory than that; and since devices read
 * what the guest is about to change, and two halves of two tries may come together, each field by itself keeps to
 * this: descriptors lie at multiples of 16 in a part of their own that no device writes to, rings likewise; buffers
 * are in the rest, or in no memory. (A length that isn't its address's may reach 4 MiB beyond.)
 */
#ifndef BARE_ATTACK_H
#define BARE_ATTACK_H

#include <stdbool.h>
#include <stdint.h>

#define ATTACK_PART 0x10000

struct attacker {
	uint64_t state;                /* of the generator */
	uint64_t desc, avail, used;    /* parts of the memory, of ATTACK_PART bytes each */
	uint64_t data, bytes;          /* the rest of it */
	uint64_t until;                /* TSC */
	uint64_t tries, resets, stops; /* what was done; of it resets, and devices found stopped */
};

uint64_t attack_random(struct attacker *a);
uint32_t attack_below(struct attacker *a, uint32_t n);
static inline bool attack_one_in(struct attacker *a, uint32_t n)
{
	return attack_below(a, n) == 0;
}
/* A number of the kind that code gets wrong. */
uint64_t attack_number(struct attacker *a);
/* An address for a buffer of `len` bytes: of the data's memory, or not all of it is memory. */
uint64_t attack_address(struct attacker *a, uint64_t len);
/* A place for `n` bytes in a part. */
uint64_t attack_place(struct attacker *a, uint64_t part, uint64_t n, uint64_t align);
/* An address beyond memory, or with fewer than 64 bytes before its end. */
uint64_t attack_outside(struct attacker *a);
bool attack_is_over(const struct attacker *a);

/* The parts: each goes on until a->until. */
void attack_device(struct attacker *a, uint64_t regs, uint32_t id);
void attack_mmio(struct attacker *a);
void attack_ports(struct attacker *a);
void attack_serial(struct attacker *a);

#endif
