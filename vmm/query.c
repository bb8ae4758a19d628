/* `invisor owner`, `invisor translate`, `invisor audit` and `invisor stats`: questions to a running host. */
#include "ipt/addr.h"
#include "vmm/ask.h"
#include "vmm/commands.h"
#include "vmm/error.h"
#include "vmm/size.h"
#include <stdio.h>
#include <string.h>

/* The options that both take, from argv[1] on: returns the index of the first that is none, or -1.
 */
static int common(int argc, char **argv, const char *usage, const char **host, bool *json)
{
	int i = 1;
	*host = NULL;
	*json = false;
	for (; i < argc && argv[i][0] == '-' && argv[i][1]; i++) {
		if (!strcmp(argv[i], "--json")) {
			*json = true;
		} else if (!strcmp(argv[i], "--host") && i + 1 < argc) {
			*host = argv[++i];
		} else if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
			fputs(usage, stdout);
			return -1;
		} else {
			fprintf(stderr, "invisor: %s: no such option, or it needs a value\n",
				argv[i]);
			return -2;
		}
	}
	return i;
}

static int ask_and_print(const char *host, bool json, json_t *request,
			 void (*say)(const json_t *answer))
{
	char error[ERROR_MAX];
	json_t *answer = ask_host(host, request, error);
	json_decref(request);
	if (!answer) {
		fprintf(stderr, "invisor: %s\n", error);
		return 2;
	}
	if (json) {
		json_dumpf(answer, stdout, JSON_COMPACT);
		putchar('\n');
	} else {
		say(answer);
	}
	json_decref(answer);
	return 0;
}

static long long integer(const json_t *o, const char *key)
{
	return json_integer_value(json_object_get(o, key));
}

static double mib(const json_t *o, const char *key)
{
	return (double)integer(o, key) / (double)MiB;
}

static const char *string(const json_t *o, const char *key)
{
	const char *s = json_string_value(json_object_get(o, key));
	return s ? s : "?";
}

static void say_owner(const json_t *a)
{
	printf("frame %lld: %s", integer(a, "frame"), string(a, "state"));
	if (json_object_get(a, "vm"))
		printf(", VM %s (id %lld)", string(a, "vm"), integer(a, "vm_id"));
	if (json_object_get(a, "gpa"))
		printf(", gpa 0x%llx", integer(a, "gpa"));
	if (integer(a, "pins"))
		printf(", %lld pins", integer(a, "pins"));
	putchar('\n');
}

static void say_translate(const json_t *a)
{
	printf("%s gpa 0x%llx: %s", string(a, "vm"), integer(a, "gpa"), string(a, "state"));
	if (json_object_get(a, "frame"))
		printf(", frame %lld, pool offset 0x%llx", integer(a, "frame"),
		       integer(a, "pool_offset"));
	putchar('\n');
}

int command_owner(int argc, char **argv)
{
	static const char usage[] = "usage: invisor owner [--json] [--host SOCKET] FRAME\n"
				    "Say who owns a frame of the running host's pool: one look "
				    "into the table's array.\n";
	const char *host;
	bool json;
	uint64_t n;
	int i = common(argc, argv, usage, &host, &json);
	if (i < 0)
		return i == -1 ? 0 : 2;
	if (argc - i != 1 || !number_parse(argv[i], 0, UINT32_MAX, &n)) {
		fputs("invisor: owner: takes one frame number; see invisor owner --help\n", stderr);
		return 2;
	}
	return ask_and_print(host, json,
			     json_pack("{s:s, s:I}", "do", "owner", "frame", (json_int_t)n),
			     say_owner);
}

int command_translate(int argc, char **argv)
{
	static const char usage[] =
		"usage: invisor translate [--json] [--host SOCKET] VM GPA\n"
		"Say which frame of the pool is behind a guest physical address.\n";
	const char *host;
	bool json;
	uint64_t n;
	int i = common(argc, argv, usage, &host, &json);
	if (i < 0)
		return i == -1 ? 0 : 2;
	if (argc - i != 2 || !number_parse(argv[i + 1], 0, INT64_MAX, &n)) {
		fputs("invisor: translate: takes a VM's name and an address such as 0x100000; see "
		      "invisor translate --help\n",
		      stderr);
		return 2;
	}
	json_t *request = json_pack("{s:s, s:s, s:I}", "do", "translate", "vm", argv[i], "gpa",
				    (json_int_t)n);
	if (!request) {
		fputs("invisor: translate: the VM's name is no UTF-8 text\n", stderr);
		return 2;
	}
	return ask_and_print(host, json, request, say_translate);
}

