/* The checker of the invariants in ipt.h: words, zones, registry. */
#include "ipt/audit.h"
#include "ipt/bad.h"
#include "ipt/forward.h"
#include "ipt/region.h"
#include "ipt/registry.h"
#include "ipt/zone.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

void audit_fail(struct audit *a, const char *fmt, ...)
{
	char line[256];
	va_list args;

	a->violations++;
	if (!a->say)
		return;
	va_start(args, fmt);
	vsnprintf(line, sizeof(line), fmt, args);
	va_end(args);
	a->say(a->ctx, line);
}

/* ---- zones ----------------------------------------------------------------------------------- */

/* A block on a list: its words, and that no other block has them. The frames' bits are set in seen.
 * Returns the block's frames, 0 if the list can't be followed beyond it. */
static uint32_t audit_block(struct audit *a, unsigned zi, uint32_t f, unsigned order,
			    unsigned colour, uint8_t *seen)
{
	struct ipt *t = a->t;
	uint32_t size = 1u << order, start = zone_start(t, zi), mark = zone_mark(t, zi);

	if (f < start || f >= mark || mark - f < size || f & (size - 1)) {
		audit_fail(a, "I1: free block %u of order %u is not within zone %u", f, order, zi);
		return 0;
	}
	uint64_t w = load_relaxed64(&t->words[f]);
	if (!word_is_head(w) || word_order(w) != order || (f & (t->config.colours - 1)) != colour) {
		audit_fail(a, "I1: frame %u is on list %u/%u and its word is %#lx", f, order,
			   colour, (unsigned long)w);
		return 0;
	}
	for (uint32_t i = f; i < f + size; i++) {
		if (seen[i / 8] & 1u << i % 8) {
			audit_fail(a, "I1: frame %u is in two free blocks", i);
			return 0;
		}
		seen[i / 8] |= (uint8_t)(1u << i % 8);
		if (i != f && load_relaxed64(&t->words[i]))
			audit_fail(a, "I1: frame %u in free block %u has word %#lx", i, f,
				   (unsigned long)load_relaxed64(&t->words[i]));
	}
	return size;
}

static uint32_t audit_list(struct audit *a, unsigned zi, unsigned order, unsigned colour,
			   uint8_t *seen)
{
	struct ipt *t = a->t;
	struct zone *z = &t->zones[zi];
	uint32_t first = z->first[order][colour], sum = 0;
	bool bit = load_relaxed32(&z->lists[order]) & 1u << colour;

	if (bit != (first != 0))
		audit_fail(a, "I1: zone %u list %u/%u: bit %d, head %u", zi, order, colour, bit,
			   first);
	if (!first)
		return 0;
	for (uint32_t f = first - 1, prev = f;;) {
		uint32_t size = audit_block(a, zi, f, order, colour, seen);

		if (!size)
			return sum;
		uint64_t w = load_relaxed64(&t->words[f]);
		if (word_prev(w) != prev)
			audit_fail(a, "I1: block %u: previous is %u, not %u", f, word_prev(w),
				   prev);
		sum += size;
		if (word_next(w) == f)
			return sum;
		prev = f;
		f = word_next(w);
	}
}

