/* The audit of a table that others work on. */
#include "ipt/table.h"
#include "tests/unit/ipt_help.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>

enum { WORKERS = 3, FRAMES = 4096, HELD = 512 };

struct worker {
	struct ipt *t;
	vmid_t vm;
	pthread_t thread;
	atomic_bool stop;
};

/* Map and give back, at random, as fast as it goes. */
static void *work(void *arg)
{
	struct worker *w = arg;
	struct help_random r = {w->vm.v};
	frame_t f;

	while (!atomic_load(&w->stop)) {
		uint64_t g = help_below(&r, HELD);

		if (frame_valid(f = ipt_lookup(w->t, w->vm, gfn(g)))) {
			ipt_unmap(w->t, w->vm, gfn(g), 1, NULL, NULL);
			ipt_free(w->t, w->vm, f, 1);
		} else if (!ipt_alloc(w->t, w->vm, 0, NULL, &f)) {
			ipt_map(w->t, w->vm, gfn(g), f, 1);
		}
	}
	return NULL;
}

static void begin(struct ipt *t, struct worker *workers)
{
	static const char *const names[] = {"one", "two", "three"};

	for (unsigned i = 0; i < WORKERS; i++) {
		struct worker *w = &workers[i];

		*w = (struct worker){.t = t, .vm = help_vm(t, names[i])};
		cr_assert_eq(pthread_create(&w->thread, NULL, work, w), 0);
	}
}

static void end(struct worker *workers)
{
	for (unsigned i = 0; i < WORKERS; i++)
		atomic_store(&workers[i].stop, true);
	for (unsigned i = 0; i < WORKERS; i++)
		pthread_join(workers[i].thread, NULL);
}

struct heard {
	int lines;
	char last[256];
};

static void hear(void *ctx, const char *line)
{
	struct heard *h = ctx;

	h->lines++;
	snprintf(h->last, sizeof(h->last), "%s", line);
}

/* One audit sees states in between (it must, or this test shows nothing); the live one tells of none. */
BOTH_KINDS(ipt_audit, of_others_at_work_tells_nothing)
{
	struct ipt *t = help_table(kind, FRAMES);
	struct worker workers[WORKERS];
	struct heard heard = {0};
	unsigned seen = 0;

	begin(t, workers);
	for (unsigned i = 0; i < 5000 && !seen; i++)
		seen += ipt_audit(t, NULL, NULL) > 0;
	cr_assert_gt(seen, 0, "no audit saw anything of what goes on");
	for (unsigned i = 0; i < (UNDER_SLOW ? 5 : 50); i++)
		cr_assert_eq(ipt_audit_live(t, hear, &heard), 0, "%s", heard.last);
	end(workers);
	cr_assert_eq(heard.lines, 0);
	help_audit(t);
	ipt_detach(t);
}

/* What is wrong for good is told, once, whatever goes on beside it. */
BOTH_KINDS(ipt_audit, of_others_at_work_tells_what_is_wrong)
{
	struct ipt *t = help_table(kind, FRAMES);
	vmid_t quiet = help_vm(t, "quiet");
	struct worker workers[WORKERS];
	struct heard heard = {0};

	help_mapped(t, quiet, 0, 4);
	begin(t, workers);
	atomic_fetch_add(vm_frames(&t->vms[quiet.v], IPT_PRIVATE), 1);
	cr_assert_eq(ipt_audit_live(t, hear, &heard), 1);
	cr_assert_eq(heard.lines, 1);
	cr_assert_str_eq(heard.last, "I4: VM 1 counts +1 frames of state 4 that it hasn't");
	atomic_fetch_sub(vm_frames(&t->vms[quiet.v], IPT_PRIVATE), 1);
	cr_assert_eq(ipt_audit_live(t, hear, &heard), 0);
	end(workers);
	help_audit(t);
	ipt_detach(t);
}
