/* learn.c: what clones that were made say about those that will be. */
#include "virtio_fake.h"
#include "vmm/learn.h"

#include <criterion/criterion.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define MOST (LEARN_LEARNERS * LEARN_ENTRIES)

static struct learn *made(void)
{
	struct learn *l = learn_create();
	cr_assert_not_null(l);
	return l;
}

Test(learn, four_learn_and_others_dont)
{
	struct learn *l = made();
	for (int i = 0; i < LEARN_LEARNERS; i++)
		cr_assert_eq(learn_join(l, 0), i);
	for (int i = 0; i < 100; i++)
		cr_assert_eq(learn_join(l, 0), -1);
}

Test(learn, what_half_of_them_wrote_to_is_predicted)
{
	gfn_t out[MOST];
	struct learn *l = made();
	cr_assert_eq(learn_predict(l, 0, LEARN_WROTE, out, MOST), 0);
	/* Of one alone, all. */
	learn_note(l, 0, LEARN_WROTE, gfn(7));
	learn_note(l, 0, LEARN_WROTE, gfn(0));
	learn_note(l, 0, LEARN_WROTE, gfn(UINT64_C(1) << 40));
	cr_assert_eq(learn_predict(l, 0, LEARN_WROTE, out, MOST), 3);
	cr_assert(out[0].v == 0 && out[1].v == 7 && out[2].v == UINT64_C(1) << 40, "ascending");
	/* Of two, what either wrote; of three and four, what two did. */
	learn_note(l, 1, LEARN_WROTE, gfn(3));
	cr_assert_eq(learn_predict(l, 0, LEARN_WROTE, out, MOST), 4);
	cr_assert_eq(out[1].v, 3);
	learn_note(l, 2, LEARN_WROTE, gfn(7));
	cr_assert_eq(learn_predict(l, 0, LEARN_WROTE, out, MOST), 1);
	cr_assert_eq(out[0].v, 7);
	learn_note(l, 3, LEARN_WROTE, gfn(3));
	cr_assert_eq(learn_predict(l, 0, LEARN_WROTE, out, MOST), 2);
	cr_assert(out[0].v == 3 && out[1].v == 7);
	learn_note(l, 3, LEARN_WROTE, gfn(8));
	cr_assert_eq(learn_predict(l, 0, LEARN_WROTE, out, MOST), 2);
	cr_assert_eq(learn_predict(l, 0, LEARN_WROTE, out, 1), 1);
	cr_assert_eq(out[0].v, 3);
	cr_assert_eq(learn_predict(l, 0, LEARN_WROTE, out, 0), 0);
}

Test(learn, who_noted_nothing_has_no_say)
{
	gfn_t out[4];
	struct learn *l = made();
	for (int i = 0; i < LEARN_LEARNERS; i++)
		learn_join(l, 0);
	learn_note(l, 2, LEARN_WROTE, gfn(5));
	cr_assert_eq(learn_predict(l, 0, LEARN_WROTE, out, 4), 1);
	cr_assert_eq(out[0].v, 5);
}

/* An entry that was given out and not written yet, by one that was killed in between perhaps. */
Test(learn, entries_without_contents_are_passed_over)
{
	gfn_t out[4];
	struct learn *l = made();
	learn_note(l, 0, LEARN_WROTE, gfn(1));
	atomic_fetch_add(&l->n[0], 1);
	learn_note(l, 0, LEARN_WROTE, gfn(2));
	cr_assert_eq(learn_predict(l, 0, LEARN_WROTE, out, 4), 2);
	cr_assert(out[0].v == 1 && out[1].v == 2);
}

Test(learn, processes_note_at_the_same_time_and_more_than_there_is_room)
{
	static gfn_t out[MOST];
	struct learn *l = made();
	for (int round = 0; round < 2; round++) {
		pid_t child[LEARN_LEARNERS];
		for (int i = 0; i < LEARN_LEARNERS; i++) {
			child[i] = fork();
			if (child[i])
				continue;
			/* First all the room there is, then beyond it. */
			for (uint64_t g = 0; g < LEARN_ENTRIES; g++)
				learn_note(l, i, LEARN_WROTE, gfn(g * 3 + (unsigned)round));
			_exit(0);
		}
		for (int i = 0; i < LEARN_LEARNERS; i++) {
			int status;
			cr_assert_eq(waitpid(child[i], &status, 0), child[i]);
			cr_assert_eq(status, 0);
		}
		unsigned n = learn_predict(l, 0, LEARN_WROTE, out, MOST);
		cr_assert_eq(n, LEARN_ENTRIES);
		for (unsigned i = 0; i < n; i++)
			cr_assert_eq(out[i].v, i * 3);
	}
}

Test(learn, reads_and_writes_are_told_apart)
{
	gfn_t out[4];
	struct learn *l = made();
	learn_note(l, 0, LEARN_WROTE, gfn(5));
	learn_note(l, 0, LEARN_READ, gfn(512));
	learn_note(l, 1, LEARN_READ, gfn(0));
	learn_note(l, 2, LEARN_READ, gfn(512));
	cr_assert_eq(learn_predict(l, 0, LEARN_WROTE, out, 4), 1);
	cr_assert_eq(out[0].v, 5);
	cr_assert_eq(learn_predict(l, 0, LEARN_READ, out, 4), 1, "of three, what two did");
	cr_assert_eq(out[0].v, 512);
	/* What one notes twice counts once. */
	learn_note(l, 1, LEARN_READ, gfn(0));
	cr_assert_eq(learn_predict(l, 0, LEARN_READ, out, 4), 1);
	cr_assert_eq(learn_noted(l, 0), 5);
}

/* The number of notes lies in memory that all learners can write to. */
Test(learn, a_number_of_notes_that_is_out_of_order_is_bounded)
{
	static gfn_t out[MOST];
	struct learn *l = made();
	learn_note(l, 0, LEARN_WROTE, gfn(1));
	atomic_store(&l->n[0], UINT32_MAX);
	cr_assert_eq(learn_predict(l, 0, LEARN_WROTE, out, MOST), 1);
	learn_note(l, 0, LEARN_WROTE, gfn(2));
	cr_assert_eq(learn_noted(l, 0), LEARN_ENTRIES);
}

/* One that has just begun, and noted little, has no say as long as others have noted all they will. */
Test(learn, those_who_are_through_count)
{
	gfn_t out[4];
	struct learn *l = made();
	uint64_t end = LEARN_MS * UINT64_C(1000000);
	cr_assert_eq(learn_join(l, 1), 0);
	cr_assert_eq(learn_join(l, end), 1);
	cr_assert_eq(learn_join(l, end), 2);
	learn_note(l, 0, LEARN_WROTE, gfn(7));
	learn_note(l, 1, LEARN_WROTE, gfn(8));
	learn_note(l, 2, LEARN_WROTE, gfn(8));
	uint32_t noted = learn_noted(l, end);
	cr_assert_eq(learn_predict(l, end, LEARN_WROTE, out, 4), 1);
	cr_assert_eq(out[0].v, 8, "nobody is through");
	cr_assert_eq(learn_predict(l, end + 1, LEARN_WROTE, out, 4), 1);
	cr_assert_eq(out[0].v, 7, "one is");
	cr_assert_neq(learn_noted(l, end + 1), noted, "which is news");
	cr_assert_eq(learn_predict(l, 2 * end, LEARN_WROTE, out, 4), 1);
	cr_assert_eq(out[0].v, 8, "all are");
}
