#include "vmm/inject_parse.h"
#include "vmm/answer.h"
#include "vmm/error.h"
#include "vmm/vm.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

static const char *const kinds[INJECT_KINDS] = {
	[INJECT_MEMORY] = "memory", [INJECT_DISK] = "disk",   [INJECT_IRQ] = "irq",
	[INJECT_STALL] = "stall",   [INJECT_CLOCK] = "clock", [INJECT_POWER_CUT] = "power-cut",
	[INJECT_NOTICE] = "notice"};

/* "memory", "disk" ...; NULL for those that aren't faults. */
static const char *kind_name(enum inject_kind k)
{
	return (unsigned)k < INJECT_KINDS ? kinds[k] : NULL;
}

const char *inject_outcome_name(enum inject_outcome o)
{
	static const char *const names[] = {
		[INJECT_REFUSED] = "refused",   [INJECT_DONE] = "done",
		[INJECT_ARMED] = "armed",       [INJECT_RETIRED] = "retired",
		[INJECT_REPAIRED] = "repaired", [INJECT_LOST] = "lost",
		[INJECT_BLANK] = "blank"};
	return (unsigned)o < sizeof names / sizeof *names ? names[o] : "unknown";
}

/* ---- members ------------------------------------------------------------------------------- */

static bool has(const char *const *list, const char *key)
{
	while (list && *list && strcmp(*list, key))
		list++;
	return list && *list;
}

int inject_members(const json_t *o, const char *const *a, const char *const *b, char *error)
{
	const char *key;
	json_t *value;
	json_object_foreach((json_t *)(uintptr_t)o, key, value)
	{
		if (!has(a, key) && !has(b, key))
			return errorf(error, -EINVAL, "%.40s: not a member that it can have", key);
	}
	return 0;
}

int inject_number(const json_t *o, const char *key, int64_t lo, int64_t hi, int64_t otherwise,
		  int64_t *out, char *error)
{
	const json_t *v = json_object_get(o, key);
	*out = v ? json_integer_value(v) : otherwise;
	if (v ? json_is_integer(v) && *out >= lo && *out <= hi : otherwise >= lo)
		return 0;
	return errorf(error, -EINVAL, "%s: %s number, %lld to %lld", key, v ? "a whole" : "needs a",
		      (long long)lo, (long long)hi);
}

int inject_probability(const json_t *o, const char *key, uint32_t *out, char *error)
{
	const json_t *v = json_object_get(o, key);
	double p = v ? json_number_value(v) : 1;
	if (v && (!json_is_number(v) || !(p >= 0 && p <= 1)))
		return errorf(error, -EINVAL, "%s: a number, 0 to 1", key);
	*out = (uint32_t)(p * INJECT_CERTAIN + 0.5);
	return 0;
}

static const char *text(const json_t *o, const char *key)
{
	const char *s = json_string_value(json_object_get(o, key));
	return s ? s : "";
}

/* ---- one kind each ------------------------------------------------------------------------- */

static int parse_memory(const json_t *o, struct inject *f, char *error)
{
	int64_t n, from = 0, bytes = 0;
	int rc;
	f->gpa = INJECT_ANYWHERE;
	f->frame = UINT32_MAX;
	if (!json_object_get(o, "gpa") == !json_object_get(o, "frame"))
		return errorf(error, -EINVAL,
			      "gpa: needs either an address of the guest's, or \"frame\"");
	if (json_object_get(o, "frame")) {
		rc = inject_number(o, "frame", 0, IPT_MAX_FRAMES - 1, -1, &n, error);
		f->frame = (uint32_t)n;
		return rc;
	}
	if (!strcmp(text(o, "gpa"), "random")) {
		rc = inject_number(o, "from", 0, INT64_C(1) << 48, 0, &from, error);
		if (!rc)
			rc = inject_number(o, "bytes", PAGE_SIZE, INT64_C(1) << 48, -1, &bytes,
					   error);
		f->from = (uint64_t)from & ~PAGE_MASK;
		f->bytes = (uint64_t)bytes & ~PAGE_MASK;
		return rc;
	}
	rc = inject_number(o, "gpa", 0, (INT64_C(1) << 48) - 1, -1, &n, error);
	f->gpa = (uint64_t)n & ~PAGE_MASK;
	return rc;
}

static int parse_notice(const json_t *o, struct inject *f, char *error)
{
	return json_object_get(o, "gpa")
		       ? parse_memory(o, f, error)
		       : errorf(error, -EINVAL, "gpa: needs an address of the guest's");
}

