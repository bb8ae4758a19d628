#include "vmm/stats.h"
#include "ipt/fail.h"
#include "vmm/answer.h"
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

static json_t *table_stats(struct ipt *t)
{
	json_t *o = json_object();
	struct ipt_bytes b = {0};
	struct ipt_counts c;
	ipt_bytes(t, &b);
	ipt_counts(t, &c);
	answer_put_text(o, "kind", ipt_config(t)->kind == IPT_RADIX ? "radix" : "ipt");
	answer_put(o, "array_bytes", b.array);
	answer_put(o, "side_bytes", b.side);
	answer_put(o, "slots_bytes", b.slots);
	answer_put(o, "forward_bytes", b.forward);
	answer_put(o, "other_bytes", b.other);
	answer_put(o, "total_bytes", b.array + b.side + b.slots + b.forward + b.other);
	answer_put(o, "cluster_elements", c.cluster_elements);
	answer_put(o, "single_elements", c.single_elements);
	answer_put(o, "radix_pages", c.radix_pages);
	answer_put(o, "repairs", c.repairs);
	return o;
}

static json_t *pool_stats(struct host *h)
{
	json_t *o = json_object();
	struct ipt_counts c;
	ipt_counts(host_table(h), &c);
	answer_put(o, "frames_total", host_frames(h));
	answer_put(o, "frames_free", ipt_free_frames(host_table(h)));
	answer_put(o, "frames_limbo", c.frames[IPT_LIMBO]);
	answer_put(o, "frames_private", c.frames[IPT_PRIVATE]);
	answer_put(o, "frames_shared", c.frames[IPT_SHARED]);
	answer_put(o, "frames_bad", c.bad);
	answer_put(o, "frames_retired", c.retired);
	answer_put(o, "total_bytes", (uint64_t)host_frames(h) << PAGE_SHIFT);
	answer_put(o, "populated_bytes", host_populated_bytes(h));
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
	answer_put(o, "percent", m.percent);
	json_object_set_new(o, "running", json_boolean(m.running));
	answer_put(o, "starts", m.starts);
	answer_put(o, "shared_frames", c.frames[IPT_SHARED]);
	answer_put(o, "aliases", c.frames[IPT_ALIAS]);
	answer_put(o, "zero_frames_given_back", m.counters->pages_done[MERGE_ZERO]);
	answer_put(o, "merged_frames", m.counters->pages_done[MERGE_MERGE]);
	answer_put(o, "returned_frames", m.counters->pages_done[MERGE_RETURN]);
	answer_put(o, "passes", m.counters->passes);
	answer_put(o, "scanned_bytes", m.counters->scanned_bytes);
	answer_put(o, "merger_cpu_ns", m.counters->merger_ns);
	answer_put(o, "vms_cpu_ns", m.counters->vms_ns);
	answer_put(o, "requests", m.counters->requests);
	answer_put(o, "requests_refused", m.counters->refused);
	answer_put(o, "requests_unheard", m.counters->unheard);
	answer_put(o, "requests_still", m.counters->still);
	answer_put(o, "pages_refused", m.counters->pages_refused);
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
	answer_put(o, "starts", r.starts);
	json_object_set_new(o, "nothing_left", json_boolean(r.board->full));
	answer_put(o, "low_frames", r.board->low);
	answer_put(o, "high_frames", r.board->high);
	answer_put(o, "pages_out", now.frames[IPT_OUT] + now.shared_out);
	answer_put(o, "merged_pages_out", now.shared_out);
	answer_put(o, "rounds", c->rounds);
	answer_put(o, "batches", c->batches);
	answer_put(o, "pages_looked_at", c->looked);
	answer_put(o, "pages_touched", c->touched);
	answer_put(o, "frames_freed", c->freed);
	answer_put(o, "pages_put_out", c->out);
	answer_put(o, "pages_zero", c->zero);
	answer_put(o, "pages_in_file", c->in_file);
	/* Pages of zeroes are either void now, or out without bytes. */
	uint64_t others = c->zero + c->in_file + c->dropped;
	answer_put(o, "pages_packed", c->freed > others ? c->freed - others : 0);
	answer_put(o, "packed_bytes", c->packed_bytes);
	answer_put(o, "pages_refused", c->refused);
	answer_put(o, "store_full", c->full);
	answer_put(o, "store_errors", c->errors);
	answer_put(o, "vms_unheard", c->unheard);
	answer_put(o, "turns", c->turns);
	answer_put(o, "reclaimer_cpu_ns", c->reclaimer_ns);
	answer_put(o, "vms_cpu_ns", c->vms_ns);
	answer_put(o, "pages_of_templates", c->shared);
	answer_put(o, "pages_merged", c->merged);
	answer_put(o, "pages_of_files_dropped", c->dropped);
	answer_put(o, "pages_of_files_written_back", c->cleaned);
	answer_put(o, "write_back_errors", c->unclean);
	answer_put(o, "pages_unsettled", c->unsettled);
	answer_put(o, "packed_memory_total_bytes", r.space.granules * IPT_GRANULE);
	answer_put(o, "packed_memory_used_bytes", r.space.granules_used * IPT_GRANULE);
	answer_put(o, "packed_memory_populated_bytes", r.packed_populated);
	answer_put(o, "swap_total_bytes", (uint64_t)r.space.blocks << PAGE_SHIFT);
	answer_put(o, "swap_used_bytes", (uint64_t)r.space.blocks_used << PAGE_SHIFT);
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
	answer_put(o, "shares", d->shares);
	answer_put(o, "min_frames", d->min);
	answer_put(o, "limit_frames", d->limit);
	answer_put(o, "working_set_frames", d->working_set);
	answer_put(o, "working_set_error_frames", d->working_set_error);
	answer_put(o, "stall_ns", reclaim_stalled_ns(d, clock_ns()));
	static const char *const turns[] = {"none", "has", "waits"};
	answer_put_text(o, "turn", turns[d->turn <= RECLAIM_WAITS_FOR_TURN ? d->turn : 0]);
	json_object_set_new(o, "stall_avg10", json_real(d->stall10 / 1e6));
	json_object_set_new(o, "stall_avg60", json_real(d->stall60 / 1e6));
	return o;
}

