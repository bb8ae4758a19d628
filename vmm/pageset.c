#include "vmm/pageset.h"
#include <stdbool.h>

#define GROUP_WORDS        64u            /* 4,096 pages */
#define HOST_PAGE          ((size_t)4096) /* the groups' bits have pages of their own */
#define GROUP_BYTES(pages) (((pages) / (GROUP_WORDS * 64) / 8 / HOST_PAGE + 1) * HOST_PAGE)

size_t pageset_bytes(uint64_t pages)
{
	return GROUP_BYTES(pages) + (pages / 8 / HOST_PAGE + 1) * HOST_PAGE;
}

struct pageset pageset_at(void *memory, uint64_t pages)
{
	return (struct pageset){.group = memory,
				.word = (_Atomic uint64_t *)((char *)memory + GROUP_BYTES(pages)),
				.pages = pages};
}

/* The bits of word w that belong to [first, end). */
static uint64_t bits(uint64_t w, uint64_t first, uint64_t end)
{
	uint64_t from = first > w * 64 ? first - w * 64 : 0;
	uint64_t to = end < w * 64 + 64 ? end - w * 64 : 64;
	return (to == 64 ? UINT64_MAX : (UINT64_C(1) << to) - 1) & (UINT64_MAX << from);
}

static void add_group(struct pageset *s, uint64_t g)
{
	atomic_fetch_or(&s->group[g / 64], UINT64_C(1) << (g % 64));
}

void pageset_add(struct pageset *s, uint64_t first, uint64_t count)
{
	for (uint64_t w = first / 64; count && w <= (first + count - 1) / 64; w++) {
		atomic_fetch_or(&s->word[w], bits(w, first, first + count));
		add_group(s, w / GROUP_WORDS); /* after the word: see empty_group */
	}
}

static bool is_empty(const struct pageset *s, uint64_t g)
{
	for (uint64_t w = g * GROUP_WORDS; w < (g + 1) * GROUP_WORDS && w * 64 < s->pages; w++)
		if (atomic_load(&s->word[w]))
			return false;
	return true;
}

/* Take the group's bit away if it has no page. Who adds one meanwhile sets the word first and then the
 * group's bit; so either we see the word and set the bit again, or the adder sets it after us. */
static void empty_group(struct pageset *s, uint64_t g)
{
	if (!is_empty(s, g))
		return;
	atomic_fetch_and(&s->group[g / 64], ~(UINT64_C(1) << (g % 64)));
	if (!is_empty(s, g))
		add_group(s, g);
}

void pageset_remove(struct pageset *s, uint64_t first, uint64_t count)
{
	if (!count)
		return;
	uint64_t end = first + count;
	for (uint64_t w = first / 64; w <= (end - 1) / 64; w++)
		atomic_fetch_and(&s->word[w], ~bits(w, first, end));
	for (uint64_t g = first / 64 / GROUP_WORDS; g <= (end - 1) / 64 / GROUP_WORDS; g++)
		empty_group(s, g);
}

/* The first page from `at` on that is in the set (wanted) or isn't; s->pages if there is none. */
static uint64_t find(const struct pageset *s, uint64_t at, uint64_t limit, bool wanted)
{
	while (at < limit) {
		uint64_t w = at / 64, g = w / GROUP_WORDS;
		if (wanted && !(atomic_load(&s->group[g / 64]) >> (g % 64) & 1)) {
			at = (g + 1) * GROUP_WORDS * 64;
			continue;
		}
		uint64_t v = atomic_load(&s->word[w]);
		v = (wanted ? v : ~v) & (UINT64_MAX << (at % 64));
		if (v) {
			at = w * 64 + (unsigned)__builtin_ctzll(v);
			break;
		}
		at = (w + 1) * 64;
	}
	return at < limit ? at : limit;
}

uint64_t pageset_next(const struct pageset *s, uint64_t *first, uint64_t max)
{
	uint64_t at = find(s, *first, s->pages, true);
	if (at >= s->pages)
		return 0;
	uint64_t limit = s->pages - at > max ? at + max : s->pages;
	*first = at;
	return find(s, at, limit, false) - at;
}
