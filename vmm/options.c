#include "vmm/options.h"
#include "ipt/fail.h"
#include "vmm/proc.h"
#include "vmm/size.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char run_help[] =
	"usage: invisor run [OPTION]...\n"
	"Boot guests whose memory comes from one pool with one inverted page table.\n"
	"\n"
	"  -n, --count COUNT     how many guests (1)\n"
	"      --name NAME       their name; NAME-1, NAME-2 ... for several (vm; with --detach "
	"the\n"
	"                        next free of vm-1, vm-2 ...)\n"
	"      --kernel FILE     bzImage, ELF vmlinux with PVH entry, or bare guest (the made "
	"guest's)\n"
	"      --initrd FILE     initial ramdisk (the made guest's, with the made kernel)\n"
	"      --append STR      words added to the kernel's command line\n"
	"      --mem SIZE        memory of each guest: 64M, 1G ... (256M)\n"
	"      --cpus N          virtual processors of each guest, 1 to 8 (1)\n"
	"      --disk FILE[,ro|,cache=volatile]  a virtio disk; repeat for more, up to 8. "
	"cache=volatile:\n"
	"                        a power cut may take what was not flushed (docs/FAULTS.md)\n"
	"      --pmem FILE,share|private  persistent memory (/dev/pmem0) of the file's pages, "
	"which\n"
	"                        guests have in common: share writes to the file, private copies\n"
	"                        what it writes; repeat for more, up to 4\n"
	"      --pool SIZE       host memory for all guests together (enough for all, if there "
	"is)\n"
	"      --table KIND      ipt (inverted page table) or radix (per-VM tables, to compare)\n"
	"      --merge SHARE     merge guests' equal frames, with at most so many per cent of a "
	"CPU\n"
	"                        (off)\n"
	"      --share-domain D  frames are merged, and in reach of processes, among guests of "
	"the\n"
	"                        same domain only; none: a domain of its own, never merged "
	"(default)\n"
	"      --pack SIZE       pages that are little used go into so much compressed memory, "
	"besides "
	"the\n"
	"                        pool, when that is short (off)\n"
	"      --swap FILE,SIZE  and into this file, which is made if there is none (off)\n"
	"      --mem-min SIZE    memory of each guest that stays in the pool (0)\n"
	"      --mem-limit SIZE  and the most of it that may be there (all)\n"
	"      --mem-shares N    its share when there is less than guests want (1000)\n"
	"      --sandbox MODE    on; log: what system calls guests' processes make beyond what "
	"they may "
	"is\n"
	"                        only written to the kernel's log; off (on; with ,ID they get ids "
	"from\n"
	"                        that on, not 1879048192): docs/SECURITY.md\n"
	"      --stats FILE      write numbers as JSON: when all are ready, and at the end\n"
	"      --fail NAME=PROGRAM  set a failpoint (docs/FAULTS.md); repeat for more\n"
	"      --fail-seed N     of what failpoints do by per cent (0)\n"
	"      --scenario FILE   let faults happen to the guests over time, as the file says "
	"(docs/FAULTS.md)\n"
	"      --seed N          another seed for it than the file's\n"
	"      --report FILE     write what was injected, and what the guests did, as JSON\n"
	"      --timeout SECONDS power all off and exit 3 if guests still run after that\n"
	"      --detach          run the guests in the running host (invisor host start), print\n"
	"                        their names and return; without --pool, --table, --merge, "
	"--stats, --timeout\n"
	"      --wait up|ready   with --detach, return once they run, or said READY (ready for "
	"the\n"
	"                        made guest, else up)\n"
	"      --host SOCKET     with --detach, the host to run them in\n"
	"      --help            this\n"
	"\n"
	"Lines of several guests' consoles come with the guest's name. One guest on a terminal is\n"
	"interactive. Ctrl-C powers the guests off (Ctrl-A Ctrl-C is the guest's own), a second "
	"one\n"
	"kills them.\n"
	"Exit status: 0 all guests powered off by themselves, 1 one ended otherwise, 2 bad input,\n"
	"3 timeout, 130 Ctrl-C.\n";

