#include "vmm/scenario.h"
#include "vmm/error.h"
#include "vmm/inject_parse.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_MOST (1 << 20)
#define REST_MS   1000 /* from the last fault to the end, unless it is said */
#define TEXT_MOST 64   /* of a name in words */

/* Which of an occurrence's random numbers */
enum { DRAW_CHANCE, DRAW_JITTER, DRAW_ADDRESS, DRAW_SEED };

/* ---- reading ------------------------------------------------------------------------------- */

json_t *scenario_read(const char *path, char *error)
{
	json_error_t why;
	struct stat st;
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size > FILE_MOST) {
		const char *words = fd < 0 || !S_ISREG(st.st_mode)
					    ? fd < 0 ? strerror(errno) : "not a regular file"
					    : "more than 1 MiB, which is more than a scenario";
		errorf(error, -EINVAL, "%.150s: %s", path, words);
		if (fd >= 0)
			close(fd);
		return NULL;
	}
	json_t *root = json_loadfd(fd, JSON_REJECT_DUPLICATES, &why);
	close(fd);
	if (!root)
		errorf(error, -EINVAL, "%.100s:%d:%d: %.100s", path, why.line, why.column,
		       why.text);
	return root;
}

/* Words about a member become words about its place in the file. */
static int at_step(const char *name, size_t step, const char *why, char *error)
{
	char words[ERROR_MAX];
	snprintf(words, sizeof words, "%.200s", why);
	return errorf(error, -EINVAL, "%.100s: steps[%zu].%s", name, step, words);
}

static int at_top(const char *name, const char *why, char *error)
{
	char words[ERROR_MAX];
	snprintf(words, sizeof words, "%.200s", why);
	return errorf(error, -EINVAL, "%.100s: %s", name, words);
}

static const char *const step_members[] = {"at", "every", "count", "jitter", "chance", "vm", NULL};

static int parse_times(const json_t *o, struct scenario_step *s, char *why)
{
	int64_t n;
	int rc = inject_number(o, "at", 0, SCENARIO_MS, -1, &n, why);
	s->at_ms = (uint64_t)n;
	bool repeats = json_object_get(o, "every");
	if (!rc && repeats)
		rc = inject_number(o, "every", 1, SCENARIO_MS, 0, &n, why);
	s->every_ms = repeats ? (uint64_t)n : 0;
	if (!rc && !repeats && json_object_get(o, "count"))
		return errorf(why, -EINVAL, "count: goes with \"every\"");
	if (!rc)
		rc = inject_number(o, "count", 1, SCENARIO_EVENTS, repeats ? 0 : 1, &n, why);
	s->count = (uint32_t)n;
	if (!rc)
		rc = inject_number(o, "jitter", 0, SCENARIO_MS, 0, &n, why);
	s->jitter_ms = (uint32_t)n;
	if (!rc)
		rc = inject_probability(o, "chance", &s->chance, why);
	if (!rc && s->at_ms + s->every_ms * (s->count - 1) + s->jitter_ms > SCENARIO_MS)
		return errorf(why, -EINVAL, "count: the last would come after %d ms", SCENARIO_MS);
	return rc;
}

static int parse_step(const json_t *o, struct scenario_step *s, scenario_vm_fn *find, void *ctx,
		      char *why)
{
	if (!json_is_object(o))
		return errorf(why, -EINVAL,
			      "at: needs an object with \"at\", \"vm\" and \"fault\"");
	int rc = parse_times(o, s, why);
	const char *vm = json_string_value(json_object_get(o, "vm"));
	if (rc)
		return rc;
	if (!vm || !*vm || strlen(vm) >= sizeof s->vm)
		return errorf(why, -EINVAL, "vm: needs a guest's name");
	snprintf(s->vm, sizeof s->vm, "%s", vm);
	const struct vm_config *config = find(ctx, vm);
	if (!config)
		return errorf(why, -EINVAL, "vm: no guest is called %.*s", TEXT_MOST, vm);
	return inject_parse(o, step_members, config, &s->fault, why);
}

