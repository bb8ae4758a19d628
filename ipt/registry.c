/* The VM registry. See registry.h. */
#include "ipt/registry.h"
#include "ipt/debug.h"
#include "ipt/fail.h"
#include "ipt/move.h"
#include "ipt/radix.h"
#include "ipt/region.h"
#include "ipt/template.h"
#include <errno.h>
#include <sched.h>
#include <string.h>

#define NAME_WORDS (IPT_NAME_LEN / 4)

struct name {
	uint32_t w[NAME_WORDS];
};

static uint32_t state_of(const struct vm_slot *s)
{
	return load_acquire8(&s->state);
}

static uint32_t vm_high(const struct ipt *t)
{
	return load_acquire32(&t->header->vm_high);
}

/* Between these two the slot's cold fields are in flux; a reader that sees gen odd or changed tries
 * again. The first is a read-modify-write with acquire, so that no field's store moves before it. */
static void slot_open(struct vm_slot *s)
{
	if (!(load_relaxed32(&s->gen) & 1)) /* odd already: a dead registrar was in here */
		atomic_fetch_add_explicit(&s->gen, 1, memory_order_acq_rel);
	ipt_step();
}

static void slot_close(struct vm_slot *s)
{
	ipt_step();
	atomic_fetch_add_explicit(&s->gen, 1, memory_order_release);
}

/* Never 0, which stands for no name. */
static uint32_t name_hash(const struct ipt *t, const struct name *name)
{
	uint64_t h = 0;

	for (int i = 0; i < NAME_WORDS; i++)
		h = hash_fold(h + name->w[i] + t->keys.k[i % 4], t->keys.k[0]);
	return (uint32_t)h ? (uint32_t)h : 1;
}

static void name_get(const _Atomic uint32_t *from, struct name *out)
{
	for (int i = 0; i < NAME_WORDS; i++)
		out->w[i] = load_acquire32(&from[i]);
}

uint32_t registry_hash(const struct ipt *t, uint32_t vm)
{
	struct name name;

	name_get(t->vms[vm].name, &name);
	return state_of(&t->vms[vm]) == VM_NONE ? 0 : name_hash(t, &name);
}

static void name_set(struct ipt *t, struct vm_slot *s, const struct name *name)
{
	for (int i = 0; i < NAME_WORDS; i++)
		store_release32(&s->name[i], name->w[i]);
	ipt_step();
	store_release32(&t->names[s - t->vms], name_hash(t, name));
}

static void slot_clear(struct ipt *t, struct vm_slot *s)
{
	store_release8(&s->state, VM_NONE);
	ipt_step();
	store_release32(&t->names[s - t->vms], 0);
	store_release32(&s->parent, 0);
	store_release32(&s->children, 0);
	store_release8(&s->kind, IPT_VM);
	store_release8(&s->regions, 0);
	store_release8(&s->dropped, 0);
	for (int i = 0; i < NAME_WORDS; i++)
		store_release32(&s->name[i], 0);
	store_release32(&s->radix_root, 0);
	for (int i = 0; i < TABLE_VM_STATES; i++) {
		store_release32(&s->frames[i], 0);
		store_release32(&s->adopted[i], 0);
	}
}

void lineage_open(struct ipt *t)
{
	/* A read-modify-write with acquire: what follows doesn't move before it. */
	atomic_fetch_add_explicit(&t->header->lineage, 1, memory_order_acq_rel);
	ipt_step();
}

void lineage_close(struct ipt *t)
{
	ipt_step();
	atomic_fetch_add_explicit(&t->header->lineage, 1, memory_order_release);
}

/* The part of a freeze that can't be undone; may be done again from the start. The VM's new slot is ready
 * but for its state. */
static void freeze_finish(struct ipt *t)
{
	uint64_t freeze = load_relaxed64(&t->header->freeze);
	struct vm_slot *frozen = &t->vms[freeze >> 32], *goes_on = &t->vms[freeze & UINT32_MAX];
	struct name name;

	slot_open(frozen);
	name_get(t->header->freeze_name, &name);
	name_set(t, frozen, &name);
	store_release8(&frozen->kind, IPT_TEMPLATE);
	slot_close(frozen);
	slot_open(goes_on);
	store_release8(&goes_on->state, VM_LIVE);
	slot_close(goes_on);
	store_release64(&t->header->freeze, 0);
}