const struct run_options options_run_defaults = {
	.count = 1, .name = "vm", .mem_bytes = 256 * MiB, .cpus = 1, .table = IPT_INDEX};

static int bad(char *error, const char *option, const char *value, const char *mend)
{
	return errorf(error, -EINVAL, "%s: '%.80s' %s", option, value, mend);
}

/* Does `value` end with that? Then it ends before it. */
static bool cut_off(char *value, const char *end)
{
	char *comma = strrchr(value, ',');
	bool is = comma && !strcmp(comma, end);
	if (is)
		*comma = 0;
	return is;
}

static int parse_disk(struct run_options *o, char *value, char *error)
{
	if (o->disks == VM_MAX_DISKS)
		return errorf(error, -EINVAL, "--disk: at most %d disks", VM_MAX_DISKS);
	bool is_volatile = cut_off(value, ",cache=volatile");
	bool ro = cut_off(value, ",ro");
	if (!ro)
		cut_off(value, ",rw");
	if (!*value)
		return bad(error, "--disk", value, "names no file; give FILE or FILE,ro");
	if (ro && is_volatile)
		return bad(error, "--disk", value,
			   "is read-only, so that there is nothing for cache=volatile to lose");
	o->disk[o->disks].path = value;
	o->disk[o->disks].is_volatile = is_volatile;
	o->disk[o->disks++].read_only = ro;
	return 0;
}

static int parse_pmem(struct run_options *o, char *value, char *error)
{
	if (o->pmems == VM_MAX_PMEM)
		return errorf(error, -EINVAL, "--pmem: at most %d files", VM_MAX_PMEM);
	char *comma = strrchr(value, ',');
	bool share = comma && !strcmp(comma, ",share");
	if (!comma || comma == value || (!share && strcmp(comma, ",private")))
		return bad(error, "--pmem", value, "is no FILE,share or FILE,private");
	*comma = 0;
	o->pmem[o->pmems].path = value;
	o->pmem[o->pmems++].share = share;
	return 0;
}

static int parse_swap(struct run_options *o, char *value, char *error)
{
	char *comma = strrchr(value, ',');
	if (!comma || comma == value || !size_parse(comma + 1, &o->swap_bytes) || !o->swap_bytes)
		return bad(error, "--swap", value, "is no FILE,SIZE; write /var/tmp/swap,4G");
	*comma = 0;
	o->swap_file = value;
	return 0;
}

static int parse_sandbox(struct run_options *o, char *value, char *error)
{
	char *comma = strchr(value, ',');
	uint64_t id = 0;
	if (comma)
		*comma = 0;
	if (sandbox_parse(value, &o->sandbox) ||
	    (comma && !number_parse(comma + 1, 1, UINT32_MAX - SANDBOX_IDS, &id)))
		return errorf(
			error, -EINVAL,
			"--sandbox: '%.60s%s%.60s' is neither on, log nor off, with ,ID or without",
			value, comma ? "," : "", comma ? comma + 1 : "");
	o->first_id = (uid_t)id;
	return 0;
}

/* Room for the -4096 behind it, and only what is safe in a line or a file name. */
bool options_name_is_good(const char *name)
{
	return *name && strlen(name) <= IPT_NAME_LEN - 6 && strcmp(name, "all") &&
	       strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") ==
		       strlen(name);
}

