#include "vmm/top.h"
#include "ipt/addr.h"
#include "vmm/answer.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Negative widths: words, to the left. */
static const struct column {
	const char *title;
	int width, digits; /* behind the point */
} columns[TOP_COLUMNS] = {
	[TOP_NAME] = {"NAME", -16, 0},       [TOP_STATE] = {"STATE", -9, 0},
	[TOP_PARENT] = {"PARENT", -12, 0},   [TOP_CPUS] = {"CPUS", 4, 0},
	[TOP_PROMISED] = {"PROM MiB", 9, 0}, [TOP_MAPPED] = {"MAP MiB", 9, 1},
	[TOP_OWN] = {"OWN MiB", 9, 1},       [TOP_SHARED] = {"SHARED", 9, 1},
	[TOP_OUT] = {"OUT MiB", 9, 1},       [TOP_STALL] = {"STALL%", 7, 1},
	[TOP_FAULTS] = {"FAULTS/s", 9, 1},   [TOP_STARVED] = {"STARVED", 7, 0},
	[TOP_P99] = {"P99 us", 8, 0},        [TOP_PID] = {"PID", 8, 0},
};

/* ---- taking answers in --------------------------------------------------------------------- */

static void copy(char *out, size_t size, const json_t *o, const char *key)
{
	snprintf(out, size, "%s", answer_text(o, key));
}

static void take_vm(struct top_vm *v, const json_t *o)
{
	const json_t *faults = json_object_get(o, "second_stage_faults");
	double *value = v->value, mib = (double)PAGE_SIZE / (double)MiB;
	copy(v->name, sizeof v->name, o, "name");
	copy(v->state, sizeof v->state, o, "state");
	copy(v->parent, sizeof v->parent, o, "parent");
	v->id = (uint64_t)answer_number(o, "id");
	v->faults = (uint64_t)(answer_number(faults, "guest_read") +
			       answer_number(faults, "guest_write"));
	value[TOP_CPUS] = answer_number(o, "cpus");
	value[TOP_PROMISED] = answer_mib(o, "memory_bytes");
	value[TOP_OWN] = answer_number(o, "frames_private") * mib;
	value[TOP_SHARED] =
		(answer_number(o, "frames_inherited") + answer_number(o, "aliases")) * mib;
	value[TOP_MAPPED] = value[TOP_OWN] + value[TOP_SHARED];
	value[TOP_OUT] = answer_number(o, "frames_out") * mib;
	value[TOP_STALL] = answer_number(json_object_get(o, "reclaim"), "stall_avg10") * 100;
	value[TOP_STARVED] = answer_number(o, "starved");
	value[TOP_P99] = answer_number(json_object_get(o, "fault_service"), "p99_ns") / 1e3;
	value[TOP_PID] = answer_number(o, "pid");
}

static void rate(struct top_vm *v, const struct top *before, double seconds)
{
	for (unsigned i = 0; i < before->vms; i++) {
		const struct top_vm *was = &before->vm[i];
		if (was->id == v->id && !strcmp(was->name, v->name) && v->faults >= was->faults)
			v->value[TOP_FAULTS] = (double)(v->faults - was->faults) / seconds;
	}
}

/* All that the pool's frames are, whatever states there be. */
static void say_frames(char *line, const json_t *pool)
{
	double total = answer_number(pool, "frames_total");
	int n = snprintf(line, TOP_LINE, "frames %.0f", total);
	const char *key;
	json_t *v;
	json_object_foreach((json_t *)pool, key, v)
	{
		if (strncmp(key, "frames_", 7) || !strcmp(key, "frames_total") || n >= TOP_LINE)
			continue;
		n += snprintf(line + n, (size_t)(TOP_LINE - n), "  %s %.0f (%.1f%%)", key + 7,
			      json_number_value(v),
			      total > 0 ? json_number_value(v) / total * 100 : 0);
	}
}

/* Free frames against the mark below which pages go out; what is out, where; the VM that waits most. */
static void say_reclaim(const struct top *t, char *line, const json_t *stats)
{
	const json_t *r = json_object_get(stats, "reclaim"), *pool = json_object_get(stats, "pool");
	double mib = (double)PAGE_SIZE / (double)MiB, worst = 0;
	if (!json_is_object(r)) {
		snprintf(line, TOP_LINE, "reclaim off");
		return;
	}
	for (unsigned i = 0; i < t->vms; i++)
		if (t->vm[i].value[TOP_STALL] > worst)
			worst = t->vm[i].value[TOP_STALL];
	snprintf(line, TOP_LINE,
		 "reclaim free %.1f MiB (low %.1f), out %.1f; packed %.1f of %.1f, swap %.1f of "
		 "%.1f; stall %.1f%%%s",
		 answer_number(pool, "frames_free") * mib, answer_number(r, "low_frames") * mib,
		 answer_number(r, "pages_out") * mib, answer_mib(r, "packed_memory_used_bytes"),
		 answer_mib(r, "packed_memory_total_bytes"), answer_mib(r, "swap_used_bytes"),
		 answer_mib(r, "swap_total_bytes"), worst,
		 !json_is_true(json_object_get(r, "running"))       ? "; the reclaimer failed"
		 : json_is_true(json_object_get(r, "nothing_left")) ? "; no more can go out"
								    : "");
}