/* A registrar died at work: a freeze is finished, what was being given is counted, slots in flux
 * belong to VMs that never were or were just going, and children are counted anew. */
static void registry_rebuild(struct ipt *t)
{
	uint32_t high = vm_high(t);

	if (load_relaxed64(&t->header->freeze))
		freeze_finish(t);
	if (load_relaxed32(&t->header->lineage) & 1)
		lineage_close(t);
	move_mend(t);
	template_mend(t);
	store_relaxed32(&t->header->vm_low, 1);
	for (uint32_t i = 1; i <= high; i++) {
		struct vm_slot *s = &t->vms[i];

		if (load_relaxed32(&s->gen) & 1) {
			slot_clear(t, s);
			slot_close(s);
		}
		store_relaxed32(&s->children, 0);
	}
	for (uint32_t i = 1; i <= high; i++) {
		struct vm_slot *s = &t->vms[i];
		uint32_t parent = load_relaxed32(&s->parent);

		if (state_of(s) != VM_NONE && parent)
			add_relaxed32(&t->vms[parent].children, 1);
	}
	add_relaxed32(&t->header->repairs, 1);
}

void registry_lock(struct ipt *t)
{
	if (lock_take(&t->header->registry, LOCK_REGISTRY)) {
		registry_rebuild(t);
		lock_mended(&t->header->registry);
	}
}

void registry_unlock(struct ipt *t)
{
	lock_drop(&t->header->registry, LOCK_REGISTRY);
}

struct vm_slot *registry_slot(struct ipt *t, vmid_t vm, enum vm_state state)
{
	if (vm.v == 0 || vm.v > t->max_vms || vm.v > vm_high(t))
		return NULL;
	struct vm_slot *s = &t->vms[vm.v];
	uint32_t now = state_of(s);

	return (state == VM_NONE ? now != VM_NONE : now == state) ? s : NULL;
}

int registry_changes(struct ipt *t, vmid_t vm, struct vm_slot **out)
{
	*out = registry_slot(t, vm, VM_LIVE);
	if (!*out)
		return -ENOENT;
	return load_relaxed8(&(*out)->kind) == IPT_VM ? 0 : -EPERM;
}

uint32_t registry_parent(const struct ipt *t, uint32_t vm)
{
	return vm && vm <= vm_high(t) ? load_acquire32(&t->vms[vm].parent) : 0;
}

static bool name_pack(struct name *out, const char *name)
{
	size_t len = strnlen(name, IPT_NAME_LEN);

	memset(out, 0, sizeof(*out));
	memcpy(out, name, len < IPT_NAME_LEN ? len : IPT_NAME_LEN - 1);
	return len < IPT_NAME_LEN;
}

static bool name_is(const struct vm_slot *s, const struct name *name)
{
	for (int i = 0; i < NAME_WORDS; i++) {
		if (load_acquire32(&s->name[i]) != name->w[i])
			return false;
	}
	return true;
}

/* ---- the registry is locked ------------------------------------------------------------------ */

/* The registered VM of that name, or 0. */
static uint32_t find_name(struct ipt *t, const struct name *name)
{
	uint32_t high = vm_high(t), hash = name_hash(t, name);

	for (uint32_t i = 1; i <= high; i++) {
		if (load_relaxed32(&t->names[i]) == hash && state_of(&t->vms[i]) != VM_NONE &&
		    name_is(&t->vms[i], name))
			return i;
	}
	return 0;
}

/* An open, cleared slot of the smallest id that is not in use: NULL if max_vms are. */
static struct vm_slot *slot_new(struct ipt *t)
{
	uint32_t high = vm_high(t), id = load_relaxed32(&t->header->vm_low);

	id += id == 0;
	while (id <= high && state_of(&t->vms[id]) != VM_NONE)
		id++;
	store_relaxed32(&t->header->vm_low, id);
	if (id > t->max_vms)
		return NULL;
	if (id > high)
		store_release32(&t->header->vm_high, id);
	slot_open(&t->vms[id]);
	slot_clear(t, &t->vms[id]);
	return &t->vms[id];
}

static void set_parent(struct ipt *t, struct vm_slot *s, uint32_t parent)
{
	ipt_step();
	store_release32(&s->parent, parent);
	if (parent)
		add_relaxed32(&t->vms[parent].children, 1);
	ipt_step();
}