int options_run_one(void *ctx, int option, char *value, char *error)
{
	struct run_options *o = ctx;
	char words[FAIL_WORDS_MAX];
	uint64_t n;
	switch (option) {
	case 'n':
		if (!number_parse(value, 1, RUN_MAX_GUESTS, &n))
			return bad(error, "-n", value, "is no count from 1 to 4096");
		o->count = (unsigned)n;
		return 0;
	case 'N':
		if (!options_name_is_good(value))
			return bad(error, "--name", value,
				   "must be 1 to 26 letters, digits, '-', '_' or '.', and not "
				   "'all', which stands for all guests");
		o->name = value;
		return 0;
	case 'k':
		o->kernel = value;
		return 0;
	case 'i':
		o->initrd = value;
		return 0;
	case 'a':
		o->append = value;
		return 0;
	case 'm':
		if (!size_parse(value, &o->mem_bytes))
			return bad(error, "--mem", value, "is no size; write 256M or 1G");
		return 0;
	case 'c':
		if (!number_parse(value, 1, MACHINE_MAX_CPUS, &n))
			return bad(error, "--cpus", value, "is no number from 1 to 8");
		o->cpus = (unsigned)n;
		return 0;
	case 'd':
		return parse_disk(o, value, error);
	case 'P':
		return parse_pmem(o, value, error);
	case 'p':
		if (!size_parse(value, &o->pool_bytes) || !o->pool_bytes)
			return bad(error, "--pool", value, "is no size; write 4G");
		return 0;
	case 't':
		if (!strcmp(value, "ipt"))
			o->table = IPT_INDEX;
		else if (!strcmp(value, "radix"))
			o->table = IPT_RADIX;
		else
			return bad(error, "--table", value, "is neither ipt nor radix");
		return 0;
	case 's':
		o->stats = value;
		return 0;
	case 'g':
		if (!strcmp(value, "off"))
			value = "0";
		if (!number_parse(value, 0, 100, &n))
			return bad(error, "--merge", value,
				   "is neither off nor 1 to 100 (per cent of a CPU)");
		o->merge_percent = (unsigned)n;
		return 0;
	case 'S':
		if (!*value || strlen(value) >= IPT_NAME_LEN)
			return bad(error, "--share-domain", value, "must be 1 to 31 characters");
		o->share_domain = value;
		return 0;
	case 'K':
		if (!size_parse(value, &o->pack_bytes) || o->pack_bytes % PAGE_SIZE ||
		    o->pack_bytes >> PAGE_SHIFT > IPT_MAX_PACKED)
			return bad(error, "--pack", value, "is no size up to 128G; write 512M");
		return 0;
	case 'w':
		return parse_swap(o, value, error);
	case 'B':
		return parse_sandbox(o, value, error);
	case 'I':
		if (!size_parse(value, &o->mem_min))
			return bad(error, "--mem-min", value, "is no size; write 64M");
		return 0;
	case 'L':
		if (!size_parse(value, &o->mem_limit) || o->mem_limit < OPTIONS_MEM_LIMIT_LEAST)
			return bad(error, "--mem-limit", value, "is no size from 1M on; write 64M");
		return 0;
	case 'R':
		if (!number_parse(value, 1, 1000000, &n))
			return bad(error, "--mem-shares", value, "is no number from 1 to 1000000");
		o->mem_shares = (uint32_t)n;
		return 0;
	case 'f':
		o->fails = true;
		return fail_set_words(value, words) ? errorf(error, -EINVAL, "--fail: %s", words)
						    : 0;
	case 'x':
		if (!number_parse(value, 0, INT64_MAX, &n))
			return bad(error, "--fail-seed", value, "is no number from 0 on");
		o->fails = true;
		fail_seed(n);
		return 0;
	case 'T':
		if (!number_parse(value, 1, 1u << 30, &o->timeout_seconds))
			return bad(error, "--timeout", value,
				   "is no whole number of seconds from 1 on");
		return 0;
	}
	return -EINVAL;
}

int options_parse(const struct options_spec *spec, void *ctx, int argc, char **argv, char *error)
{
	opterr = 0;
	optind = 0; /* forget what is left of an argv before, which may be gone */
	int option;
	while ((option = getopt_long(argc, argv, spec->shorts, spec->longs, NULL)) != -1) {
		if (option == 'h') {
			fputs(spec->help, stdout);
			return 1;
		}
		if (option == ':')
			return errorf(error, -EINVAL, "%.80s: needs a value; see invisor %s --help",
				      argv[optind - 1], spec->command);
		if (option == '?')
			return errorf(error, -EINVAL,
				      "%.80s: no such option; see invisor %s --help",
				      argv[optind - 1], spec->command);
		int rc = spec->one(ctx, option, optarg, error);
		if (rc)
			return rc;
	}
	if (optind < argc && !spec->operands)
		return errorf(error, -EINVAL,
			      "'%.80s': %s takes options only; see invisor %s --help", argv[optind],
			      spec->command, spec->command);
	return 0;
}

