/* https://prometheus.io/docs/instrumenting/exposition_formats/: all lines of a metric stand together
 * behind its HELP and TYPE; a label's value has \, " and newline escaped; names carry base units, and
 * _total where they count. */
#include "vmm/prometheus.h"
#include <stdio.h>
#include <string.h>

#define KIB  1024.0
#define NANO 1e-9

struct metric {
	const char *name, *help; /* NULL: more of the metric in the row above */
	const char *path;        /* of the number: a member, or a member's member; a * at its end
				    stands for all members that begin so, but for a total */
	const char *label;       /* of a row: key="value"; for a *, the key; NULL */
	double scale;            /* to the base unit; 0: it is in it */
};

static const struct metric of_host[] = {
	{"pool_bytes", "Size of the pool.", "pool.total_bytes", NULL, 0},
	{"pool_populated_bytes", "Host memory behind the pool.", "pool.populated_bytes", NULL, 0},
	{"pool_frames", "Frames of 4 KiB by state.", "pool.frames_*", "state", 0},
	{"table_bytes", "Host memory of the table's parts.", "table.array_bytes", "part=\"array\"",
	 0},
	{NULL, NULL, "table.side_bytes", "part=\"side\"", 0},
	{NULL, NULL, "table.slots_bytes", "part=\"slots\"", 0},
	{NULL, NULL, "table.forward_bytes", "part=\"forward\"", 0},
	{NULL, NULL, "table.other_bytes", "part=\"other\"", 0},
	{"table_repairs_total", "Parts rebuilt after a lock's holder had died.", "table.repairs",
	 NULL, 0},
	{"reclaim_running", "Does the reclaimer run.", "reclaim.running", NULL, 0},
	{"reclaim_starts_total", "Times that the reclaimer was started.", "reclaim.starts", NULL,
	 0},
	{"reclaim_nothing_left", "Can no more pages be taken out of memory.",
	 "reclaim.nothing_left", NULL, 0},
	{"reclaim_free_frames_mark", "Free frames: reclaim begins below low, ends at high.",
	 "reclaim.low_frames", "mark=\"low\"", 0},
	{NULL, NULL, "reclaim.high_frames", "mark=\"high\"", 0},
	{"reclaim_pages_out", "Guest pages that are not in memory.", "reclaim.pages_out", NULL, 0},
	{"reclaim_rounds_total", "Times that the hand went around the pool.", "reclaim.rounds",
	 NULL, 0},
	{"reclaim_batches_total", "Requests to VMs.", "reclaim.batches", NULL, 0},
	{"reclaim_looked_at_pages_total", "Pages looked at for use.", "reclaim.pages_looked_at",
	 NULL, 0},
	{"reclaim_touched_pages_total", "Of them: in use.", "reclaim.pages_touched", NULL, 0},
	{"reclaim_freed_frames_total", "Frames that became free.", "reclaim.frames_freed", NULL, 0},
	{"reclaim_put_out_pages_total", "Pages that went out of memory.", "reclaim.pages_put_out",
	 NULL, 0},
	{"reclaim_freed_pages_total", "Pages of freed frames, by what became of them.",
	 "reclaim.pages_zero", "to=\"zero\"", 0},
	{NULL, NULL, "reclaim.pages_packed", "to=\"packed\"", 0},
	{NULL, NULL, "reclaim.pages_in_file", "to=\"file\"", 0},
	{"reclaim_packed_bytes_total", "Bytes that packed pages came to.", "reclaim.packed_bytes",
	 NULL, 0},
	{"reclaim_refused_pages_total", "Pages that couldn't be taken out.",
	 "reclaim.pages_refused", NULL, 0},
	{"reclaim_store_full_total", "Times that there was no room for pages.",
	 "reclaim.store_full", NULL, 0},
	{"reclaim_store_errors_total", "Times that storing pages failed.", "reclaim.store_errors",
	 NULL, 0},
	{"reclaim_dropped_file_pages_total", "Files' pages that left memory, to be read again.",
	 "reclaim.pages_of_files_dropped", NULL, 0},
	{"reclaim_written_back_pages_total",
	 "Pages of shared files that were written back to make room.",
	 "reclaim.pages_of_files_written_back", NULL, 0},
	{"reclaim_write_back_errors_total", "Times that some of them couldn't be.",
	 "reclaim.write_back_errors", NULL, 0},
	{"reclaim_unheard_total", "VMs that didn't answer in time.", "reclaim.vms_unheard", NULL,
	 0},
	{"reclaim_turns_total", "Times that a VM got its turn after it had waited for it.",
	 "reclaim.turns", NULL, 0},
	{"reclaim_cpu_seconds_total", "CPU time.", "reclaim.reclaimer_cpu_ns", "of=\"reclaimer\"",
	 NANO},
	{NULL, NULL, "reclaim.vms_cpu_ns", "of=\"vms\"", NANO},
	{"reclaim_packed_memory_bytes",
	 "Packed memory: its size, used, with host memory behind it.",
	 "reclaim.packed_memory_total_bytes", "which=\"total\"", 0},
	{NULL, NULL, "reclaim.packed_memory_used_bytes", "which=\"used\"", 0},
	{NULL, NULL, "reclaim.packed_memory_populated_bytes", "which=\"populated\"", 0},
	{"reclaim_swap_bytes", "The swap file: its size, and used.", "reclaim.swap_total_bytes",
	 "which=\"total\"", 0},
	{NULL, NULL, "reclaim.swap_used_bytes", "which=\"used\"", 0},
	{"host_private_dirty_bytes", "The host process's own memory.",
	 "host.process_private_dirty_kib", NULL, KIB},
	{"host_page_table_bytes", "The host process's page tables.", "host.page_table_kib", NULL,
	 KIB},
};

