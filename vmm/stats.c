#include "vmm/stats.h"
#include "ipt/fail.h"
#include "vmm/balloon.h"
#include "vmm/clock.h"
#include "vmm/host_domain.h"
#include "vmm/merge.h"
#include "vmm/proc.h"
#include "vmm/reclaim_stall.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void put(json_t *o, const char *key, uint64_t value)
{
	json_object_set_new(o, key, json_integer((json_int_t)value));
}

static json_t *table_stats(struct ipt *t)
{
	json_t *o = json_object();
	struct ipt_bytes b = {0};
	struct ipt_counts c;
	ipt_bytes(t, &b);
	ipt_counts(t, &c);
	json_object_set_new(o, "kind",
			    json_string(ipt_config(t)->kind == IPT_RADIX ? "radix" : "ipt"));
	put(o, "array_bytes", b.array);
	put(o, "side_bytes", b.side);
	put(o, "slots_bytes", b.slots);
	put(o, "forward_bytes", b.forward);
	put(o, "other_bytes", b.other);
	put(o, "total_bytes", b.array + b.side + b.slots + b.forward + b.other);
	put(o, "cluster_elements", c.cluster_elements);
	put(o, "single_elements", c.single_elements);
	put(o, "radix_pages", c.radix_pages);
	put(o, "repairs", c.repairs);
	return o;
}

static json_t *pool_stats(struct host *h)
{
	json_t *o = json_object();
	struct ipt_counts c;
	ipt_counts(host_table(h), &c);
	put(o, "frames_total", host_frames(h));
	put(o, "frames_free", ipt_free_frames(host_table(h)));
	put(o, "frames_limbo", c.frames[IPT_LIMBO]);
	put(o, "frames_private", c.frames[IPT_PRIVATE]);
	put(o, "frames_shared", c.frames[IPT_SHARED]);
	put(o, "frames_bad", c.bad);
	put(o, "frames_retired", c.retired);
	put(o, "total_bytes", (uint64_t)host_frames(h) << PAGE_SHIFT);
	put(o, "populated_bytes", host_populated_bytes(h));
	return o;
}

/* What merging does; null where it is off. */
static json_t *merge_stats(struct host *h)
{
	struct host_merge m;
	struct ipt_counts c;
	host_merge_info(h, &m);
	if (!m.percent)
		return json_null();
	ipt_counts(host_table(h), &c);
	json_t *o = json_object();
	put(o, "percent", m.percent);
	json_object_set_new(o, "running", json_boolean(m.running));
	put(o, "starts", m.starts);
	put(o, "shared_frames", c.frames[IPT_SHARED]);
	put(o, "aliases", c.frames[IPT_ALIAS]);
	put(o, "zero_frames_given_back", m.counters->pages_done[MERGE_ZERO]);
	put(o, "merged_frames", m.counters->pages_done[MERGE_MERGE]);
	put(o, "passes", m.counters->passes);
	put(o, "scanned_bytes", m.counters->scanned_bytes);
	put(o, "merger_cpu_ns", m.counters->merger_ns);
	put(o, "vms_cpu_ns", m.counters->vms_ns);
	put(o, "requests", m.counters->requests);
	put(o, "requests_refused", m.counters->refused);
	put(o, "requests_unheard", m.counters->unheard);
	put(o, "pages_refused", m.counters->pages_refused);
	return o;
}