/* The options that are not about guests: of `invisor run` alone. */
static int run_one(void *ctx, int option, char *value, char *error)
{
	struct run_options *o = ctx;
	switch (option) {
	case 'D':
		o->detach = true;
		return 0;
	case 'W':
		if (strcmp(value, "up") && strcmp(value, "ready"))
			return bad(error, "--wait", value, "is neither up nor ready");
		o->wait = value;
		return 0;
	case 'H':
		o->host = value;
		return 0;
	case 'F':
		o->scenario = value;
		return 0;
	case 'Y':
		o->report = value;
		return 0;
	case 'Z':
		o->has_seed = true;
		if (!number_parse(value, 0, INT64_MAX, &o->seed))
			return bad(error, "--seed", value, "is no whole number from 0 on");
		return 0;
	}
	return options_run_one(ctx, option, value, error);
}

static int check_detach(const struct run_options *o, char *error)
{
	const char *wrong = o->pool_bytes               ? "--pool"
			    : o->table != IPT_INDEX     ? "--table"
			    : o->stats                  ? "--stats"
			    : o->timeout_seconds        ? "--timeout"
			    : o->scenario               ? "--scenario"
			    : o->merge_percent          ? "--merge"
			    : o->pack_bytes             ? "--pack"
			    : o->swap_file              ? "--swap"
			    : o->sandbox || o->first_id ? "--sandbox"
			    : o->fails                  ? "--fail"
							: NULL;
	if (o->detach && wrong)
		return errorf(error, -EINVAL,
			      "%s: not with --detach; the host that runs has its own (see invisor "
			      "host --help)",
			      wrong);
	if (!o->scenario && (o->report || o->has_seed))
		return errorf(error, -EINVAL, "%s: goes with --scenario",
			      o->report ? "--report" : "--seed");
	if (!o->detach && (o->wait || o->host))
		return errorf(error, -EINVAL, "%s: goes with --detach",
			      o->wait ? "--wait" : "--host");
	return 0;
}

#define GUEST_LONGS                                                                             \
	{"count", 1, NULL, 'n'}, {"name", 1, NULL, 'N'}, {"kernel", 1, NULL, 'k'},              \
		{"initrd", 1, NULL, 'i'}, {"append", 1, NULL, 'a'}, {"mem", 1, NULL, 'm'},      \
		{"cpus", 1, NULL, 'c'}, {"share-domain", 1, NULL, 'S'}, {"pmem", 1, NULL, 'P'}, \
		{"mem-min", 1, NULL, 'I'}, {"mem-limit", 1, NULL, 'L'},                         \
		{"mem-shares", 1, NULL, 'R'},                                                   \
	{                                                                                       \
		"disk", 1, NULL, 'd'                                                            \
	}

int options_parse_run(struct run_options *o, int argc, char **argv, char *error)
{
	static const struct option longs[] = {
		GUEST_LONGS,
		{"pool", 1, NULL, 'p'},
		{"table", 1, NULL, 't'},
		{"stats", 1, NULL, 's'},
		{"timeout", 1, NULL, 'T'},
		{"fail", 1, NULL, 'f'},
		{"fail-seed", 1, NULL, 'x'},
		{"merge", 1, NULL, 'g'},
		{"pack", 1, NULL, 'K'},
		{"swap", 1, NULL, 'w'},
		{"sandbox", 1, NULL, 'B'},
		{"detach", 0, NULL, 'D'},
		{"wait", 1, NULL, 'W'},
		{"host", 1, NULL, 'H'},
		{"scenario", 1, NULL, 'F'},
		{"report", 1, NULL, 'Y'},
		{"seed", 1, NULL, 'Z'},
		{"help", 0, NULL, 'h'},
		{NULL, 0, NULL, 0},
	};
	static const struct options_spec spec = {.command = "run",
						 .help = run_help,
						 .shorts = ":n:h",
						 .longs = longs,
						 .one = run_one};
	*o = options_run_defaults;
	int rc = options_parse(&spec, o, argc, argv, error);
	return rc ? rc : check_detach(o, error);
}

