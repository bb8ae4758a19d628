#include "guest/bare/region.h"
#include "guest/bare/board.h"
#include "guest/bare/end.h"

extern char bare_image_end[];

#define ROUND_2M(v) (((v) + 0x1fffff) & ~UINT64_C(0x1fffff))
#define LEAST       UINT64_C(0x400000)

void region_make(struct region *r, const struct stage *s)
{
	uint64_t image_end = (uint64_t)(uintptr_t)bare_image_end;
	uint64_t lowest = image_end > LEAST ? image_end : LEAST;
	uint64_t base = s->base != WORDS_UNSET ? s->base : ROUND_2M(lowest);
	uint64_t left = s->pages;

	*r = (struct region){0};
	if (base % REGION_PAGE != 0)
		end_fail("base=0x%lx is not at a page's start", base);
	if (base < image_end)
		end_fail("base=0x%lx lies below the guest's own end, 0x%lx", base, image_end);
	for (unsigned i = 0; i < board.banks && left > 0; i++) {
		uint64_t from = board.bank[i].base, end = from + board.bank[i].bytes;
		if (from < base)
			from = base;
		if (from >= end)
			continue;
		uint64_t pages = (end - from) / REGION_PAGE;
		if (pages > left)
			pages = left;
		if (left != WORDS_UNSET)
			left -= pages;
		r->piece[r->pieces].base = from;
		r->piece[r->pieces++].pages = pages;
		r->pages += pages;
	}
	if (r->pages == 0 || (s->pages != WORDS_UNSET && r->pages < s->pages))
		end_fail("memory has %lu pages from 0x%lx on, %lu were asked for", r->pages, base,
			 s->pages == WORDS_UNSET ? UINT64_C(1) : s->pages);
	region_order_make(r, s, r->pages);
}

void region_order_make(struct region *r, const struct stage *s, uint64_t n)
{
	unsigned bits = 1;
	while (bits < 63 && UINT64_C(1) << bits < n)
		bits++;
	r->pages = n;
	r->random = s->order == ORDER_RAND;
	r->mask = (UINT64_C(1) << bits) - 1;
	r->half = (bits + 1) / 2;
	r->add = region_word(s->seed, 0);
}