/* What reclaim does; null where it is off. */
static json_t *reclaim_stats(struct host *h)
{
	struct host_reclaim r;
	struct ipt_counts now;
	host_reclaim_info(h, &r);
	if (!r.on)
		return json_null();
	ipt_counts(host_table(h), &now);
	const struct reclaim_counters *c = &r.board->counters;
	json_t *o = json_object();
	json_object_set_new(o, "running", json_boolean(r.running));
	put(o, "starts", r.starts);
	json_object_set_new(o, "nothing_left", json_boolean(r.board->full));
	put(o, "low_frames", r.board->low);
	put(o, "high_frames", r.board->high);
	put(o, "pages_out", now.frames[IPT_OUT]);
	put(o, "rounds", c->rounds);
	put(o, "batches", c->batches);
	put(o, "pages_looked_at", c->looked);
	put(o, "pages_touched", c->touched);
	put(o, "frames_freed", c->freed);
	put(o, "pages_put_out", c->out);
	put(o, "pages_zero", c->zero);
	put(o, "pages_in_file", c->in_file);
	/* Pages of zeroes are either void now, or out without bytes. */
	uint64_t others = c->zero + c->in_file + c->dropped;
	put(o, "pages_packed", c->freed > others ? c->freed - others : 0);
	put(o, "packed_bytes", c->packed_bytes);
	put(o, "pages_refused", c->refused);
	put(o, "store_full", c->full);
	put(o, "store_errors", c->errors);
	put(o, "vms_unheard", c->unheard);
	put(o, "turns", c->turns);
	put(o, "reclaimer_cpu_ns", c->reclaimer_ns);
	put(o, "vms_cpu_ns", c->vms_ns);
	put(o, "pages_of_templates", c->shared);
	put(o, "pages_of_files_dropped", c->dropped);
	put(o, "pages_unsettled", c->unsettled);
	put(o, "packed_memory_total_bytes", r.space.granules * IPT_GRANULE);
	put(o, "packed_memory_used_bytes", r.space.granules_used * IPT_GRANULE);
	put(o, "packed_memory_populated_bytes", r.packed_populated);
	put(o, "swap_total_bytes", (uint64_t)r.space.blocks << PAGE_SHIFT);
	put(o, "swap_used_bytes", (uint64_t)r.space.blocks_used << PAGE_SHIFT);
	return o;
}

/* The same of one VM: what it may have and what it seems to need. */
static json_t *reclaim_stats_vm(struct host_vm *vm)
{
	struct host_reclaim r;
	host_reclaim_info(vm->host, &r);
	const struct reclaim_desk *d =
		r.on && vm->id.v < r.board->desks ? &r.board->desk[vm->id.v] : NULL;
	if (!d || vm->is_template)
		return json_null();
	json_t *o = json_object();
	put(o, "shares", d->shares);
	put(o, "min_frames", d->min);
	put(o, "limit_frames", d->limit);
	put(o, "working_set_frames", d->working_set);
	put(o, "working_set_error_frames", d->working_set_error);
	put(o, "stall_ns", reclaim_stalled_ns(d, clock_ns()));
	static const char *const turns[] = {"none", "has", "waits"};
	json_object_set_new(o, "turn",
			    json_string(turns[d->turn <= RECLAIM_WAITS_FOR_TURN ? d->turn : 0]));
	json_object_set_new(o, "stall_avg10", json_real(d->stall10 / 1e6));
	json_object_set_new(o, "stall_avg60", json_real(d->stall60 / 1e6));
	return o;
}

static json_t *host_stats(void)
{
	json_t *o = json_object();
	struct proc_memory m;
	proc_memory(getpid(), &m);
	put(o, "process_private_dirty_kib", m.private_dirty_kib);
	put(o, "page_table_kib", m.page_table_kib);
	put(o, "second_stage_page_tables_kib", proc_meminfo_kib("SecPageTables"));
	return o;
}

static json_t *faults(const struct mailbox *mb)
{
	static const char *const names[FAULT_NKINDS] = {
		[FAULT_GUEST_READ] = "guest_read", [FAULT_GUEST_WRITE] = "guest_write",
		[FAULT_DEVICE] = "device",         [FAULT_STALE] = "stale",
		[FAULT_SHOWN] = "shown",           [FAULT_COPIED] = "copied",
		[FAULT_FETCHED] = "fetched",
	};
	json_t *o = json_object();
	for (int i = 0; i < FAULT_NKINDS; i++)
		put(o, names[i], mb->faults[i]);
	return o;
}

static json_t *service(const struct histogram *h)
{
	json_t *o = json_object();
	put(o, "count", h->n);
	put(o, "p50_ns", histogram_quantile(h, 0.5));
	put(o, "p99_ns", histogram_quantile(h, 0.99));
	put(o, "max_ns", h->max);
	return o;
}

static double seconds_since(uint64_t then, uint64_t since)
{
	return then > since ? (double)(then - since) / 1e9 : 0;
}

