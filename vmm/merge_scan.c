/*
 * A pass over the pool. Frames are looked at in order, each in the file of its sharing domain, so that runs come by themselves: a guest's memory lies mostly in
 * extents, and equal guests' extents are equal for long stretches.
 *
 * A private frame is a candidate when it has the tag that it had in the pass before. It is zero, or equal to
 * a shared frame, or to a private one that this pass came by before; or it is the first of its kind, and is
 * remembered. One that has a template's tag is so at first sight: that changes no more, and is where it came from.
 *
 * What is found for a VM waits in a batch until there is enough to ask it for, or the pass ends: frames of clones that run
 * at the same time lie between each other's, and each request costs a guest some time.
 */
#include "vmm/merge_scan.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#define SHORTEST   4 /* run of pages that aren't zero; but */
#define SHORT_IN   4 /* one pass in so many takes shorter ones, after longer ones had their chance */
#define CALM_MOST  5          /* times: then a frame is hashed in one pass of 16 */
#define SEEN_MOST  (1u << 22) /* 48 MiB of memory */
#define NO_FRAME_V UINT32_MAX

#define OF_TEMPLATE \
	(UINT32_C(1) << 31) /* no domain, but a template's id, is beside a frame's tag */

struct merge_vm {
	uint64_t since_ns; /* seen in all passes */
	uint32_t pass;     /* when this was found out */
	uint32_t template; /* id; 0: none */
	bool runs;         /* a VM, not a template */
	bool left;         /* alone */
};

static uint32_t tag_of(const void *page)
{
	uint32_t tag = (uint32_t)XXH3_64bits(page, PAGE_SIZE);
	return tag ? tag : 1;
}

int merge_scan_create(struct merge_scan *s)
{
	uint32_t frames = ipt_config(s->table)->frames;
	/* calloc of large sizes is memory that is there only once it is used. */
	s->tag = calloc(frames, sizeof *s->tag);
	s->calm = calloc(frames, sizeof *s->calm);
	s->domain = calloc(frames, sizeof *s->domain);
	s->vm = calloc(s->board->vms, sizeof *s->vm);
	s->bytes = malloc(MERGE_STEP * PAGE_SIZE);
	s->seen.most = SEEN_MOST;
	if (s->bytes)
		s->zeroes = tag_of(memset(s->bytes, 0, PAGE_SIZE));
	if (!merge_again_create(&s->again) && s->tag && s->calm && s->domain && s->vm && s->bytes)
		return 0;
	merge_scan_destroy(s);
	return -ENOMEM;
}

void merge_scan_destroy(struct merge_scan *s)
{
	free(s->tag);
	free(s->calm);
	free(s->domain);
	free(s->vm);
	free(s->bytes);
	merge_again_destroy(&s->again);
	merge_set_free(&s->shared);
	merge_set_free(&s->seen);
}

/* ---- VMs ----------------------------------------------------------------------------------- */

static struct merge_vm *look_at_vm(struct merge_scan *s, uint32_t id)
{
	static struct merge_vm none;
	struct ipt_vm_info info;
	if (id >= s->board->vms)
		return &none;
	struct merge_vm *vm = &s->vm[id];
	if (vm->pass != s->pass) {
		bool goes_on = vm->runs && vm->pass + 1 == s->pass;
		*vm = (struct merge_vm){.pass = s->pass,
					.since_ns = goes_on ? vm->since_ns : s->now_ns};
		vm->runs = ipt_vm_info(s->table, vmid(id), &info) == 0 && !info.dying &&
			   info.kind == IPT_VM;
		vm->template = vm->runs ? info.parent.v : 0;
	}
	return vm;
}

/* The domain that a frame's owner is merged in; 0: it isn't. Never remembered: ids are used again. */
static uint32_t domain_of(struct merge_scan *s, vmid_t id)
{
	const struct merge_vm *vm = look_at_vm(s, id.v);
	return vm->runs && !vm->left ? merge_domain(s->board, id) : 0;
}

void merge_scan_leave(struct merge_scan *s, uint32_t vm)
{
	look_at_vm(s, vm)->left = true;
}

/* ---- asking -------------------------------------------------------------------------------- */

