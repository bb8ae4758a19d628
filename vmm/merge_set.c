#include "vmm/merge_set.h"
#include <stdlib.h>
#include <string.h>

#define ROOM_FIRST 1024u

void merge_set_free(struct merge_set *s)
{
	free(s->entry);
	*s = (struct merge_set){.most = s->most};
}

void merge_set_clear(struct merge_set *s)
{
	if (s->used)
		memset(s->entry, 0, s->room * sizeof *s->entry);
	s->used = 0;
}

/* Where entries of that tag begin; they go on to the next that is empty. */
static uint32_t first(const struct merge_set *s, uint32_t tag)
{
	return (tag * UINT32_C(0x9E3779B1)) & (s->room - 1);
}

static uint32_t next(const struct merge_set *s, uint32_t i)
{
	return (i + 1) & (s->room - 1);
}

static void put(struct merge_set *s, struct merge_entry e)
{
	uint32_t i = first(s, e.tag);
	while (s->entry[i].tag)
		i = next(s, i);
	s->entry[i] = e;
	s->used++;
}

/* Room for one more: at most three quarters are in use, removed ones included, which go now. */
static bool grow(struct merge_set *s)
{
	if (s->used < s->room / 4 * 3)
		return true;
	struct merge_set old = *s;
	uint32_t live = 0;
	for (uint32_t i = 0; i < old.room; i++)
		live += old.entry[i].tag && old.entry[i].domain;
	if (s->most && live >= s->most)
		return false;
	uint32_t room = old.room ? old.room : ROOM_FIRST;
	while (live >= room / 2)
		room *= 2;
	struct merge_entry *entry = calloc(room, sizeof *entry);
	if (!entry)
		return false;
	*s = (struct merge_set){.entry = entry, .room = room, .most = old.most};
	for (uint32_t i = 0; i < old.room; i++)
		if (old.entry[i].tag && old.entry[i].domain)
			put(s, old.entry[i]);
	free(old.entry);
	return true;
}

static bool is(const struct merge_entry *e, uint32_t tag, uint32_t domain)
{
	return e->tag == tag && e->domain == domain;
}

void merge_set_add(struct merge_set *s, uint32_t tag, uint32_t domain, frame_t f)
{
	unsigned same = 0;
	if (!domain || !grow(s))
		return;
	for (uint32_t i = first(s, tag); s->entry[i].tag; i = next(s, i)) {
		if (!is(&s->entry[i], tag, domain))
			continue;
		if (s->entry[i].frame == f.v || ++same == MERGE_SET_SAME)
			return;
	}
	put(s, (struct merge_entry){tag, domain, f.v});
}

frame_t merge_set_find(const struct merge_set *s, uint32_t tag, uint32_t domain, frame_t preferred)
{
	frame_t found = INVALID_FRAME;
	if (!s->room || !domain)
		return found;
	for (uint32_t i = first(s, tag); s->entry[i].tag; i = next(s, i)) {
		if (!is(&s->entry[i], tag, domain))
			continue;
		if (!frame_valid(found) || s->entry[i].frame == preferred.v)
			found = frame(s->entry[i].frame);
	}
	return found;
}

void merge_set_remove(struct merge_set *s, uint32_t tag, uint32_t domain, frame_t f)
{
	if (!s->room)
		return;
	for (uint32_t i = first(s, tag); s->entry[i].tag; i = next(s, i))
		if (is(&s->entry[i], tag, domain) && s->entry[i].frame == f.v)
			s->entry[i].domain = 0;
}

/* ---- runs ---------------------------------------------------------------------------------- */

bool merge_run_extend(struct merge_run *r, const struct merge_run *n, uint32_t most)
{
	bool zero = r->target == UINT32_MAX;
	if (!r->count || r->count >= most || n->vm != r->vm || n->gfn != r->gfn + r->count ||
	    n->frame != r->frame + r->count || n->target_vm != r->target_vm ||
	    n->domain != r->domain || n->returns != r->returns)
		return false;
	if (r->returns) { /* the VM looks up what its template has */
		r->count++;
		return true;
	}
	if (n->target != (zero ? UINT32_MAX : r->target + r->count))
		return false;
	if (r->target_vm && n->target_gfn != r->target_gfn + r->count)
		return false;
	r->count++;
	return true;
}

frame_t merge_run_target(const struct merge_run *r, uint32_t vm, uint64_t gfn, frame_t f)
{
	if (!r->count || r->target == UINT32_MAX || r->returns || vm != r->vm ||
	    gfn != r->gfn + r->count || f.v != r->frame + r->count)
		return INVALID_FRAME;
	return frame(r->target + r->count);
}