/* What a clone sees by its templates, unless it has something of its own there: at most these frames. */
static uint64_t inherited(struct ipt *t, const struct ipt_vm_info *vm)
{
	uint64_t frames = 0;
	struct ipt_vm_info up = *vm;
	while (up.parent.v != INVALID_VMID.v && ipt_vm_info(t, up.parent, &up) == 0)
		frames += up.frames[IPT_PRIVATE] + up.frames[IPT_ALIAS];
	return frames;
}

json_t *stats_vm(struct host_vm *vm, bool processes)
{
	json_t *o = json_object();
	const struct mailbox *mb = vm->mailbox;
	bool alive = vm->phase == HOST_VM_ALIVE;
	json_object_set_new(o, "name", json_string(vm->config.machine.name));
	put(o, "id", vm->id.v);
	put(o, "pid", (uint64_t)vm->pid);
	put(o, "memory_bytes", vm->config.machine.mem_bytes);
	put(o, "cpus", vm->config.machine.cpus);
	uint32_t frames[IPT_NSTATES];
	memcpy(frames, vm->frames_at_end, sizeof frames);
	struct ipt *t = host_table(vm->host);
	struct ipt_vm_info info, parent;
	/* A template's frames outlive its process, for its clones. */
	bool remains = vm->is_template && vm->phase == HOST_VM_REAPING;
	bool known = (alive || remains) && ipt_vm_info(t, vm->id, &info) == 0;
	if (known)
		memcpy(frames, info.frames, sizeof frames);
	bool cloned = known && ipt_vm_info(t, info.parent, &parent) == 0;
	json_object_set_new(o, "parent", cloned ? json_string(parent.name) : json_null());
	put(o, "frames_private", frames[IPT_PRIVATE]);
	put(o, "frames_limbo", frames[IPT_LIMBO]);
	put(o, "frames_inherited", known ? inherited(t, &info) : 0);
	put(o, "aliases", frames[IPT_ALIAS]);
	put(o, "tombs", frames[IPT_TOMB]);
	put(o, "frames_out", frames[IPT_OUT]);
	json_object_set_new(o, "ready_seconds",
			    vm->ready_ns ? json_real(seconds_since(vm->ready_ns, vm->forked_ns))
					 : json_null());
	json_object_set_new(o, "state",
			    json_string(alive     ? vm_state_name(mb->state)
					: remains ? "remains"
						  : "ended"));
	if (!mb)
		return o;
	if (!alive) {
		json_object_set_new(o, "end", json_string(vm_end_name(vm->end)));
		json_t *words = json_string(mb->words);
		json_object_set_new(o, "words", words ? words : json_string("(not text)"));
	}
	json_object_set_new(o, "started_seconds",
			    json_real(seconds_since(mb->run_started_ns, vm->forked_ns)));
	json_object_set_new(o, "second_stage_faults", faults(mb));
	json_object_set_new(o, "fault_service", service(&mb->service_ns));
	json_object_set_new(o, "reclaim", reclaim_stats_vm(vm));
	put(o, "fetched_frames", mb->fetched_frames);
	put(o, "fetched_soon_frames", mb->fetched_soon);
	json_object_set_new(o, "fetch", service(&mb->fetch_ns));
	put(o, "zero_frames_given_back", mb->zero_frames);
	put(o, "merged_frames", mb->merged_frames);
	put(o, "published_frames", mb->published_frames);
	if (!vm->is_template)
		balloon_stats(vm, o);
	put(o, "domain", vm->domain ? vm->domain->number : 0);
	put(o, "starved", mb->starved);
	put(o, "extents", mb->extents);
	put(o, "extent_frames", mb->extent_frames);
	if (vm->number) {
		json_object_set_new(o, "asked_to_run_seconds",
				    json_real(seconds_since(mb->run_started_ns, vm->asked_ns)));
		json_object_set_new(o, "asked_to_first_exit_seconds",
				    json_real(seconds_since(mb->first_exit_ns, vm->asked_ns)));
	}
	put(o, "copied_frames", mb->copied_frames);
	put(o, "predicted_frames", mb->predicted_frames);
	put(o, "second_stage_pages_4k", mb->second_stage_pages_4k);
	put(o, "second_stage_pages_2m", mb->second_stage_pages_2m);
	put(o, "disk_reads", mb->disk_reads);
	put(o, "disk_writes", mb->disk_writes);
	put(o, "disk_errors", mb->disk_errors);
	put(o, "pmem_flushes", mb->pmem_flushes);
	put(o, "pmem_errors", mb->pmem_errors);
	uint64_t dirty = 0;
	for (unsigned i = 0; i < vm->config.pmems; i++)
		dirty += vm->pmem[i] ? pmem_dirty_pages(vm->pmem[i]) : 0;
	put(o, "pmem_dirty_pages", dirty);
	if (alive && processes) {
		struct proc_memory m;
		proc_memory(vm->pid, &m);
		put(o, "window_mappings", m.pool_mappings);
		put(o, "page_table_kib", m.page_table_kib);
		put(o, "process_private_dirty_kib", m.private_dirty_kib);
	}
	return o;
}