/* A frame has become a shared one, or is found to be. */
static void remember_shared(struct merge_scan *s, frame_t f, uint32_t domain)
{
	s->domain[f.v] = domain;
	merge_set_add(&s->shared, s->tag[f.v], domain, f);
}

/* It wasn't what its tag said, when it was published. */
static void forget_shared(struct merge_scan *s, frame_t f)
{
	merge_set_remove(&s->shared, s->tag[f.v], s->domain[f.v], f);
	s->tag[f.v] = 0; /* so that the next pass looks again */
}

static uint32_t op_of(const struct merge_run *r)
{
	return r->target == NO_FRAME_V ? MERGE_ZERO : r->returns ? MERGE_RETURN : MERGE_MERGE;
}

static void begin_request(struct merge_scan *s, uint32_t vm, uint32_t domain)
{
	s->request.vm = vm;
	s->request.domain = domain;
	s->request.pieces = 0;
}

static void add_piece(struct merge_scan *s, uint32_t op, uint64_t g, uint32_t count, uint32_t f)
{
	s->request.piece[s->request.pieces++] =
		(struct merge_piece){.gfn = g, .op = op, .count = count, .frame = f};
}

/* Make shared ones of what the batch is to be merged with, as far as it is `of`'s. */
static void publish(struct merge_scan *s, struct merge_batch *b, uint32_t of)
{
	begin_request(s, of, b->run[0].domain);
	for (uint32_t i = 0; i < b->runs; i++)
		if (b->run[i].target_vm == of)
			add_piece(s, MERGE_PUBLISH, b->run[i].target_gfn, b->run[i].count, 0);
	uint64_t done = s->ask(s->ctx, &s->request);
	for (uint32_t i = 0; i < b->runs; i++) {
		struct merge_run *r = &b->run[i];
		if (r->target_vm != of)
			continue;
		r->target_vm = 0;
		for (uint32_t k = 0; k < r->count; k++, done >>= 1)
			if (done & 1)
				remember_shared(s, frame(r->target + k), r->domain);
	}
}

static bool are_shared(const struct merge_scan *s, const struct merge_run *r)
{
	struct ipt_owner o;
	for (uint32_t k = 0; k < r->count; k++)
		if (ipt_owner(s->table, frame(r->target + k), &o) || o.state != IPT_SHARED)
			return false;
	return true;
}

/* A page of a run was done, or not. Either way its frame is looked at anew: it is somebody else's soon, or wasn't what its
 * tag said. */
static void note_page(struct merge_scan *s, const struct merge_run *r, uint32_t k, bool done)
{
	s->tag[r->frame + k] = 0;
	if (done)
		merge_again_note(&s->again, r->vm, r->gfn + k, s->pass);
	else if (op_of(r) == MERGE_MERGE)
		forget_shared(s, frame(r->target + k));
}

/* Ask for all that has come together for a VM. */
static void flush_batch(struct merge_scan *s, struct merge_batch *b)
{
	uint32_t runs = b->runs;
	if (!runs || look_at_vm(s, b->run[0].vm)->left) {
		b->runs = b->pages = 0;
		return;
	}
	for (uint32_t i = 0; i < runs; i++)
		if (b->run[i].target_vm && are_shared(s, &b->run[i]))
			b->run[i].target_vm = 0; /* for another VM's batch */
	for (uint32_t i = 0; i < runs; i++)
		if (b->run[i].target_vm)
			publish(s, b, b->run[i].target_vm);
	begin_request(s, b->run[0].vm, b->run[0].domain);
	for (uint32_t i = 0; i < runs; i++) {
		const struct merge_run *r = &b->run[i];
		add_piece(s, op_of(r), r->gfn, r->count, r->target);
	}
	uint64_t done = s->ask(s->ctx, &s->request);
	s->pages_done += (unsigned)__builtin_popcountll(done);
	for (uint32_t i = 0; i < runs; i++)
		for (uint32_t k = 0; k < b->run[i].count; k++, done >>= 1)
			note_page(s, &b->run[i], k, done & 1);
	b->runs = b->pages = 0;
}

