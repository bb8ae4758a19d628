/* The free blocks of a zone. See buddy.h. */
#include "ipt/buddy.h"
#include "ipt/debug.h"

static void list_push(struct ipt *t, struct zone *z, uint32_t f, unsigned order)
{
	unsigned colour = f & (t->config.colours - 1);
	uint32_t old = z->first[order][colour];

	store_relaxed64(&t->words[f], word_head(order, old ? old - 1 : f, f));
	ipt_step();
	if (old) {
		uint64_t w = load_relaxed64(&t->words[old - 1]);

		store_relaxed64(&t->words[old - 1], word_head(order, word_next(w), f));
		ipt_step();
	}
	z->first[order][colour] = f + 1;
	ipt_step();
	store_relaxed32(&z->lists[order], load_relaxed32(&z->lists[order]) | 1u << colour);
}

static void list_remove(struct ipt *t, struct zone *z, uint32_t f)
{
	uint64_t w = load_relaxed64(&t->words[f]);
	unsigned order = word_order(w), colour = f & (t->config.colours - 1);
	uint32_t next = word_next(w), prev = word_prev(w);

	if (next != f) {
		uint64_t n = load_relaxed64(&t->words[next]);

		store_relaxed64(&t->words[next],
				word_head(order, word_next(n), prev == f ? next : prev));
		ipt_step();
	}
	if (prev != f) {
		uint64_t p = load_relaxed64(&t->words[prev]);

		store_relaxed64(&t->words[prev],
				word_head(order, next == f ? prev : next, word_prev(p)));
	} else {
		z->first[order][colour] = next == f ? 0 : next + 1;
		if (next == f)
			store_relaxed32(&z->lists[order],
					load_relaxed32(&z->lists[order]) & ~(1u << colour));
	}
	ipt_step();
	store_relaxed64(&t->words[f], 0);
	ipt_step();
}

/* Put a block whose words are 0 on the lists, merged with its free buddies. */
static void put(struct ipt *t, unsigned zi, uint32_t f, unsigned order)
{
	struct zone *z = &t->zones[zi];
	uint32_t start = zone_start(t, zi), mark = load_relaxed32(&z->mark);

	for (; order < IPT_MAX_ORDER; order++) {
		uint32_t size = 1u << order, buddy = f ^ size;

		if (buddy < start || buddy >= mark || mark - buddy < size)
			break;
		uint64_t w = load_relaxed64(&t->words[buddy]);
		if (!word_is_head(w) || word_order(w) != order)
			break;
		list_remove(t, z, buddy);
		f &= ~size;
	}
	list_push(t, z, f, order);
}

/* The largest order of an aligned block that begins at f and ends by `end`. */
static unsigned order_at(uint32_t f, uint32_t end)
{
	unsigned order = 0;

	while (order < IPT_MAX_ORDER && !(f & 1u << order) && end - f >= 2u << order)
		order++;
	return order;
}

void buddy_free(struct ipt *t, unsigned zi, uint32_t f, uint32_t end)
{
	while (f < end) {
		unsigned order = order_at(f, end);

		put(t, zi, f, order);
		f += 1u << order;
	}
}

int buddy_carve(struct ipt *t, unsigned zi)
{
	struct zone *z = &t->zones[zi];
	uint32_t f = load_relaxed32(&z->mark), end = zone_end(t, zi);

	if (f >= end)
		return -1;
	unsigned order = order_at(f, end);
	store_release32(&z->mark, f + (1u << order));
	ipt_step();
	list_push(t, z, f, order);
	return (int)order;
}

bool buddy_could_carve(const struct ipt *t, unsigned zi, unsigned order)
{
	uint64_t size = UINT64_C(1) << order;
	uint64_t f = (zone_mark(t, zi) + size - 1) & ~(size - 1);

	return f + size <= zone_end(t, zi);
}

bool buddy_replenish(struct ipt *t, unsigned zi, unsigned order)
{
	if (!buddy_could_carve(t, zi, order))
		return false;
	for (;;) {
		int got = buddy_carve(t, zi);

		if (got < 0 || (unsigned)got >= order)
			return got >= 0;
	}
}

void buddy_rebuild(struct ipt *t, unsigned zi)
{
	struct zone *z = &t->zones[zi];
	uint32_t start = zone_start(t, zi), mark = load_relaxed32(&z->mark), nfree = 0;

	for (unsigned o = 0; o < TABLE_ORDERS; o++) {
		store_relaxed32(&z->lists[o], 0);
		for (unsigned c = 0; c < IPT_MAX_COLOURS; c++)
			z->first[o][c] = 0;
	}
	for (uint32_t f = start; f < mark; f++) {
		uint64_t w = load_relaxed64(&t->words[f]);

		if (word_state(w) != IPT_FREE)
			continue;
		if (w)
			store_relaxed64(&t->words[f], 0);
		nfree++;
	}
	for (uint32_t f = start; f < mark;) {
		uint32_t run = f;

		while (f < mark && word_state(load_relaxed64(&t->words[f])) == IPT_FREE)
			f++;
		buddy_free(t, zi, run, f);
		f += f == run;
	}
	store_relaxed32(&z->free, nfree + zone_end(t, zi) - mark);
	add_relaxed32(&t->header->repairs, 1);
}

uint32_t buddy_holding(struct ipt *t, unsigned zi, uint32_t f)
{
	uint32_t start = zone_start(t, zi);

	for (unsigned k = 0; k <= IPT_MAX_ORDER; k++) {
		uint32_t head = f & ~((1u << k) - 1);

		if (head < start)
			break;
		uint64_t w = load_relaxed64(&t->words[head]);
		if (word_is_head(w))
			return f - head < 1u << word_order(w) ? head : BUDDY_NONE;
	}
	return BUDDY_NONE;
}

void buddy_take(struct ipt *t, struct zone *z, uint32_t head, uint32_t target, unsigned order)
{
	unsigned k = word_order(load_relaxed64(&t->words[head]));

	list_remove(t, z, head);
	while (k > order) {
		uint32_t upper = head + (1u << --k);

		if (target >= upper) {
			list_push(t, z, head, k);
			head = upper;
		} else {
			list_push(t, z, upper, k);
		}
	}
}
