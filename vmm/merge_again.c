#include "vmm/merge_again.h"
#include <errno.h>
#include <stdlib.h>

#define PAGES (1u << 18) /* 2 MiB, once all are used */

struct merge_again_page {
	uint32_t key;       /* another part of the hash */
	uint32_t times : 4; /* that it was given back; 0: nothing is here */
	uint32_t pass : 28; /* in which that was last; it wraps after eight years */
};

int merge_again_create(struct merge_again *a)
{
	a->page = calloc(PAGES, sizeof *a->page);
	return a->page ? 0 : -ENOMEM;
}

void merge_again_destroy(struct merge_again *a)
{
	free(a->page);
}

static struct merge_again_page *find(const struct merge_again *a, uint32_t vm, uint64_t gfn,
				     uint32_t *key)
{
	uint64_t hash = (gfn + ((uint64_t)vm << 40)) * UINT64_C(0x9E3779B97F4A7C15);
	hash ^= hash >> 29;
	hash *= UINT64_C(0xBF58476D1CE4E5B9);
	*key = (uint32_t)hash;
	return &a->page[hash >> 32 & (PAGES - 1)];
}

static uint32_t passes_since(const struct merge_again_page *p, uint32_t pass)
{
	return (pass - p->pass) & ((1u << 28) - 1);
}

void merge_again_note(struct merge_again *a, uint32_t vm, uint64_t gfn, uint32_t pass)
{
	uint32_t key;
	struct merge_again_page *p = find(a, vm, gfn, &key);
	/* What stayed away for long begins anew. */
	bool again = p->times && p->key == key && passes_since(p, pass) < 4u << p->times;
	uint32_t times = again ? p->times + 1u : 1;
	*p = (struct merge_again_page){
		.key = key,
		.times = (times < MERGE_AGAIN_MOST ? times : MERGE_AGAIN_MOST) & 15,
		.pass = pass & ((1u << 28) - 1)};
}

bool merge_again_is_soon(const struct merge_again *a, uint32_t vm, uint64_t gfn, uint32_t pass)
{
	uint32_t key;
	const struct merge_again_page *p = find(a, vm, gfn, &key);
	return p->times && p->key == key && passes_since(p, pass) < 1u << p->times;
}