/* The run is as long as it gets. */
static void flush(struct merge_scan *s)
{
	const struct merge_run r = s->run;
	s->run.count = 0;
	if (!r.count || (op_of(&r) == MERGE_MERGE && r.count < SHORTEST && !s->short_runs &&
			 !look_at_vm(s, r.vm)->template))
		return;
	struct merge_batch *b = &s->batch[r.vm % MERGE_BATCHES];
	if (b->runs && (b->run[0].vm != r.vm || b->run[0].domain != r.domain ||
			b->runs == MERGE_PIECES || b->pages + r.count > MERGE_RUN))
		flush_batch(s, b);
	b->run[b->runs++] = r;
	b->pages += r.count;
}

/* ---- finding equals ------------------------------------------------------------------------ */

static frame_t find_shared(struct merge_scan *s, uint32_t tag, uint32_t domain, frame_t preferred)
{
	struct ipt_owner o;
	for (;;) {
		frame_t f = merge_set_find(&s->shared, tag, domain, preferred);
		if (!frame_valid(f) || (ipt_owner(s->table, f, &o) == 0 && o.state == IPT_SHARED &&
					s->domain[f.v] == domain))
			return f;
		merge_set_remove(&s->shared, tag, domain, f);
	}
}

static frame_t find_seen(struct merge_scan *s, uint32_t tag, uint32_t domain, frame_t preferred,
			 struct ipt_owner *o)
{
	for (;;) {
		frame_t f = merge_set_find(&s->seen, tag, domain, preferred);
		if (!frame_valid(f))
			return f;
		if (ipt_owner(s->table, f, o) == 0 && o->state == IPT_PRIVATE &&
		    domain_of(s, o->vm) == domain)
			return f;
		merge_set_remove(&s->seen, tag, domain, f);
	}
}

/* The tag of a template's frame, which changes no more; 0: unknown. */
static uint32_t tag_of_template(struct merge_scan *s, frame_t f, uint32_t template, uint32_t domain)
{
	struct ipt_owner o;
	uint8_t page[PAGE_SIZE];
	if (ipt_owner(s->table, f, &o) || (o.state != IPT_PRIVATE && o.state != IPT_SHARED))
		return 0;
	if (s->tag[f.v] &&
	    s->domain[f.v] == (o.state == IPT_SHARED ? domain : OF_TEMPLATE | template))
		return s->tag[f.v];
	if (pread(domain_fd(&s->files, domain), page, sizeof page, (off_t)f.v << PAGE_SHIFT) !=
	    (ssize_t)sizeof page)
		return 0;
	s->scanned_bytes += PAGE_SIZE;
	if (o.state == IPT_SHARED)
		return tag_of(page);
	s->domain[f.v] = OF_TEMPLATE | template;
	return s->tag[f.v] = tag_of(page);
}

/* Is the page what its VM's template has there? Not for a young clone: what was copied ahead for it (memory_copy_ahead) it is
 * about to write to. */
static bool is_templates(struct merge_scan *s, struct merge_run *page)
{
	const struct merge_vm *vm = look_at_vm(s, page->vm);
	struct ipt_place p;
	if (!vm->template || s->now_ns - vm->since_ns < s->young_ns ||
	    !ipt_place(s->table, vmid(vm->template), gfn(page->gfn), 1, &p) ||
	    !frame_valid(p.frame) || p.kind == IPT_FILE_PAGE ||
	    tag_of_template(s, p.frame, vm->template, page->domain) != s->tag[page->frame])
		return false;
	page->returns = true;
	page->target = p.frame.v;
	return true;
}

/* Fill in what the page is to be merged with. False: nothing is known that holds the same. */
static bool find_equal(struct merge_scan *s, struct merge_run *page)
{
	struct ipt_owner other;
	uint32_t tag = s->tag[page->frame];
	frame_t preferred = merge_run_target(&s->run, page->vm, page->gfn, frame(page->frame));
	/* A run that gives work to two VMs goes on with such pages, even if one of them is shared elsewhere. */
	frame_t seen = find_seen(s, tag, page->domain, preferred, &other);
	frame_t shared = INVALID_FRAME;
	if (!(s->run.target_vm && frame_valid(seen) && seen.v == preferred.v))
		shared = find_shared(s, tag, page->domain, preferred);
	page->target_vm = 0;
	page->target_gfn = 0;
	page->target = shared.v;
	if (frame_valid(shared))
		return true;
	if (!frame_valid(seen) || seen.v == page->frame)
		return false;
	page->target = seen.v;
	page->target_vm = other.vm.v;
	page->target_gfn = other.gfn.v;
	return true;
}

