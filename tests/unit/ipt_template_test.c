/*
 * A template's pages going out and coming back, and a file's being dropped: what comes of it, each thing that may go
 * wrong, and death at every step (of long ones, every third from the 100th on), after which nobody may see another page than before. Frames have a byte's worth
 * of contents here: a tag, which `clean` takes away.
 */
#include "tests/unit/ipt_help.h"
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define FRAMES 600
#define PACKED 20 /* pages */
#define BLOCKS 200
#define FIRST  32 /* the template's pages */
#define PAGES  32
#define MARK   1000 /* tag and sum of page g: this + g */

static struct scene {
	struct ipt *t;
	vmid_t template, vm, clone; /* vm is what was frozen */
	vmid_t file;
	frame_t f, in; /* of the first page; limbo of vm's, 16 */
	uint32_t *tag; /* by frame, shared with children */
	struct ipt_out out[16];
	/* What an operation of the ops is to return, and how often it was called. */
	int keep_rc, settle_rc, clean_rc;
	unsigned kept, settled, cleaned;
	bool pin; /* settle pins the last page, as one who had looked it up before */
} s;

static void open_scene_of(enum ipt_kind kind)
{
	const bool space = kind == IPT_INDEX;
	const struct ipt_config c = {.kind = kind,
				     .frames = FRAMES,
				     .max_vms = 16,
				     .nodes = 1,
				     .colours = 1,
				     .seed = 4711,
				     .packed_pages = space ? PACKED : 0,
				     .blocks = space ? BLOCKS : 0};
	uint32_t *tag = s.tag;

	if (!tag)
		tag = mmap(NULL, FRAMES * sizeof(*tag), PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	cr_assert_neq(tag, MAP_FAILED);
	memset(tag, 0, FRAMES * sizeof(*tag));
	s = (struct scene){.t = help_table_config(&c), .tag = tag};
	s.template = help_vm(s.t, "vm");
	s.f = help_mapped(s.t, s.template, FIRST, 5);
	for (uint32_t i = 0; i < PAGES; i++)
		tag[s.f.v + i] = MARK + FIRST + i;
	cr_assert_eq(ipt_vm_freeze(s.t, s.template, "vm@1", &s.vm), 0);
	cr_assert_eq(ipt_vm_add(s.t, "vm.1", s.template, &s.clone), 0);
	s.in = help_alloc(s.t, s.vm, 4);
}

static int keep(void *ctx, uint32_t i, const struct ipt_out *where)
{
	cr_assert_eq(ctx, &s);
	cr_assert_lt(where->where, PACKED * IPT_GRANULES);
	cr_assert_eq(where->sum, s.out[i].sum);
	ipt_step();
	return ++s.kept == 3 ? s.keep_rc : 0;
}

static int settle(void *ctx)
{
	frame_t f = frame(s.f.v + 15);

	(void)ctx;
	s.settled++;
	ipt_step();
	if (s.pin) /* its side alone: the table says that nothing is there */
		cr_assert_eq(ipt_pin(s.t, s.clone, gfn(FIRST + 15), &f), -ENOENT);
	return s.settle_rc;
}

static int clean(void *ctx, frame_t first, uint32_t n)
{
	(void)ctx;
	s.cleaned++;
	if (s.clean_rc)
		return s.clean_rc;
	for (uint32_t i = 0; i < n; i++) {
		ipt_step();
		s.tag[first.v + i] = 0;
	}
	return 0;
}

static const struct ipt_out_ops ops = {keep, settle, clean};

static int take_out(uint64_t g, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		s.out[i] = (struct ipt_out){0, i % 8 == 7 ? 0 : 500, (uint32_t)(MARK + g + i)};
	return ipt_template_out(s.t, s.template, gfn(g), frame(s.f.v + (uint32_t)(g - FIRST)),
				s.out, n, &ops, &s);
}

static int bring_in(uint64_t g, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		s.tag[s.in.v + i] = (uint32_t)(MARK + g + i);
	return ipt_template_in(s.t, s.vm, s.template, gfn(g), s.in, n);
}

/* How many of [g, g + n) the clone sees out, and all that it sees is right. */
static uint32_t away(uint64_t g, uint32_t n)
{
	const vmid_t who[] = {s.vm, s.clone, s.template};
	uint32_t count = 0;

	for (uint64_t i = g; i < g + n; i++) {
		enum ipt_place_kind before = IPT_VOID;

		for (int k = 0; k < 3; k++) {
			struct ipt_place p;
			struct ipt_out out;
			vmid_t at;

			cr_assert_eq(ipt_place(s.t, who[k], gfn(i), 1, &p), 1);
			cr_assert_eq(p.at.v, s.template.v, "page %lu is lost", (unsigned long)i);
			if (p.kind == IPT_AWAY) {
				cr_assert_eq(ipt_out_read(s.t, who[k], gfn(i), &out, &at), 0);
				cr_assert_eq(at.v, s.template.v);
				cr_assert_eq(out.sum, MARK + i);
			} else {
				cr_assert_eq(s.tag[p.frame.v], MARK + i,
					     "page %lu is another's, or was cleaned",
					     (unsigned long)i);
			}
			cr_assert(k == 0 || (p.kind == IPT_AWAY) == (before == IPT_AWAY));
			before = p.kind;
		}
		count += before == IPT_AWAY;
	}
	return count;
}

static uint32_t counted(vmid_t vm, enum ipt_state state)
{
	struct ipt_vm_info info;

	cr_assert_eq(ipt_vm_info(s.t, vm, &info), 0);
	return info.frames[state];
}

static void has(uint32_t private, uint32_t out)
{
	cr_assert_eq(away(FIRST, PAGES), out);
	cr_assert_eq(counted(s.template, IPT_PRIVATE), private);
	cr_assert_eq(counted(s.template, IPT_OUT), out);
	cr_assert_eq(counted(s.template, IPT_LIMBO), 0);
	cr_assert_eq(counted(s.template, IPT_SPARE), 0);
	help_audit(s.t);
}

static void close_scene(void)
{
	for (int i = 0; i < 2; i++)
		cr_assert_eq(ipt_vm_reap(s.t, i ? s.clone : s.vm, clean, &s), 0);
	cr_assert_eq(ipt_vm_reap(s.t, s.template, clean, &s), 0);
	if (s.file.v)
		cr_assert_eq(ipt_vm_reap(s.t, s.file, clean, &s), 0);
	if (ipt_config(s.t)->blocks)
		help_space_used(s.t, 0, 0);
	help_audit(s.t);
	cr_assert_eq(ipt_free_frames(s.t), FRAMES);
	ipt_detach(s.t);
}

/* ---- out, and in ----------------------------------------------------------------------------- */

Test(ipt_template, pages_go_out_and_come_back_for_all)
{
	open_scene_of(IPT_INDEX);
	uint32_t free = ipt_free_frames(s.t);
	cr_assert_eq(take_out(FIRST, 16), 0);
	cr_assert_eq(s.kept, 14, "pages of zeroes need no place");
	cr_assert_eq(s.settled, 1);
	has(16, 16);
	cr_assert_eq(ipt_free_frames(s.t), free + 16);
	help_space_used(s.t, 14 * 8, 0);
	cr_assert_eq(take_out(FIRST + 20, 1), 0);
	has(15, 17);
	cr_assert_eq(bring_in(FIRST, 16), 0);
	has(31, 1);
	help_space_used(s.t, 8, 0);
	for (uint32_t i = 0; i < 16; i++) {
		cr_assert(ipt_moved(s.t, frame(s.in.v + i)));
		cr_assert_not(ipt_moved(s.t, frame(s.f.v + 16 + i)));
	}
	s.in = help_alloc(s.t, s.vm, 0);
	cr_assert_eq(bring_in(FIRST + 20, 1), 0);
	has(32, 0);
	/* Freed it is like any other. */
	cr_assert_eq(ipt_vm_reap(s.t, s.vm, clean, &s), 0);
	cr_assert_eq(ipt_vm_reap(s.t, s.clone, clean, &s), 0);
	frame_t was = s.in;
	cr_assert_eq(ipt_vm_reap(s.t, s.template, clean, &s), 0);
	cr_assert_not(ipt_moved(s.t, was));
	help_space_used(s.t, 0, 0);
	help_audit(s.t);
}

Test(ipt_template, whatever_fails_is_undone)
{
	open_scene_of(IPT_INDEX);
	uint32_t free = ipt_free_frames(s.t);
	for (uint32_t n = 1; n <= 16; n += 15) {
		s.keep_rc = -EIO;
		s.kept = n == 1 ? 2 : 0;
		cr_assert_eq(take_out(FIRST, n), -EIO);
		s.keep_rc = 0;
		cr_assert_eq(s.settled, 0);
		s.settle_rc = -EBUSY;
		cr_assert_eq(take_out(FIRST, n), -EBUSY);
		cr_assert_eq(s.settled, 1);
		cr_assert_eq(s.cleaned, 0);
		s.settle_rc = s.settled = 0;
		s.clean_rc = -ENOSPC;
		cr_assert_eq(take_out(FIRST, n), -ENOSPC);
		s.clean_rc = s.settled = s.cleaned = 0;
		has(32, 0);
		help_space_used(s.t, 0, 0);
		cr_assert_eq(ipt_free_frames(s.t), free);
	}
	/* A look-up that comes too late pins nothing. */
	s.pin = true;
	cr_assert_eq(take_out(FIRST, 16), 0);
	has(16, 16);
	close_scene();
}

Test(ipt_template, what_is_refused)
{
	frame_t f;

	open_scene_of(IPT_INDEX);
	cr_assert_eq(ipt_pin(s.t, s.clone, gfn(FIRST + 3), &f), 0);
	cr_assert_eq(take_out(FIRST, 16), -EBUSY);
	cr_assert_eq(take_out(FIRST + 3, 1), -EBUSY);
	ipt_unpin(s.t, f);
	cr_assert_eq(take_out(FIRST, 2), -EINVAL);
	cr_assert_eq(take_out(FIRST + 1, 16), -EINVAL, "of two groups");
	cr_assert_eq(take_out(FIRST + PAGES, 1), -ESTALE, "void");
	s.f.v += 16;
	cr_assert_eq(take_out(FIRST, 16), -ESTALE, "elsewhere");
	s.f.v -= 16;
	cr_assert_eq(
		ipt_template_out(s.t, s.template, gfn(FIRST), frame(FRAMES), s.out, 1, &ops, &s),
		-EINVAL);
	cr_assert_eq(ipt_template_out(s.t, s.template, gfn(FIRST), frame(FRAMES - 8), s.out, 16,
				      &ops, &s),
		     -EINVAL);
	frame_t own = help_mapped(s.t, s.vm, 0, 0);
	cr_assert_eq(ipt_template_out(s.t, s.vm, gfn(0), own, s.out, 1, &ops, &s), -ESTALE,
		     "no template");
	cr_assert_eq(ipt_template_out(s.t, INVALID_VMID, gfn(0), own, s.out, 1, &ops, &s), -ESTALE);
	/* Coming back. */
	cr_assert_eq(bring_in(FIRST, 16), -ESTALE, "it isn't out");
	cr_assert_eq(take_out(FIRST + 1, 1), 0);
	cr_assert_eq(bring_in(FIRST, 16), -ESTALE, "only one is");
	cr_assert_eq(bring_in(FIRST + 15, 2), -EINVAL, "of two groups");
	cr_assert_eq(ipt_template_in(s.t, s.clone, s.template, gfn(FIRST + 1), s.in, 1), -EPERM,
		     "another's frame");
	cr_assert_eq(ipt_template_in(s.t, s.vm, s.clone, gfn(FIRST + 1), s.in, 1), -ESTALE,
		     "no template");
	has(31, 1);
	cr_assert_eq(bring_in(FIRST + 1, 1), 0);
	cr_assert_eq(bring_in(FIRST + 1, 1), -EPERM, "it isn't limbo any more");
	has(32, 0);
	close_scene();
}

Test(ipt_template, a_full_space_takes_nothing)
{
	uint32_t slot[PACKED];
	struct ipt_out out;

	open_scene_of(IPT_INDEX);
	for (int i = 0; i < PACKED - 1; i++)
		slot[i] = help_claim(s.t, s.vm, 0, PAGE_SIZE, &out);
	cr_assert_eq(take_out(FIRST, 16), -ENOSPC);
	has(32, 0);
	cr_assert_eq(take_out(FIRST, 1), 0);
	has(31, 1);
	ipt_out_cancel(s.t, s.vm, slot, PACKED - 1);
	close_scene();
}

Test(ipt_template, radix_tables_have_no_room_for_it)
{
	open_scene_of(IPT_RADIX);
	cr_assert_eq(take_out(FIRST, 16), -EOPNOTSUPP);
	cr_assert_eq(bring_in(FIRST, 16), -ESTALE);
	help_audit(s.t);
	close_scene();
}

/* Collapsing finds what is out, what came back, and what never went. */
Test(ipt_template, collapse_takes_it_all_along)
{
	open_scene_of(IPT_INDEX);
	cr_assert_eq(take_out(FIRST, 16), 0);
	cr_assert_eq(take_out(FIRST + 16, 16), 0);
	cr_assert_eq(bring_in(FIRST, 16), 0);
	help_reap(s.t, s.clone);
	cr_assert_eq(ipt_vm_collapse(s.t, s.template, clean, &s), 0);
	for (uint64_t g = FIRST; g < FIRST + PAGES; g++) {
		struct ipt_place p;

		ipt_place(s.t, s.vm, gfn(g), 1, &p);
		cr_assert_eq(p.at.v, s.vm.v);
		cr_assert_eq(p.kind, g < FIRST + 16 ? IPT_OWN : IPT_AWAY);
	}
	help_audit(s.t);
	help_reap(s.t, s.vm);
	help_space_used(s.t, 0, 0);
	help_audit(s.t);
}

/* ---- files ----------------------------------------------------------------------------------- */

#define SEEN 1024 /* gfn of the file's first page at the clone's */

static void add_file(void)
{
	uint32_t done;

	cr_assert_eq(ipt_file_add(s.t, "file", &s.file), 0);
	cr_assert_eq(ipt_vm_region(s.t, s.clone, gfn(SEEN), 64, s.file, 0), 0);
	s.f = help_alloc(s.t, s.clone, 5);
	for (uint32_t i = 0; i < PAGES; i++)
		s.tag[s.f.v + i] = MARK + i;
	cr_assert_eq(ipt_file_map(s.t, s.clone, s.file, 0, s.f, PAGES, &done), 0);
	cr_assert_eq(done, PAGES);
}

static int drop(uint64_t page, uint32_t n)
{
	return ipt_file_drop(s.t, s.file, page, frame(s.f.v + (uint32_t)page), n, &ops, &s);
}

/* Of the file's first 32 pages, how many are void; the others must be right. */
static uint32_t voids(void)
{
	uint32_t count = 0;

	for (uint32_t i = 0; i < PAGES; i++) {
		frame_t f = ipt_lookup(s.t, s.clone, gfn(SEEN + i));

		cr_assert(!frame_valid(f) || s.tag[f.v] == MARK + i, "page %u", i);
		count += !frame_valid(f);
	}
	return count;
}

static void file_has(uint32_t private)
{
	cr_assert_eq(voids(), PAGES - private);
	cr_assert_eq(counted(s.file, IPT_PRIVATE), private);
	cr_assert_eq(counted(s.file, IPT_LIMBO), 0);
	help_audit(s.t);
}

BOTH_KINDS(ipt_file_drop, pages_are_void_and_come_back)
{
	uint32_t done;

	open_scene_of(kind);
	add_file();
	uint32_t free = ipt_free_frames(s.t);
	cr_assert_eq(drop(0, 16), 0);
	cr_assert_eq(s.settled, 1);
	cr_assert_eq(s.cleaned, 1);
	file_has(16);
	cr_assert_eq(drop(20, 3), 0);
	file_has(13);
	cr_assert_eq(ipt_free_frames(s.t), free + 19);
	cr_assert_eq(drop(20, 3), -ESTALE, "again");
	cr_assert_not(ipt_moved(s.t, frame(s.f.v + 16)));
	frame_t f = help_alloc(s.t, s.clone, 4);
	for (uint32_t i = 0; i < 16; i++)
		s.tag[f.v + i] = MARK + i;
	cr_assert_eq(ipt_file_map(s.t, s.clone, s.file, 0, f, 16, &done), 0);
	file_has(29);
	for (uint32_t i = 0; i < 16; i++)
		cr_assert(ipt_moved(s.t, frame(f.v + i)));
	close_scene();
}

BOTH_KINDS(ipt_file_drop, whatever_fails_is_undone)
{
	frame_t f;

	open_scene_of(kind);
	add_file();
	s.settle_rc = -EBUSY;
	cr_assert_eq(drop(0, 16), -EBUSY);
	cr_assert_eq(s.cleaned, 0);
	file_has(32);
	s.settle_rc = 0;
	s.clean_rc = -EIO;
	cr_assert_eq(drop(0, 16), -EIO);
	cr_assert_eq(drop(3, 1), -EIO);
	file_has(32);
	s.clean_rc = 0;
	cr_assert_eq(ipt_pin(s.t, s.clone, gfn(SEEN + 3), &f), 0);
	cr_assert_eq(drop(0, 16), -EBUSY);
	file_has(32);
	ipt_unpin(s.t, f);
	cr_assert_eq(drop(32, 1), -ESTALE);
	cr_assert_eq(drop(8, 16), -EINVAL, "of two groups");
	cr_assert_eq(drop(0, 0), -EINVAL);
	cr_assert_eq(ipt_file_drop(s.t, s.file, 0, frame(FRAMES), 1, &ops, &s), -EINVAL);
	cr_assert_eq(ipt_file_drop(s.t, s.file, 1, s.f, 1, &ops, &s), -ESTALE);
	cr_assert_eq(ipt_file_drop(s.t, s.template, FIRST, s.f, 1, &ops, &s), -ESTALE);
	cr_assert_eq(ipt_file_drop(s.t, vmid(4000), 0, s.f, 1, &ops, &s), -ESTALE);
	file_has(32);
	close_scene();
}

/* ---- death ----------------------------------------------------------------------------------- */

struct scenario {
	enum ipt_kind kind;
	void (*prepare)(void);
	int (*act)(void);
	int rc; /* of act */
	bool by_vm, file;
};

/* False once the child got through. */
static bool die_once(const struct scenario *sc, unsigned k, unsigned *repairs)
{
	struct ipt_counts c;

	open_scene_of(sc->kind);
	if (sc->prepare)
		sc->prepare();
	pid_t pid = help_fork();
	if (pid == 0) {
		help_die_at(k);
		_exit(sc->act() != sc->rc);
	}
	bool died = help_died(pid, k);
	/* Others look, without a lock; then somebody takes the registry's. */
	for (int i = 0; i < 2; i++) {
		vmid_t id;

		if (sc->file)
			voids();
		away(FIRST, PAGES);
		cr_assert_eq(ipt_vm_find(s.t, "vm.1", &id), 0);
	}
	if (sc->by_vm) {
		help_audit_but(s.t, s.vm);
		cr_assert_eq(ipt_vm_reap(s.t, s.vm, clean, &s), 0);
		cr_assert_eq(ipt_vm_add(s.t, "vm", s.template, &s.vm), 0);
		s.in = help_alloc(s.t, s.vm, 4);
	}
	help_audit(s.t);
	cr_assert_eq(counted(s.template, IPT_SPARE), 0, "step %u", k);
	/* What is being cleaned at the death stays away until the end; nothing else does. */
	cr_assert_leq(counted(sc->file ? s.file : s.template, IPT_LIMBO), 16, "step %u", k);
	if (sc->kind == IPT_INDEX && !sc->file) {
		s.settle_rc = 0;
		int rc = away(FIRST, 16) == 16 ? bring_in(FIRST, 16) : take_out(FIRST + 16, 16);
		cr_assert(rc == 0 || rc == -ENOSPC, "step %u: %d", k, rc);
		away(FIRST, PAGES);
		help_audit(s.t);
	}
	ipt_counts(s.t, &c);
	*repairs += c.repairs;
	close_scene();
	return died;
}

static void die_everywhere(const struct scenario *sc)
{
	unsigned deaths = 0, repairs = 0;

	if (UNDER_TSAN)
		cr_skip_test("killed processes are beyond the thread sanitizer");
	for (unsigned k = 0; die_once(sc, k, &repairs); deaths++)
		k += UNDER_SLOW ? 7 : k < 100 ? 1 : 3;
	cr_assert_gt(deaths, 20);
	cr_assert_gt(repairs, 0, "no death fell into a critical section");
	cr_log_info("%u deaths, %u repairs", deaths, repairs);
}

#define SCENARIO(name, ...)                                      \
	Test(ipt_kill_template, name)                            \
	{                                                        \
		static const struct scenario sc = {__VA_ARGS__}; \
		die_everywhere(&sc);                             \
	}

static int act_out(void)
{
	return take_out(FIRST, 16);
}

static int act_out_one(void)
{
	return take_out(FIRST + 5, 1);
}

static int act_in(void)
{
	return bring_in(FIRST, 16);
}

static int act_in_some(void)
{
	return bring_in(FIRST + 3, 5);
}

static void prepare_out(void)
{
	cr_assert_eq(take_out(FIRST, 16), 0);
}

static void prepare_singles(void)
{
	for (uint64_t g = FIRST + 9; g-- > FIRST + 2;)
		cr_assert_eq(take_out(g, 1), 0);
}

static void prepare_busy(void)
{
	s.settle_rc = -EBUSY;
}

static void prepare_full(void)
{
	struct ipt_out out;

	for (int i = 0; i < PACKED - 1; i++)
		help_claim(s.t, s.vm, 0, PAGE_SIZE, &out);
}

static int act_drop(void)
{
	return drop(0, 16);
}

static int act_drop_some(void)
{
	return drop(18, 3);
}

static void prepare_file_busy(void)
{
	add_file();
	s.settle_rc = -EBUSY;
}

SCENARIO(out, .act = act_out)
SCENARIO(out_one, .act = act_out_one)
SCENARIO(out_undone, .prepare = prepare_busy, .act = act_out, .rc = -EBUSY)
SCENARIO(out_one_undone, .prepare = prepare_busy, .act = act_out_one, .rc = -EBUSY)
SCENARIO(out_full, .prepare = prepare_full, .act = act_out, .rc = -ENOSPC)
SCENARIO(in, .prepare = prepare_out, .act = act_in, .by_vm = true)
SCENARIO(in_some, .prepare = prepare_singles, .act = act_in_some, .by_vm = true)
SCENARIO(drop, .prepare = add_file, .act = act_drop, .file = true)
SCENARIO(drop_some, .prepare = add_file, .act = act_drop_some, .file = true)
SCENARIO(drop_undone, .prepare = prepare_file_busy, .act = act_drop, .rc = -EBUSY, .file = true)
SCENARIO(drop_radix, .kind = IPT_RADIX, .prepare = add_file, .act = act_drop, .file = true)