static void audit_zone(struct audit *a, unsigned zi, uint8_t *seen)
{
	struct ipt *t = a->t;
	uint32_t sum = 0, mark = zone_mark(t, zi);

	const unsigned frames =
		1u << IPT_FREE | 1u << IPT_LIMBO | 1u << IPT_SHARED | 1u << IPT_PRIVATE;
	const unsigned slots = 1u << IPT_FREE | 1u << IPT_SHARED | 1u << IPT_SPARE |
			       1u << IPT_ALIAS | 1u << IPT_TOMB | 1u << IPT_OUT;
	unsigned allowed = zi == t->config.nodes ? slots : frames;

	for (unsigned order = 0; order < TABLE_ORDERS; order++) {
		for (unsigned colour = 0; colour < IPT_MAX_COLOURS; colour++)
			sum += audit_list(a, zi, order, colour, seen);
	}
	for (uint32_t f = zone_start(t, zi); f < mark; f++) {
		bool listed = seen[f / 8] & 1u << f % 8;
		uint64_t w = load_relaxed64(&t->words[f]);

		if (!(allowed & 1u << word_state(w)))
			audit_fail(a, "I1: frame %u has word %#lx", f, (unsigned long)w);
		else if (listed && f < t->frames && bad_any(t) && bad_read(t, f) != IPT_GOOD)
			audit_fail(a, "I9: frame %u is bad and on a free list", f);
		else if ((word_state(w) == IPT_FREE) != listed)
			audit_fail(a, "I1: frame %u is %son a free list and its word is %#lx", f,
				   listed ? "" : "not ", (unsigned long)w);
	}
	sum += zone_end(t, zi) - mark;
	if (sum != load_relaxed32(&t->zones[zi].free))
		audit_fail(a, "I3: zone %u has %u free frames and counts %u", zi, sum,
			   load_relaxed32(&t->zones[zi].free));
}

void audit_zones(struct audit *a)
{
	struct ipt *t = a->t;
	uint8_t *seen = calloc(t->layout.slot_end / 8 + 1, 1);

	for (unsigned zi = 0; zi < zone_count(t); zi++) {
		uint64_t start, end;

		if (!seen) {
			audit_fail(a, "I1, I3: no memory to check them");
			return;
		}
		zone_lock(t, zi);
		audit_zone(a, zi, seen);
		/* Beyond the mark every word must be zero; only populated memory can be other. */
		uint64_t from = t->layout.words + (uint64_t)zone_mark(t, zi) * 8;
		uint64_t to = t->layout.words + (uint64_t)zone_end(t, zi) * 8;
		while (table_populated(t, from, to, &start, &end)) {
			for (from = start; from < end; from += 8) {
				if (load_relaxed64(&t->words[(from - t->layout.words) / 8]))
					audit_fail(
						a,
						"I1: frame %lu is beyond the mark and has a word",
						(unsigned long)(from - t->layout.words) / 8);
			}
		}
		zone_unlock(t, zi);
	}
	free(seen);
}

/* ---- words, pins, VMs ------------------------------------------------------------------------ */

static void audit_word(struct audit *a, uint32_t f, uint64_t w, uint32_t (*count)[IPT_NSTATES])
{
	struct ipt *t = a->t;
	uint32_t vm = word_vm(w);

	if (word_state(w) == IPT_SHARED)
		return; /* audit_chains looks at it */
	if (w == WORD_RETIRED && f < t->frames) {
		if (bad_read(t, f) == IPT_GOOD)
			audit_fail(a, "I9: frame %u is retired and not bad", f);
		return;
	}
	if (!registry_slot(t, vmid(vm), VM_NONE)) {
		audit_fail(a, "I4: frame %u belongs to VM %u, which is not registered", f, vm);
		return;
	}
	count[vm][word_state(w)]++;
	if (!word_is_mapped(w) && w != word_limbo(vm) && w != word_spare(vm))
		audit_fail(a, "I1: limbo frame %u has word %#lx", f, (unsigned long)w);
	if (!word_is_mapped(w))
		return;
	if (!forward_key_valid(t, vm, word_gfn(w))) {
		audit_fail(a, "I2: frame %u has gfn %#lx", f, (unsigned long)word_gfn(w));
		return;
	}
	uint32_t found = forward_find(t, vm, word_gfn(w));
	if (found != f)
		audit_fail(a, "I2: frame %u is VM %u's gfn %#lx, which is looked up as %d", f, vm,
			   (unsigned long)word_gfn(w), (int)found);
}