static int parse_top(const json_t *root, struct scenario *s, char *why)
{
	static const char *const members[] = {"seed", "from", "for", "stop", "steps", NULL};
	const json_t *from = json_object_get(root, "from"), *stop = json_object_get(root, "stop");
	const char *word = json_string_value(from);
	int64_t n = 0;
	if (!json_is_object(root))
		return errorf(why, -EINVAL, "a scenario is an object with \"steps\"");
	int rc = inject_members(root, members, NULL, why);
	if (!rc)
		rc = inject_number(root, "seed", 0, INT64_MAX, 0, &n, why);
	s->seed = (uint64_t)n;
	s->has_seed = json_object_get(root, "seed");
	if (!rc)
		rc = inject_number(root, "for", 1, SCENARIO_MS + REST_MS, 1, &n, why);
	s->for_ms = json_object_get(root, "for") ? (uint64_t)n : 0;
	if (rc)
		return rc;
	if (from && (!word || (strcmp(word, "ready") && strcmp(word, "start"))))
		return errorf(why, -EINVAL, "from: \"ready\" or \"start\"");
	s->from_start = word && !strcmp(word, "start");
	if (stop && !json_is_boolean(stop))
		return errorf(why, -EINVAL, "stop: true or false");
	s->stop = json_is_true(stop);
	const json_t *steps = json_object_get(root, "steps");
	if (!json_is_array(steps) || !json_array_size(steps) ||
	    json_array_size(steps) > SCENARIO_STEPS)
		return errorf(why, -EINVAL, "steps: needs an array of 1 to %d", SCENARIO_STEPS);
	s->steps = (uint32_t)json_array_size(steps);
	return 0;
}

int scenario_parse(struct scenario **out, const json_t *root, const char *name,
		   scenario_vm_fn *find, void *ctx, char *error)
{
	char why[ERROR_MAX] = "";
	struct scenario *s = calloc(1, sizeof *s);
	int rc = s ? parse_top(root, s, why) : errorf(why, -ENOMEM, "no memory");
	if (rc)
		at_top(name, why, error);
	if (!rc) {
		s->step = calloc(s->steps, sizeof *s->step);
		rc = s->step ? 0 : errorf(error, -ENOMEM, "%.100s: no memory", name);
	}
	const json_t *steps = json_object_get(root, "steps");
	for (size_t i = 0; !rc && i < s->steps; i++) {
		rc = parse_step(json_array_get(steps, i), &s->step[i], find, ctx, why);
		if (rc)
			at_step(name, i, why, error);
	}
	if (rc)
		scenario_free(s);
	else
		*out = s;
	return rc;
}

void scenario_free(struct scenario *s)
{
	if (!s)
		return;
	free(s->step);
	free(s->event);
	free(s);
}

/* ---- planning ------------------------------------------------------------------------------ */

static int compare(const void *a, const void *b)
{
	const struct scenario_event *x = a, *y = b;
	if (x->at_ms != y->at_ms)
		return x->at_ms < y->at_ms ? -1 : 1;
	if (x->step != y->step)
		return x->step < y->step ? -1 : 1;
	return x->occurrence < y->occurrence ? -1 : x->occurrence > y->occurrence;
}

static void plan_one(const struct scenario *s, uint64_t seed, uint32_t i, uint32_t k,
		     struct scenario_event *e)
{
	const struct scenario_step *step = &s->step[i];
	uint64_t jitter = chance_below(seed, i, k, DRAW_JITTER, step->jitter_ms + UINT64_C(1));
	*e = (struct scenario_event){step->at_ms + step->every_ms * k + jitter, i, k, step->fault};
	if (inject_has_page(e->fault.kind) && e->fault.bytes)
		e->fault.gpa = e->fault.from +
			       (chance_below(seed, i, k, DRAW_ADDRESS, e->fault.bytes >> PAGE_SHIFT)
				<< PAGE_SHIFT);
	bool draws = e->fault.kind == INJECT_DISK || e->fault.kind == INJECT_POWER_CUT;
	if (draws && !e->fault.seed) /* 53 bits, for JSON */
		e->fault.seed = chance_number(seed, i, k, DRAW_SEED) >> 11;
}

int scenario_plan(struct scenario *s, uint64_t seed)
{
	uint64_t most = 0;
	for (uint32_t i = 0; i < s->steps; i++)
		most += s->step[i].count;
	if (most > SCENARIO_EVENTS)
		return -E2BIG;
	free(s->event);
	s->event = calloc(most, sizeof *s->event);
	s->events = 0;
	s->seed = seed;
	if (!s->event)
		return -ENOMEM;
	for (uint32_t i = 0; i < s->steps; i++)
		for (uint32_t k = 0; k < s->step[i].count; k++)
			if (chance_below(seed, i, k, DRAW_CHANCE, INJECT_CERTAIN) <
			    s->step[i].chance)
				plan_one(s, seed, i, k, &s->event[s->events++]);
	qsort(s->event, s->events, sizeof *s->event, compare);
	uint64_t last = s->events ? s->event[s->events - 1].at_ms : 0;
	if (!s->for_ms)
		s->for_ms = last + REST_MS;
	return 0;
}