static void match(struct merge_scan *s, struct merge_run *page)
{
	bool found = find_equal(s, page);
	if (found && merge_run_extend(&s->run, page, MERGE_RUN))
		return;
	if (found && s->run.count) {
		flush(s);
		found = find_equal(s, page);
	}
	if (found)
		s->run = *page;
	else
		merge_set_add(&s->seen, s->tag[page->frame], page->domain, frame(page->frame));
}

/* Is the frame read and hashed in this pass? One that hasn't changed for long is so every second pass, then every fourth,
 * and so on, and taken for what it was in between: that is most of what a pass costs. */
static bool is_due(const struct merge_scan *s, frame_t f)
{
	uint8_t calm = s->tag[f.v] ? s->calm[f.v] : 0;
	return calm <= 1 || (s->pass + f.v) % (1u << (calm - 1)) == 0;
}

/* Has a frame the tag that it had in the pass before? bytes: NULL if it isn't due. */
static bool is_stable(struct merge_scan *s, frame_t f, const uint8_t *bytes)
{
	if (!bytes)
		return true;
	uint32_t was = s->tag[f.v];
	uint8_t calm = was ? s->calm[f.v] : 0;
	s->tag[f.v] = tag_of(bytes);
	bool stable = s->tag[f.v] == was;
	s->calm[f.v] = !stable ? 0 : calm < CALM_MOST ? (uint8_t)(calm + 1) : calm;
	return stable;
}

static void look_at_private(struct merge_scan *s, frame_t f, const struct ipt_owner *o,
			    const uint8_t *bytes)
{
	struct merge_run page = {.count = 1,
				 .vm = o->vm.v,
				 .gfn = o->gfn.v,
				 .frame = f.v,
				 .target = NO_FRAME_V,
				 .domain = domain_of(s, o->vm)};
	bool stable = is_stable(s, f, bytes);
	if (!page.domain || merge_again_is_soon(&s->again, page.vm, page.gfn, s->pass))
		return;
	if (is_templates(s, &page) || (stable && s->tag[f.v] == s->zeroes)) {
		if (merge_run_extend(&s->run, &page, MERGE_RUN))
			return;
		flush(s);
		s->run = page;
	} else if (stable) {
		match(s, &page);
	}
}

struct viewer {
	const struct merge_board *board;
	uint32_t domain;
};

static bool take_domain(void *ctx, vmid_t vm, gfn_t g, enum ipt_place_kind how)
{
	struct viewer *v = ctx;
	(void)g;
	if (how == IPT_MERGED)
		v->domain = merge_domain(v->board, vm);
	return !v->domain;
}

/* The domain of those who see a shared frame. */
static uint32_t domain_of_viewers(const struct merge_scan *s, frame_t f)
{
	struct viewer v = {s->board, 0};
	ipt_viewers(s->table, f, take_domain, &v);
	return v.domain;
}

/* A shared frame that we don't know: an earlier merger published it. Its contents stay, so once is enough. */
static void look_at_shared(struct merge_scan *s, frame_t f, uint32_t domain, const uint8_t *bytes)
{
	s->tag[f.v] = tag_of(bytes);
	remember_shared(s, f, domain);
}

/* ---- passes -------------------------------------------------------------------------------- */

void merge_scan_begin(struct merge_scan *s)
{
	s->pass++;
	merge_set_clear(&s->seen);
	s->short_runs = s->pass % SHORT_IN == 0 ||
			ipt_free_frames(s->table) < ipt_config(s->table)->frames / 8;
}

/* The domain in whose file the frame is worth a look; 0: it isn't, or not yet. */
static uint32_t worth_a_look_in(struct merge_scan *s, frame_t f, const struct ipt_owner *o)
{
	uint32_t domain = o->state == IPT_PRIVATE                  ? domain_of(s, o->vm)
			  : o->state == IPT_SHARED && !s->tag[f.v] ? domain_of_viewers(s, f)
								   : 0;
	return domain && domain_fd(&s->files, domain) >= 0 ? domain : 0;
}