static const struct metric of_vm[] = {
	{"vm_memory_bytes", "Memory promised to the VM.", "memory_bytes", NULL, 0},
	{"vm_cpus", "Virtual processors.", "cpus", NULL, 0},
	{"vm_frames", "The VM's frames of 4 KiB by state.", "frames_*", "state", 0},
	{"vm_aliases", "Guest frames that are merged frames or a file's.", "aliases", NULL, 0},
	{"vm_copied_frames_total", "Shared frames that the VM copied to write to them.",
	 "copied_frames", NULL, 0},
	{"vm_faults_total", "Second-stage faults served, by what touched.", "second_stage_faults.*",
	 "by", 0},
	{"vm_fault_service_seconds",
	 "Quantiles of the time from reading a fault to waking the vCPU.", "fault_service.p50_ns",
	 "quantile=\"0.5\"", NANO},
	{NULL, NULL, "fault_service.p99_ns", "quantile=\"0.99\"", NANO},
	{"vm_balloon_target_bytes", "Memory that the guest is to have.", "balloon.target_bytes",
	 NULL, 0},
	{"vm_balloon_actual_bytes", "Memory that the guest has, as its balloon's driver says.",
	 "balloon.actual_bytes", NULL, 0},
	{"vm_reported_bytes_total", "Free memory that the guest reported.",
	 "balloon.reported_bytes", NULL, 0},
	{"vm_given_back_bytes_total", "Memory freed since the guest gave or reported it.",
	 "balloon.given_back_bytes", NULL, 0},
	{"vm_guest_memory_bytes", "The guest's own numbers.", "guest.free_bytes", "kind=\"free\"",
	 0},
	{NULL, NULL, "guest.total_bytes", "kind=\"total\"", 0},
	{NULL, NULL, "guest.available_bytes", "kind=\"available\"", 0},
	{NULL, NULL, "guest.cache_bytes", "kind=\"cache\"", 0},
	{"vm_guest_page_faults_total", "The guest's own page faults.", "guest.major_faults",
	 "kind=\"major\"", 0},
	{NULL, NULL, "guest.minor_faults", "kind=\"minor\"", 0},
	{"vm_guest_swapped_bytes_total", "What the guest swapped.", "guest.swap_in_bytes",
	 "direction=\"in\"", 0},
	{NULL, NULL, "guest.swap_out_bytes", "direction=\"out\"", 0},
	{"vm_fetched_frames_total", "Pages brought back into memory.", "fetched_frames", NULL, 0},
	{"vm_fetch_seconds", "Quantiles of the same for pages that were out of memory.",
	 "fetch.p50_ns", "quantile=\"0.5\"", NANO},
	{NULL, NULL, "fetch.p99_ns", "quantile=\"0.99\"", NANO},
	{"vm_reclaim_shares", "The VM's shares of memory.", "reclaim.shares", NULL, 0},
	{"vm_reclaim_min_frames", "Frames that it keeps.", "reclaim.min_frames", NULL, 0},
	{"vm_reclaim_limit_frames", "The most frames that it may have; 0: any number.",
	 "reclaim.limit_frames", NULL, 0},
	{"vm_working_set_frames", "Frames that it seems to use.", "reclaim.working_set_frames",
	 NULL, 0},
	{"vm_working_set_error_frames", "How wrong that may be (95 %).",
	 "reclaim.working_set_error_frames", NULL, 0},
	{"vm_stall_seconds_total", "Time in which a vCPU waited for memory.", "reclaim.stall_ns",
	 NULL, NANO},
	{"vm_stall_ratio", "The share of time of that, averaged.", "reclaim.stall_avg10",
	 "window=\"10s\"", 0},
	{NULL, NULL, "reclaim.stall_avg60", "window=\"60s\"", 0},
	{"vm_starved_total", "Times that the VM had to wait for frames.", "starved", NULL, 0},
	{"vm_extents_total", "Pieces of pool mapped into the VM's window.", "extents", NULL, 0},
	{"vm_window_mappings", "The kernel's mappings of the VM's window.", "window_mappings", NULL,
	 0},
	{"vm_page_table_bytes", "Page tables of the VM's process.", "page_table_kib", NULL, KIB},
	{"vm_private_dirty_bytes", "Memory of the VM's process outside the window.",
	 "process_private_dirty_kib", NULL, KIB},
	{"vm_disk_requests_total", "Disk requests.", "disk_reads", "kind=\"read\"", 0},
	{NULL, NULL, "disk_writes", "kind=\"write\"", 0},
	{"vm_disk_errors_total", "Disk requests that failed.", "disk_errors", NULL, 0},
	{"vm_pmem_flushes_total", "Flushes of persistent memory.", "pmem_flushes", NULL, 0},
	{"vm_pmem_errors_total", "Flushes of persistent memory that failed.", "pmem_errors", NULL,
	 0},
	{"vm_pmem_cleaned_pages_total", "Pages of shared files written back without a flush.",
	 "pmem_cleaned_pages", NULL, 0},
	{"vm_pmem_dirty_pages", "Pages of shared files that the VM wrote and that aren't durable.",
	 "pmem_dirty_pages", NULL, 0},
};

