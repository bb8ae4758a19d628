/*
 * work=dirty: random writes, most of them within a working set. Every write counts one up in its
 * page, where a second word holds a check of (seed, page, count), so a page that is lost, stale or
 * another's is seen at its next write or at the end, and a lost write in the sum.
 */
#include "guest/bare/console.h"
#include "guest/bare/end.h"
#include "guest/bare/region.h"
#include "guest/bare/team.h"
#include "guest/bare/work.h"
#include <stdatomic.h>

#define COUNT 8   /* word of the page */
#define CHECK 504 /* in the page's last cache line */

struct dirty {
	struct region region;
	const struct stage *stage;
	uint64_t set, writes, round;
	_Atomic uint64_t sum;   /* of the counts found */
	_Atomic uint64_t pages; /* with a count */
};

static uint64_t check_of(const struct dirty *d, uint64_t at, uint64_t count)
{
	return count == 0 ? 0 : region_word(d->stage->seed ^ count << 20, at);
}

/* The count of a page, which must agree with its check. */
static uint64_t count_at(const struct dirty *d, uint64_t at)
{
	uint64_t count = region_word_at(at)[COUNT], found = region_word_at(at)[CHECK];
	uint64_t expected = check_of(d, at, count);
	if (found != expected)
		end_fail("dirty at gpa 0x%lx: count %lu wants check 0x%016lx, found 0x%016lx", at,
			 count, expected, found);
	return count;
}

static void set_count(const struct dirty *d, uint64_t at, uint64_t count)
{
	region_word_at(at)[COUNT] = count;
	region_word_at(at)[CHECK] = check_of(d, at, count);
}

static void init(void *arg, unsigned cpu, unsigned cpus)
{
	const struct dirty *d = arg;
	uint64_t i, to;
	team_slice(d->region.pages, cpu, cpus, &i, &to);
	for (; i < to; i++)
		set_count(d, region_at(&d->region, i), 0);
}

static void round_of(void *arg, unsigned cpu, unsigned cpus)
{
	const struct dirty *d = arg;
	uint64_t from, to, pages, set, writes, unused;
	team_slice(d->region.pages, cpu, cpus, &from, &to);
	pages = to - from;
	team_slice(d->set, cpu, cpus, &unused, &set);
	set -= unused;
	team_slice(d->writes, cpu, cpus, &unused, &writes);
	writes -= unused;
	for (uint64_t w = 0; w < writes; w++) {
		uint64_t r = region_word(d->stage->seed + cpu, d->round << 40 | w) >> 1;
		uint64_t among = set > 0 && r % 100 < d->stage->ratio ? set : pages;
		uint64_t at = region_at(&d->region, from + (r >> 8) % among);
		set_count(d, at, count_at(d, at) + 1);
	}
}

static void verify(void *arg, unsigned cpu, unsigned cpus)
{
	struct dirty *d = arg;
	uint64_t i, to, sum = 0, pages = 0;
	team_slice(d->region.pages, cpu, cpus, &i, &to);
	for (; i < to; i++) {
		uint64_t count = count_at(d, region_at(&d->region, i));
		sum += count;
		pages += count != 0;
	}
	atomic_fetch_add(&d->sum, sum);
	atomic_fetch_add(&d->pages, pages);
}

void dirty_run(const struct stage *s)
{
	static struct dirty d; /* too large for a small stack */
	struct team_time t = {0};
	uint64_t cycles = 0;
	d.stage = s;
	d.round = 0;
	d.sum = 0;
	d.pages = 0;
	region_make(&d.region, s);
	d.set = s->set != WORDS_UNSET ? s->set : (d.region.pages + 9) / 10;
	d.writes = s->writes != WORDS_UNSET ? s->writes : d.region.pages;
	if (d.set > d.region.pages || d.region.pages < team_size(s->smp) || d.writes == 0)
		end_fail("dirty: set= is at most pages=, which is at least one a vCPU; writes= is "
			 "at least 1");
	if (s->init != 0)
		team_do(init, &d, s->smp);
	for (; d.round < s->rounds; d.round++) {
		t = team_do(round_of, &d, s->smp);
		cycles += t.cycles;
	}
	team_do(verify, &d, s->smp);
	if (d.sum != d.writes * s->rounds)
		end_fail("dirty: %lu writes counted, %lu made", d.sum, d.writes * s->rounds);
	console_say("dirty rounds=%lu last-part=%u pages=%lu set=%lu cpus=%u writes=%lu "
		    "pages-written=%lu cycles/write=%lu us=%lu verified",
		    s->rounds, t.part, d.region.pages, d.set, team_size(s->smp), d.sum, d.pages,
		    s->rounds == 0 ? 0 : cycles / (d.writes * s->rounds), team_us(cycles));
}
