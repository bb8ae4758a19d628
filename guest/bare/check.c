/*
 * work=check: pages filled with words that depend on (seed, version, page, word), then visited at random for a time.
 * A visit looks at all words of its page; one in so many makes the page's next version. In the end every page is looked
 * at once more, and the versions' sum must be that of the rewrites: nothing was lost, stale or another's.
 *
 * It tells each second what it has done so far, so that a reader can count the visits of any stretch of time.
 */
#include "guest/bare/console.h"
#include "guest/bare/cpu.h"
#include "guest/bare/end.h"
#include "guest/bare/region.h"
#include "guest/bare/team.h"
#include "guest/bare/work.h"

#define VERSION  0  /* word of the page */
#define LOOK_FOR 16 /* visits between looks at the clock */

struct check {
	struct region region;
	const struct stage *stage;
	uint64_t step; /* between the words that are used */
	uint64_t set;  /* pages that are visited more often */
	uint64_t visits, rewrites;
};

static uint64_t word_of(const struct check *c, uint64_t version, uint64_t at, uint64_t w)
{
	return region_word(c->stage->seed ^ version << 20, at + w * 8);
}

static void write_page(const struct check *c, uint64_t at, uint64_t version)
{
	region_word_at(at)[VERSION] = version;
	for (uint64_t w = c->step - 1; w < REGION_PAGE_WORDS; w += c->step)
		if (w != VERSION)
			region_word_at(at)[w] = word_of(c, version, at, w);
}

/* The version of a page, all of whose words must be that version's. */
static uint64_t look(const struct check *c, uint64_t at)
{
	uint64_t version = region_word_at(at)[VERSION];
	for (uint64_t w = c->step - 1; w < REGION_PAGE_WORDS; w += c->step) {
		uint64_t found = region_word_at(at)[w], expected = word_of(c, version, at, w);
		if (w != VERSION && found != expected)
			end_fail(
				"check at gpa 0x%lx: version %lu expected 0x%016lx, found 0x%016lx",
				at + w * 8, version, expected, found);
	}
	return version;
}

static void visit(struct check *c)
{
	uint64_t r = region_word(c->stage->seed + 1, c->visits++) >> 1, pages = c->region.pages;
	uint64_t rest = pages - c->set;
	uint64_t page = rest == 0 || r % 100 < c->stage->ratio ? (r >> 8) % c->set
							       : c->set + (r >> 8) % rest;
	uint64_t at = region_at(&c->region, page), version = look(c, at);
	if (c->visits % c->stage->writes == 0) {
		write_page(c, at, version + 1);
		c->rewrites++;
	}
}

void check_run(const struct stage *s)
{
	struct check c = {.stage = s, .step = 1};
	struct stage with = *s;
	region_make(&c.region, s);
	if (s->writes == WORDS_UNSET)
		with.writes = 8;
	c.stage = &with;
	c.set = s->set != WORDS_UNSET ? s->set : (c.region.pages + 9) / 10;
	if (s->words == 0 || s->words > REGION_PAGE_WORDS || with.writes == 0 || c.set == 0 ||
	    c.set > c.region.pages)
		end_fail("check: words= is 1 to 512, writes= at least 1, set= 1 to pages=");
	while (REGION_PAGE_WORDS / c.step > s->words)
		c.step *= 2;
	uint64_t began = cpu_tsc();
	struct team_time t = team_start();
	for (uint64_t i = 0; i < c.region.pages; i++)
		write_page(&c, region_page(&c.region, i), 0);
	team_stop(&t);
	console_say("check filled pages=%lu us=%lu", c.region.pages, team_us(t.cycles));

	uint64_t seconds = s->seconds != WORDS_UNSET ? s->seconds : 1, second = team_cycles(1);
	t = team_start();
	for (uint64_t said = (t.cycles - began) / second; said < seconds;) {
		for (unsigned i = 0; i < LOOK_FOR; i++)
			visit(&c);
		uint64_t passed = cpu_tsc() - began;
		if (passed < (said + 1) * second)
			continue;
		said = passed / second;
		console_say("check us=%lu visits=%lu", team_us(passed), c.visits);
	}
	team_stop(&t);

	uint64_t sum = 0;
	for (uint64_t i = 0; i < c.region.pages; i++)
		sum += look(&c, region_page(&c.region, i));
	if (sum != c.rewrites)
		end_fail("check: %lu rewrites counted, %lu made", sum, c.rewrites);
	console_say("check part=%u pages=%lu set=%lu words/page=%lu visits=%lu rewrites=%lu us=%lu "
		    "verified",
		    t.part, c.region.pages, c.set, REGION_PAGE_WORDS / c.step, c.visits, c.rewrites,
		    team_us(t.cycles));
}