static void put_escaped(const char *value)
{
	for (; *value; value++)
		if (*value == '\n')
			fputs("\\n", stdout);
		else
			printf("%s%c", *value == '\\' || *value == '"' ? "\\" : "", *value);
}

/* One number (or yes or no: 1, 0) with its labels; nothing for what is none. */
static void put_number(const char *name, const json_t *v, const char *vm, const char *label,
		       double scale)
{
	if (!json_is_number(v) && !json_is_boolean(v))
		return;
	printf("invisor_%s", name);
	if (vm) {
		fputs("{vm=\"", stdout);
		put_escaped(vm);
		printf("\"%s%s}", *label ? "," : "", label);
	} else if (*label) {
		printf("{%s}", label);
	}
	if (json_is_boolean(v))
		printf(" %d\n", json_is_true(v));
	else if (json_is_integer(v) && !(scale > 0))
		printf(" %" JSON_INTEGER_FORMAT "\n", json_integer_value(v));
	else
		printf(" %.9g\n", json_number_value(v) * (scale > 0 ? scale : 1));
}

static void put_row(const char *name, const struct metric *m, json_t *o, const char *vm)
{
	const char *path = m->path, *dot = strchr(path, '.'), *key;
	char label[64];
	json_t *v;
	if (dot) {
		snprintf(label, sizeof label, "%.*s", (int)(dot - path), path);
		o = json_object_get(o, label);
		path = dot + 1;
	}
	size_t n = strcspn(path, "*");
	if (!path[n]) {
		put_number(name, json_object_get(o, path), vm, m->label ? m->label : "", m->scale);
		return;
	}
	json_object_foreach(o, key, v)
	{
		if (strncmp(key, path, n) || !strcmp(key + n, "total"))
			continue;
		snprintf(label, sizeof label, "%s=\"%.40s\"", m->label, key + n);
		put_number(name, v, vm, label, m->scale);
	}
}

/* Of one object without a name, or of an array of VMs. */
static void put_metrics(const struct metric *m, size_t n, json_t *whole, const json_t *vms)
{
	for (size_t first = 0, end; first < n; first = end) {
		const char *name = m[first].name, *total = strstr(name, "_total");
		printf("# HELP invisor_%s %s\n# TYPE invisor_%s %s\n", name, m[first].help, name,
		       total && !total[6] ? "counter" : "gauge");
		for (end = first; end < n && (end == first || !m[end].name); end++) {
			size_t i;
			json_t *vm;
			if (whole)
				put_row(name, &m[end], whole, NULL);
			json_array_foreach(vms, i, vm)
			{
				const char *of = json_string_value(json_object_get(vm, "name"));
				put_row(name, &m[end], vm, of ? of : "");
			}
		}
	}
}

void prometheus_print(const json_t *stats)
{
	const json_t *vms = json_object_get(stats, "vms");
	put_metrics(of_host, sizeof of_host / sizeof *of_host, (json_t *)stats, NULL);
	printf("# HELP invisor_vms Virtual machines that run.\n# TYPE invisor_vms gauge\n"
	       "invisor_vms %zu\n",
	       json_array_size(vms));
	put_metrics(of_vm, sizeof of_vm / sizeof *of_vm, NULL, vms);
}