static void say_headers(struct top *t, const json_t *status, const json_t *stats)
{
	const json_t *pool = json_object_get(stats, "pool"),
		     *table = json_object_get(stats, "table");
	double used = answer_number(pool, "frames_total") - answer_number(pool, "frames_free"),
	       faults = 0;
	char state[16], kind[16];
	unsigned up = (unsigned)answer_number(status, "uptime_seconds");
	copy(state, sizeof state, status, "state");
	copy(kind, sizeof kind, table, "kind");
	for (unsigned i = 0; i < t->vms; i++)
		faults += t->vm[i].value[TOP_FAULTS];
	snprintf(
		t->header[0], TOP_LINE,
		"host %.0f: %s, up %u:%02u:%02u, %u of %.0f VMs; pool %.1f MiB, of which %.1f have "
		"memory",
		answer_number(status, "pid"), state, up / 3600, up / 60 % 60, up % 60, t->vms,
		answer_number(status, "max_vms"), answer_mib(pool, "total_bytes"),
		answer_mib(pool, "populated_bytes"));
	say_frames(t->header[1], pool);
	snprintf(t->header[2], TOP_LINE,
		 "table %s, %.1f KiB, %.1f bytes a used frame; %.1f faults/s", kind,
		 answer_number(table, "total_bytes") / 1024,
		 used > 0 ? answer_number(table, "total_bytes") / used : 0, faults);
	say_reclaim(t, t->header[3], stats);
}

bool top_update(struct top *t, const json_t *status, const json_t *stats, uint64_t now_ns)
{
	const json_t *vms = json_object_get(stats, "vms");
	size_t n = json_array_size(vms);
	struct top_vm *vm = calloc(n + 1, sizeof *vm);
	if (!vm)
		return false;
	double seconds = (double)(now_ns - t->at_ns) / 1e9;
	for (size_t i = 0; i < n; i++) {
		take_vm(&vm[i], json_array_get(vms, i));
		if (t->at_ns && now_ns > t->at_ns)
			rate(&vm[i], t, seconds);
	}
	free(t->vm);
	t->rates = t->at_ns;
	t->vm = vm;
	t->vms = (unsigned)n;
	t->at_ns = now_ns;
	say_headers(t, status, stats);
	top_sort(t);
	return true;
}

/* ---- sorting and lines --------------------------------------------------------------------- */

static const char *word(const struct top_vm *v, enum top_column c)
{
	return c == TOP_NAME ? v->name : c == TOP_STATE ? v->state : v->parent;
}

static int compare(const void *a, const void *b, void *ctx)
{
	const struct top_vm *x = a, *y = b;
	const struct top *t = ctx;
	double p = x->value[t->column], q = y->value[t->column];
	int order = columns[t->column].width < 0
			    ? strverscmp(word(x, t->column), word(y, t->column))
			    : (p < q) - (p > q);
	if (t->reverse)
		order = -order;
	return order ? order : strverscmp(x->name, y->name);
}

void top_sort(struct top *t)
{
	qsort_r(t->vm, t->vms, sizeof *t->vm, compare, t);
}

void top_titles(const struct top *t, char *line)
{
	int n = 0;
	for (int c = 0; c < TOP_COLUMNS; c++) {
		char title[16];
		snprintf(title, sizeof title, "%s%s", columns[c].title,
			 (int)t->column == c ? t->reverse ? "^" : "v" : "");
		n += snprintf(line + n, (size_t)(TOP_LINE - n), "%s%*s", c ? " " : "",
			      columns[c].width, title);
	}
}

void top_line(const struct top *t, unsigned i, char *line)
{
	const struct top_vm *v = &t->vm[i];
	int n = 0;
	for (int c = 0; c < TOP_COLUMNS && n < TOP_LINE; c++) {
		const struct column *col = &columns[c];
		char *at = line + n;
		size_t room = (size_t)(TOP_LINE - n);
		const char *space = c ? " " : "";
		if (col->width < 0)
			n += snprintf(at, room, "%s%*.*s", space, col->width, -col->width,
				      word(v, c));
		else if (c == TOP_FAULTS && !t->rates)
			n += snprintf(at, room, "%s%*s", space, col->width, "-");
		else
			n += snprintf(at, room, "%s%*.*f", space, col->width, col->digits,
				      v->value[c]);
	}
}

void top_free(struct top *t)
{
	free(t->vm);
	t->vm = NULL;
	t->vms = 0;
}
