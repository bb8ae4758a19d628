/*
 * work=attack: which target when, by which vCPU, and the numbers. All vCPUs with smp=1 attack the same target at once,
 * each in its own way.
 */
#include "guest/bare/attack.h"
#include "guest/bare/board.h"
#include "guest/bare/console.h"
#include "guest/bare/cpu.h"
#include "guest/bare/end.h"
#include "guest/bare/region.h"
#include "guest/bare/team.h"
#include "guest/bare/vio.h"
#include "guest/bare/work.h"
#include "vmm/machine.h"
#include <string.h>

#define ARENA_PAGES 256

struct plan {
	uint64_t target, regs;
	struct attacker by[MACHINE_MAX_CPUS];
};

static const uint32_t ids[] = {
	[TARGET_BLK] = VIO_ID_BLK,   [TARGET_CONSOLE] = VIO_ID_CONSOLE, [TARGET_RNG] = VIO_ID_RNG,
	[TARGET_PMEM] = VIO_ID_PMEM, [TARGET_BALLOON] = VIO_ID_BALLOON,
};
static const char *const names[] = {"blk",     "console", "rng",   "pmem",
				    "balloon", "mmio",    "ports", "serial"};

uint64_t attack_random(struct attacker *a)
{
	uint64_t z = a->state += UINT64_C(0x9E3779B97F4A7C15); /* splitmix64 */
	z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
	z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
	return z ^ z >> 31;
}

uint32_t attack_below(struct attacker *a, uint32_t n)
{
	return (uint32_t)(attack_random(a) % n);
}

uint64_t attack_number(struct attacker *a)
{
	uint64_t v = attack_random(a);
	switch (v >> 61) {
	case 0:
		return v;
	case 1:
		return UINT64_MAX - v % 64;
	case 2:
		return UINT64_C(1) << v % 64;
	case 3:
		return (uint32_t)v;
	case 4:
		return v % 8;
	case 5:
		return board.bank[0].bytes - v % 64;
	default:
		return v % 0x3000;
	}
}

uint64_t attack_place(struct attacker *a, uint64_t part, uint64_t n, uint64_t align)
{
	return (part + attack_random(a) % (ATTACK_PART - n)) & ~(align - 1);
}

uint64_t attack_outside(struct attacker *a)
{
	switch (attack_below(a, 4)) {
	case 0:
		return machine_mmio_base(board.bank[0].bytes) + attack_below(a, 0x10000);
	case 1:
		return UINT64_MAX - attack_below(a, 0x2000);
	default:
		return board.bank[0].base + board.bank[0].bytes -
		       attack_below(a, 2) * attack_below(a, 64);
	}
}

uint64_t attack_address(struct attacker *a, uint64_t len)
{
	const uint64_t ends = board.bank[0].base + board.bank[0].bytes;
	bool fits = len < a->bytes;
	uint64_t at = fits && !attack_one_in(a, 6) ? a->data + attack_random(a) % (a->bytes - len)
						   : attack_outside(a);
	if (at < ends && at + len <= ends && !fits)
		return ends;
	if (at < ends && at + len <= ends && at < a->data + a->bytes - len && attack_one_in(a, 2))
		at &= ~UINT64_C(15);
	if (at < ends && at + len <= ends && (at < a->data || at > a->data + a->bytes - len))
		at = a->data;
	return at;
}

bool attack_is_over(const struct attacker *a)
{
	return cpu_tsc() >= a->until;
}

static void attack(void *arg, unsigned cpu, unsigned cpus)
{
	struct plan *p = arg;
	struct attacker *a = &p->by[cpu];
	(void)cpus;
	switch (p->target) {
	case TARGET_MMIO:
		attack_mmio(a);
		break;
	case TARGET_PORTS:
		attack_ports(a);
		break;
	case TARGET_SERIAL:
		attack_serial(a);
		break;
	default:
		attack_device(a, p->regs, ids[p->target]);
	}
}

/* The device to attack: of several of a kind, each in turn. 0: there is none. */
static uint64_t find(uint64_t target, uint64_t round)
{
	unsigned n = 0;
	if (target > TARGET_BALLOON)
		return 1;
	while (vio_find(ids[target], n) != 0)
		n++;
	return n > 0 ? vio_find(ids[target], (unsigned)(round % n)) : 0;
}

/* How many tries there were; 0 if there is no such device. */
static uint64_t attack_one(const struct stage *s, const struct region *r, uint64_t target,
			   uint64_t round, uint64_t cycles)
{
	static struct plan plan;
	struct attacker sum = {0};
	plan.target = target;
	plan.regs = find(target, round);
	if (plan.regs == 0)
		return 0;
	const uint64_t arena = region_page(r, 0), bytes = r->piece[0].pages * REGION_PAGE;
	memset((void *)(uintptr_t)arena, 0, bytes);
	for (unsigned i = 0; i < team_size(s->smp); i++)
		plan.by[i] = (struct attacker){
			.state = region_word(s->seed, round * 1000 + target * 100 + i),
			.desc = arena,
			.avail = arena + ATTACK_PART,
			.used = arena + 2 * ATTACK_PART,
			.data = arena + 3 * ATTACK_PART,
			.bytes = bytes - 3 * ATTACK_PART,
			.until = cpu_tsc() + cycles};
	struct team_time t = team_do(attack, &plan, s->smp);
	for (unsigned i = 0; i < team_size(s->smp); i++) {
		sum.tries += plan.by[i].tries;
		sum.resets += plan.by[i].resets;
		sum.stops += plan.by[i].stops;
	}
	if (target <= TARGET_BALLOON)
		vio_close(plan.regs);
	for (unsigned i = 0; target == TARGET_MMIO && i < board.virtios; i++)
		vio_close(board.virtio[i]);
	console_say("attack %s part=%u seed=%lu tries=%lu resets=%lu stops=%lu us=%lu",
		    names[target], t.part, s->seed, sum.tries, sum.resets, sum.stops,
		    team_us(t.cycles));
	return sum.tries;
}

void attack_run(const struct stage *s)
{
	struct stage arena = *s;
	struct region r;
	if (s->pages == WORDS_UNSET)
		arena.pages = ARENA_PAGES;
	region_make(&r, &arena);
	if (r.piece[0].pages * REGION_PAGE < 8 * ATTACK_PART)
		end_fail("attack: at least %u pages are needed", 8 * ATTACK_PART / REGION_PAGE);
	uint64_t cycles = team_cycles(s->seconds != WORDS_UNSET ? s->seconds : 1);
	if (s->target != TARGET_ALL) {
		/* In two parts, so that a second device of the kind has its turn. */
		for (uint64_t round = 0; round < 2; round++)
			if (attack_one(s, &r, s->target, round, cycles / 2) == 0)
				end_fail("attack: no such device");
		return;
	}
	/* All once more in the end, since what a console was made to say may be all that is kept of it. */
	uint64_t tries[TARGET_ALL] = {0};
	for (uint64_t target = 0; target < TARGET_ALL; target++)
		for (uint64_t round = 0; round < 2; round++)
			tries[target] +=
				attack_one(s, &r, target, round, cycles / (2 * TARGET_ALL));
	for (uint64_t target = 0; target < TARGET_ALL; target++)
		console_say("attacked %s tries=%lu", names[target], tries[target]);
}
