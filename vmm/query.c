/* `invisor owner`, `invisor translate`, `invisor audit` and `invisor stats`: questions to a running host. */
#include "ipt/addr.h"
#include "vmm/answer.h"
#include "vmm/cli.h"
#include "vmm/commands.h"
#include "vmm/error.h"
#include "vmm/prometheus.h"
#include "vmm/size.h"
#include <stdio.h>
#include <string.h>

enum { JSON, PROMETHEUS }; /* flags */

static void say_owner(const json_t *a)
{
	printf("frame %lld: %s", answer_integer(a, "frame"), answer_text(a, "state"));
	if (json_object_get(a, "vm"))
		printf(", VM %s (id %lld)", answer_text(a, "vm"), answer_integer(a, "vm_id"));
	if (json_object_get(a, "gpa"))
		printf(", gpa 0x%llx", answer_integer(a, "gpa"));
	if (answer_integer(a, "pins"))
		printf(", %lld pins", answer_integer(a, "pins"));
	putchar('\n');
	size_t i;
	json_t *viewer;
	json_array_foreach(json_object_get(a, "viewers"), i,
			   viewer) if (strcmp(answer_text(viewer, "how"), "own"))
		printf("  seen by %s at gpa 0x%llx (%s)\n", answer_text(viewer, "vm"),
		       answer_integer(viewer, "gpa"), answer_text(viewer, "how"));
}

static void say_translate(const json_t *a)
{
	printf("%s gpa 0x%llx: %s", answer_text(a, "vm"), answer_integer(a, "gpa"),
	       answer_text(a, "state"));
	if (json_object_get(a, "where")) {
		if (json_object_get(a, "from"))
			printf(strcmp(answer_text(a, "from"), "merged") ? ", %s's" : ", %s",
			       answer_text(a, "from"));
		printf(", %s", answer_text(a, "where"));
		if (json_object_get(a, "granule"))
			printf(" into %lld bytes at granule %lld", answer_integer(a, "bytes"),
			       answer_integer(a, "granule"));
		if (json_object_get(a, "block"))
			printf(", block %lld", answer_integer(a, "block"));
	} else if (json_object_get(a, "from")) {
		printf(" with %s", answer_text(a, "from"));
	}
	if (json_object_get(a, "frame"))
		printf(", frame %lld, pool offset 0x%llx", answer_integer(a, "frame"),
		       answer_integer(a, "pool_offset"));
	putchar('\n');
}

int command_owner(int argc, char **argv)
{
	static const struct cli_spec spec = {
		.command = "owner",
		.usage = "usage: invisor owner [--json] [--host SOCKET] FRAME\n"
			 "Say who owns a frame of the running host's pool: one look into the "
			 "table's array.\n",
		.flag = {[JSON] = "json"},
		.least = 1,
		.most = 1,
		.operands = "takes one frame number"};
	struct cli c;
	uint64_t n;
	int status = cli_parse(&c, &spec, argc, argv);
	if (status >= 0)
		return status;
	if (!number_parse(c.operand[0], 0, UINT32_MAX, &n))
		return cli_fail("owner: takes one frame number; see invisor owner --help");
	return cli_ask(&c, json_pack("{s:s, s:I}", "do", "owner", "frame", (json_int_t)n),
		       c.value[JSON], say_owner);
}

int command_translate(int argc, char **argv)
{
	static const struct cli_spec spec = {
		.command = "translate",
		.usage = "usage: invisor translate [--json] [--host SOCKET] VM GPA\n"
			 "Say which frame of the pool is behind a guest physical address, or where "
			 "its page is\n"
			 "if that is out of memory.\n",
		.flag = {[JSON] = "json"},
		.least = 2,
		.most = 2,
		.operands = "takes a VM's name and an address such as 0x100000"};
	struct cli c;
	uint64_t n;
	int status = cli_parse(&c, &spec, argc, argv);
	if (status >= 0)
		return status;
	if (!number_parse(c.operand[1], 0, INT64_MAX, &n))
		return cli_fail("translate: takes a VM's name and an address such as 0x100000; see "
				"invisor translate --help");
	json_t *request = json_pack("{s:s, s:s, s:I}", "do", "translate", "vm", c.operand[0], "gpa",
				    (json_int_t)n);
	return cli_ask(&c, request, c.value[JSON], say_translate);
}