/* What a step has read: frames that follow each other, of one domain's file. */
struct reading {
	int file;
	uint32_t first, end;
};

/* The bytes of f, which is due, and with it those behind that are; NULL: they can't be read. */
static const uint8_t *read_due(struct merge_scan *s, struct reading *r, uint32_t f, uint32_t end)
{
	if (f < r->first || f >= r->end) {
		uint32_t n = 1;
		while (f + n < end && is_due(s, frame(f + n)))
			n++;
		ssize_t got = pread(r->file, s->bytes, n * PAGE_SIZE, (off_t)f << PAGE_SHIFT);
		r->first = f;
		r->end = f + (got > 0 ? (uint32_t)((uint64_t)got >> PAGE_SHIFT) : 0);
		s->scanned_bytes += (uint64_t)(r->end - f) << PAGE_SHIFT;
	}
	return f < r->end ? s->bytes + (f - r->first) * PAGE_SIZE : NULL;
}

/* Frames from f on up to `end`, of which at least the first has memory in the domain's file. Returns where that ends, or
 * where another domain's frame is. */
static uint32_t look_at_data(struct merge_scan *s, uint32_t domain, uint32_t f, uint32_t end)
{
	struct reading r = {.file = domain_fd(&s->files, domain)};
	off_t hole = lseek(r.file, (off_t)f << PAGE_SHIFT, SEEK_HOLE);
	if (hole > 0 && (uint64_t)hole >> PAGE_SHIFT < end)
		end = (uint32_t)((uint64_t)hole >> PAGE_SHIFT);
	for (; f < end; f++) {
		struct ipt_owner o;
		frame_t at = frame(f);
		uint32_t in = ipt_owner(s->table, at, &o) ? 0 : worth_a_look_in(s, at, &o);
		if (in && in != domain)
			return f; /* it was punched out of this file and is in another's now */
		if (!in)
			continue;
		bool due = is_due(s, at);
		const uint8_t *bytes = due ? read_due(s, &r, f, end) : NULL;
		if (due && !bytes)
			return end;
		if (o.state == IPT_SHARED)
			look_at_shared(s, at, domain, bytes);
		else
			look_at_private(s, at, &o, bytes);
	}
	return end;
}

/* The first frame from f on, up to `end`, that is worth a look in a domain's file other than `but`; and which domain's. */
static uint32_t skip(struct merge_scan *s, uint32_t f, uint32_t end, uint32_t but, uint32_t *domain)
{
	struct ipt_owner o;
	for (; f < end; f++) {
		*domain = ipt_owner(s->table, frame(f), &o) ? 0 : worth_a_look_in(s, frame(f), &o);
		if (*domain && *domain != but)
			break;
		if (o.state != IPT_SHARED && o.state != IPT_PRIVATE && s->tag[f])
			s->tag[f] = 0; /* whoever gets it next begins anew */
	}
	return f;
}

uint32_t merge_scan_step(struct merge_scan *s, uint32_t f)
{
	uint32_t frames = ipt_config(s->table)->frames, domain, other;
	frame_t used = ipt_next_used(s->table, frame(f));
	f = frame_valid(used) ? used.v : frames;
	uint32_t end = frames - f > MERGE_STEP ? f + MERGE_STEP : frames;
	while ((f = skip(s, f, end, 0, &domain)) < end) {
		off_t data = lseek(domain_fd(&s->files, domain), (off_t)f << PAGE_SHIFT, SEEK_DATA);
		uint32_t next = data < 0 || (uint64_t)data >> PAGE_SHIFT > end
					? end
					: (uint32_t)((uint64_t)data >> PAGE_SHIFT);
		if (next > f) /* what is in between has no memory; but others' may, in theirs */
			f = skip(s, f, next, domain, &other);
		if (f == next && next < end)
			f = look_at_data(s, domain, next, end);
	}
	if (end < frames)
		return end;
	flush(s);
	for (uint32_t i = 0; i < MERGE_BATCHES; i++)
		flush_batch(s, &s->batch[i]);
	return UINT32_MAX;
}