static void say_audit(const json_t *a)
{
	size_t i;
	json_t *line;
	if (!integer(a, "violations"))
		puts("clean");
	else
		printf("%lld violations\n", integer(a, "violations"));
	json_array_foreach(json_object_get(a, "lines"), i, line)
		printf("  %s\n", json_string_value(line));
}

/* A command that takes no arguments but the common options. */
static int without_arguments(int argc, char **argv, const char *usage, const char *what,
			     void (*say)(const json_t *answer))
{
	const char *host;
	bool json;
	int i = common(argc, argv, usage, &host, &json);
	if (i < 0)
		return i == -1 ? 0 : 2;
	if (i < argc) {
		fprintf(stderr, "invisor: %s: takes no arguments; see invisor %s --help\n", what,
			what);
		return 2;
	}
	return ask_and_print(host, json, json_pack("{s:s}", "do", what), say);
}

int command_audit(int argc, char **argv)
{
	static const char usage[] = "usage: invisor audit [--json] [--host SOCKET]\n"
				    "Check the running host's table against itself: array, forward "
				    "map, free lists, counts.\n"
				    "Changes that guests make meanwhile can show; ask again before "
				    "you believe a violation.\n";
	return without_arguments(argc, argv, usage, "audit", say_audit);
}

static void say_vm(const json_t *vm)
{
	const json_t *faults = json_object_get(vm, "second_stage_faults");
	const json_t *service = json_object_get(vm, "fault_service");
	printf("%-12s %-8s %6.0f MiB promised, %6.1f MiB mapped in %lld extents; %lld faults, p50 "
	       "%.0f us, "
	       "p99 %.0f us; %lld KiB of its own, %lld KiB page tables\n",
	       string(vm, "name"), string(vm, "state"), mib(vm, "memory_bytes"),
	       (double)integer(vm, "frames_private") * PAGE_SIZE / (double)MiB,
	       integer(vm, "extents"),
	       integer(faults, "guest_read") + integer(faults, "guest_write"),
	       (double)integer(service, "p50_ns") / 1e3, (double)integer(service, "p99_ns") / 1e3,
	       integer(vm, "process_private_dirty_kib"), integer(vm, "page_table_kib"));
}

static void say_stats(const json_t *a)
{
	const json_t *pool = json_object_get(a, "pool"), *table = json_object_get(a, "table"), *vm;
	size_t i;
	long long mapped = integer(pool, "frames_private");
	printf("pool         %lld frames: %lld private, %lld limbo, %lld free; %.1f of %.1f MiB "
	       "have memory\n",
	       integer(pool, "frames_total"), mapped, integer(pool, "frames_limbo"),
	       integer(pool, "frames_free"), mib(pool, "populated_bytes"),
	       mib(pool, "total_bytes"));
	printf("table        %s, %.1f KiB: array %.1f, beside it %.1f, %s %.1f, other %.1f; %.2f "
	       "bytes a mapped "
	       "frame\n",
	       string(table, "kind"), mib(table, "total_bytes") * 1024,
	       mib(table, "array_bytes") * 1024, mib(table, "side_bytes") * 1024,
	       strcmp(string(table, "kind"), "ipt") ? "tables" : "index",
	       mib(table, "forward_bytes") * 1024, mib(table, "other_bytes") * 1024,
	       mapped ? (double)integer(table, "total_bytes") / (double)mapped : 0);
	json_array_foreach(json_object_get(a, "vms"), i, vm) say_vm(vm);
}

int command_stats(int argc, char **argv)
{
	static const char usage[] =
		"usage: invisor stats [--json] [--host SOCKET]\n"
		"The running host's numbers: pool, table, VMs (docs/STATS.md).\n";
	return without_arguments(argc, argv, usage, "stats", say_stats);
}