static void say_audit(const json_t *a)
{
	size_t i;
	json_t *line;
	if (!answer_integer(a, "violations"))
		puts("clean");
	else
		printf("%lld violations\n", answer_integer(a, "violations"));
	json_array_foreach(json_object_get(a, "lines"), i, line)
		printf("  %s\n", json_string_value(line));
}

int command_audit(int argc, char **argv)
{
	static const struct cli_spec spec = {
		.command = "audit",
		.usage = "usage: invisor audit [--json] [--host SOCKET]\n"
			 "Check the running host's table against itself: array, forward map, free "
			 "lists, counts.\n"
			 "What guests change meanwhile doesn't count: a violation is told if "
			 "six audits within 0.2 s all found it.\n",
		.flag = {[JSON] = "json"},
		.operands = "takes no arguments"};
	return cli_just_ask(&spec, argc, argv, say_audit);
}

static void say_vm(const json_t *vm)
{
	const json_t *faults = json_object_get(vm, "second_stage_faults");
	const json_t *service = json_object_get(vm, "fault_service");
	printf("%-12s %-8s %6.0f MiB promised, %6.1f MiB mapped in %lld extents; %lld faults, p50 "
	       "%.0f us, "
	       "p99 %.0f us; %lld KiB of its own, %lld KiB page tables\n",
	       answer_text(vm, "name"), answer_text(vm, "state"), answer_mib(vm, "memory_bytes"),
	       (double)answer_integer(vm, "frames_private") * PAGE_SIZE / (double)MiB,
	       answer_integer(vm, "extents"),
	       answer_integer(faults, "guest_read") + answer_integer(faults, "guest_write"),
	       (double)answer_integer(service, "p50_ns") / 1e3,
	       (double)answer_integer(service, "p99_ns") / 1e3,
	       answer_integer(vm, "process_private_dirty_kib"),
	       answer_integer(vm, "page_table_kib"));
}

static void say_reclaim(const json_t *r)
{
	if (!json_is_object(r))
		return;
	printf("reclaim      %lld pages out; %lld frames freed so far: %lld packed, %lld in the "
	       "file, %lld zero, %lld files' (%lld written back); packed memory %.1f of %.1f MiB, "
	       "swap %.1f of %.1f MiB; %.1f s of "
	       "CPU in %lld rounds%s\n",
	       answer_integer(r, "pages_out"), answer_integer(r, "frames_freed"),
	       answer_integer(r, "pages_packed"), answer_integer(r, "pages_in_file"),
	       answer_integer(r, "pages_zero"), answer_integer(r, "pages_of_files_dropped"),
	       answer_integer(r, "pages_of_files_written_back"),
	       answer_mib(r, "packed_memory_used_bytes"),
	       answer_mib(r, "packed_memory_total_bytes"), answer_mib(r, "swap_used_bytes"),
	       answer_mib(r, "swap_total_bytes"),
	       (double)(answer_integer(r, "reclaimer_cpu_ns") + answer_integer(r, "vms_cpu_ns")) /
		       1e9,
	       answer_integer(r, "rounds"),
	       json_is_true(json_object_get(r, "running")) ? "" : "; the reclaimer failed");
}