static int parse_ops(const char *value, struct inject *f, char *error)
{
	static const char *const names[] = {"read", "write", "flush"};
	while (value && *value) {
		size_t n = strcspn(value, ",");
		unsigned i = 0;
		while (i < 3 && (strlen(names[i]) != n || strncmp(value, names[i], n)))
			i++;
		if (i == 3)
			return errorf(error, -EINVAL,
				      "on: some of read, write and flush, with "
				      "commas between");
		f->ops |= 1u << i;
		value += n + (value[n] == ',');
	}
	return f->ops ? 0
		      : errorf(error, -EINVAL,
			       "on: some of read, write and flush, with commas between");
}

static int parse_status(const json_t *o, struct inject *f, char *error)
{
	const char *s = text(o, "error");
	if (!strcmp(s, "EIO"))
		f->status = VIRTIO_DISK_EIO;
	else if (!strcmp(s, "EOPNOTSUPP"))
		f->status = VIRTIO_DISK_UNSUPPORTED;
	else if (json_object_get(o, "error"))
		return errorf(error, -EINVAL, "error: EIO or EOPNOTSUPP");
	return 0;
}

static int parse_disk(const json_t *o, struct inject *f, char *error)
{
	int64_t n;
	int rc = inject_number(o, "disk", 0, VM_MAX_DISKS - 1, 0, &n, error);
	f->disk = (uint32_t)n;
	if (!rc)
		rc = inject_number(o, "from", 0, INT64_MAX / 2, 0, &n, error);
	f->from = (uint64_t)n;
	if (!rc)
		rc = inject_number(o, "bytes", 1, INT64_MAX / 2, INT64_MAX / 2, &n, error);
	f->bytes = (uint64_t)n;
	if (!rc)
		rc = inject_probability(o, "probability", &f->chance, error);
	if (!rc)
		rc = inject_number(o, "times", 0, INJECT_TIMES, 0, &n, error);
	f->times = (uint32_t)n;
	if (!rc)
		rc = inject_number(o, "seed", 0, INT64_MAX, 0, &n, error);
	f->seed = (uint64_t)n;
	if (!rc)
		rc = parse_status(o, f, error);
	if (rc)
		return rc;
	bool torn = json_object_get(o, "torn"), late = json_object_get(o, "latency_ms");
	if (torn + late > 1 || (late && f->status) || (!torn && !late && !f->status))
		return errorf(error, -EINVAL,
			      "error: needs one of \"error\", \"latency_ms\" and "
			      "\"torn\" (torn also with error)");
	f->effect = torn ? INJECT_TORN : late ? INJECT_LATENCY : INJECT_ERROR;
	if (torn)
		rc = inject_number(o, "torn", 0, 1 << 16, -1, &n, error);
	else if (late)
		rc = inject_number(o, "latency_ms", 1, VIRTIO_FAULT_MS, -1, &n, error);
	*(torn ? &f->sectors : &f->ms) = torn || late ? (uint32_t)n : 0;
	if (!rc && json_object_get(o, "on"))
		rc = parse_ops(json_string_value(json_object_get(o, "on")), f, error);
	if (!rc && !f->ops)
		f->ops = torn ? 1u << VIRTIO_DISK_WRITE
			      : 1u << VIRTIO_DISK_READ | 1u << VIRTIO_DISK_WRITE;
	if (!rc && torn && f->ops != 1u << VIRTIO_DISK_WRITE)
		return errorf(error, -EINVAL, "on: only writes can be torn");
	return rc;
}

/* "disk0" to "disk7" and so on, for a name with a number. */
static int numbered(const char *name, const char *prefix, unsigned most)
{
	size_t n = strlen(prefix);
	if (strncmp(name, prefix, n) || name[n] < '0' || name[n] >= (char)('0' + most) ||
	    name[n + 1])
		return -1;
	return name[n] - '0';
}

/* The device's place among a VM's, with counts of disks and pmem that may not be known (NULL): vm_machine_devices. */
static int device_slot(const char *name, const struct vm_config *vm)
{
	int disk = numbered(name, "disk", VM_MAX_DISKS), pmem = numbered(name, "pmem", VM_MAX_PMEM);
	if (!strcmp(name, "console"))
		return 0;
	if (!strcmp(name, "rng"))
		return 1;
	if (!strcmp(name, "agent"))
		return 2;
	if (disk >= 0)
		return !vm || (unsigned)disk < vm->disks ? 3 + disk : -1;
	if (pmem >= 0)
		return !vm ? 3 : (unsigned)pmem < vm->pmems ? (int)(3 + vm->disks) + pmem : -1;
	if (!strcmp(name, "balloon"))
		return vm ? (int)(3 + vm->disks + vm->pmems) : 3;
	return -1;
}