static int add_locked(struct ipt *t, const struct name *name, enum ipt_vm_kind kind, vmid_t parent,
		      vmid_t *out)
{
	if (find_name(t, name))
		return -EEXIST;
	if (parent.v && (!registry_slot(t, parent, VM_LIVE) ||
			 load_relaxed8(&t->vms[parent.v].kind) == IPT_FILE))
		return -ENOENT;

	struct vm_slot *s = slot_new(t);
	if (!s)
		return -ENOSPC;
	name_set(t, s, name);
	store_release8(&s->kind, (uint8_t)kind);
	set_parent(t, s, parent.v);
	store_release8(&s->state, VM_LIVE);
	slot_close(s);
	*out = vmid((uint32_t)(s - t->vms));
	return 0;
}

static int freeze_locked(struct ipt *t, vmid_t vm, const struct name *name, vmid_t *out)
{
	struct vm_slot *frozen, *goes_on;
	struct name old;
	int err = registry_changes(t, vm, &frozen);

	if (err)
		return err;
	if (find_name(t, name))
		return -EEXIST;
	goes_on = slot_new(t);
	if (!goes_on)
		return -ENOSPC;
	name_get(frozen->name, &old);
	name_set(t, goes_on, &old);
	set_parent(t, goes_on, vm.v);
	for (int i = 0; i < NAME_WORDS; i++)
		store_release32(&t->header->freeze_name[i], name->w[i]);
	ipt_step();
	*out = vmid((uint32_t)(goes_on - t->vms));
	/* The commit point. */
	store_release64(&t->header->freeze, (uint64_t)vm.v << 32 | out->v);
	ipt_step();
	freeze_finish(t);
	return 0;
}

/* ---- the registry from outside --------------------------------------------------------------- */

static int name_check(const char *name, struct name *out)
{
	if (!name || !*name)
		return -EINVAL;
	return name_pack(out, name) ? 0 : -ENAMETOOLONG;
}

static int add(struct ipt *t, const char *name, enum ipt_vm_kind kind, vmid_t parent, vmid_t *out)
{
	struct name packed;
	int err = name_check(name, &packed);

	if (!err)
		err = -fail_point(FAIL_IPT_VM_ADD);
	if (err)
		return err;
	registry_lock(t);
	err = add_locked(t, &packed, kind, parent, out);
	registry_unlock(t);
	return err;
}

int ipt_vm_add(struct ipt *t, const char *name, vmid_t parent, vmid_t *out)
{
	return add(t, name, IPT_VM, parent, out);
}

int ipt_file_add(struct ipt *t, const char *name, vmid_t *out)
{
	return add(t, name, IPT_FILE, INVALID_VMID, out);
}

int ipt_vm_freeze(struct ipt *t, vmid_t vm, const char *template_name, vmid_t *out)
{
	struct name packed;
	int err = name_check(template_name, &packed);

	if (!err)
		err = -fail_point(FAIL_IPT_FREEZE);
	if (err)
		return err;
	registry_lock(t);
	err = freeze_locked(t, vm, &packed, out);
	registry_unlock(t);
	return err;
}

int registry_dying(struct ipt *t, vmid_t vm)
{
	int err = 0;

	registry_lock(t);
	struct vm_slot *s = registry_slot(t, vm, VM_NONE);
	if (!s)
		err = -ENOENT;
	else if (load_relaxed32(&s->children) || vm.v == load_relaxed32(&t->header->holder) ||
		 (load_relaxed8(&s->kind) == IPT_FILE && region_uses(t, vm.v)))
		err = -EBUSY;
	else
		store_release8(&s->state, VM_DYING);
	registry_unlock(t);
	return err;
}

/* The first VM whose parent vm is, or 0. */
static uint32_t first_child(struct ipt *t, uint32_t vm)
{
	uint32_t high = vm_high(t);

	for (uint32_t i = 1; i <= high; i++) {
		if (state_of(&t->vms[i]) != VM_NONE && load_relaxed32(&t->vms[i].parent) == vm)
			return i;
	}
	return 0;
}