static void say_stats(const json_t *a)
{
	const json_t *pool = json_object_get(a, "pool"), *table = json_object_get(a, "table"), *vm;
	size_t i;
	long long mapped = answer_integer(pool, "frames_private");
	printf("pool         %lld frames: %lld private, %lld limbo, %lld free; %.1f of %.1f MiB "
	       "have memory\n",
	       answer_integer(pool, "frames_total"), mapped, answer_integer(pool, "frames_limbo"),
	       answer_integer(pool, "frames_free"), answer_mib(pool, "populated_bytes"),
	       answer_mib(pool, "total_bytes"));
	printf("table        %s, %.1f KiB: array %.1f, beside it %.1f, %s %.1f, other %.1f; %.2f "
	       "bytes a mapped "
	       "frame\n",
	       answer_text(table, "kind"), answer_mib(table, "total_bytes") * 1024,
	       answer_mib(table, "array_bytes") * 1024, answer_mib(table, "side_bytes") * 1024,
	       strcmp(answer_text(table, "kind"), "ipt") ? "tables" : "index",
	       answer_mib(table, "forward_bytes") * 1024, answer_mib(table, "other_bytes") * 1024,
	       mapped ? (double)answer_integer(table, "total_bytes") / (double)mapped : 0);
	json_t *file;
	json_array_foreach(json_object_get(a, "files"), i, file)
		printf("file         %s: %.1f of %.1f MiB in the pool, for %lld guests\n",
		       answer_text(file, "path"),
		       (double)answer_integer(file, "frames") * PAGE_SIZE / (double)MiB,
		       answer_mib(file, "bytes"), answer_integer(file, "guests"));
	const json_t *merge = json_object_get(a, "merge");
	if (json_is_object(merge))
		printf("merge        %lld shared frames seen at %lld places; given back %lld that "
		       "held zeroes, %lld for equal ones, %lld for a template's; %.1f s of CPU in "
		       "%lld passes%s\n",
		       answer_integer(merge, "shared_frames"), answer_integer(merge, "aliases"),
		       answer_integer(merge, "zero_frames_given_back"),
		       answer_integer(merge, "merged_frames"),
		       answer_integer(merge, "returned_frames"),
		       (double)(answer_integer(merge, "merger_cpu_ns") +
				answer_integer(merge, "vms_cpu_ns")) /
			       1e9,
		       answer_integer(merge, "passes"),
		       json_is_true(json_object_get(merge, "running")) ? ""
								       : "; the merger failed");
	say_reclaim(json_object_get(a, "reclaim"));
	json_array_foreach(json_object_get(a, "vms"), i, vm) say_vm(vm);
}

int command_stats(int argc, char **argv)
{
	static const struct cli_spec spec = {
		.command = "stats",
		.usage = "usage: invisor stats [--json | --prometheus] [--host SOCKET]\n"
			 "The running host's numbers: pool, table, VMs (docs/STATS.md), for "
			 "people, as "
			 "JSON,\n"
			 "or in Prometheus's text format.\n",
		.flag = {[JSON] = "json", [PROMETHEUS] = "prometheus"},
		.operands = "takes no arguments"};
	struct cli c;
	int status = cli_parse(&c, &spec, argc, argv);
	if (status >= 0)
		return status;
	if (c.value[JSON] && c.value[PROMETHEUS])
		return cli_fail("stats: either --json or --prometheus");
	return cli_ask(&c, json_pack("{s:s}", "do", "stats"), c.value[JSON],
		       c.value[PROMETHEUS] ? prometheus_print : say_stats);
}

static void say_renew(const json_t *a)
{
	printf("%s has a new generation id\n", answer_text(a, "vm"));
}

int command_renew(int argc, char **argv)
{
	static const struct cli_spec spec = {
		.command = "renew",
		.usage = "usage: invisor renew [--json] [--host SOCKET] VM\n"
			 "Give a guest a new generation id, as a copy of a VM gets one: its kernel "
			 "reseeds\n"
			 "its random numbers. For a guest whose disks come from another's, for "
			 "instance.\n",
		.flag = {[JSON] = "json"},
		.least = 1,
		.most = 1,
		.operands = "takes the name of a VM"};
	return cli_just_ask(&spec, argc, argv, say_renew);
}
