/*
 * Pages that were given back and came back, since their guest wrote to them again, perhaps the same as before: each time
 * twice as long passes before they are given back again. What is forgotten costs a fault more, no harm.
 */
#ifndef VMM_MERGE_AGAIN_H
#define VMM_MERGE_AGAIN_H

#include <stdbool.h>
#include <stdint.h>

#define MERGE_AGAIN_MOST 9 /* times that are counted: 512 passes */

struct merge_again_page;

struct merge_again {
	struct merge_again_page *page; /* by a hash; a later one takes the place of an earlier */
};

/* -ENOMEM */
int merge_again_create(struct merge_again *a);
void merge_again_destroy(struct merge_again *a);
/* It is given back in this pass. */
void merge_again_note(struct merge_again *a, uint32_t vm, uint64_t gfn, uint32_t pass);
/* Is it too soon to give it back again? */
bool merge_again_is_soon(const struct merge_again *a, uint32_t vm, uint64_t gfn, uint32_t pass);

#endif
