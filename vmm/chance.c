/* Random numbers by place, not by sequence: a function of (seed, a, b, n), mixed as by splitmix64's finisher (Steele, Lea
 * and Flood, "Fast splittable pseudorandom number generators", 2014), once for each. */
#include "vmm/inject.h"

static uint64_t mix(uint64_t x)
{
	x ^= x >> 30;
	x *= UINT64_C(0xbf58476d1ce4e5b9);
	x ^= x >> 27;
	x *= UINT64_C(0x94d049bb133111eb);
	return x ^ x >> 31;
}

uint64_t chance_number(uint64_t seed, uint64_t a, uint64_t b, uint64_t n)
{
	const uint64_t step = UINT64_C(0x9e3779b97f4a7c15);
	uint64_t x = mix(seed + step);
	x = mix(x + (a + 1) * step);
	x = mix(x + (b + 1) * step);
	return mix(x + (n + 1) * step);
}

uint64_t chance_below(uint64_t seed, uint64_t a, uint64_t b, uint64_t n, uint64_t below)
{
	return (uint64_t)((unsigned __int128)chance_number(seed, a, b, n) * below >> 64);
}