static int parse_irq(const json_t *o, const struct vm_config *vm, struct inject *f, char *error)
{
	int slot = device_slot(text(o, "device"), vm);
	bool drop = json_object_get(o, "drop"), delay = json_object_get(o, "delay_ms");
	int64_t n;
	f->chance = INJECT_CERTAIN;
	if (slot < 0)
		return errorf(error, -EINVAL,
			      "device: console, rng, agent, balloon, or disk0, pmem0 ... if the "
			      "guest has such");
	f->device = (uint32_t)slot;
	snprintf(f->name, sizeof f->name, "%.*s", (int)sizeof f->name - 1, text(o, "device"));
	if (drop == delay)
		return errorf(error, -EINVAL,
			      "drop: needs either \"drop\", how many interrupts, "
			      "or \"delay_ms\"");
	f->effect = drop ? INJECT_DROP : INJECT_DELAY;
	if (drop && json_object_get(o, "times"))
		return errorf(error, -EINVAL,
			      "times: of interrupts that are dropped, \"drop\" "
			      "says how many");
	int rc = inject_number(o, drop ? "drop" : "delay_ms", 1,
			       drop ? INJECT_TIMES : VIRTIO_FAULT_MS, -1, &n, error);
	*(drop ? &f->times : &f->ms) = (uint32_t)n;
	if (!rc && delay)
		rc = inject_number(o, "times", 0, INJECT_TIMES, 0, &n, error);
	if (!rc && delay)
		f->times = (uint32_t)n;
	return rc;
}

static int parse_stall(const json_t *o, struct inject *f, char *error)
{
	int64_t cpu, ms;
	int rc = inject_number(o, "vcpu", 0, MACHINE_MAX_CPUS - 1, 0, &cpu, error);
	if (!rc)
		rc = inject_number(o, "ms", 1, INJECT_STALL_MS, -1, &ms, error);
	f->vcpu = (uint32_t)cpu;
	f->ms = rc ? 0 : (uint32_t)ms;
	return rc;
}

static int parse_clock(const json_t *o, struct inject *f, char *error)
{
	int64_t by;
	int rc = json_object_get(o, "jump_ms")
			 ? inject_number(o, "jump_ms", -INJECT_JUMP_MS, INJECT_JUMP_MS, 0, &by,
					 error)
			 : errorf(error, -EINVAL,
				  "jump_ms: needs a number of milliseconds, negative for back");
	f->jump_ms = rc ? 0 : by;
	return rc;
}

static const char *const losses[] = {
	[INJECT_LOSE_ALL] = "all", [INJECT_LOSE_NONE] = "none", [INJECT_LOSE_RANDOM] = "random"};

static int parse_power_cut(const json_t *o, struct inject *f, char *error)
{
	int64_t n;
	if (json_object_get(o, "lose")) {
		f->lose = INJECT_LOSE_RANDOM;
		while (f->lose && strcmp(losses[f->lose], text(o, "lose")))
			f->lose--;
		if (!f->lose)
			return errorf(error, -EINVAL, "lose: all, none or random");
	}
	if (json_object_get(o, "seed") && f->lose != INJECT_LOSE_RANDOM)
		return errorf(error, -EINVAL, "seed: goes with \"lose\": \"random\"");
	int rc = inject_number(o, "seed", 0, INT64_MAX, 0, &n, error);
	f->seed = rc ? 0 : (uint64_t)n;
	return rc;
}

/* ---- the whole ----------------------------------------------------------------------------- */

static const char *const members[INJECT_KINDS][12] = {
	[INJECT_MEMORY] = {"fault", "gpa", "frame", "from", "bytes"},
	[INJECT_DISK] = {"fault", "disk", "from", "bytes", "on", "error", "latency_ms", "torn",
			 "probability", "times", "seed"},
	[INJECT_IRQ] = {"fault", "device", "drop", "delay_ms", "times"},
	[INJECT_STALL] = {"fault", "vcpu", "ms"},
	[INJECT_CLOCK] = {"fault", "jump_ms"},
	[INJECT_POWER_CUT] = {"fault", "lose", "seed"},
	[INJECT_NOTICE] = {"fault", "gpa", "from", "bytes"},
};

static bool has_volatile(const struct vm_config *vm)
{
	unsigned i = 0;
	while (i < vm->disks && !vm->disk[i].is_volatile)
		i++;
	return i < vm->disks;
}