static json_t *files_stats(struct host *h)
{
	json_t *files = json_array();
	for (const struct pmem_file *f = host_files(h); f; f = f->next) {
		struct ipt_vm_info info;
		json_t *o = json_object();
		json_t *path = json_string(f->path);
		json_object_set_new(o, "path", path ? path : json_string("(not text)"));
		put(o, "bytes", f->bytes);
		put(o, "guests", f->users);
		bool known = ipt_vm_info(host_table(h), f->id, &info) == 0;
		put(o, "frames", known ? info.frames[IPT_PRIVATE] : 0);
		json_array_append_new(files, o);
	}
	return files;
}

static json_t *domains_stats(struct host *h)
{
	json_t *domains = json_array();
	for (const struct domain *d = host_domains(h); d; d = d->next) {
		json_t *o = json_object();
		put(o, "number", d->number);
		json_object_set_new(o, "name", json_string(d->name));
		put(o, "vms", d->users - (d->number == DOMAIN_DEFAULT));
		put(o, "populated_bytes", pool_populated_bytes(&d->pool));
		json_array_append_new(domains, o);
	}
	return domains;
}

json_t *stats_take(struct host *h, bool processes)
{
	json_t *o = json_object(), *vms = json_array();
	json_object_set_new(o, "pool", pool_stats(h));
	json_object_set_new(o, "table", table_stats(host_table(h)));
	json_object_set_new(o, "domains", domains_stats(h));
	json_object_set_new(o, "files", files_stats(h));
	json_object_set_new(o, "host", host_stats());
	json_object_set_new(o, "merge", merge_stats(h));
	json_object_set_new(o, "reclaim", reclaim_stats(h));
	json_object_set_new(o, "vms", vms);
	struct host_vm *vm;
	for (unsigned i = 0; (vm = host_vm_at(h, i)); i++)
		if (vm->phase == HOST_VM_ALIVE || (vm->is_template && vm->phase == HOST_VM_REAPING))
			json_array_append_new(vms, stats_vm(vm, processes));
	return o;
}

int stats_write(const json_t *stats, const char *path)
{
	struct stat st;
	if (stat(path, &st) == 0 && !S_ISREG(st.st_mode)) /* a pipe, a terminal, /dev/stdout */
		return json_dump_file(stats, path, JSON_INDENT(2)) < 0 ? -EIO : 0;
	char temporary[4096];
	int n = snprintf(temporary, sizeof temporary, "%s.XXXXXX", path);
	if (n < 0 || (size_t)n >= sizeof temporary)
		return -ENAMETOOLONG;
	int fd = fail_call(STATS_WRITE, mkstemp(temporary));
	if (fd < 0)
		return -errno;
	int rc = 0;
	fchmod(fd, 0644);
	FILE *f = fdopen(fd, "w");
	if (!f || json_dumpf(stats, f, JSON_INDENT(2)) < 0 || fputc('\n', f) == EOF)
		rc = -EIO;
	if (f ? fclose(f) != 0 : close(fd) != 0)
		rc = rc ? rc : -errno;
	if (!rc && rename(temporary, path) < 0)
		rc = -errno;
	if (rc)
		unlink(temporary);
	return rc;
}