void audit_words(struct audit *a)
{
	struct ipt *t = a->t;
	uint32_t high = load_acquire32(&t->header->vm_high);
	uint32_t(*count)[IPT_NSTATES] = calloc(high + 1, sizeof(*count));
	uint32_t(*before)[IPT_NSTATES] = calloc(high + 1, sizeof(*before));

	if (!count || !before) {
		audit_fail(a, "I2, I4: no memory to check them");
		free(count);
		free(before);
		return;
	}
	for (uint32_t vm = 1; vm <= high; vm++) {
		for (int state = IPT_LIMBO; state < IPT_NSTATES; state++)
			before[vm][state] = registry_count(t, vm, (enum ipt_state)state);
	}
	for (unsigned z = 0; z < zone_count(t); z++) {
		for (uint32_t f = zone_start(t, z); f < zone_mark(t, z); f++) {
			uint64_t w = load_acquire64(&t->words[f]);

			if (word_state(w) != IPT_FREE && word_state(w) < IPT_NSTATES)
				audit_word(a, f, w, count);
		}
	}
	for (uint32_t vm = 1; vm <= high; vm++) {
		for (int state = IPT_LIMBO; state < IPT_NSTATES; state++) {
			uint32_t said = registry_count(t, vm, (enum ipt_state)state);

			/* One that changes meanwhile says nothing of what was counted. */
			if (said != count[vm][state] && said == before[vm][state])
				audit_fail(
					a,
					"I4: VM %u counts %+ld frames of state %d that it hasn't",
					vm, (long)said - (long)count[vm][state], state);
		}
	}
	free(count);
	free(before);
}

void audit_side(struct audit *a)
{
	struct ipt *t = a->t;
	uint64_t from = t->layout.side, to = from + (uint64_t)t->frames * 4, start, end;

	/* Only what is populated: reading the rest would populate it. */
	while (table_populated(t, from, to, &start, &end)) {
		for (from = start; from < end; from += 4) {
			uint32_t f = (uint32_t)((from - t->layout.side) / 4), z = zone_of(t, f);
			uint32_t pins = load_relaxed32(&t->side[f]) & SIDE_PINS;

			if (pins && (f >= zone_mark(t, z) ||
				     word_state(load_relaxed64(&t->words[f])) == IPT_FREE))
				audit_fail(a, "I6: free frame %u has %u pins", f, pins);
		}
	}
}

void audit_registry(struct audit *a)
{
	struct ipt *t = a->t;
	uint32_t high = load_acquire32(&t->header->vm_high);
	uint32_t *children = calloc(high + 1, sizeof(*children));

	if (!children) {
		audit_fail(a, "no memory to check the registry");
		return;
	}
	registry_lock(t);
	for (uint32_t vm = 1; vm <= high; vm++) {
		uint32_t parent = load_relaxed32(&t->vms[vm].parent);

		if (load_relaxed32(&t->vms[vm].gen) & 1)
			audit_fail(a, "VM %u's slot is in flux", vm);
		if (load_relaxed32(&t->names[vm]) != registry_hash(t, vm))
			audit_fail(a, "VM %u can't be found by its name", vm);
		if (!registry_slot(t, vmid(vm), VM_NONE))
			continue;
		for (uint32_t i = 0; i < region_count(t, vm); i++) {
			uint32_t file = load_relaxed32(&region_of(t, vm)[i].file);

			if (!registry_slot(t, vmid(file), VM_LIVE) ||
			    load_relaxed8(&t->vms[file].kind) != IPT_FILE)
				audit_fail(a, "VM %u has a region of %u, which is no file", vm,
					   file);
		}
		if (parent && !registry_slot(t, vmid(parent), VM_NONE))
			audit_fail(a, "VM %u's parent %u is not registered", vm, parent);
		else
			children[parent]++;
	}
	for (uint32_t vm = 1; vm <= high; vm++) {
		uint32_t said = load_relaxed32(&t->vms[vm].children);

		if (said != children[vm])
			audit_fail(a, "VM %u has %u children and counts %u", vm, children[vm],
				   said);
	}
	registry_unlock(t);
	free(children);
}

int ipt_audit(struct ipt *t, ipt_say_fn *say, void *ctx)
{
	struct audit a = {t, say, ctx, 0};

	audit_registry(&a);
	if (t->kind == IPT_INDEX)
		audit_index(&a);
	else
		audit_radix(&a);
	audit_chains(&a);
	audit_zones(&a);
	audit_words(&a);
	audit_side(&a);
	audit_space(&a);
	return a.violations;
}