/* Checks for which the VM must be known. */
static int check(const struct inject *f, const struct vm_config *vm, char *error)
{
	const struct machine *m = &vm->machine;
	if (f->kind == INJECT_DISK && f->disk >= vm->disks)
		return errorf(error, -EINVAL, "disk: %s has %u", m->name, vm->disks);
	if (f->kind == INJECT_POWER_CUT && f->lose && !has_volatile(vm))
		return errorf(error, -EINVAL,
			      "lose: %s has no disk with a volatile cache (--disk "
			      "FILE,cache=volatile)",
			      m->name);
	if (f->kind == INJECT_STALL && f->vcpu >= m->cpus)
		return errorf(error, -EINVAL, "vcpu: %s has %u, numbered from 0", m->name, m->cpus);
	if (inject_has_page(f->kind) && f->gpa != INJECT_ANYWHERE &&
	    !machine_bank_of(m, gpa(f->gpa), 1))
		return errorf(error, -EINVAL, "gpa: %s has no memory at 0x%" PRIx64, m->name,
			      f->gpa);
	if (inject_has_page(f->kind) && f->bytes && !machine_bank_of(m, gpa(f->from), f->bytes))
		return errorf(error, -EINVAL, "from: %s has no such memory", m->name);
	return 0;
}

int inject_parse(const json_t *o, const char *const *others, const struct vm_config *vm,
		 struct inject *out, char *error)
{
	const char *name = text(o, "fault");
	unsigned kind = INJECT_KINDS;
	while (--kind && (!kinds[kind] || strcmp(kinds[kind], name)))
		;
	*out = (struct inject){.kind = kind};
	if (!kind)
		return errorf(
			error, -EINVAL,
			"fault: one of memory, disk, irq, stall, clock, power-cut and notice");
	int rc = inject_members(o, members[kind], others, error);
	if (rc)
		return rc;
	switch (kind) {
	case INJECT_MEMORY:
		rc = parse_memory(o, out, error);
		break;
	case INJECT_DISK:
		rc = parse_disk(o, out, error);
		break;
	case INJECT_IRQ:
		rc = parse_irq(o, vm, out, error);
		break;
	case INJECT_STALL:
		rc = parse_stall(o, out, error);
		break;
	case INJECT_CLOCK:
		rc = parse_clock(o, out, error);
		break;
	case INJECT_POWER_CUT:
		rc = parse_power_cut(o, out, error);
		break;
	case INJECT_NOTICE:
		rc = parse_notice(o, out, error);
		break;
	}
	return rc || !vm ? rc : check(out, vm, error);
}

static void put_disk(json_t *o, const struct inject *f)
{
	char on[32] = "";
	static const char *const names[] = {"read", "write", "flush"};
	for (unsigned i = 0; i < 3; i++)
		if (f->ops >> i & 1)
			snprintf(on + strlen(on), sizeof on - strlen(on), "%s%s", *on ? "," : "",
				 names[i]);
	answer_put(o, "disk", f->disk);
	answer_put(o, "from", f->from);
	if (f->bytes < INT64_MAX / 2)
		answer_put(o, "bytes", f->bytes);
	answer_put_text(o, "on", on);
	if (f->effect == INJECT_LATENCY)
		answer_put(o, "latency_ms", f->ms);
	if (f->effect == INJECT_TORN)
		answer_put(o, "torn", f->sectors);
	if (f->status)
		answer_put_text(o, "error", f->status == VIRTIO_DISK_EIO ? "EIO" : "EOPNOTSUPP");
	if (f->chance < INJECT_CERTAIN) {
		json_object_set_new(o, "probability",
				    json_real((double)f->chance / INJECT_CERTAIN));
		answer_put(o, "seed", f->seed);
	}
	if (f->times)
		answer_put(o, "times", f->times);
}

json_t *inject_json(const struct inject *f)
{
	const char *kind = kind_name(f->kind);
	json_t *o = json_pack("{s:s}", "fault", kind ? kind : "none");
	switch (f->kind) {
	case INJECT_MEMORY:
	case INJECT_NOTICE:
		if (f->gpa != INJECT_ANYWHERE)
			answer_put(o, "gpa", f->gpa);
		else
			answer_put(o, "frame", f->frame);
		break;
	case INJECT_DISK:
		put_disk(o, f);
		break;
	case INJECT_IRQ:
		answer_put_text(o, "device", f->name);
		if (f->effect == INJECT_DELAY)
			answer_put(o, "delay_ms", f->ms);
		else
			answer_put(o, "drop", f->times);
		if (f->effect == INJECT_DELAY && f->times)
			answer_put(o, "times", f->times);
		break;
	case INJECT_STALL:
		answer_put(o, "vcpu", f->vcpu);
		answer_put(o, "ms", f->ms);
		break;
	case INJECT_CLOCK:
		answer_put(o, "jump_ms", f->jump_ms);
		break;
	case INJECT_POWER_CUT:
		if (f->lose && f->lose < sizeof losses / sizeof *losses)
			answer_put_text(o, "lose", losses[f->lose]);
		if (f->lose == INJECT_LOSE_RANDOM)
			answer_put(o, "seed", f->seed);
		break;
	}
	return o;
}