static json_t *host_stats(void)
{
	json_t *o = json_object();
	struct proc_memory m;
	proc_memory(getpid(), &m);
	answer_put(o, "process_private_dirty_kib", m.private_dirty_kib);
	answer_put(o, "page_table_kib", m.page_table_kib);
	answer_put(o, "second_stage_page_tables_kib", proc_meminfo_kib("SecPageTables"));
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
		answer_put(o, names[i], mb->faults[i]);
	return o;
}

static json_t *service(const struct histogram *h)
{
	json_t *o = json_object();
	answer_put(o, "count", h->n);
	answer_put(o, "p50_ns", histogram_quantile(h, 0.5));
	answer_put(o, "p99_ns", histogram_quantile(h, 0.99));
	answer_put(o, "max_ns", h->max);
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
	answer_put_text(o, "name", vm->config.machine.name);
	answer_put(o, "id", vm->id.v);
	answer_put(o, "pid", (uint64_t)vm->pid);
	answer_put(o, "memory_bytes", vm->config.machine.mem_bytes);
	answer_put(o, "cpus", vm->config.machine.cpus);
	uint32_t frames[IPT_NSTATES];
	memcpy(frames, vm->frames_at_end, sizeof frames);
	struct ipt *t = host_table(vm->host);
	struct ipt_vm_info info, parent;
	bool remains = vm->phase == HOST_VM_REAPING;
	bool known = (alive || remains) && ipt_vm_info(t, vm->id, &info) == 0;
	if (known)
		memcpy(frames, info.frames, sizeof frames);
	bool cloned = known && ipt_vm_info(t, info.parent, &parent) == 0;
	json_object_set_new(o, "parent", cloned ? json_string(parent.name) : json_null());
	answer_put(o, "frames_private", frames[IPT_PRIVATE]);
	answer_put(o, "frames_limbo", frames[IPT_LIMBO]);
	answer_put(o, "frames_inherited", known ? inherited(t, &info) : 0);
	answer_put(o, "aliases", frames[IPT_ALIAS]);
	answer_put(o, "tombs", frames[IPT_TOMB]);
	answer_put(o, "frames_out", frames[IPT_OUT]);
	json_object_set_new(o, "ready_seconds",
			    vm->ready_ns ? json_real(seconds_since(vm->ready_ns, vm->forked_ns))
					 : json_null());
	answer_put_text(o, "state",
			alive     ? vm_state_name(mb->state)
			: remains ? "remains"
				  : "ended");
	if (!mb)
		return o;
	if (!alive) {
		answer_put_text(o, "end", vm_end_name(vm->end));
		answer_put_text(o, "words", mb->words);
	}
	json_object_set_new(o, "started_seconds",
			    json_real(seconds_since(mb->run_started_ns, vm->forked_ns)));
	json_object_set_new(o, "second_stage_faults", faults(mb));
	json_object_set_new(o, "fault_service", service(&mb->service_ns));
	json_object_set_new(o, "reclaim", reclaim_stats_vm(vm));
	answer_put(o, "fetched_frames", mb->fetched_frames);
	answer_put(o, "fetched_soon_frames", mb->fetched_soon);
	json_object_set_new(o, "fetch", service(&mb->fetch_ns));
	answer_put(o, "zero_frames_given_back", mb->zero_frames);
	answer_put(o, "merged_frames", mb->merged_frames);
	answer_put(o, "returned_frames", mb->returned_frames);
	answer_put(o, "published_frames", mb->published_frames);
	if (!vm->is_template)
		balloon_stats(vm, o);
	answer_put(o, "domain", vm->domain ? vm->domain->number : 0);
	answer_put(o, "starved", mb->starved);
	answer_put(o, "extents", mb->extents);
	answer_put(o, "extent_frames", mb->extent_frames);
	if (vm->number) {
		json_object_set_new(o, "asked_to_run_seconds",
				    json_real(seconds_since(mb->run_started_ns, vm->asked_ns)));
		json_object_set_new(o, "asked_to_first_exit_seconds",
				    json_real(seconds_since(mb->first_exit_ns, vm->asked_ns)));
	}
	answer_put(o, "copied_frames", mb->copied_frames);
	answer_put(o, "predicted_frames", mb->predicted_frames);
	answer_put(o, "second_stage_pages_4k", mb->second_stage_pages_4k);
	answer_put(o, "second_stage_pages_2m", mb->second_stage_pages_2m);
	answer_put(o, "disk_reads", mb->disk_reads);
	answer_put(o, "disk_writes", mb->disk_writes);
	answer_put(o, "disk_errors", mb->disk_errors);
	answer_put(o, "pmem_flushes", mb->pmem_flushes);
	answer_put(o, "pmem_errors", mb->pmem_errors);
	answer_put(o, "pmem_cleaned_pages", mb->pmem_cleaned_pages);
	uint64_t dirty = 0;
	for (unsigned i = 0; i < vm->config.pmems; i++)
		dirty += vm->pmem[i] ? pmem_dirty_pages(vm->pmem[i]) : 0;
	answer_put(o, "pmem_dirty_pages", dirty);
	if (alive && processes) {
		struct proc_memory m;
		proc_memory(vm->pid, &m);
		answer_put(o, "window_mappings", m.pool_mappings);
		answer_put(o, "page_table_kib", m.page_table_kib);
		answer_put(o, "process_private_dirty_kib", m.private_dirty_kib);
	}
	return o;
}

static json_t *files_stats(struct host *h)
{
	json_t *files = json_array();
	for (const struct pmem_file *f = host_files(h); f; f = f->next) {
		struct ipt_vm_info info;
		json_t *o = json_object();
		answer_put_text(o, "path", f->path);
		answer_put(o, "bytes", f->bytes);
		answer_put(o, "guests", f->users);
		bool known = ipt_vm_info(host_table(h), f->id, &info) == 0;
		answer_put(o, "frames", known ? info.frames[IPT_PRIVATE] : 0);
		json_array_append_new(files, o);
	}
	return files;
}

static json_t *domains_stats(struct host *h)
{
	json_t *domains = json_array();
	for (const struct domain *d = host_domains(h); d; d = d->next) {
		json_t *o = json_object();
		answer_put(o, "number", d->number);
		answer_put_text(o, "name", d->name);
		answer_put(o, "vms", d->users - (d->number == DOMAIN_DEFAULT));
		answer_put(o, "populated_bytes", pool_populated_bytes(&d->pool));
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
		if (vm->phase == HOST_VM_ALIVE || vm->phase == HOST_VM_REAPING)
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
