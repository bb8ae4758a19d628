/* The VM registry. See registry.h. */
#include "ipt/registry.h"
#include "ipt/debug.h"
#include <errno.h>
#include <sched.h>
#include <string.h>

#define NAME_WORDS (IPT_NAME_LEN / 8)

struct name {
	uint64_t w[NAME_WORDS];
};

static uint32_t state_of(const struct vm_slot *s)
{
	return load_acquire32(&s->state);
}

static uint32_t vm_high(const struct ipt *t)
{
	return load_acquire32(&t->header->vm_high);
}

/* Between these two the slot's cold fields are in flux; a reader that sees gen odd or changed tries
 * again. The first is a read-modify-write with acquire, so that no field's store moves before it. */
static void slot_open(struct vm_slot *s)
{
	atomic_fetch_add_explicit(&s->gen, 1, memory_order_acq_rel);
	ipt_step();
}

static void slot_close(struct vm_slot *s)
{
	ipt_step();
	atomic_fetch_add_explicit(&s->gen, 1, memory_order_release);
}

static void slot_clear(struct vm_slot *s)
{
	store_release32(&s->state, VM_NONE);
	ipt_step();
	store_release32(&s->parent, 0);
	store_release32(&s->children, 0);
	for (int i = 0; i < NAME_WORDS; i++)
		store_release64(&s->name[i], 0);
	store_release32(&s->radix_root, 0);
	for (int i = 0; i < IPT_NSTATES; i++)
		store_release32(&s->frames[i], 0);
}

/* A registrar died at work: slots in flux belong to VMs that never were or were just going, and
 * children are counted anew. */
static void registry_rebuild(struct ipt *t)
{
	uint32_t high = vm_high(t);

	for (uint32_t i = 1; i <= high; i++) {
		struct vm_slot *s = &t->vms[i];

		if (load_relaxed32(&s->gen) & 1) {
			slot_clear(s);
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
		if (load_acquire64(&s->name[i]) != name->w[i])
			return false;
	}
	return true;
}

/* The registered VM of that name, and the smallest id that is not in use (max_vms + 1 for none). */
static uint32_t find_name(struct ipt *t, const struct name *name, uint32_t *unused)
{
	uint32_t high = vm_high(t), first = 0;

	for (uint32_t i = 1; i <= high; i++) {
		if (state_of(&t->vms[i]) == VM_NONE)
			first = first ? first : i;
		else if (name_is(&t->vms[i], name))
			return i;
	}
	if (unused)
		*unused = first ? first : high + 1;
	return 0;
}

static int add_locked(struct ipt *t, const struct name *name, vmid_t parent, vmid_t *out)
{
	uint32_t id;

	if (find_name(t, name, &id))
		return -EEXIST;
	if (parent.v && !registry_slot(t, parent, VM_LIVE))
		return -ENOENT;
	if (id > t->max_vms)
		return -ENOSPC;
	if (id > vm_high(t))
		store_release32(&t->header->vm_high, id);

	struct vm_slot *s = &t->vms[id];
	slot_open(s);
	slot_clear(s);
	for (int i = 0; i < NAME_WORDS; i++)
		store_release64(&s->name[i], name->w[i]);
	ipt_step();
	store_release32(&s->parent, parent.v);
	if (parent.v)
		add_relaxed32(&t->vms[parent.v].children, 1);
	ipt_step();
	store_release32(&s->state, VM_LIVE);
	slot_close(s);
	*out = vmid(id);
	return 0;
}

int ipt_vm_add(struct ipt *t, const char *name, vmid_t parent, vmid_t *out)
{
	struct name packed;
	int err;

	if (!name || !*name)
		return -EINVAL;
	if (!name_pack(&packed, name))
		return -ENAMETOOLONG;
	registry_lock(t);
	err = add_locked(t, &packed, parent, out);
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
	else if (load_relaxed32(&s->children))
		err = -EBUSY;
	else
		store_release32(&s->state, VM_DYING);
	registry_unlock(t);
	return err;
}

void registry_remove(struct ipt *t, vmid_t vm)
{
	struct vm_slot *s = &t->vms[vm.v];

	registry_lock(t);
	uint32_t parent = load_relaxed32(&s->parent);
	slot_open(s);
	slot_clear(s);
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
	out->parent = vmid(load_acquire32(&s->parent));
	out->dying = *state == VM_DYING;
	out->children = load_acquire32(&s->children);
	for (int i = 0; i < IPT_NSTATES; i++)
		out->frames[i] = load_acquire32(&s->frames[i]);
	for (int i = 0; i < NAME_WORDS; i++)
		name.w[i] = load_acquire64(&s->name[i]);
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
	id = find_name(t, &packed, NULL);
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