static int heir_locked(struct ipt *t, vmid_t vm, vmid_t *child)
{
	struct vm_slot *s = registry_slot(t, vm, VM_NONE);

	if (!s)
		return -ENOENT;
	if (load_relaxed8(&s->kind) != IPT_TEMPLATE)
		return -EPERM;
	if (load_relaxed32(&s->children) > 1)
		return -EBUSY;
	*child = vmid(first_child(t, vm.v));
	if (child->v && state_of(&t->vms[child->v]) == VM_DYING)
		return -EBUSY;
	if (child->v && !region_fits(t, vm.v, child->v))
		return -ENOSPC;
	if (child->v)
		store_release8(&s->state, VM_DYING);
	return 0;
}

int registry_heir(struct ipt *t, vmid_t vm, vmid_t *child)
{
	registry_lock(t);
	int err = heir_locked(t, vm, child);
	registry_unlock(t);
	return err;
}

void registry_skip(struct ipt *t, vmid_t vm, vmid_t child)
{
	struct vm_slot *s = &t->vms[vm.v];

	registry_lock(t);
	lineage_open(t);
	region_inherit(t, vm.v, child.v);
	/* The parent has one child more, and one less: if we die in between, vm is left without children
	 * and is reaped as such. */
	store_release32(&t->vms[child.v].parent, load_relaxed32(&s->parent));
	ipt_step();
	if (t->kind == IPT_RADIX)
		radix_drop(t, vm.v);
	slot_open(s);
	slot_clear(t, s);
	if (vm.v < load_relaxed32(&t->header->vm_low))
		store_relaxed32(&t->header->vm_low, vm.v);
	slot_close(s);
	lineage_close(t);
	registry_unlock(t);
}

void registry_remove(struct ipt *t, vmid_t vm)
{
	struct vm_slot *s = &t->vms[vm.v];

	registry_lock(t);
	uint32_t parent = load_relaxed32(&s->parent);
	slot_open(s);
	slot_clear(t, s);
	if (vm.v < load_relaxed32(&t->header->vm_low))
		store_relaxed32(&t->header->vm_low, vm.v);
	if (parent)
		add_relaxed32(&t->vms[parent].children, UINT32_MAX); /* minus one */
	slot_close(s);
	registry_unlock(t);
}

/* Copy the slot out: false if it was in flux. */
static bool read_slot(const struct vm_slot *s, uint32_t id, struct ipt_vm_info *out,
		      enum vm_state *state)
{
	uint32_t gen = load_acquire32(&s->gen);
	struct name name;

	*state = (enum vm_state)state_of(s);
	out->id = vmid(id);
	out->kind = (enum ipt_vm_kind)load_acquire8(&s->kind);
	out->parent = vmid(load_acquire32(&s->parent));
	out->dying = *state == VM_DYING;
	out->children = load_acquire32(&s->children);
	memset(out->frames, 0, sizeof(out->frames));
	for (int i = 0; i < TABLE_VM_STATES; i++)
		out->frames[IPT_LIMBO + i] =
			load_acquire32(&s->frames[i]) + load_acquire32(&s->adopted[i]);
	name_get(s->name, &name);
	memcpy(out->name, &name, IPT_NAME_LEN);
	/* The loads above are acquires, so this one comes after them. */
	return !(gen & 1) && load_relaxed32(&s->gen) == gen;
}

int ipt_vm_info(struct ipt *t, vmid_t vm, struct ipt_vm_info *out)
{
	enum vm_state state;

	if (!registry_slot(t, vm, VM_NONE))
		return -ENOENT;
	for (unsigned tries = 0; !read_slot(&t->vms[vm.v], vm.v, out, &state); tries++) {
		if (tries < 100) {
			sched_yield();
			continue;
		}
		registry_lock(t); /* mends what a dead registrar left in flux */
		registry_unlock(t);
	}
	return state == VM_NONE ? -ENOENT : 0;
}

int ipt_vm_find(struct ipt *t, const char *name, vmid_t *out)
{
	struct name packed;
	uint32_t id;

	if (!name || !*name || !name_pack(&packed, name))
		return -ENOENT;
	registry_lock(t);
	id = find_name(t, &packed);
	registry_unlock(t);
	*out = vmid(id);
	return id ? 0 : -ENOENT;
}

vmid_t ipt_vm_next(struct ipt *t, vmid_t after)
{
	uint32_t high = vm_high(t);

	for (uint32_t i = after.v + 1; i <= high; i++) {
		if (state_of(&t->vms[i]) != VM_NONE)
			return vmid(i);
	}
	return INVALID_VMID;
}