int options_parse_guests(struct run_options *o, int argc, char **argv, char *error)
{
	static const struct option longs[] = {GUEST_LONGS, {NULL, 0, NULL, 0}};
	static const struct options_spec spec = {.command = "run",
						 .help = run_help,
						 .shorts = ":n:",
						 .longs = longs,
						 .one = options_run_one};
	*o = options_run_defaults;
	o->name = NULL;
	return options_parse(&spec, o, argc, argv, error);
}

/* Less than this holds no kernel, nor the tables that a bare guest is started with. */
#define MEM_MIN (4 * MiB)
/* More than the guests could ever use at once is not needed, and a host wants some memory itself.
 */
#define HOST_SHARE_NUMERATOR   9
#define HOST_SHARE_DENOMINATOR 10

uint64_t options_most_pool(void)
{
	uint64_t host = proc_meminfo_kib("MemTotal") * KiB;
	return (host ? host / HOST_SHARE_DENOMINATOR * HOST_SHARE_NUMERATOR
		     : IPT_MAX_FRAMES * PAGE_SIZE) &
	       ~PAGE_MASK;
}

int options_check_sizes(struct run_options *o, char *error)
{
	uint64_t host = proc_meminfo_kib("MemTotal") * KiB;
	if (o->mem_bytes % PAGE_SIZE)
		return errorf(error, -EINVAL, "--mem: %" PRIu64 " bytes is no multiple of 4096",
			      o->mem_bytes);
	if (o->mem_bytes < MEM_MIN)
		return errorf(error, -EINVAL,
			      "--mem: %" PRIu64 " KiB is too little for any guest; 4M is "
			      "the least",
			      o->mem_bytes / KiB);
	if (o->pool_bytes % PAGE_SIZE)
		return errorf(error, -EINVAL, "--pool: %" PRIu64 " bytes is no multiple of 4096",
			      o->pool_bytes);
	if (host && o->pool_bytes > host)
		return errorf(error, -ENOMEM,
			      "--pool: %" PRIu64 " MiB, but this host has %" PRIu64
			      " MiB; give less",
			      o->pool_bytes / MiB, host / MiB);
	if (!o->pool_bytes) {
		uint64_t most = options_most_pool();
		bool all_fit = o->mem_bytes <= most / o->count &&
			       o->pmem_bytes <= most - o->mem_bytes * o->count;
		o->pool_bytes = all_fit ? o->mem_bytes * o->count + o->pmem_bytes : most;
	}
	if (o->pool_bytes >> PAGE_SHIFT > IPT_MAX_FRAMES)
		return errorf(error, -EINVAL, "--pool: more than 1 TiB");
	bool reclaims = o->pack_bytes || o->swap_file || o->reclaims;
	if (!reclaims && (o->mem_min || o->mem_limit || o->mem_shares))
		return errorf(
			error, -EINVAL,
			"--mem-min, --mem-limit and --mem-shares go with --pack or --swap: without "
			"these all memory stays where it is");
	if (o->mem_min > o->mem_bytes)
		return errorf(error, -EINVAL, "--mem-min: more than the guest's memory");
	if (o->mem_limit && o->mem_limit < o->mem_min)
		return errorf(error, -EINVAL, "--mem-limit: less than --mem-min");
	if (o->mem_min / PAGE_SIZE * o->count > o->pool_bytes / PAGE_SIZE)
		return errorf(error, -ENOMEM,
			      "--mem-min: %u times %" PRIu64 " MiB, but the pool has %" PRIu64
			      " MiB",
			      o->count, o->mem_min / MiB, o->pool_bytes / MiB);
	if (!reclaims && o->mem_bytes > o->pool_bytes)
		return errorf(error, -ENOMEM,
			      "--mem: %" PRIu64 " MiB for a guest, but the pool has %" PRIu64
			      " MiB; give less, or a larger --pool",
			      o->mem_bytes / MiB, o->pool_bytes / MiB);
	return 0;
}
