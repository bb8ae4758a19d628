/*
 * work=pattern: pages filled with words that depend on (seed + pass, page, word), then read back.
 * work=zero: memory that nobody wrote reads as zero.
 */
#include "guest/bare/console.h"
#include "guest/bare/cpu.h"
#include "guest/bare/end.h"
#include "guest/bare/region.h"
#include "guest/bare/team.h"
#include "guest/bare/work.h"

struct pattern {
	struct region region;
	const struct stage *stage;
	uint64_t seed; /* of this pass */
	uint64_t step; /* between the words that are used */
};

/* The words of a page that are used: a first that differs from page to page, then every step-th. */
static uint64_t first_word(const struct pattern *p, uint64_t address)
{
	return region_word(p->stage->seed, address) >> 8 & (p->step - 1);
}

/* Number of the first word of the page's contents; pages with the same number are the same. */
static uint64_t content(const struct pattern *p, uint64_t address)
{
	uint64_t page = address / REGION_PAGE;
	if (p->stage->distinct != WORDS_UNSET)
		page %= p->stage->distinct;
	return page * REGION_PAGE_WORDS;
}

static void fill(void *arg, unsigned cpu, unsigned cpus)
{
	const struct pattern *p = arg;
	uint64_t i, to;
	team_slice(p->region.pages, cpu, cpus, &i, &to);
	for (; i < to; i++) {
		uint64_t at = region_at(&p->region, i), number = content(p, at);
		for (uint64_t w = first_word(p, at); w < REGION_PAGE_WORDS; w += p->step)
			region_word_at(at)[w] = region_word(p->seed, number + w);
	}
}

static void verify(void *arg, unsigned cpu, unsigned cpus)
{
	const struct pattern *p = arg;
	uint64_t i, to;
	team_slice(p->region.pages, cpu, cpus, &i, &to);
	for (; i < to; i++) {
		uint64_t at = region_at(&p->region, i), number = content(p, at);
		for (uint64_t w = first_word(p, at); w < REGION_PAGE_WORDS; w += p->step) {
			uint64_t found = region_word_at(at)[w];
			uint64_t expected = region_word(p->seed, number + w);
			if (found != expected)
				end_fail("pattern at gpa 0x%lx: expected 0x%016lx, found 0x%016lx "
					 "(seed %lu)",
					 at + w * 8, expected, found, p->seed);
		}
	}
}

void pattern_run(const struct stage *s)
{
	struct pattern p = {.stage = s, .seed = s->seed, .step = 1};
	uint64_t passes = s->passes != WORDS_UNSET ? s->passes : 1, pass = 0;
	uint64_t end = UINT64_MAX;
	region_make(&p.region, s);
	if (s->words == 0 || s->words > REGION_PAGE_WORDS || s->distinct == 0)
		end_fail("pattern: words= is 1 to 512, distinct= is at least 1");
	while (REGION_PAGE_WORDS / p.step > s->words)
		p.step *= 2;
	if (s->seconds != WORDS_UNSET) {
		end = cpu_tsc() + team_cycles(s->seconds);
		if (s->passes == WORDS_UNSET)
			passes = UINT64_MAX;
	}
	do {
		struct team_time f = {0}, v;
		/* The same pattern all the time if it is only to be looked at. */
		if (s->verify_only == 0) {
			p.seed = s->seed + pass;
			f = team_do(fill, &p, s->smp);
		}
		v = team_do(verify, &p, s->smp);
		if (s->seconds == WORDS_UNSET && s->verify_only == 0)
			console_say(
				"pattern pass=%lu fill part=%u pages=%lu cpus=%u cycles/page=%lu "
				"us=%lu",
				pass, f.part, p.region.pages, team_size(s->smp),
				f.cycles / p.region.pages, team_us(f.cycles));
		if (s->seconds == WORDS_UNSET)
			console_say("pattern pass=%lu verify part=%u pages=%lu cpus=%u "
				    "cycles/page=%lu us=%lu",
				    pass, v.part, p.region.pages, team_size(s->smp),
				    v.cycles / p.region.pages, team_us(v.cycles));
		pass++;
	} while (pass < passes && cpu_tsc() < end);
	console_say("pattern passes=%lu pages=%lu words/page=%lu verified", pass, p.region.pages,
		    REGION_PAGE_WORDS / p.step);
}

static void zero(void *arg, unsigned cpu, unsigned cpus)
{
	const struct region *r = arg;
	uint64_t i, to;
	team_slice(r->pages, cpu, cpus, &i, &to);
	for (; i < to; i++) {
		uint64_t at = region_at(r, i);
		for (unsigned w = 0; w < REGION_PAGE_WORDS; w++) {
			uint64_t found = region_word_at(at)[w];
			if (found != 0)
				end_fail("zero at gpa 0x%lx: expected 0, found 0x%016lx",
					 at + w * 8, found);
		}
	}
}

void zero_run(const struct stage *s)
{
	struct region r;
	region_make(&r, s);
	struct team_time t = team_do(zero, &r, s->smp);
	console_say("zero part=%u pages=%lu cpus=%u cycles/page=%lu verified", t.part, r.pages,
		    team_size(s->smp), t.cycles / r.pages);
}
