/*
 * work=touch: one store or load in every page.
 */
#include "guest/bare/console.h"
#include "guest/bare/region.h"
#include "guest/bare/team.h"
#include "guest/bare/work.h"

struct touch {
	struct region region;
	const struct stage *stage;
};

static void slice(void *arg, unsigned cpu, unsigned cpus)
{
	const struct touch *t = arg;
	uint64_t i, to;
	team_slice(t->region.pages, cpu, cpus, &i, &to);
	if (t->stage->write != 0) {
		for (; i < to; i++) {
			uint64_t at = region_at(&t->region, i);
			*region_word_at(at) = at + t->stage->seed;
		}
	} else {
		for (; i < to; i++)
			(void)*region_word_at(region_at(&t->region, i));
	}
}

void touch_run(const struct stage *s)
{
	struct touch t = {.stage = s};
	uint64_t passes = s->passes != WORDS_UNSET ? s->passes : 1;
	region_make(&t.region, s);
	for (uint64_t pass = 0; pass < passes; pass++) {
		struct team_time time = team_do(slice, &t, s->smp);
		console_say("touch pass=%lu part=%u pages=%lu cpus=%u cycles=%lu cycles/page=%lu "
			    "us=%lu",
			    pass, time.part, t.region.pages, team_size(s->smp), time.cycles,
			    time.cycles / t.region.pages, team_us(time.cycles));
	}
}
